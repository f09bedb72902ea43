"""Metrics (correlation, error, accuracy, F1, average precision): each is one entry of one table.

A metric is a function of a task's labels and predictions and of weights (S, n), how much each of n images counts in
each of S figures. A weight of one for every image gives the plain figure (`evaluate`); the number of times that each
image was drawn gives that of a bootstrap resample (`heads.inference.intervals`), and a weight of one for the images of
a fold that of the fold (`heads.inference.folds`). The tests hold the plain figures against scikit-learn and SciPy.

To add a metric, write its function and its entry in `TABLE`: metrics.json, reports, the command line and comparisons
find it there. Each label of a multilabel target is measured as yes or no is; the task `all` is its labels together.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from heads.inference.samples import THRESHOLD, AllLabels, Decisions, Floats, Given, Ratings, Weights, mean_of
from heads.labels.target import ALL, KINDS, Kind, Target

Mask = NDArray[np.bool_]
Figures = dict[str, dict[str, float | None]]
"""By task and metric; None where a metric is not defined."""
WeightedFigures = dict[str, dict[str, Floats]]
"""By task and metric, (S,); NaN where a metric is not defined."""


@dataclass(frozen=True)
class Averaging:
    """The scale on which a metric of single folds is averaged."""

    to: Callable[[Floats], Floats]
    back: Callable[[float], float]


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One metric: its name, what it measures, and how.

    Raises:
        ValueError: a part is empty, or `together` is given for other kinds than multilabel, or is missing for it.
    """

    name: str
    kinds: tuple[Kind, ...]
    """The kinds of target that have it."""
    figure: Callable[[Any], Floats]
    """(S,) of the `Ratings` of a task (of regression) or its `Decisions` (of all other kinds)."""
    together: Callable[[AllLabels], Floats] | None = None
    """(S,) of all labels of a multilabel target."""
    words: str
    """What it is, for a reader of the report."""
    note: str = ""
    """What a table on a terminal says of it, where its name is not enough."""
    better: Literal["higher", "lower"]
    averaging: Averaging | None = None
    """Of a metric that is taken within each fold and averaged over the folds; None of one of all tested images."""
    zero: bool = False
    """Whether what knows nothing of an image reads 0, as of a correlation: it has no figure of its own."""
    floor: float | None = None
    """The least that it can be."""
    bound: float | None = None
    """What it can reach and not pass: its interval is that of the logarithm of the distance to it."""
    shown: bool = True
    """Whether tables show it; metrics.json and `heads compare --metric` have every metric."""

    def __post_init__(self) -> None:
        if not (self.name and self.kinds and self.words) or not set(self.kinds) <= set(KINDS):
            raise ValueError(f"metric {self.name!r} needs a name, words, and kinds among {', '.join(KINDS)}")
        if ("multilabel" in self.kinds) != (self.together is not None):
            raise ValueError(f"metric {self.name!r}: `together` belongs to the kind multilabel, and to no other")

    def of(self, task: Ratings | Decisions) -> Floats:
        """(S,), NaN where it is not defined."""
        return np.where(task.given.n < 2, np.nan, self.figure(task))


_NEARLY_ONE = 1 - 1e-9
"""Fisher's z of a correlation of 1 is infinite."""


def _fisher(correlation: Floats) -> Floats:
    return np.arctanh(np.clip(correlation, -_NEARLY_ONE, _NEARLY_ONE))


FISHER = Averaging(_fisher, lambda z: float(np.tanh(z)))
FISHER_SQUARED = Averaging(
    lambda square: _fisher(np.sign(square) * np.sqrt(np.abs(square))), lambda z: float(np.tanh(z) * abs(np.tanh(z)))
)


# ------------------------------------------------------------------------------------------ what each one measures


def _pearson(task: Ratings) -> Floats:
    return task.correlation


def _pearson2(task: Ratings) -> Floats:
    return np.asarray(task.correlation * np.abs(task.correlation))


def _r2(task: Ratings) -> Floats:
    return np.asarray(1 - task.moments.squared_error / task.label_variance)


def _rmse(task: Ratings) -> Floats:
    return np.asarray(np.sqrt(task.moments.squared_error))


def _srocc(task: Ratings) -> Floats:
    return task.rank_correlation


def _same_side(task: Ratings) -> Floats:
    return task.moments.same_side


def _f1(task: Decisions) -> Floats:
    """Of several classes, or of yes and no; of a label among others, which is one class, of its yes alone."""
    if task.one_of_many:
        return np.where(task.support[:, 1] > 0, task.f1[:, 1], np.nan)
    return np.asarray((task.support * task.f1).sum(1) / task.given.n)


