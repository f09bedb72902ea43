"""The bootstrap over images: how far a metric could be from what it is on these images, had we drawn others.

A resample is a row of weights, how often each image is in it, so that a metric of a thousand resamples is a few
products of matrices. `scipy.stats.bootstrap` would do for single images, but it resamples no groups, and a metric at a
time of resamples that are written out takes minutes. The figures equal those of `heads.inference.metrics` on resamples
that are written out; a test compares them.
"""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.inference.metrics import ALL, METRICS, THRESHOLD, tasks_of
from heads.labels.target import Target

Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]
Weights = Floats
"""(S, N) how often each of N images is in each of S resamples."""
Figures = dict[str, Floats]
"""By metric, (S,); NaN where a resample has no such metric."""
Resampled = dict[str, Figures]
"""By task."""

_BLOCK_CELLS = 100_000
"""What fits into a processor's cache."""
_ROUNDING = 1e-12
"""A variance that is a smaller share of the mean square is that of something constant."""


def enough_resamples(n_images: int) -> int:
    """For the interval of one run: 1000; fewer, down to 200, of over 4000 images, whose interval is narrow anyway."""
    return max(200, min(1000, 4_000_000 // max(n_images, 1)))


def draw_weights(n_images: int, groups: Sequence[str] | None, *, n_resamples: int, seed: int) -> Iterator[Weights]:
    """Resamples of images, or of whole groups of them, in blocks that need little memory.

    Of groups, because images of one are alike: as many groups as there are are drawn, each with all its images
    (cluster bootstrap; Davison and Hinkley 1997, section 3.8). A single unit cannot be resampled: it gets no weight,
    and no metric is defined.
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
    target: Target, labels: NDArray[np.floating], predicted: NDArray[np.floating], weights: Iterable[Weights]
) -> Resampled:
    """Each metric under each resample, averaged over the repeats.

    Args:
        labels: (N, K) as `Target` says.
        predicted: (R, N, n_outputs), scaled ratings or probabilities; NaN where an image was not tested.
    """
    known = np.isfinite(predicted) & (
        np.isfinite(labels) if target.kind != "multiclass" else np.isfinite(labels[:, :1])
    )
    # Repeats that know the same images, as they mostly do, share much of the work.
    masks, mask_of = np.unique(known, axis=0, return_inverse=True)
    parts = [(masks[i], predicted[mask_of == i].astype(float)) for i in range(len(masks))]
    blocks: dict[tuple[str, str], list[Floats]] = {}
    for block in weights:
        with np.errstate(divide="ignore", invalid="ignore"):
            measured = [(_figures(target, labels.astype(float), each, mask, block), len(each)) for mask, each in parts]
        for task in tasks_of(target):
            for metric in METRICS[target.kind]:
                total = sum(figures[task][metric] * n_repeats for figures, n_repeats in measured)
                blocks.setdefault((task, metric), []).append(np.asarray(total / len(predicted)))
    return {
        task: {metric: np.concatenate(blocks[task, metric]) for metric in METRICS[target.kind]}
        for task in tasks_of(target)
    }


def interval(values: Floats, *, level: float = 0.95) -> tuple[float, float] | tuple[None, None]:
    """The percentile interval of resamples (S,); None if half of them have no such metric.

    Of few images it is a little short: of 80, it covered the truth in 92 % (rmse) to 97 % (accuracy) of simulations.
    Metrics that cannot fall below chance (pearson2 and map of heads that learned nothing) are a little higher in
    resamples than in the images themselves, because copies agree with each other: near chance, the interval lies high.
    """
    known = values[np.isfinite(values)]
    if len(known) * 2 <= len(values):
        return None, None
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _figures(target: Target, labels: Floats, predicted: Floats, known: Mask, weights: Weights) -> Resampled:
    """Averages over repeats that all know the same labels and predictions: `known` is (N, n_outputs)."""
    complete = np.asarray(known.all(1))
    if target.kind == "multiclass":
        return {target.tasks[0]: _of_classes(labels[complete, 0], predicted[:, complete], _among(complete, weights))}
    of_task = _of_ratings if target.kind == "regression" else _of_yes_or_no
    figures = {}
    for k, task in enumerate(target.tasks):
        here = np.asarray(known[:, k])
        figures[task] = of_task(labels[here, k], predicted[:, here, k], _among(here, weights))
    if target.kind == "multilabel":
        together = _of_all(labels[complete], predicted[:, complete], _among(complete, weights), list(figures.values()))
        figures[ALL] = together
    return figures


def _among(images: Mask, weights: Weights) -> Weights:
    return weights if images.all() else weights[:, images]


def _mean(repeats: list[Figures]) -> Figures:
    return {metric: np.mean([each[metric] for each in repeats], axis=0) for metric in repeats[0]}


def _of_ratings(truth: Floats, guesses: Floats, weights: Weights) -> Figures:
    """
    Args:
        truth: (n,)
        guesses: (R, n)
        weights: (S, n)
    """
    n = weights.sum(1)
    ranks = _ranks(truth, weights)
    figures = []
    # Around the means, so that nothing is lost in the difference of squares.
    t = truth - truth.sum() / max(len(truth), 1)
    for guess in guesses:
        g = guess - guess.sum() / max(len(guess), 1)
        terms = np.column_stack([t, g, t * t, g * g, t * g, (truth - guess) ** 2, (truth >= 0) == (guess >= 0)])
        mean_t, mean_g, mean_tt, mean_gg, mean_tg, error, agree = (weights @ terms).T / n
        var_t = _variance(mean_t, mean_tt)
        pearson = (mean_tg - mean_t * mean_g) / np.sqrt(var_t * _variance(mean_g, mean_gg))
        rank_correlation = _correlation(ranks, _ranks(guess, weights), weights)
        by_metric = {
            "pearson": pearson,
            "pearson2": pearson**2,
            "r2": 1 - error / var_t,
            "rmse": np.sqrt(error),
            "srocc": np.where(np.isfinite(pearson), rank_correlation, np.nan),
            "plcc": pearson,
            "accuracy": agree,
        }
        figures.append({metric: np.where(n < 2, np.nan, values) for metric, values in by_metric.items()})
    return _mean(figures)


def _variance(mean: Floats, mean_square: Floats) -> Floats:
    variance = mean_square - mean**2
    return np.where(variance > _ROUNDING * mean_square, variance, np.nan)


def _ranks(values: Floats, weights: Weights) -> Floats:
    """(S, n) ranks within each resample, less their mean: equal images, as copies of one, share the mean of theirs."""
    order, last, group = _tied(values)
    upto = weights[:, order].cumsum(1)[:, last]
    ranks = upto - np.diff(upto, axis=1, prepend=0) / 2
    ranks -= upto[:, -1:] / 2
    return ranks[:, group]


def _correlation(a: Floats, b: Floats, weights: Weights) -> Floats:
    """Of a and b (S, n), whose means are 0, in each resample."""
    weighted = weights * b
    ab, bb = np.einsum("sn,sn->s", weighted, a), np.einsum("sn,sn->s", weighted, b)
    return np.asarray(ab / np.sqrt(bb * np.einsum("sn,sn,sn->s", weights, a, a)))


def _tied(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """The ascending order of values (n,), where in it each run of equal ones ends, and the run of each value."""
    order = np.argsort(values, kind="stable")
    last = np.flatnonzero(np.append(np.diff(values[order]) != 0, np.ones(min(len(values), 1), bool)))
    run = np.empty(len(values), np.intp)
    run[order] = np.searchsorted(last, np.arange(len(values)))
    return order, last, run


def _of_yes_or_no(truth: Floats, guesses: Floats, weights: Weights) -> Figures:
    """As `_of_ratings`, of probabilities."""
    figures = []
    for guess in guesses:
        table = _confusion(truth, guess >= THRESHOLD, 2, weights)
        precision = _average_precision(truth == 1, guess, weights)
        one_class = (table.sum(2) == 0).any(1)
        # The F1 of yes alone is not shown: that of all labels together is made of it.
        of_yes = {"support": table[:, 1].sum(1), "f1_of_yes": _f1(table)[:, 1]}
        figures.append({**_of_confusion(table), "map": np.where(one_class, np.nan, precision), **of_yes})
    return _mean(figures)


def _of_classes(truth: Floats, probabilities: Floats, weights: Weights) -> Figures:
    """As `_of_ratings`, of probabilities (R, n, C)."""
    figures = []
    for each in probabilities:
        n_classes = each.shape[1]
        table = _confusion(truth, each.argmax(1), n_classes, weights)
        precisions = np.stack([_average_precision(truth == c, each[:, c], weights) for c in range(n_classes)])
        occur = table.sum(2).T > 0
        mean = np.where(occur, precisions, 0).sum(0) / occur.sum(0)
        figures.append({**_of_confusion(table), "map": np.where(occur.sum(0) > 1, mean, np.nan)})
    return _mean(figures)


def _confusion(truth: Floats, guess: NDArray[Any], n_classes: int, weights: Weights) -> Floats:
    """(S, C, C): how many images of each class are taken for each."""
    cells = np.eye(n_classes**2)[truth.astype(int) * n_classes + guess]
    return np.asarray((weights @ cells).reshape(-1, n_classes, n_classes))


def _of_confusion(table: Floats) -> dict[str, Floats]:
    right, support, n = np.einsum("scc->sc", table), table.sum(2), table.sum((1, 2))
    occur = support > 0
    balanced = np.where(occur, right / support, 0).sum(1) / occur.sum(1)
    figures = {
        "f1": (support * _f1(table)).sum(1) / n,
        "accuracy": right.sum(1) / n,
        "balanced_accuracy": np.where(occur.sum(1) > 1, balanced, np.nan),
    }
    return {metric: np.where(n < 2, np.nan, values) for metric, values in figures.items()}


def _f1(table: Floats) -> Floats:
    """(..., C) of tables (..., C, C)."""
    both = table.sum(-1) + table.sum(-2)
    return np.where(both > 0, 2 * np.einsum("...cc->...c", table) / both, 0)


def _average_precision(truth: Mask, score: Floats, weights: Weights) -> Floats:
    """The mean precision at each image that is found, images of equal score at once; NaN if there is none to find."""
    if not truth.any():
        return np.full(len(weights), np.nan)
    order, last, _ = _tied(-score)
    here = weights[:, order]
    taken, found = here.cumsum(1)[:, last], (here * truth[order]).cumsum(1)[:, last]
    gained = np.diff(found, axis=1, prepend=0)
    precision = np.divide(found, taken, out=np.zeros_like(found), where=taken > 0)
    return np.asarray(np.einsum("sn,sn->s", gained, precision) / found[:, -1])


def _of_all(labels: Floats, predicted: Floats, weights: Weights, by_task: list[Figures]) -> Figures:
    """Of all labels together; labels (n, K) and predictions (R, n, K) of images of which every label is known."""
    right = (labels == (predicted >= THRESHOLD)).all(2).mean(0)
    n = weights.sum(1)
    support = np.stack([figures["support"] for figures in by_task])
    f1 = np.stack([figures["f1_of_yes"] for figures in by_task])
    return {
        "f1": (support * f1).sum(0) / support.sum(0),
        "accuracy": np.where(n < 2, np.nan, weights @ right / n),
        **{metric: _known_mean([figures[metric] for figures in by_task]) for metric in ("balanced_accuracy", "map")},
    }


def _known_mean(values: list[Floats]) -> Floats:
    known = np.isfinite(values)
    return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))
