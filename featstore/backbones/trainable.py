"""Networks to be trained: as they were released, or with random weights, and without their classifier."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from featstore.backbones.card import Output
from featstore.backbones.networks import build_network, state_digest
from featstore.backbones.registry import find_card
from featstore.backbones.sources import find_source
from featstore.backbones.trunk import Trunk
from featstore.backbones.weights import WeightsPolicy, resolve_weights
from featstore.errors import BackboneError, MissingWeightsError, WeightsError


@dataclass(frozen=True, eq=False)
class Trainable:
    """A network without its classifier, whose weights may be trained."""

    net: nn.Module
    """What has the weights; a part of the model that is trained."""
    mean: tuple[float, float, float]
    """Of red, green and blue in 0 .. 1, which is taken off the pixels of a picture."""
    std: tuple[float, float, float]
    """By which they are divided after that."""
    trunk: Trunk
    """The same network, as its source runs it."""
    own: str
    """How the network itself pools its last map."""

    def pooled(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (N, 3, height, width) -> the network's own feature (N, F)."""
        (feature,) = self.trunk.features(pictures, (Output(pooling=self.own),))
        return feature

    def map(self, pictures: Tensor) -> Tensor:
        """Normalised pictures (N, 3, height, width) -> its last map (N, F, h, w).

        Raises:
            BackboneError: it has none, as a network of tokens.
        """
        last, _ = self.trunk.run(pictures, ())
        if not isinstance(last, Tensor) or last.ndim != 4:
            raise BackboneError("its last layer is no map (N, F, h, w); name a convolutional network")
        return last


def open_trainable(name: str, *, options: Mapping[str, Any] | None = None) -> Trainable:
    """A network by name, with random weights that torch's generator draws.

    Args:
        name: as `featstore extract --backbones` takes it.
        options: what its source is told besides, as `layers` of a ResNet of timm.

    Raises:
        BackboneError: no such network, or it cannot be built so.
    """
    card = find_card(name)
    card = replace(card, options=(*card.options, *sorted((options or {}).items())))
    trunk: Trunk = find_source(card.source).build(card)
    if card.batch_norm_eps is not None:
        for module in trunk.net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = card.batch_norm_eps
    return Trainable(trunk.net, card.mean, card.std, trunk, card.own)


def released_weights(name: str, policy: WeightsPolicy | None = None) -> tuple[dict[str, Tensor], str]:
    """The weights of a network without its classifier, by the names of `Trainable.net`, and their SHA-256.

    Raises:
        BackboneError: no such network.
        WeightsError: the weights are not to be had, are damaged, or do not fit.
    """
    card, policy = find_card(name), policy or WeightsPolicy()
    try:
        weights = resolve_weights(card, policy)
    except MissingWeightsError as error:
        place = policy.folder / f"{card.file_stem}.safetensors"
        where = f", {card.files[0]} of {card.hub} on the hub" if card.hub else ""
        raise WeightsError(
            f"no weights for {card.name!r} on this machine; put the file at {place} (or .pth{where}), "
            "or allow the hub: `hub = true` in featstore.toml"
        ) from error
    with torch.device("cpu"):
        net = build_network(card, weights).net
    state = net.state_dict()
    return state, state_digest(state)
