"""Metrics by kind of target, computed by scikit-learn and SciPy, and their summary over the repeats of a run.

| metric | of ratings, scaled to -0.5 .. +0.5 |
|---|---|
| pearson, plcc | correlation (two names of one figure: that of psychology, and that of image quality) |
| pearson2 | its square, which Ghosal and Kolekar report as r-squared |
| r2 | the coefficient of determination, which also counts errors of level and spread |
| rmse | root mean squared error |
| srocc | rank correlation (Spearman) |
| accuracy | share on the right side of the middle of the scale (a threshold of 0.5 on 0 .. 1: AVA, Li et al.) |

| metric | of yes or no, or of one class of several |
|---|---|
| accuracy | share that is right; probabilities from 0.5 on say yes, the greatest says which class |
| balanced_accuracy | mean over the classes of the share of each that is found |
| f1 | F1 of each class, weighted by how often it occurs (MediaEval) |
| map | average precision; of several classes, the mean over those that occur |

Of several labels at once, each is like yes or no, and `all` is: f1, the F1 of each label weighted by how often it
occurs; map and balanced_accuracy, the mean over the labels; accuracy, the share of images of which all is right.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heads.labels.target import Kind, Target

Figures = dict[str, dict[str, float | None]]
"""By task and metric; None where a metric is not defined."""
MetricSummary = dict[str, dict[str, dict[str, float | None]]]
"""By task and metric: `mean`, `spread`, `low`, `high`."""

ALL = "all"
"""The task of a multilabel target under which metrics of all labels together stand."""
_OF_RATINGS = ("pearson", "pearson2", "r2", "rmse", "srocc", "plcc", "accuracy")
_OF_CLASSES = ("f1", "accuracy", "balanced_accuracy", "map")
METRICS: dict[Kind, tuple[str, ...]] = {
    "regression": _OF_RATINGS,
    "binary": _OF_CLASSES,
    "multiclass": _OF_CLASSES,
    "multilabel": _OF_CLASSES,
}
SHOWN: dict[Kind, tuple[str, ...]] = {**METRICS, "regression": ("pearson", "pearson2", "r2", "rmse", "srocc")}
"""What a table on a terminal has room for; the first is that which heads are compared by."""
THRESHOLD = 0.5
"""Probabilities from here on say yes."""
NO_SPREAD = 1e-9
"""Predictions closer to each other than this are constant: what they differ by is rounding."""


def tasks_of(target: Target) -> tuple[str, ...]:
    """The tasks that metrics are of."""
    return (*target.tasks, ALL) if target.kind == "multilabel" else target.tasks


def evaluate(target: Target, labels: NDArray[np.floating], predicted: NDArray[np.floating]) -> Figures:
    """Metrics of labels (N, K) and predictions (N, n_outputs), scaled ratings or probabilities.

    Images without a label, or of which nothing is predicted (NaN), do not count. A metric is None where it is not
    defined: with fewer than two images, a correlation with something constant, precision of a class that never occurs.
    """
    if target.kind == "multiclass":
        known = np.isfinite(labels[:, 0]) & np.isfinite(predicted).all(1)
        return {target.tasks[0]: _of_classes(labels[known, 0].astype(int), predicted[known].astype(np.float64))}
    of_task = _of_ratings if target.kind == "regression" else _of_yes_or_no
    figures = {}
    for k, task in enumerate(target.tasks):
        known = np.isfinite(labels[:, k]) & np.isfinite(predicted[:, k])
        figures[task] = of_task(labels[known, k].astype(np.float64), predicted[known, k].astype(np.float64))
    if target.kind == "multilabel":
        figures[ALL] = _of_all(labels, predicted, figures)
    return figures


def summarise(
    target: Target,
    labels: NDArray[np.floating],
    predicted: NDArray[np.floating],
    *,
    groups: Sequence[str] | None,
    seed: int = 0,
    n_resamples: int | None = None,
) -> MetricSummary:
    """Metrics of labels (N, K) and predictions (R, N, n_outputs) with NaN rows where an image was not tested.

    `mean` and `spread` (standard deviation; None of one repeat) are over the repeats, None if one of them has no such
    metric. `low` and `high` are a 95 % bootstrap interval of the mean, over images or whole groups of them.
    """
    from heads.inference.bootstrap import draw_weights, enough_resamples, interval, resampled

    repeats = [evaluate(target, labels, each) for each in predicted]
    tested = np.isfinite(predicted).any((0, 2)) & np.isfinite(labels).any(1)
    kept = None if groups is None else [group for group, keep in zip(groups, tested, strict=True) if keep]
    n_tested = int(tested.sum())
    weights = draw_weights(n_tested, kept, n_resamples=n_resamples or enough_resamples(n_tested), seed=seed)
    bootstrapped = resampled(target, labels[tested], predicted[:, tested], weights)
    summary: MetricSummary = {}
    for task in tasks_of(target):
        summary[task] = {}
        for metric in METRICS[target.kind]:
            mean, spread = over_repeats([figures[task][metric] for figures in repeats])
            low, high = (None, None) if mean is None else interval(bootstrapped[task][metric])
            summary[task][metric] = {"mean": mean, "spread": spread, "low": low, "high": high}
    return summary


def over_repeats(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation; None if a repeat has no value, the latter also if there is one repeat."""
    known = [value for value in values if value is not None]
    if not known or len(known) < len(values):
        return None, None
    return float(np.mean(known)), float(np.std(known, ddof=1)) if len(known) > 1 else None


