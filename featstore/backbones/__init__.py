"""Backbones: the frozen networks whose last feature map is the feature.

What is known of one without loading it (`card`), which there are (`registry`), where weights come from (`weights`), how
both become a network (`networks`), and which weights a file holds (`digests`). A backbone is one card in the registry;
a network that timm lacks is one more file (`youtube8m`, `dual_encoding`, `object_graph`) that the card names.
"""

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
