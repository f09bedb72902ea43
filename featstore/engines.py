"""Running a frozen network: 8-bit blocks in, pooled float32 features out.

Each photo is its own batch of T blocks, always of the same shape, so that no feature depends on which
photos happened to be computed beside it.
"""

from collections.abc import Iterable
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from featstore.backbones.card import Card
from featstore.backbones.networks import Network
from featstore.errors import BackboneError, ConfigError


class Engine(Protocol):
    """Whatever can run a network over blocks."""

    def run(self, blocks: NDArray[np.uint8], poolings: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        """(T, height, width, 3) pixels -> by pooling, (T, F) features."""
        ...


class EagerEngine:
    """PyTorch as it is, in float32, channels last.

    Raises:
        BackboneError: the network refuses blocks of this size, or gives another width than its card says.
    """

    name = "eager"

    def __init__(self, network: Network, card: Card, *, device: torch.device) -> None:
        self._card, self._device = card, device
        self._network = network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def run(self, blocks: NDArray[np.uint8], poolings: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        with torch.inference_mode(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
            try:
                maps = self._network(torch.from_numpy(blocks).to(self._device))
            except (RuntimeError, AssertionError, ValueError) as error:
                raise BackboneError(
                    f"backbone {self._card.name!r} cannot run on blocks of {blocks.shape[2]}x{blocks.shape[1]} "
                    f"pixels: {error}"
                ) from error
            pooled = {pooling: _pool(maps, pooling).float().cpu().numpy() for pooling in poolings}
        for features in pooled.values():
            if features.shape != (len(blocks), self._card.width):
                raise BackboneError(
                    f"backbone {self._card.name!r} gave features of shape {features.shape}, "
                    f"expected {(len(blocks), self._card.width)}"
                )
        return pooled


def choose_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one.

    Raises:
        ConfigError: no such device, or CUDA was asked for and there is none.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; say auto, cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for and PyTorch finds no CUDA GPU; say --device cpu")
    try:
        torch.empty(1, device=device).cpu()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"device {name!r} cannot be used here: {error}") from error
    return device


def describe_device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _pool(maps: torch.Tensor, pooling: str) -> torch.Tensor:
    """(T, F, positions) -> (T, F)."""
    return maps.mean(-1) if pooling == "avg" else maps.amax(-1)
