"""Colour profiles: pixels mean the colours of sRGB, whatever the photo's own space; broken profiles do no harm."""

import io
import os
import struct
import threading
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageCms

from featstore.photos.colour import to_srgb
from featstore.photos.decoding import EncodedPhoto

CASES = Path(os.environ.get("FEATSTORE_TEST_DATA", ""), "cases", "photos")
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def rgb_profile(red: tuple[float, float], green: tuple[float, float], blue: tuple[float, float], gamma: float) -> bytes:
    """A display profile of these XYZ primaries (under D50, so that they add up to white) and one gamma."""
    return profile(b"RGB ", [(b"rXYZ", xyz(*red)), (b"gXYZ", xyz(*green)), (b"bXYZ", xyz(*blue))], gamma)


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", [], gamma)


def xyz(x: float, y: float, z: float = 0.0) -> bytes:
    return struct.pack(">4sI3i", b"XYZ ", 0, *(round(65536 * each) for each in (x, y, z)))


def profile(space: bytes, tags: list[tuple[bytes, bytes]], gamma: float) -> bytes:
    curve = struct.pack(">4sIIHH", b"curv", 0, 1, round(256 * gamma), 0)
    curves = [b"kTRC"] if space == b"GRAY" else [b"rTRC", b"gTRC", b"bTRC"]
    text = struct.pack(">4sII", b"desc", 0, 2) + b"x\0" + bytes(90)
    parts = [
        (b"wtpt", xyz(0.9642, 1.0, 0.8249)),
        (b"desc", text.ljust(104, b"\0")),
        *tags,
        *[(c, curve) for c in curves],
    ]
    table, body, at = b"", b"", 128 + 4 + 12 * len(parts)
    for name, data in parts:
        table += struct.pack(">4sII", name, at + len(body), len(data))
        body += data
    header = struct.pack(">I4sI4s4s4s", at + len(body), b"lcms", 0x02100000, b"mntr", space, b"XYZ ") + bytes(12)
    header += b"acsp" + bytes(28) + struct.pack(">3i", 63190, 65536, 54061)
    return header.ljust(128, b"\0") + struct.pack(">I", len(parts)) + table + body


WIDE = rgb_profile((0.5151, 0.2412, -0.0011), (0.2919, 0.6922, 0.0419), (0.1572, 0.0666, 0.7841), 2.2)  # type: ignore[arg-type]


def smooth(*channels: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[:48, :64]
    return np.dstack([x * 4, y * 5, 255 - x * 3, 60 + y]).astype(np.uint8)[..., : channels[0]]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes) -> tuple[NDArray[np.uint8], str]:
    photo = EncodedPhoto(data)
    return np.asarray(photo.decode()), photo.note


def by_hand(values: NDArray[np.uint8], icc: bytes, mode: str) -> NDArray[np.uint8]:
    found = ImageCms.profileToProfile(
        Image.fromarray(values, mode) if mode != "CMYK" else Image.frombytes("CMYK", (64, 48), values.tobytes()),
        ImageCms.ImageCmsProfile(io.BytesIO(icc)), ImageCms.createProfile("sRGB"),
        ImageCms.Intent.RELATIVE_COLORIMETRIC, "RGB", flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )  # fmt: skip
    return np.asarray(found)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG"])
