"""torchvision: its classification networks, `torchvision:resnet50/IMAGENET1K_V2`; without weights its default ones.

The own feature is what the last linear layer of the classifier is given, or the last convolution where it has no linear
layer (SqueezeNet). Layers are named like the modules: `layer1` of a ResNet, `features.3` where the network is one list,
`encoder.layers.encoder_layer_5` of a ViT.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torchvision import models  # type: ignore[import-untyped]
from torchvision.models import WeightsEnum  # type: ignore[import-untyped]
from torchvision.models.swin_transformer import SwinTransformer  # type: ignore[import-untyped]
from torchvision.models.vision_transformer import VisionTransformer  # type: ignore[import-untyped]

from featstore.backbones.card import Card
from featstore.backbones.sources.common import (
    HookedTrunk,
    check_keys,
    fraction_of,
    given_state,
    misfit,
    near,
    quiet,
    unfit,
    without_wrapper,
)
from featstore.backbones.trunk import Map, to_map
from featstore.backbones.weights import WeightsPolicy
from featstore.errors import BackboneError, WeightsError
from featstore.photos.views import Crop, View
from featstore.support import reason_of

PREFIX = "torchvision:"
HEADS = ("fc", "classifier", "head", "heads")
LISTS = ("features", "layers", "blocks", "trunk_output", "encoder.layers")
"""Modules that are lists of layers: these are named, not the list."""
AUXILIARY = ("aux1", "aux2", "AuxLogits")
"""Classifiers for training, which some networks have half-way."""


def find(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The card of `NETWORK/WEIGHTS`, or of a network with torchvision's default weights.

    Raises:
        BackboneError: torchvision has none of that name, or the network classifies no pictures.
    """
    network, _, weights_name = name.partition("/")
    known = models.list_models(module=models)
    if network not in known:
        other = network in models.list_models()
        reason = "does not classify pictures" if other else f"is not known; {near(network, known)}"
        raise BackboneError(f"backbone {PREFIX + name!r}: the torchvision network {network!r} {reason}")
    choices = models.get_model_weights(network)
    if weights_name and weights_name not in choices.__members__:
        raise BackboneError(
            f"backbone {PREFIX + name!r}: {network} has the weights {', '.join(choices.__members__)}, "
            f"not {weights_name!r}"
        )
    weights = choices[weights_name] if weights_name else choices.DEFAULT
    preset = weights.transforms()
    return Card(
        name=f"{PREFIX}{network}/{weights.name}",
        alias=f"{PREFIX}{network}" if weights is choices.DEFAULT else None,
        network=network,
        source="torchvision",
        released=weights.name,
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        licence=weights.meta.get("license", "BSD-3-Clause"),
        url=weights.url,
        note="torchvision",
    )


def view(card: Card) -> View:
    """The picture as torchvision's preset for these weights makes it."""
    preset = _weights(card).transforms()
    (resized,), (cut,) = preset.resize_size, preset.crop_size
    crop = Crop("center", fraction_of(cut, resized))
    return View((cut, cut), interpolation=preset.interpolation.value, crop=crop)


def with_any_size(card: Card) -> Card | None:
    """Those that take one size only, the ViTs, cannot be told to take another."""
    return None


def build(card: Card) -> HookedTrunk:
    """The network with random weights.

    Raises:
        UnfitBackboneError: torchvision cannot build it.
    """
    with given_state(WeightsEnum, "get_state_dict", None), quiet():
        try:
            return _trunk(models.get_model(card.network, weights=_weights(card)), card)
        except Exception as error:
            raise unfit(card, "torchvision", error) from error


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> HookedTrunk:
    """The network with the weights of a state dict, through torchvision's own builder for these weights.

    Raises:
        WeightsError: they do not fit.
    """
    with given_state(WeightsEnum, "get_state_dict", without_wrapper(state)) as told, quiet():
        try:
            net = models.get_model(card.network, weights=_weights(card))
        except Exception as error:  # of another shape
            raise WeightsError(misfit(card, file, reason_of(error))) from error
    surplus = [name for name in told["surplus"] if name.partition(".")[0] not in AUXILIARY]
    check_keys(card, file, missing=told["missing"], surplus=surplus)
    return _trunk(net, card)


class TorchvisionTrunk(HookedTrunk):
    """A torchvision network, mostly without its last linear layer; Swin's layers have their features last."""

    def to_map(self, layer: str, found: Any) -> Map:
        if isinstance(self.net, SwinTransformer):
            return to_map(found, channels_last=True)
        return super().to_map(layer, found)


def _trunk(net: nn.Module, card: Card) -> TorchvisionTrunk:
    head = next(name for name in HEADS if hasattr(net, name))
    if not card.classifier:
        net.set_submodule(_last_layer(net, head), nn.Identity())
    layers = tuple(_layers(net, head))
    vit = isinstance(net, VisionTransformer)
    final = "encoder.ln" if vit else "norm" if isinstance(net, SwinTransformer) else layers[-1]
    return TorchvisionTrunk(net, layers, final=final, n_prefix=int(vit))


def _last_layer(net: nn.Module, head: str) -> str:
    """The name of the layer that makes classes of features."""
    kinds: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d)
    for kind in kinds:
        names = [name for name, each in net.get_submodule(head).named_modules() if isinstance(each, kind)]
        if names:
            return f"{head}.{names[-1]}".removesuffix(".")
    raise ValueError(f"its {head} has no linear layer")


def _layers(net: nn.Module, head: str, prefix: str = "") -> Iterator[str]:
    for name, child in net.named_children():
        path = f"{prefix}{name}"
        if path in LISTS:
            yield from (f"{path}.{inner}" for inner, _ in child.named_children())
        elif path == "encoder":
            yield from _layers(child, head, prefix="encoder.")
        elif name != head and name not in AUXILIARY and any(child.children()):
            yield path


def _weights(card: Card) -> Any:
    return models.get_model_weights(card.network)[card.released]
