"""The list of backbones: every card of the registry, and where its weights are."""

from dataclasses import replace
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any

from featstore.backbones.card import Card
from featstore.backbones.registry import CARDS
from featstore.backbones.weights import WeightsPolicy, resolve_weights
from featstore.errors import WeightsError

if TYPE_CHECKING:
    import pandas as pd

NOT_HERE = "not here"


def list_backbones(pattern: str = "*", *, weights: WeightsPolicy | None = None) -> "pd.DataFrame":
    """The backbones that have a card, a row each; any other timm model works by its name too.

    Columns: `backbone`, `alias`, `width` (of the feature), `weights` (where they come from, or "not here"), `used_by`,
    `licence`, `hub` (their repository on the Hugging Face hub). Nothing is downloaded.

    Args:
        pattern: shell pattern of a name or an alias, such as `lite*` or `*resnet*`.
        weights: where to look for weights; `featstore.find_config().weights` looks where the commands do.
    """
    import pandas as pd

    found = [
        facts
        for facts in describe_backbones(weights)
        if fnmatchcase(facts["backbone"], pattern) or fnmatchcase(facts["alias"], pattern)
    ]
    return pd.DataFrame(found, columns=["backbone", "alias", "width", "weights", "used_by", "licence", "hub"])


def describe_backbones(weights: WeightsPolicy | None = None) -> list[dict[str, Any]]:
    """Every card of the registry as plain facts, and where its weights come from."""
    policy = replace(weights or WeightsPolicy(), hub=False)  # looking downloads nothing
    return [_describe(card, policy) for card in CARDS.values()]


def _describe(card: Card, policy: WeightsPolicy) -> dict[str, Any]:
    try:
        origin = resolve_weights(card, policy).origin
    except WeightsError:
        origin = NOT_HERE
    return {
        "backbone": card.name,
        "alias": card.alias or "",
        "width": card.width,
        "weights": origin,
        "used_by": card.note,
        "licence": card.licence,
        "hub": card.hub,
        "normalisation": {"mean": card.mean, "std": card.std},
    }
