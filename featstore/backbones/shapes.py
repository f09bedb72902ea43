"""Shapes: which layers a network has, which pictures it takes, and how wide its features are.

Found by running the network without data, on PyTorch's meta device: that takes part of a second, no weights, and no
memory to speak of.
"""

import functools
import warnings
from dataclasses import replace

import torch

from featstore.backbones.card import LAST, Card, Output
from featstore.backbones.sources import find_source
from featstore.backbones.trunk import Trunk
from featstore.errors import BackboneError, UnfitBackboneError, suggest
from featstore.support import reason_of

KEPT = 64  # networks; without data they are small


def layers_of(card: Card) -> tuple[str, ...]:
    """The layers of a network besides the last, from the first on; none if its source does not know them."""
    return _trunk(_plain(card)).layers


def shape_of(card: Card, output: Output, size: tuple[int, int]) -> tuple[int, int]:
    """(P, F) of one output for a picture of a size (width, height): P is 1 but where every token is kept.

    Raises:
        BackboneError: the network has no such layer or pooling.
        UnfitBackboneError: it cannot take pictures of this size.
    """
    return _shape(_plain(card), output, size)


def takes(card: Card, size: tuple[int, int]) -> bool:
    """Whether a network takes pictures of a size (width, height)."""
    try:
        _shape(_plain(card), Output(), size)
    except UnfitBackboneError as error:
        return isinstance(error.__cause__, BackboneError)  # it ran, and lacks only a vector of its own
    return True


def bytes_of(card: Card) -> int:
    """How many bytes the parameters and buffers of a network take.

    Raises:
        UnfitBackboneError: its source cannot build it.
    """
    return sum(each.numel() * each.element_size() for each in _trunk(_plain(card)).net.state_dict().values())


def _plain(card: Card) -> Card:
    """The card with nothing on it but what decides shapes: what is kept is kept under it."""
    return replace(card, alias=None, note="", batch_norm_eps=None, hub=None, url=None, package=None)


@functools.lru_cache(KEPT)
def _shape(card: Card, output: Output, size: tuple[int, int]) -> tuple[int, int]:
    trunk = _trunk(card)
    if output.layer != LAST and output.layer not in trunk.layers:
        raise unknown_layer(card, output.layer)
    width, height = size
    try:
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            device = next((each.device for each in trunk.net.parameters()), torch.device("cpu"))
            (feature,) = trunk.features(torch.empty(1, 3, height, width, device=device), (output,))
    except BackboneError as error:
        if output == Output():  # what is asked for where nothing is said: other networks of a run go on
            raise UnfitBackboneError(card.name, str(error)) from error
        raise BackboneError(f"backbone {card.name!r} cannot give {output.pooling!r}: {error}") from error
    except Exception as error:  # networks refuse sizes in any way
        raise UnfitBackboneError(
            card.name, f"it cannot take pictures of {width}x{height} pixels: {reason_of(error)}"
        ) from error
    return (1 if feature.ndim == 2 else int(feature.shape[1])), int(feature.shape[-1])


@functools.lru_cache(KEPT)
def _trunk(card: Card) -> Trunk:
    source = find_source(card.source)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as of initialising nothing
        try:
            with torch.device("meta"):
                trunk = source.build(card)
        except UnfitBackboneError:  # some compute with values while they are built
            trunk = source.build(card)
            trunk.net.to("meta")
    trunk.net.eval().requires_grad_(False)
    return trunk


def unknown_layer(card: Card, layer: str) -> BackboneError:
    """The error for a layer that a network does not have."""
    layers = layers_of(card)
    if not layers:
        return BackboneError(f"backbone {card.name!r} has no layers that can be named; leave /{layer} out")
    return BackboneError(f"backbone {card.name!r} has no layer {layer!r}; {suggest(layer, layers)}")
