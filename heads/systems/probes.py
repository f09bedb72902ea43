"""Linear probes: what the features say by themselves, and the baselines that every head has to beat."""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from heads.labels.target import Target
from heads.systems.layers import LinearMap, n_joined
from heads.systems.registry import register
from heads.systems.system import (
    KINDS,
    Option,
    Options,
    Sample,
    Shape,
    System,
    by_gradient,
    by_solving,
    inner_folds,
)
from heads.training.losses import masked_loss

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

Matrix = NDArray[np.float64]
ALPHAS = np.logspace(0, 6, 25)
"""Penalties of ridge regression that are tried."""
CS = np.logspace(-5, 1, 7)
"""Inverse penalties of logistic regression that are tried."""
CHOSEN = "0 chooses it for each task, by inner folds"
NEVER = -1e4
"""The logit of a class that no image to learn from belongs to: its probability is 0."""


def fit_ridge(model: nn.Module, sample: Sample, options: Options) -> None:
    """Solve ridge regression; the penalty of each task is the best over the inner folds, or else by leaving one out.

    Once it is chosen, all rows with a label are used. Tasks labelled on the same images are solved at once.
    """
    from sklearn.linear_model import RidgeCV

    linear = linear_of(model)
    for known, tasks in labelled_alike(sample.labels):
        features = sample.features[known].astype(np.float64)
        labels = sample.labels[known][:, tasks].astype(np.float64)
        ridge = _Ridge(features, labels)
        if options["alpha"]:
            alphas = np.full(len(tasks), options["alpha"])
        elif folds := list(sample.inner(known)):
            alphas = ALPHAS[np.argmin(sum(ridge.errors(held[known]) for _, held in folds), axis=0)]
        else:
            alphas = RidgeCV(ALPHAS, alpha_per_target=True).fit(features, labels).alpha_
        _put(linear, tasks, *ridge.solution(alphas))


class _Ridge:
    """Ridge regression of K tasks for any penalties, by one decomposition of features (n, F)."""

    def __init__(self, features: Matrix, labels: Matrix) -> None:
        self._mean, self._label_mean = features.mean(0), labels.mean(0)
        self._away, self._above = features - self._mean, labels - self._label_mean
        n, n_features = features.shape
        self._by_image = n <= n_features
        """Whether the n images are what is decomposed, or else the F features."""
        products = self._away @ self._away.T if self._by_image else self._away.T @ self._away
        values, self._vectors = np.linalg.eigh(products)
        self._values = np.maximum(values, 0)
        self._along = self._vectors.T @ (self._above if self._by_image else self._away.T @ self._above)

    def solution(self, alphas: Matrix) -> tuple[Matrix, Matrix]:
        """Weights (K, F) and biases (K,) with a penalty for each task (K,)."""
        weight = self._vectors @ (self._along / (self._values[:, None] + alphas))
        weight = (self._away.T @ weight if self._by_image else weight).T
        return weight, self._label_mean - weight @ self._mean

    def errors(self, held: NDArray[np.bool_]) -> Matrix:
        """Squared errors for each of `ALPHAS`, summed over images (n,) that are left out: (penalties, K).

        Of fewer images than features nothing is decomposed again. With P = (X X' + alpha)^-1 - 1 / (n alpha), errors
        e of images that are left out solve P[held, held] e = (P y)[held], as in the PRESS statistic of single images.
        """
        if not self._by_image:
            part = _Ridge(self._away[~held], self._above[~held])
            across, above = (self._away[held] - part._mean) @ part._vectors, self._above[held] - part._label_mean
            said = (across @ (part._along / (part._values[:, None] + alpha)) for alpha in ALPHAS)
            return np.array([np.square(each - above).sum(0) for each in said])
        vectors, errors = self._vectors[held], []
        for alpha in ALPHAS:
            shrunk = vectors / np.sqrt(self._values + alpha)
            left = vectors @ (self._along / (self._values[:, None] + alpha))
            errors.append(np.linalg.solve(shrunk @ shrunk.T - 1 / (len(held) * alpha), left))
        return np.array([np.square(each).sum(0) for each in errors])


def fit_logistic(model: nn.Module, sample: Sample, options: Options) -> None:
    """Solve logistic regression, task by task; its penalty is the best over the inner folds, or else the middle one.

    Once it is chosen, all rows with a label are used.
    """
    linear = linear_of(model)
    features, of_features = _in_their_span(sample.features)
    for task in range(sample.labels.shape[1]):
        labels = sample.labels[:, task]
        known = np.isfinite(labels)
        folds = [(fit, held) for fit, held in sample.inner(known) if len(np.unique(labels[fit])) > 1]
        if options["C"]:
            best = options["C"]
        elif folds:
            target = sample.target.only(task)
            parts = ((features[fit], labels[fit], features[held], labels[held]) for fit, held in folds)
            best = float(CS[np.argmin(sum(_cross_entropies(*part, target) for part in parts))])
        else:
            best = float(np.median(CS))
        solution = _logistic(best).fit(features[known], labels[known])
        weight, bias = of_features(*_logits(solution, sample.target))
        _put(linear, slice(None) if sample.target.kind == "multiclass" else [task], weight, bias)


