"""The cost of training a network from pixels, worked out before anything is trained: arithmetic, memory, time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from featstore.support import size
from heads.errors import TrainingError
from heads.systems.system import Shape

PROBED = 2
"""Photos that are counted: batch norm takes no single one."""
BACKWARD = 2
"""Of the arithmetic forward, what the gradients take."""


@dataclass(frozen=True)
class Cost:
    """What one photo costs a network."""

    flop: int
    """Of a pass forward; a multiply-add is two."""
    activation_bytes: int
    """That a pass forward keeps for the gradients, in float32."""
    n_parameters: int
    """Of the model."""

    @property
    def training_flop(self) -> int:
        """Of a step: forward, and the gradients."""
        return (1 + BACKWARD) * self.flop


def cost_of(model: nn.Module, shapes: Sequence[Shape]) -> Cost | None:
    """Count what a photo costs a model; None of a model that cannot be run without values.

    Args:
        model: built on the device `meta`, where nothing is computed and nothing takes memory.
        shapes: of a stored photo, for each tensor of pixels.
    """
    from torch.utils.flop_counter import FlopCounterMode  # with it, half a second of modules

    pixels = [torch.empty(PROBED, *shape, dtype=torch.uint8, device="meta") for shape in shapes]
    weights = {value.untyped_storage()._cdata for value in (*model.parameters(), *model.buffers())}
    kept: dict[int, Tensor] = {}

    def keep(value: Tensor) -> Tensor:
        if value.untyped_storage()._cdata not in weights:
            kept[value.untyped_storage()._cdata] = value
        return value

    counter = FlopCounterMode(display=False)
    try:
        with counter, torch.autograd.graph.saved_tensors_hooks(keep, lambda value: value):
            model.train()(*pixels)
    except (RuntimeError, NotImplementedError, ValueError, TypeError):
        return None
    n_bytes = sum(value.untyped_storage().nbytes() for value in kept.values())
    return Cost(
        flop=int(counter.get_total_flops()) // PROBED,
        activation_bytes=n_bytes // PROBED,
        n_parameters=sum(value.numel() for value in model.parameters()),
    )


def photos_at_a_time(cost: Cost, batch: int, n_bytes: int, name: str) -> int:
    """How many photos of a minibatch may go through a network at a time; 0 if that is all of them.

    Args:
        n_bytes: what is left for them.
        name: of the system, for the message.

    Raises:
        TrainingError: not even one fits.
    """
    if cost.activation_bytes * batch <= n_bytes:
        return 0
    if cost.activation_bytes > n_bytes:
        raise TrainingError(
            f"{name!r} keeps {size(cost.activation_bytes)} for the gradients of one photo, and of the memory allowed "
            f"{size(max(n_bytes, 0))} are left; allow more with --memory, or take a smaller --set crop="
        )
    return int(n_bytes // cost.activation_bytes)
