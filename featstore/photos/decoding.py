"""Decoding: from the bytes of an image file to upright 8-bit RGB pixels.

Every photo is decoded by these rules (`DECODE_RULES` names them in a feature's identity):
EXIF orientation is applied; greyscale and palette are expanded; transparency is laid over white (a BMP whose alpha is
zero everywhere has none); a colour profile is applied, so that pixels are sRGB, and CMYK without one is converted by
Pillow's formula; samples of 16 bits are scaled by 1/257 and rounded, of TIFF and PNG in grey and in colour, and those
of other depths in the same way; of an animation or a file of several pictures the first is taken.
A JPEG is decoded at 1/2 or 1/4 of its size (by libjpeg, in the frequency domain) where that is still at least
twice what the view is resized to, each way: a third of the time for a photo of twelve million pixels.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from featstore.errors import ImageError, UnavailableError
from featstore.photos.colour import to_srgb
from featstore.photos.files import read_file
from featstore.photos.formats import FORMATS, Opened, format_of, open_encoded
from featstore.photos.pillow_limit import no_pillow_limit
from featstore.photos.samples import to_8_bits
from featstore.support import as_path
from featstore.support import size as in_bytes

__all__ = ["DECODE_RULES", "FORMATS", "MAX_MEGAPIXELS", "EncodedPhoto", "open_photo", "read_photo"]

DECODE_RULES = "rgb8-exif-white-dct2-icc"
MAX_MEGAPIXELS = 500.0
"""More is refused, unless told otherwise; phones have 200, scans of film and stitched panoramas may have more."""
BYTES_A_PIXEL = 4  # as Pillow keeps RGB
SMALLEST_SIDE = 8  # pixels; anything smaller is a tracking dot or a mistake, not a photo
SCALES = (4, 2)  # not 8: it keeps only the mean of 8x8 pixels, up to 58 of 255 off a full decode; these are up to 31
ENOUGH = 2  # times the wanted size: what the smaller DCT leaves out, resizing would not have kept either
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""By EXIF orientation, how a photo comes to stand."""
SIDEWAYS = (5, 6, 7, 8)  # EXIF orientations that swap width and height
UNREADABLE = (
    "unsupported",
    "not supported",
    "unknown",
    "cannot handle",
    "unrecognized",
    "unrecognised",
    "not implemented",
)
"""Words in the error of a decoder that say that the file is whole, and of a kind that it cannot read."""


