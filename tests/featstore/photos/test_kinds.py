"""Each kind of file that was read wrongly once: other depths, layouts, transparency, orientation, metadata."""

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

from featstore.errors import ImageError, UnavailableError
from featstore.photos.decoding import EncodedPhoto, read_photo
from featstore.photos.formats import format_of
from featstore.photos.jxl import size_and_orientation

CASES = Path(os.environ.get("FEATSTORE_TEST_DATA", ""), "cases", "photos")
needs_cases = pytest.mark.skipif(not CASES.is_dir(), reason="needs FEATSTORE_TEST_DATA")
ORIENTATION = 0x0112
H, W = 40, 56
RANDOM = np.random.default_rng(0)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(data: bytes) -> NDArray[np.uint8]:
    image = EncodedPhoto(data).decode()
    assert image.mode == "RGB"
    return np.asarray(image)


def case(name: str) -> NDArray[np.uint8]:
    return np.asarray(read_photo(CASES / name))


def samples(bits: int, *shape: int) -> NDArray[np.unsignedinteger]:
    return RANDOM.integers(0, 2**bits, shape).astype(np.uint16 if bits > 8 else np.uint8)


def in_8_bits(values: NDArray[np.unsignedinteger], bits: int) -> NDArray[np.uint8]:
    return np.floor(values / (2**bits - 1) * 255 + 0.5).astype(np.uint8)