def _f1_together(labels: AllLabels) -> Floats:
    """The F1 of yes of each label, weighted by how often it occurs."""
    support = labels.means(lambda label: label.support[:, 1])
    f1 = labels.means(lambda label: label.f1[:, 1])
    return np.asarray((support * f1).sum(0) / support.sum(0))


def _accuracy(task: Decisions) -> Floats:
    return np.asarray(task.right.sum(1) / task.given.n)


def _accuracy_together(labels: AllLabels) -> Floats:
    """The share of images of which every label is right."""
    n = labels.weights.sum(1)
    return np.where(n < 2, np.nan, labels.weights @ labels.right / n)


def _balanced_accuracy(task: Decisions) -> Floats:
    occur = task.support > 0
    recall = np.where(occur, task.right / task.support, 0).sum(1) / occur.sum(1)
    return np.where(task.several, recall, np.nan)


def _map(task: Decisions) -> Floats:
    occur = task.support[:, list(task.scores)] > 0
    mean = np.where(occur, task.average_precisions, 0).sum(1) / occur.sum(1)
    return np.where(task.several, mean, np.nan)


def _mean_of_labels(figure: Callable[[Decisions], Floats]) -> Callable[[AllLabels], Floats]:
    """The mean over the labels that have the figure."""

    def together(labels: AllLabels) -> Floats:
        values = labels.means(figure)
        known = np.isfinite(values)
        return np.asarray(np.where(known, values, 0).sum(0) / known.sum(0))

    return together


_CLASSES: tuple[Kind, ...] = ("binary", "multiclass", "multilabel")

TABLE = (
    Metric(
        name="pearson",
        kinds=("regression",),
        figure=_pearson,
        words="correlation within a fold, averaged over the folds by Fisher's z",
        note="within folds, averaged by Fisher's z",
        better="higher",
        averaging=FISHER,
        zero=True,
    ),
    Metric(
        name="pearson2",
        kinds=("regression",),
        figure=_pearson2,
        words="its square with its sign (papers often report the square as r-squared)",
        better="higher",
        averaging=FISHER_SQUARED,
        zero=True,
        shown=False,
    ),
    Metric(
        name="pearson_pooled",
        kinds=("regression",),
        figure=_pearson,
        words="correlation over all folds at once, which is below 0 where nothing is known",
        better="higher",
        zero=True,
        shown=False,
    ),
    Metric(
        name="r2",
        kinds=("regression",),
        figure=_r2,
        words="the coefficient of determination",
        note="coefficient of determination",
        better="higher",
        bound=1.0,
    ),
    Metric(
        name="rmse",
        kinds=("regression",),
        figure=_rmse,
        words="root mean squared error on labels scaled to -0.5..+0.5",
        note="on labels scaled to -0.5..+0.5",
        better="lower",
        bound=0.0,
    ),
    Metric(
        name="srocc",
        kinds=("regression",),
        figure=_srocc,
        words="rank correlation (Spearman), averaged over the folds as pearson is",
        better="higher",
        averaging=FISHER,
        zero=True,
    ),
    Metric(
        name="srocc_pooled",
        kinds=("regression",),
        figure=_srocc,
        words="rank correlation over all folds at once",
        better="higher",
        zero=True,
        shown=False,
    ),
    Metric(
        name="plcc",
        kinds=("regression",),
        figure=_pearson,
        words="pearson under the name that work on image quality uses",
        better="higher",
        averaging=FISHER,
        zero=True,
        shown=False,
    ),
    Metric(
        name="accuracy",
        kinds=("regression",),
        figure=_same_side,
        words="the share on the right side of the middle of the scale (of 0 .. 1, a threshold of 0.5: AVA, Li et al.)",
        better="higher",
        floor=0.0,
        bound=1.0,
        shown=False,
    ),
    Metric(
        name="f1",
        kinds=_CLASSES,
        figure=_f1,
        together=_f1_together,
        words="F1 of each class, weighted by how often it occurs; each of several labels is one class",
        better="higher",
        floor=0.0,
        bound=1.0,
    ),
    Metric(
        name="accuracy",
        kinds=_CLASSES,
        figure=_accuracy,
        together=_accuracy_together,
        words="the share that is right",
        better="higher",
        floor=0.0,
        bound=1.0,
    ),
    Metric(
        name="balanced_accuracy",
        kinds=_CLASSES,
        figure=_balanced_accuracy,
        together=_mean_of_labels(_balanced_accuracy),
        words="the mean over the classes of the share of each that is found",
        better="higher",
        floor=0.0,
        bound=1.0,
    ),
    Metric(
        name="map",
        kinds=_CLASSES,
        figure=_map,
        together=_mean_of_labels(_map),
        words="average precision, the mean over the classes if there are several",
        better="higher",
        floor=0.0,
        bound=1.0,
    ),
)


