"""Tables that several commands print."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from featstore.terminal import Terminal

if TYPE_CHECKING:
    from heads.inference.showing import Question
    from heads.labels.target import Target
    from heads.raters.ceilings import Reliability
    from heads.runs.run import Run


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


def learned_tables(run: "Run", terminal: Terminal) -> None:
    """What a head has learnt of things that have names, as shares of groups: the mean over all models."""
    from heads.report.tables import learned_rows

    if run.learned is None:
        return
    for title, (header, rows) in learned_rows(run.learned, run.config.target).items():
        terminal.table((title, *header), rows)
