"""Photo files: finding them under a folder, reading them, and hashing their bytes, by which a photo is known."""

import hashlib
import os
import stat
import sys
from collections import Counter, deque
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from featstore import files
from featstore.errors import PhotosError, UnavailableError
from featstore.photos.threads import Threads
from featstore.support import Progress, few, n_cores, no_progress

SUFFIXES = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jif", ".jfif", ".jfi", ".mpo", ".png", ".apng", ".webp", ".bmp", ".dib", ".gif"),
        *(".tif", ".tiff", ".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpf", ".jpx", ".jpc"),
        *(".ppm", ".pgm", ".pbm", ".pnm"),
    }
)
CLUTTER = frozenset(["thumbs.db", "desktop.ini", "ehthumbs.db", "featstore.toml"])
"""Names that are passed over like hidden ones: what Windows leaves in folders, and what we do."""
ZARR = ("zarr.json", ".zgroup", ".zarray")
"""A folder that holds one of these is a Zarr store, with a file for each shard: not looked into."""
NO_DIGEST = bytes(32)
HASHING = 32  # threads at most
MOST_BYTES = 1 << 30
"""Of the file of a photo, 1 GiB: it is read whole, on several threads, and may be a trap."""


@dataclass(frozen=True)
class Photo:
    """One file under the photo folder; its size and time say whether it has to be hashed again."""

    path: str
    """Relative to the photo folder, with forward slashes."""
    n_bytes: int
    modified_ns: int


@dataclass(frozen=True)
class Folder:
    """What lies under a photo folder."""

    photos: list[Photo]
    """Sorted by path."""
    others: list[str] = field(default_factory=list)
    """Paths of the files that are no photos by their names."""
    again: dict[str, str] = field(default_factory=dict)
    """By path, each linked folder that was not entered, because its photos are found without it; and where it leads."""

    def notes(self) -> list[str]:
        """What was passed over, a sentence each."""
        told = []
        if self.others:
            kinds = Counter(Path(path).suffix.lower() or "without a suffix" for path in self.others)
            what = "file is no photo" if len(self.others) == 1 else "files are no photos"
            told.append(f"{len(self.others)} {what}: {few(kind for kind, _ in kinds.most_common())}")
        if self.again:
            path, leads_to = next(iter(self.again.items()))
            what = "linked folder was" if len(self.again) == 1 else "linked folders were"
            told.append(
                f"{len(self.again)} {what} not entered, for the photos there are found without it: {path} -> {leads_to}"
                + (" and others" if len(self.again) > 1 else "")
            )
        return told


def find_photos(root: Path) -> list[Photo]:
    """The photos of `look_through`."""
    return look_through(root).photos


