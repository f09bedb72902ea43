"""The weights of several backbones at once: what is on this machine, what the hub has, and how large it would be."""

import os
from collections.abc import Callable, Iterable
from dataclasses import replace
from urllib.parse import urlparse

from featstore.backbones.card import Card
from featstore.backbones.sources import TIMM
from featstore.backbones.weights import Weights, WeightsPolicy, resolve_weights
from featstore.errors import BackboneError, MissingWeightsError, WeightsError
from featstore.support import LISTED, few


def resolve_all(
    cards: Iterable[Card], policy: WeightsPolicy, *, partly: bool = False, on_download: Callable[[Card], object] = id
) -> tuple[dict[str, Weights], list[Card]]:
    """By backbone, the weights of each, and the backbones whose weights cannot be had.

    Nothing is downloaded before all that is on this machine was looked for.

    Args:
        partly: whether weights are worth downloading if those of other backbones cannot be had.
        on_download: told of each backbone before its weights are downloaded.

    Raises:
        WeightsError: what was named is not there, or the hub cannot be reached, or broke off; says which were had.
    """
    found: dict[str, Weights] = {}
    missing: list[Card] = []
    for card in {card.name: card for card in cards}.values():
        try:
            found[card.name] = resolve_weights(card, replace(policy, hub=False))
        except MissingWeightsError:
            missing.append(card)
    if not policy.hub:
        return found, missing
    nowhere = [card for card in missing if not is_public(card)]
    if nowhere and not partly:
        return found, nowhere
    wanted = [card for card in missing if is_public(card)]
    for number, card in enumerate(wanted):
        on_download(card)
        try:
            found[card.name] = resolve_weights(card, policy)
        except MissingWeightsError:
            nowhere.append(card)
        except WeightsError as error:
            if len(wanted) == 1:
                raise
            had = [each.name for each in wanted[:number] if each not in nowhere]
            left = few((each.name for each in wanted[number:]), LISTED)
            said = f"downloaded before and kept: {few(had, LISTED)}" if had else "nothing was downloaded"
            raise WeightsError(f"{error}\n{said}; still missing: {left}") from error
    return found, nowhere


def is_public(card: Card) -> bool:
    """Whether its weights can be downloaded."""
    return card.hub is not None or card.url is not None


def expected_bytes(card: Card) -> int | None:
    """About how large a weights file on the hub is, in bytes; None if that is not known.

    The hub itself is not asked: that would be a connection before the user has allowed one. timm says it without: the
    network is built without data, and a released file is its tensors and little else.
    """
    if card.source != TIMM:
        return None
    from featstore.backbones.sources.timm import released_bytes

    try:
        return released_bytes(card)
    except BackboneError:
        return None


def host_of(card: Card) -> str:
    """The machine that the weights of a backbone are downloaded from."""
    endpoint = card.url or os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    return urlparse(endpoint).netloc.rpartition("@")[2] or endpoint
