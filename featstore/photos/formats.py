"""Formats: a photo told by its first bytes, opened by the library that reads it, and no program started for it.

Only the decoder of the format that the bytes show is tried, so that an error says what is wrong with that kind of file.
"""

import io
import warnings
from collections.abc import Callable
from typing import Protocol, cast

from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    PpmImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from featstore.errors import ImageError, UnavailableError
from featstore.photos import bmp, jpeg, jxl, png, tiff
from featstore.photos.samples import image_of, to_8_bits

FORMATS = ("JPEG", "PNG", "WebP", "BMP", "TIFF", "GIF", "HEIC", "AVIF", "JPEG XL", "JPEG 2000", "PPM")
_STARTS: dict[str, bytes | tuple[bytes, ...]] = {
    "JPEG": b"\xff\xd8\xff",
    "PNG": png.SIGNATURE,
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "GIF": (b"GIF87a", b"GIF89a"),
    "BMP": b"BM",
    "JPEG XL": (b"\xff\x0a", b"\0\0\0\x0cJXL \r\n\x87\n"),
    "JPEG 2000": (b"\xff\x4f\xff\x51", b"\0\0\0\x0cjP  \r\n\x87\n"),
}
_AVIF = {b"avif", b"avis"}
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"}
# Pillow tells of odd metadata, in the middle of our progress; no pixel depends on it.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


class Opened(Protocol):
    """A photo whose header has been read."""

    size: tuple[int, int]
    """Width and height, as they are stored."""
    orientation: int
    """How it is to be turned, by EXIF's numbers."""
    profile: bytes | None
    """Its colour profile; empty if it has one that is damaged."""
    scalable: bool
    """Whether it can be decoded at a part of its size."""

    def load(self, scale: int) -> Image.Image:
        """Its pixels, at 1/scale of its size if it is scalable."""
        ...


def format_of(data: bytes) -> str | None:
    """One of `FORMATS`, as the first bytes of a file show it."""
    if data[4:8] == b"ftyp":
        end = min(int.from_bytes(data[:4], "big"), 256)
        brands = {data[8:12], *(data[at : at + 4] for at in range(16, end, 4))}
        return "AVIF" if brands & _AVIF else "HEIC" if brands & _HEIC else None
    if data[:4] == b"RIFF":
        return "WebP" if data[8:12] == b"WEBP" else None
    if data[:1] == b"P" and data[1:2] in b"123456":
        return "PPM" if data[2:3].isspace() else None
    return next((name for name, starts in _STARTS.items() if data.startswith(starts)), None)


def open_encoded(data: bytes) -> Opened:
    """Read the header of a photo.

    Raises:
        ImageError: it is none, or of a kind that cannot be read.
        UnavailableError: the library that reads it is not installed.
        Exception: it is damaged; Pillow and its decoders raise anything.
    """
    name = format_of(data)
    if name is None:
        raise ImageError(f"not an image; photos are {', '.join(FORMATS)}")
    if name == "JPEG":
        return _open_jpeg(data)
    if name == "PNG":
        return _open_png(data)
    if name == "BMP":
        return _open_bmp(data)
    if name == "TIFF":
        return _open_tiff(data)
    if name == "HEIC":
        return _open_heic(data)
    if name == "JPEG XL":
        return _JpegXl(data)
    return _Pillow(_OPENERS[name](io.BytesIO(data)))


