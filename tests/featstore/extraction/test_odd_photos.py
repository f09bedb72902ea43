"""What an extraction tells of odd photos and files: passed over, too large, with a broken profile, from before."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import featstore
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.errors import ConfigError, LayoutError, PhotosError
from featstore.extraction.extract import extract
from featstore.extraction.recompute import recompute
from featstore.extraction.room import Room
from featstore.photos import decoding
from featstore.toml import read_config

PIXELS = (TensorSpec("px", "pixels", ("pixels@whole",)),)


@pytest.fixture
def pixel_config(tiny_config: Config) -> Config:
    return replace(tiny_config, tensors=PIXELS)


def test_files_that_are_no_photos_are_told_and_strict_refuses_them(pixel_config: Config, photos: Path) -> None:
    for name in ("a.txt", "sub/b.mov", "c.txt"):
        (photos / name).write_text("x")
    with pytest.raises(
        PhotosError, match=r"3 files that are no photos, and --strict refuses them: a.txt, c.txt, sub/b"
    ):
        extract(pixel_config, strict=True)
    assert not Path(pixel_config.store).exists()
    summary = extract(pixel_config)
    assert "3 files are no photos: .txt, .mov" in summary.notices
    assert summary.not_photos == ["a.txt", "c.txt", "sub/b.mov"]
    assert summary.n_computed == 10


def test_the_command_says_so_too(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (photos / "a.txt").write_text("x")
    os.mkfifo(photos / "pipe.jpg")
    words = ["extract", "photos", "-b", "", "--tensor", "px=pixels:pixels", "--store", "photos/s.zarr"]
    refused = CliRunner().invoke(app, [*words, "--strict"])
    assert refused.exit_code == 1
    assert "a file that is no photo, and --strict refuses it: a.txt" in refused.output
    said = CliRunner().invoke(app, words).output
    assert "note: 1 file is no photo: .txt" in said
    assert "failed: pipe.jpg: cannot be read: it is a named pipe, not a file" in said
    again = CliRunner().invoke(app, [*words, "--json"])  # the store lies among the photos by now
    result = json.loads(again.stdout)
    assert result["not_photos"] == ["a.txt"]
    assert result["images"] == 11
    (photos / "a.txt").unlink()
    assert CliRunner().invoke(app, [*words, "--strict"]).exit_code == 0


def test_a_photo_larger_than_the_limit_is_read_once_the_limit_is_raised(pixel_config: Config, photos: Path) -> None:
    Image.new("RGB", (1200, 1000)).save(photos / "large.png")
    first = extract(replace(pixel_config, max_megapixels=1))
    ((path, reason),) = first.failed
    assert path == "large.png"
    assert reason.startswith(
        "1.2 megapixels (1200x1000), which take 4.8 MB of memory or more; the limit is 1 megapixels"
    )
    again = extract(pixel_config)
    assert (again.n_computed, again.failed) == (1, [])
    assert recompute(pixel_config.store, 11, runtime=Runtime(engine="eager")).within


def test_the_limit_is_a_key_of_featstore_toml(tmp_path: Path) -> None:
    file = tmp_path / "featstore.toml"
    file.write_text("max_megapixels = 1200")
    assert read_config(file).max_megapixels == 1200
    file.write_text("max_megapixels = 0")
    with pytest.raises(ConfigError, match="max_megapixels: Input should be greater than 0"):
        read_config(file)


def test_broken_profiles_are_told_once(pixel_config: Config, photos: Path, draw: Callable[..., None]) -> None:
    for name in ("x.png", "y.png"):
        Image.fromarray(np.zeros((20, 20, 3), np.uint8)).save(photos / name, icc_profile=b"\0\0\1\0 not a profile")
    summary = extract(pixel_config)
    assert [note for note in summary.notices if "profile" in note] == [
        "2 photos have a broken colour profile, which was ignored, as of x.png (truncated)"
    ]


def test_a_store_of_before_says_that_it_was_made_without_profiles(
    pixel_config: Config, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as before:
        before.setattr("featstore.identity.DECODE_RULES", "rgb8-exif-white-dct2")
        extract(pixel_config)
    with pytest.raises(LayoutError, match="colour profiles applied here, not there"):
        extract(pixel_config)
    summary = extract(pixel_config, replace=True)
    assert summary.n_computed == 10
    store = featstore.open(pixel_config.store)
    assert store["px"].layout.segments[0].identity["decoding"] == decoding.DECODE_RULES


def test_large_photos_are_not_decoded_at_once() -> None:
    room = Room(100)
    with room.of(60), room.of(40):
        pass
    with room.of(1000):  # alone, however large
        pass
    with room.of(0.1), room.of(0.2), room.of(99.7):
        pass
