"""timm: networks as they were released; timm builds, loads, pools and says what pictures they take."""

import functools
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.names import unknown_backbone
from featstore.backbones.sources.common import LOADING, unique, without_wrapper
from featstore.backbones.trunk import Map, Trunk, to_map
from featstore.backbones.weights import WeightsPolicy
from featstore.errors import BackboneError, UnfitBackboneError, WeightsError
from featstore.photos.views import Crop, View
from featstore.support import few

DYNAMIC = ("dynamic_img_size", True)
"""The option by which timm's transformers take pictures of other sizes than their own."""


def find(name: str, policy: WeightsPolicy | None = None) -> Card:
    """The card of a network by timm's name, with or without `.tag`.

    Raises:
        UnknownBackboneError: timm has none of that name; says what timm calls it, or which names are near.
    """
    architecture, _, tag = name.partition(".")
    known = timm.is_model(architecture)
    if not known or (tag and tag not in _tags(architecture)):
        raise unknown_backbone(name)
    facts = timm.get_pretrained_cfg(name)
    if facts is None:
        return Card(name, architecture, note="timm")
    return Card(
        name=name,
        network=architecture,
        mean=_three(facts.mean, name),
        std=_three(facts.std, name),
        licence=facts.license or "unknown",
        hub=facts.hf_hub_id,
        files=(facts.hf_hub_filename or "model.safetensors",),
        note="timm",
    )


def view(card: Card) -> View:
    """The picture as the network's authors give it to it: timm's size, interpolation and crop for these weights."""
    facts = timm.get_pretrained_cfg(card.released or card.name)
    data = timm.data.resolve_data_config(pretrained_cfg={} if facts is None else facts.to_dict())
    _, height, width = data["input_size"]
    mode = data["crop_mode"]
    fill = tuple(round(255 * value) for value in data["mean"]) if mode == "border" else None
    crop = Crop(mode, float(data["crop_pct"]), fill)
    return View((width, height), interpolation=data["interpolation"], crop=crop)


def with_any_size(card: Card) -> Card | None:
    """The same network, told to take pictures of other sizes than its own; None if timm does not offer it."""
    other = replace(card, options=(*card.options, DYNAMIC))
    try:
        with torch.device("meta"):
            _create(other)
    except UnfitBackboneError:
        return None
    return other


def build(card: Card) -> Trunk:
    """The network with random weights.

    Raises:
        UnfitBackboneError: timm cannot build it.
    """
    return TimmTrunk(_create(card))


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> Trunk:
    """The network with the weights of a state dict, through timm's own filter for these weights.

    Raises:
        WeightsError: they do not fit.
        UnfitBackboneError: timm cannot build the network.
    """
    overlay: dict[str, Any] = {"state_dict": without_wrapper(state)}
    if card.n_classes is not None:
        overlay["num_classes"] = card.n_classes  # or timm leaves the classifier out, as that of other classes
    with LOADING, _checked(card, file):
        net: Any = _create(card, pretrained=True, pretrained_cfg_overlay=overlay)
    net.pretrained_cfg.pop("state_dict")  # or the network keeps all weights a second time
    return TimmTrunk(net)


