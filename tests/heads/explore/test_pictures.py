"""Thumbnails: made once, of the photo that the store knows or of its pixels, and without what else a file holds."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featstore
from heads.explore.study import make_study
from heads.explore.thumbnails import SMALL, Thumbnails


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(3):
        picture = Image.fromarray(np.random.default_rng(i).integers(0, 255, (6, 9, 3), np.uint8)).resize((900, 600))
        exif = Image.Exif()
        exif[0x010E] = "where I live"
        picture.save(folder / f"{i}.jpg", exif=exif)
    return folder


@pytest.fixture
def store(photos: Path, tmp_path: Path) -> featstore.Store:
    featstore.extract(photos, store=tmp_path / "s.zarr", tensors="pixels=pixels:pixels@square", progress=False)
    return featstore.open(tmp_path / "s.zarr")


def picture(data: bytes | None) -> Image.Image:
    assert data is not None
    return Image.open(io.BytesIO(data))


def test_a_thumbnail_is_made_once_and_holds_pixels_only(store: featstore.Store, photos: Path, tmp_path: Path) -> None:
    thumbnails = Thumbnails(make_study(store, photos=photos), tmp_path / "cache")
    first = thumbnails.small(0)
    assert picture(first).size == (SMALL, round(SMALL * 600 / 900))
    assert b"where I live" not in (first or b"")
    assert b"where I live" not in (thumbnails.large(0) or b"")
    (photos / "0.jpg").unlink()
    assert thumbnails.small(0) == first  # of the cache, under the SHA-256 of the photo


def test_without_the_photo_the_stored_pixels_are_shown_in_its_shape(
    store: featstore.Store, photos: Path, tmp_path: Path
) -> None:
    whole = np.asarray(Image.open(photos / "1.jpg").resize((64, 64)), float)
    shown = picture(Thumbnails(make_study(store), tmp_path / "cache").small(1))
    assert shown.size == (256, 171)  # a square view had squeezed it
    assert np.abs(np.asarray(shown.resize((64, 64)), float) - whole).mean() < 25


def test_another_photo_under_its_name_is_not_shown_for_it(store: featstore.Store, photos: Path, tmp_path: Path) -> None:
    Image.new("RGB", (90, 60), "red").save(photos / "2.jpg")
    shown = picture(Thumbnails(make_study(store, photos=photos), tmp_path / "cache").small(2))
    assert shown.size == (256, 171)  # of the stored pixels, which are those of the features


def test_a_cache_that_cannot_be_written_costs_time_only(store: featstore.Store, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    thumbnails = Thumbnails(make_study(store, photos=photos), tmp_path / "file" / "cache")
    assert picture(thumbnails.small(0)).size[0] == SMALL


def test_a_cache_of_somebody_else_brings_no_other_file_into_the_page(
    store: featstore.Store, photos: Path, tmp_path: Path
) -> None:
    thumbnails = Thumbnails(make_study(store, photos=photos), tmp_path / "cache")
    first = thumbnails.small(0)
    (kept,) = (tmp_path / "cache").rglob("*.jpg")
    kept.write_text("no picture", "utf-8")
    assert thumbnails.small(0) == first
    kept.unlink()
    secret = tmp_path / "secret"
    secret.write_bytes(b"\xff\xd8\xff secret")
    kept.symlink_to(secret)
    assert thumbnails.small(0) == first
