"""Sources: who makes networks, one file each.

A name says its source, as `hf:facebook/dinov2-small`; without one it is timm's. A source finds the card of a name, says
which picture a network takes, and builds it with random weights or with those of a file. Another source is one more
file with these five functions, and an entry here. One that runs a user's code has `find_known` besides, for names that
a store says; one of networks with text beside them has `encode_text`.
"""

from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from featstore.errors import BackboneError

if TYPE_CHECKING:
    from torch import Tensor

    from featstore.backbones.card import Card
    from featstore.backbones.trunk import Trunk
    from featstore.backbones.weights import WeightsPolicy
    from featstore.photos.views import View

TIMM, TORCHVISION, PYTHON = "timm", "torchvision", "python"
SOURCES = {
    TIMM: "featstore.backbones.sources.timm",
    "featstore": "featstore.backbones.sources.ours",
    TORCHVISION: "featstore.backbones.sources.torchvision",
    "hf": "featstore.backbones.sources.hf",
    "open_clip": "featstore.backbones.sources.open_clip",
    PYTHON: "featstore.backbones.sources.python",
    "hand": "featstore.backbones.sources.hand",
}
"""By name; imported at first use, for each needs its own library."""
PARTS = {
    TIMM: r"hand/[^/]+|[^/]+",
    TORCHVISION: r"[^/]+(/[A-Z][A-Z0-9_]*(?=/|$))?",
    "hf": r"[^/]+/[^/]+",
    "open_clip": r"[^/]+(/(?!(stem|layer\d)(/|$))[\w-]+(?=/|$))?",
    PYTHON: r"[^/:]+(:[^/:]+)?",
}
"""What a name looks like in a source, before the slash of a layer."""
WITH_CLASSIFIER = (TIMM, TORCHVISION)
"""Those that build a network with its classifier, if its card says so."""
EXTRAS = {"hf": "hf", "open_clip": "openclip", "hand": "hand"}
"""By source, the extra of featstore that installs its library."""


class Source(Protocol):
    """What the module of a source has."""

    def find(self, name: str, policy: "WeightsPolicy | None" = None) -> "Card":
        """The card of a network by its name in the source.

        Args:
            policy: where to look for files of the network, for a source that does not know it without any.

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
    """The module of a source.

    Raises:
        BackboneError: the library that it needs is not installed.
    """
    try:
        return cast(Source, import_module(SOURCES[name]))
    except ModuleNotFoundError as error:
        if name not in EXTRAS or (error.name or "").startswith("featstore"):
            raise
        raise BackboneError(
            f"backbones named {name}{':' if name in PARTS else '/'}... need {error.name}, which is not installed; "
            f"pip install 'featstore[{EXTRAS[name]}]'"
        ) from error


def with_classifier(card: "Card") -> "Card":
    """The same network with its own classifier.

    Raises:
        BackboneError: its source knows of none.
    """
    if card.source not in WITH_CLASSIFIER:
        raise BackboneError(
            f"backbone {card.name!r} has no classifier that is known here, and so no logits; "
            f"networks of {' and '.join(WITH_CLASSIFIER)} have them"
        )
    return replace(card, classifier=True)
