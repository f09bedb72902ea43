"""OpenCLIP: the picture tower of its networks, `open_clip:ViT-B-32/laion2b_s34b_b79k`.

The own feature is what `encode_image` gives: the place of the picture in the space that it shares with text, not of
length one. Layers are `blocks.N` of a ViT, `stem` and `layerN` of a ResNet, and timm's names where the tower is timm's;
the map of the last layer is what its last block gives, before the final norm. Weights that were trained with QuickGELU
run with it, whatever the name of the network says.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import open_clip
import torch
from open_clip.convert import convert_state_dict
from open_clip.model import _build_vision_tower, resize_pos_embed
from open_clip.transform import PreprocessCfg, merge_preprocess_dict
from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.sources.common import check_keys, misfit, near, offline, quiet, unfit, unique
from featstore.backbones.trunk import Map, Trunk, to_map
from featstore.backbones.weights import WeightsPolicy
from featstore.errors import BackboneError, WeightsError
from featstore.photos.views import Crop, View
from featstore.support import few, reason_of

PREFIX = "open_clip:"
QUICK = "-quickgelu"
VISUAL = "visual."
FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
    "pytorch_model.bin",
)


def find(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The card of `ARCHITECTURE/TAG`; without a tag of a network whose weights are named.

    Raises:
        BackboneError: open_clip has none of that name; says which are near.
    """
    network, _, tag = name.partition("/")
    known = open_clip.list_models()
    if network not in known:
        raise BackboneError(f"backbone {PREFIX + name!r}: unknown network {network!r}; {near(network, known)}")
    tags = open_clip.list_pretrained_tags_by_model(network)
    if tag and tag not in tags:
        said = near(tag, tags)
        told = said if "near" in said else f"it has {few(tags)}"
        raise BackboneError(f"backbone {PREFIX + name!r}: {network} has no weights {tag!r}; {told}")
    facts = _preprocessing(network, tag)
    released = open_clip.get_pretrained_cfg(network, tag) if tag else {}
    quick = bool(released.get("quick_gelu")) and not _config(network).get("quick_gelu")
    hub, hub_file = (released.get("hf_hub") or "").rpartition("/")[::2]
    return Card(
        name=PREFIX + name,
        network=network + (QUICK if quick else ""),
        source="open_clip",
        released=tag,
        mean=_three(facts["mean"]),
        std=_three(facts["std"]),
        hub=hub or None,
        files=(hub_file, *FILES) if hub_file else FILES,
        url=None if hub else released.get("url") or None,
        note="OpenCLIP" + (", with QuickGELU, as its weights were trained" if quick else ""),
    )


def view(card: Card) -> View:
    """The picture as open_clip's preprocessing for these weights makes it."""
    network = _architecture(card)
    facts = _preprocessing(network, card.released)
    height, width = _pair(_config(network)["vision_cfg"].get("image_size", 224))
    mode = facts["resize_mode"]
    fill = (int(facts["fill_color"]),) * 3 if mode == "longest" else None
    crop = None if mode == "squash" else Crop("border" if mode == "longest" else "center", 1.0, fill)
    return View((width, height), interpolation=facts["interpolation"], crop=crop)


def with_any_size(card: Card) -> Card | None:
    """open_clip's networks take one size only."""
    return None


def build(card: Card) -> "OpenClipTrunk":
    """The picture tower with random weights.

    Raises:
        UnfitBackboneError: open_clip cannot build it.
    """
    config = _config(_architecture(card))
    quick = card.network.endswith(QUICK) or bool(config.get("quick_gelu"))
    with quiet():
        try:
            return OpenClipTrunk(_build_vision_tower(config["embed_dim"], config["vision_cfg"], quick))
        except Exception as error:
            raise unfit(card, "open_clip", error) from error


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> "OpenClipTrunk":
    """The picture tower with its part of a state dict of the whole network, through open_clip's own renaming.

    Raises:
        WeightsError: they do not fit.
    """
    trunk = build(card)
    whole = nn.Module()
    whole.visual = trunk.net
    with quiet():
        try:
            state = convert_state_dict(whole, {name.removeprefix("module."): each for name, each in state.items()})
            resize_pos_embed(state, whole)
            told = whole.load_state_dict({n: v for n, v in state.items() if n.startswith(VISUAL)}, strict=False)
        except Exception as error:
            raise WeightsError(misfit(card, file, reason_of(error))) from error
    check_keys(card, file, missing=told.missing_keys, surplus=told.unexpected_keys)
    return trunk


