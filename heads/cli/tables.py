"""Tables that several commands print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featstore.terminal import Terminal

if TYPE_CHECKING:
    from heads.labels.target import Target
    from heads.raters.ceilings import Reliability


def metrics_table(
    target: "Target",
    metrics: Mapping[str, Any],
    terminal: Terminal,
    *,
    title: str,
    raters: "Mapping[str, Reliability] | None" = None,
) -> None:
    """A row per task: each metric, its spread over the repeats, the interval of the first, and its ceiling."""
    from heads.inference.showing import figures_of

    figures = figures_of(target, metrics, raters)
    terminal.say(title)  # a table would break it at its own width
    terminal.table(figures.header, figures.rows)
    for note in figures.notes:
        terminal.say(note)
