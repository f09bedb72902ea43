"""The tables of the report: metrics with their intervals, the confusion of classes, learned parameters."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heads.inference.metrics import SHOWN, tasks_of
from heads.labels.target import Target
from heads.raters.ceilings import HEADER, Reliability, beside, table_of, without_empty
from heads.runs.predictions import Outcomes
from heads.runs.run import Run

if TYPE_CHECKING:
    import pandas as pd

NONE = "–"
LEAST_SPAN = 0.1
"""Of an axis of parameters: a weight of -0.0002 is next to nothing, and is drawn as that."""


@dataclass(frozen=True)
class Axis:
    """From the least to the greatest of what a column draws, 0 among them."""

    low: float
    high: float

    def at(self, value: float) -> str:
        """Where a value lies, in percent of the width."""
        return f"{100 * (value - self.low) / (self.high - self.low):.1f}"


@dataclass(frozen=True)
class Cell:
    """A figure ready to print, and its interval ready to draw (percent from the left) if there is one."""

    mean: str
    spread: str
    """Empty of one repeat."""
    interval: str = ""
    start: str = ""
    end: str = ""
    dot: str = ""
    baseline: str = NONE
    """What knowing nothing would get."""
    ceiling: str = ""
    """The most that the metric can reach, and the share of it that is reached; empty where that is not known."""
    zero: str = ""
    nothing: str = ""
    most: str = ""
    """Where 0, the baseline and the ceiling lie, in percent from the left; empty where they are not known."""


@dataclass(frozen=True)
class Bar:
    """A parameter that says something by itself: its mean over the models, and their standard deviation."""

    name: str
    mean: str
    spread: str
    start: str
    width: str
    low: str
    high: str
    """Percent from the left: the bar, and the mean less and more the deviation."""


@dataclass(frozen=True)
class Bars:
    """Parameters on one axis."""

    bars: list[Bar]
    low: str
    high: str
    """The ends of the axis."""
    zero: str
    """Where 0 lies, in percent from the left."""


def metric_rows(run: Run) -> dict[str, list[Cell]]:
    """For each task, and `all` of several labels, a cell for each metric that is shown."""
    target = run.config.target
    metrics = SHOWN[target.kind]
    axes = {metric: axis_of(_ends(run, metric)) for metric in metrics}
    return {task: [_cell(run, task, metric, axes[metric]) for metric in metrics] for task in tasks_of(target)}


def backbone_cells(weights: NDArray[np.float64]) -> list[list[tuple[str, str]]]:
    """Of the weights of backbones by task (K, B): each, and how far it is from even, from -1 to 1 of the farthest.

    What is within a tenth of even looks even.
    """
    even = 1 / weights.shape[1]
    farthest = max(float(np.abs(weights - even).max()), even / 10)
    return [[(f"{weight:.3f}", f"{(weight - even) / farthest:.3f}") for weight in row] for row in weights]


def averages(run: Run) -> list[tuple[str, int]]:
    """Of each metric that is shown, the mean over the tasks that have it, and how many those are."""
    target = run.config.target
    found = [
        [value for task in target.tasks if (value := figure_of(run, task, metric, "mean")) is not None]
        for metric in SHOWN[target.kind]
    ]
    return [(number(fmean(values) if values else None), len(values)) for values in found]


def figure_of(run: Run, task: str, metric: str, part: str) -> float | None:
    """A number of metrics.json; None if it is not defined."""
    value = run.metrics.get(task, {}).get(metric, {}).get(part)
    return value if value is not None and math.isfinite(value) else None


def number(value: float | None) -> str:
    return NONE if value is None else f"{value:.3f}"


def confusion(outcomes: Outcomes, n_classes: int) -> NDArray[np.float64]:
    """How many images of a class (rows) are taken for which (columns): the mean over the repeats (C, C)."""
    from sklearn.metrics import confusion_matrix

    counts = np.zeros((n_classes, n_classes))
    for predicted in outcomes.predicted:
        known = np.isfinite(outcomes.labels[:, 0]) & np.isfinite(predicted).all(1)
        if known.any():
            given = outcomes.labels[known, 0].astype(int)
            counts += confusion_matrix(given, predicted[known].argmax(1), labels=range(n_classes))
    return counts / len(outcomes.predicted)


def learned_bars(learned: "pd.DataFrame", target: Target) -> dict[str, Bars]:
    """For each name, a bar for each value of it; for names `TITLE: NAME`, for each value a bar for each NAME."""
    found: dict[str, Bars] = {}
    for title, table in learned.groupby(learned["name"].astype(str).str.partition(": ")[0], sort=False):
        names = _value_names(table["index"].nunique(), target)
        rows = table["name"].astype(str).str.removeprefix(f"{title}: ")
        if (rows == table["name"]).all():
            found[str(title)] = _bars(table["value"].groupby(table["index"]), names)
            continue
        for name, (_, part) in zip(names, table.groupby("index"), strict=True):
            by_row = part["value"].groupby(rows[part.index], sort=False)
            found[f"{title}, {name}"] = _bars(by_row, list(map(str, by_row.groups)))
    return found


def rater_rows(raters: Mapping[str, Reliability]) -> tuple[list[str], list[list[tuple[str, str]]]]:
    """The header, and rows of what is known of raters: each cell, and its interval where it has one."""
    header, rows = without_empty(HEADER, table_of(raters))
    return header, [[(row[0], ""), *map(_parted, row[1:])] for row in rows]


def _parted(cell: str) -> tuple[str, str]:
    value, _, ends = cell.partition(" (")
    return value, ends.removesuffix(")")


def learned_rows(learned: "pd.DataFrame", target: Target) -> dict[str, tuple[Sequence[str], list[tuple[str, ...]]]]:
    """By title of names `TITLE: NAME`, what the values of each are called, and NAME with the mean of each."""
    titles = learned["name"].astype(str).str.partition(": ")
    found = {}
    for title, table in learned[titles[1] != ""].groupby(titles[0], sort=False):
        means = table.groupby([titles[2], "index"], sort=False)["value"].mean().unstack()
        header = _value_names(means.shape[1], target)
        found[str(title)] = (
            header,
            [(str(name), *map(number, row)) for name, row in zip(means.index, means.to_numpy(), strict=True)],
        )
    return found


def _bars(values: "pd.api.typing.SeriesGroupBy[Any, Any]", names: Sequence[str]) -> Bars:
    means, spreads = values.mean(), values.std(ddof=1).fillna(0.0)
    axis = axis_of([*(means - spreads), *(means + spreads)])
    if axis.high - axis.low < LEAST_SPAN:
        least = LEAST_SPAN / 2 if axis.low < 0 else LEAST_SPAN
        axis = Axis(-least if axis.low < 0 else 0.0, least)
    bars = [
        Bar(
            name=name,
            mean=f"{mean:+.4f}",
            spread=f"{spread:.4f}",
            start=axis.at(min(mean, 0)),
            width=f"{float(axis.at(max(mean, 0))) - float(axis.at(min(mean, 0))):.1f}",
            low=axis.at(mean - spread),
            high=axis.at(mean + spread),
        )
        for name, mean, spread in zip(names, means, spreads, strict=True)
    ]
    return Bars(bars, f"{axis.low:.3g}", f"{axis.high:.3g}", axis.at(0))


def _value_names(n_values: int, target: Target) -> Sequence[str]:
    """One value for each task, or for each but the first, which the others add to; or else numbers."""
    for names in (target.tasks, target.tasks[1:]):
        if len(names) == n_values:
            return names
    return [str(i) for i in range(n_values)]


def _ends(run: Run, metric: str) -> list[float]:
    tasks = tasks_of(run.config.target)
    found = [figure_of(run, task, metric, part) for task in tasks for part in ("mean", "low", "high", "baseline")]
    return [value for value in (*found, *(_ceiling(run, task, metric) for task in tasks)) if value is not None]


def _ceiling(run: Run, task: str, metric: str) -> float | None:
    raters = run.raters.get(task)
    most = None if raters is None else raters.ceiling_of(metric)
    return None if most is None else most.value


def axis_of(values: Iterable[float]) -> Axis:
    """What holds all values and 0."""
    values = list(values)
    low, high = min((0.0, *values)), max((0.0, *values))
    return Axis(low, high if high > low else low + 1)


def _cell(run: Run, task: str, metric: str, axis: Axis) -> Cell:
    mean, spread, low, high, nothing = (
        figure_of(run, task, metric, part) for part in ("mean", "spread", "low", "high", "baseline")
    )
    said = "" if spread is None else number(spread)
    most = beside(run.raters.get(task), metric, mean, nothing="")
    if mean is None or low is None or high is None:
        return Cell(number(mean), said, baseline=number(nothing), ceiling=most)
    ceiling = _ceiling(run, task, metric)
    return Cell(
        number(mean),
        said,
        f"{low:.3f} to {high:.3f}",
        *(axis.at(low), axis.at(high), axis.at(mean)),
        baseline=number(nothing),
        ceiling=most,
        zero=axis.at(0),
        nothing="" if nothing is None else axis.at(nothing),
        most="" if ceiling is None else axis.at(ceiling),
    )