def test_a_profile_is_applied_in_every_format(kind: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = Image.fromarray(smooth(3))
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, with_profile = (decode(encode(image, kind, **options, **icc)) for icc in ({}, {"icc_profile": WIDE}))
    assert with_profile[1] == ""
    assert np.array_equal(with_profile[0], by_hand(plain[0], WIDE, "RGB"))
    assert np.abs(with_profile[0].astype(int) - plain[0]).max() > 20


@pytest.mark.parametrize("bits", [8, 16])
def test_a_grey_profile_is_applied_to_grey(bits: int) -> None:
    values = smooth(1)[..., 0].copy()
    file = io.BytesIO()
    written = values if bits == 8 else values.astype(np.uint16) * 257
    tifffile.imwrite(file, written, metadata=None, photometric="minisblack", iccprofile=grey_profile(1.0))
    found, note = decode(file.getvalue())
    assert note == ""
    assert found[10, 32, 0] == found[10, 32, 1] == found[10, 32, 2]
    linear = values / 255
    expected = 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    assert np.abs(found[..., 0] - expected).max() <= 2
    png, _ = decode(encode(Image.fromarray(values), "PNG", icc_profile=grey_profile(1.0)))
    assert np.array_equal(png, found)


def test_colours_are_converted_before_they_are_laid_over_white() -> None:
    values = smooth(4)
    opaque, _ = decode(encode(Image.fromarray(values[..., :3].copy()), "PNG", icc_profile=WIDE))
    found, _ = decode(encode(Image.fromarray(values), "PNG", icc_profile=WIDE))
    alpha = values[..., 3:] / 255
    assert np.abs(found - (opaque * alpha + 255 * (1 - alpha))).max() <= 1
    grey = np.dstack([values[..., 0], values[..., 3]])
    opaque, _ = decode(encode(Image.fromarray(values[..., 0].copy()), "PNG", icc_profile=grey_profile(1.0)))
    found, _ = decode(encode(Image.fromarray(grey), "PNG", icc_profile=grey_profile(1.0)))
    assert np.abs(found - (opaque * alpha + 255 * (1 - alpha))).max() <= 1


def test_a_palette_has_colours_of_the_profile_too() -> None:
    image = Image.fromarray(smooth(3)).quantize(64)
    found, _ = decode(encode(image, "PNG", icc_profile=WIDE))
    assert np.array_equal(found, by_hand(np.asarray(image.convert("RGB")), WIDE, "RGB"))


def test_an_srgb_profile_leaves_pixels_as_they_are() -> None:
    values = smooth(3)
    assert np.array_equal(decode(encode(Image.fromarray(values), "PNG", icc_profile=SRGB))[0], values)
    image = Image.fromarray(values)
    found, note = to_srgb(image, SRGB)
    assert found is image
    assert note == ""


@pytest.mark.skipif(not CASES.is_dir(), reason="needs FEATSTORE_TEST_DATA")
def test_the_most_common_srgb_profile_is_known_and_p3_becomes_srgb() -> None:
    in_srgb, in_p3 = (Image.open(CASES / name) for name in ("srgb.png", "p3.png"))
    assert to_srgb(in_srgb, in_srgb.info["icc_profile"])[0] is in_srgb
    found, _ = to_srgb(in_p3, in_p3.info["icc_profile"])
    assert np.abs(np.asarray(found).astype(int) - np.asarray(in_srgb)).max() <= 2


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_a_broken_profile_is_ignored_and_told(kind: str) -> None:
    image = Image.fromarray(smooth(3))
    options = {"lossless": True} if kind == "WEBP" else {}
    plain, _ = decode(encode(image, kind, **options))
    broken = {
        "truncated": WIDE[:300], "damaged": b"\0\0\0\x10" + bytes(300),
        "a grey profile in an RGB photo": grey_profile(2.2),
    }  # fmt: skip
    for says, icc in broken.items():
        found, note = decode(encode(image, kind, icc_profile=icc, **options))
        assert np.array_equal(found, plain), says
        assert note == says


def test_an_rgb_profile_in_a_grey_photo_and_one_of_paper_in_an_rgb_photo_are_ignored() -> None:
    values = smooth(3)
    found, note = decode(encode(Image.fromarray(values[..., 0].copy()), "PNG", icc_profile=WIDE))
    assert np.array_equal(found[..., 1], values[..., 0])
    assert note == "an RGB profile in a grey photo"
    cmyk = WIDE[:16] + b"CMYK" + WIDE[20:]
    found, note = decode(encode(Image.fromarray(values), "PNG", icc_profile=cmyk))
    assert np.array_equal(found, values)
    assert note == "a CMYK profile in an RGB photo"


def test_a_jpeg_that_lacks_a_part_of_its_profile() -> None:
    data = encode(Image.fromarray(smooth(3)), "JPEG", icc_profile=WIDE + bytes(70_000))
    first = data.index(b"ICC_PROFILE\0\2")
    length = struct.unpack(">H", data[first - 2 : first])[0]
    cut = data[: first - 4] + data[first - 2 + length :]
    found, note = decode(cut)
    assert note
    assert np.array_equal(found, decode(encode(Image.fromarray(smooth(3)), "JPEG"))[0])


def test_a_large_profile_is_applied() -> None:
    large = WIDE + os.urandom(3_000_000)
    large = struct.pack(">I", len(large)) + large[4:]
    values = smooth(3)
    for kind in ("PNG", "JPEG", "TIFF"):
        plain, _ = decode(encode(Image.fromarray(values), kind))
        assert np.array_equal(
            decode(encode(Image.fromarray(values), kind, icc_profile=large))[0], by_hand(plain, WIDE, "RGB")
        )


def test_threads_share_a_transform() -> None:
    images = [
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (300, 400, 3)).astype(np.uint8)) for i in range(4)
    ]
    alone = [np.asarray(to_srgb(image, WIDE)[0]) for image in images]
    wrong: list[int] = []

    def convert(i: int) -> None:
        for _ in range(10):
            if not np.array_equal(np.asarray(to_srgb(images[i], WIDE)[0]), alone[i]):
                wrong.append(i)

    threads = [threading.Thread(target=convert, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
