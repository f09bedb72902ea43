"""The `featstore` command: one file for each thing that a user does with a store."""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from featstore.cli import codebook, diff, exchange, extraction, info, remote, sharing, upkeep
from featstore.support import version as version_of
from featstore.support import wait_briefly
from featstore.terminal import STOPPED, adapt_streams, spread_options

__all__ = ["app", "main"]

app = typer.Typer(
    help="Extract frozen image features once, keep them safe, share them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS: dict[str, Callable[..., None]] = {
    "init": extraction.init,
    "extract": extraction.extract,
    "retry": extraction.retry,
    "codebook": codebook.codebook,
    "info": info.info,
    "backbones": info.backbones,
    "doctor": info.doctor,
    "verify": upkeep.verify,
    "repair": upkeep.repair,
    "rm": upkeep.remove,
    "concepts": exchange.concepts,
    "import": exchange.import_,
    "export": exchange.export,
    "push": sharing.push,
    "pull": sharing.pull,
    "merge": sharing.merge,
    "log": remote.log,
    "tag": remote.tag,
    "ls": remote.ls,
    "diff": diff.compare,
}
for name, command in COMMANDS.items():
    app.command(name)(spread_options(command))


def _say_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"featstore {version_of()}")
        raise typer.Exit


@app.callback()
def _take_version(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options that go before the name of a command."""


def main() -> None:
    """The entry point of the installed command."""
    adapt_streams()
    wait_briefly()
    try:
        app()
    except SystemExit as stopped:
        if stopped.code == STOPPED:  # Ctrl-C: what was to be kept is; Python's own end waits seconds for torch
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(STOPPED)
        raise
