"""What a cross-validation says of a method: its figures fold by fold, their mean, and how far that may be off.

*These models, other photos* is a question that the bootstrap answers (`heads.inference.intervals`). *This method,
another sample* is what papers claim: had other photos been collected, to learn from and to test on, how would the
method have done? The folds of repeated cross-validations answer it. Their figures differ by the photos tested and by
the photos learnt from, but they share most of the latter, so that their mean is less sure than their number suggests.
The corrected variance of Nadeau and Bengio (2003; for repeated folds, Bouckaert and Frank 2004) allows for that.

Correlations are taken within each fold and averaged by Fisher's z: models of different folds predict at different
levels, and pooled over the folds, predictions that know nothing correlate negatively with the labels. Other metrics are
those of all tested photos of a repeat; what a fold contributes is their derivative by the weight of its photos (the
infinitesimal jackknife: Efron 1982).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import exp, inf, sqrt
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from heads.inference.metrics import BY_KIND, Metric, known_outputs, tasks_of, weighted
from heads.inference.samples import NO_SPREAD, Floats
from heads.labels.target import ALL, Target

Partition = NDArray[np.int64]
"""(N,) the number of the fold that tests an image; NOT_TESTED if none does."""
NOT_TESTED = -1

SHARED_BY_FIGURES = 1.75
"""What Nadeau and Bengio's term for shared training photos is multiplied by, for the interval of a figure.

Theirs is 1, which takes test and training photos to act apart. But a photo that is easy to predict is also good to
learn from, and 1 is too sure (tests/bench/calibration.py has the figures).
"""


def shared_by_differences(n_images: float) -> float:
    """The same of a difference between two methods: less, as part of it is common to both, and less of many photos.

    One photo more to learn from matters less the more there are.
    """
    return float(1 + 6.5 / sqrt(n_images))


_STEP = 1e-3
"""By how much more and less a fold weighs, for the derivative."""
LEAST_FOLD = 4
"""Photos of a fold of which a correlation says anything: Fisher's z has the variance 1 / (n - 3)."""
ROUGH_FOLD = 10
"""A correlation of fewer photos than this is rough."""
FEW_IMAGES = 150
"""Of fewer, p-values are known to be a little small (docs/heads.md has the figures)."""


class Interval(NamedTuple):
    """A figure or a difference, its 95 % interval, and the p-value of its being zero; None where it has none."""

    value: float
    low: float | None
    high: float | None
    p: float | None
    """Two-sided."""


@dataclass(frozen=True)
class FoldFigures:
    """A metric of a task in J folds, on the scale on which folds are averaged."""

    metric: Metric
    values: Floats
    """(J,)"""
    weights: Floats
    """(J,), of sum 1: by how many photos a fold tests."""
    overlap: float
    """Photos tested per photo learnt from: 1/4 of five folds."""
    freedom: float
    """Degrees of freedom of the variance."""
    n_images: float
    """That count in one cross-validation."""

    @property
    def value(self) -> float:
        """The figure, on its own scale."""
        return self._back(self._mean)

    def interval(self) -> Interval:
        """Of the method: its expected figure, had it learnt and been tested on another sample of this size."""
        half = _quantile(self.freedom) * self._error(SHARED_BY_FIGURES)
        return Interval(
            self.value, *self._ends(half), _p_value(self._mean, self._error(SHARED_BY_FIGURES), self.freedom)
        )

    def difference(self, other: "FoldFigures") -> Interval:
        """To another method in the same folds; its ends hold 0 exactly if p is .05 or more."""
        paired = replace(self, values=self.values - other.values)
        return self._apart(other, paired._mean, paired._error(shared_by_differences(self.n_images)), self.freedom)

    def unpaired_difference(self, other: "FoldFigures") -> Interval:
        """To another method in folds of its own: as if of two samples that have nothing in common (Welch 1947)."""
        variances = [each._error(shared_by_differences(each.n_images)) ** 2 for each in (self, other)]
        shares = [(v**2, each.freedom) for v, each in zip(variances, (self, other), strict=True)]
        total = sum(variances)
        freedom = total**2 / sum(square / each for square, each in shares) if total > 0 else self.freedom
        return self._apart(other, self._mean - other._mean, sqrt(total), freedom)

    def _apart(self, other: "FoldFigures", apart: float, error: float, freedom: float) -> Interval:
        """A difference on the metric's own scale, from one on the scale of averaging."""
        value = self.value - other.value
        middle = (self._mean + other._mean) / 2
        slope = (
            value / apart
            if abs(apart) > _STEP
            else (self._back(middle + _STEP) - self._back(middle - _STEP)) / 2 / _STEP
        )
        half = abs(slope) * _quantile(freedom) * error
        return Interval(value, value - half, value + half, _p_value(apart, error, freedom))

    def _ends(self, half: float) -> tuple[float, float]:
        if self.metric.averaging is not None:
            return self._back(self._mean - half), self._back(self._mean + half)
        if self.metric.bound is None or (distance := abs(self.metric.bound - self.value)) < NO_SPREAD:
            return self.value - half, self.value + half
        side = 1 if self.value > self.metric.bound else -1
        ends = [self.metric.bound + side * distance * exp(sign * half / distance) for sign in (-1, 1)]
        return max(min(ends), -inf if self.metric.floor is None else self.metric.floor), max(ends)

    @property
    def _mean(self) -> float:
        return float(self.weights @ self.values)

    def _back(self, mean: float) -> float:
        return mean if self.metric.averaging is None else self.metric.averaging.back(mean)

    def _error(self, shared: float) -> float:
        """The standard error of the mean."""
        squares = float(self.weights @ self.weights)
        variance = float(self.weights @ (self.values - self._mean) ** 2) / (1 - squares)
        return sqrt(variance * (squares + shared * self.overlap))


