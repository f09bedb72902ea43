"""`heads list` and `heads show`."""

from typing import TYPE_CHECKING, Annotated

import typer

from featstore.terminal import Terminal, counted
from heads.cli.options import Json, Plugins
from heads.errors import HeadsError
from heads.labels.target import KINDS

if TYPE_CHECKING:
    from heads.systems.system import System


def list_systems(plugin: Plugins = None, as_json: Json = False) -> None:
    """The heads that can be trained."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(HeadsError):
        from heads.systems.registry import broken_packages, load_plugins, load_systems

        load_plugins(plugin)
        found = load_systems().values()
        terminal.result(
            [
                {
                    "name": system.name,
                    "title": system.title,
                    "reads": list(system.reads),
                    "kinds": list(system.kinds),
                    "source": system.source,
                    "options": {name: option.value for name, option in system.options.items()},
                }
                for system in found
            ]
        )
        terminal.table(
            ("head", "what it is", "reads", "learns"),
            [(system.name, system.title, " + ".join(system.reads), _kinds(system)) for system in found],
        )
        for each in broken_packages():
            terminal.say(f"note: {each}")
        terminal.say("`heads show HEAD`: its paper, and every option with its default and where that comes from")


def show(
    system: Annotated[str, typer.Argument(help="The head.")], plugin: Plugins = None, as_json: Json = False
) -> None:
    """The options of a head: defaults, and where each comes from."""
    terminal = Terminal(as_json=as_json)
    with terminal.errors(HeadsError):
        from heads.splits.validation import default_repeats
        from heads.systems.registry import find_system, load_plugins

        load_plugins(plugin)
        found = find_system(system)
        terminal.result({name: {"default": o.value, "source": o.source} for name, o in found.options.items()})
        learns = _kinds(found) if found.parts else ", ".join(found.kinds)
        terminal.say(
            f"{found.name}: {found.title} ({found.source}); reads {' + '.join(found.reads)}, "
            f"learns {learns}; {counted(default_repeats(found), 'cross-validation')} with redrawn folds "
            f"(with --same-folds, or on a given split: {counted(found.repeats, 'training')} of each model)"
        )
        terminal.table(
            ("option", "default", "source"),
            [(name, str(option.value), option.source) for name, option in found.options.items()],
        )


def _kinds(system: "System") -> str:
    if system.parts:
        return " + ".join(kinds[0] for kinds in system.parts)
    return "all" if len(system.kinds) == len(KINDS) else ", ".join(system.kinds)
