"""Figures as people read them: a row for each task, each metric with its spread, and the interval of the first."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from heads.inference.metrics import BY_KIND, SHOWN, tasks_of
from heads.labels.target import Target
from heads.raters.ceilings import Reliability, beside, note_of

NONE = "–"


class Figures(NamedTuple):
    """Cells of text, and what has to be said of them."""

    header: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: list[str]

    def text(self) -> str:
        """Aligned columns: the first to the left, the others to the right."""
        columns = list(zip(self.header, *self.rows, strict=True))
        widths = [max(map(len, column)) for column in columns]
        lines = []
        for first, *others in (self.header, *self.rows):
            cells = [first.ljust(widths[0]), *(cell.rjust(n) for cell, n in zip(others, widths[1:], strict=True))]
            lines.append("  ".join(cells).rstrip())
        return "\n".join(lines)


def figures_of(target: Target, metrics: Mapping[str, Any], raters: Mapping[str, Reliability] | None = None) -> Figures:
    """The metrics that are shown of a kind of labels.

    Args:
        metrics: by task and metric, as `Run.metrics`.
        raters: by task, as `Run.raters`; they bring the ceiling beside the first metric.
    """
    shown = SHOWN[target.kind]
    ceiled = any(each.ceiling_of(shown[0]) for each in (raters or {}).values())
    rows = []
    for task in tasks_of(target):
        first, *others = (metrics[task][name] for name in shown)
        most = [beside(raters.get(task), shown[0], first["mean"])] if raters and ceiled else []
        rows.append((task, _cell(first), _interval(first), *most, *map(_cell, others)))
    notes = [f"{name}: {note}" for name in shown if (note := BY_KIND[target.kind][name].note)]
    repeated = any(by_metric[shown[0]]["spread"] is not None for by_metric in metrics.values())
    interval = "95 %: bootstrap interval over images, or over whole groups"
    return Figures(
        ("task", shown[0], "95 %", *(["ceiling"] if ceiled else []), *shown[1:]),
        rows,
        [
            *(["; ".join(notes)] if notes else []),
            interval + ("; ±: spread over repeats" if repeated else ""),
            *note_of(raters or {}, shown[0]),
        ],
    )


def number(value: float | None, *, sign: bool = False) -> str:
    """Three digits; nothing of what is not defined."""
    return "" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def span(low: float | None, high: float | None) -> str:
    """LOW to HIGH; nothing of what is not defined."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _cell(value: Mapping[str, float | None]) -> str:
    spread = "" if value["spread"] is None else f" ± {value['spread']:.3f}"
    return NONE if value["mean"] is None else f"{value['mean']:.3f}{spread}"


def _interval(value: Mapping[str, float | None]) -> str:
    return span(value["low"], value["high"]) or NONE
