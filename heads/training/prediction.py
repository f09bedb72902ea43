"""Prediction: the outputs of a model for rows of features, and its attention, a batch at a time."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems.layers import Attentive
from heads.training.features import MINIBATCH, Group
from heads.training.losses import predictions
from heads.training.standardising import Standardised

Precision = Literal["fp32", "bf16"]


@dataclass(frozen=True)
class BatchOutput:
    """The outputs of a model for n rows."""

    rows: NDArray[np.int64]
    outputs: Tensor
    """(n, n_outputs), float32."""
    attention: dict[str, Tensor]
    """(n, ...) by name; empty for a model without attention, or if it was not asked for."""


def run(
    module: nn.Module,
    group: Group,
    rows: NDArray[np.int64],
    *,
    device: torch.device,
    precision: Precision = "fp32",
    attend: bool = False,
) -> Iterator[BatchOutput]:
    """The outputs of a model for the rows that a group holds, a batch at a time."""
    module.eval()
    inside, prepare = parts(module)
    for some in cut(group.holds(rows), MINIBATCH):
        found, features = group.batch(some, prepare, device)
        with torch.inference_mode(), arithmetic(precision, device):
            outputs, seen = (
                inside.attend(*features) if attend and isinstance(inside, Attentive) else (inside(*features), {})
            )
        yield BatchOutput(found, outputs.float(), {name: value.float().cpu() for name, value in seen.items()})


def collect(
    said: list[BatchOutput], rows: NDArray[np.int64], target: Target
) -> tuple[NDArray[np.float32], dict[str, NDArray[np.float32]]]:
    """Scaled ratings or probabilities (n, n_outputs), and attention, in the order of `rows`."""
    if not said:
        return np.zeros((0, target.n_outputs), np.float32), {}
    found = np.concatenate([each.rows for each in said])
    back = np.empty(len(rows), np.int64)
    back[np.argsort(rows)] = np.argsort(found)
    predicted = predictions(target, torch.cat([each.outputs for each in said])).cpu().numpy()[back]
    names = said[0].attention
    return predicted, {name: torch.cat([each.attention[name] for each in said]).numpy()[back] for name in names}


def parts(module: nn.Module) -> tuple[Any, Any]:
    """The model itself, and what prepares its features in place (None if nothing does)."""
    return (module.model, module.prepare) if isinstance(module, Standardised) else (module, None)


def arithmetic(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def cut(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Parts of even size, as near to `size` as can be: 804 rows by 32 are 25 parts of 32 or 33."""
    return np.array_split(rows, max(1, round(len(rows) / size))) if len(rows) else []