def as_rgb(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Grey, grey and alpha, RGB or RGBA over white."""
    if values.ndim == 2:
        values = values[..., None]
    colours = values[..., :1] if values.shape[-1] < 3 else values[..., :3]
    if values.shape[-1] in (2, 4):
        alpha = values[..., -1:] / 255
        colours = np.floor(colours * alpha + 255 * (1 - alpha) + 0.5).astype(np.uint8)
    return np.broadcast_to(colours, (*values.shape[:2], 3))


def largest_difference(found: NDArray[np.uint8], expected: NDArray[np.uint8]) -> int:
    assert found.shape == expected.shape
    return int(np.abs(found.astype(int) - expected).max())


# ---- TIFF: every layout against the array that was written

LAYOUTS = [
    ("minisblack", 1, None), ("miniswhite", 1, None), ("rgb", 3, None), ("rgb", 4, "unassalpha"),
    ("rgb", 4, "assocalpha"), ("rgb", 4, "unspecified"), ("minisblack", 2, "unassalpha"),
    ("minisblack", 2, "assocalpha"), ("miniswhite", 2, "unassalpha"), ("separated", 4, None),
]  # fmt: skip
PACKINGS = [(None, False), ("lzw", False), ("lzw", True), ("deflate", False), ("deflate", True), ("packbits", False)]


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize(("photometric", "n_samples", "extra"), LAYOUTS)
@pytest.mark.parametrize("planar", ["contig", "separate"])
def test_a_tiff_of_any_layout_is_what_was_written(
    photometric: str, n_samples: int, extra: str | None, bits: int, planar: str
) -> None:
    if n_samples == 1 and planar == "separate":
        return
    values = samples(bits, H, W, n_samples)
    if extra == "assocalpha":  # a colour is at most its alpha
        values[..., :-1] = (values[..., :-1] / (2**bits - 1) * values[..., -1:]).astype(values.dtype)
    for order in "<>":
        for compression, predictor in PACKINGS:
            for tile in (None, (16, 16)):
                data = tiff(
                    values[..., 0] if n_samples == 1 else values if planar == "contig" else np.moveaxis(values, -1, 0),
                    photometric=photometric, planarconfig=planar if n_samples > 1 else None,
                    extrasamples=[extra] if extra else None, compression=compression, predictor=predictor, tile=tile,
                    byteorder=order, rowsperstrip=None if tile else 16,
                )  # fmt: skip
                expected = in_8_bits(values, bits)
                if photometric == "miniswhite":
                    expected[..., 0] = 255 - expected[..., 0]
                if photometric == "separated":
                    wanted = np.asarray(Image.frombytes("CMYK", (W, H), expected.tobytes()).convert("RGB"))
                elif extra == "unspecified":
                    wanted = expected[..., :3]
                elif extra == "assocalpha":
                    n = n_samples - 1
                    over = expected[..., :n].astype(int) + 255 - expected[..., n:]
                    wanted = np.broadcast_to(over, (H, W, 3)).astype(np.uint8)
                else:
                    wanted = as_rgb(expected)
                most = 2 if extra == "assocalpha" else 1 if extra == "unassalpha" else 0
                assert largest_difference(pixels(data), wanted) <= most, (order, compression, tile)


def tiff(values: NDArray[np.generic], **options: object) -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, values, metadata=None, **options)
    return file.getvalue()


@pytest.mark.parametrize("bits", [1, 2, 4, 10, 12, 14])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_other_depths_are_scaled_by_their_own_largest_value(bits: int, photometric: str) -> None:
    values = samples(bits, H, W, 3) if photometric == "rgb" else samples(bits, H, W)
    if photometric == "rgb" and bits == 1:
        return
    written = values.astype(bool) if bits == 1 else values
    found = pixels(tiff(written, photometric=photometric, bitspersample=bits))
    expected = in_8_bits(values, bits)
    assert np.array_equal(found, as_rgb(255 - expected if photometric == "miniswhite" else expected))


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("float16", "16-bit floating-point"), ("float32", "32-bit floating-point"),
        ("float64", "64-bit floating-point"), ("int8", "8-bit signed integer"), ("int16", "16-bit signed integer"),
        ("int32", "32-bit signed integer"), ("uint32", "32-bit integer"), ("uint64", "64-bit integer"),
        ("complex64", "64-bit complex"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("photometric", ["minisblack", "rgb"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_pixels_without_an_agreed_range_are_named(dtype: str, says: str, photometric: str, order: str) -> None:
    values = samples(8, H, W, 3) if photometric == "rgb" else samples(8, H, W)
    with pytest.raises(ImageError, match=f"^{says} TIFF: its pixels have no agreed range; convert"):
        pixels(tiff(values.astype(dtype), photometric=photometric, byteorder=order))


def test_a_tiff_of_many_bands_is_named() -> None:
    with pytest.raises(ImageError, match=r"TIFF of 6 samples a pixel .* cannot be read; convert"):
        pixels(tiff(samples(8, H, W, 6), photometric="minisblack", planarconfig="contig"))


@pytest.mark.parametrize("compression", [None, "lzw", "deflate", "packbits"])
@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite", "rgb"])
def test_half_of_a_16_bit_tiff_is_damaged(photometric: str, compression: str | None) -> None:
    values = samples(16, H, W, 3) if photometric == "rgb" else samples(16, H, W)
    data = tiff(values, photometric=photometric, compression=compression, rowsperstrip=8)
    for part in (len(data) // 2, len(data) - 1, 100):
        with pytest.raises(ImageError, match="damaged or truncated"):
            pixels(data[:part])


@pytest.mark.parametrize("compression", ["jpeg", "zstd", "lzma", "jpeg2000", "png", "webp"])
def test_a_tiff_with_other_compressions(compression: str) -> None:
    y, x = np.mgrid[:48, :64]
    values = np.dstack([x * 4, y * 5, (x + y) * 2]).clip(0, 255).astype(np.uint8)
    found = pixels(tiff(values, photometric="rgb", compression=compression))
    assert largest_difference(found, values) <= (12 if compression in ("jpeg", "webp") else 0)


@pytest.mark.parametrize("bits", [8, 16])
def test_bigtiff(bits: int) -> None:
    values = samples(bits, H, W, 3)
    assert np.array_equal(pixels(tiff(values, photometric="rgb", bigtiff=True)), in_8_bits(values, bits))


def test_of_a_tiff_with_pages_the_first_is_taken() -> None:
    values = samples(16, 3, H, W, 3)
    assert np.array_equal(pixels(tiff(values, photometric="rgb")), in_8_bits(values[0], 16))


# ---- PNG: depths and colours declared transparent


def png(kind: int, bits: int, values: NDArray[np.unsignedinteger], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG of PNG's kind of colour (0 grey, 2 RGB, 3 palette, 4 grey and alpha, 6 RGBA), with more chunks."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape[:2]
    rows = values.reshape(height, -1)
    if bits == 16:
        packed = rows.astype(">u2").view(np.uint8)
    else:
        packed = np.packbits(
            np.unpackbits(rows.astype(np.uint8)[..., None], axis=-1)[..., 8 - bits :].reshape(height, -1), axis=1
        )
    lines = b"".join(b"\0" + row.tobytes() for row in packed)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0))
    more = b"".join(chunk(*each) for each in chunks)
    return b"\x89PNG\r\n\x1a\n" + header + more + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(("kind", "n_samples"), [(0, 1), (2, 3), (4, 2), (6, 4)])
def test_a_png_of_16_bits_is_scaled_by_1_over_257(kind: int, n_samples: int) -> None:
    values = samples(16, H, W, n_samples)
    found = pixels(png(kind, 16, values))
    assert largest_difference(found, as_rgb(in_8_bits(values, 16))) <= (0 if n_samples % 2 else 1)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 16])
def test_a_grey_declared_transparent_is_white_at_every_depth(bits: int) -> None:
    values = np.tile(np.arange(16) % min(2**bits, 16), (12, 1)) * (257 if bits == 16 else 1)
    clear = int(values[0, 1])
    found = pixels(png(0, bits, values.astype(np.uint16), (b"tRNS", struct.pack(">H", clear))))
    expected = in_8_bits(values, bits)
    expected[values == clear] = 255
    assert np.array_equal(found, as_rgb(expected))


@pytest.mark.parametrize("bits", [8, 16])
def test_an_rgb_colour_declared_transparent_is_white_and_only_that_very_colour(bits: int) -> None:
    values = samples(bits, H, W, 3)
    values[:4] = clear = np.array([100, 150, 200]) * (200 if bits == 16 else 1)
    values[4:8] = clear + 1  # of 16 bits the same in 8
    found = pixels(png(2, bits, values, (b"tRNS", struct.pack(">HHH", *clear.tolist()))))
    expected = in_8_bits(values, bits)
    expected[:4] = 255
    assert np.array_equal(found, expected)


def test_a_palette_with_an_alpha_for_each_entry() -> None:
    values = np.tile(np.arange(16) % 4, (12, 1)).astype(np.uint8)
    palette = bytes([255, 0, 0, 0, 255, 0, 0, 0, 255, 9, 9, 9])
    for bits in (2, 4, 8):
        found = pixels(png(3, bits, values, (b"PLTE", palette), (b"tRNS", bytes([255, 0, 128]))))
        assert found[0, :4].tolist() == [[255, 0, 0], [255, 255, 255], [127, 127, 255], [9, 9, 9]]


def test_metadata_of_any_size_is_no_damage() -> None:
    values = samples(8, H, W, 3)
    text = zlib.compress(bytes(70_000_000))
    names = [b"Comment", b"Raw profile type exif", b"Raw profile type icc"]
    chunks = [(b"zTXt", name + b"\0\0" + text) for name in names]
    chunks += [(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + text), (b"tEXt", b"Comment\0" + bytes([65]) * 3_000_000)]
    chunks += [(b"zTXt", b"Broken\0\0not zlib"), (b"prVt", bytes(2_000_000))]
    assert np.array_equal(pixels(png(2, 8, values, *chunks)), values)
    assert np.array_equal(pixels(png(0, 16, values[..., 0].astype(np.uint16) * 257, *chunks)), as_rgb(values[..., 0]))


def test_a_jpeg_with_all_the_metadata_that_it_can_hold() -> None:
    image = Image.fromarray(samples(8, H, W, 3))
    plain = encode(image, "JPEG")
    much = plain[:2] + b"".join(
        b"\xff" + bytes([0xE1 + i % 12]) + struct.pack(">H", 65535) + bytes(65533) for i in range(40)
    )
    assert np.array_equal(pixels(much + plain[2:]), pixels(plain))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_damaged_exif_does_no_harm(kind: str) -> None:
    image = Image.fromarray(samples(8, H, W, 3))
    for exif in (b"Exif\0\0MM\0*\0\0\0\x08\xff\xff", b"Exif\0\0rubbish", b"Exif\0\0II*\0\xff\xff\xff\xff"):
        if kind != "TIFF":
            found = pixels(encode(image, kind, exif=exif))
            assert found.shape == (H, W, 3)


@pytest.mark.parametrize("name", ["Raw profile type exif", "XML:com.adobe.xmp"])
def test_an_orientation_that_other_programs_keep_in_a_text_still_counts(name: str) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    hexed = exif.tobytes().hex()
    info = PngImagePlugin.PngInfo()
    if name.startswith("Raw"):
        info.add_text(name, f"\nexif\n{len(hexed) // 2}\n{hexed}\n", zip=True)
    else:
        info.add_itxt(name, '<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>')
    values = samples(8, H, W, 3)
    assert np.array_equal(pixels(encode(Image.fromarray(values), "PNG", pnginfo=info)), np.rot90(values, -1))


# ---- BMP


def bmp(values: NDArray[np.uint32], bits: int, masks: tuple[int, int, int, int], header: int = 108) -> bytes:
    """With bit masks; the top row first if the header is the oldest."""
    height, width = values.shape
    rows = values.astype("<u4" if bits == 32 else "<u2")
    if bits == 16 and width % 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    body = rows[::-1].tobytes()
    start = 14 + max(header, 52)
    head = struct.pack("<IiiHHIIiiII", header, width, height, 1, bits, 3, len(body), 0, 0, 0, 0)
    head += struct.pack("<IIII", *masks)[: 12 if header < 56 else 16]
    head = head.ljust(start - 14, b"\0")
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + body


@pytest.mark.parametrize("header", [40, 52, 56, 108, 124])
@pytest.mark.parametrize("width", [16, 17])
def test_a_bmp_with_bit_masks(header: int, width: int) -> None:
    for bits, depths in ((32, (8, 8, 8)), (16, (5, 6, 5)), (16, (5, 5, 5)), (16, (4, 4, 4)), (32, (10, 10, 10))):
        channels = [RANDOM.integers(0, 2**depth, (12, width)) for depth in depths]
        masks, value, at = [], np.zeros((12, width), np.uint32), 0
        for depth, channel in zip(depths, channels, strict=True):
            masks.append((2**depth - 1) << at)
            value |= (channel << at).astype(np.uint32)
            at += depth
        expected = np.dstack([in_8_bits(each, depth) for each, depth in zip(channels, depths, strict=True)])
        found = pixels(bmp(value, bits, (*masks, 0), header))
        assert np.array_equal(found, expected), (bits, depths)


@pytest.mark.parametrize("order", ["BGRA", "RGBA", "ARGB"])
def test_the_alpha_of_a_bmp_counts_unless_it_is_zero_everywhere(order: str) -> None:
    values = samples(8, 12, 16, 4)
    shifts = {channel: 8 * order.index(channel) for channel in "RGBA"}
    masks = tuple(0xFF << shifts[channel] for channel in "RGBA")

    def pack(rgba: NDArray[np.uint8]) -> NDArray[np.uint32]:
        return sum(rgba[..., i].astype(np.uint32) << shifts[channel] for i, channel in enumerate("RGBA"))  # type: ignore[return-value]

    assert largest_difference(pixels(bmp(pack(values), 32, masks)), as_rgb(values)) <= 1  # type: ignore[arg-type]
    values[..., 3] = 0
    assert np.array_equal(pixels(bmp(pack(values), 32, masks)), values[..., :3])  # type: ignore[arg-type]
    values[0, 0, 3] = 255
    found = pixels(bmp(pack(values), 32, masks))  # type: ignore[arg-type]
    assert np.array_equal(found[0, 0], values[0, 0, :3])
    assert np.all(found[1:] == 255)


def test_half_a_bmp_with_masks_is_damaged() -> None:
    data = bmp(RANDOM.integers(0, 2**24, (12, 16)).astype(np.uint32), 32, (0xFF, 0xFF00, 0xFF0000, 0))
    for part in (len(data) // 2, len(data) - 1, 60):
        with pytest.raises(ImageError, match="damaged or truncated"):
            pixels(data[:part])


# ---- orientation


@pytest.mark.parametrize("kind", ["TIFF", "16-bit TIFF", "16-bit PNG", "PNG", "WEBP", "JPEG", "AVIF", "HEIF"])
def test_height_and_width_are_those_of_the_upright_photo(kind: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :24] = 255
    as_stored = {
        1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1), 7: upright[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(upright, -1),
    }  # fmt: skip
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    for orientation, stored in as_stored.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = Image.fromarray(np.ascontiguousarray(stored))
        if kind == "16-bit TIFF":
            data = tiff(stored.astype(np.uint16) * 257, photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        elif kind == "16-bit PNG":
            data = png(2, 16, stored.astype(np.uint16) * 257, (b"eXIf", exif.tobytes()[6:]))
        else:
            data = encode(image, kind, exif=exif)
        photo = EncodedPhoto(data)
        assert (photo.height, photo.width) == (32, 48), orientation
        assert largest_difference(np.asarray(photo.decode()), upright) < 60, orientation


# ---- the newer formats


def smooth(width: int = 96, height: int = 64) -> NDArray[np.uint8]:
    y, x = np.mgrid[:height, :width]
    return np.dstack([x * 255 / width, y * 255 / height, 128 + 0 * x]).astype(np.uint8)


@pytest.mark.parametrize(
    ("kind", "name"),
    [("AVIF", "AVIF"), ("HEIF", "HEIC"), ("JXL", "JPEG XL"), ("JPEG2000", "JPEG 2000"), ("PPM", "PPM")],
)
def test_newer_and_rarer_formats_are_read(kind: str, name: str) -> None:
    if kind == "HEIF":
        pytest.importorskip("pillow_heif").register_heif_opener()
    if kind == "JXL":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pytest.importorskip("pillow_jxl")
    data = encode(Image.fromarray(smooth()), kind)
    assert format_of(data) == name
    assert largest_difference(pixels(data), smooth()) <= 24
    for part in (len(data) // 2, 40):
        with pytest.raises(ImageError, match="damaged or truncated"):
            pixels(data[:part])


@pytest.mark.parametrize(("width", "height"), [(64, 64), (96, 64), (97, 61), (640, 360), (1300, 20), (2000, 1000)])
def test_the_size_of_a_jpeg_xl_is_known_before_it_is_decoded(width: int, height: int) -> None:
    imagecodecs = pytest.importorskip("imagecodecs")
    values = np.zeros((height, width, 3), np.uint8)
    for container in (False, True):
        data = imagecodecs.jpegxl_encode(values, usecontainer=container, effort=1)
        assert size_and_orientation(data) == ((width, height), 1)


def test_a_jpeg_xl_is_turned_as_its_exif_says() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pytest.importorskip("pillow_jxl")
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    values = smooth()
    photo = EncodedPhoto(encode(Image.fromarray(values), "JXL", lossless=True, exif=exif.tobytes()))
    assert (photo.width, photo.height) == (64, 96)
    assert np.array_equal(np.asarray(photo.decode()), np.rot90(values, -1))


def test_of_a_moving_picture_the_first_is_taken() -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in ("red", "lime", "blue")]
    for kind in ("AVIF", "HEIF"):
        if kind == "HEIF":
            pytest.importorskip("pillow_heif").register_heif_opener()
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], quality=95)
        assert largest_difference(pixels(data), np.asarray(frames[0])) <= 8, kind


def test_the_memory_of_a_photo_is_told_where_it_is_more_than_allowed() -> None:
    data = encode(Image.new("RGB", (2000, 1000)), "PNG")
    said = r"^2 megapixels \(2000x1000\), which take 8.0 MB of memory or more; the limit is 1.5 megapixels, .*--max-meg"
    with pytest.raises(UnavailableError, match=said):
        EncodedPhoto(data, max_megapixels=1.5)
    assert EncodedPhoto(data, max_megapixels=2).width == 2000


# ---- the files that showed each kind


@needs_cases
def test_the_files_of_the_issue() -> None:
    right = case("b32_rgb.bmp")
    for name in ("b32_alpha0.bmp", "rgb16.tif", "rgb16_planar.tif", "ztxt2mb.png"):
        assert case(name).shape == right.shape
    assert np.array_equal(case("b32_alpha0.bmp"), right)
    assert np.array_equal(case("rgb16.tif"), case("rgb16_planar.tif"))
    assert largest_difference(case("rgb16.tif"), right) <= 1
    assert np.abs(case("chrome.jfif").astype(int) - right).mean() < 8
    turned = EncodedPhoto((CASES / "exif5.tif").read_bytes())
    assert (turned.width, turned.height) == (96, 64)
    assert np.array_equal(np.asarray(turned.decode()), right)
    grey = case("g8trns.png")
    assert np.array_equal(grey, case("g16trns.png"))
    assert set(np.unique(grey)) == {128, 255}
    assert largest_difference(case("p3.png"), case("srgb.png")) <= 2
    with pytest.raises(ImageError, match=r"^64-bit floating-point TIFF"):
        case("float64.tif")
    with pytest.raises(ImageError, match="damaged or truncated"):
        case("IMG_0001.HEIC")
