"""Finding photos and decoding them.

Every photo becomes 8-bit RGB by these rules (`DECODE_RULES` names them in a feature's identity):
EXIF orientation is applied; greyscale and palette are expanded; transparency is laid over white; CMYK is
converted without a colour profile; 16-bit grey is scaled by 1/257; of an animation the first frame is taken.
"""

import hashlib
import io
import os
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from featstore.errors import ImageError, PhotosError, UnavailableError

DECODE_RULES = "rgb8-exif-white-1"
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"})
NO_DIGEST = bytes(32)
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # told by content; for some others Pillow starts programs
SMALLEST_SIDE = 8  # pixels; anything smaller is a tracking dot or a mistake, not a photo

# Pillow refuses above 179 million pixels, and warns above half of that, where medium-format cameras are.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Photo:
    """One file under the image root, with what decides whether it has to be looked at again."""

    path: str
    """Relative to the image root, with forward slashes: the key people use."""
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


def digest_photos(
    root: Path, paths: list[str], *, on_progress: Callable[[int, int], None] | None = None
) -> list[bytes]:
    """The SHA-256 of each file's bytes, in the order of `paths`; hashed on a few threads.

    A file that the system does not let us read has `NO_DIGEST`: it becomes a row with a reason like any other.
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
            if on_progress:
                on_progress(len(digests), len(paths))
    return digests


def read_photo(file: Path, *, digest: bytes | None = None) -> Image.Image:
    """Read and decode a file to RGB, upright.

    Args:
        digest: the SHA-256 that the file's bytes must have.

    Raises:
        UnavailableError: the file cannot be opened, or its bytes are not those that were digested.
        ImageError: the bytes are not a readable photo; says why.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise UnavailableError(f"cannot be read: {error.strerror}") from error
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise UnavailableError("changed while the run was going on; run the command again")
    return decode(data)


def decode(data: bytes) -> Image.Image:
    """Decode the bytes of an image file to RGB, upright; see the rules above.

    Raises:
        ImageError: empty, truncated, not an image, too small, absurdly large, or pixels without an agreed range.
    """
    if not data:
        raise ImageError("the file is empty (zero bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if min(width, height) < SMALLEST_SIDE:
                raise ImageError(f"{width}x{height} pixels is too small; at least {SMALLEST_SIDE} each way")
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"absurdly large: {error}") from error
    except UnidentifiedImageError as error:
        raise ImageError(f"not an image; photos are {', '.join(FORMATS)}") from error
    except Exception as error:  # on damaged files Pillow's decoders raise anything: struct.error, KeyError, ...
        raise ImageError(f"damaged or truncated: {error}") from error


def _refuse(error: OSError) -> None:
    raise PhotosError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def _photo(root: Path, file: Path) -> Photo:
    path = file.relative_to(root).as_posix()
    try:
        stat = file.stat()
    except OSError:  # a dangling link, say
        return Photo(path, 0, 0)
    return Photo(path, stat.st_size, stat.st_mtime_ns)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("32-bit pixels have no agreed range; convert the file to 8 or 16 bits")
        return Image.fromarray((values / 257 + 0.5).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")
