"""Fitting: a view that was made for other networks, brought to one that takes pictures of its own size only."""

from dataclasses import replace

from featstore.backbones.card import Card
from featstore.backbones.sources import find_source
from featstore.photos.views import View


def fit(card: Card, view: View) -> tuple[Card, View, str]:
    """The card and the view to compute with, and what is done otherwise than was asked; empty if nothing is.

    A network that cannot take the blocks of a view is told to take other sizes, where its source can do that and the
    blocks fall into whole patches. Where not, the blocks of a grid are resized to the network's own size, each by
    itself, and the photo is in place of the view's size.

    Raises:
        UnfitBackboneError: the network cannot be built, or runs on no picture.
    """
    if card.any_size:
        return card, view, ""
    from featstore.backbones.shapes import takes  # with torch, and seconds to import

    if takes(card, view.block_size):
        return card, view, ""
    source = find_source(card.source)
    other = source.with_any_size(card)
    width, height = view.block_size
    if other is not None and takes(other, view.block_size):
        return other, view, f"{card.name} gets its positions interpolated for pictures of {width}x{height}"
    own = source.view(card).block_size
    if view.n_blocks == 1:
        told = f"{card.name} takes pictures of {own[0]}x{own[1]} only: photos are resized to that, not to"
        return card, replace(view, size=own, block=None), f"{told} {width}x{height}"
    told = f"{card.name} takes pictures of {own[0]}x{own[1]} only: blocks of {width}x{height} are resized to that"
    return card, replace(view, block=own), told
