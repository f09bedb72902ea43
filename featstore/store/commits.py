"""What a writer is told: images to list, what was seen of them, the rows of a block on their way into the store.

Plain data, so that what computes rows and what copies them need not know how they are committed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.store.format.images import ImageState, RowState

BlockRows = Mapping[str, tuple[NDArray[Any], NDArray[np.uint8]]]
"""By tensor, the (rows in the block, ...) features of a row block and their (rows in the block,) states."""


@dataclass(frozen=True)
class NewImages:
    """Images to list: paths, (N, 32) SHA-256 digests, file sizes in bytes and modification times in ns."""

    paths: list[str]
    digests: NDArray[np.uint8]
    n_bytes: list[int]
    modified_ns: list[int]


@dataclass(frozen=True)
class SeenImages:
    """What decoding found out about the images of some rows."""

    rows: list[int]
    sizes: list[tuple[int, int]]
    states: list[ImageState]
    errors: list[str]

    @classmethod
    def joined(cls, parts: Sequence["SeenImages"]) -> "SeenImages":
        return cls(
            [row for part in parts for row in part.rows],
            [size for part in parts for size in part.sizes],
            [state for part in parts for state in part.states],
            [error for part in parts for error in part.errors],
        )


@dataclass(frozen=True)
class WrittenBlock:
    """A row block whose shards are there and whose rows are not recorded yet; by tensor, of its rows."""

    number: int
    start: int
    """Its first row."""
    sums: Mapping[str, NDArray[np.uint32]]
    states: Mapping[str, NDArray[np.uint8]]
    images: SeenImages

    def rows(self, name: str) -> NDArray[np.int64]:
        return np.arange(self.start, self.start + len(self.states[name]))

    def recorded_sums(self, name: str) -> NDArray[np.uint32]:
        return np.where(self.states[name] == RowState.PRESENT, self.sums[name], 0).astype(np.uint32)
