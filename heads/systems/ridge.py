"""Ridge regression: the baseline that every head has to beat."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.errors import TrainingError
from heads.systems.system import Option, System, register
from heads.training import Epoch, Standardise, Task

ALPHAS = np.logspace(0, 6, 25)


class LinearMap(nn.Module):
    """(N, F) or (N, B, T, F) features, flattened, to (N, K)."""

    def __init__(self, n_features: int, n_tasks: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_tasks)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features.flatten(1))
        return out


def build(shape: tuple[int, ...], n_tasks: int, options: Mapping[str, Any]) -> nn.Module:
    model = LinearMap(int(np.prod(shape)), n_tasks)
    return Standardise(shape, model) if options["standardise"] else model


def fit(model: nn.Module, task: Task, options: Mapping[str, Any]) -> list[Epoch]:
    """Solve for the weights: the penalty of each task is chosen on the inner part, then all rows are used.

    Raises:
        TrainingError: a task has fewer than two labels in the training part.
    """
    from sklearn.linear_model import Ridge

    rows = np.concatenate([task.fit_rows, task.inner_rows])
    if isinstance(model, Standardise):
        model.learn(task.features, rows)
    features = _standardised(model, task, rows)
    n_fit = len(task.fit_rows)
    linear = _linear(model)
    for k in range(task.labels.shape[1]):
        labels = task.labels[rows, k]
        known = np.isfinite(labels)
        fitting = known & (np.arange(len(rows)) < n_fit)
        inner = known & ~fitting
        if fitting.sum() < 2:
            raise TrainingError(f"ridge: task {k} has {fitting.sum()} labels in a training part; at least 2 are needed")
        alpha = options["alpha"] or _choose_alpha(features[fitting], labels[fitting], features[inner], labels[inner])
        solution = Ridge(alpha=alpha).fit(features[known], labels[known])
        linear.weight.data[k] = torch.from_numpy(solution.coef_.astype(np.float32))
        linear.bias.data[k] = float(solution.intercept_)
    return []


def _choose_alpha(
    features: NDArray[np.float32], labels: NDArray[Any], inner: NDArray[np.float32], inner_labels: NDArray[Any]
) -> float:
    """The penalty with the least squared error on the inner part, from one factorisation for all of them."""
    if not len(inner_labels):
        return float(np.median(ALPHAS))
    mean, label_mean = features.mean(0), labels.mean()
    values, vectors = np.linalg.eigh((features - mean) @ (features - mean).T.astype(np.float64))
    projected = vectors.T @ (labels - label_mean)
    across = (inner - mean) @ (features - mean).T.astype(np.float64) @ vectors
    errors = [
        np.square(across @ (projected / (np.maximum(values, 0) + alpha)) + label_mean - inner_labels).mean()
        for alpha in ALPHAS
    ]
    return float(ALPHAS[int(np.argmin(errors))])


def _standardised(model: nn.Module, task: Task, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    out = np.empty((len(rows), int(np.prod(task.features.shape))), np.float32)
    place = {int(row): i for i, row in enumerate(rows)}
    for found, features in task.features.batches(rows, 256):
        ready = model.apply_to(features) if isinstance(model, Standardise) else features
        out[[place[int(row)] for row in found]] = ready.flatten(1).numpy()
    return out


def _linear(model: nn.Module) -> nn.Linear:
    return next(module for module in model.modules() if isinstance(module, nn.Linear))


register(
    System(
        name="ridge",
        title="ridge regression on concatenated features, the baseline",
        source="Hoerl and Kennard, 1970; scikit-learn's Ridge",
        layout="concat",
        repeats=1,
        options={
            "alpha": Option(0.0, "ours: 0 chooses it per task on the inner part", low=0),
            "inner": Option(0.15, "ours: share of the training folds that chooses alpha", low=0, high=1),
            "standardise": Option(True, "ours: every feature, on the training rows"),
        },
        build=build,
        fit=fit,
    )
)