class _Pillow:
    """A photo that Pillow, or a plugin of it, reads."""

    def __init__(self, image: Image.Image, profile: bytes | None = None) -> None:
        self._image, self.size = image, image.size
        # Pillow itself turns a TIFF, and says so by its size.
        self.orientation = 1 if image.format == "TIFF" else _orientation(image)
        if profile is None and "icc_profile" in image.info:
            profile = image.info["icc_profile"] or b""  # Pillow says None where parts of it are missing
        self.profile = profile
        self.scalable = image.format in ("JPEG", "MPO")  # MPO: what phones write

    def load(self, scale: int) -> Image.Image:
        if scale > 1:
            self._image.draft(None, (self.size[0] // scale, self.size[1] // scale))
        self._image.load()
        return self._image


class _Samples:
    """A photo whose pixels are read by a function of ours."""

    scalable = False

    def __init__(
        self, size: tuple[int, int], read: Callable[[], Image.Image], *, orientation: int = 1, profile: bytes | None
    ) -> None:
        self.size, self._read, self.orientation, self.profile = size, read, orientation, profile

    def load(self, scale: int) -> Image.Image:
        return self._read()


class _JpegXl:
    """A JPEG XL, which is decoded only when its pixels are wanted; its profile is known then."""

    scalable = False

    def __init__(self, data: bytes) -> None:
        self._open, self._data = _jpeg_xl_opener(), data
        self.size, self.orientation = jxl.size_and_orientation(data)
        self._turns = self.orientation != 1
        if not self._turns:  # EXIF counts in a file that says nothing itself
            self.orientation = jxl.orientation_of_exif(data)
        self.profile: bytes | None = None

    def load(self, scale: int) -> Image.Image:
        image = self._open(io.BytesIO(self._data))
        if self._turns and not getattr(image, "jpeg", False):  # the pixels of a JPEG within are as they were
            self.orientation = 1
        self.profile = image.info.get("icc_profile")
        image.load()
        return image


def _open_jpeg(data: bytes) -> Opened:
    try:
        return _Pillow(JpegImagePlugin.jpeg_factory(io.BytesIO(data)))
    except Exception:  # its EXIF may be damaged, which Pillow does not always forgive
        return _Pillow(JpegImagePlugin.jpeg_factory(io.BytesIO(jpeg.without_metadata(data))))


def _open_heic(data: bytes) -> Opened:
    image = _heif_opener()(io.BytesIO(data))
    found = _Pillow(image)
    # The decoder has turned it as its properties say; EXIF counts in a file that has none of these.
    properties = data.find(b"ipco")
    end = properties + int.from_bytes(data[properties - 4 : properties], "big")
    if not any(turned in data[properties:end] for turned in (b"irot", b"imir")):
        found.orientation = image.info.get("original_orientation") or 1
    return found


def _open_png(data: bytes) -> Opened:
    data, profile = png.split(data)
    image = PngImagePlugin.PngImageFile(io.BytesIO(data))
    bits, kind = png.bits_and_colour(data)
    if bits == 16:
        return _Samples(
            image.size,
            lambda: image_of(to_8_bits(png.read_16_bits(data))),
            orientation=_orientation(image),
            profile=profile,
        )
    if kind == 0 and bits in (2, 4) and "transparency" in image.info:  # Pillow scales the pixels, and not this
        image.info["transparency"] *= 255 // (2**bits - 1)
    return _Pillow(image, profile)


def _open_bmp(data: bytes) -> Opened:
    profile = bmp.profile_of(data)
    if not bmp.has_masks(data):
        return _Pillow(BmpImagePlugin.BmpImageFile(io.BytesIO(data)), profile)
    return _Samples(bmp.size_of(data), lambda: image_of(bmp.read_masks(data)), profile=profile)


def _open_tiff(data: bytes) -> Opened:
    try:
        image = TiffImagePlugin.TiffImageFile(io.BytesIO(data))
    except Exception:  # what Pillow does not know tifffile may, or can name
        pass
    else:
        if tiff.suits_pillow(image):
            return _Pillow(image)
    found = tiff.Tiff(data)
    return _Samples(found.size, found.read, orientation=found.orientation, profile=found.profile)


def _heif_opener() -> Callable[[io.BytesIO], Image.Image]:
    try:
        from pillow_heif import HeifImageFile
    except ImportError as error:
        raise UnavailableError(f"HEIC takes pillow-heif, which cannot be loaded: {error}") from error
    return cast(Callable[[io.BytesIO], Image.Image], HeifImageFile)


def _jpeg_xl_opener() -> Callable[[io.BytesIO], Image.Image]:
    try:
        from pillow_jxl.JpegXLImagePlugin import JXLImageFile
    except ImportError as error:
        raise UnavailableError("JPEG XL takes one more package: pip install 'featstore[jxl]'") from error
    return cast(Callable[[io.BytesIO], Image.Image], JXLImageFile)


def _orientation(image: Image.Image) -> int:
    try:
        # Not that of a PNG, which decodes it all, for EXIF may come behind the pixels; `png.split` has put it before.
        value = Image.Image.getexif(image).get(ExifTags.Base.Orientation, 1)
    except Exception:  # of damaged EXIF anything; the picture is none the worse
        return 1
    return value if isinstance(value, int) else 1


_OPENERS: dict[str, Callable[[io.BytesIO], Image.Image]] = {
    "WebP": WebPImagePlugin.WebPImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "JPEG 2000": Jpeg2KImagePlugin.Jpeg2KImageFile,
    "PPM": PpmImagePlugin.PpmImageFile,
}
