"""The `featstore` command: parses, calls, prints."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.console import Terminal, clock, size
from featstore.errors import ConfigError, FeatstoreError
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
StoreOption = Annotated[Path | None, typer.Option("--store", help="The store [cache/features.zarr].")]


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
    weights: Annotated[
        list[str] | None, typer.Option(help="NAME=FILE, NAME=random:SEED, or random:SEED for all.")
    ] = None,
    weights_folder: Annotated[Path | None, typer.Option(help="Where weights files are [cache/weights].")] = None,
    hub: Annotated[bool | None, typer.Option("--hub/--no-hub", help="Allow downloads from the hub.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float16 or float32, of the stored features.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, ...")] = "auto",
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """Compute the features that the store lacks, and nothing else.

    Without arguments it does what featstore.toml says. Run again, it goes on where it stopped.
    """
    terminal = Terminal(quiet=quiet, as_json=as_json)
    kept = "what was computed is kept, and the same command goes on from there"
    with terminal.errors(FeatstoreError, stopped=kept):
        from featstore.config import choose_tensors, find_config, parse_tensor
        from featstore.extraction import extract as run

        extra = {plan.name: plan for plan in map(parse_tensor, tensor or [])}
        chosen = backbones or ("" if extra else "all")
        config = choose_tensors(
            _override(find_config(), photos, store, weights, weights_folder, hub, dtype), chosen, extra
        )
        with terminal.progress() as progress:
            summary = run(config, device=device, on_progress=progress)
        _print_summary(summary, terminal)


@app.command()
def info(
    store: Annotated[Path | None, typer.Argument(help="The store [cache/features.zarr].")] = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a store holds: images, tensors, segments and their identities."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.config import find_config
        from featstore.inspection import describe

        facts = describe(store or find_config().store)
        terminal.result(facts)
        _print_info(facts, terminal)


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
    store: Path | None,
    weights: list[str] | None,
    weights_folder: Path | None,
    hub: bool | None,
    dtype: str | None,
) -> "Config":
    from dataclasses import replace

    if photos and config.photos and not store and photos.resolve() != config.photos.resolve():
        raise ConfigError(
            f"{config.file} keeps the features of {config.photos} in {config.store}; "
            f"name another --store for those of {photos}"
        )
    if dtype not in (None, "float16", "float32"):
        raise ConfigError(f"unknown --dtype {dtype!r}; say float16 or float32")
    policy = replace(
        config.weights,
        folder=weights_folder or config.weights.folder,
        named={**config.weights.named, **dict(map(_named_weights, weights or []))},
        hub=config.weights.hub if hub is None else hub,
    )
    return replace(
        config,
        photos=photos or config.photos,
        store=store or config.store,
        weights=policy,
        dtype=dtype or config.dtype,
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


def _print_summary(summary: "Summary", terminal: Terminal) -> None:
    terminal.result(
        {
            "store": str(summary.store),
            "images": summary.n_images,
            "computed": summary.n_computed,
            "reused": summary.n_reused,
            "failed": [{"path": path, "reason": reason} for path, reason in summary.failed],
            "images_per_s": round(summary.images_per_s, 3),
            "bytes_written": summary.n_bytes,
            "stages_s": {name: round(seconds, 3) for name, seconds in summary.stages_s.items()},
            "slowest_stage": summary.slowest_stage,
            "elapsed_s": round(summary.elapsed_s, 3),
        }
    )
    for path, reason in summary.failed[:20]:
        terminal.say(f"failed: {path}: {reason}")
    if len(summary.failed) > 20:
        terminal.say(f"failed: {len(summary.failed) - 20} more (`featstore info {summary.store}` lists them)")
    line = (
        f"{summary.n_images} images: {summary.n_computed} done, {summary.n_reused} reused, {len(summary.failed)} failed"
    )
    if summary.n_computed:
        line += (
            f"; {summary.images_per_s:.2f} images/s, {size(summary.n_bytes)} written, "
            f"slowest stage {summary.slowest_stage}"
        )
    else:
        line += "; nothing to compute"
    terminal.say(f"{line}; {clock(summary.elapsed_s) if summary.elapsed_s >= 10 else f'{summary.elapsed_s:.1f} s'}")
    terminal.say(f"store: {summary.store}")


def _print_info(facts: dict[str, Any], terminal: Terminal) -> None:
    counts = ", ".join(f"{count} {state}" for state, count in facts["images"].items() if count)
    terminal.say(f"{facts['store']}: {size(facts['bytes'])} on disk, format {facts['format']}")
    terminal.say(f"images: {counts or 'none'}")
    terminal.table(
        ("tensor", "layout", "shape", "dtype", "present", "failed", "absent"),
        [
            (
                name,
                tensor["layout"],
                " x ".join(map(str, tensor["shape"])),
                tensor["dtype"],
                *(str(tensor["rows"][state]) for state in ("present", "failed", "absent")),
            )
            for name, tensor in facts["tensors"].items()
        ],
    )
    terminal.table(
        ("tensor", "segment", "blocks", "width", "identity", "weights"),
        [
            (name, each["name"], str(each["blocks"]), str(each["width"]), each["hash"], each["weights"])
            for name, tensor in facts["tensors"].items()
            for each in tensor["segments"]
        ],
    )
    for path, reason in facts["unreadable"].items():
        terminal.say(f"unreadable: {path}: {reason}")
