"""Decoding: from the bytes of an image file to upright 8-bit RGB pixels.

Every photo is decoded by these rules (`DECODE_RULES` names them in a feature's identity):
EXIF orientation is applied; greyscale and palette are expanded; transparency is laid over white; CMYK is
converted without a colour profile; 16-bit grey is scaled by 1/257; of an animation the first frame is taken.
A JPEG is decoded at 1/2 or 1/4 of its size (by libjpeg, in the frequency domain) where that is still at least
twice what the view is resized to, each way: a third of the time for a photo of twelve million pixels.
"""

import hashlib
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from featstore.errors import ImageError, UnavailableError
from featstore.support import as_path

DECODE_RULES = "rgb8-exif-white-dct2"
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF")  # told by content; for some others Pillow starts programs
SMALLEST_SIDE = 8  # pixels; anything smaller is a tracking dot or a mistake, not a photo
SCALES = (4, 2)  # not 8: it keeps only the mean of 8x8 pixels, up to 58 of 255 off a full decode; these are up to 31
ENOUGH = 2  # times the wanted size: what the smaller DCT leaves out, resizing would not have kept either
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height

# Pillow refuses above 179 million pixels, and warns above half of that, where medium-format cameras are.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class EncodedPhoto:
    """The bytes of an image file whose header has been read.

    Raises:
        ImageError: empty, not an image, too small, or absurdly large.
    """

    def __init__(self, data: bytes) -> None:
        if not data:
            raise ImageError("the file is empty (zero bytes)")
        self._data = data
        self._decoded: dict[int, Image.Image] = {}
        with self._opened() as image:
            width, height = image.size
            if min(width, height) < SMALLEST_SIDE:
                raise ImageError(f"{width}x{height} pixels is too small; at least {SMALLEST_SIDE} each way")
            self._scalable = image.format in ("JPEG", "MPO")  # MPO: what phones write
            sideways = image.getexif().get(ExifTags.Base.Orientation) in SIDEWAYS
        self.width, self.height = (height, width) if sideways else (width, height)

    def decode(self, wanted: tuple[int, int] | None = None) -> Image.Image:
        """RGB and upright, in full size, or at least twice as large as `wanted` (width, height).

        Raises:
            ImageError: truncated or damaged, or pixels without an agreed range.
        """
        scale = self._scale(wanted)
        if scale not in self._decoded:
            with self._opened() as image:
                if scale > 1:
                    image.draft(None, (image.width // scale, image.height // scale))
                image.load()
                ImageOps.exif_transpose(image, in_place=True)
                self._decoded[scale] = _to_rgb(image)
        return self._decoded[scale]

    def _scale(self, wanted: tuple[int, int] | None) -> int:
        if wanted is None or not self._scalable:
            return 1
        most = min(self.width // (ENOUGH * wanted[0]), self.height // (ENOUGH * wanted[1]))
        return next((scale for scale in SCALES if scale <= most), 1)

    @contextmanager
    def _opened(self) -> Iterator[Image.Image]:
        try:
            with Image.open(io.BytesIO(self._data), formats=FORMATS) as image:
                yield image
        except (ImageError, MemoryError):
            raise
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise ImageError(f"absurdly large: {error}") from error
        except UnidentifiedImageError as error:
            raise ImageError(f"not an image; photos are {', '.join(FORMATS)}") from error
        except Exception as error:  # on damaged files Pillow's decoders raise anything: struct.error, KeyError, ...
            raise ImageError(f"damaged or truncated: {error}") from error


def open_photo(file: Path | str, *, digest: bytes | None = None) -> EncodedPhoto:
    """Read a file and the header of the photo in it.

    Args:
        digest: the SHA-256 that the file's bytes must have.

    Raises:
        UnavailableError: the file cannot be opened, or its bytes are not those that were digested.
        ImageError: the bytes are not a photo; says why.
    """
    try:
        data = as_path(file).read_bytes()
    except OSError as error:
        raise UnavailableError(f"cannot be read: {error.strerror}") from error
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise UnavailableError("changed while the run was going on; run the command again")
    return EncodedPhoto(data)


def read_photo(file: Path | str, *, digest: bytes | None = None) -> Image.Image:
    """Read and decode a file to RGB, upright, in full size; arguments and errors as of `open_photo`."""
    return open_photo(file, digest=digest).decode()


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
    return image if image.mode == "RGB" else image.convert("RGB")  # no copy of a large photo
