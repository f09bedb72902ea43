"""What an engine is, and the arithmetic that it computes in."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from featstore.backbones.card import Card
from featstore.errors import BackboneError

HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(Protocol):
    """Whatever can run a frozen network over blocks of pixels."""

    name: str

    def run(self, blocks: Tensor, poolings: Sequence[str]) -> dict[str, Tensor]:
        """(T, height, width, 3) uint8 on the engine's device -> by pooling, (T, F) float32, still being computed maybe.

        Raises:
            BackboneError: the network refuses blocks of this size.
            torch.OutOfMemoryError: they do not fit into the device's memory.
        """
        ...

    def release(self) -> None:
        """Let go of what is kept for blocks of the shapes seen so far."""
        ...


@contextmanager
def arithmetic(precision: str, device: torch.device) -> Iterator[None]:
    """Run a network without gradients in an arithmetic class.

    fp32 and tf32 are exact types of the weights; bf16 and fp16 are PyTorch's mixed precision, in which sums and
    normalisations stay in float32. Where a device has no tf32 it computes in fp32, which is within its tolerance.
    """
    tf32 = precision == "tf32"
    cuda = device.type == "cuda"
    before = torch.backends.cuda.matmul.allow_tf32
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        # The fastest convolution for the shapes at hand is looked for once: they never change during a run.
        stack.enter_context(torch.backends.cudnn.flags(enabled=True, benchmark=cuda, allow_tf32=tf32))
        if precision in HALVES:
            stack.enter_context(torch.autocast(device.type, dtype=HALVES[precision]))
        if cuda:
            torch.backends.cuda.matmul.allow_tf32 = tf32
            stack.callback(setattr, torch.backends.cuda.matmul, "allow_tf32", before)
        yield


def pool(maps: Tensor, pooling: str) -> Tensor:
    """(T, F, positions) -> (T, F) in float32."""
    return maps.mean(-1, dtype=torch.float32) if pooling == "avg" else maps.amax(-1).float()


@contextmanager
def refusing(card: Card, blocks: Tensor) -> Iterator[None]:
    """Say which backbone cannot run on what, in place of what PyTorch says."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BackboneError(
            f"backbone {card.name!r} cannot run on blocks of {blocks.shape[2]}x{blocks.shape[1]} pixels: {error}"
        ) from error
