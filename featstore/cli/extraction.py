"""Making features: `init`, `extract`, `retry`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from featstore.cli.options import (
    Device,
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
from featstore.console import Terminal
from featstore.errors import ConfigError, FeatstoreError, TooManyFailedError

if TYPE_CHECKING:
    from featstore.extraction import Summary


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
        from featstore.config import FILE_NAME, parse_scale, write_config
        from featstore.images import find_photos

        n_photos = len(find_photos(photos))
        if labels is not None and not labels.is_file():
            raise ConfigError(f"label table {labels} does not exist")
        write_config(
            Path(FILE_NAME),
            photos=photos,
            labels=labels,
            tasks=tuple(_names(tasks)),
            scale=parse_scale(scale) if scale else None,
            group=group,
        )
        terminal.say(f"wrote {FILE_NAME} for {n_photos} photos in {photos}; next: featstore extract --backbones all")


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
    dtype: Annotated[str | None, typer.Option(help="float16 or float32, of the stored features.")] = None,
    compress: Annotated[str | None, typer.Option(help="zstd or blosc, for new tensors [none].")] = None,
    device: Device = "auto",
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace tensors whose segments differ; what is the same is copied.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Mark rows of photos that are no longer there gone.")] = False,
    reuse: Annotated[
        list[str] | None, typer.Option(help="Another store to copy features from, of the same identity and image.")
    ] = None,
    max_bad: MaxBad = None,
    explain: Annotated[bool, typer.Option("--explain", help="Say why anything is computed.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and how long it would take; write nothing.")
    ] = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute the features that the store lacks, and nothing else.

    Without arguments it does what featstore.toml says. Run again, it goes on where it stopped.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    kept = "what was computed is kept, and the same command goes on from there"
    with terminal.errors(FeatstoreError, stopped=kept):
        from featstore.config import choose_tensors, find_config, parse_limit, parse_tensor
        from featstore.extraction import extract as run
        from featstore.extraction import plan_extraction
        from featstore.show import show_dry_run, show_plan, show_summary

        limit = None if max_bad is None else parse_limit(max_bad)
        extra = {plan.name: plan for plan in map(parse_tensor, tensor or [])}
        chosen = backbones or ("" if extra else "all")
        config = override(find_config(), photos, store, weights, weights_folder, hub, dtype, compress)
        config = choose_tensors(config, chosen, extra)
        if dry_run:
            from featstore.estimating import estimate

            with terminal.progress() as progress:
                plan, networks = plan_extraction(
                    config, replace=replace, prune=prune, reuse=reuse or [], on_progress=progress
                )
            show_plan(plan, terminal)
            show_dry_run(plan, estimate(plan, networks, device=device), terminal)
            return
        with terminal.progress() as progress:
            summary = run(
                config,
                device=device,
                replace=replace,
                prune=prune,
                reuse=reuse or [],
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
    max_bad: MaxBad = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Look again at the photos that could not be read, and at no others."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError, stopped="what was computed is kept"):
        from featstore.config import find_config, parse_limit
        from featstore.extraction import retry as run
        from featstore.show import show_summary

        limit = None if max_bad is None else parse_limit(max_bad)
        config = override(find_config(), None, store, weights, weights_folder, hub, None, None)
        with terminal.progress() as progress:
            summary = run(
                config.store,
                photos=photos or config.photos,
                weights=config.weights,
                device=device,
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
