"""Comparing runs: the difference of a metric on the same images, its interval and its p-value."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from featstore.support import html_table, suggest
from heads.errors import RunError
from heads.inference.intervals import draw_weights, enough_resamples, interval, over_repeats, resampled
from heads.inference.metrics import METRICS, SHOWN, evaluate, tasks_of
from heads.inference.showing import Figures, number, span
from heads.labels.scales import Scale, to_unit
from heads.labels.target import Target
from heads.runs.predictions import Outcomes, from_table

if TYPE_CHECKING:
    import pandas as pd

    from heads.runs.run import Run

SURE = 0.05
"""A difference is real if its adjusted p-value is below."""
_RESAMPLES_PER_TASK = 100
"""Fewer could not tell a p-value small enough to be below `SURE` after it is adjusted over the tasks."""
_ALIKE = 1e-3
"""Labels that differ by less, relative to their scale, differ by how a table writes numbers."""


@dataclass(frozen=True)
class Row:
    """One task of one run, beside the same task of the first run; None where it is not defined."""

    task: str
    run: str
    value: float | None
    """The metric, averaged over the repeats."""
    low: float | None
    high: float | None
    """Its 95 % bootstrap interval."""
    difference: float | None = None
    """To the first run; None of the first run itself."""
    difference_low: float | None = None
    difference_high: float | None = None
    p: float | None = None
    """Two-sided, of the difference."""
    p_adjusted: float | None = None
    """Over the tasks (Holm)."""
    real: bool | None = None
    """Whether the difference is more than these images happen to give."""


@dataclass(frozen=True)
class Comparison:
    """What a table on a terminal, or `--json`, shows."""

    metric: str
    n_images: int
    n_groups: int | None
    """What was resampled; None if single images were."""
    n_resamples: int
    rows: tuple[Row, ...]
    """By task, and within it by run."""
    notes: tuple[str, ...]
    """In words, what differs between the runs besides the head."""

    def __repr__(self) -> str:
        figures = self.figures()
        return "\n".join([self.title, figures.text(), *figures.notes])

    def _repr_html_(self) -> str:
        figures = self.figures()
        return html_table(figures.header, figures.rows, above=self.title, below="\n".join(figures.notes))

    @property
    def title(self) -> str:
        """What was compared, in words."""
        n_runs = len({row.run for row in self.rows})
        over = f", {self.n_groups} groups" if self.n_groups else ""
        return f"{self.metric} of {n_runs} runs on {self.n_images} images{over}"

    def pandas(self) -> "pd.DataFrame":
        """A row for each of `rows`, a column for each of its fields."""
        import pandas as pd

        return pd.DataFrame([asdict(row) for row in self.rows])

    def figures(self) -> Figures:
        """The table as a command shows it."""
        rows = [
            (
                row.task,
                row.run,
                number(row.value),
                span(row.low, row.high),
                number(row.difference, sign=True),
                span(row.difference_low, row.difference_high),
                "" if row.p_adjusted is None else f"{row.p_adjusted:.4f}",
                "" if row.real is None else ("yes" if row.real else "no"),
            )
            for row in self.rows
        ]
        words = (
            "p: of the difference to the first run, by a paired bootstrap over images or whole groups, adjusted over "
            "the tasks (Holm); real: p < 0.05"
        )
        header = ("task", "run", self.metric, "95 %", "difference", "95 % of it", "p", "real")
        return Figures(header, rows, [words, *self.notes])


def compare(runs: Sequence["Run"], *, metric: str | None = None, n_resamples: int = 2000, seed: int = 0) -> Comparison:
    """Compare runs with the first of them, task by task, on the images that all have tested.

    Images (whole groups of them, if they have groups) are resampled for all runs together, so that what makes an image
    hard for all does not blur the difference. The p-value is twice the share of resamples in which the difference has
    the other sign; of each run it is adjusted over the tasks (Holm 1979).

    Args:
        metric: a name in `METRICS`; the first of `SHOWN` if not given.

    Raises:
        RunError: fewer than two runs; kinds, classes or the labels of an image differ; no task or image is common;
            or there is no such metric.
    """
    if len(runs) < 2:
        raise RunError(f"{len(runs)} runs: at least two are needed to compare")
    target = _common_target(runs)
    known = METRICS[target.kind]
    if metric is not None and metric not in known:
        raise RunError(f"{target.kind} has no metric {metric!r}; {suggest(metric, known)}")
    metric = metric or SHOWN[target.kind][0]
    names = _names(runs)
    outcomes = [from_table(run.predictions, run.config.target) for run in runs]
    paths = _common_paths(outcomes, names)
    scales = _scales_of(runs[0], target)
    taken = [_take(run, each, target, paths, scales) for run, each in zip(runs, outcomes, strict=True)]
    labels = _same_labels(taken, names, target, paths)
    groups = _groups(runs, paths)
    n_alone = enough_resamples(len(paths))
    n_resamples = max(n_resamples, _RESAMPLES_PER_TASK * len(tasks_of(target)))
    columns = []
    for _, predicted in taken:
        # The same seed draws the same resamples for every run.
        weights = draw_weights(len(paths), groups, n_resamples=n_resamples, seed=seed)
        figures = [evaluate(target, labels, repeat) for repeat in predicted]
        drawn = resampled(target, labels, predicted, weights, names=[metric])
        columns.append(
            {
                task: _Column(over_repeats([each[task][metric] for each in figures])[0], drawn[task][metric])
                for task in tasks_of(target)
            }
        )
    by_run = [
        _rows(name, column, columns[0] if i else None, n_alone)
        for i, (name, column) in enumerate(zip(names, columns, strict=True))
    ]
    return Comparison(
        metric=metric,
        n_images=len(paths),
        n_groups=len(set(groups)) if groups else None,
        n_resamples=n_resamples,
        rows=tuple(row for of_task in zip(*by_run, strict=True) for row in of_task),
        notes=tuple(_notes(runs, names, outcomes, target, paths)),
    )


class _Column(NamedTuple):
    """A task of a run: the metric, and what it is under each resample (S,)."""

    value: float | None
    drawn: NDArray[np.float64]


def _rows(run: str, columns: Mapping[str, _Column], first: Mapping[str, _Column] | None, n_alone: int) -> list[Row]:
    rows = []
    for task, (value, drawn) in columns.items():
        # From the first resamples, which are those of the run's own metrics: its interval is the same in both places.
        low, high = (None, None) if value is None else interval(drawn[:n_alone])
        row = Row(task, run, value, low, high)
        base = None if first is None else first[task]
        if base is not None and value is not None and base.value is not None:
            differences = drawn - base.drawn
            low, high = interval(differences)
            row = replace(
                row,
                difference=value - base.value,
                difference_low=low,
                difference_high=high,
                p=_p_value(differences),
            )
        rows.append(row)
    adjusted = _holm([row.p for row in rows])
    return [
        replace(row, p_adjusted=p, real=None if p is None else p < SURE) for row, p in zip(rows, adjusted, strict=True)
    ]


def _p_value(differences: NDArray[np.float64]) -> float | None:
    """Two-sided; one is added to either count, so that it is never 0 (Davison and Hinkley 1997, section 4.2)."""
    known = differences[np.isfinite(differences)]
    if len(known) * 2 <= len(differences):
        return None
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(known) + 1))


def _holm(values: Sequence[float | None]) -> list[float | None]:
    """Each p-value times how many are at least as large, and never below a smaller one's (Holm 1979)."""
    adjusted: list[float | None] = [None] * len(values)
    ascending = sorted((p, i) for i, p in enumerate(values) if p is not None)
    least = 0.0
    for rank, (p, i) in enumerate(ascending):
        least = max(least, min(1.0, p * (len(ascending) - rank)))
        adjusted[i] = least
    return adjusted


