"""The page about several runs, as `heads compare --out` writes it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from heads.inference.comparing import compare, side_by_side
from heads.labels.target import Target
from heads.report import write_comparison
from heads.runs.run import Run

from ..conftest import heads, refused

MakeRun = Callable[..., Run]


def test_the_command_writes_the_page_beside_its_table(make_run: MakeRun, photos: Path, tmp_path: Path) -> None:
    first, second = (make_run(name, photos=photos).folder for name in ("ridge", "svr"))
    plain = heads("compare", first, second)
    result = heads("compare", first, second, "--out", tmp_path / "page.html")
    assert result.exit_code == 0, result.output
    assert result.output.startswith(plain.output)
    page = (tmp_path / "page.html").read_text("utf-8")
    for told in ("svr is not found to differ from ridge in any of 2 tasks", "adjusted over the 6 tests of this table",
                 'data-kind="differences"', "says the mean of the training photos"):  # fmt: skip
        assert told in page, told
    assert page.count('data-kind="errors"') == 2
    assert page.count('<i class="zero"') == 2  # on the axis of each difference
    assert "cannot write" in refused("compare", first, second, "--out", tmp_path / "nowhere" / "page.html")


def test_photos_are_looked_for_where_the_user_says(make_run: MakeRun, photos: Path, tmp_path: Path) -> None:
    runs = [make_run(name, photos=photos) for name in ("ridge", "svr")]
    table = runs[1].predictions
    table.assign(calm_predicted=table["calm"]).to_csv(runs[1].folder / "predictions.csv", index=False)
    moved = photos.rename(tmp_path / "moved")
    page = tmp_path / "page.html"
    names = [run.folder for run in runs]
    assert heads("compare", *names, "--out", page).exit_code == 0
    assert "photo not available" in page.read_text("utf-8")
    assert heads("compare", *names, "--out", page, "--photos", moved).exit_code == 0
    assert "photo not available" not in page.read_text("utf-8")


def test_predictions_stand_side_by_side_by_photo_and_task(make_run: MakeRun) -> None:
    first = make_run("ridge")
    other = make_run("svr", target=Target("regression", ("calm", "beauty")))
    given = first.predictions.set_index(["repeat", "path"])
    table = other.predictions.iloc[::-1].set_index(["repeat", "path"])
    for task in ("calm", "beauty"):
        table[task] = given[task]
        table[f"{task}_predicted"] = given[task] + (0.5 if task == "calm" else 0.25)
    table.reset_index().to_csv(other.folder / "predictions.csv", index=False)
    found = side_by_side([first, Run(other.folder)])
    assert found.target.tasks == ("beauty", "calm")
    assert found.names == ["ridge", "svr"]
    assert (found.predicted[1] - found.labels).round(6).tolist() == [[0.25, 0.5]] * 24
    means = first.predictions.groupby("path")[["beauty_predicted", "calm_predicted"]].mean()
    assert found.predicted[0] == pytest.approx(means.loc[found.paths].to_numpy())


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_classes(make_run: MakeRun, kind: Any, tmp_path: Path) -> None:
    target = Target(kind, ("joy",), ("awe", "fear", "joy")) if kind == "multiclass" else Target(kind, ("joy", "fear"))
    runs = [make_run(name, target=target) for name in ("logistic", "mlp")]
    page = write_comparison(compare(runs), runs, tmp_path / "page.html").read_text("utf-8")
    assert page.count('data-kind="errors"') == len(target.tasks)
    assert "the probability that the given answer did not get" in page
