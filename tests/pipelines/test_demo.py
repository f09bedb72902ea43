"""The demo: the measures, the set they label, and the command that runs the road."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from pipelines import demo_set
from pipelines.__main__ import app
from pipelines.demo_set import SOURCES, DemoError, DemoSet, crop_boxes, prepare
from pipelines.measures import MEASURES

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable


# ---------------------------------------------------------------------------------------------- measures


def flat(red: int, green: int, blue: int) -> NDArray[np.uint8]:
    return np.full((120, 160, 3), (red, green, blue), dtype=np.uint8)


def noise(seed: int = 0) -> NDArray[np.uint8]:
    grey = np.random.default_rng(seed).integers(0, 256, (120, 160, 1), dtype=np.uint8)
    return np.repeat(grey, 3, axis=-1)


def halves(first: int, second: int, *, axis: int) -> NDArray[np.uint8]:
    """An image of two flat greys: top and bottom for axis 0, left and right for axis 1."""
    image = flat(first, first, first)
    np.split(image, 2, axis=axis)[1][:] = second
    return image


def test_there_are_twelve_measures_and_each_states_its_formula() -> None:
    assert len(MEASURES) == 12
    assert all((measure.__doc__ or "").strip() for measure in MEASURES.values())


@pytest.mark.parametrize("level", [0, 128, 255])
def test_flat_grey_has_only_brightness_and_symmetry(level: int) -> None:
    values = {name: measure(flat(level, level, level)) for name, measure in MEASURES.items()}
    assert values.pop("brightness") == pytest.approx(level / 255)
    assert values.pop("symmetry") == 1.0
    assert values == pytest.approx(dict.fromkeys(values, 0.0), abs=1e-6)


@pytest.mark.parametrize("name", MEASURES)
def test_measures_are_finite_floats_of_any_shape(name: str) -> None:
    for image in (noise(), noise()[:61, :33], flat(10, 200, 30)):
        value = MEASURES[name](image)
        assert type(value) is float
        assert np.isfinite(value)


def test_colourfulness_of_pure_red_is_its_mean_term() -> None:
    assert MEASURES["colourfulness"](flat(255, 0, 0)) == pytest.approx(0.3 * np.hypot(255, 127.5))


def test_contrast_of_two_equal_halves_is_half_their_distance() -> None:
    assert MEASURES["contrast"](halves(0, 255, axis=1)) == pytest.approx(0.5)


def test_noise_is_sharper_and_has_more_edges_than_its_blur() -> None:
    sharp = noise()
    with Image.fromarray(sharp) as image:
        blurred = np.asarray(image.reduce(4).resize(image.size, Image.Resampling.BICUBIC))
    assert MEASURES["sharpness"](sharp) > MEASURES["sharpness"](blurred) + 2
    assert MEASURES["edge_density"](sharp) > MEASURES["edge_density"](blurred)


def test_saturation_is_one_for_a_pure_colour_and_half_for_its_tint() -> None:
    assert MEASURES["saturation"](flat(0, 90, 0)) == 1.0
    assert MEASURES["saturation"](flat(200, 100, 150)) == 0.5


def test_edge_density_of_one_vertical_edge_is_two_columns() -> None:
    assert MEASURES["edge_density"](halves(0, 255, axis=1)) == pytest.approx(2 / 160)


def test_entropy_counts_bits() -> None:
    assert MEASURES["entropy"](halves(0, 255, axis=0)) == pytest.approx(1.0)
    assert MEASURES["entropy"](noise()) == pytest.approx(8.0, abs=0.05)


def test_symmetry_of_a_mirrored_an_inverted_and_a_random_image() -> None:
    left = noise()[:, :80]
    assert MEASURES["symmetry"](np.hstack([left, left[:, ::-1]])) == pytest.approx(1.0)
    assert MEASURES["symmetry"](halves(0, 255, axis=1)) == pytest.approx(-1.0)
    assert MEASURES["symmetry"](noise()) == pytest.approx(0.0, abs=0.05)


def test_warmth_has_a_sign() -> None:
    assert MEASURES["warmth"](flat(255, 60, 0)) == pytest.approx(1.0)
    assert MEASURES["warmth"](flat(0, 60, 255)) == pytest.approx(-1.0)


@pytest.mark.parametrize("axis", [0, 1])
def test_directionality_of_stripes_and_of_noise(axis: int) -> None:
    wave = np.rint(127 + 120 * np.sin(np.arange(160) / 3)).astype(np.uint8)
    stripes = np.broadcast_to(np.expand_dims(wave, (axis, 2)), (160, 160, 3))
    assert MEASURES["directionality"](np.ascontiguousarray(stripes)) > 0.99
    assert MEASURES["directionality"](noise()) < 0.05


def test_light_of_the_centre_and_of_the_top() -> None:
    bright_centre = flat(0, 0, 0)
    bright_centre[30:90, 40:120] = 255
    assert MEASURES["centre_light"](bright_centre) == pytest.approx(1.0)
    assert MEASURES["top_light"](bright_centre) == pytest.approx(0.0)
    assert MEASURES["top_light"](halves(255, 0, axis=0)) == pytest.approx(1.0)


# ---------------------------------------------------------------------------------------------- the set


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> DemoSet:
    return prepare(tmp_path_factory.mktemp("demo"))


@pytest.fixture(scope="module")
def table(made: DemoSet) -> pd.DataFrame:
    return pd.read_csv(made.labels)


def contents(folder: Path) -> dict[str, bytes]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def test_the_table_lists_every_photo_once(made: DemoSet, table: pd.DataFrame) -> None:
    photos = {file.relative_to(made.photos).as_posix() for file in made.photos.rglob("*.jpg")}
    assert list(table.columns) == ["path", "source", *MEASURES]
    assert sorted(table["path"]) == sorted(photos)
    assert len(table) == made.n_photos == 120


def test_sources_are_groups_and_none_dominates(made: DemoSet, table: pd.DataFrame) -> None:
    assert (table["source"] == table["path"].str.partition("/")[0]).all()
    assert table["source"].nunique() == made.n_sources == 17
    assert table["source"].value_counts().max() <= 10


def test_crops_are_varied_rgb_jpegs_of_at_least_300_by_200(made: DemoSet, table: pd.DataFrame) -> None:
    sizes = set()
    for path in table["path"]:
        with Image.open(made.photos / path) as photo:
            assert (photo.format, photo.mode) == ("JPEG", "RGB")
            sizes.add(photo.size)
    widths, heights = zip(*sizes, strict=True)
    assert min(widths) >= 300
    assert min(heights) >= 200
    assert len(sizes) > 90


def test_labels_fill_the_scale(table: pd.DataFrame) -> None:
    labels = table[list(MEASURES)]
    assert (labels.min() == 1).all()
    assert (labels.max() == 7).all()
    assert (labels.std() > 0.5).all()


def test_no_two_targets_say_the_same(table: pd.DataFrame) -> None:
    correlations = np.corrcoef(table[list(MEASURES)].T)
    assert np.abs(correlations - np.eye(len(MEASURES))).max() < 0.95


def test_labels_are_measured_on_the_files_as_written(made: DemoSet, table: pd.DataFrame) -> None:
    rows = table.sample(10, random_state=0)
    raw = []
    for path in rows["path"]:
        with Image.open(made.photos / path) as photo:
            raw.append(MEASURES["brightness"](np.asarray(photo)))
    slope, intercept = np.polyfit(raw, rows["brightness"], 1)
    assert slope * np.array(raw) + intercept == pytest.approx(rows["brightness"].to_numpy(), abs=2e-3)


def test_the_readme_names_every_measure_and_source(made: DemoSet) -> None:
    text = (made.labels.parent / "README.md").read_text("utf-8")
    assert "not rated by people" in text
    assert all(f"`{name}` (" in text for name in MEASURES)
    assert all(f"| {source.name} |" in text for source in SOURCES)
    assert all(source.licence in text for source in SOURCES)


def test_the_same_bytes_every_time_and_progress_is_told(made: DemoSet, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    prepare(tmp_path, on_progress=lambda stage, n_done, n_all: steps.append((n_done, n_all)))
    assert contents(tmp_path) == contents(made.labels.parent)
    assert steps == [(n_done, 120) for n_done in range(1, 121)]


def test_a_complete_folder_is_left_alone(made: DemoSet) -> None:
    before = {file: file.stat().st_mtime_ns for file in made.labels.parent.rglob("*")}
    assert prepare(made.labels.parent) == made
    assert {file: file.stat().st_mtime_ns for file in made.labels.parent.rglob("*")} == before


@pytest.fixture
def two_sources(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_set, "SOURCES", SOURCES[:2])


@pytest.mark.usefixtures("two_sources")
def test_an_interrupted_prepare_leaves_no_labels_and_is_made_good(tmp_path: Path) -> None:
    def interrupt(stage: str, n_done: int, n_all: int) -> None:
        if n_done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(tmp_path, on_progress=interrupt)
    assert not (tmp_path / "labels.csv").exists()
    assert prepare(tmp_path).labels.exists()


@pytest.mark.usefixtures("two_sources")
def test_another_recipe_replaces_the_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(tmp_path)
    stale = tmp_path / "photos" / "old.jpg"
    stale.touch()
    monkeypatch.setattr(demo_set, "_version", lambda: "another")
    prepare(tmp_path)
    assert not stale.exists()


@pytest.mark.parametrize("name", ["photos/mine.jpg", "labels.csv"])
def test_what_the_demo_did_not_make_is_not_touched(name: str, tmp_path: Path) -> None:
    mine = tmp_path / name
    mine.parent.mkdir(exist_ok=True)
    mine.write_text("mine")
    with pytest.raises(DemoError, match="not made by the demo"):
        prepare(tmp_path)
    assert mine.read_text() == "mine"


def test_missing_scikit_image_is_named_with_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = metadata.version

    def version(package: str) -> str:
        if package == "scikit-image":
            raise metadata.PackageNotFoundError(package)
        return installed(package)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(DemoError, match=r"scikit-image.*pip install featstore\[demo\]"):
        prepare(tmp_path / "demo")
    assert not (tmp_path / "demo").exists()


def test_a_photo_that_the_package_lacks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lacking = demo_set.Source("x", "skimage.data", "x.png", n_crops=1, origin="", licence="")
    monkeypatch.setattr(demo_set, "SOURCES", (lacking,))
    with pytest.raises(DemoError, match=r"skimage\.data.*x\.png"):
        prepare(tmp_path)


@pytest.mark.parametrize("size", [(300, 200), (384, 303), (512, 512), (1411, 1411)])
def test_boxes_lie_inside_the_photo_and_are_large_enough(size: tuple[int, int]) -> None:
    for left, top, right, bottom in crop_boxes(SOURCES[0], size=size):
        assert 0 <= left < right <= size[0]
        assert 0 <= top < bottom <= size[1]
        assert right - left >= 300
        assert bottom - top >= 200


# ---------------------------------------------------------------------------------------------- the command

FAKE = """#!/bin/sh
echo "$(basename "$0") $*" >> calls.txt
{then}
"""


@pytest.fixture
def desk(made: DemoSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with the set made, and a Python with commands `featstore` and `heads` beside it."""
    shutil.copytree(made.labels.parent, tmp_path / "cache" / "demo")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "bin" / "python"))
    add_command("featstore", then="true")
    add_command("heads", then="mkdir -p cache/runs/first")
    return tmp_path