def _common_target(runs: Sequence["Run"]) -> Target:
    """The tasks that all runs have, in the order of the first."""
    first = runs[0]
    target = first.config.target
    for run in runs[1:]:
        other = run.config.target
        if other.kind != target.kind:
            raise RunError(f"{first.folder} learned {target.kind} labels and {run.folder} {other.kind}")
        if other.classes != target.classes:
            raise RunError(
                f"{first.folder} and {run.folder} have other classes: {', '.join(target.classes)}; "
                f"{', '.join(other.classes)}"
            )
    common = tuple(task for task in target.tasks if all(task in run.config.target.tasks for run in runs))
    if not common:
        listed = "; ".join(f"{run.folder}: {', '.join(run.config.target.tasks)}" for run in runs)
        raise RunError(f"the runs have no task in common: {listed}")
    return Target(target.kind, common, target.classes)


def _common_paths(outcomes: Sequence[Outcomes], names: Sequence[str]) -> list[str]:
    tested = [set(each.paths) for each in outcomes]
    common = [path for path in outcomes[0].paths if all(path in each for each in tested)]
    if not common:
        counts = ", ".join(f"{name} {len(each)}" for name, each in zip(names, tested, strict=True))
        raise RunError(f"no image was tested by every run ({counts}); train them with the same split")
    return common