def by_kind(table: Iterable[Metric]) -> dict[Kind, dict[str, Metric]]:
    """The metrics of each kind of target by name, in the order of the table.

    Raises:
        ValueError: two metrics of a kind have the same name.
    """
    found: dict[Kind, dict[str, Metric]] = {kind: {} for kind in KINDS}
    for metric in table:
        for kind in metric.kinds:
            if metric.name in found[kind]:
                raise ValueError(f"two metrics of {kind} are called {metric.name!r}")
            found[kind][metric.name] = metric
    return found


BY_KIND: Mapping[Kind, Mapping[str, Metric]] = by_kind(TABLE)
METRICS: Mapping[Kind, tuple[str, ...]] = {kind: tuple(metrics) for kind, metrics in BY_KIND.items()}
SHOWN: Mapping[Kind, tuple[str, ...]] = {
    kind: tuple(metric.name for metric in metrics.values() if metric.shown) for kind, metrics in BY_KIND.items()
}
"""What a table has room for; the first is that which heads are compared by."""


# ------------------------------------------------------------------------------------------ figures of a target


def tasks_of(target: Target) -> tuple[str, ...]:
    """The tasks that metrics are of."""
    return (*target.tasks, ALL) if target.kind == "multilabel" else target.tasks


def evaluate(target: Target, labels: NDArray[np.floating], predicted: NDArray[np.floating]) -> Figures:
    """Metrics of labels (N, K) and predictions (N, n_outputs), scaled ratings or probabilities.

    Images without a label, or of which nothing is predicted (NaN), do not count. A metric is None where it is not
    defined: with fewer than two images, a correlation with something constant, precision of a class that never occurs.
    """
    known = known_outputs(target, labels, predicted)
    once = np.ones((1, len(labels)))
    found = weighted(target, labels.astype(float), predicted[None].astype(float), once, known=known)
    return {
        task: {name: float(value[0]) if np.isfinite(value[0]) else None for name, value in figures.items()}
        for task, figures in found.items()
    }


def known_outputs(target: Target, labels: NDArray[np.floating], predicted: NDArray[np.floating]) -> Mask:
    """Which outputs (..., N, n_outputs) have both a label and a prediction."""
    labelled = np.isfinite(labels[:, :1] if target.kind == "multiclass" else labels)
    return np.asarray(np.isfinite(predicted) & labelled)


def weighted(
    target: Target,
    labels: Floats,
    predicted: Floats,
    weights: Weights,
    *,
    known: Mask,
    names: Sequence[str] | None = None,
) -> WeightedFigures:
    """Metrics of weighted images, averaged over R repeats that know the same of them.

    Args:
        labels: (N, K) as `Target` says.
        predicted: (R, N, n_outputs), scaled ratings or probabilities.
        weights: (S, N)
        known: (N, n_outputs) as `known_outputs` says.
        names: the metrics to compute; every one of the kind if None.
    """
    metrics = [metric for metric in BY_KIND[target.kind].values() if names is None or metric.name in names]
    complete = np.asarray(known.all(1))
    figures: WeightedFigures = {}
    by_task: list[list[Any]] = []
    with np.errstate(divide="ignore", invalid="ignore"):
        for k, task in enumerate(target.tasks):
            here = complete if target.kind == "multiclass" else np.asarray(known[:, k])
            given = Given(labels[here, k], _among(here, weights))
            repeats = [_sample(target, given, each[here], k) for each in predicted]
            figures[task] = {metric.name: mean_of(map(metric.of, repeats)) for metric in metrics}
            by_task.append(repeats)
        if target.kind == "multilabel":
            right = (labels[complete] == (predicted[:, complete] >= THRESHOLD)).all(2).mean(0)
            together = AllLabels(by_task, right, _among(complete, weights))
            figures[ALL] = {metric.name: metric.together(together) for metric in metrics if metric.together}
    return figures


def _sample(target: Target, given: Given, predicted: Floats, k: int) -> Ratings | Decisions:
    """Task `k` of the predictions (n, n_outputs) of one repeat."""
    if target.kind == "regression":
        return Ratings(given, predicted[:, k])
    if target.kind == "multiclass":
        n_classes = predicted.shape[1]
        scores = {c: predicted[:, c] for c in range(n_classes)}
        return Decisions(given, predicted.argmax(1), n_classes, scores)
    yes = predicted[:, k]
    return Decisions(given, (yes >= THRESHOLD).astype(np.intp), 2, {1: yes}, target.kind == "multilabel")


def _among(images: Mask, weights: Weights) -> Weights:
    return weights if images.all() else weights[:, images]