def _of_ratings(truth: NDArray[np.float64], guess: NDArray[np.float64]) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, r2_score, root_mean_squared_error

    if len(truth) < 2:
        return dict.fromkeys(_OF_RATINGS)
    varies = np.ptp(truth) > NO_SPREAD and np.ptp(guess) > NO_SPREAD
    pearson = float(pearsonr(truth, guess).statistic) if varies else None
    return {
        "pearson": pearson,
        "pearson2": None if pearson is None else pearson**2,
        "r2": float(r2_score(truth, guess)) if np.ptp(truth) > NO_SPREAD else None,
        "rmse": float(root_mean_squared_error(truth, guess)),
        "srocc": float(spearmanr(truth, guess).statistic) if varies else None,
        "plcc": pearson,
        "accuracy": float(accuracy_score(truth >= 0, guess >= 0)),
    }


def _of_yes_or_no(truth: NDArray[np.float64], probability: NDArray[np.float64]) -> dict[str, float | None]:
    from sklearn.metrics import average_precision_score

    precision = float(average_precision_score(truth, probability)) if 0 < truth.sum() < len(truth) else None
    return _of_decisions(truth, probability >= THRESHOLD, precision)


def _of_classes(truth: NDArray[np.int_], probabilities: NDArray[np.float64]) -> dict[str, float | None]:
    from sklearn.metrics import average_precision_score

    occur = np.unique(truth)
    precisions = [float(average_precision_score(truth == c, probabilities[:, c])) for c in occur]
    guess = probabilities.argmax(1)
    return _of_decisions(truth, guess, float(np.mean(precisions)) if len(occur) > 1 else None)


def _of_decisions(truth: NDArray[Any], guess: NDArray[Any], average_precision: float | None) -> dict[str, float | None]:
    from sklearn.metrics import accuracy_score, f1_score, recall_score

    if len(truth) < 2:
        return dict.fromkeys(_OF_CLASSES)
    truth, guess = truth.astype(int), guess.astype(int)
    occur = np.unique(truth)
    # Recall over the classes that occur, because balanced_accuracy_score warns of those that are only guessed.
    recall = recall_score(truth, guess, labels=occur, average="macro", zero_division=0)
    return {
        "f1": float(f1_score(truth, guess, average="weighted", zero_division=0)),
        "accuracy": float(accuracy_score(truth, guess)),
        "balanced_accuracy": float(recall) if len(occur) > 1 else None,
        "map": average_precision,
    }


def _of_all(labels: NDArray[np.floating], predicted: NDArray[np.floating], figures: Figures) -> dict[str, float | None]:
    from sklearn.metrics import f1_score

    known = np.isfinite(labels) & np.isfinite(predicted)
    yes = predicted >= THRESHOLD
    complete = known.all(1)
    scores = [
        float(f1_score(labels[:, k][m], yes[:, k][m], zero_division=0)) if m.any() else 0.0
        for k, m in enumerate(known.T)
    ]
    support = np.where(known, labels, 0).sum(0)
    right = (labels[complete] == yes[complete]).all(1)
    return {
        "f1": float(np.average(scores, weights=support)) if support.any() else None,
        "accuracy": float(right.mean()) if len(right) > 1 else None,
        "balanced_accuracy": _mean(each["balanced_accuracy"] for each in figures.values()),
        "map": _mean(each["map"] for each in figures.values()),
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
