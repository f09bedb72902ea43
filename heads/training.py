"""The loop: optimiser, early stopping, standardisation.

Early stopping looks at an inner part of the training rows, never at the rows that a fold is tested on.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.batches import Features
from heads.errors import TrainingError
from heads.prediction import predict_rows


@dataclass(frozen=True)
class Epoch:
    """One line of a model's history; losses are sums over the tasks of mean squared errors."""

    epoch: int
    train_loss: float
    val_loss: float
    best: bool = False
    """The epoch whose weights were kept."""


@dataclass(frozen=True)
class Task:
    """What one model learns from: features and scaled labels (N, K), NaN where there is none."""

    features: Features
    labels: NDArray[np.float32]
    fit_rows: NDArray[np.int64]
    inner_rows: NDArray[np.int64]
    seed: int
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_epoch: Callable[[int], None] = lambda epoch: None


class Standardise(nn.Module):
    """Zero mean and a standard deviation of `gain` for every feature of every backbone, then the model.

    The statistics are over the images and blocks of the training rows and travel with the weights. Features
    that do not vary, padding among them, become 0.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, shape: tuple[int, ...], model: nn.Module, *, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = gain
        kept = (shape[0], 1, shape[2]) if len(shape) == 3 else shape  # one statistic for all blocks
        self.model = model
        self.register_buffer("mean", torch.zeros(kept))
        self.register_buffer("scale", torch.ones(kept))

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.model(self.apply_to(features))
        return out

    def attention(self, features: Tensor) -> tuple[Tensor, Tensor]:
        attention: tuple[Tensor, Tensor] = self.model.attention(self.apply_to(features))  # type: ignore[operator]
        return attention

    def apply_to(self, features: Tensor) -> Tensor:
        return (features - self.mean) * self.scale

    def learn(self, features: Features, rows: NDArray[np.int64]) -> None:
        """One pass over the named rows, counted from the first of them so that little is lost to rounding."""
        origin = total = squares = torch.zeros(())
        count = 0
        for _, values in features.batches(rows, 64):
            axes = (0, 2) if values.ndim == 4 else (0,)
            if not count:
                origin = (values[0][:, :1] if values.ndim == 4 else values[0]).clone()
            away = values - origin
            total = total + away.sum(axes, dtype=torch.float64)
            squares = squares + away.square().sum(axes, dtype=torch.float64)
            count += values.numel() // total.numel()
        offset = (total / count).view_as(self.mean)
        mean = origin + offset
        variance = ((squares / count).view_as(self.mean) - offset.square()).clamp_min(0)
        varies = variance > 1e-8 * mean.square() + 1e-12
        self.mean.copy_(mean)
        self.scale.copy_(torch.where(varies, self.gain * variance.clamp_min(1e-30).rsqrt(), 0.0))


def fit_by_gradient(model: nn.Module, task: Task, options: Mapping[str, Any]) -> list[Epoch]:
    """Adam until the inner part has not improved for `patience` epochs; the best weights are put back.

    Raises:
        TrainingError: the loss is no longer a number.
    """
    if isinstance(model, Standardise):
        model.learn(task.features, task.fit_rows)
    model.to(task.device)
    labels = torch.from_numpy(task.labels).to(task.device)
    optimiser = torch.optim.Adam(model.parameters(), lr=options["lr"], weight_decay=options["weight_decay"], fused=True)
    rng = np.random.default_rng(task.seed)
    history: list[Epoch] = []
    best: tuple[float, int, dict[str, Tensor]] = (float("inf"), -1, {})
    for epoch in range(options["epochs"]):
        train_loss = _train_epoch(model, task, labels, optimiser, rng, options["batch"])
        val_loss = _loss_on(model, task, labels, task.inner_rows)
        if not np.isfinite(train_loss + val_loss):
            raise TrainingError(
                f"the loss is not a number after epoch {epoch + 1}; try a lower rate, --set lr={options['lr'] / 10:g}"
            )
        history.append(Epoch(epoch, train_loss, val_loss))
        task.on_epoch(epoch + 1)
        if val_loss < best[0]:
            best = (val_loss, epoch, {name: value.clone() for name, value in model.state_dict().items()})
        elif epoch - best[1] >= options["patience"]:
            break
    model.load_state_dict(best[2])
    return [Epoch(e.epoch, e.train_loss, e.val_loss, best=e.epoch == best[1]) for e in history]


def masked_loss(predicted: Tensor, labels: Tensor) -> Tensor:
    """The sum over tasks of each task's mean squared error over its known labels; (N, K) both."""
    known = labels.isfinite()
    errors = torch.where(known, predicted - labels.nan_to_num(), 0.0).square()
    return (errors.sum(0) / known.sum(0).clamp_min(1)).sum()


def _train_epoch(
    model: nn.Module,
    task: Task,
    labels: Tensor,
    optimiser: torch.optim.Optimizer,
    rng: np.random.Generator,
    batch: int,
) -> float:
    model.train()
    total = 0.0
    for rows, values in task.features.batches(task.fit_rows, batch, rng=rng):
        optimiser.zero_grad(set_to_none=True)
        loss = masked_loss(model(values.to(task.device)), labels[torch.from_numpy(rows)])
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.item() * len(rows)
    return total / len(task.fit_rows)


def _loss_on(model: nn.Module, task: Task, labels: Tensor, rows: NDArray[np.int64]) -> float:
    predicted = predict_rows(model, task.features, rows, task.device)
    return float(masked_loss(torch.from_numpy(predicted), labels[torch.from_numpy(rows)].cpu()))
