"""Standardising features to zero mean and equal spread, with statistics of the training rows, kept with the weights."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.systems.system import Shape
from heads.training.features import MINIBATCH, Group


class Standardised(nn.Module):
    """A model whose features have zero mean and a standard deviation of `gain`, for every feature of every backbone.

    The statistics of a stack are over images and blocks. Features that do not vary, padding among them, become 0.
    Training prepares minibatches with `prepare` and calls `model`; everybody else calls this module.

    Args:
        shapes: of a row of each tensor: (B, T, F) of a stack, (F,) of a concat, or any other.
        layouts: of each tensor; a `stack` has one statistic for all blocks.
    """

    def __init__(
        self, shapes: tuple[Shape, ...], model: nn.Module, *, layouts: tuple[str, ...], gain: float = 1.0
    ) -> None:
        super().__init__()
        self.model, self.gain = model, gain
        self._rows = list(zip(shapes, [layout == "stack" for layout in layouts], strict=True))
        for number, (shape, stack) in enumerate(self._rows):
            kept = (shape[0], 1, shape[2]) if stack else shape
            self.register_buffer(f"offset{number}", torch.zeros(kept))
            self.register_buffer(f"scale{number}", torch.ones(kept))

    def forward(self, *features: Tensor) -> Tensor:
        out: Tensor = self.model(*self._ready(features))
        return out

    def prepare(self, number: int, features: Tensor) -> None:
        """Standardise features of the tensor of that number in place."""
        torch.addcmul(self._of("offset", number), features, self._of("scale", number), out=features)

    def moments(self) -> "list[Moments]":
        """Empty statistics of each tensor, to be counted and given to `learn`."""
        return [Moments(shape, stack=stack) for shape, stack in self._rows]

    def learn(self, number: int, moments: "Moments") -> None:
        """Take the statistics of the tensor of that number."""
        mean, variance = moments.result()
        varies = variance > 1e-8 * mean.square() + 1e-12
        scale = torch.where(varies, self.gain * variance.clamp_min(1e-30).rsqrt(), 0.0)
        self._of("scale", number).copy_(scale.view_as(self._of("scale", number)))
        self._of("offset", number).copy_((-mean * scale).view_as(self._of("offset", number)))

    def _of(self, kind: str, number: int) -> Tensor:
        return self.get_buffer(f"{kind}{number}")

    def _ready(self, features: tuple[Tensor, ...]) -> list[Tensor]:
        return [
            torch.addcmul(self._of("offset", number), each, self._of("scale", number))
            for number, each in enumerate(features)
        ]


class Moments:
    """Mean and variance of features that come a few rows at a time, over rows, and over the blocks of a stack.

    They are counted from the first row, so that little is lost to rounding.

    Args:
        shape: of one row.
        stack: whether it is (B, T, F), blocks of which share their statistics.
    """

    def __init__(self, shape: Shape, *, stack: bool) -> None:
        self._shape, self._stack, self._n = shape, stack, 0

    def add(self, features: Tensor) -> None:
        """One row or more, (..., *shape)."""
        features = features.view(-1, *self._shape)
        axes = (0, 2) if self._stack else (0,)
        if not self._n:
            self._origin = (features[0, :, :1] if self._stack else features[0]).clone()
            self._sum = self._squares = torch.zeros((), dtype=torch.float64)
        away = features - self._origin
        self._sum = self._sum + away.sum(axes).double()
        self._squares = self._squares + away.square_().sum(axes).double()
        self._n += features.numel() // self._sum.numel()

    def result(self) -> tuple[Tensor, Tensor]:
        """Mean and variance, (B, F) of a stack, or else of the shape of a row."""
        offset = self._sum / self._n
        variance = (self._squares / self._n - offset.square()).clamp_min(0)
        return self._origin.view_as(offset) + offset, variance


def count(moments: Sequence[Moments], group: Group, rows: NDArray[np.int64]) -> None:
    """Count those of the rows that a group holds, each tensor in its moments, while they are in the cache."""
    held = group.holds(rows)
    for start in range(0, len(held), MINIBATCH):
        some = held[start : start + MINIBATCH]
        group.batch(some, lambda number, part: moments[number].add(part), group.device)
