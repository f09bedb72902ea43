"""Regression with sparse approximation on groups of features (Soleymani, "The quest for visual interest", 2015).

The paper says no more of its regression than that; method, penalty and scales are ours. scikit-learn solves.
"""

import warnings
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.labels.target import Target
from heads.systems.layers import LinearMap, n_joined
from heads.systems.probes import CHOSEN, labelled_alike
from heads.systems.registry import register
from heads.systems.system import Option, Options, Sample, Shape, System, by_solving, inner_folds

Matrix = NDArray[np.float64]
Folds = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]
PENALTIES = np.logspace(0, -3, 31)
"""What is tried, as parts of the least penalty at which all weights are 0."""
SLOW = 0.01
"""The least of these that `multitask` tries: below, coordinate descent takes minutes."""
USUAL, USUAL_FEATURES = 0.1, 10
"""The part that is taken without inner folds, and how many features of `omp`."""
SHARE = "share of |weight|"


class Sparse(LinearMap):
    """A linear map, most of whose weights are 0."""

    shares: dict[str, Tensor]
    """By group (K,); none until it is fitted."""

    def __init__(self, n_features: int, n_tasks: int) -> None:
        super().__init__(n_features, n_tasks)
        self.shares = {}

    def learned(self) -> dict[str, Tensor]:
        """By group of features, its share (K,) of the sum of |weight|, each times the spread of its feature."""
        return {f"{SHARE}: {group}": share for group, share in self.shares.items()}


def fit_sparse(model: torch.nn.Module, sample: Sample, options: Options) -> None:
    """Solve for a few weights; what is not given is the best over the inner folds.

    Each group of features (a segment of a tensor) is scaled so that its variances sum to 1; or each feature has a
    variance of 1, and no feature is held back because its group is wide. Once the penalty is chosen, all rows with a
    label are used. Tasks are solved one by one; `multitask` solves those that are labelled on the same images at once.
    """
    assert isinstance(model, Sparse)
    n_tasks, n_features = model.linear.weight.shape
    groups = sample.groups or (("features", n_features),)
    number = np.repeat(np.arange(len(groups)), [width for _, width in groups])
    weight, bias, sizes = np.zeros((n_tasks, n_features)), np.zeros(n_tasks), np.zeros((n_tasks, n_features))
    for known, tasks in labelled_alike(sample.labels):
        features, labels = sample.features[known].astype(np.float64), sample.labels[known][:, tasks].astype(np.float64)
        mean, variance = features.mean(0), features.var(0)
        varies = variance > np.finfo(np.float32).eps * np.square(mean)  # else it is rounding
        spread = variance[varies]
        if options["unit_variance"] == "group":
            spread = np.bincount(number[varies], spread, len(groups))[number[varies]]
        scale = 1 / np.sqrt(spread)
        folds = [(np.flatnonzero(fit[known]), np.flatnonzero(held[known])) for fit, held in sample.inner(known)]
        label_mean = labels.mean(0)
        found = _solve((features[:, varies] - mean[varies]) * scale, labels - label_mean, folds, options)
        where = np.ix_(np.array(tasks), np.flatnonzero(varies))
        weight[where], sizes[where] = found * scale, np.abs(found * scale) * np.sqrt(variance[varies])
        bias[tasks] = label_mean - weight[tasks] @ mean
    with torch.no_grad():
        model.linear.weight.copy_(torch.from_numpy(weight))
        model.linear.bias.copy_(torch.from_numpy(bias))
    whole = np.maximum(sizes.sum(1), np.finfo(float).tiny)
    for name in dict.fromkeys(name for name, _ in groups):
        own = np.array([each == name for each, _ in groups])[number]
        model.shares[name] = torch.from_numpy(sizes[:, own].sum(1) / whole).float()


def _solve(features: Matrix, labels: Matrix, folds: Folds, options: Options) -> Matrix:
    """Weights (K, F) of features (n, F) and labels (n, K), all of mean 0."""
    from sklearn.exceptions import ConvergenceWarning

    nothing = np.zeros(features.shape[1])  # of labels that are all the same, and of features that are
    if not (features.size and labels.any()):
        return np.tile(nothing, (labels.shape[1], 1))
    # Features that say the same end a path early, and a weak penalty is left where the steps end: both are tried on the
    # inner folds like all others. For the whole process, as models are solved in several threads.
    for category in (ConvergenceWarning, RuntimeWarning):
        warnings.filterwarnings("ignore", category=category, module="sklearn")
    if options["method"] == "multitask":
        return _multitask(features, labels, folds, options)
    solve = _lasso if options["method"] == "lasso" else _omp
    return np.array([solve(features, each, folds, options) if each.any() else nothing for each in labels.T])


