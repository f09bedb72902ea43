"""The groups of hand-made features: how wide each is, and every amount that its formula takes.

A group of features is a backbone without a network, `hand/NAME-1`. Raise the number behind a name whenever its
arithmetic changes. Names: Soleymani, "The quest for visual interest", 2015; amounts: each formula's own paper, or ours.
"""

from typing import Any

from featstore.backbones.card import Card

SOURCE = "hand"


CODEBOOK: dict[str, Any] = {"beta": 0.03, "levels": "1 2 4", "nearest": 3, "words": 256}
"""Amounts of all groups that are told in words (Khosla et al., 2012)."""


def _group(name: str, width: int, *, least: int = 1, made_by: str = "", **amounts: Any) -> Card:
    return Card(
        name=f"hand/{name}-1",
        network=f"{name}-1",
        alias=f"hand/{name}",
        source=SOURCE,
        width=width,
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
        options=tuple(sorted(amounts.items())),
        any_size=True,
        least=least,
        by_formula=not made_by,
        made_by=made_by,
        licence="none needed",
        note="Soleymani 2015",
    )


def _words(name: str, *, least: int, **amounts: Any) -> Card:
    """A group whose pictures are told in the words of a codebook, which is its weights."""
    made_by = f"featstore codebook {name} PHOTOS"
    return _group(name, (1 + 4 + 16) * 256, least=least, made_by=made_by, **CODEBOOK, **amounts)


_GIST: dict[str, Any] = {
    "cells": 4,
    "cutoff": 4,
    "highest": 0.3,
    "orientations": 8,
    "padding": 32,
    "ratio": 1.85,
    "scales": 4,
}
HAND = (
    _group("arousal", 1, saturation=0.6, value=-0.31),
    _group("colour-histogram", 512, bins=8),
    _group("colour-names", 11),
    _words("colour-names-words", least=16, patches="8 12 16", step=6),
    _group("contrast", 2, middle=0.98),
    _group("edges", 101, alpha=0.2, cells=10, middle=0.98, side=100),
    _group("gist", 512, least=32, **_GIST),
    _words("gist-words", least=64, step=32, tile=64, **_GIST),
    _words("hog", least=16, block=2, cell=8, directions=9),
    _group("jpeg", 1, quality=75),
    _group("lbp", 1357, least=4, factors="1 4 32", levels="1 2 4", points=8, radius=1),
    _words("sift", least=16, clip=0.2, patches="16", step=6),
)
