"""The page about a run: what it shows, and that nothing in a run can make it do anything else."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from heads.errors import RunError
from heads.report import write_report
from heads.report.attention import find_photo, most_peaked
from heads.runs import Attention, Run, RunConfig, RunWriter

SEGMENTS = ("lite0", "lite1", "lite2", "lite2:max")
N_BLOCKS = 16


def _config(tasks: tuple[str, ...], n_repeats: int, photos: Path | None) -> RunConfig:
    identity = {"view": {"size": [600, 400], "grid": [4, 4]}, "weights": {"sha256": "00"}}
    return RunConfig(
        system="amtl",
        options={"lr": 0.001, "batch": 32},
        tasks=tasks,
        scale=(1.0, 7.0),
        n_images=24,
        n_folds=3,
        n_repeats=n_repeats,
        seed=7,
        group="scene",
        labels={"file": "/somewhere/labels.csv", "sha256": "feedc0de" * 8},
        store="features.zarr",
        tensor="stacked",
        layout="stack",
        shape=(4, N_BLOCKS, 2048),
        segments=tuple(
            {"name": n, "hash": f"{i:016x}", "width": 1280, "identity": identity} for i, n in enumerate(SEGMENTS)
        ),
        photos=None if photos is None else str(photos),
        versions={"featstore": "0.1.0"},
        command="heads train amtl --folds 3",
        started="2025-11-23T12:00:00+00:00",
        elapsed_s=75.2,
        device="cpu",
    )


def _make_run(
    folder: Path,
    *,
    tasks: tuple[str, ...] = ("beauty", "calm"),
    paths: list[str] | None = None,
    n_repeats: int = 2,
    photos: Path | None = None,
    history: pd.DataFrame | None = None,
    attention: bool = True,
    missing: bool = False,
    undefined: bool = False,
    **changes: Any,
) -> Run:
    """A run of 24 images in the documented format."""
    rng = np.random.default_rng(0)
    paths = paths or _paths()
    n = len(paths)
    folds = np.arange(n) % 3
    writer = RunWriter(folder)
    writer.table(
        "folds.csv", pd.DataFrame({"path": paths, "group": [f"scene{i % 8}" for i in range(n)], "fold": folds})
    )
    given = rng.uniform(1, 7, (n, len(tasks)))
    if missing:
        given[:5, 0] = np.nan
    frames = []
    for repeat in range(n_repeats):
        columns: dict[str, Any] = {"repeat": repeat, "fold": folds, "path": paths}
        for k, task in enumerate(tasks):
            columns |= {task: given[:, k], f"{task}_predicted": given[:, k] * 0.5 + rng.normal(2, 0.5, n)}
        frames.append(pd.DataFrame(columns))
    writer.table("predictions.csv", pd.concat(frames))
    spread = None if n_repeats == 1 else 0.0125
    values: dict[str, float | None] = {"pearson": 0.8125, "pearson2": 0.66, "r2": -0.125, "rmse": 0.2345}
    if undefined:
        values["pearson"] = None
    metrics = {m: {"mean": v, "spread": None if v is None else spread} for m, v in values.items()}
    writer.metrics(dict.fromkeys(tasks, metrics))
    if history is not None:
        writer.table("history.csv", history)
    if attention:
        blocks = rng.dirichlet(np.ones(N_BLOCKS), (n, 4)).astype(np.float32)
        writer.attention(Attention(paths, blocks, rng.dirichlet(np.ones(4), (n, len(tasks))).astype(np.float32)))
    return writer.finish(replace(_config(tasks, n_repeats, photos), **changes))


def _history(val_loss: float = 0.5) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "repeat": r,
            "fold": f,
            "epoch": e,
            "train_loss": 1 / (e + 1),
            "val_loss": val_loss + 0.1 * e,
            "best": int(e == 2),
        }
        for r in range(2)
        for f in range(3)
        for e in range(6)
    )


def _paths() -> list[str]:
    return [f"album{i % 8}/photo {i:02}.jpg" for i in range(24)]


def _draw_photos(folder: Path, paths: list[str]) -> Path:
    for i, path in enumerate(paths):
        file = folder / path
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (90, 60), (10 * i, 120, 200)).save(file)
    return folder


def _page(run: Run) -> str:
    return write_report(run).read_text(encoding="utf-8")


def _images(page: str, kind: str) -> int:
    return len(re.findall(rf'src="data:image/{kind};base64,[A-Za-z0-9+/=]+"', page))


def _row(page: str, task: str) -> str:
    found = re.search(rf'<th scope="row">{re.escape(task)}</th>(.*?)</tr>', page, re.DOTALL)
    assert found
    return re.sub(r"\s+", " ", re.sub("<[^>]+>", " ", found[1])).strip()


def test_shows_numbers_figures_and_what_it_was(tmp_path: Path) -> None:
    photos = _draw_photos(tmp_path / "photos", _paths())
    run = _make_run(tmp_path / "run", photos=photos, history=_history())
    assert write_report(run) == tmp_path / "run" / "report.html"
    page = _page(run)
    assert _row(page, "beauty") == "0.812 ± 0.013 0.660 ± 0.013 -0.125 ± 0.013 0.234 ± 0.013"
    assert _row(page, "mean over tasks") == "0.812 0.660 -0.125 0.234"
    assert _images(page, "png") == 2 + 2  # two learning curves, two tasks
    assert _images(page, "jpeg") == 6 * 2 + 1  # six photos with their maps, and the average
    assert "one for\n        each scene" in page
    for told in ("stacked", "4 backbones × 16 blocks × 2,048 features", "lite2:max", "0000000000000003", "labels.csv",
                 "feedc0defeedc0de", "24 images", "3 folds", "2 repeats", "seed 7", "8 groups", "1 min 15 s",
                 "heads train amtl --folds 3", "featstore 0.1.0", "out of fold", "squared correlation",
                 "is left out"):  # fmt: skip
        assert told in page, told
    assert "/somewhere" not in page


def test_stands_alone(tmp_path: Path) -> None:
    page = _page(_make_run(tmp_path / "run", photos=_draw_photos(tmp_path / "photos", _paths()), history=_history()))
    assert "<script" not in page
    assert "<link" not in page
    assert "@import" not in page
    assert "url(" not in page
    assert all(value.startswith("data:image/") for value in re.findall(r'(?:src|href)\s*=\s*"([^"]*)"', page))
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    assert len(re.findall("<img ", page)) == len(re.findall("<img [^>]*alt=", page))
    assert len(page) < 3_000_000


def test_writes_in_one_step_and_again(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    first = _page(run)
    assert _page(Run(run.folder)) == first
    assert not list(run.folder.glob("*.part"))


def test_says_when_the_page_cannot_be_written(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    (run.folder / "report.html").mkdir()
    with pytest.raises(RunError, match="cannot write"):
        write_report(run)


HOSTILE = "<script>alert(\"1\")</script>' onerror='x"


def test_names_are_only_text(tmp_path: Path) -> None:
    paths = [f"{HOSTILE}{i}.jpg" for i in range(24)]
    run = _make_run(
        tmp_path / "run",
        tasks=(HOSTILE, "calm"),
        paths=paths,
        system=HOSTILE,
        group=HOSTILE,
        command=HOSTILE,
        tensor=HOSTILE,
        store=HOSTILE,
        labels={"file": HOSTILE, "sha256": HOSTILE},
        options={HOSTILE: HOSTILE},
        versions={HOSTILE: HOSTILE},
        segments=({"name": HOSTILE, "hash": HOSTILE},),
    )
    page = _page(run)
    assert "<script" not in page
    assert "' onerror='" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("task", ["美しさ", "красота", "ça $x^2$ \\frac", "🙂", "\ud800", "x" * 300])
def test_any_task_name_is_drawn(tmp_path: Path, task: str) -> None:
    if task == "\ud800":  # cannot be in a CSV, but JSON can name it
        run = _make_run(tmp_path / "run", device="cpu")
        config = run.folder / "config.json"
        config.write_text(config.read_text("utf-8").replace('"device": "cpu"', '"device": "\\ud800"'), "utf-8")
        assert "on ?" in _page(Run(run.folder))
    else:
        assert task in _page(_make_run(tmp_path / "run", tasks=(task,)))


def test_single_repeat_has_no_spread(tmp_path: Path) -> None:
    page = _page(_make_run(tmp_path / "run", n_repeats=1))
    assert _row(page, "calm") == "0.812 ± – 0.660 ± – -0.125 ± – 0.234 ± –"
    assert "no spread" in page


def test_undefined_metrics_are_dashes(tmp_path: Path) -> None:
    page = _page(_make_run(tmp_path / "run", undefined=True))
    assert _row(page, "calm").startswith("– ± – 0.660")
    assert _row(page, "mean over tasks, where defined").startswith("– 0.660")


@pytest.mark.parametrize("n_tasks", [1, 12])
def test_one_chart_per_task(tmp_path: Path, n_tasks: int) -> None:
    tasks = tuple(f"task{k}" for k in range(n_tasks))
    page = _page(_make_run(tmp_path / "run", tasks=tasks))
    assert _images(page, "png") == n_tasks
    assert f"{n_tasks} task{'s' if n_tasks > 1 else ''}," in page


def test_missing_labels_are_skipped(tmp_path: Path) -> None:
    page = _page(_make_run(tmp_path / "run", missing=True))
    assert "pearson 0.812, 19 images" in page
    assert "pearson 0.812, 24 images" in page


def test_a_task_without_any_label_has_no_chart(tmp_path: Path) -> None:
    run = _make_run(tmp_path / "run")
    table = run.predictions
    table["calm"] = np.nan
    table.to_csv(run.folder / "predictions.csv", index=False)
    page = _page(Run(run.folder))
    assert _images(page, "png") == 1
    assert "no image has both" in page


@pytest.mark.parametrize(
    "history",
    [None, pd.DataFrame(), pd.DataFrame(columns=["repeat", "fold", "epoch", "train_loss", "val_loss", "best"])],
)
def test_head_without_epochs_or_attention(tmp_path: Path, history: pd.DataFrame | None) -> None:
    page = _page(
        _make_run(tmp_path / "run", history=history, attention=False, shape=(6528,), layout="concat", group=None)
    )
    assert "Learning curves" not in page
    assert "Attention" not in page
    assert "6,528 features" in page
    assert "no groups" in page


@pytest.mark.parametrize("val_loss", [0.5, 500.0, float("nan")])
def test_learning_curves_of_any_height(tmp_path: Path, val_loss: float) -> None:
    page = _page(_make_run(tmp_path / "run", history=_history(val_loss)))
    assert _images(page, "png") == 2 + (1 if np.isnan(val_loss) else 2)


@pytest.mark.parametrize("table", ["predictions.csv", "history.csv"])
def test_refuses_a_table_that_lacks_columns(tmp_path: Path, table: str) -> None:
    run = _make_run(tmp_path / "run", history=_history())
    (run.folder / table).write_text("path,fold\na,1\n")
    with pytest.raises(RunError, match=f"{table} lacks the columns"):
        write_report(run)


def test_missing_photos_leave_the_maps(tmp_path: Path) -> None:
    for name, photos in (("unknown", None), ("moved", tmp_path / "nowhere")):
        page = _page(_make_run(tmp_path / name, photos=photos))
        assert "photos were not found" in page
        assert page.count("photo not available") == 6
        assert _images(page, "jpeg") == 6 + 1


def test_a_damaged_photo_leaves_its_map(tmp_path: Path) -> None:
    photos = _draw_photos(tmp_path / "photos", _paths())
    broken = re.findall(r'alt="photo ([^"]*)"', _page(_make_run(tmp_path / "whole", photos=photos)))[0]
    (photos / broken).write_bytes(b"\xff\xd8 not a photo")
    page = _page(_make_run(tmp_path / "run", photos=photos))
    assert "1 photo could not be read" in page
    assert _images(page, "jpeg") == 5 * 2 + 1 + 1


def test_reads_no_photo_outside_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    _draw_photos(folder, ["inside.png"])
    _draw_photos(tmp_path, ["secret.png"])
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    assert find_photo(folder, "inside.png") is not None
    assert find_photo(folder, "../photos/inside.png") is not None
    for path in ("../secret.png", str(tmp_path / "secret.png"), "link.png", "", ".", "a\0b", "../photos-2/x.png"):
        assert find_photo(folder, path) is None
    paths = ["../secret.png", str(tmp_path / "secret.png"), "link.png"]
    page = _page(_make_run(tmp_path / "run", paths=paths, photos=folder, n_images=3))
    assert page.count("photo not available") == 3
    assert _images(page, "jpeg") == 3 + 1


def test_the_most_peaked_of_every_group_come_first() -> None:
    shares = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    weights = np.stack([shares, 1 - shares], axis=1)
    paths = ["a", "b", "c", "d", "e"]
    assert most_peaked(weights, paths, ["x", "x", "x", "y", "y"]) == [0, 3, 1, 4, 2]
    assert most_peaked(weights, paths, ["x"] * 5) == [0, 1, 2, 3, 4]
    assert most_peaked(np.full((3, 2), 0.5), ["c", "a", "b"], ["x"] * 3) == [1, 2, 0]


@pytest.mark.parametrize(("view", "said"), [([2, 8], "2×8 blocks"), ([3, 3], "4×4 blocks"), (None, "4×4 blocks")])
def test_grid_is_that_of_the_view_if_it_fits(tmp_path: Path, view: list[int] | None, said: str) -> None:
    identity = {"view": {"grid": view}} if view else {}
    segments = tuple({"name": name, "hash": "0", "identity": identity} for name in SEGMENTS)
    assert said in _page(_make_run(tmp_path / "run", segments=segments))


def test_random_weights_are_named(tmp_path: Path) -> None:
    segments = tuple(
        {"name": name, "hash": "0", "identity": {"weights": {"sha256": "0", "random_seed": 0}}} for name in SEGMENTS
    )
    assert _page(_make_run(tmp_path / "run", segments=segments)).count("random weights") == 4


def test_a_photo_that_changed_since_is_not_drawn_under_old_attention(tmp_path: Path) -> None:
    Image.new("RGB", (60, 40), "red").save(tmp_path / "a.png")
    digest = hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert find_photo(tmp_path, "a.png", digest) is not None
    Image.new("RGB", (60, 40), "blue").save(tmp_path / "a.png")
    assert find_photo(tmp_path, "a.png", digest) is None
