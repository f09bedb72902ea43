"""PNG files: the chunks that make pixels, the colour profile, and samples of 16 bits, which Pillow would halve."""

import struct
import zlib

import numpy as np
from numpy.typing import NDArray

SIGNATURE = b"\x89PNG\r\n\x1a\n"
ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")
"""Texts in which other programs keep the orientation."""
MOST_TEXT = 2**20  # bytes that such a text may take; Pillow refuses files with longer ones
MOST_PROFILE = 2**26  # bytes


def split(data: bytes) -> tuple[bytes, bytes | None]:
    """The file without what makes no pixels, and its colour profile: None without one, empty if it is damaged."""
    first, kept, profile, at = [data[:33]], [], None, 33  # signature and header
    while at + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + 12 + length
        body = data[at + 8 : at + 8 + length] if kind in (b"iCCP", b"tEXt", b"zTXt", b"iTXt") else b""
        if kind == b"iCCP":
            profile = _inflate(body.partition(b"\0")[2][1:], MOST_PROFILE) or b""
        elif kind == b"eXIf" or (body.startswith(ORIENTED) and _is_short(kind, body)):
            first.append(data[at:end])  # wherever it was, it is known before the pixels are
        elif kind[0] < 0x61 or kind == b"tRNS":
            kept.append(data[at:end])
        at = end
    return b"".join([*first, *kept, data[at:]]), profile


def bits_and_colour(data: bytes) -> tuple[int, int]:
    """Bits of a sample, and PNG's number for the kind of colour, from the header."""
    return (data[24], data[25]) if len(data) > 25 else (0, 0)


def read_16_bits(data: bytes) -> NDArray[np.uint16]:
    """(height, width, samples) of a PNG of 16 bits; a colour declared transparent has become alpha."""
    import imagecodecs

    samples: NDArray[np.uint16] = imagecodecs.png_decode(data)
    return samples if samples.ndim == 3 else samples[..., None]


def _is_short(kind: bytes, body: bytes) -> bool:
    rest = body.partition(b"\0")[2]
    if kind == b"zTXt":
        return _inflate(rest[1:], MOST_TEXT) is not None
    if kind == b"iTXt" and rest[:1] == b"\1":
        return _inflate(rest[2:].split(b"\0", 2)[-1], MOST_TEXT) is not None
    return True


def _inflate(packed: bytes, most: int) -> bytes | None:
    """None if it is damaged, or longer than `most`."""
    unpacking = zlib.decompressobj()
    try:
        found = unpacking.decompress(packed, most)
    except zlib.error:
        return None
    return found if unpacking.eof else None
