"""The `heads` command: parses, calls, prints."""

import typer

from featstore import wait_briefly
from heads.cli import runs, systems, training
from heads.heap import share_heap

app = typer.Typer(
    help="Train light heads on frozen features from a store, with honest cross-validation.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(training.train)
app.command()(training.resume)
app.command("list")(systems.list_systems)
app.command()(systems.show)
app.command()(runs.report)
app.command()(runs.compare)
app.command()(runs.predict)
app.command()(runs.evaluate)
app.command()(runs.attention)
app.command()(runs.log)


def main() -> None:
    wait_briefly()
    share_heap()
    app()


__all__ = ["app", "main"]
