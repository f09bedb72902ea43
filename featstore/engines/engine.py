"""The interface of an engine, its arithmetic, and how it is checked against the reference."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.errors import BackboneError, DeviceLostError
from featstore.identity import TOLERANCE
from featstore.support import device_full, device_lost, reason_of

TUNED = ContextVar("TUNED", default=True)
"""Whether cuDNN looks for the fastest convolutions."""
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def placed(network: Network, device: torch.device, precision: str) -> Network:
    """The network on a device, channels last.

    On a GPU, weights of products are kept in half precision where mixed precision would round them so at each pass.
    """
    network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if device.type == "cuda" and precision in HALVES:
        exact = {part for module in network.modules() if getattr(module, "exact", False) for part in module.modules()}
        for module in network.modules():
            # Others may compute with their weights in float32 first.
            if type(module) in (nn.Conv2d, nn.Linear) and module not in exact:
                module.to(HALVES[precision])
    return network


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
    """Float32 is multiplied as TF32 or as it is; afterwards all is as the program had it."""
    backends: Any = torch.backends
    places = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    before = [place.fp32_precision for place in places]
    autotune = torch.backends.cudnn.benchmark
    try:
        for place in places:
            place.fp32_precision = "tf32" if tf32 else "ieee"
        # The fastest convolution for the shapes at hand is looked for once: they never change during a run.
        torch.backends.cudnn.benchmark = TUNED.get()
        yield
    finally:
        torch.backends.cudnn.benchmark = autotune
        for place, precision in zip(places, before, strict=True):
            place.fp32_precision = "none"  # as the setting above it says, if that comes to the same
            if place.fp32_precision != precision:
                place.fp32_precision = precision


@contextmanager
def untuned() -> Iterator[None]:
    """Inside, no convolution looks for its fastest way: for what runs once or twice."""
    token = TUNED.set(False)
    try:
        yield
    finally:
        TUNED.reset(token)


@contextmanager
def refusing(card: Card, blocks: Tensor) -> Iterator[None]:
    """Say which backbone cannot run on what, in place of what PyTorch says."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, ValueError) as error:
        if device_full(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if device_lost(error):
            raise _lost(blocks.device, error) from error
        raise BackboneError(
            f"backbone {card.name!r} cannot run on blocks of {blocks.shape[2]}x{blocks.shape[1]} pixels: {error}"
        ) from error


@contextmanager
def until_lost(device: torch.device) -> Iterator[None]:
    """Say that a device is lost, or its memory full, in place of what CUDA says, whichever of its calls it was."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        if device_full(error):
            raise torch.OutOfMemoryError(str(error)) from error
        if device_lost(error):
            raise _lost(device, error) from error
        raise


def _lost(device: torch.device, error: BaseException) -> DeviceLostError:
    return DeviceLostError(
        f"{device} computes no more: {reason_of(error)}; what was computed is kept, and the same command goes on from "
        "there, with --device cpu if the GPU is gone"
    )


def try_network(network: Network, card: Card, shape: tuple[int, ...], *, device: torch.device, precision: str) -> None:
    """Run a network once on noise, (T, height, width, 3).

    Raises:
        BackboneError: it refuses blocks of this size.
    """
    blocks = _noise(shape, device)
    with refusing(card, blocks), untuned(), arithmetic(precision, device):
        network(blocks)


def compare(engine: Engine, plain: Engine, shape: tuple[int, ...], *, device: torch.device, precision: str) -> None:
    """Hold the features of an engine against those of the eager one, on pictures, (T, height, width, 3).

    Raises:
        BackboneError: they are further apart than the precision allows, or the eager ones are no numbers.
    """
    blocks = _pictures(shape, device)
    ends = [0, -1] if len(blocks) > 1 else [0]
    blocks[-1] //= 8  # a dark one is another for a network
    with untuned():
        expected = plain.run(blocks[ends])
    if not all(bool(theirs.isfinite().all()) for theirs in expected):
        raise BackboneError(f"there is nothing to compare it with: eager features in {precision} are not finite")
    for all_ours, theirs in zip(engine.run(blocks), expected, strict=True):
        ours = all_ours[ends]
        apart = float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-12))
        if not apart <= TOLERANCE[precision]:
            raise BackboneError(f"its features are {apart:.1e} from the eager ones, more than {TOLERANCE[precision]}")


def _pictures(shape: tuple[int, ...], device: torch.device) -> Tensor:
    """Large shapes with a little noise, as in photos: pure noise may be more than half precision holds."""
    n, height, width, _ = shape
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(n, 3, 6, 8, generator=generator).to(device)
    fine = nn.functional.interpolate(coarse, (height, width), mode="bilinear").permute(0, 2, 3, 1)
    return (223 * fine).to(torch.uint8) + _noise(shape, device) // 8


def _noise(shape: tuple[int, ...], device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator).to(device)
