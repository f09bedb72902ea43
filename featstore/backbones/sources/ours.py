"""Networks of ours: a card names the module whose `build()` makes one."""

import importlib
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from featstore.backbones.card import Card
from featstore.backbones.trunk import Trunk
from featstore.errors import WeightsError
from featstore.photos.views import WHOLE, View
from featstore.support import few


def view(card: Card) -> View:
    """The whole photo, as their paper gives it to them."""
    return WHOLE


def with_any_size(card: Card) -> Card | None:
    """They take any."""
    return None


def build(card: Card) -> Trunk:
    """The network with random weights."""
    assert card.builder is not None
    return Trunk(importlib.import_module(card.builder).build())


def load(card: Card, state: Mapping[str, Tensor], file: Path) -> Trunk:
    """The network with the weights of a state dict.

    Raises:
        WeightsError: they do not fit.
    """
    trunk = build(card)
    load_exactly(trunk.net, state, card, file)
    return trunk


def load_exactly(net: nn.Module, state: Mapping[str, Tensor], card: Card, file: Path) -> None:
    """Load a state dict that has every tensor of a network, and no others.

    Raises:
        WeightsError: it does not; says which are missing, of another shape, or not of the network.
    """
    wanted = net.state_dict()
    problems = {
        "missing": [name for name in wanted if name not in state and not name.endswith("num_batches_tracked")],
        "of another shape": [name for name in wanted if name in state and state[name].shape != wanted[name].shape],
        "not of this network": [name for name in state if name not in wanted],
    }
    if any(problems.values()):
        told = "; ".join(f"{len(names)} {what} ({few(names, 3)})" for what, names in problems.items() if names)
        raise WeightsError(f"weights file {file} does not fit {card.name!r} ({card.network}): {told}")
    net.load_state_dict(dict(state), strict=False)
