"""The `featstore` command: parses, calls, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from featstore.console import Terminal
from featstore.errors import ConfigError, FeatstoreError, TooManyFailedError
from featstore.threads import wait_briefly

if TYPE_CHECKING:
    from featstore.config import Config
    from featstore.extraction import Summary

app = typer.Typer(
    help="Extract frozen image features once, keep them safe, share them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print errors only.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON and nothing else.")]
STORE_HELP = "The store: a folder, a zip file or a URL [cache/features.zarr]."
StoreOption = Annotated[str | None, typer.Option("--store", help=STORE_HELP)]
StoreArgument = Annotated[str | None, typer.Argument(help=STORE_HELP)]
PhotosOption = Annotated[Path | None, typer.Option(help="The folder of photos [that of the last extraction].")]
WeightsOption = Annotated[list[str] | None, typer.Option(help="NAME=FILE, NAME=random:SEED, or random:SEED for all.")]
WeightsFolder = Annotated[Path | None, typer.Option(help="Where weights files are [cache/weights].")]
Hub = Annotated[bool | None, typer.Option("--hub/--no-hub", help="Allow downloads from the hub.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")]
MaxBad = Annotated[str | None, typer.Option(help="Fail if more photos than this cannot be read: 10 or 1%.")]


def main() -> None:
    wait_briefly()
    app()


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
        config = _override(find_config(), photos, store, weights, weights_folder, hub, dtype, compress)
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
        config = _override(find_config(), None, store, weights, weights_folder, hub, None, None)
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


@app.command()
def verify(
    store: StoreArgument = None,
    recompute: Annotated[int, typer.Option(help="Also compute this many rows again from their photos.", min=0)] = 0,
    photos: PhotosOption = None,
    weights: WeightsOption = None,
    weights_folder: WeightsFolder = None,
    hub: Hub = None,
    device: Device = "auto",
    seed: Annotated[int | None, typer.Option(help="Of the rows drawn [another one each time].")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Check every file, every checksum and every record of a store; exits with 1 if anything is damaged."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config
        from featstore.show import show_verification
        from featstore.store import verify as check

        config = _override(find_config(), None, store, weights, weights_folder, hub, None, None)
        again = None
        with terminal.progress() as progress:
            found = check(config.store, on_progress=lambda done, total: progress("verify", done, total))
            if recompute and found.sound:
                from featstore.recomputing import recompute as compute_again

                again = compute_again(
                    config.store,
                    recompute,
                    photos=photos or config.photos,
                    weights=config.weights,
                    device=device,
                    seed=seed,
                    on_progress=progress,
                )
        show_verification(found, again, terminal)
        if not found.sound or (again is not None and not again.within):
            raise SystemExit(1)


@app.command()
def repair(store: StoreArgument = None, quiet: Quiet = False, as_json: Json = False) -> None:
    """Mark what is damaged as absent, so that `extract` computes just that again; what is whole is kept."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config, parse_store
        from featstore.show import show_repair
        from featstore.store import repair as mend

        place = parse_store(store) if store else find_config().store
        with terminal.progress() as progress:
            done = mend(place, on_progress=lambda done, total: progress("check", done, total))
        show_repair(done, terminal)
        if done.remaining:
            raise SystemExit(1)


@app.command("rm")
def remove(
    tensors: Annotated[list[str], typer.Argument(help="Names of tensors.")],
    store: StoreOption = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Take tensors out of a store, and say how many bytes are free again."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config, parse_store
        from featstore.console import size
        from featstore.store.writing import remove_tensors

        freed = remove_tensors(parse_store(store) if store else find_config().store, tensors)
        terminal.result({"removed": freed})
        for name, n_bytes in freed.items():
            terminal.say(f"removed tensor {name}: {size(n_bytes)} freed")


@app.command()
def info(
    store: StoreArgument = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a store holds: images, tensors, segments and their identities."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config, parse_store
        from featstore.inspection import describe
        from featstore.show import show_info

        facts = describe(parse_store(store) if store else find_config().store)
        terminal.result(facts)
        show_info(facts, terminal)


@app.command("backbones")
def list_backbones(as_json: Json = False) -> None:
    """The backbones that have a card here, and where their weights are; any timm model works by name too."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config
        from featstore.inspection import describe_backbones

        cards = describe_backbones(find_config())
        terminal.result(cards)
        header = ("backbone", "alias", "width", "weights", "used by", "licence")
        rows = [tuple(str(card[name]) for name in header) for card in cards]
        terminal.table(header, rows)
        terminal.say(
            "any other timm model works by its name, as vgg16 or convnext_tiny.in12k; add :max to pool by maximum"
        )


@app.command()
def doctor(as_json: Json = False) -> None:
    """Check what is installed, which weights are here, disk and device; says how to mend what fails."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(FeatstoreError):
        from dataclasses import asdict

        from featstore.config import find_config
        from featstore.doctor import examine

        checks = examine(find_config())
        terminal.result([asdict(check) for check in checks])
        marks = {True: "ok", False: "FAIL", None: "-"}
        terminal.table(("", "check", "found"), [(marks[c.ok], c.name, c.found) for c in checks])
        failing = [check for check in checks if check.ok is False]
        for check in failing:
            terminal.say(f"FAIL {check.name}: {check.found}\n  to mend it: {check.fix}")
        terminal.say("all is well" if not failing else f"{len(failing)} to mend")
        if failing:
            raise SystemExit(1)


def _override(
    config: "Config",
    photos: Path | None,
    store: str | None,
    weights: list[str] | None,
    weights_folder: Path | None,
    hub: bool | None,
    dtype: str | None,
    compress: str | None,
) -> "Config":
    from dataclasses import replace

    from featstore.config import parse_store

    if photos and config.photos and not store and photos.resolve() != config.photos.resolve():
        raise ConfigError(
            f"{config.file} keeps the features of {config.photos} in {config.store}; "
            f"name another --store for those of {photos}"
        )
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"unknown --dtype {dtype!r}; say float16 or float32")
    if compress not in (None, "zstd", "blosc"):
        raise ConfigError(f"unknown --compress {compress!r}; say zstd or blosc")
    policy = replace(
        config.weights,
        folder=weights_folder or config.weights.folder,
        named={**config.weights.named, **dict(map(_named_weights, weights or []))},
        hub=config.weights.hub if hub is None else hub,
    )
    return replace(
        config,
        photos=photos or config.photos,
        store=parse_store(store) if store else config.store,
        weights=policy,
        dtype=dtype or config.dtype,
        compress=cast(Any, compress) or config.compress,
    )


def _named_weights(text: str) -> tuple[str, str]:
    from featstore.backbones import find_card

    if text.startswith("random:"):
        return "*", text
    name, equals, value = text.partition("=")
    if not equals or not value:
        raise ConfigError(f"--weights {text!r} is not of the form NAME=FILE, NAME=random:SEED or random:SEED")
    return find_card(name).name, value


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
