"""The plan: which photos there are, which rows lack which tensor, and what their features will be called.

Made without loading a network where it can be, so that a run with nothing to do says so at once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from featstore.backbones import Card, Weights, resolve_weights
from featstore.config import Config
from featstore.errors import FormatError, LockedError, WeightsError
from featstore.identity import Segment
from featstore.images import Photo, digest_photos, find_photos
from featstore.store import ImageState, NewImages, RowState, Store, StoredSegment, TensorLayout, Writer, open_store

if TYPE_CHECKING:
    from featstore.backbones.networks import Network

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, how much is done and how much there is."""

ARITHMETIC = "fp32"


@dataclass(frozen=True)
class Listing:
    """A folder of photos held against the images table of a store."""

    root: Path
    photos: list[Photo]
    store: Store | None
    new: list[tuple[Photo, bytes]]
    gone: list[int]
    touched: list[tuple[int, Photo]]

    @property
    def changes(self) -> bool:
        return bool(self.new or self.gone or self.touched)

    def rows(self, store: Store) -> NDArray[np.int64]:
        """The rows of the listed photos that the store has already, in ascending order."""
        known = store.images.rows_by_path
        gone = set(self.gone)
        rows = (known[photo.path] for photo in self.photos if photo.path in known)
        return np.array(sorted(row for row in rows if row not in gone), dtype=np.int64)

    def absent(self, store: Store, layouts: list[TensorLayout]) -> NDArray[np.int64]:
        """Rows of listed photos that some tensor lacks."""
        rows = self.rows(store)
        lacking = np.zeros(len(rows), bool)
        for layout in layouts:
            tensor = store.tensors.get(layout.name)
            lacking |= True if tensor is None else tensor.states[rows] == RowState.ABSENT
        return rows[lacking]

    def apply(self, writer: Writer) -> None:
        """Bring the images table up to date.

        Raises:
            LockedError: another process has changed it since the photos were listed.
        """
        before = self.store.images.states if self.store else np.empty(0, np.uint8)
        if not np.array_equal(before, writer.store.images.states):
            raise LockedError(f"another process has just changed {writer.path}; run the command again")
        if self.touched:
            writer.note_unchanged(
                [row for row, _ in self.touched],
                [photo.n_bytes for _, photo in self.touched],
                [photo.modified_ns for _, photo in self.touched],
            )
        if self.gone:
            writer.set_image_states(self.gone, ImageState.GONE)
        if self.new:
            writer.add_images(
                NewImages(
                    [photo.path for photo, _ in self.new],
                    np.array([list(digest) for _, digest in self.new], np.uint8),
                    [photo.n_bytes for photo, _ in self.new],
                    [photo.modified_ns for photo, _ in self.new],
                )
            )


def list_photos(root: Path, store: Store | None, report: Progress) -> Listing:
    """List the photos of a folder; only files that are new or look changed are read.

    Raises:
        PhotosError: no folder, or no photos in it.
    """
    photos = find_photos(root)
    known = store.images.rows_by_path if store else {}
    suspects = []
    for photo in photos:
        row = known.get(photo.path)
        if row is None or store is None or not _looks_unchanged(photo, store, row):
            suspects.append(photo)
    digests = digest_photos(
        root, [photo.path for photo in suspects], on_progress=lambda done, total: report("list", done, total)
    )
    new, gone, touched = [], [], []
    for photo, digest in zip(suspects, digests, strict=True):
        row = known.get(photo.path)
        if row is not None and store is not None and store.images.digests[row].tobytes() == digest:
            touched.append((row, photo))
            continue
        if row is not None:
            gone.append(row)
        new.append((photo, digest))
    return Listing(root, photos, store, new, gone, touched)


class Networks:
    """The backbones of a run: their weights, identities and, once needed, the loaded networks.

    Raises:
        WeightsError: on construction, naming every backbone whose weights cannot be had.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self._loaded: dict[str, Network] = {}
        self._weights: dict[str, Weights] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self.segments = {plan.name: config.segments(plan) for plan in config.tensors}
        missing = []
        for card in {s.card.name: s.card for segments in self.segments.values() for s in segments}.values():
            try:
                self._weights[card.name] = resolve_weights(card, config.weights)
            except WeightsError as error:
                missing.append(str(error))
        if missing:
            raise WeightsError("\n".join(missing))

    def layouts(self) -> list[TensorLayout]:
        return [
            TensorLayout(
                plan.name,
                plan.kind,
                tuple(self._stored(segment) for segment in self.segments[plan.name]),
                plan.width,
            )
            for plan in self._config.tensors
        ]

    def load(self, card: Card) -> "Network":
        from featstore.backbones.networks import build_network

        if card.name not in self._loaded:
            self._loaded[card.name] = build_network(card, self._weights[card.name])
        return self._loaded[card.name]

    def by_hash(self) -> dict[str, Segment]:
        return {self._stored(s).hash: s for segments in self.segments.values() for s in segments}

    def origins(self) -> dict[str, str]:
        """Where the weights of each backbone came from, for the provenance."""
        return {
            name: weights.origin + (f": {weights.file.name}" if weights.file else f", seed {weights.seed}")
            for name, weights in self._weights.items()
        }

    def _stored(self, segment: Segment) -> StoredSegment:
        facts = self._weights_facts(segment.card)
        identity = segment.identity(facts, arithmetic=ARITHMETIC, dtype=self._config.dtype)
        return StoredSegment(segment.name, identity, segment.view.n_blocks, segment.card.width)

    def _weights_facts(self, card: Card) -> dict[str, Any]:
        if card.name not in self._facts:
            self._facts[card.name] = self._identify_weights(card)
        return self._facts[card.name]

    def _identify_weights(self, card: Card) -> dict[str, Any]:
        from featstore.backbones.memo import DigestMemo

        weights = self._weights[card.name]
        memo = DigestMemo(self._config.weights.folder)
        file_digest = weights.file_digest()
        known = memo.get(card, file_digest) if file_digest else None
        if known is None:
            from featstore.backbones.networks import weights_digest

            known = weights_digest(self.load(card))
            if file_digest:
                memo.put(card, file_digest, known)
        return {"sha256": known} if weights.seed is None else {"sha256": known, "random_seed": weights.seed}


def existing_store(path: Path) -> Store | None:
    """The store at `path`, or None if nothing is there yet.

    Raises:
        FormatError: something else is there.
    """
    try:
        return open_store(path)
    except FormatError:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise
        return None


def _looks_unchanged(photo: Photo, store: Store, row: int) -> bool:
    images = store.images
    if not images.digests[row].any():  # it could not even be read: look again
        return False
    return bool(images.n_bytes[row] == photo.n_bytes and images.modified_ns[row] == photo.modified_ns)
