"""Weights that a person at a terminal may have downloaded: the question before, and the download with its bars."""

from dataclasses import replace
from typing import TYPE_CHECKING

from featstore.support import few, size
from featstore.terminal import Terminal

if TYPE_CHECKING:
    from featstore import Config
    from featstore.backbones import Card

MEASURED = 20
"""Of how many networks the size is worked out, a fraction of a second each."""


def fetch_weights(
    config: "Config", terminal: Terminal, *, allow_missing: bool, forbidden: bool
) -> tuple["Config", bool]:
    """Download what is missing, before anything is computed, if a person at the terminal says yes or has said --hub.

    A yes also means to leave out the backbones that have no public weights: the question says so. Without a terminal
    nothing happens here; the run then says what is missing, and so it does after a no.

    Args:
        allow_missing: whether backbones without weights are left out; then they are not missed, and nobody is asked.
        forbidden: whether the user has said --no-hub.

    Returns: the configuration, and whether backbones without weights are left out.

    Raises:
        WeightsError: the hub cannot be reached, or broke off; says which weights were had.
    """
    policy = config.weights
    if not terminal.can_ask() or (not policy.hub and (forbidden or allow_missing)):
        return config, allow_missing
    from featstore.backbones.downloads import host_of, is_public, resolve_all
    from featstore.backbones.weights import hub_forbidden

    cards = [card for spec in config.tensors for card in config.cards(spec)]
    _, missing = resolve_all(cards, replace(policy, hub=False))
    wanted = [card for card in missing if is_public(card)]
    nowhere = [card for card in missing if not is_public(card)]
    if not wanted or hub_forbidden():
        return config, allow_missing
    if policy.hub:
        if nowhere and not allow_missing:
            return config, allow_missing  # which the run refuses, and says why
    elif not terminal.ask(_question(wanted, nowhere)):
        return config, allow_missing
    policy = replace(policy, hub=True)
    resolve_all(
        wanted, policy, on_download=lambda card: terminal.say(f"downloading {card.name} ({card.hub or host_of(card)})")
    )
    return replace(config, weights=policy), allow_missing or bool(nowhere)


def _question(wanted: list["Card"], nowhere: list["Card"]) -> str:
    from featstore.backbones.downloads import expected_bytes, host_of

    sizes = [expected_bytes(card) for card in wanted[:MEASURED]]
    known = [each for each in sizes if each is not None]
    about = "about" if len(known) == len(wanted) else "more than"
    total = f"{about} {size(sum(known))}" if known else "weights of a size that is not known"
    named = (
        f"{card.name} ({size(n_bytes)})" if n_bytes is not None else card.name
        for card, n_bytes in zip(wanted, [*sizes, *[None] * len(wanted)], strict=False)
    )
    left_out = (
        f"no public weights exist for {few(card.name for card in nowhere)}; yes leaves them out\n" if nowhere else ""
    )
    return f"{left_out}{total} from {few(dict.fromkeys(map(host_of, wanted)))}: {few(named, 8)}; download?"
