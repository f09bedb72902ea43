"""TIFF files of the layouts that Pillow reads wrongly or not at all, by tifffile: 16 bits, planes, and what is refused.

Pillow reads those of 8 bits and fewer whose samples lie side by side, and knows the oldest kinds: fax, YCbCr, palettes.
"""

import io
import logging
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, TiffImagePlugin

from featstore.errors import ImageError
from featstore.photos.samples import image_of, to_8_bits

if TYPE_CHECKING:
    from tifffile import TiffPage

PILLOWS_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32809, 32946, 34925, 50000)
UNSIGNED = (1, 4)
"""Of the tag SampleFormat; 4 is "not said"."""
KINDS = {1: "integer", 2: "signed integer", 3: "floating-point", 5: "complex integer", 6: "complex"}
"""By SampleFormat."""
MIN_IS_WHITE = 0
COLOURS = {MIN_IS_WHITE: 1, 1: 1, 2: 3, 5: 4}
"""By the tag PhotometricInterpretation, the samples of a colour: grey either way, RGB, CMYK."""
ASSOCIATED, UNASSOCIATED = 1, 2
"""Alpha by which the colours have been multiplied, or not."""


def suits_pillow(image: TiffImagePlugin.TiffImageFile) -> bool:
    """Whether Pillow reads a file of this layout rightly."""
    tags = image.tag_v2
    bits, formats = _as_tuple(tags.get(258, 1)), _as_tuple(tags.get(339, 1))
    n_samples, photometric = tags.get(277, 1), tags.get(262)
    return (
        max(bits) <= 8
        and set(formats) <= set(UNSIGNED)
        and (n_samples == 1 or tags.get(284, 1) == 1)
        and tags.get(259, 1) in PILLOWS_COMPRESSIONS
        and not (n_samples == 2 and photometric in (0, 1))
    )


logging.getLogger("tifffile").addHandler(logging.NullHandler())  # or it writes on the terminal


class Tiff:
    """The first picture of a TIFF, as tifffile reads it.

    Raises:
        ImageError: its pixels have no agreed range, or are of a kind that is no photo; names the kind.
    """

    def __init__(self, data: bytes) -> None:
        import tifffile

        self._data = data
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            page = file.pages.first
            self.size = (page.imagewidth, page.imagelength)
            tag, profile = page.tags.get(274), page.tags.get(34675)
            self.orientation = tag.value if tag is not None and isinstance(tag.value, int) else 1
            self.profile = None if profile is None else bytes(profile.value)
            _check_kind(page)

    def read(self) -> Image.Image:
        """In 8 bits: grey, RGB or CMYK, maybe with alpha.

        Raises:
            ImageError: truncated.
        """
        import tifffile

        with tifffile.TiffFile(io.BytesIO(self._data)) as file:
            page = file.pages.first
            _check_whole(page, len(self._data))
            samples = page.asarray(maxworkers=1)
        if page.planarconfig == 2 and page.samplesperpixel > 1:
            samples = np.moveaxis(samples, 0, -1)
        samples = samples.reshape(page.imagelength, page.imagewidth, page.samplesperpixel)
        n_colours = COLOURS[page.photometric]
        colours = to_8_bits(samples[..., :n_colours], page.bitspersample)
        if page.photometric == MIN_IS_WHITE:
            colours = 255 - colours
        if n_colours == 4:
            return Image.frombytes("CMYK", self.size, np.ascontiguousarray(colours).tobytes())
        alphas = [i for i, kind in enumerate(page.extrasamples) if kind in (ASSOCIATED, UNASSOCIATED)]
        if not alphas:
            return image_of(colours)
        alpha = to_8_bits(samples[..., n_colours + alphas[0], None], page.bitspersample)
        premultiplied = page.extrasamples[alphas[0]] == ASSOCIATED
        return image_of(np.concatenate([colours, alpha], axis=-1), premultiplied=premultiplied)


def _check_kind(page: "TiffPage") -> None:
    bits, kind = page.bitspersample, page.sampleformat
    if page.dtype is None or kind not in UNSIGNED or bits > 16:
        name = KINDS.get(kind, f"sample format {kind}")
        raise ImageError(f"{bits}-bit {name} TIFF: its pixels have no agreed range; convert the file to 8 or 16 bits")
    n_colours = COLOURS.get(page.photometric)
    n_extra = len(page.extrasamples)
    # With RGB there may be masks; grey with more than alpha is bands of something else.
    bands = n_colours == 1 and n_extra > 1
    if page.samplesperpixel - n_extra != n_colours or bands or page.imagedepth > 1:
        meaning = getattr(page.photometric, "name", str(page.photometric)).lower()
        raise ImageError(
            f"{bits}-bit TIFF of {page.samplesperpixel} samples a pixel ({meaning}) cannot be read; "
            "convert the file to grey, RGB or CMYK"
        )


def _check_whole(page: "TiffPage", n_bytes: int) -> None:
    """tifffile fills what is missing with zeros."""
    ends = [start + length for start, length in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if not ends or max(ends) > n_bytes or 0 in page.databytecounts:
        raise ImageError("damaged or truncated: the file ends before its last row")


def _as_tuple(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)
