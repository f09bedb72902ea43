"""Sources: who makes networks, one file each.

A name says its source, as `hf:facebook/dinov2-small`; without one it is timm's. A source finds the card of a name, says
which picture a network takes, and builds it with random weights or with those of a file. Another source is one more
file with these five functions, and an entry here.
"""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.backbones.card import Card
    from featstore.backbones.trunk import Trunk
    from featstore.photos.views import View

TIMM = "timm"
SOURCES = {
    TIMM: "featstore.backbones.sources.timm",
    "featstore": "featstore.backbones.sources.ours",
}
"""By name; imported at first use, for each needs its own library."""
PARTS = {TIMM: 1}
"""How many parts a name has between slashes, before a layer's."""


class Source(Protocol):
    """What the module of a source has."""

    def find(self, name: str) -> "Card":
        """The card of a network by its name in the source.

        Raises:
            BackboneError: there is none; says which are near.
        """
        ...

    def view(self, card: "Card") -> "View":
        """The picture as the network's authors give it to it."""
        ...

    def with_any_size(self, card: "Card") -> "Card | None":
        """The same network, told to take pictures of other sizes than its own; None if that is not to be had."""
        ...

    def build(self, card: "Card") -> "Trunk":
        """The network with random weights.

        Raises:
            UnfitBackboneError: it cannot be built.
        """
        ...

    def load(self, card: "Card", state: "Mapping[str, Tensor]", file: Path) -> "Trunk":
        """The network with the weights of a state dict, read from a file.

        Raises:
            WeightsError: they do not fit.
        """
        ...


def find_source(name: str) -> Source:
    """The module of a source."""
    return cast(Source, import_module(SOURCES[name]))