def add_command(name: str, *, then: str) -> None:
    program = Path("bin") / name
    program.write_text(FAKE.format(then=then))
    program.chmod(0o755)


def calls() -> list[str]:
    return Path("calls.txt").read_text().splitlines() if Path("calls.txt").exists() else []


INIT = "featstore init cache/demo/photos --labels cache/demo/labels.csv --scale 1:7 --group source"
EXTRACT = "featstore extract --backbones all"
TRAIN = "heads train amtl --folds 5"


@pytest.mark.usefixtures("desk")
def test_demo_runs_the_three_commands_and_says_where_things_are() -> None:
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 0
    assert calls() == [INIT, EXTRACT, TRAIN]
    assert "120 crops of 17 photographs" in result.output
    for text in (f"$ {EXTRACT}", f"$ {TRAIN}", "cache/features.zarr", "cache/runs/first/report.html", "took"):
        assert text in result.output


@pytest.mark.usefixtures("desk")
def test_demo_shows_the_newest_run() -> None:
    for age_s, name in ((300, "a"), (100, "b"), (200, "c")):
        folder = Path("cache/runs") / name
        folder.mkdir(parents=True)
        os.utime(folder, (time.time() - age_s,) * 2)
    add_command("heads", then="true")
    assert "cache/runs/b/report.html" in CliRunner().invoke(app, ["demo"]).output


