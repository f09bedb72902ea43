"""Making features: `init`, `extract`, `retry`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.options import (
    Compress,
    Device,
    Dtype,
    Engine,
    Hub,
    Json,
    MaxBad,
    PhotosOption,
    Quiet,
    StoreArgument,
    StoreOption,
    WeightsFolder,
    WeightsOption,
    app,
    override,
)
from featstore.errors import FeatstoreError, TooManyFailedError
from featstore.terminal import Terminal, counted

if TYPE_CHECKING:
    from featstore.extraction.summary import Summary


@app.command()
def init(
    photos: Annotated[Path, typer.Argument(help="The folder of photos.")],
    labels: Annotated[Path | None, typer.Option(help="The label table (CSV), for `heads train`.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Columns to learn, comma-separated [all numeric].")] = None,
    scale: Annotated[str | None, typer.Option(help="The ends of the rating scale, as 1:7.")] = None,
    group: Annotated[str | None, typer.Option(help="Column of rows to keep together; or name, or folder.")] = None,
) -> None:
    """Write a commented featstore.toml into the current folder."""
    terminal = Terminal()
    with terminal.errors(FeatstoreError):
        from featstore.photos.files import find_photos
        from featstore.support import parse_scale
        from featstore.toml import FILE_NAME, check_labels, write_config

        n_photos = len(find_photos(photos))
        names = tuple(_names(tasks))
        if labels is not None:
            check_labels(labels, names, group)
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


@app.command()
def extract(
    photos: Annotated[Path | None, typer.Argument(help="The folder of photos [that of featstore.toml].")] = None,
    backbones: Annotated[
        str | None, typer.Option("--backbones", "-b", help="all, packaged, or NAME,NAME. [all]")
    ] = None,
    store: StoreOption = None,
    tensor: Annotated[
        list[str] | None, typer.Option(help="NAME=LAYOUT[/WIDTH]:SEGMENT,... as amtl=stack/2048:lite0,lite1:max")
    ] = None,
    weights: WeightsOption = None,
    weights_folder: WeightsFolder = None,
    hub: Hub = None,
    dtype: Dtype = None,
    compress: Compress = None,
    device: Device = "auto",
    engine: Engine = None,
    precision: Annotated[
        str | None, typer.Option(help="auto, fp32, tf32, bf16 or fp16 [as the tensor began; else fp16 on a GPU].")
    ] = None,
    batch: Annotated[int | None, typer.Option(help="Photos in one pass [1 on a CPU, 32 on a GPU].")] = None,
    workers: Annotated[int, typer.Option(help="Compute in so many processes, one for each GPU [in this one].")] = 0,
    scheduler: Annotated[str | None, typer.Option(help="Compute on the workers of this Dask scheduler.")] = None,
    allow_missing: Annotated[
        bool, typer.Option("--allow-missing", help="Leave out segments without weights; their tensors say so.")
    ] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace tensors whose segments differ; what is the same is copied.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Mark rows of photos that are no longer there gone.")] = False,
    reuse: Annotated[
        list[str] | None,
        typer.Option(help="A store or shared repository to copy features of the same identity from."),
    ] = None,
    max_bad: MaxBad = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why anything is computed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing.")
    ] = False,
    trace: Annotated[
        Path | None, typer.Option(help="Write the timeline of the stages, for chrome://tracing or Perfetto.")
    ] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute the features that the store lacks, and nothing else.

    Without arguments it does what featstore.toml says. Run again, it goes on where it stopped.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    kept = "what was computed is kept, and the same command goes on from there"
    with terminal.errors(FeatstoreError, stopped=kept):
        from featstore.cli.show import show_dry_run, show_plan, show_summary
        from featstore.config import choose_tensors, parse_limit, parse_tensor
        from featstore.engines import Runtime
        from featstore.extraction.extract import extract as run
        from featstore.extraction.extract import plan_extraction
        from featstore.extraction.plan import foretell
        from featstore.toml import find_config

        limit = None if max_bad is None else parse_limit(max_bad)
        extra = {plan.name: plan for plan in map(parse_tensor, tensor or [])}
        chosen = backbones or ("" if extra else "all")
        said = (photos, store, weights, weights_folder, hub, dtype, compress)
        config = override(find_config(), *said, precision=precision, engine=engine)
        config = choose_tensors(config, chosen, extra)
        runtime = Runtime(device, config.engine, batch, workers, scheduler)
        if dry_run:
            from featstore.extraction.estimate import estimate

            with terminal.progress() as progress:
                plan, networks = plan_extraction(
                    config,
                    replace=replace,
                    prune=prune,
                    reuse=reuse or [],
                    allow_missing=allow_missing,
                    runtime=runtime,
                    on_progress=progress,
                )
            show_plan(plan, terminal)
            for notice in foretell(plan, networks):
                terminal.say(f"note: {notice}")
            show_dry_run(plan, estimate(plan, networks, runtime), terminal)
            return
        with terminal.progress() as progress:
            summary = run(
                config,
                runtime=runtime,
                replace=replace,
                prune=prune,
                reuse=reuse or [],
                allow_missing=allow_missing,
                trace=trace,
                on_plan=(lambda plan: show_plan(plan, terminal)) if explain else None,
                on_progress=progress,
            )
        show_summary(summary, terminal)
        _check_failures(summary, limit)


@app.command()
def retry(
    store: StoreArgument = None,
    photos: PhotosOption = None,
    weights: WeightsOption = None,
    weights_folder: WeightsFolder = None,
    hub: Hub = None,
    device: Device = "auto",
    engine: Engine = None,
    max_bad: MaxBad = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look again at the photos that could not be read, and at no others."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped="what was computed is kept"):
        from featstore.cli.show import show_summary
        from featstore.config import parse_limit
        from featstore.engines import Runtime
        from featstore.extraction.extract import retry as run
        from featstore.toml import find_config

        limit = None if max_bad is None else parse_limit(max_bad)
        config = override(find_config(), None, store, weights, weights_folder, hub, engine=engine)
        with terminal.progress() as progress:
            summary = run(
                config.store,
                photos=photos,
                default_photos=config.photos,
                weights=config.weights,
                runtime=Runtime(device, config.engine),
                on_progress=progress,
            )
        show_summary(summary, terminal)
        _check_failures(summary, limit)


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]


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
