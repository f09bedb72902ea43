"""Tables that several commands print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featstore.terminal import Terminal

if TYPE_CHECKING:
    from heads.inference.showing import Question
    from heads.labels.target import Target
    from heads.raters.ceilings import Reliability


def metrics_table(
    target: "Target",
    metrics: Mapping[str, Any],
    terminal: Terminal,
    *,
    title: str,
    head: str,
    of: "Question",
    raters: "Mapping[str, Reliability]",
) -> None:
    """For each task, the baseline and the run: each metric, its spread over the repeats, the interval of the first."""
    from heads.inference.showing import figures_of

    figures = figures_of(target, metrics, head=head, of=of, raters=raters)
    terminal.say(title)  # a table would break it at its own width
    terminal.table(figures.header, figures.rows)
    for note in figures.notes:
        terminal.say(note)