@pytest.mark.usefixtures("desk")
def test_demo_keeps_a_config_that_is_its_own() -> None:
    Path("featstore.toml").write_text('images = "cache/demo/photos"\n')
    assert CliRunner().invoke(app, ["demo"]).exit_code == 0
    assert calls() == [EXTRACT, TRAIN]


@pytest.mark.usefixtures("desk")
def test_demo_stops_at_the_config_of_other_photos() -> None:
    Path("featstore.toml").write_text('images = "holidays"\n')
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "another folder" in result.output
    assert calls() == []


@pytest.mark.usefixtures("desk")
@pytest.mark.parametrize(("then", "code"), [("exit 3", 3), ("kill -TERM $$", 143)])
def test_a_failing_command_ends_the_demo_with_its_exit_code(then: str, code: int) -> None:
    Path("featstore.toml").write_text('images = "cache/demo/photos"\n')
    add_command("featstore", then=then)
    assert CliRunner().invoke(app, ["demo"]).exit_code == code
    assert calls() == [EXTRACT]


@pytest.mark.usefixtures("desk")
def test_a_command_that_is_not_installed_is_named() -> None:
    Path("bin/heads").unlink()
    result = CliRunner().invoke(app, ["demo"])
    assert result.exit_code == 1
    assert "no command heads" in result.output


RUN_APP = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # A test run in the background may ignore it.
sys.executable = sys.argv.pop(1)
from pipelines.__main__ import app
app(prog_name="python -m pipelines")
"""


def test_ctrl_c_reaches_the_command_and_ends_with_130_and_no_traceback(desk: Path) -> None:
    add_command("featstore", then="trap 'echo tidy >> calls.txt; exit 1' INT; while :; do sleep 0.1; done")
    with subprocess.Popen(
        [PYTHON, "-c", RUN_APP, desk / "bin" / "python", "demo"],
        cwd=desk,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        deadline = time.monotonic() + 30
        while not calls() and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.2)
        os.killpg(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "stopped; the demo was interrupted" in errors
    assert "Traceback" not in errors
    assert calls() == [INIT, "tidy"]


def test_the_app_requires_the_name_of_its_command() -> None:
    assert "demo" in CliRunner().invoke(app, ["--help"]).output
    assert CliRunner().invoke(app, []).exit_code == 2