def look_through(root: Path, *, ours: Collection[Path] = ()) -> Folder:
    """All files under `root`, photos and others, by their names; hidden files and Zarr stores are left out.

    A linked folder is entered like any other, unless its photos are found without it.

    Args:
        ours: files and folders that are not looked at, such as the store.

    Raises:
        PhotosError: `root` does not exist, is not a folder, or holds no photo; a folder in it cannot be listed,
            or a photo's name is not valid UTF-8.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise PhotosError(f"photo folder {root} {what}; name the folder that holds the photos")
    walk = _Walk(root, ours)
    walk.enter(root)
    walk.enter_links()
    found = Folder(sorted(walk.photos, key=lambda photo: photo.path), sorted(walk.others), walk.again)
    if not found.photos:
        raise PhotosError(
            f"photo folder {root} holds no photos; looked for {', '.join(sorted(SUFFIXES))} in it and its subfolders"
        )
    return found


def read_file(file: Path) -> bytes:
    """The bytes of a file.

    Raises:
        UnavailableError: it cannot be opened, has more than `MOST_BYTES`, or is a pipe or a device.
    """
    try:
        return files.read_file(file, MOST_BYTES)
    except OSError as error:
        raise UnavailableError(f"cannot be read: {error.strerror}") from error


def digest_photos(root: Path, paths: list[str], *, on_progress: Progress = no_progress) -> list[bytes]:
    """The SHA-256 of each file's bytes, in the order of `paths`; hashed on a few threads.

    A file that cannot be read has `NO_DIGEST`; the reason is recorded when the file is to be decoded.
    """

    def digest(path: str) -> bytes:
        try:
            with files.open_file(root / path) as file:
                if os.fstat(file.fileno()).st_size > MOST_BYTES:
                    return NO_DIGEST
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return NO_DIGEST

    digests = []
    with Threads(min(HASHING, n_cores() + 4, len(paths)), "hash") as threads:
        for future in [threads.submit(digest, path) for path in paths]:
            digests.append(future.result())
            on_progress("list", len(digests), len(paths))
    return digests


class _Walk:
    """Folders, each entered once: first all that lie under the root, then those that links lead to."""

    def __init__(self, root: Path, ours: Collection[Path]) -> None:
        self.photos: list[Photo] = []
        self.others: list[str] = []
        self.again: dict[str, str] = {}
        self._root = root
        self._ours = {os.path.realpath(path) for path in ours}
        self._our_names = {path.name for path in ours}
        self._entered: set[tuple[int, int]] = set()
        self._links: deque[Path] = deque()

    def enter(self, folder: Path) -> None:
        """Take the files of a folder and of those in it; keep links to folders for later."""
        waiting = [folder]
        while waiting:
            now = waiting.pop()
            try:
                self._entered.add(_identity(now))
                entries = sorted(os.scandir(now), key=lambda entry: entry.name)
            except OSError as error:
                name = now if now == self._root else f"{self._root}{os.sep}{now.relative_to(self._root)}"
                raise PhotosError(f"cannot list the folder {name}: {error.strerror}") from error
            if now != self._root and any(entry.name in ZARR for entry in entries):
                continue
            for entry in entries:
                if self._is_passed_over(entry):
                    continue
                if not _is_folder(entry):
                    self._take(Path(entry.path))
                elif entry.is_symlink():
                    self._links.append(Path(entry.path))
                elif _identity(Path(entry.path)) not in self._entered:
                    waiting.append(Path(entry.path))

    def enter_links(self) -> None:
        while self._links:
            link = self._links.popleft()
            leads_to = link.resolve()
            inside = link.parent.resolve()
            if inside.is_relative_to(leads_to) or _identity(link) in self._entered:
                self.again[_text(link.relative_to(self._root))] = str(leads_to)
            else:
                self.enter(link)

    def _take(self, file: Path) -> None:
        path = file.relative_to(self._root)
        if file.suffix.lower() not in SUFFIXES:
            self.others.append(_text(path))
            return
        if any("\ud800" <= char <= "\udfff" for char in str(file)):  # how Python spells bytes that are no text
            encoding = sys.getfilesystemencoding()
            if encoding != "utf-8":
                raise PhotosError(
                    f"the file name {str(file)!r} is not {encoding}, as this locale says; set PYTHONUTF8=1"
                )
            raise PhotosError(f"the file name {str(file)!r} is not valid UTF-8; rename the file")
        self.photos.append(_photo(file, path.as_posix()))

    def _is_passed_over(self, entry: "os.DirEntry[str]") -> bool:
        name = entry.name.lower()
        if name.startswith(".") or name in CLUTTER or name.endswith(".zarr.lock"):
            return True
        return entry.name in self._our_names and os.path.realpath(entry.path) in self._ours


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself, say
        return False


def _identity(folder: Path) -> tuple[int, int]:
    facts = folder.stat()
    return facts.st_dev, facts.st_ino


def _text(path: Path) -> str:
    """A path for people and for JSON, whatever bytes its name has."""
    return os.fsencode(path.as_posix()).decode(errors="replace")


def _photo(file: Path, path: str) -> Photo:
    try:
        facts = file.stat()
    except OSError:  # a dangling link, say
        return Photo(path, 0, 0)
    return Photo(path, facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else Photo(path, 0, 0)
