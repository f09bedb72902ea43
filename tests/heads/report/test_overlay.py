"""Drawings of single photos: which are drawn, where they go, and what is refused."""

import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from heads.errors import RunError
from heads.labels.target import Target
from heads.report.overlay import draw
from heads.runs.run import Run

MakeRun = Callable[..., Run]
FIRST = "album0/photo 00.jpg"


def _pixels(file: Path) -> Any:
    return np.asarray(Image.open(file).convert("RGB")).astype(int)


def _has_colour(file: Path, colour: tuple[int, int, int]) -> bool:
    return bool((np.abs(_pixels(file) - colour).max(-1) < 12).mean() > 0.02)


def test_draws_a_png_for_each_photo(make_run: MakeRun, attend: Any, photos: Path, tmp_path: Path) -> None:
    run = make_run(photos=photos, attention=attend("amtl"))
    files = draw(run, [FIRST, "album1/photo 01.jpg"], tmp_path / "new" / "out")
    assert [file.name for file in files] == ["album0-photo 00.png", "album1-photo 01.png"]
    assert all(_has_colour(file, (10 * i, 120, 200)) for i, file in enumerate(files))  # the photo itself
    assert {file.name for file in (tmp_path / "new" / "out").iterdir()} == {file.name for file in files}


@pytest.mark.parametrize("size", [(300, 200), (200, 250), (200, 800)])
def test_photos_keep_their_shape_and_the_map_has_it_too(
    make_run: MakeRun, attend: Any, tmp_path: Path, size: tuple[int, int]
) -> None:
    file = tmp_path / "photos" / FIRST
    file.parent.mkdir(parents=True)
    Image.new("RGB", size, (200, 0, 200)).save(file.with_suffix(".png"))
    run = make_run(photos=tmp_path / "photos", paths=[str(Path(FIRST).with_suffix(".png"))] * 1, attention={
        name: values[:1] for name, values in attend("amtl").items()
    })  # fmt: skip
    pixels = _pixels(draw(run, [str(Path(FIRST).with_suffix(".png"))], tmp_path / "out")[0])
    lines, columns = np.nonzero(np.abs(pixels - (200, 0, 200)).max(-1) < 12)
    assert np.ptp(lines) / np.ptp(columns) == pytest.approx(size[1] / size[0], rel=0.03)


@pytest.mark.parametrize(("system", "n_maps"), [("amtl", 1), ("amtl-single", 3), ("amtl-swapped", 3)])
def test_a_map_for_each_task_of_heads_that_have_one(
    make_run: MakeRun, attend: Any, photos: Path, tmp_path: Path, system: str, n_maps: int
) -> None:
    target = Target("regression", ("beauty", "calm", "awe"))
    run = make_run(target=target, photos=photos, attention=attend(system, n_tasks=3))
    (all_tasks,) = draw(run, [FIRST], tmp_path / "all")
    (one_task,) = draw(run, [FIRST], tmp_path / "one", task="awe")
    widths = [_pixels(file).shape[1] for file in (all_tasks, one_task)]
    assert widths[0] * 2 == widths[1] * (1 + n_maps)


