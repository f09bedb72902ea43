"""The interface of an engine, its arithmetic, and how it is checked against the reference."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Protocol

import torch
from torch import Tensor

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.errors import BackboneError, ConfigError
from featstore.identity import TOLERANCE

NO_MEMORY = ("out of memory", "ALLOC_FAILED")  # how CUDA's libraries say it, other than by PyTorch's own exception
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Engine(Protocol):
    """Whatever can run a frozen network over blocks of pixels."""

    name: str

    def run(self, blocks: Tensor) -> Sequence[Tensor]:
        """(T, height, width, 3) uint8 on the engine's device -> each of the network's outputs, (T, F) float32.

        Of P tokens it is (T, P, F). They are still being computed maybe.

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
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        if device.type == "cuda":
            stack.enter_context(_cuda_flags(tf32=precision == "tf32"))
        if precision in HALVES:
            stack.enter_context(torch.autocast(device.type, dtype=HALVES[precision]))
        yield


@contextmanager
def _cuda_flags(*, tf32: bool) -> Iterator[None]:
    try:
        before = torch.backends.cuda.matmul.allow_tf32
        # The fastest convolution for the shapes at hand is looked for once: they never change during a run.
        flags = torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=tf32)
        flags.__enter__()
    except RuntimeError as error:
        raise ConfigError(
            "this program has set PyTorch's `fp32_precision`, which does not go with `allow_tf32`, "
            f"which featstore sets for each run; leave it at its default: {error}"
        ) from error
    torch.backends.cuda.matmul.allow_tf32 = tf32
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
        flags.__exit__(None, None, None)


@contextmanager
def refusing(card: Card, blocks: Tensor) -> Iterator[None]:
    """Say which backbone cannot run on what, in place of what PyTorch says."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        if any(sign in str(error) for sign in NO_MEMORY):
            raise torch.OutOfMemoryError(str(error)) from error
        raise BackboneError(
            f"backbone {card.name!r} cannot run on blocks of {blocks.shape[2]}x{blocks.shape[1]} pixels: {error}"
        ) from error


def try_network(network: Network, card: Card, shape: tuple[int, ...], device: torch.device) -> None:
    """Run a network once on noise, (T, height, width, 3).

    Raises:
        BackboneError: it refuses blocks of this size.
    """
    blocks = _noise(shape, device)
    with refusing(card, blocks), torch.inference_mode():
        network(blocks)


def compare(engine: Engine, plain: Engine, shape: tuple[int, ...], *, device: torch.device, precision: str) -> None:
    """Hold the features of an engine against those of the eager one, on noise, (T, height, width, 3).

    Raises:
        BackboneError: they are further apart than the precision allows.
    """
    blocks = _noise(shape, device)
    ends = [0, -1] if len(blocks) > 1 else [0]
    blocks[-1] //= 8  # two pictures of noise are alike for a network; a dark one is another
    for all_ours, theirs in zip(engine.run(blocks), plain.run(blocks[ends]), strict=True):
        ours = all_ours[ends]
        apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        if not apart <= TOLERANCE[precision]:
            raise BackboneError(f"its features are {apart:.1e} from the eager ones, more than {TOLERANCE[precision]}")


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