def _in_their_span(
    features: NDArray[np.float32],
) -> tuple[Matrix, Callable[[Matrix, Matrix], tuple[Matrix, Matrix]]]:
    """Images (n, F) around their mean, in coordinates (n, n) of the space that they span if n < F; and the way back.

    A solution with a penalty on the squares of its weights lies in that space, and a turn changes no length: it is the
    same solution, found among n weights in place of F. The way back takes weights (k, n) to weights (k, F), and the
    biases (k,) with them.
    """
    n, n_features = features.shape
    away = features.astype(np.float64)
    mean = away.mean(0)
    away -= mean

    def around_zero(weight: Matrix, bias: Matrix) -> tuple[Matrix, Matrix]:
        return weight, bias - weight @ mean

    if n >= n_features:
        return away, around_zero
    values, vectors = np.linalg.eigh(away @ away.T)
    lengths = np.sqrt(np.where(values > n * np.finfo(np.float64).eps * values[-1], values, 0))  # less is rounding
    back = np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 0)
    return vectors * lengths, lambda weight, bias: around_zero(weight @ back.T @ away, bias)


def _cross_entropies(
    features: Matrix, labels: NDArray[Any], inner: Matrix, inner_labels: NDArray[Any], target: Target
) -> Matrix:
    """Summed over the inner rows, for each inverse penalty."""
    loss, solution = masked_loss(target), _logistic(CS[0]).set_params(warm_start=True)
    errors = []
    for c in CS:
        weight, bias = _logits(solution.set_params(C=c).fit(features, labels), target)
        logits = torch.from_numpy(inner @ weight.T + bias)
        errors.append(float(loss(logits, torch.from_numpy(inner_labels[:, None]).double())))
    return np.array(errors) * len(inner)


def _logistic(c: float) -> "LogisticRegression":
    from sklearn.linear_model import LogisticRegression

    # By lbfgs, photos that a plane parts end where its tolerance is met, far from what a weak penalty would have.
    return LogisticRegression(C=c, max_iter=10_000, solver="newton-cg", tol=1e-6)


def _logits(solution: "LogisticRegression", target: Target) -> tuple[Matrix, Matrix]:
    """Weights (n, F) and biases (n,) of the logits of one task: C if it has classes, or else 1."""
    if target.kind != "multiclass":
        return solution.coef_, solution.intercept_
    weight = np.zeros((target.n_outputs, solution.coef_.shape[1]))
    bias = np.full(target.n_outputs, NEVER)
    seen = solution.classes_.astype(int)
    if len(seen) == 2:  # one logit, of the second against the first
        weight[seen[1]], bias[seen] = solution.coef_[0], [0, solution.intercept_[0]]
    else:
        weight[seen], bias[seen] = solution.coef_, solution.intercept_
    return weight, bias


def linear_of(model: nn.Module) -> nn.Linear:
    assert isinstance(model, LinearMap)
    return model.linear


def labelled_alike(labels: NDArray[np.float32]) -> Iterator[tuple[NDArray[np.bool_], list[int]]]:
    """Tasks that have labels on the same rows: which rows (n,), and which tasks."""
    masks, belongs = np.unique(np.isfinite(labels), axis=1, return_inverse=True)
    for number, known in enumerate(masks.T):
        yield known, np.flatnonzero(belongs == number).tolist()


def _put(linear: nn.Linear, outputs: list[int] | slice, weight: Matrix, bias: Matrix) -> None:
    with torch.no_grad():
        linear.weight[outputs] = torch.from_numpy(np.atleast_2d(weight)).float()
        linear.bias[outputs] = torch.from_numpy(np.atleast_1d(bias)).float()


def _linear_map(shapes: tuple[Shape, ...], target: Target, options: Options) -> LinearMap:
    return LinearMap(n_joined(shapes), target.n_outputs)


register(
    System(
        name="ridge",
        title="ridge regression, the baseline",
        source="Hoerl and Kennard, 1970; scikit-learn's Ridge",
        reads=("any",),
        kinds=("regression",),
        options=by_solving(alpha=Option(0.0, f"ours: {CHOSEN}", low=0), inner_folds=inner_folds()),
        build=_linear_map,
        fit=fit_ridge,
        least_labels=2,
    )
)

register(
    System(
        name="logistic",
        title="logistic regression, the baseline of classes",
        source="scikit-learn's LogisticRegression",
        reads=("any",),
        kinds=("binary", "multilabel", "multiclass"),
        options=by_solving(C=Option(0.0, f"ours: inverse penalty; {CHOSEN}", low=0), inner_folds=inner_folds()),
        build=_linear_map,
        fit=fit_logistic,
        least_labels=2,
        least_distinct=2,
    )
)

register(
    System(
        name="linear",
        title="one linear map, by gradient: a probe of features that do not fit in memory",
        source="Alain and Bengio, Understanding intermediate layers using linear classifier probes, 2016",
        reads=("any",),
        kinds=KINDS,
        options=by_gradient(
            "ours",
            lr=Option(1e-5, "ours: a step of Adam moves an output by up to lr times the number of features", low=0),
        ),
        build=_linear_map,
    )
)