def test_the_map_is_that_of_the_task(make_run: MakeRun, attend: Any, photos: Path, tmp_path: Path) -> None:
    attention = attend("amtl-single")
    attention["blocks_by_task"][:, 0], attention["blocks_by_task"][:, 1] = np.eye(16)[0], np.eye(16)[15]
    run = make_run(photos=photos, attention=attention)
    brightest = []
    for task in ("beauty", "calm"):
        pixels = _pixels(draw(run, [FIRST], tmp_path / task, task=task)[0])
        right_half = pixels[:380, pixels.shape[1] // 2 :]
        yellow = np.argwhere((right_half[..., 0] > 150) & (right_half[..., 1] > 150) & (right_half[..., 2] < 110))
        brightest.append(np.median(yellow, axis=0) / right_half.shape[:2])
    assert (brightest[0] < 0.4).all()
    assert (brightest[1] > 0.6).all()


def test_a_file_of_the_photo_folder_is_the_photo_of_the_run(
    make_run: MakeRun, attend: Any, draw_photos: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = ["Été/a.jpg", "b.jpg", *(f"{i}.jpg" for i in range(22))]
    folder = draw_photos(tmp_path / "photos", paths)
    run = make_run(paths=paths, photos=folder, attention=attend("amtl"))
    monkeypatch.chdir(folder / "Été")
    for name in (folder / "b.jpg", "../b.jpg", "./b.jpg", "b.jpg"):
        assert draw(run, [str(name)], tmp_path / "out") == [tmp_path / "out" / "b.png"]
    (file,) = draw(run, [unicodedata.normalize("NFD", "Été/a.jpg")], tmp_path / "out")
    assert file.name == "Été-a.png"


def test_photos_of_one_name_do_not_overwrite_each_other(make_run: MakeRun, attend: Any, tmp_path: Path) -> None:
    paths = ["a/b.jpg", "a-b.jpg", "A/b.png", *(f"{i}.jpg" for i in range(21))]
    run = make_run(paths=paths, attention=attend("amtl"))
    files = draw(run, ["a/b.jpg", "a-b.jpg", "A/b.png", "a/b.jpg"], tmp_path / "out")
    assert [file.name for file in files] == ["a-b.png", "a-b-1.png", "A-b-2.png", "a-b.png"]


@pytest.mark.parametrize("name", ["美しさ $x^2$ \\frac", "_", "x" * 300, "<b>&"])
def test_any_name_can_be_drawn(make_run: MakeRun, attend: Any, tmp_path: Path, name: str) -> None:
    segments = [{"name": name, "hash": "0"}, *({"name": f"net{i}", "hash": "0"} for i in range(3))]
    run = make_run(target=Target("regression", (name, "calm")), segments=segments, attention=attend("amtl-single"))
    (file,) = draw(run, [FIRST], tmp_path / "out")
    assert _pixels(file).shape[1] > 500


def test_one_block_or_one_backbone_leaves_the_other(make_run: MakeRun, photos: Path, tmp_path: Path) -> None:
    flat = {"blocks": np.ones((24, 4, 1), np.float32), "backbones": np.full((24, 2, 4), 0.25, np.float32)}
    single = {"blocks": np.full((24, 1, 16), 1 / 16, np.float32), "backbones": np.ones((24, 2, 1), np.float32)}
    heights = []
    for name, attention, shape in (("flat", flat, (4, 1, 8)), ("single", single, (1, 16, 8))):
        run = make_run(name, photos=photos, attention=attention, shape=shape)
        (file,) = draw(run, [FIRST], tmp_path / name)
        heights.append(_pixels(file).shape[0])
    assert heights[0] > heights[1]  # bars beneath


def test_says_what_cannot_be_drawn(make_run: MakeRun, attend: Any, tmp_path: Path) -> None:
    attention = attend("amtl")
    for values in attention.values():
        values[3] = np.nan
    run, out = make_run(attention=attention), tmp_path / "out"
    with pytest.raises(RunError, match=r"no photo 'album0/photo00.jpg'; did you mean 'album0/photo 00.jpg'\?"):
        draw(run, ["album0/photo00.jpg"], out)
    with pytest.raises(RunError, match=r"no photo '€'; it has 23: album0/photo 00.jpg, .*, \.\.\."):
        draw(run, [FIRST, "€"], out)
    with pytest.raises(RunError, match=r"'album3/photo 03.jpg' was only trained on in .*run; drawings are of photos"):
        draw(run, ["album3/photo 03.jpg"], out)
    with pytest.raises(RunError, match=r"has no task 'beaty'; did you mean 'beauty'\?"):
        draw(run, [FIRST], out, task="beaty")
    with pytest.raises(RunError, match="a run of 'ridge', which weighs no blocks or backbones; amtl and"):
        draw(make_run("ridge", system="ridge"), [FIRST], out)
    assert not out.exists()
    out.write_text("a file is in the way")
    with pytest.raises(RunError, match=r"cannot write drawings to .*out: File exists"):
        draw(run, [FIRST], out)
