"""Support vector regression with a Gaussian kernel (Drucker et al., 1996).

scikit-learn solves for the support vectors; torch alone predicts with them.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems.layers import joined, n_joined, take_sizes
from heads.systems.probes import CHOSEN
from heads.systems.registry import register
from heads.systems.system import Option, Options, Sample, Shape, System, by_solving, inner_folds

GRID = {"gamma": (0.1, 0.25, 0.5, 1.0), "C": (0.03, 0.1, 0.3, 1.0, 3.0), "epsilon": (0.02, 0.05, 0.1)}
"""What is tried by inner folds; the middle value of each is taken without them."""

TOLERANCE = 1e-5
"""Of the solver: labels span -0.5 .. +0.5, for which scikit-learn's 1e-3 is coarse."""


class SupportVectors(nn.Module):
    """Sums of Gaussians around support vectors, S of them for all K tasks.

        y_k = sum_s coefficients[k, s] exp(-gamma_k |f - support_s|^2) + intercept_k

    There are no support vectors until it is fitted or loaded; loading takes as many as come.
    """

    support: Tensor
    coefficients: Tensor
    gamma: Tensor
    intercept: Tensor

    def __init__(self, n_features: int, n_tasks: int) -> None:
        super().__init__()
        self.register_buffer("support", torch.zeros(0, n_features))
        self.register_buffer("coefficients", torch.zeros(n_tasks, 0))
        self.register_buffer("gamma", torch.zeros(n_tasks))
        self.register_buffer("intercept", torch.zeros(n_tasks))

    def forward(self, *features: Tensor) -> Tensor:
        """Tensors (N, ...) -> (N, K)."""
        flat = joined(*features)
        squares = flat.square().sum(1, keepdim=True) + self.support.square().sum(1)
        distances = torch.addmm(squares, flat, self.support.T, alpha=-2).clamp_min(0)  # (N, S)
        kernels = [
            torch.exp(-gamma * distances) @ own for gamma, own in zip(self.gamma, self.coefficients, strict=True)
        ]
        return torch.stack(kernels, 1) + self.intercept

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        take_sizes(self, ("support", "coefficients"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_svr(model: nn.Module, sample: Sample, options: Options) -> None:
    """Solve for the support vectors of each task; what is not given is the best over the inner folds.

    Once it is chosen, all rows with a label are used. All trials use the same distances between images.
    """
    from sklearn.metrics.pairwise import euclidean_distances
    from sklearn.svm import SVR

    assert isinstance(model, SupportVectors)
    n, n_tasks = sample.labels.shape
    distances = euclidean_distances(sample.features, squared=True).astype(np.float64)
    gammas, intercepts = np.zeros(n_tasks), np.zeros(n_tasks)
    coefficients = np.zeros((n_tasks, n))
    for task in range(n_tasks):
        labels = sample.labels[:, task].astype(np.float64)
        has_label = np.isfinite(labels)
        known = np.flatnonzero(has_label)
        # What gamma is a multiple of, as gamma="scale" of scikit-learn.
        scale = 1 / max(sample.features.shape[1] * float(sample.features[known].var(dtype=np.float64)), 1e-12)
        gamma, c, epsilon = _choose(distances * scale, labels, list(sample.inner(has_label)), options)
        gammas[task] = gamma * scale
        solution = SVR(kernel="precomputed", C=c, epsilon=epsilon, tol=TOLERANCE)
        solution.fit(np.exp(-gammas[task] * distances[np.ix_(known, known)]), labels[known])
        coefficients[task, known[solution.support_]] = solution.dual_coef_[0]
        intercepts[task] = solution.intercept_[0]
    used = np.flatnonzero(coefficients.any(0))
    model.support = torch.from_numpy(sample.features[used])
    model.coefficients = torch.from_numpy(coefficients[:, used]).float().contiguous()
    model.gamma, model.intercept = torch.from_numpy(gammas).float(), torch.from_numpy(intercepts).float()


def _choose(
    distances: NDArray[np.float64],
    labels: NDArray[np.float64],
    folds: Sequence[tuple[NDArray[np.bool_], NDArray[np.bool_]]],
    options: Options,
) -> tuple[float, float, float]:
    """gamma, C and epsilon with the least squared error over the inner folds, of those that are not given."""
    from sklearn.svm import SVR

    tried = {
        name: (options[name],) if options[name] else values if folds else (values[len(values) // 2],)
        for name, values in GRID.items()
    }

    @lru_cache(maxsize=1)  # trials of the same gamma come one after the other
    def kernel(gamma: float) -> NDArray[np.float64]:
        return np.exp(-gamma * distances)

    def error(trial: tuple[float, float, float]) -> float:
        gamma, c, epsilon = trial
        total = 0.0
        for fit, held in folds:
            solution = SVR(kernel="precomputed", C=c, epsilon=epsilon, tol=TOLERANCE)
            solution.fit(kernel(gamma)[np.ix_(fit, fit)], labels[fit])
            total += float(np.square(solution.predict(kernel(gamma)[np.ix_(held, fit)]) - labels[held]).sum())
        return total

    trials = list(product(tried["gamma"], tried["C"], tried["epsilon"]))
    return min(trials, key=error) if len(trials) > 1 else trials[0]


def _build(shapes: tuple[Shape, ...], target: Target, options: Options) -> SupportVectors:
    return SupportVectors(n_joined(shapes), len(target.tasks))


register(
    System(
        name="svr",
        title="support vector regression with a Gaussian kernel",
        source="Drucker et al., 1996; scikit-learn's SVR",
        reads=("any",),
        kinds=("regression",),
        options=by_solving(
            C=Option(0.0, f"ours: inverse penalty; {CHOSEN}", low=0),
            epsilon=Option(0.0, f"ours: error on -0.5 .. +0.5 that counts for nothing; {CHOSEN}", low=0),
            gamma=Option(0.0, f"times 1 / (F x variance), scikit-learn's 'scale'; {CHOSEN}", low=0),
            inner_folds=inner_folds(),
        ),
        build=_build,
        fit=fit_svr,
        least_labels=2,
        fit_bytes=lambda n_images, shapes: 40 * n_images**2,  # every image is compared with every other
    )
)
