"""JPEG XL files: size and orientation from the header, for the library that reads them decodes everything at once."""

from collections.abc import Iterator

from PIL import ExifTags, Image

CODESTREAM = b"\xff\x0a"
RATIOS = {1: (1, 1), 2: (12, 10), 3: (4, 3), 4: (3, 2), 5: (16, 9), 6: (5, 4), 7: (2, 1)}
SIZES = (9, 13, 18, 30)  # bits


def size_and_orientation(data: bytes) -> tuple[tuple[int, int], int]:
    """Width and height as they are stored, and the orientation by EXIF's numbers (ISO/IEC 18181-1, B.2 and D.2).

    Raises:
        ValueError: there is no header.
    """
    header = _codestream(data)
    if not header.startswith(CODESTREAM):
        raise ValueError("no codestream")
    bits, at = int.from_bytes(header[2:34], "little"), 0

    def take(n: int) -> int:
        nonlocal at
        at += n
        return bits >> (at - n) & (1 << n) - 1

    small = take(1)

    def side() -> int:
        return 8 * (take(5) + 1) if small else take(SIZES[take(2)]) + 1

    height = side()
    ratio = take(3)
    width = height * RATIOS[ratio][0] // RATIOS[ratio][1] if ratio else side()
    has_more = not take(1) and take(1)
    return (width, height), take(3) + 1 if has_more else 1


def orientation_of_exif(data: bytes) -> int:
    """What the EXIF in a file says, 1 if there is none."""
    for kind, body in _boxes(data):
        if kind == b"Exif":
            exif = Image.Exif()
            try:
                # Before it goes where it begins, which some programs leave out.
                exif.load(b"Exif\0\0" + (body if body[:2] in (b"II", b"MM") else body[4:]))
                value = exif.get(ExifTags.Base.Orientation, 1)
            except Exception:  # of damaged EXIF anything
                return 1
            return value if isinstance(value, int) else 1
    return 1


def _codestream(data: bytes) -> bytes:
    """Its beginning, at least."""
    if data.startswith(CODESTREAM):
        return data
    parts = {b"jxlc": 0, b"jxlp": 4}
    return next((body[parts[kind] :] for kind, body in _boxes(data) if kind in parts), b"")


def _boxes(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 0
    while at + 8 <= len(data) and not data.startswith(CODESTREAM):
        length, head = int.from_bytes(data[at : at + 4], "big"), 8
        if length == 1:
            length, head = int.from_bytes(data[at + 8 : at + 16], "big"), 16
        end = at + length if length else len(data)
        if end < at + head:
            return
        yield data[at + 4 : at + 8], data[at + head : end]
        at = end
