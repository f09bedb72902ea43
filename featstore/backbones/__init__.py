"""Backbones: what one is (`card`), which there are (`registry`), where weights come from (`weights`),
and how one becomes a network (`networks`)."""

from featstore.backbones.card import Card
from featstore.backbones.registry import CARDS, PACKAGED, PAPER_SETS, find_card
from featstore.backbones.weights import Weights, WeightsPolicy, resolve_weights, say_missing

__all__ = [
    "CARDS",
    "PACKAGED",
    "PAPER_SETS",
    "Card",
    "Weights",
    "WeightsPolicy",
    "find_card",
    "resolve_weights",
    "say_missing",
]