class TimmTrunk(Trunk):
    """What `forward_features`, `forward_head` and `forward_intermediates` of a timm network give."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__(net)
        self._channels_last = getattr(net, "output_fmt", "NCHW") == "NHWC"
        has_class = getattr(net, "cls_token", None) is not None
        self._n_prefix = int(getattr(net, "num_prefix_tokens", has_class))
        self._n_classes = int(has_class)
        self._tokens = True
        intermediates = getattr(net, "forward_intermediates", None)
        self._knows = set() if intermediates is None else set(inspect.signature(intermediates).parameters)
        if intermediates is not None:
            self.layers = unique([str(info["module"]) for info in net.feature_info])  # type: ignore[union-attr]

    def run(self, pixels: Tensor, layers: Sequence[str]) -> tuple[Any, dict[str, Map]]:
        net: Any = self.net
        if not layers:
            return net.forward_features(pixels), {}
        asked: dict[str, Any] = {"indices": [self.layers.index(name) for name in layers]}
        if self._n_prefix and "return_prefix_tokens" in self._knows:
            asked["return_prefix_tokens"] = True
        last, found = self._intermediates(pixels, asked)
        return last, dict(zip(layers, map(self._to_map, found), strict=True))

    def _intermediates(self, pixels: Tensor, asked: dict[str, Any]) -> tuple[Any, Any]:
        """As (T, P, F) where the network has tokens: nothing is moved. Others refuse that before they compute."""
        forward: Any = self.net.forward_intermediates
        if self._tokens:
            try:
                found: tuple[Any, Any] = forward(pixels, output_fmt="NLC", **asked)
                return found
            except AssertionError:
                self._tokens = False
        return forward(pixels, output_fmt="NCHW", **asked)  # type: ignore[no-any-return]

    def own(self, last: Any) -> Tensor:
        try:
            feature = self.net.forward_head(last)  # type: ignore[operator]
        except NotImplementedError as error:
            raise BackboneError("it makes no vector of a picture; say avg, max or tokens") from error
        if not isinstance(feature, Tensor) or feature.ndim != 2:
            raise BackboneError("it makes no vector of a picture; say avg, max or tokens")
        return feature

    def last_map(self, last: Any) -> Map:
        width = getattr(self.net, "num_features", None)
        channels_last = self._channels_last or (
            isinstance(last, Tensor) and last.ndim == 4 and last.shape[1] != width == last.shape[-1]
        )
        found = to_map(last, channels_last=channels_last, n_prefix=self._n_prefix)
        return self._of_class(found.positions, found.prefix)

    def _to_map(self, found: "Tensor | tuple[Tensor, Tensor]") -> Map:
        if isinstance(found, Tensor):
            return to_map(found)
        positions, prefix = found
        return self._of_class(to_map(positions).positions, prefix)

    def _of_class(self, positions: Tensor, prefix: Tensor | None) -> Map:
        """Tokens without a place are registers as well; where there is a class token it is the first."""
        return Map(positions, prefix if self._n_classes else None)


def _create(card: Card, **options: Any) -> nn.Module:
    """timm's network, without its classifier but where the card says otherwise: pool and norm stay as released.

    Raises:
        BackboneError: it has no classifier.
        UnfitBackboneError: timm cannot build it.
    """
    if not card.classifier:
        options["num_classes"] = 0
    elif card.n_classes is not None:
        options["num_classes"] = card.n_classes
    elif not _classifies(card):
        raise BackboneError(
            f"backbone {card.name!r} was released without a classifier, so there are no logits; leave :logits out"
        )
    try:
        net: nn.Module = timm.create_model(card.released or card.name, **dict(card.options), **options)
    except WeightsError:
        raise
    except Exception as error:  # timm's hundred kinds of networks raise anything
        reason = str(error) or type(error).__name__
        raise UnfitBackboneError(card.name, f"timm cannot build it: {reason}") from error
    return net


def _classifies(card: Card) -> bool:
    """Whether timm's network was released with a classifier. What stands there in a CLIP is a projection."""
    name = card.released or card.name
    facts = timm.get_pretrained_cfg(name)
    if facts is None:
        return True  # without weights of its own: as timm builds it
    return bool(facts.num_classes) and (
        "clip" not in name or timm.data.infer_imagenet_subset({"num_classes": facts.num_classes}) is not None
    )


def released_bytes(card: Card) -> int:
    """How large the tensors of the network as released are, classifier included, without making them.

    Raises:
        UnfitBackboneError: timm cannot build it.
    """
    try:
        with torch.device("meta"):
            tensors = timm.create_model(card.released or card.name, pretrained=False).state_dict()
    except Exception as error:
        raise UnfitBackboneError(card.name, f"timm cannot build it: {error}") from error
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


@contextmanager
def _checked(card: Card, file: Path) -> Iterator[None]:
    """Refuse weights that leave something out, which timm only logs: no network may run on random ones unasked."""
    load_state_dict = nn.Module.load_state_dict

    def checking(module: nn.Module, state: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
        wanted = module.state_dict()
        surplus = [name for name in state if name not in wanted]
        problems = {
            "missing": [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
            "of another shape": [name for name in wanted if name in state and state[name].shape != wanted[name].shape],
            "not of this network": [name for name in surplus if not _is_left_out(name, card)],
        }
        if any(problems.values()):
            told = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in problems.items() if names)
            raise WeightsError(f"weights file {file} does not fit {card.name!r} ({card.network}): {told}")
        return load_state_dict(module, {name: state[name] for name in state if name in wanted}, strict=False)

    nn.Module.load_state_dict = checking  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        nn.Module.load_state_dict = load_state_dict  # type: ignore[method-assign]


def _is_left_out(name: str, card: Card) -> bool:
    """Whether a tensor is of the classifier, or of the second one that Inception is trained with."""
    return name.startswith("AuxLogits.") or name in _whole(card.released or card.name)


@functools.lru_cache(1)
def _whole(name: str) -> frozenset[str]:
    """The names of all tensors of a network as released, classifier included."""
    with torch.device("meta"):
        return frozenset(timm.create_model(name, pretrained=False).state_dict())


def _tags(architecture: str) -> set[str]:
    return {full.partition(".")[2] for full in timm.list_pretrained(f"{architecture}.*")}


def _three(values: Sequence[float], name: str) -> tuple[float, float, float]:
    if len(values) != 3:
        raise BackboneError(f"backbone {name!r} takes pictures of {len(values)} channels; photos have 3")
    red, green, blue = values
    return float(red), float(green), float(blue)
