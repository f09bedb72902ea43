"""JPEG files whose metadata is damaged: the same without it."""

import struct

APPLICATIONS = range(0xE0, 0xF0)
PIXELS = (0xE0, 0xE2, 0xEE)
"""Segments of applications that say what the pixels mean: JFIF, the colour profile, Adobe's colour transform."""
SCAN = 0xDA


def without_metadata(data: bytes) -> bytes:
    """The file without EXIF, XMP and whatever else no pixel depends on."""
    kept, at = [data[:2]], 2
    while at + 4 <= len(data) and data[at] == 0xFF and data[at + 1] != SCAN:
        marker, length = struct.unpack_from(">xBH", data, at)
        if marker not in APPLICATIONS or marker in PIXELS:
            kept.append(data[at : at + 2 + length])
        at += 2 + length
    return b"".join([*kept, data[at:]])
