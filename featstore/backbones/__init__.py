"""Backbones: frozen networks, and the features that can be had of them.

What is known of one without loading it (`card`), which there are (`registry`), who makes them (`sources`), where
weights come from (`weights`), how both become a network (`networks`) whose features can be taken (`trunk`), how wide
these are (`shapes`), which views it can take (`fitting`), and which weights a file holds (`digests`). A backbone of the
papers is one card in the registry; a network that no library has is one more file (`youtube8m`, `dual_encoding`,
`object_graph`) that the card names.
"""

import warnings

from featstore.backbones.card import POOLINGS, Card, Output
from featstore.backbones.registry import CARDS, PACKAGED, PAPER_SETS, BackboneName, find_card, segment_name
from featstore.backbones.weights import Weights, WeightsPolicy, resolve_weights, say_missing

# In a notebook the libraries of networks ask for ipywidgets, as soon as they are imported; our bars need none.
warnings.filterwarnings("ignore", "IProgress not found")

__all__ = [
    "CARDS",
    "PACKAGED",
    "PAPER_SETS",
    "POOLINGS",
    "BackboneName",
    "Card",
    "Output",
    "Weights",
    "WeightsPolicy",
    "find_card",
    "resolve_weights",
    "say_missing",
    "segment_name",
]
