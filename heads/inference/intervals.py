"""The summary of a run: its metrics, and the 95 % intervals of both questions that they may answer.

*This method, another sample*: `heads.inference.folds` answers it, from the folds of repeated cross-validations. *These
models, other photos*: the bootstrap over images, here. Where one split alone was trained, it is the only answer.

A resample is a row of weights, how often each image is in it, and `heads.inference.metrics` computes all of them at
once. `scipy.stats.bootstrap` would do for single images, but it resamples no groups, and takes minutes where this takes
seconds.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heads.inference.folds import FoldFigures, Interval, by_fold, folds_tell
from heads.inference.metrics import (
    BY_KIND,
    METRICS,
    SHOWN,
    Figures,
    Metric,
    WeightedFigures,
    evaluate,
    known_outputs,
    tasks_of,
    weighted,
)
from heads.inference.samples import Floats, Weights
from heads.labels.target import Target

MetricSummary = dict[str, dict[str, dict[str, float | None]]]
"""By task and metric: `mean`, `spread`, `low`, `high`, `models_low`, `models_high`, `baseline`, `p` of the first."""

SURE = 0.05
"""A difference is found if its adjusted p-value is below."""
_BLOCK_CELLS = 100_000
"""What fits into a processor's cache."""


@dataclass(frozen=True)
class Resampled:
    """A metric of a task under resamples of the images: what it says of these models on other photos."""

    value: float
    drawn: Floats
    """(S,), NaN where it is not defined."""
    n_alone: int
    """How many of the resamples make the interval of the figure: the same that a run's own metrics have."""

    def interval(self) -> Interval:
        alone = self.drawn[: self.n_alone]
        low, high = interval(alone)
        return Interval(self.value, low, high, p_value(alone))

    def difference(self, other: "Resampled") -> Interval:
        """On the same images: both must have been drawn with the same seed."""
        return self._apart(other, self.drawn - other.drawn)

    def unpaired_difference(self, other: "Resampled") -> Interval:
        """As if of other images: the resamples of one are put beside others of the other."""
        return self._apart(other, self.drawn - np.roll(other.drawn, len(other.drawn) // 2))

    def _apart(self, other: "Resampled", differences: Floats) -> Interval:
        low, high = interval(differences)
        return Interval(self.value - other.value, low, high, p_value(differences))


def bootstrap(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    metric: str,
    groups: Sequence[str] | None,
    *,
    n_resamples: int,
    n_alone: int,
    seed: int,
) -> dict[str, Resampled | None]:
    """By task, a metric under resamples; None where it is not defined. Arrays are those of `summarise`."""
    weights = draw_weights(len(labels), groups, n_resamples=n_resamples, seed=seed)
    drawn = resampled(target, labels, predicted, weights, names=[metric])
    figures = [evaluate(target, labels, each) for each in predicted]
    values = {task: over_repeats([each[task][metric] for each in figures])[0] for task in drawn}
    return {
        task: None if (value := values[task]) is None else Resampled(value, by_metric[metric], n_alone)
        for task, by_metric in drawn.items()
    }


def summarise(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    *,
    groups: Sequence[str] | None,
    folds: NDArray[np.int64] | None = None,
    baseline: NDArray[np.floating] | None = None,
    seed: int = 0,
    n_resamples: int | None = None,
) -> MetricSummary:
    """Metrics of labels (N, K) and predictions (R, N, n_outputs) with NaN rows where an image was not tested.

    `mean` and `spread` (standard deviation; None of one repeat) are over the repeats, None if one of them has no such
    metric. `low` and `high` are a 95 % interval: of the method, from its folds, where there are several, or else of the
    models. `models_low` and `models_high` are always of the models: a bootstrap over images or whole groups of them.
    `baseline` is what knowing nothing would get, and `p`, of the metric that heads are compared by, says how surprising
    it would be if this run were no better.

    Args:
        folds: (R, N) the number of the fold that tests an image, -1 if none does; None if nothing was cross-validated.
        baseline: (R, N, n_outputs) predictions of `heads.inference.baseline`.
    """
    tested = np.isfinite(predicted).any((0, 2)) & np.isfinite(labels).any(1)
    kept = None if groups is None else [group for group, keep in zip(groups, tested, strict=True) if keep]
    n_tested = int(tested.sum())
    weights = list(draw_weights(n_tested, kept, n_resamples=n_resamples or enough_resamples(n_tested), seed=seed))
    drawn = resampled(target, labels[tested], predicted[:, tested], weights)
    names, first = METRICS[target.kind], SHOWN[target.kind][0]
    n_units = n_tested if kept is None else len(set(kept))
    crossed, nothing = None, None
    if folds is not None:
        crossed = by_fold(target, labels, predicted, folds, n_units=n_units, names=names)
        if baseline is not None:
            nothing = by_fold(target, labels, baseline, folds, n_units=n_units, names=[first])
    alone = [_of_repeat(target, labels, predicted, folds, repeat) for repeat in range(len(predicted))]
    of_baseline = [] if baseline is None else [evaluate(target, labels, each) for each in baseline]
    summary: MetricSummary = {}
    for task in tasks_of(target):
        summary[task] = {}
        for metric in names:
            mean, spread = over_repeats([figures[task][metric] for figures in alone])
            models = (None, None) if mean is None else interval(drawn[task][metric])
            found = None if crossed is None else crossed[task][metric]
            about = {"mean": mean, "spread": spread}
            low, high = models
            if found is not None and mean is not None:
                about["mean"], low, high, _ = found.interval()
            about |= {"low": low, "high": high, "models_low": models[0], "models_high": models[1]}
            if not BY_KIND[target.kind][metric].zero:
                about["baseline"], _ = over_repeats([figures[task][metric] for figures in of_baseline])
            else:  # what is the same for every photo correlates with nothing
                about["baseline"] = None
            summary[task][metric] = about
        if of_baseline:
            of_task = None if crossed is None or nothing is None else (crossed[task][first], nothing[task][first])
            summary[task][first]["p"] = _p_of_nothing(
                BY_KIND[target.kind][first], summary[task][first], drawn[task][first], of_task
            )
    return summary


def _of_repeat(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    folds: NDArray[np.int64] | None,
    repeat: int,
) -> Figures:
    """The figures of one repeat: of its folds where a metric is averaged over them, or else of all that it tested."""
    figures = evaluate(target, labels, predicted[repeat])
    if folds is None:
        return figures
    within = [name for name, metric in BY_KIND[target.kind].items() if metric.averaging is not None]
    one = slice(repeat, repeat + 1)
    crossed = by_fold(target, labels, predicted[one], folds[one], n_units=len(labels), names=within)
    tell = folds_tell(target, labels, predicted[one], folds[one])
    for task, by_metric in crossed.items():
        for name, found in by_metric.items():
            if found is not None:
                figures[task][name] = found.value
            elif tell[task]:  # predictions that never vary within a fold; pooled, their levels would correlate
                figures[task][name] = None
    return figures


def _p_of_nothing(
    metric: Metric,
    about: Mapping[str, float | None],
    drawn: Floats,
    folds: tuple[FoldFigures | None, FoldFigures | None] | None,
) -> float | None:
    """Two-sided, that the metric is the baseline's; of a correlation, which the baseline has not, that it is 0."""
    if about["mean"] is None or (about["baseline"] is None and not metric.zero):
        return None
    found, nothing = folds or (None, None)
    if found is not None:
        return found.interval().p if nothing is None else found.difference(nothing).p
    return p_value(drawn - (about["baseline"] or 0.0))


def over_repeats(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation; None if a repeat has no value, the latter also if there is one repeat."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def enough_resamples(n_images: int) -> int:
    """For the interval of one run: 1000; fewer, down to 200, of over 4000 images, whose interval is narrow anyway."""
    return max(200, min(1000, 4_000_000 // max(n_images, 1)))


def draw_weights(n_images: int, groups: Sequence[str] | None, *, n_resamples: int, seed: int) -> Iterator[Weights]:
    """Resamples of images, or of whole groups of them, in blocks that need little memory.

    Images of a group are alike, so that whole groups are drawn, as many as there are, each with all its images (cluster
    bootstrap; Davison and Hinkley 1997, section 3.8). A single unit cannot be resampled: it gets no weight, and no
    metric is defined.
    """
    names = np.arange(n_images) if groups is None else np.array(groups, object)
    units, unit_of = np.unique(names, return_inverse=True)
    rng = np.random.default_rng(seed)
    step = max(_BLOCK_CELLS // max(n_images, 1), 1)
    for start in range(0, n_resamples, step):
        size = min(step, n_resamples - start)
        if len(units) < 2:
            yield np.zeros((size, n_images))
        else:
            yield rng.multinomial(len(units), np.full(len(units), 1 / len(units)), size)[:, unit_of].astype(np.float64)


def resampled(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    weights: Iterable[Weights],
    *,
    names: Sequence[str] | None = None,
) -> WeightedFigures:
    """Metrics under each of S resamples, averaged over the repeats.

    Args:
        labels: (N, K) as `Target` says.
        predicted: (R, N, n_outputs), scaled ratings or probabilities; NaN where an image was not tested.
        weights: blocks (s, N) of the S resamples.
        names: the metrics to compute; every one of the kind if None.
    """
    names = METRICS[target.kind] if names is None else names
    # Repeats that know the same images, as they mostly do, share much of the work.
    masks, mask_of = np.unique(known_outputs(target, labels, predicted), axis=0, return_inverse=True)
    parts = [(masks[i], predicted[mask_of == i].astype(float)) for i in range(len(masks))]
    truth = labels.astype(float)
    blocks: dict[tuple[str, str], list[Floats]] = {}
    for block in weights:
        measured = [(weighted(target, truth, each, block, known=mask, names=names), len(each)) for mask, each in parts]
        for task in tasks_of(target):
            for name in names:
                total = sum(figures[task][name] * n_repeats for figures, n_repeats in measured)
                blocks.setdefault((task, name), []).append(np.asarray(total / len(predicted)))
    return {task: {name: np.concatenate(blocks[task, name]) for name in names} for task in tasks_of(target)}


def interval(values: Floats, *, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of resamples (S,); None if half of them have no such metric.

    Of few images it is a little short: of 80, it covered the truth in 92 % (rmse) to 97 % (accuracy) of simulations.
    Metrics that cannot fall below chance (map of heads that learned nothing) are a little higher in resamples than in
    the images themselves, because copies agree with each other: near chance, the interval lies high.
    """
    known = values[np.isfinite(values)]
    if len(known) * 2 <= len(values):
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def p_value(differences: Floats) -> float | None:
    """Two-sided, of resamples (S,); one is added to either count, so that it is never 0 (Davison and Hinkley, 4.2).

    None if half of the resamples have no difference.
    """
    known = differences[np.isfinite(differences)]
    if len(known) * 2 <= len(differences):
        return None
    rarer = min(int((known <= 0).sum()), int((known >= 0).sum()))
    return min(1.0, 2 * (rarer + 1) / (len(known) + 1))


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Each p-value times how many are at least as large, and never below a smaller one's (Holm 1979)."""
    adjusted: list[float | None] = [None] * len(values)
    ascending = sorted((p, i) for i, p in enumerate(values) if p is not None)
    least = 0.0
    for rank, (p, i) in enumerate(ascending):
        least = max(least, min(1.0, p * (len(ascending) - rank)))
        adjusted[i] = least
    return adjusted
