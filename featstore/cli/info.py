"""Looking: `info`, `backbones`, `doctor`."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featstore.cli.options import Json, Output, StoreArgument, place_of
from featstore.errors import BackboneError
from featstore.terminal import Terminal, counted, one_line, size

if TYPE_CHECKING:
    from featstore.cli.doctor import Check


def info(store: StoreArgument = None, *, output: Output) -> None:
    """Show what a store holds: images, tensors and identities."""
    with output.terminal() as terminal:
        from featstore.store.describe import describe

        facts = describe(place_of(store))
        terminal.result(facts)
        show_info(facts, terminal)


def backbones(
    pattern: Annotated[
        str | None, typer.Argument(help="Part of a name, as dino, or a pattern, as 'clip*': lists timm's networks too.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the backbones with a card, and where their weights are.

    Any timm model works by its name too.
    """
    with Output(as_json=as_json).terminal() as terminal:
        from featstore import find_config
        from featstore.backbones.describe import describe_backbones

        cards = describe_backbones(find_config().weights, pattern)
        if not cards:
            raise BackboneError(f"no backbone is called like {pattern!r}; say part of a name, as resnet, dino or clip")
        terminal.result(cards)
        names = ("backbone", "alias", "width", "weights", "used_by", "licence")
        if pattern is not None:
            names = ("backbone", "alias", "width", "input", "weights", "licence")
        header = [name.replace("_", " ") for name in names]
        terminal.table(header, [[str(card[name] or "") for name in names] for card in cards])
        terminal.say(
            "any other timm model works by its name, as vgg16 or convnext_tiny.in12k (`featstore backbones PATTERN` "
            "lists them); add :max to pool by maximum"
            if pattern is None
            else counted(len(cards), "backbone")
        )


def doctor(as_json: Json = False) -> None:
    """Check packages, weights, disk and device; say how to mend them.

    Exits with 1 if anything fails.
    """
    with Output(as_json=as_json).terminal() as terminal:
        from featstore import find_config
        from featstore.cli.doctor import examine

        checks = examine(find_config())
        _show_checks(checks, terminal)
        if any(check.ok is False for check in checks):
            raise SystemExit(1)


def show_info(facts: dict[str, Any], terminal: Terminal) -> None:
    """Counts by state, then every tensor and every segment."""
    counts = ", ".join(f"{count} {state}" for state, count in facts["images"].items() if count)
    terminal.say(f"{facts['store']}: {size(facts['bytes'])} on disk, format {facts['format']}")
    terminal.say(f"images: {counts or 'none'}")
    terminal.table(
        ("tensor", "layout", "shape", "dtype", "compress", "present", "failed", "absent"),
        [
            (
                name,
                tensor["layout"] + (" of copies" if "copy" in tensor["axes"] else ""),
                " x ".join(map(str, tensor["shape"])),
                tensor["dtype"],
                tensor["compress"] or "-",
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
    for name, tensor in facts["tensors"].items():
        if tensor["missing"]:
            terminal.say(f"tensor {name} was made without {', '.join(tensor['missing'])} (--allow-missing)")
    for path, reason in facts["unreadable"].items():
        terminal.say(one_line(f"unreadable: {path}: {reason}"))


def _show_checks(checks: Sequence["Check"], terminal: Terminal) -> None:
    """One line for each check, then the remedies."""
    terminal.result([{"name": c.name, "ok": c.ok, "found": c.found, "fix": c.fix} for c in checks])
    marks = {True: "ok", False: "FAIL", None: "-"}
    found = [f"{c.found}; {c.fix}" if c.ok is None and c.fix else c.found for c in checks]
    terminal.table(("", "check", "found"), [(marks[c.ok], c.name, f) for c, f in zip(checks, found, strict=True)])
    failing = [check for check in checks if check.ok is False]
    for check in failing:
        terminal.say(f"FAIL {check.name}: {check.found}\n  to mend it: {check.fix}")
    terminal.say("all is well" if not failing else f"{len(failing)} to mend")