def encode_text(card: Card, state: Mapping[str, Tensor], file: Path, prompts: list[str], *, hub: bool) -> Tensor:
    """The places of prompts in the space of `encode_image`, (prompts, F).

    Args:
        hub: whether a tokenizer may be downloaded; most networks need none.

    Raises:
        WeightsError: the weights do not fit.
        BackboneError: the network of text, or its tokenizer, is not on this machine.
    """
    network = _architecture(card)
    with quiet(), offline(hub), torch.inference_mode():
        try:
            whole = open_clip.create_model(
                network,
                pretrained=None,
                load_weights=False,
                pretrained_text=False,
                force_quick_gelu=card.network.endswith(QUICK),
            ).eval()
            tokens = open_clip.get_tokenizer(network)(prompts)
        except Exception as error:
            raise BackboneError(
                f"backbone {card.name!r}: its network of text, or the tokenizer, is not to be had: {reason_of(error)}"
                + ("" if hub else " (--hub allows the hub)")
            ) from error
        try:
            given = {name.removeprefix("module."): value for name, value in state.items()}
            _load_whole(whole, given)
        except Exception as error:
            raise WeightsError(misfit(card, file, reason_of(error))) from error
        found: Tensor = whole.encode_text(tokens, normalize=False)
        return found.float()


def _load_whole(whole: Any, state: Mapping[str, Tensor]) -> None:
    """As open_clip loads a checkpoint, but of tensors that were read already."""
    reading = open_clip.factory.load_state_dict
    open_clip.factory.load_state_dict = lambda *args, **kwargs: dict(state)
    try:
        open_clip.factory.load_checkpoint(whole, "tensors")
    finally:
        open_clip.factory.load_state_dict = reading


class OpenClipTrunk(Trunk):
    """What `forward_intermediates` of a picture tower gives."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        inner: Any = getattr(net, "trunk", None)
        resblocks: Any = getattr(getattr(net, "transformer", None), "resblocks", ())
        if inner is not None:
            infos = getattr(inner, "feature_info", ()) if hasattr(inner, "forward_intermediates") else ()
            self.layers = unique([str(info["module"]) for info in infos])
            self._has_class = getattr(inner, "cls_token", None) is not None
        else:
            self.layers = tuple(f"blocks.{number}" for number in range(len(resblocks)))
            self.layers = self.layers or ("stem", "layer1", "layer2", "layer3", "layer4")
            self._has_class = bool(resblocks)
        self._tokens = self._has_class or hasattr(inner, "num_prefix_tokens")

    def run(self, pixels: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Map]]:
        net: Any = self.net
        if not self.layers:
            found = net(pixels)
            return (found[0] if isinstance(found, tuple) else found, None), {}
        names = [*layers, *([] if self.layers[-1] in layers else [self.layers[-1]])]  # the last, or it stops before
        extra = {"output_extra_tokens": True} if self._tokens else {}
        found = net.forward_intermediates(pixels, indices=[self.layers.index(name) for name in names], **extra)
        prefixes = found.get("image_intermediates_prefix") or [None] * len(names)
        maps = {
            name: Map(positions.flatten(2), prefix if self._has_class else None)
            for name, positions, prefix in zip(names, found["image_intermediates"], prefixes, strict=True)
        }
        return (found["image_features"], maps[names[-1]]), maps

    def own(self, last: Any) -> Tensor:
        return super().own(last[0])

    def last_map(self, last: Any) -> Map:
        return to_map(None) if last[1] is None else last[1]


def _architecture(card: Card) -> str:
    """open_clip's name of the network; that of the card says as well which activation it runs with."""
    return card.name.removeprefix(PREFIX).partition("/")[0]


def _config(network: str) -> dict[str, Any]:
    config: dict[str, Any] = open_clip.get_model_config(network)
    return config


def _preprocessing(network: str, tag: str) -> dict[str, Any]:
    released = open_clip.get_pretrained_cfg(network, tag) if tag else {}
    facts: dict[str, Any] = merge_preprocess_dict(PreprocessCfg(), released)
    return facts


def _pair(size: Any) -> tuple[int, int]:
    return (int(size), int(size)) if isinstance(size, int | float) else (int(size[0]), int(size[1]))


def _three(values: Sequence[float]) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)
