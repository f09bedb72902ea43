"""Hand-made features: a group of them is a backbone, `hand/gist-1`, whose formula stands in place of a network."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from featstore.backbones.card import Card, Output
from featstore.backbones.hand.cards import CODEBOOK, HAND
from featstore.backbones.hand.colour import ColourNames, arousal, colour_histogram
from featstore.backbones.hand.descriptors import DESCRIPTORS, WIDTHS, Describe, describer
from featstore.backbones.hand.gist import gist
from featstore.backbones.hand.group import Group, Vector
from featstore.backbones.hand.quality import contrast, edges, jpeg
from featstore.backbones.hand.texture import lbp
from featstore.backbones.hand.words import Words
from featstore.backbones.sources.ours import load_exactly
from featstore.backbones.trunk import Trunk
from featstore.errors import BackboneError, WeightsError
from featstore.photos.views import SQUARE, View

FORMULAS: Mapping[str, Callable[..., Vector]] = {
    "arousal-1": arousal,
    "colour-histogram-1": colour_histogram,
    "contrast-1": contrast,
    "edges-1": edges,
    "gist-1": gist,
    "jpeg-1": jpeg,
    "lbp-1": lbp,
}
"""By group, its features by nothing but amounts."""


class HandTrunk(Trunk):
    """A formula gives one vector of a picture, and nothing else."""

    def features(self, pixels: Tensor, outputs: Sequence[Output]) -> tuple[Tensor, ...]:
        if any(output != Output() for output in outputs):
            raise BackboneError("features made by hand are one vector of a picture; leave the pooling out")
        return super().features(pixels, outputs)


def view(card: Card) -> View:
    """A square, as the toolboxes of these features take a photo."""
    return SQUARE


def with_any_size(card: Card) -> Card | None:
    """They take any from their least one on."""
    return None


def build(card: Card) -> HandTrunk:
    """The formula of a group.

    Raises:
        BackboneError: a store says other amounts than this version has.
    """
    return HandTrunk(_group(card))


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> HandTrunk:
    """The formula of a group with a table or a codebook of the user's.

    Raises:
        WeightsError: it does not fit, or holds what are no numbers.
    """
    trunk = build(card)
    load_exactly(trunk.net, state, card, file)
    for name, value in trunk.net.state_dict().items():
        if not value.isfinite().all():
            raise WeightsError(f"weights file {file} for {card.name!r}: {name} holds values that are not finite")
    return trunk


def look(card: Card) -> Describe:
    """What a group has to say of the places of a picture before it is told in words."""
    return describer(card.network, **{key: value for key, value in _amounts(card).items() if key not in CODEBOOK})


def _group(card: Card) -> Group:
    if card.network in DESCRIPTORS:
        amounts = {key: value for key, value in _amounts(card).items() if key in CODEBOOK}
        return Words(look(card), WIDTHS[card.network], **amounts)
    if card.network in FORMULAS:
        return Group(partial(FORMULAS[card.network], **_amounts(card)))
    return ColourNames()


def _amounts(card: Card) -> dict[str, Any]:
    ours = next(each for each in HAND if each.name == card.name)
    if card.options != ours.options:
        raise BackboneError(
            f"features {card.name!r} were made with the amounts {dict(card.options)}; this version makes them with "
            f"{dict(ours.options)}"
        )
    return dict(card.options)
