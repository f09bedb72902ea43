"""The forward passes of a set of segments: those that share a network and a view share one."""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from featstore import engines
from featstore.listing import Progress
from featstore.requests import Networks
from featstore.views import View

if TYPE_CHECKING:
    import torch


class Backbones:
    """The loaded networks of some requests, ready to run on a device."""

    def __init__(self, networks: Networks, device: "torch.device", report: Progress) -> None:
        self.segments = networks.by_hash()
        """The segments by the hash of their identity."""
        cards = {segment.card.name: segment.card for segment in self.segments.values()}
        self._engines: dict[str, engines.Engine] = {}
        report("load", 0, len(cards))
        for card in cards.values():
            self._engines[card.name] = engines.EagerEngine(networks.load(card), card, device=device)
            report("load", len(self._engines), len(cards))

    @property
    def views(self) -> list[View]:
        """The views that a photo has to be cut into."""
        return sorted({segment.view for segment in self.segments.values()}, key=repr)

    def features(
        self, blocks: Mapping[View, NDArray[np.uint8]], wanted: Iterable[str]
    ) -> dict[str, NDArray[np.float32]]:
        """By segment hash, the (T, F) features of one photo."""
        passes: dict[tuple[str, View], list[str]] = {}
        for key in wanted:
            passes.setdefault((self.segments[key].card.name, self.segments[key].view), []).append(key)
        found: dict[str, NDArray[np.float32]] = {}
        for (name, view), keys in passes.items():
            pooled = self._engines[name].run(blocks[view], {self.segments[key].pooling for key in keys})
            found |= {key: pooled[self.segments[key].pooling] for key in keys}
        return found
