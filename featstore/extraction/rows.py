"""Filling a shard of rows, with computed features and with copies of what stores already have."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from featstore.photos.files import NO_DIGEST
from featstore.store import ImageState, ImageTable, RowState, SeenImages, Store, StoredTensor, TensorLayout
from featstore.store.format.layout import blank

FEW = 8  # rows read back at a time


class ShardBuffer:
    """One shard of rows being filled: an array for each tensor that lacks rows of it, which holds those present."""

    def __init__(self, number: int, store: Store, layouts: list[TensorLayout]) -> None:
        self.number = number
        self.start = number * store.block_rows
        n_rows = min(store.block_rows, len(store.images) - self.start)
        here = slice(self.start, self.start + n_rows)
        self.layouts = [each for each in layouts if (store[each.name].states[here] == RowState.ABSENT).any()]
        self.features: dict[str, NDArray[Any]] = {}
        self.states: dict[str, NDArray[np.uint8]] = {}
        self.seen = SeenImages([], [], [], [])
        for layout in self.layouts:
            tensor = store[layout.name]
            states = tensor.states[here].copy()
            features = np.full((n_rows, *layout.row_shape), blank(tensor.dtype), tensor.dtype)
            present = np.flatnonzero(states == RowState.PRESENT)
            for part in np.split(present, range(FEW, len(present), FEW)):  # not a second shard in memory
                features[part] = tensor.read(self.start + part)
            self.features[layout.name], self.states[layout.name] = features, states

    def lacking(self, row: int) -> list[TensorLayout]:
        """The tensors that have neither features nor a failure in this row."""
        # Python's own integers: numpy may swallow a Ctrl-C that falls into its comparison with an enum.
        return [each for each in self.layouts if int(self.states[each.name][row - self.start]) == RowState.ABSENT]

    def fill(self, row: int, features: Mapping[str, NDArray[Any]], size: tuple[int, int]) -> None:
        """Features by segment hash, (T, F) each, and the photo's height and width."""
        for layout in self.lacking(row):
            if any(segment.hash not in features for segment in layout.segments):
                continue  # some of it has to be imported first
            layout.assemble(self.features[layout.name][row - self.start], features)
            self.states[layout.name][row - self.start] = RowState.PRESENT
        self.note(row, size, ImageState.READABLE, "")

    def copy(self, tensor: StoredTensor, rows: NDArray[np.int64], from_rows: NDArray[np.int64]) -> None:
        """Whole rows of a tensor, as another store has them, read straight into their places.

        Args:
            rows: theirs here, in ascending order.
        """
        features, places = self.features[tensor.name], rows - self.start
        cuts = np.flatnonzero(np.diff(places) != 1) + 1
        for here, there in zip(np.split(places, cuts), np.split(from_rows, cuts), strict=True):
            tensor.read(there, features[here[0] : here[-1] + 1])
        self.states[tensor.name][places] = RowState.PRESENT

    def fail(self, row: int, reason: str) -> None:
        """The photo cannot be read."""
        for layout in self.lacking(row):
            self.states[layout.name][row - self.start] = RowState.FAILED
        self.note(row, (0, 0), ImageState.UNREADABLE, reason)

    def note(self, row: int, size: tuple[int, int], state: ImageState, error: str) -> None:
        """What was learned of the image of a row."""
        self.seen.rows.append(row)
        self.seen.sizes.append(size)
        self.seen.states.append(state)
        self.seen.errors.append(error)


class Copies:
    """Features that some store holds already under the same identity, for an image of the same bytes."""

    def __init__(self, stores: Sequence[Store], wanted: set[str]) -> None:
        self._sources = [
            _Source(tensor, index, segment.hash, tensor.states == RowState.PRESENT)
            for store in stores
            for tensor in store.tensors.values()
            for index, segment in enumerate(tensor.layout.segments)
            if segment.hash in wanted and (tensor.states == RowState.PRESENT).any()
        ]
        self._rows: dict[bytes, list[tuple[ImageTable, int]]] = {}
        for images in {id(source.tensor.images): source.tensor.images for source in self._sources}.values():
            for row, digest in enumerate(images.digests):
                self._rows.setdefault(digest.tobytes(), []).append((images, row))

    def size(self, digest: bytes) -> tuple[int, int] | None:
        """Height and width of an image, if some store has read it."""
        for images, row in self._rows.get(digest, ()) if digest != NO_DIGEST else ():
            if int(images.states[row]) == ImageState.READABLE:
                height, width = images.sizes[row].tolist()
                return height, width
        return None

    def available(self, digest: bytes) -> set[str]:
        """The hashes of the segments that need not be computed for an image."""
        return {source.key for source, _ in self._find(digest)}

    def read(self, digest: bytes, wanted: set[str]) -> dict[str, NDArray[Any]]:
        """By segment hash, the (T, F) features of an image, of those wanted that there are."""
        found: dict[str, NDArray[Any]] = {}
        rows: dict[tuple[int, int], NDArray[Any]] = {}
        for source, row in self._find(digest):
            if source.key in wanted and source.key not in found:
                place = (id(source.tensor), row)
                if place not in rows:
                    rows[place] = source.tensor.read([row])[0]
                found[source.key] = source.tensor.layout.part(rows[place], source.index)
        return found

    def _find(self, digest: bytes) -> Iterator[tuple["_Source", int]]:
        for images, row in self._rows.get(digest, ()) if digest != NO_DIGEST else ():
            for source in self._sources:
                if source.tensor.images is images and source.present[row]:
                    yield source, row


@dataclass(frozen=True)
class _Source:
    """A segment of a stored tensor."""

    tensor: StoredTensor
    index: int
    key: str
    present: NDArray[np.bool_]
