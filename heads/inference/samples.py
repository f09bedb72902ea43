"""Labels and predictions of one task under weights: the means, ranks and counts that metrics are made of.

A bootstrap resample is a row of weights, how often each image is in it, so that a thousand resamples are a few products
of matrices. What several metrics need is computed once and kept as long as the sample.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Weights = Floats
"""(S, n): how much each of n images counts in each of S figures."""

THRESHOLD = 0.5
"""Probabilities from here on say yes."""
NO_SPREAD = 1e-9
"""Numbers closer to each other than this are constant: what they differ by is rounding."""
_ROUNDING = 1e-12
"""A variance that is a smaller share of the mean square is that of something constant."""


@dataclass(frozen=True)
class Given:
    """The labels (n,) of a task and their weights (S, n); the repeats of a run share them."""

    labels: Floats
    weights: Weights

    @cached_property
    def n(self) -> Floats:
        """(S,) the sum of the weights."""
        return np.asarray(self.weights.sum(1))

    @cached_property
    def ranks(self) -> Floats:
        return _ranks(self.labels, self.weights)


class WeightedMeans(NamedTuple):
    """Weighted means (S,); labels and predictions are less their unweighted means, so that squares lose no digits."""

    label: Floats
    predicted: Floats
    label_squared: Floats
    predicted_squared: Floats
    product: Floats
    squared_error: Floats
    same_side: Floats
    """Of label and prediction on the same side of the middle of the scale: a share."""


@dataclass(frozen=True)
class Ratings:
    """Ratings of n images, scaled to -0.5 .. +0.5: given, and predicted (n,)."""

    given: Given
    predicted: Floats

    @cached_property
    def moments(self) -> WeightedMeans:
        labels, predicted = self.given.labels, self.predicted
        t = labels - labels.sum() / max(len(labels), 1)
        g = predicted - predicted.sum() / max(len(predicted), 1)
        same_side = (labels >= 0) == (predicted >= 0)
        terms = np.column_stack([t, g, t * t, g * g, t * g, (labels - predicted) ** 2, same_side])
        return WeightedMeans(*(self.given.weights @ terms).T / self.given.n)

    @cached_property
    def label_variance(self) -> Floats:
        """(S,), NaN of constant labels."""
        return _variance(self.given.labels, self.moments.label, self.moments.label_squared)

    @cached_property
    def correlation(self) -> Floats:
        """(S,) of Pearson; NaN with something constant."""
        m = self.moments
        variance = _variance(self.predicted, m.predicted, m.predicted_squared)
        # Rounding can lead past 1; NaN stays.
        return np.clip((m.product - m.label * m.predicted) / np.sqrt(self.label_variance * variance), -1, 1)

    @cached_property
    def rank_correlation(self) -> Floats:
        """(S,) of Spearman; NaN where `correlation` is."""
        a, b, weights = self.given.ranks, _ranks(self.predicted, self.given.weights), self.given.weights
        weighted = weights * b
        ab, bb = np.einsum("sn,sn->s", weighted, a), np.einsum("sn,sn->s", weighted, b)
        found = np.clip(ab / np.sqrt(bb * np.einsum("sn,sn,sn->s", weights, a, a)), -1, 1)
        return np.where(np.isfinite(self.correlation), found, np.nan)


@dataclass(frozen=True)
class Decisions:
    """Classes of n images, one of C each: given as index, and decided (n,); yes or no is two classes."""

    given: Given
    decided: NDArray[np.intp]
    n_classes: int
    scores: Mapping[int, Floats]
    """The probability (n,) of each class that is searched for: every one of several, or yes alone."""
    one_of_many: bool = False
    """Whether it is one of several labels, each of which is a class: its yes."""

    @cached_property
    def right(self) -> Floats:
        """(S, C): the weight of the images of each class that are taken for it."""
        labels = self.given.labels.astype(int)
        return self._weight_of(np.where(labels == self.decided, labels, -1))

    @cached_property
    def support(self) -> Floats:
        """(S, C): the weight of the images of each class."""
        return self._weight_of(self.given.labels.astype(int))

    @cached_property
    def taken(self) -> Floats:
        """(S, C): the weight of the images that are taken for each class."""
        return self._weight_of(self.decided)

    def _weight_of(self, classes: NDArray[np.intp]) -> Floats:
        """(S, C): the weight of the images (n,) of each class; -1 is none of them."""
        return np.asarray(self.given.weights @ (classes[:, None] == np.arange(self.n_classes)).astype(float))

    @property
    def several(self) -> NDArray[np.bool_]:
        """(S,): whether more than one class occurs."""
        return np.asarray((self.support > 0).sum(1) > 1)

    @property
    def f1(self) -> Floats:
        """(S, C)"""
        both = self.support + self.taken
        return np.where(both > 0, 2 * self.right / both, 0)

    @cached_property
    def average_precisions(self) -> Floats:
        """(S, searched): of each class that is searched for; anything where it does not occur."""
        labels, weights = self.given.labels, self.given.weights
        return np.stack([average_precision(labels == c, each, weights) for c, each in self.scores.items()], axis=1)


@dataclass(frozen=True)
class AllLabels:
    """All labels of a multilabel target together, by R repeats."""

    by_label: Sequence[Sequence[Decisions]]
    """Of each label, R."""
    right: Floats
    """(n,) of images of which every label is known, the share of the repeats that are right about every one."""
    weights: Weights
    """(S, n)"""

    def means(self, figure: Callable[[Decisions], Floats]) -> Floats:
        """(K, S) a figure of each label, averaged over the repeats."""
        return np.stack([mean_of(map(figure, repeats)) for repeats in self.by_label])


def mean_of(repeats: Iterable[Floats]) -> Floats:
    """(S,) the mean of some (S,)."""
    return np.asarray(np.mean(list(repeats), axis=0))


def average_precision(found: NDArray[np.bool_], score: Floats, weights: Weights) -> Floats:
    """(S,) the mean precision at each image (n,) that is to be found; images of equal score come at once."""
    if not found.any():
        return np.full(len(weights), np.nan)
    order, last, _ = _tied(-score)
    here = weights[:, order]
    taken, hits = here.cumsum(1)[:, last], (here * found[order]).cumsum(1)[:, last]
    gained = np.diff(hits, axis=1, prepend=0)
    precision = np.divide(hits, taken, out=np.zeros_like(hits), where=taken > 0)
    return np.asarray(np.einsum("sn,sn->s", gained, precision) / hits[:, -1])


def _variance(values: Floats, mean: Floats, mean_square: Floats) -> Floats:
    if not len(values) or np.ptp(values) <= NO_SPREAD:
        return np.full(len(mean), np.nan)
    variance = mean_square - mean**2
    return np.where(variance > _ROUNDING * mean_square, variance, np.nan)


def _ranks(values: Floats, weights: Weights) -> Floats:
    """(S, n) ranks within each figure, less their mean; equal values share the mean of their ranks."""
    order, last, run = _tied(values)
    upto = weights[:, order].cumsum(1)[:, last]
    ranks = upto - np.diff(upto, axis=1, prepend=0) / 2
    ranks -= upto[:, -1:] / 2
    return np.asarray(ranks[:, run])


def _tied(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The ascending order of values (n,), where in it each run of equal ones ends, and the run of each value."""
    order = np.argsort(values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, np.ones(min(len(values), 1), bool)))
    run = np.empty(len(values), np.intp)
    run[order] = np.searchsorted(last, np.arange(len(values)))
    return order, last, run
