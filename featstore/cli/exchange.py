"""Features from elsewhere and for elsewhere: `import`, `export`."""

from pathlib import Path
from typing import Annotated

import typer

from featstore.cli.options import Compress, Dtype, Json, Quiet, StoreArgument, StoreOption, app, override, place_of
from featstore.errors import ConfigError, FeatstoreError
from featstore.terminal import Terminal


@app.command("import")
def import_(
    name: Annotated[str, typer.Argument(help="The name of the tensor that they become.")],
    source: Annotated[
        str,
        typer.Option("--from", help="A file .npy, .npz (loaded whole), .h5, .parquet, .csv, .tsv, or a Zarr or URL."),
    ],
    paths: Annotated[Path | None, typer.Option(help="A text file: the photo of each row, one a line.")] = None,
    digests: Annotated[Path | None, typer.Option(help="A text file: the SHA-256 of each photo, one a line.")] = None,
    dataset: Annotated[str | None, typer.Option(help="The array in an .npz, HDF5 or Zarr [the only one].")] = None,
    path_column: Annotated[str | None, typer.Option(help="The column of a table that names the photos [path].")] = None,
    columns: Annotated[
        str | None, typer.Option(help="The columns of the features: NAME,NAME or what they begin with [all numeric].")
    ] = None,
    by: Annotated[str | None, typer.Option(help="path or digest, of a file that has both [path].")] = None,
    backbone: Annotated[int | None, typer.Option(help="Which one of (rows, backbones, blocks, features).")] = None,
    identity: Annotated[
        str | None, typer.Option(help="What the features are, in words: rows of other files may join them then.")
    ] = None,
    dtype: Dtype = None,
    compress: Compress = None,
    store: StoreOption = None,
    photos: Annotated[
        Path | None, typer.Option(help="A folder of photos to list first [if there is no store: of featstore.toml].")
    ] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse rows without image, images without row, and rows of zeros.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace a tensor of this name that holds other features.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take features that were made elsewhere into a store, joined by path or by SHA-256.

    Nothing is written unless every value can be. Run again, it goes on where it stopped.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    kept = "what was imported is kept, and the same command goes on from there"
    with terminal.errors(FeatstoreError, stopped=kept):
        from featstore.cli.show_exchange import show_import
        from featstore.exchange.formats import FeatureFile
        from featstore.exchange.importing import import_features
        from featstore.store import existing_store
        from featstore.toml import find_config

        if by not in (None, "path", "digest"):
            raise ConfigError(f"unknown --by {by!r}; say path or digest")
        config = override(find_config(), photos, store, dtype=dtype, compress=compress)
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
        show_import(summary, terminal)


@app.command()
def export(
    to: Annotated[str, typer.Option("--to", help="The file, or for Zarr the folder, to write.")],
    store: StoreArgument = None,
    tensors: Annotated[str | None, typer.Option(help="NAME,NAME [all].")] = None,
    format: Annotated[str | None, typer.Option(help="npz, hdf5, parquet or zarr [told by the suffix].")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse if any image has to be left out.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing file.")] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Write features for people without featstore: NumPy, HDF5, Parquet or plain Zarr.

    Of images that some of the tensors have no features of, none are written; how many and why is said.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped="nothing of the export is left behind"):
        from featstore.cli.show_exchange import show_export
        from featstore.exchange.exporting import export as run

        names = None if tensors is None else [each.strip() for each in tensors.split(",") if each.strip()]
        with terminal.progress() as progress:
            summary = run(
                place_of(store),
                to,
                tensors=names,
                format=format,
                strict=strict,
                overwrite=overwrite,
                on_progress=progress,
            )
        show_export(summary, terminal)