def by_fold(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    folds: NDArray[np.int64],
    *,
    n_units: int,
    names: Sequence[str],
) -> dict[str, dict[str, FoldFigures | None]]:
    """Metrics by task, fold by fold; None where folds say nothing: there is one alone, or they are too small.

    Repeats in the same folds (whose models differ by chance alone) count as one, and their figures are averaged.

    Args:
        labels: (N, K) as `Target` says.
        predicted: (R, N, n_outputs), scaled ratings or probabilities; NaN where an image was not tested.
        folds: (R, N), a `Partition` for each repeat.
        n_units: how many images, or groups of them, are independent of each other.
        names: of the metrics.
    """
    crossed = [
        _cross(target, labels.astype(float), predicted[repeats].astype(float), inside, names)
        for partition, repeats in distinct(folds)
        if len(inside := _inside(partition)) > 1
    ]
    return {
        task: {
            name: _join(BY_KIND[target.kind][name], [each[task][name] for each in crossed], n_units) for name in names
        }
        for task in tasks_of(target)
    }


def folds_tell(
    target: Target, labels: NDArray[np.floating], predicted: NDArray[np.floating], folds: NDArray[np.int64]
) -> dict[str, bool]:
    """By task, whether two folds or more of every cross-validation are large enough for a correlation.

    Arrays are those of `by_fold`.
    """
    tell = dict.fromkeys(tasks_of(target), True)
    for partition, repeats in distinct(folds):
        inside, known = _inside(partition), known_outputs(target, labels, predicted[repeats]).all(0)
        for task, n_images, varies in _counts(target, labels.astype(float), np.asarray(known), inside):
            tell[task] &= bool((varies & (n_images >= LEAST_FOLD)).sum() > 1)
    return tell


def distinct(folds: NDArray[np.int64]) -> list[tuple[Partition, list[int]]]:
    """The partitions that differ by more than the names of their folds, and the repeats of each."""
    found: dict[bytes, tuple[Partition, list[int]]] = {}
    for repeat, partition in enumerate(folds):
        plain = canonical(partition)
        found.setdefault(plain.tobytes(), (plain, []))[1].append(repeat)
    return list(found.values())


def canonical(partition: Partition) -> Partition:
    """The same partition with its folds numbered as they first occur."""
    names, first, codes = np.unique(partition, return_index=True, return_inverse=True)
    order = np.argsort(np.where(names == NOT_TESTED, len(partition), first))
    number = np.empty(len(names), np.int64)
    number[order] = np.arange(len(names))
    number[names == NOT_TESTED] = NOT_TESTED
    return np.asarray(number[codes])


def _inside(partition: Partition) -> Floats:
    """(k, N): 1 where a fold tests an image, or else 0."""
    tested = np.unique(partition[partition != NOT_TESTED])
    return np.asarray(partition == tested[:, None], np.float64)


class _Folds(NamedTuple):
    """A metric of a task in the k folds of one cross-validation."""

    values: Floats
    """(k,) on the scale of averaging."""
    n_images: Floats
    """(k,) that count in each; 0 where a fold has no such metric."""
    silent: bool = False
    """Whether a correlation is nowhere defined, as the predictions never vary within a fold."""


