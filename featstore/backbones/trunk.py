"""A trunk: a network of any source, opened where its features can be taken."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones.card import AVG, CLS, LAST, LOGITS, MAX, TOKENS, Output
from featstore.errors import BackboneError


@dataclass(frozen=True)
class Map:
    """What a layer gives for T pictures: F features at each of P positions, and those of tokens that have no place."""

    positions: Tensor
    """(T, F, P)"""
    prefix: Tensor | None = None
    """(T, n, F), the class token first."""

    def pool(self, pooling: str) -> Tensor:
        """(T, F) in float32; of tokens (T, P, F).

        Raises:
            BackboneError: there is no class token, or nothing else.
        """
        if pooling != CLS and not self.positions.shape[-1]:
            raise BackboneError("its last layer keeps the class token only; say own or cls")
        if pooling == AVG:
            return self.positions.mean(-1, dtype=torch.float32)
        if pooling == MAX:
            return self.positions.amax(-1).float()
        if pooling == TOKENS:
            return self.positions.transpose(1, 2).float()
        if pooling == CLS and self.prefix is not None:
            return self.prefix[:, 0].float()
        raise BackboneError("it has no class token; say own, avg, max or tokens")


class Trunk:
    """A network that gives one map, as those of ours do; sources that know more have a subclass."""

    layers: tuple[str, ...] = ()
    """The names of the layers that can be had besides the last, from the first on."""

    def __init__(self, net: nn.Module) -> None:
        self.net = net
        """What runs, has the weights, and is moved to a device."""

    def features(self, pixels: Tensor, outputs: Sequence[Output]) -> tuple[Tensor, ...]:
        """Normalised pixels (T, 3, height, width) -> each of the outputs, in one pass, (T, F) or (T, P, F) float32.

        Raises:
            BackboneError: the network does not have one of them.
        """
        layers = {output.layer for output in outputs if output.layer != LAST}
        last, maps = self.run(pixels, layers=[name for name in self.layers if name in layers])
        by_itself = (Output(), Output(pooling=LOGITS))  # a network with its classifier makes logits of a picture
        if any(output.layer == LAST and output not in by_itself for output in outputs):
            maps[LAST] = self.last_map(last)
        return tuple(
            self.own(last).float() if output in by_itself else maps[output.layer].pool(output.pooling)
            for output in outputs
        )

    def run(self, pixels: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Map]]:
        """What the last layer gives, as `own` and `last_map` take it, and the maps of some layers."""
        return self.net(pixels), {}

    def own(self, last: Any) -> Tensor:
        """The feature that the network itself makes of its last layer, (T, F)."""
        if isinstance(last, Tensor) and last.ndim == 2:
            return last
        raise BackboneError("it makes no vector of a picture; say avg, max or tokens")

    def last_map(self, last: Any) -> Map:
        """The map of the last layer.

        Raises:
            BackboneError: it has none that is known here.
        """
        return to_map(last)


def to_map(features: Any, *, channels_last: bool = False, n_prefix: int = 0) -> Map:
    """A map from what a network gives: (T, F), (T, F, h, w), (T, h, w, F) or (T, n_prefix + P, F).

    Raises:
        BackboneError: it is none of these.
    """
    if not isinstance(features, Tensor) or not 2 <= features.ndim <= 4:
        raise BackboneError("its last layer is no map of features; say own")
    if features.ndim == 2:
        return Map(features.unsqueeze(2))
    if features.ndim == 4:
        return Map((features.permute(0, 3, 1, 2) if channels_last else features).flatten(2))
    prefix = features[:, :n_prefix] if n_prefix else None
    return Map(features[:, n_prefix:].transpose(1, 2), prefix)
