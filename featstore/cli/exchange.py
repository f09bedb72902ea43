"""Features from elsewhere and for elsewhere: `import`, `export`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.options import (
    Compress,
    Dtype,
    Output,
    StoreArgument,
    StoreOption,
    WeightsOptions,
    configure,
    place_of,
)
from featstore.errors import ConfigError
from featstore.support import LISTED, few
from featstore.terminal import Terminal, counted, duration, size

if TYPE_CHECKING:
    from featstore.exchange.exporting import ExportSummary
    from featstore.exchange.importing import ImportSummary


def import_(
    name: Annotated[str, typer.Argument(help="The name of the new tensor.")],
    source: Annotated[
        str,
        typer.Option("--from", help="A file .npy, .npz (loaded whole), .h5, .parquet, .csv, .tsv, or a Zarr or URL."),
    ],
    paths: Annotated[Path | None, typer.Option(help="A text file: the photo of each row, one a line.")] = None,
    digests: Annotated[Path | None, typer.Option(help="A text file: the SHA-256 of each photo, one a line.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The array in an .npz, HDF5 or Zarr [the only one].")] = None,
    path_column: Annotated[str | None, typer.Option(help="The column of a table that names the photos [path].")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The columns of the features: NAME,NAME or a common prefix [all numeric].")
    ] = None,
    by: Annotated[str | None, typer.Option(help="Match photos by path or digest, if the file has both [path].")] = None,
    backbone: Annotated[
        int | None, typer.Option(help="The backbone to take, by its index in (rows, backbones, blocks, features).")
    ] = None,
    identity: Annotated[
        str | None, typer.Option(help="What the features are, in words; files with the same words may add rows.")
    ] = None,
    dtype: Dtype = None,
    compress: Compress = None,
    store: StoreOption = None,
    photos: Annotated[
        Path | None, typer.Option(help="A folder of photos to list first [that of featstore.toml for a new store].")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse rows without image, images without row, and rows of zeros.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a tensor of this name that holds other features.")
    ] = False,
    *,
    output: Output,
) -> None:
    """Take features that were made elsewhere into a store.

    Photos are matched by path or by SHA-256. Nothing is written unless every value can be. Run again, it goes on where
    it stopped.
    """
    kept = "what was imported is kept, and the same command goes on from there"
    with output.terminal(stopped=kept) as terminal:
        from featstore import FeatureFile, import_features
        from featstore.store import existing_store

        if by not in (None, "path", "digest"):
            raise ConfigError(f"unknown --by {by!r}; say path or digest")
        config = configure(photos=photos, store=store, dtype=dtype, compress=compress)
        listed = photos or (config.photos if existing_store(config.store) is None else None)
        file = FeatureFile(source, paths, digests, dataset, path_column, columns, by)  # type: ignore[arg-type]
        with terminal.progress() as progress:
            summary = import_features(
                name,
                file,
                store=config.store,
                photos=listed,
                declared=identity,
                backbone=backbone,
                dtype=config.dtype,
                compress=config.compress,
                strict=strict,
                replace=replace,
                on_progress=progress,
            )
        _show_import(summary, terminal)


def concepts(
    backbone: Annotated[
        str, typer.Option("--backbone", "-b", help="A network with text, open_clip:... or hf:..., as extracted.")
    ],
    store: StoreArgument = None,
    prompt: Annotated[list[str] | None, typer.Option(help="A prompt, as 'a sad face'; say it again for more.")] = None,
    prompt_file: Annotated[Path | None, typer.Option(help="A text file of prompts, one a line.")] = None,
    name: Annotated[str, typer.Option(help="The name of the new tensor.")] = "concepts",
    tensor: Annotated[str | None, typer.Option(help="The tensor that has the features, if several do.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a tensor of this name that holds other features.")
    ] = False,
    *,
    weights: WeightsOptions,
    output: Output,
) -> None:
    """Store how near each photo is to prompts in words.

    One column a prompt, from features that the store has: no photo is read. Run again after an extraction, it adds the
    new photos.
    """
    with output.terminal(stopped="what was written is kept") as terminal:
        from featstore import concepts as run
        from featstore.exchange.concepts import read_prompts

        config = configure(store=store, weights=weights)
        prompts = read_prompts(prompt or (), prompt_file)
        with terminal.progress() as progress:
            summary = run(
                config.store,
                backbone,
                prompts,
                name=name,
                tensor=tensor,
                weights=config.weights,
                replace=replace,
                on_progress=progress,
            )
        _show_concepts(summary, prompts, terminal)


def export(
    to: Annotated[str, typer.Option("--to", help="The file, or for Zarr the folder, to write.")],
    store: StoreArgument = None,
    tensors: Annotated[str | None, typer.Option(help="NAME,NAME [all].")] = None,
    format: Annotated[str | None, typer.Option(help="npz, hdf5, parquet or zarr [that of the suffix].")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse if any image has to be left out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    *,
    output: Output,
) -> None:
    """Write features to NumPy, HDF5, Parquet or plain Zarr.

    Images that lack features in any of the tensors are left out; it says how many and why.
    """
    with output.terminal(stopped="nothing of the export is left behind") as terminal:
        from featstore import export as run
        from featstore.support import parse_names

        with terminal.progress() as progress:
            summary = run(
                place_of(store),
                to,
                tensors=None if tensors is None else parse_names(tensors),
                format=format,
                strict=strict,
                overwrite=overwrite,
                on_progress=progress,
            )
        _show_export(summary, terminal)


def _show_concepts(summary: "ImportSummary", prompts: Sequence[str], terminal: Terminal) -> None:
    terminal.result(
        {
            "store": summary.store,
            "tensor": summary.tensor,
            "columns": list(prompts),
            "new": summary.n_imported,
            "kept": summary.n_kept,
            "notices": summary.notices,
            "elapsed_s": round(summary.elapsed_s, 3),
        }
    )
    for notice in summary.notices:
        terminal.say(f"note: {notice}")
    terminal.say(
        f"tensor {summary.tensor}: {counted(len(prompts), 'prompt')} of {counted(summary.n_imported, 'image')}, "
        f"{summary.n_kept} kept: {few(prompts)}"
    )


def _show_import(summary: "ImportSummary", terminal: Terminal) -> None:
    """What was taken in, and what of file and store has no counterpart."""
    terminal.result(
        {
            "store": summary.store,
            "tensor": summary.tensor,
            "rows": summary.n_rows,
            "row_shape": summary.row_shape,
            "dtype": summary.dtype,
            "columns": summary.columns,
            "left_out": summary.left_out,
            "matched_by": summary.matched_by,
            "imported": summary.n_imported,
            "kept": summary.n_kept,
            "new_images": summary.n_listed,
            "unmatched": summary.unmatched,
            "without": summary.without,
            "zeros": summary.zeros,
            "notices": summary.notices,
            "bytes_written": summary.n_bytes,
            "bytes_reclaimed": summary.n_reclaimed,
            "elapsed_s": round(summary.elapsed_s, 3),
        }
    )
    for notice in summary.notices:
        terminal.say(f"note: {notice}")
    if summary.matched_by == "file name":
        terminal.say("note: no path matched, so photos were told by their file names, which are all different")
    if summary.columns:
        line = f"features: {counted(len(summary.columns), 'column')}, {few(_in_runs(summary.columns), LISTED)}"
        if summary.left_out:
            line += f"; left out: {few((f'{name} ({why})' for name, why in summary.left_out.items()), LISTED)}"
        terminal.say(line)
    _say_some("rows of the file are of no image of the store", summary.unmatched, terminal)
    _say_some("images of the store have no features in it", summary.without, terminal)
    _say_some("rows are all zeros; were they ever computed?", summary.zeros, terminal)
    shape = " x ".join(map(str, summary.row_shape))
    line = f"tensor {summary.tensor} ({shape}, {summary.dtype}): {counted(summary.n_imported, 'image')} imported by "
    n_unmatched, of_rows = len(summary.unmatched), counted(summary.n_rows, "row")
    line += f"{summary.matched_by}, {summary.n_kept} kept, {n_unmatched} of {of_rows} unmatched"
    if summary.n_listed:
        line += f"; {counted(summary.n_listed, 'photo')} listed"
    if summary.n_bytes:
        line += f"; {size(summary.n_bytes)} written"
    if summary.n_reclaimed:
        line += f"; {size(summary.n_reclaimed)} of the replaced tensor freed"
    terminal.say(f"{line}; {duration(summary.elapsed_s)}")
    terminal.say(f"store: {summary.store}")


def _in_runs(names: Sequence[str]) -> list[str]:
    """The names, those that are numbered one after the other together: `f0 to f1279`."""
    runs: list[list[str]] = []
    before: tuple[str, int] | None = None
    for name in names:
        stem = name.rstrip("0123456789")
        number = int(name[len(stem) :] or -1)
        if before == (stem, number - 1):
            runs[-1].append(name)
        else:
            runs.append([name])
        before = (stem, number) if number >= 0 else None
    return [each for run in runs for each in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else run)]


def _show_export(summary: "ExportSummary", terminal: Terminal) -> None:
    """What was written, and which images were left out."""
    terminal.result(
        {
            "store": summary.store,
            "file": summary.file,
            "format": summary.format,
            "tensors": summary.tensors,
            "dtypes": summary.dtypes,
            "images": summary.n_images,
            "left_out": summary.left_out,
            "bytes_written": summary.n_bytes,
            "elapsed_s": round(summary.elapsed_s, 3),
        }
    )
    for reason, paths in summary.left_out.items():
        _say_some(f"images left out, {reason}", paths, terminal)
    terminal.table(
        ("tensor", "shape", "dtype"),
        [(name, " x ".join(map(str, shape)), summary.dtypes[name]) for name, shape in summary.tensors.items()],
    )
    n_left_out = sum(map(len, summary.left_out.values()))
    terminal.say(
        f"{counted(summary.n_images, 'image')} exported, {n_left_out} left out; {size(summary.n_bytes)} in "
        f"{duration(summary.elapsed_s)}"
    )
    terminal.say(f"{summary.format}: {summary.file}")


def _say_some(what: str, names: Sequence[str], terminal: Terminal) -> None:
    if names:
        terminal.say(f"{len(names)} {what}: {few(names)}")
