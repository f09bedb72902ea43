"""Running a trained model over rows: predictions, and what it attended to."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.batches import Features

BATCH = 64


def predict_rows(
    model: nn.Module, features: Features, rows: NDArray[np.int64], device: torch.device
) -> NDArray[np.float32]:
    """Scaled predictions (n, K) in the order of `rows`."""
    return _collect(lambda values: (model(values),), model, features, rows, device)[0]


def attend_rows(
    model: nn.Module, features: Features, rows: NDArray[np.int64], device: torch.device
) -> tuple[NDArray[np.float32], NDArray[np.float32]] | None:
    """Weights of the blocks (n, B, T) and of the backbones by task (n, K, B); None for a model without attention."""
    if not callable(getattr(getattr(model, "model", model), "attention", None)):
        return None
    blocks, backbones = _collect(model.attention, model, features, rows, device)  # type: ignore[arg-type]
    return blocks, backbones


def _collect(
    run: Callable[[Tensor], tuple[Tensor, ...]],
    model: nn.Module,
    features: Features,
    rows: NDArray[np.int64],
    device: torch.device,
) -> list[NDArray[np.float32]]:
    model.eval().to(device)
    place = np.full(int(rows.max(initial=-1)) + 1, -1)
    place[rows] = np.arange(len(rows))
    order: list[NDArray[np.int64]] = []
    parts: list[list[NDArray[np.float32]]] = []
    with torch.inference_mode():
        for found, values in features.batches(rows, BATCH):
            order.append(place[found])
            parts.append([out.float().cpu().numpy() for out in run(values.to(device))])
    back = np.argsort(np.concatenate(order))
    return [np.concatenate(column)[back] for column in zip(*parts, strict=True)]