def _take(
    run: "Run", outcomes: Outcomes, target: Target, paths: Sequence[str], scales: Sequence[Scale]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Labels (N, K) and predictions (R, N, n_outputs) of the common images and tasks, scaled."""
    place = {path: i for i, path in enumerate(outcomes.paths)}
    rows = [place[path] for path in paths]
    labels, predicted = outcomes.labels[rows], outcomes.predicted[:, rows]
    if target.kind == "multiclass":
        return labels, predicted
    columns = [run.config.target.tasks.index(task) for task in target.tasks]
    labels, predicted = labels[:, columns], predicted[:, :, columns]
    if target.kind == "regression":
        return to_unit(labels, scales), to_unit(predicted, scales)
    return labels, predicted


def _same_labels(
    taken: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]],
    names: Sequence[str],
    target: Target,
    paths: Sequence[str],
) -> NDArray[np.float64]:
    first = taken[0][0]
    for name, (labels, _) in zip(names[1:], taken[1:], strict=True):
        alike = np.isclose(first, labels, rtol=0, atol=_ALIKE, equal_nan=True)
        if not alike.all():
            i, k = np.argwhere(~alike)[0]
            raise RunError(
                f"{names[0]} and {name} have other labels of {target.tasks[k]!r} for {paths[i]!r}, and of "
                f"{int((~alike).sum()) - 1} more; train both with the same --labels, --aggregate and --kind"
            )
    return first


def _scales_of(run: "Run", target: Target) -> list[Scale]:
    by_task = dict(zip(run.config.target.tasks, run.config.scales, strict=True))
    return [by_task[task] for task in target.tasks]


def _of_paths(run: "Run", column: str, paths: Sequence[str]) -> list[str]:
    by_path = dict(zip(run.folds["path"], run.folds[column].astype(str), strict=True))
    return [by_path[path] for path in paths]


def _groups(runs: Sequence["Run"], paths: Sequence[str]) -> list[str] | None:
    """The largest groups that a run has kept together; None if no run has groups of several images."""
    by_run = [[g or p for g, p in zip(_of_paths(run, "group", paths), paths, strict=True)] for run in runs]
    groups = min(by_run, key=lambda each: len(set(each)))
    return groups if len(set(groups)) < len(paths) else None


def _notes(
    runs: Sequence["Run"], names: Sequence[str], outcomes: Sequence[Outcomes], target: Target, paths: Sequence[str]
) -> Iterator[str]:
    if any(len(each.paths) != len(paths) for each in outcomes):
        counts = ", ".join(f"{name} {len(each.paths)}" for name, each in zip(names, outcomes, strict=True))
        yield f"images tested: {counts}; compared on the {len(paths)} that all have tested"
    for name, run in zip(names, runs, strict=True):
        others = [task for task in run.config.target.tasks if task not in target.tasks]
        if others:
            yield f"not in every run, left out: {', '.join(others)} of {name}"
    for name, run in zip(names[1:], runs[1:], strict=True):
        for column, words in _DIFFERENCES.items():
            differ = sum(
                a != b for a, b in zip(_of_paths(run, column, paths), _of_paths(runs[0], column, paths), strict=True)
            )
            if differ:
                yield f"{words.format(run=name, first=names[0])} ({differ} of {len(paths)} images)"
        if sorted(run.config.labels["sha256"]) != sorted(runs[0].config.labels["sha256"]):
            yield f"{name} was trained with another label table than {names[0]}; the labels compared are the same"
        if _scales_of(run, target) != _scales_of(runs[0], target):
            yield f"{name} has other scales than {names[0]}; the scales of {names[0]} are used"


_DIFFERENCES = {
    "fold": "{run} has other folds than {first}, which is part of the difference; --split {first} gives it the same",
    "group": "{run} has other groups than {first}; the larger groups are resampled",
    "digest": "{run} saw other photos under the same paths than {first}",
}


def _names(runs: Sequence["Run"]) -> list[str]:
    """The names of the folders, or whole paths if two have the same."""
    short = [run.folder.name for run in runs]
    return short if len(set(short)) == len(short) else [str(run.folder) for run in runs]
