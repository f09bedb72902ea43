"""Big JPEGs decoded at a half, a quarter or an eighth of their size: when, and how far that is from all of it."""

import hashlib
import io
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import featstore
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.errors import ImageError, UnavailableError
from featstore.extraction.extract import extract
from featstore.extraction.recompute import recompute
from featstore.photos.decoding import DECODE_RULES, EncodedPhoto, open_photo
from featstore.photos.views import View

WANTED = (60, 40)
ORIENTATION = 0x0112
DATA = Path(os.environ.get("FEATSTORE_TEST_DATA", ""), "data", "oasis", "images")


def picture(width: int, height: int) -> Image.Image:
    """Hills, an edge and a little noise: about as smooth as a photo is."""
    y, x = np.mgrid[:height, :width] / max(width, height)
    hills = np.dstack([np.sin(9 * x + 4 * y), np.cos(7 * y - 3 * x), np.sin(12 * x * y)])
    hills[: height // 3, : width // 4] += 1
    noise = np.random.default_rng(0).normal(0, 6, hills.shape)
    return Image.fromarray((128 + 50 * hills + noise).clip(0, 255).astype(np.uint8))


def encode(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def small(image: Image.Image, size: tuple[int, int] = WANTED) -> NDArray[np.float64]:
    return np.asarray(image.resize(size, Image.Resampling.BILINEAR)).astype(float)


@pytest.mark.parametrize(
    ("size", "scale"),
    [
        ((120, 80), 1), ((239, 160), 1), ((240, 159), 1), ((4000, 159), 1),
        ((240, 160), 2), ((479, 320), 2), ((480, 319), 2), ((241, 161), 2), ((4000, 160), 2),
        ((480, 320), 4), ((959, 640), 4), ((483, 321), 4),
        ((960, 640), 4), ((967, 641), 4), ((4000, 3000), 4),  # 1/8 keeps too little
    ],
)  # fmt: skip
def test_a_jpeg_is_decoded_at_the_least_scale_that_is_twice_what_is_wanted(size: tuple[int, int], scale: int) -> None:
    photo = EncodedPhoto(encode(Image.new("RGB", size, "red")))
    found = photo.decode(WANTED)
    assert found.size == (-(-size[0] // scale), -(-size[1] // scale))
    assert scale == 1 or (found.width >= 2 * WANTED[0] and found.height >= 2 * WANTED[1])
    assert (photo.width, photo.height) == size, "what is recorded is the full size"
    assert photo.decode().size == size


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "BMP", "TIFF", "GIF"])
def test_other_formats_are_decoded_in_full(kind: str) -> None:
    assert EncodedPhoto(encode(picture(960, 640), kind)).decode(WANTED).size == (960, 640)


def test_the_jpeg_of_a_phone_is_scaled_too() -> None:
    """Phones put a second picture behind the first, and Pillow calls that MPO."""
    data = encode(picture(960, 640), "MPO", save_all=True, append_images=[picture(96, 64)])
    photo = EncodedPhoto(data)
    assert (photo.width, photo.height, photo.decode().size) == (960, 640, (960, 640))
    assert photo.decode(WANTED).size == (240, 160)


def test_views_of_several_sizes_each_get_their_own_and_in_any_order() -> None:
    data = encode(picture(960, 640))
    sizes = [(60, 40), (200, 100), None, (500, 300), (60, 40)]
    for wanted in (sizes, sizes[::-1]):
        photo = EncodedPhoto(data)
        for size in wanted:
            np.testing.assert_array_equal(np.asarray(photo.decode(size)), np.asarray(EncodedPhoto(data).decode(size)))


JPEGS = {
    "plain": (lambda image: encode(image, quality=90)),
    "progressive": (lambda image: encode(image, progressive=True, quality=90)),
    "full colour": (lambda image: encode(image, subsampling=0, quality=90)),
    "grey": (lambda image: encode(image.convert("L"), quality=90)),
    "CMYK": (lambda image: encode(image.convert("CMYK"), quality=90)),
    "of low quality": (lambda image: encode(image, quality=30)),
    "with restarts": (lambda image: encode(image, quality=90, restart_marker_rows=1)),
}


@pytest.mark.parametrize("name", JPEGS)
@pytest.mark.parametrize(("size", "scale"), [((240, 160), 2), ((483, 325), 4)])
def test_a_scaled_photo_is_close_to_the_full_one(name: str, size: tuple[int, int], scale: int) -> None:
    """Measured, of 256: at most 7 apart anywhere and 0.8 on average for a picture without detail at the limit."""
    photo = EncodedPhoto(JPEGS[name](picture(*size)))
    found = photo.decode(WANTED)
    assert found.mode == "RGB"
    assert found.size == (-(-size[0] // scale), -(-size[1] // scale))
    apart = np.abs(small(found) - small(photo.decode()))
    assert apart.max() <= 12
    assert apart.mean() <= 1.5


@pytest.mark.skipif("FEATSTORE_TEST_DATA" not in os.environ, reason="needs FEATSTORE_TEST_DATA")
@pytest.mark.parametrize(
    ("wanted", "scale", "most", "mean"),
    [((125, 100), 2, 32, 4), ((62, 50), 4, 32, 4)],  # of all 900: 29, 31; 3.2, 3.5
)
def test_real_photos_are_close_at_the_very_limit(wanted: tuple[int, int], scale: int, most: int, mean: float) -> None:
    """Those of OASIS are 500x400: exactly, or hardly more than, twice what is wanted here."""
    for file in sorted(DATA.glob("*.jpg"))[::30]:
        photo = open_photo(file)
        found = photo.decode(wanted)
        assert found.width == -(-photo.width // scale)
        apart = np.abs(small(found, wanted) - small(photo.decode(), wanted))
        assert apart.max() <= most, file.name
        assert apart.mean() <= mean, file.name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("size", [(480, 320), (320, 480)])
def test_a_photo_that_lies_on_its_side_is_scaled_by_its_upright_size(size: tuple[int, int], orientation: int) -> None:
    """480 x 320 upright is scaled by 4; 320 x 480 upright is 5.3 times as wide and 12 times as high: by 2."""
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    data = encode(picture(*size), exif=exif, quality=90)
    upright = EncodedPhoto(data).decode()
    photo = EncodedPhoto(data)
    assert (photo.width, photo.height) == upright.size == (size if orientation < 5 else size[::-1])
    scale = 4 if upright.width == 480 else 2
    found = photo.decode(WANTED)
    assert found.size == (upright.width // scale, upright.height // scale)
    assert np.abs(small(found) - small(upright)).max() <= 12


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_photo_is_damaged_at_every_scale(progressive: bool) -> None:
    data = encode(picture(960, 640), progressive=progressive)
    photo = EncodedPhoto(data[: len(data) // 2])
    for wanted in (WANTED, (200, 100), None):
        with pytest.raises(ImageError, match="damaged or truncated"):
            photo.decode(wanted)


def test_open_photo_insists_on_the_bytes_that_were_digested(tmp_path: Path) -> None:
    file = tmp_path / "a.jpg"
    file.write_bytes(encode(picture(96, 64)))
    assert open_photo(file, digest=hashlib.sha256(file.read_bytes()).digest()).width == 96
    with pytest.raises(UnavailableError, match="changed while the run was going on"):
        open_photo(file, digest=bytes(32))


def test_an_extraction_records_full_sizes_and_can_be_proven(tiny_config: Config, photos: Path) -> None:
    for file in photos.rglob("*.jpg"):
        file.unlink()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    (photos / "big.jpg").write_bytes(encode(picture(967, 651), quality=90))
    (photos / "lying.jpg").write_bytes(encode(picture(967, 651), quality=90, exif=exif))
    plans = (TensorSpec("px", "pixels", ("pixels@small",)), TensorSpec("t", "concat", ("test_resnet@small",)))
    config = replace(tiny_config, tensors=plans, views={"small": View(WANTED)})
    extract(config)
    store = featstore.open(config.store)
    assert store.images.sizes.tolist() == [[651, 967], [967, 651]]
    assert {segment.identity["decoding"] for name in store for segment in store[name].layout.segments} == {DECODE_RULES}
    scaled = EncodedPhoto((photos / "big.jpg").read_bytes()).decode(WANTED)
    np.testing.assert_array_equal(store["px"].read([0])[0], small(scaled).astype(np.uint8))
    again = recompute(config.store, 2, weights=config.weights, runtime=Runtime(engine="eager"))
    assert again.within
    assert again.comparisons[0].largest_error == 0
