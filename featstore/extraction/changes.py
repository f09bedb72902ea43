"""Comparing a folder of photos with the images table: what is new, changed, touched or gone."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from featstore.errors import LockedError, PhotosError
from featstore.photos.files import NO_DIGEST, Photo, digest_photos, look_through
from featstore.store import ImageState, NewImages, Store, Writer
from featstore.support import Progress, few


@dataclass(frozen=True)
class Listing:
    """The photos of a folder, and what has to be noted of them."""

    root: Path
    photos: list[Photo]
    store: Store | None
    new: list[tuple[Photo, bytes]] = field(default_factory=list)
    """Photos that get a row, with their digests; those whose bytes changed among them."""
    changed: dict[str, int] = field(default_factory=dict)
    """By path, the row of what a photo was before its bytes changed."""
    touched: list[tuple[int, Photo]] = field(default_factory=list)
    """Files with another time, but the same bytes."""
    restored: list[tuple[int, Photo, bytes]] = field(default_factory=list)
    """Rows that had lost their digest, or never had one, whose file has not been touched since."""
    missing: list[int] = field(default_factory=list)
    """Rows whose photo is not in the folder any more."""
    prune: bool = False
    """Whether the rows of missing photos are to be `gone`."""
    others: list[str] = field(default_factory=list)
    """Paths of the files in the folder that are no photos."""
    notes: list[str] = field(default_factory=list)
    """What was passed over in the folder, a sentence each."""

    @property
    def changes(self) -> bool:
        return bool(self.new or self.touched or self.restored or (self.prune and self.missing))

    @property
    def n_rows(self) -> int:
        """How many rows the store will have."""
        return (0 if self.store is None else len(self.store.images)) + len(self.new)

    def rows(self) -> dict[str, int]:
        """By path, the row that each photo has or will have."""
        known = {} if self.store is None else self.store.images.rows_by_path
        rows = {photo.path: known[photo.path] for photo in self.photos if photo.path in known}
        first = 0 if self.store is None else len(self.store.images)
        return rows | {photo.path: first + i for i, (photo, _) in enumerate(self.new)}

    def digests(self) -> dict[str, bytes]:
        """By path, the digest of each photo."""
        digests = {}
        if self.store is not None:
            images = self.store.images
            known = images.rows_by_path
            digests = {p.path: images.digests[known[p.path]].tobytes() for p in self.photos if p.path in known}
        return digests | {photo.path: digest for photo, digest in self.new}

    def only(self, paths: set[str]) -> "Listing":
        """The same for some of the photos."""
        return replace(
            self,
            photos=[photo for photo in self.photos if photo.path in paths],
            new=[(photo, digest) for photo, digest in self.new if photo.path in paths],
            changed={path: row for path, row in self.changed.items() if path in paths},
            touched=[(row, photo) for row, photo in self.touched if photo.path in paths],
            restored=[(row, photo, digest) for row, photo, digest in self.restored if photo.path in paths],
            missing=[],
        )

    def apply(self, writer: Writer) -> None:
        """Bring the images table up to date.

        Raises:
            LockedError: another process has changed it since the photos were listed.
        """
        self.check(writer)
        if self.touched:
            writer.note_unchanged(
                [row for row, _ in self.touched],
                [photo.n_bytes for _, photo in self.touched],
                [photo.modified_ns for _, photo in self.touched],
            )
        if self.restored:
            rows = [row for row, _, _ in self.restored]
            writer.amend({"images/digest": (rows, _as_array([digest for _, _, digest in self.restored]))})
        gone = [*self.changed.values(), *(self.missing if self.prune else [])]
        if gone:
            writer.set_image_states(sorted(gone), ImageState.GONE)
        if self.new:
            writer.add_images(
                NewImages(
                    [photo.path for photo, _ in self.new],
                    _as_array([digest for _, digest in self.new]),
                    [photo.n_bytes for photo, _ in self.new],
                    [photo.modified_ns for photo, _ in self.new],
                )
            )

    def check(self, writer: Writer) -> None:
        """Refuse a store that has changed since the photos were held against it.

        Raises:
            LockedError: another process has changed it.
        """
        before = self.store.images.states if self.store is not None else np.empty(0, np.uint8)
        if not np.array_equal(before, writer.store.images.states):
            raise LockedError(f"another process has just changed {writer.path}; run the command again")


def list_photos(
    root: Path,
    store: Store | None,
    report: Progress,
    *,
    prune: bool = False,
    ours: Collection[Path] = (),
    strict: bool = False,
) -> Listing:
    """List the photos of a folder; only files that are new or look changed are read.

    Args:
        ours: files and folders that are not looked at, such as the store.
        strict: whether files that are no photos are refused.

    Raises:
        PhotosError: no folder, or no photos in it; or files that are no photos, if `strict`.
    """
    folder = look_through(root, ours=ours)
    if strict and folder.others:
        number = len(folder.others)
        what, them = (
            ("a file that is no photo", "it") if number == 1 else (f"{number} files that are no photos", "them")
        )
        raise PhotosError(
            f"{root} holds {what}, and --strict refuses {them}: {few(folder.others)}; move {them} elsewhere, or run "
            "without --strict"
        )
    photos = folder.photos
    listing = Listing(root, photos, store, prune=prune, others=folder.others, notes=folder.notes())
    known = store.images.rows_by_path if store is not None else {}
    suspects = [photo for photo in photos if store is None or not _looks_unchanged(photo, store)]
    digests = digest_photos(root, [photo.path for photo in suspects], on_progress=report)
    for photo, digest in zip(suspects, digests, strict=True):
        row = known.get(photo.path)
        if store is None or row is None:
            listing.new.append((photo, digest))
            continue
        before = store.images.digests[row].tobytes()
        if before == digest:
            listing.touched.append((row, photo))
        elif before == NO_DIGEST and _same_file(photo, store, row):
            listing.restored.append((row, photo, digest))
        else:
            listing.changed[photo.path] = row
            listing.new.append((photo, digest))
    here = {photo.path for photo in photos}
    listing.missing.extend(row for path, row in known.items() if path not in here)
    return listing


def last_photos(store: Store, default: Path | None = None) -> Path:
    """The folder that the last extraction into a store read its photos from.

    Args:
        default: taken where the store does not say, and where what it says is not here.

    Raises:
        PhotosError: the store does not say, and there is no default either.
    """
    runs = [run for tensor in store.tensors.values() for run in tensor.provenance if "photos" in run]
    last = Path(max(runs, key=lambda run: str(run.get("started", "")))["photos"]) if runs else None
    if default is not None and (last is None or (default.is_dir() and not last.is_dir())):
        return default
    if last is None:
        raise PhotosError(f"{store.path} does not say where its photos are; name their folder with --photos")
    return last


def _looks_unchanged(photo: Photo, store: Store) -> bool:
    row = store.images.rows_by_path.get(photo.path)
    # Without a digest it could not even be read, or the digest was lost: look again.
    return row is not None and store.images.digests[row].any() and _same_file(photo, store, row)


def _same_file(photo: Photo, store: Store, row: int) -> bool:
    images = store.images
    return bool(images.n_bytes[row] == photo.n_bytes and images.modified_ns[row] == photo.modified_ns)


def _as_array(digests: list[bytes]) -> NDArray[np.uint8]:
    return np.frombuffer(b"".join(digests), np.uint8).reshape(-1, 32)
