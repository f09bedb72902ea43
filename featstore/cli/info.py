"""Looking: `info`, `backbones`, `doctor`."""

from featstore.cli.options import Json, Quiet, StoreArgument, app, place_of
from featstore.errors import FeatstoreError
from featstore.terminal import Terminal


@app.command()
def info(
    store: StoreArgument = None,
    quiet: Quiet = False,
    as_json: Json = False,
) -> None:
    """What a store holds: images, tensors, segments and their identities."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.cli.show import show_info
        from featstore.store.describe import describe

        facts = describe(place_of(store))
        terminal.result(facts)
        show_info(facts, terminal)


@app.command("backbones")
def list_backbones(as_json: Json = False) -> None:
    """The backbones that have a card here, and where their weights are; any timm model works by name too."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(FeatstoreError):
        from featstore.store.describe import describe_backbones
        from featstore.toml import find_config

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

        from featstore.cli.doctor import examine
        from featstore.toml import find_config

        checks = examine(find_config())
        terminal.result([asdict(check) for check in checks])
        marks = {True: "ok", False: "FAIL", None: "-"}
        found = [f"{c.found}; {c.fix}" if c.ok is None and c.fix else c.found for c in checks]
        terminal.table(("", "check", "found"), [(marks[c.ok], c.name, f) for c, f in zip(checks, found, strict=True)])
        failing = [check for check in checks if check.ok is False]
        for check in failing:
            terminal.say(f"FAIL {check.name}: {check.found}\n  to mend it: {check.fix}")
        terminal.say("all is well" if not failing else f"{len(failing)} to mend")
        if failing:
            raise SystemExit(1)