def _lasso(features: Matrix, labels: Matrix, folds: Folds, options: Options) -> Matrix:
    highest = float(np.abs(features.T @ labels).max()) / len(labels)
    if options["alpha"] or not folds:
        folds, penalties = (), np.array([options["alpha"] or USUAL * highest])
    else:
        penalties = PENALTIES * highest
    return _best(partial(_lars, penalties=penalties, most=options["most"]), features, labels, folds)


def _omp(features: Matrix, labels: Matrix, folds: Folds, options: Options) -> Matrix:
    least = min([len(labels), *(len(fit) for fit, _ in folds)])
    most = max(1, min(options["most"], features.shape[1], least - 1))
    if options["features"] or not folds:
        folds, most = (), min(options["features"] or USUAL_FEATURES, most)
    return _best(partial(_pursuit, most=most), features, labels, folds)


Path = Callable[[Matrix, Matrix], Matrix]
"""Features (n, F) and labels (n,) -> weights (F, L), from few features to many."""


def _best(path: Path, features: Matrix, labels: Matrix, folds: Folds) -> Matrix:
    """The weights (F,) with the least squared error on the inner folds; the last ones without these."""
    best = -1
    if folds:
        said = ((features[held] @ path(features[fit], labels[fit]), labels[held]) for fit, held in folds)
        best = int(np.argmin(sum(np.square(each - held[:, None]).sum(0) for each, held in said)))
    return path(features, labels)[:, best]


def _lars(features: Matrix, labels: Matrix, penalties: Matrix, most: int) -> Matrix:
    """The solutions of the lasso (F, penalties) for falling penalties: linear between the corners that LARS finds."""
    from sklearn.linear_model import lars_path

    corners, _, weights = lars_path(features, labels, method="lasso", alpha_min=penalties[-1], max_iter=most)
    if len(corners) == 1:
        return np.repeat(weights, len(penalties), 1)
    after = np.clip(np.searchsorted(-corners, -penalties), 1, len(corners) - 1)
    before = after - 1
    part = np.clip((corners[before] - penalties) / np.maximum(corners[before] - corners[after], 1e-300), 0, 1)
    found: Matrix = weights[:, before] * (1 - part) + weights[:, after] * part
    return found


def _pursuit(features: Matrix, labels: Matrix, most: int) -> Matrix:
    """What orthogonal matching pursuit has after each step (F, most); it stays where it ends before."""
    from sklearn.linear_model import orthogonal_mp

    found = np.zeros((features.shape[1], most))
    if labels.any():
        steps = orthogonal_mp(features, labels, n_nonzero_coefs=most, return_path=True)
        steps = steps.reshape(len(found), -1)[:, :most]
        found[:, : steps.shape[1]] = steps
        found[:, steps.shape[1] :] = steps[:, -1:]
    return found


def _multitask(features: Matrix, labels: Matrix, folds: Folds, options: Options) -> Matrix:
    from sklearn.linear_model import MultiTaskLasso, MultiTaskLassoCV

    highest = float(np.sqrt(np.square(features.T @ labels).sum(1)).max()) / len(labels)
    if folds and not options["alpha"]:
        penalties = PENALTIES[PENALTIES >= SLOW] * highest
        solution = MultiTaskLassoCV(alphas=penalties, fit_intercept=False, cv=folds)
    else:
        solution = MultiTaskLasso(options["alpha"] or USUAL * highest, fit_intercept=False)
    found: Matrix = solution.fit(features, labels).coef_
    return found


def _build(shapes: tuple[Shape, ...], target: Target, options: Options) -> Sparse:
    return Sparse(n_joined(shapes), len(target.tasks))


register(
    System(
        name="sparse",
        title="sparse regression on groups of features",
        source="Soleymani, The quest for visual interest, 2015; scikit-learn's LassoLars and others",
        reads=("any",),
        kinds=("regression",),
        options=by_solving(
            method=Option(
                "lasso",
                "ours: the paper says sparse approximation, and no more; multitask chooses the same features for all",
                choices=("lasso", "omp", "multitask"),
            ),
            unit_variance=Option(
                "group",
                "ours: what has a variance of 1, each group of features in all, or each feature",
                choices=("group", "feature"),
            ),
            alpha=Option(0.0, f"ours: penalty of lasso and multitask; {CHOSEN}", low=0),
            features=Option(0, f"ours: number of features of omp; {CHOSEN}", low=0),
            most=Option(200, "ours: steps of lasso and features of omp that are tried", low=1),
            inner_folds=inner_folds(),
            standardise=Option(False, "ours: unit_variance says how they are scaled instead"),
        ),
        build=_build,
        fit=fit_sparse,
        least_labels=2,
        # The features scaled, those of an inner fold, and the path of the weights.
        fit_bytes=lambda n_images, shapes: 8 * n_joined(shapes) * (4 * n_images + 1000),
    )
)
