"""Figures as people read them: a row for each task, each metric with its spread, and the interval of the first."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from heads.inference.intervals import SURE, holm
from heads.inference.metrics import BY_KIND, SHOWN, tasks_of
from heads.labels.target import Kind, Target
from heads.raters.ceilings import Reliability, beside, note_of

NONE = "–"
Question = Literal["method", "models"]
"""What an interval is about."""
QUESTIONS: Mapping[Question, str] = {
    "method": "of the method, on another sample of photos to learn from and to be tested on (corrected for shared "
    "training photos)",
    "models": "of these models, on other photos (bootstrap over photos, or over whole groups)",
}
BASELINE: Mapping[Kind, str] = {
    "regression": "mean",
    "binary": "majority",
    "multiclass": "majority",
    "multilabel": "majority",
}
"""What the baseline that knows nothing is called."""
BASELINE_WORDS: Mapping[Kind, str] = {
    "regression": "says the mean of the training photos of every photo",
    "binary": "says what is most frequent among the training photos of every photo",
    "multiclass": "says what is most frequent among the training photos of every photo",
    "multilabel": "says what is most frequent among the training photos of every photo",
}
BASELINE_SAID: Mapping[Kind, str] = {
    "regression": "saying the mean",
    "binary": "saying what is most frequent",
    "multiclass": "saying what is most frequent",
    "multilabel": "saying what is most frequent",
}
"""The same in a sentence."""


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


def figures_of(
    target: Target, metrics: Mapping[str, Any], *, head: str, of: Question, raters: Mapping[str, Reliability]
) -> Figures:
    """The metrics that are shown of a kind of labels: for each task what knowing nothing would get, and the run.

    Args:
        metrics: by task and metric, as `Run.metrics`.
        head: the name of the run's head.
        of: what the intervals are about.
        raters: by task, as `Run.raters`; they bring the ceiling beside the first metric.
    """
    shown = SHOWN[target.kind]
    ceiled = any(each.ceiling_of(shown[0]) for each in raters.values())
    tasks = tasks_of(target)
    better = beats_nothing([metrics[task][shown[0]] for task in tasks])
    rows = []
    for task, is_better in zip(tasks, better, strict=True):
        first, *others = (metrics[task][name] for name in shown)
        if "baseline" in first:
            first_of_baseline, *of_baseline = (_plain(each["baseline"]) for each in (first, *others))
            rows.append(
                (task, BASELINE[target.kind], first_of_baseline, "", *([""] if ceiled else []), *of_baseline, "")
            )
        most = [beside(raters.get(task), shown[0], first["mean"])] if ceiled else []
        rows.append((task, head, _cell(first), _interval(first), *most, *map(_cell, others), is_better))
    found = (BY_KIND[target.kind][name] for name in shown)
    # Models of one split, and those of a whole run on other photos, are measured on all photos at once.
    notes = [f"{each.name}: {each.note}" for each in found if each.note and (of == "method" or each.averaging is None)]
    repeated = any(by_metric[shown[0]]["spread"] is not None for by_metric in metrics.values())
    said = [
        *(["; ".join(notes)] if notes else []),
        f"95 %: {QUESTIONS[of]}" + ("; ±: spread over repeats" if repeated else ""),
        f"{BASELINE[target.kind]}: {BASELINE_WORDS[target.kind]}; better: than that, p < {SURE}"
        + (f" (Holm over {len(tasks)} tasks)" if len(tasks) > 1 else ""),
        *note_of(raters, shown[0]),
    ]
    header = ("task", "head", shown[0], "95 %", *(["ceiling"] if ceiled else []), *shown[1:], "better")
    return Figures(header, rows, said)


def beats_nothing(figures: Sequence[Mapping[str, float | None]]) -> list[str]:
    """For each task's first metric, whether it is better than the baseline: yes or no; empty if that is not known."""
    adjusted = holm([each.get("p") for each in figures])
    return [
        "" if p is None else "yes" if p < SURE and (each["mean"] or 0) > (each["baseline"] or 0) else "no"
        for p, each in zip(adjusted, figures, strict=True)
    ]


def number(value: float | None, *, sign: bool = False) -> str:
    """Three digits; nothing of what is not defined."""
    return "" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def span(low: float | None, high: float | None) -> str:
    """LOW to HIGH; nothing of what is not defined."""
    return "" if low is None or high is None else f"{low:.3f} to {high:.3f}"


def _plain(value: float | None) -> str:
    return number(value) or NONE


def _cell(value: Mapping[str, float | None]) -> str:
    spread = "" if value["spread"] is None else f" ± {value['spread']:.3f}"
    return NONE if value["mean"] is None else f"{value['mean']:.3f}{spread}"


def _interval(value: Mapping[str, float | None]) -> str:
    return span(value["low"], value["high"]) or NONE
