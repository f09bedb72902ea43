"""Making features: `init`, `extract`, `retry`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.downloads import fetch_weights
from featstore.cli.options import (
    Compress,
    Device,
    Dtype,
    Engine,
    MaxBad,
    MaxMegapixels,
    Output,
    Photos,
    StoreArgument,
    StoreOption,
    WeightsOptions,
    configure,
)
from featstore.cli.summary import show_dry_run, show_notices, show_plan, show_summary
from featstore.errors import ConfigError, TooManyFailedError
from featstore.support import suggest
from featstore.terminal import counted

if TYPE_CHECKING:
    from featstore import Summary


def init(
    photos: Annotated[Path, typer.Argument(help="The folder of photos.")],
    labels: Annotated[Path | None, typer.Option(help="The label table (CSV), for `heads train`.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric].")] = None,
    scale: Annotated[str | None, typer.Option(help="The ends of the rating scale, as 1:7.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Column that says which rows to keep together; or name, or folder.")
    ] = None,
) -> None:
    """Write a commented featstore.toml into the current folder."""
    with Output().terminal() as terminal:
        from featstore.photos.files import find_photos
        from featstore.support import parse_names, parse_scale
        from featstore.toml import FILE_NAME, write_config

        n_photos = len(find_photos(photos))
        names = parse_names(tasks)
        if labels is not None:
            _check_labels(labels, names, group)
        write_config(
            Path(FILE_NAME),
            photos=photos,
            labels=labels,
            tasks=names,
            scale=parse_scale(scale) if scale else None,
            group=group,
        )
        terminal.say(
            f"wrote {FILE_NAME} for {counted(n_photos, 'photo')} in {photos}; next: featstore extract --backbones all"
        )


def _check_labels(labels: Path, tasks: Sequence[str], group: str | None) -> None:
    """Refuse a label table that does not have the columns that are named.

    Raises:
        ConfigError: it does not exist, or a column is unknown; suggests the nearest.
        ExchangeError: it cannot be read.
    """
    from featstore.exchange.formats.csv_parquet import column_names
    from featstore.toml import GROUPS_BY_PATH

    if not labels.is_file():
        raise ConfigError(f"label table {labels} does not exist")
    if not tasks and group in (None, *GROUPS_BY_PATH):
        return
    columns = column_names(labels)
    for task in tasks:
        if task not in columns:
            raise ConfigError(f"--tasks: {labels} has no column {task!r}; {suggest(task, columns)}")
    if group is not None and group not in (*columns, *GROUPS_BY_PATH):
        raise ConfigError(f"--group: {labels} has no column {group!r}; {suggest(group, [*columns, *GROUPS_BY_PATH])}")


def extract(
    photos: Annotated[Path | None, typer.Argument(help="The folder of photos [that of featstore.toml].")] = None,
    backbones: Annotated[
        str | None, typer.Option("--backbones", "-b", help="all, packaged, or NAME,NAME [all].")
    ] = None,
    view: Annotated[
        str | None,
        typer.Option(help="Views of the named backbones: grid, whole, NAME,NAME [model: each network's own]."),
    ] = None,
    store: StoreOption = None,
    tensor: Annotated[
        list[str] | None,
        typer.Option(help="One more tensor: NAME=LAYOUT[/WIDTH]:SEGMENT,... as amtl=stack/2048:lite0,lite1:max"),
    ] = None,
    *,
    weights: WeightsOptions,
    dtype: Dtype = None,
    compress: Compress = None,
    device: Device = "auto",
    engine: Engine = None,
    precision: Annotated[
        str | None,
        typer.Option(help="auto, fp32, tf32, bf16 or fp16 [that of the stored tensor; else fp16 on a GPU]."),
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Photos in one pass [1 on a CPU, 32 on a GPU].")] = None,
    workers: Annotated[
        int, typer.Option(help="Compute in this many processes, one for each GPU [in this process].")
    ] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Compute on the workers of this Dask scheduler.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out backbones without weights; their tensors say so.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace tensors whose backbones differ; what is the same is copied.")
    ] = False,
    prune: Annotated[
        bool, typer.Option("--prune", help="Mark the rows of photos that left the folder as gone.")
    ] = False,
    reuse: Annotated[
        list[str] | None,
        typer.Option(help="Copy features of the same identity from this store or shared repository."),
    ] = None,
    max_bad: MaxBad = None,
    max_megapixels: MaxMegapixels = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse files that are no photos, and networks that cannot run.")
    ] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Say why anything is computed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write the timeline of the stages, for chrome://tracing or Perfetto.")
    ] = None,
    output: Output,
) -> None:
    """Compute the features that the store lacks, and nothing else.

    Without arguments it does what featstore.toml says. Run again, it goes on where it stopped.
    """
    kept = "what was computed is kept, and the same command goes on from there"
    with output.terminal(stopped=kept) as terminal:
        from featstore import Runtime
        from featstore import extract as run
        from featstore.config import choose_tensors, parse_limit, parse_tensor
        from featstore.extraction.estimate import estimate
        from featstore.extraction.extract import plan_extraction
        from featstore.extraction.plan import foretell
        from featstore.support import parse_names

        limit = None if max_bad is None else parse_limit(max_bad)
        config = configure(
            photos=photos,
            store=store,
            weights=weights,
            dtype=dtype,
            compress=compress,
            precision=precision,
            engine=engine,
            max_megapixels=max_megapixels,
        )
        extra = {spec.name: spec for spec in map(parse_tensor, tensor or [])}
        config = choose_tensors(config, backbones or ("" if extra else "all"), extra, views=parse_names(view))
        runtime = Runtime(device, config.engine, batch, workers, scheduler)
        if dry_run:
            with terminal.progress() as progress:
                plan, networks = plan_extraction(
                    config,
                    replace=replace,
                    prune=prune,
                    reuse=reuse or [],
                    allow_missing=allow_missing,
                    strict=strict,
                    runtime=runtime,
                    on_progress=progress,
                )
            show_plan(plan, terminal)
            show_notices(foretell(plan, networks), terminal)
            show_dry_run(plan, estimate(plan, networks, runtime, max_megapixels=config.max_megapixels), terminal)
            return
        config, allow_missing = fetch_weights(
            config, terminal, allow_missing=allow_missing, forbidden=weights.hub is False
        )
        with terminal.progress() as progress:
            summary = run(
                config,
                runtime=runtime,
                replace=replace,
                prune=prune,
                reuse=reuse or [],
                allow_missing=allow_missing,
                strict=strict,
                trace=trace,
                on_plan=(lambda plan: show_plan(plan, terminal)) if explain else None,
                on_progress=progress,
            )
        show_summary(summary, terminal)
        _check_failures(summary, limit)


def retry(
    store: StoreArgument = None,
    photos: Photos = None,
    *,
    weights: WeightsOptions,
    device: Device = "auto",
    engine: Engine = None,
    max_bad: MaxBad = None,
    output: Output,
) -> None:
    """Try the photos that could not be read again, and no others."""
    with output.terminal(stopped="what was computed is kept") as terminal:
        from featstore import Runtime
        from featstore import retry as run
        from featstore.config import parse_limit

        limit = None if max_bad is None else parse_limit(max_bad)
        config = configure(store=store, weights=weights, engine=engine)
        with terminal.progress() as progress:
            summary = run(
                config.store,
                photos=photos,
                default_photos=config.photos,
                weights=config.weights,
                max_megapixels=config.max_megapixels,
                runtime=Runtime(device, config.engine),
                on_progress=progress,
            )
        show_summary(summary, terminal)
        _check_failures(summary, limit)


def _check_failures(summary: "Summary", limit: tuple[float, bool] | None) -> None:
    if limit is None:
        return
    number, percent = limit
    n_failed = len(summary.failed)
    share = 100 * n_failed / summary.n_images if summary.n_images else 0.0
    if (share if percent else n_failed) > number:
        allowed = f"{number:g}%" if percent else f"{number:g}"
        raise TooManyFailedError(
            f"{n_failed} of {summary.n_images} photos could not be read, more than --max-bad {allowed}; the others are "
            f"kept, `featstore info {summary.store}` lists these, `featstore retry {summary.store}` tries them again"
        )
