"""The attention of a run on its page: which photos are shown, which maps, and which files are never read."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heads.report import write_report
from heads.report.attention import _as_seen, most_peaked
from heads.report.photos import find_photo
from heads.runs.run import Run

MakeRun = Callable[..., Run]


def _page(run: Run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def _images(page: str, kind: str) -> int:
    """Of the section on attention."""
    section = page[page.index('<section id="attention">') : page.index('<section id="made">')]
    return len(re.findall(rf'href="data:image/{kind};base64,[A-Za-z0-9+/=]+"', section))


def _missing(page: str) -> int:
    return page.count(">photo not available</text>")


@pytest.mark.parametrize(("system", "n_maps"), [("amtl", 1), ("amtl-single", 3), ("amtl-swapped", 3)])
def test_attention_of_every_attentive_head(make_run: MakeRun, attend: Any, system: str, n_maps: int) -> None:
    page = _page(make_run(system=system, attention=attend(system)))
    assert _images(page, "png") == 6 + n_maps  # without photos, with an average of each task where maps differ
    assert ("weighs blocks for each task" in page) == (n_maps > 1)
    weights = [float(weight) for weight in re.findall(r'class="heat(?: less)?" style="[^"]*">([\d.]+)', page)]
    assert np.array(weights).reshape(2, 4).sum(1) == pytest.approx(1, abs=0.002)


def test_photos_that_were_never_tested_are_not_among_those_shown(make_run: MakeRun, attend: Any) -> None:
    attention = attend("amtl")
    for values in attention.values():
        values[:20] = np.nan
    run = make_run(attention=attention)
    tested = run.predictions["path"].isin(run.folds["path"][20:])
    run.predictions[tested].to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert _missing(page) == 4
    assert "4 images tested" in page


def test_missing_photos_leave_the_maps(make_run: MakeRun, attend: Any, photos: Path, tmp_path: Path) -> None:
    for name, place in (("unknown", None), ("moved", tmp_path / "nowhere")):
        page = _page(make_run(name, photos=place, attention=attend("amtl")))
        assert "photos were not found" in page
        assert _missing(page) == 6
        assert (_images(page, "jpeg"), _images(page, "png")) == (0, 6 + 1)


def test_a_damaged_photo_leaves_its_map(make_run: MakeRun, attend: Any, photos: Path) -> None:
    whole = _page(make_run("whole", photos=photos, attention=attend("amtl")))
    broken = re.findall(r'aria-label="photo ([^"]*), and attention', whole)[0]
    (photos / broken).write_bytes(b"\xff\xd8 not a photo")
    page = _page(make_run(photos=photos, attention=attend("amtl")))
    assert "1 photo could not be read" in page
    assert (_images(page, "jpeg"), _images(page, "png")) == (5, 6 + 1)


def test_reads_no_photo_outside_the_folder(make_run: MakeRun, attend: Any, draw_photos: Any, tmp_path: Path) -> None:
    folder = draw_photos(tmp_path / "photos", ["inside.png"])
    draw_photos(tmp_path, ["secret.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert find_photo(folder, "inside.png") is not None
    assert find_photo(folder, "../photos/inside.png") is not None
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", ".", "a\0b", "../photos-2/x.png"):
        assert find_photo(folder, path) is None
    paths = ["../secret.png", str(tmp_path / "secret.png"), "link.png"]
    page = _page(make_run(paths=paths, photos=folder, attention=attend("amtl", n_images=3)))
    assert _missing(page) == 3
    assert (_images(page, "jpeg"), _images(page, "png")) == (0, 3 + 1)
    assert "data:image/jpeg" not in page  # nor among those that are furthest off


def test_a_photo_that_changed_since_is_not_drawn_under_old_attention(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert find_photo(tmp_path, "a.png", digest) is not None
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "a.png")
    assert find_photo(tmp_path, "a.png", digest) is None


def test_the_most_peaked_of_every_group_come_first() -> None:
    shares = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    weights = np.stack([shares, 1 - shares], axis=1)
    paths = ["a", "b", "c", "d", "e"]
    assert most_peaked(weights, paths, ["x", "x", "x", "y", "y"]) == [0, 3, 1, 4, 2]
    assert most_peaked(weights, paths, ["x"] * 5) == [0, 1, 2, 3, 4]
    assert most_peaked(np.full((3, 2), 0.5), ["c", "a", "b"], ["x"] * 3) == [1, 2, 0]


@pytest.mark.parametrize(("view", "said"), [([2, 8], "2×8 blocks"), ([3, 3], "4×4 blocks"), (None, "4×4 blocks")])
def test_grid_is_that_of_the_view_if_it_fits(make_run: MakeRun, attend: Any, view: list[int] | None, said: str) -> None:
    identity = {"view": {"grid": view}} if view else {}
    segments = [{"name": f"net{i}", "hash": "0", "identity": identity} for i in range(4)]
    assert said in _page(make_run(segments=segments, attention=attend("amtl")))


def test_a_photo_is_shown_as_the_networks_saw_it() -> None:
    photo = Image.new("RGB", (300, 200), "white")
    photo.paste("red", (60, 10, 240, 190))  # the middle: nine tenths of the shorter side
    seen = _as_seen(photo, {"size": [224, 224], "crop": {"mode": "center", "fraction": 0.9}})
    assert seen.size == (180, 180)
    assert seen.getcolors() == [(180 * 180, (255, 0, 0))]
    assert _as_seen(photo, {"size": [224, 224], "crop": {"mode": "squash", "fraction": 0.9}}).size == (270, 180)
    bordered = _as_seen(photo, {"size": [224, 224], "crop": {"mode": "border", "fraction": 1.0}})
    assert (bordered.size, bordered.getpixel((150, 10))) == ((300, 300), (0, 0, 0))
    for view in ({}, {"size": [600, 400], "grid": [4, 4]}, {"size": [0, 0], "crop": {"mode": "center", "fraction": 1}}):
        assert _as_seen(photo, view) is photo
