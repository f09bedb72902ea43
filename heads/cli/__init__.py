"""The `heads` command: parses, calls, prints."""

import typer

from featstore.support import reuse_freed_memory, wait_briefly
from featstore.terminal import adapt_streams
from heads.cli import explore, labels, runs, systems, training

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
app.command()(labels.labels)
app.command("list")(systems.list_systems)
app.command()(systems.show)
app.command()(runs.report)
app.command()(runs.compare)
app.command()(runs.predict)
app.command()(runs.evaluate)
app.command()(explore.explore)
app.command()(runs.attention)
app.command()(runs.log)


def share_heap() -> None:
    """Let threads share one heap in which large arrays that were freed are used again.

    Training frees and makes the same few arrays at every step. glibc would give each thread a heap of its own, which
    grows to the most that the thread ever needed (streaming AMTL, 2.1 GB became 1.8), or would ask the system for new
    pages every time.
    """
    reuse_freed_memory(mmap_bytes=1 << 30, trim_bytes=128 << 20, arenas=1)


def main() -> None:
    adapt_streams()
    wait_briefly()
    share_heap()
    app()


__all__ = ["app", "main", "share_heap"]
