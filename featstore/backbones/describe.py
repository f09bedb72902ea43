"""The list of backbones: every card of the registry, the networks of timm, and where their weights are."""

import re
from collections.abc import Iterator
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
_BETWEEN = re.compile(r"[_.:/-]+")
_COLUMNS = ("backbone", "alias", "width", "input", "weights", "used_by", "licence", "hub")


def list_backbones(pattern: str | None = None, *, weights: WeightsPolicy | None = None) -> "pd.DataFrame":
    """The backbones that have a card, a row each; with a pattern, also the networks of timm whose names it matches.

    Columns: `backbone`, `alias`, `width` (of the feature; missing where only building the network would tell), `input`
    (width x height of its pictures), `weights` (where they come from, or "not here"), `used_by`, `licence`, `hub`
    (their repository on the Hugging Face hub). Nothing is downloaded.

    Args:
        pattern: part of a name or an alias, as `dino`; or with wildcards, as `clip*` or `*.openai`, a shell pattern of
            a name, whole or from one of its words on. Whether letters are large or small does not matter.
        weights: where to look for weights; `featstore.find_config().weights` looks where the commands do.
    """
    import pandas as pd

    table = pd.DataFrame(describe_backbones(weights, pattern), columns=list(_COLUMNS))
    return table.astype({"width": "Int64"}).fillna({"hub": ""})


def describe_backbones(weights: WeightsPolicy | None = None, pattern: str | None = None) -> list[dict[str, Any]]:
    """What `list_backbones` lists, as plain facts."""
    policy = replace(weights or WeightsPolicy(), hub=False)  # looking downloads nothing
    if pattern is None:
        return [_describe(card, policy) for card in CARDS.values()]
    found = [
        _describe(card, policy)
        for card in CARDS.values()
        if matches(card.name, pattern) or matches(card.alias or "", pattern)
    ]
    return found + [_describe(card, policy, size) for card, size in _of_timm(pattern)]


def matches(name: str, pattern: str) -> bool:
    """Whether a name has the pattern in it, or with wildcards is like it, as a whole or from one of its words on."""
    name, pattern = name.lower(), pattern.lower()
    if not any(wildcard in pattern for wildcard in "*?["):
        return pattern in name
    return any(fnmatchcase(name[start:], pattern) for start in (0, *(each.end() for each in _BETWEEN.finditer(name))))


def _of_timm(pattern: str) -> Iterator[tuple[Card, str]]:
    """Each network with released weights, and each that has none, by timm's own tables: none is built."""
    import timm  # seconds to import, and not needed for the cards

    released = timm.list_pretrained()
    known = {name.partition(".")[0] for name in released}
    for name in sorted([*released, *(name for name in timm.list_models() if name not in known)]):
        facts = timm.get_pretrained_cfg(name) if matches(name, pattern) and name not in CARDS else None
        if facts is None:
            continue
        _, height, width = facts.input_size
        card = Card(name, name.partition(".")[0], 0, licence=facts.license or "unknown", hub=facts.hf_hub_id)
        yield card, f"{width} x {height}"


def _describe(card: Card, policy: WeightsPolicy, size: str = "") -> dict[str, Any]:
    try:
        origin = resolve_weights(card, policy).origin
    except WeightsError:
        origin = NOT_HERE
    return {
        "backbone": card.name,
        "alias": card.alias or "",
        "width": card.width or None,
        "input": size,
        "weights": origin,
        "used_by": card.note,
        "licence": card.licence,
        "hub": card.hub,
        "normalisation": {"mean": card.mean, "std": card.std},
    }