def _cross(
    target: Target, labels: Floats, predicted: Floats, inside: Floats, names: Sequence[str]
) -> dict[str, dict[str, _Folds]]:
    """Metrics by task in the folds of one cross-validation, averaged over repeats (R, N, n_outputs) of it."""
    known = np.asarray(known_outputs(target, labels, predicted).all(0))
    within = [name for name in names if BY_KIND[target.kind][name].averaging is not None]
    overall = [name for name in names if name not in within]
    found: dict[str, dict[str, _Folds]] = {task: {} for task in tasks_of(target)}
    if within:
        figures = [weighted(target, labels, each[None], inside, known=known, names=within) for each in predicted]
        for task, n_images, varies in _counts(target, labels, known, inside):
            for name in within:
                values = np.stack([each[task][name] for each in figures])
                found[task][name] = _correlations(BY_KIND[target.kind][name], values, n_images, varies)
    if overall:
        heavier, lighter = (1 + step * (inside / inside.mean(1, keepdims=True) - 1) for step in (_STEP, -_STEP))
        rows = np.concatenate([np.ones((1, len(labels))), heavier, lighter])
        figures = [weighted(target, labels, each[None], rows, known=known, names=overall) for each in predicted]
        for task, n_images, _ in _counts(target, labels, known, inside):
            moved = _moved(inside.mean(1), n_images / max(n_images.sum(), 1))
            for name in overall:
                at, more, less = np.split(np.mean([each[task][name] for each in figures], axis=0), [1, 1 + len(inside)])
                slope = np.divide(more - less, moved, out=np.zeros(len(inside)), where=moved > 0)
                found[task][name] = _Folds(at + slope, n_images)
    return found


def _correlations(metric: Metric, values: Floats, n_images: Floats, varies: NDArray[np.bool_]) -> _Folds:
    """Of R repeats (R, k). Predictions that do not vary correlate with nothing, unless they never vary."""
    assert metric.averaging is not None
    usable = varies & (n_images >= LEAST_FOLD)
    filled = np.where(np.isfinite(values), values, 0.0)
    silent = not np.isfinite(values[:, usable]).any()
    return _Folds(metric.averaging.to(filled).mean(0), np.where(usable, n_images, 0.0), silent)


def _counts(
    target: Target, labels: Floats, known: NDArray[np.bool_], inside: Floats
) -> Iterator[tuple[str, Floats, NDArray[np.bool_]]]:
    """By task, how many images of each fold count (k,), and whether their labels vary (k,)."""
    complete = known.all(1)
    for number, task in enumerate(target.tasks):
        here = complete if target.kind == "multiclass" else known[:, number]
        of_folds = [labels[(fold > 0) & here, number] for fold in inside]
        varies = [len(each) > 1 and float(np.ptp(each)) > NO_SPREAD for each in of_folds]
        yield task, inside @ here.astype(float), np.array(varies)
    if target.kind == "multilabel":
        yield ALL, inside @ complete.astype(float), np.ones(len(inside), bool)


def _moved(share: Floats, counting: Floats) -> Floats:
    """How far heavier and lighter weights of each fold (k,) are apart, as shares of the way to that fold alone.

    Args:
        share: (k,) of all images, that a fold tests.
        counting: (k,) the same of the images that have the label.
    """

    def way(step: float) -> Floats:
        inside = counting * (1 + step * (1 / share - 1))
        now = inside / (inside + (1 - counting) * (1 - step))
        return np.asarray((now - counting) / np.maximum(1 - counting, NO_SPREAD))

    return way(_STEP) - way(-_STEP)


def _join(metric: Metric, crossed: Sequence[_Folds], n_units: int) -> FoldFigures | None:
    """The folds of all cross-validations; None if there are fewer than two of one."""
    values, weights, overlaps, within, n_images = [], [], [], 0, 0.0
    if all(folds.silent for folds in crossed):
        return None
    for folds in crossed:
        counts = folds.n_images > 0
        n, total = folds.n_images[counts], folds.n_images.sum()
        if len(n) < 2 or not np.isfinite(folds.values[counts]).all():
            return None
        values.append(folds.values[counts])
        # Fisher's z of n images has the variance 1 / (n - 3).
        certain = n - 3 if metric.averaging is not None else n
        weights.append(certain / certain.sum())
        overlaps.append(float((n / total) @ (n / (total - n))))
        within += len(n) - 1
        n_images = max(n_images, float(total))
    if not within:
        return None
    freedom = 1 / (1 / within + 1 / max(n_units - 1, 1))
    together = np.concatenate(weights) / len(weights)
    return FoldFigures(metric, np.concatenate(values), together, float(np.mean(overlaps)), freedom, n_images)


def _quantile(freedom: float) -> float:
    from scipy.stats import t

    return float(t.isf(0.025, freedom))


def _p_value(value: float, error: float, freedom: float) -> float:
    """Two-sided, that a value is zero; of values that do not vary, 1 if they are zero and 0 if not."""
    from scipy.stats import t

    if error < NO_SPREAD:
        return 1.0 if abs(value) < NO_SPREAD else 0.0
    return float(2 * t.sf(abs(value) / error, freedom))
