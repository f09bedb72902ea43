"""Photo files: finding them under a folder, and hashing their bytes, by which a photo is known."""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from featstore.errors import PhotosError
from featstore.support import Progress, no_progress

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
NO_DIGEST = bytes(32)


@dataclass(frozen=True)
class Photo:
    """One file under the photo folder; its size and time say whether it has to be hashed again."""

    path: str
    """Relative to the photo folder, with forward slashes."""
    n_bytes: int
    modified_ns: int


def find_photos(root: Path) -> list[Photo]:
    """All files under `root` with the name of an image, sorted by path; hidden files are left out.

    Raises:
        PhotosError: `root` does not exist, is not a folder, or holds no such file; a folder in it cannot be listed,
            or a name in it is not valid UTF-8.
    """
    if not root.is_dir():
        what = "is not a folder" if root.exists() else "does not exist"
        raise PhotosError(f"photo folder {root} {what}; name the folder that holds the photos")
    found: list[Photo] = []
    for folder, subfolders, names in os.walk(root, onerror=_refuse):
        subfolders[:] = sorted(name for name in subfolders if not name.startswith("."))
        for name in names:
            if name.startswith(".") or Path(name).suffix.lower() not in SUFFIXES:
                continue
            file = Path(folder, name)
            if any("\ud800" <= char <= "\udfff" for char in str(file)):  # how Python spells bytes that are no text
                raise PhotosError(f"the file name {str(file)!r} is not valid UTF-8; rename the file")
            found.append(_photo(root, file))
    if not found:
        raise PhotosError(
            f"photo folder {root} holds no photos; looked for {', '.join(sorted(SUFFIXES))} in it and its subfolders"
        )
    return sorted(found, key=lambda photo: photo.path)


def digest_photos(root: Path, paths: list[str], *, on_progress: Progress = no_progress) -> list[bytes]:
    """The SHA-256 of each file's bytes, in the order of `paths`; hashed on a few threads.

    A file that cannot be opened has `NO_DIGEST`; the reason is recorded when the file is to be decoded.
    """

    def digest(path: str) -> bytes:
        try:
            with (root / path).open("rb") as file:
                return hashlib.file_digest(file, "sha256").digest()
        except OSError:
            return NO_DIGEST

    digests = []
    with ThreadPoolExecutor() as pool:
        for value in pool.map(digest, paths):
            digests.append(value)
            on_progress("list", len(digests), len(paths))
    return digests


def _refuse(error: OSError) -> None:
    raise PhotosError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _photo(root: Path, file: Path) -> Photo:
    path = file.relative_to(root).as_posix()
    try:
        stat = file.stat()
    except OSError:  # a dangling link, say
        return Photo(path, 0, 0)
    return Photo(path, stat.st_size, stat.st_mtime_ns)