class EncodedPhoto:
    """The bytes of an image file whose header has been read.

    Args:
        max_megapixels: how large it may be.

    Raises:
        ImageError: empty, not an image, too small, or of a kind that cannot be read.
        UnavailableError: it is larger than it may be, or the library for its format is not installed.
    """

    def __init__(self, data: bytes, *, max_megapixels: float = MAX_MEGAPIXELS) -> None:
        if not data:
            raise ImageError("the file is empty (zero bytes)")
        self._data = data
        self._decoded: dict[int, Image.Image] = {}
        self.note = ""
        """Why its colour profile was not applied, if it was not; known once it has been decoded."""
        with self._errors():
            opened = open_encoded(data)
            width, height = opened.size
            if min(width, height) < SMALLEST_SIDE:
                raise ImageError(f"{width}x{height} pixels is too small; at least {SMALLEST_SIDE} each way")
            self._scalable = opened.scalable
            sideways = opened.orientation in SIDEWAYS
        self._opened: Opened | None = opened
        """As it is until the first decoding, which uses it up."""
        self.width, self.height = (height, width) if sideways else (width, height)
        if width * height > max_megapixels * 1e6:
            raise UnavailableError(
                f"{width * height / 1e6:.4g} megapixels ({self.width}x{self.height}), which take "
                f"{in_bytes(width * height * BYTES_A_PIXEL)} of memory or more; the limit is {max_megapixels:.4g} "
                "megapixels, raise it with `featstore extract --max-megapixels` (max_megapixels in featstore.toml)"
            )

    def decode(self, wanted: tuple[int, int] | None = None) -> Image.Image:
        """RGB and upright, in full size, or at least twice as large as `wanted` (width, height).

        Raises:
            ImageError: truncated or damaged, or pixels without an agreed range.
        """
        scale = self._scale(wanted)
        if scale not in self._decoded:
            with self._errors():
                opened, self._opened = self._opened or open_encoded(self._data), None
                image, self.note = _to_rgb(opened.load(scale), opened.profile)
                turn = UPRIGHT.get(opened.orientation)
                self._decoded[scale] = image if turn is None else image.transpose(turn)
        return self._decoded[scale]

    def megapixels(self, wanted: tuple[int, int] | None = None) -> float:
        """How many are decoded for a size, in millions."""
        return self.width * self.height / self._scale(wanted) ** 2 / 1e6

    def _scale(self, wanted: tuple[int, int] | None) -> int:
        if wanted is None or not self._scalable:
            return 1
        most = min(self.width // (ENOUGH * wanted[0]), self.height // (ENOUGH * wanted[1]))
        return next((scale for scale in SCALES if scale <= most), 1)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with no_pillow_limit():
                yield
        except (ImageError, MemoryError):
            raise
        except Exception as error:  # on damaged files Pillow's decoders raise anything: struct.error, KeyError, ...
            if any(word in str(error).lower() for word in UNREADABLE):
                raise ImageError(
                    f"a kind of {format_of(self._data)} that cannot be read ({error}); convert the file"
                ) from error
            raise ImageError(f"damaged or truncated: {error}") from error


def open_photo(
    file: Path | str, *, digest: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS
) -> EncodedPhoto:
    """Read a file and the header of the photo in it.

    Args:
        digest: the SHA-256 that the file's bytes must have.
        max_megapixels: how large it may be.

    Raises:
        UnavailableError: the file cannot be opened, its bytes are not those that were digested, or it is too large.
        ImageError: the bytes are not a photo; says why.
    """
    data = read_file(as_path(file))
    if digest is not None and hashlib.sha256(data).digest() != digest:
        raise UnavailableError("changed while the run was going on; run the command again")
    return EncodedPhoto(data, max_megapixels=max_megapixels)


def read_photo(file: Path | str, *, digest: bytes | None = None, max_megapixels: float = MAX_MEGAPIXELS) -> Image.Image:
    """Read and decode a file to RGB, upright, in full size; arguments and errors as of `open_photo`."""
    return open_photo(file, digest=digest, max_megapixels=max_megapixels).decode()


def _to_rgb(image: Image.Image, profile: bytes | None) -> tuple[Image.Image, str]:
    """In sRGB and over white, and why the profile was not applied, if it was not."""
    image, note = _plain(image), ""
    if profile is not None:
        alpha = image.getchannel("A") if image.mode in ("LA", "RGBA") else None
        colours = image if alpha is None else image.convert(image.mode[:-1])
        converted, note = to_srgb(colours, profile)
        if converted is not colours:
            image = converted
            if alpha is not None:
                image.putalpha(alpha)
    if image.mode in ("LA", "RGBA"):
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        image = Image.alpha_composite(white, layered)
    return image if image.mode == "RGB" else image.convert("RGB"), note  # no copy of a large photo


def _plain(image: Image.Image) -> Image.Image:
    """In one of the modes L, LA, RGB, RGBA and CMYK."""
    if image.mode == "F":
        raise ImageError("floating-point pixels have no agreed range; convert the file to 8 or 16 bits")
    if image.mode.startswith("I"):  # 16-bit grey; Pillow's own conversion would clip at 255
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError("32-bit pixels have no agreed range; convert the file to 8 or 16 bits")
        return Image.fromarray(to_8_bits(values.astype(np.uint16)))
    if image.mode in ("L", "RGB", "CMYK") and not image.has_transparency_data:
        return image
    grey = image.mode in ("1", "L", "LA", "La")
    if image.has_transparency_data:
        return image.convert("LA" if grey else "RGBA")
    return image.convert("L" if grey else "RGB")
