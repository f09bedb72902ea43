"""Ceilings on the whole road: `heads labels`, `heads train`, the report, `heads evaluate`; and from Python."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner, Result

import heads as face
from heads.cli import app
from heads.errors import RunError
from heads.runs.run import Run

DATA = os.environ.get("FEATSTORE_TEST_DATA")
OASIS = Path(DATA or ".") / "data" / "oasis" / "ratings.csv"


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def heads(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert result.exit_code == code, result.output
    return result


def raters_of(world) -> pd.DataFrame:
    """Six raters of every photo of the world."""
    rng = np.random.default_rng(0)
    rows = world.table.loc[world.table.index.repeat(6), ["path", "appeal", "calm"]].assign(rater=list("abcdef") * 60)
    for task in ("appeal", "calm"):
        rows[task] = np.clip(np.rint(rows[task] + rng.normal(size=len(rows))), 1, 7)
    return rows


@pytest.mark.skipif(not OASIS.is_file(), reason="needs the photos of FEATSTORE_TEST_DATA")
def test_the_ceilings_of_oasis() -> None:
    """From its own standard deviations: 102, 102 and 70 raters a photo."""
    spread = ["--sd", "{task}_sd", "--n-raters", 102, "--n-raters", "beauty=70"]
    look = ["labels", OASIS, "--tasks", "valence,arousal,beauty", "--scale", "1:7", *spread, "--json"]
    raters = json.loads(heads(*look).stdout)["raters"]
    assert {task: round(each["ceiling"]["value"], 3) for task, each in raters.items()} == {
        "valence": 0.996,
        "arousal": 0.980,
        "beauty": 0.987,
    }
    assert [round(each["one_rater"], 2) for each in raters.values()] == [0.73, 0.44, 0.59]


def test_the_ceiling_stands_beside_the_figures_of_a_run(world) -> None:
    raters_of(world).to_csv("raters.csv", index=False)
    labels = ["--labels", "raters.csv", "--scale", "1:7", "--aggregate", "mean"]
    command = ["train", "ridge", world.store, *labels, "--tensor", "whole", "--folds", 3, "--out", "run"]
    said = heads(*command).stdout
    run = Run(Path("run"))
    assert set(run.raters) == {"appeal", "calm"}
    most = run.raters["calm"].ceiling
    assert most is not None
    pearson = run.metrics["calm"]["pearson"]["mean"]
    assert pearson is not None
    cell = f"{most.value:.3f} ({pearson / most.value:.0%}".replace("%", " %)")
    assert cell in said
    assert "ceiling: the largest pearson against labels of so many raters, and the share of it reached" in said
    assert cell in repr(run)
    assert cell in run._repr_html_()
    page = (run.folder / "report.html").read_text()
    assert "Raters and ceilings" in page
    assert f"ceiling {cell}" in page
    assert "nan" not in (run.folder / "raters.json").read_text().lower()
    found = heads("train", "ridge", world.store, *labels, "--tensor", "whole", "--folds", 3, "--out", "b", "--json")
    assert json.loads(found.stdout)["raters"]["calm"]["ceiling"]["value"] == most.value
    evaluated = heads("evaluate", "run", world.store, *labels, "--seen").stdout
    assert f"{most.value:.3f} (" in evaluated
    (run.folder / "raters.json").write_text('{"calm": {}}')
    with pytest.raises(RunError, match=r"raters\.json is not what this version of heads writes"):
        _ = Run(Path("run")).raters


def test_from_python_by_standard_deviations(world) -> None:
    by_photo = raters_of(world).groupby("path")[["appeal", "calm"]].agg(["mean", "std"])
    table = pd.DataFrame({f"{task}_{what}": by_photo[task, what] for task, what in by_photo})
    table = table.rename(columns={"appeal_mean": "appeal", "calm_mean": "calm"})
    run = face.train(
        "ridge", world.store, table, scale=(1, 7), sd="{task}_std", n_raters=6, tensors="whole", folds=3, out="run"
    )
    assert run.config.target.tasks == ("appeal", "calm")
    rows = face.read_labels(raters_of(world).drop(columns="rater"), aggregate="mean").reliability()
    assert run.raters["calm"].ceiling == pytest.approx(rows["calm"].ceiling)
    # A cell that runs again takes the run as it is, but not if it is told something else of the raters.
    same = {"scale": (1, 7), "sd": "{task}_std", "tensors": "whole", "folds": 3, "out": "run"}
    face.train("ridge", world.store, table, n_raters=6, **same)  # type: ignore[arg-type]
    with pytest.raises(RunError, match="is a run with other raters"):
        face.train("ridge", world.store, table, n_raters=7, **same)  # type: ignore[arg-type]


def test_labels_without_raters_are_as_before(world) -> None:
    said = heads("train", "ridge", world.store, "--labels", world.labels, "--tensor", "whole", "--folds", 3,
                 "--out", "run").stdout  # fmt: skip
    assert "ceiling" not in said
    assert Run(Path("run")).raters == {}
    assert not Path("run/raters.json").exists()
    assert "Raters and ceilings" not in Path("run/report.html").read_text()


def test_a_look_at_rows_of_raters_says_what_training_has_to_be_told(world) -> None:
    raters_of(world).to_csv("raters.csv", index=False)
    said = heads("labels", "raters.csv", "--scale", "1:7").stdout
    assert "raters.csv: 60 photos, 2 tasks, regression" in said
    assert "photos have several rows; shown is --aggregate mean, which `heads train` has to be told" in said
    assert "360 ratings by 6 raters, mean of each photo" in said
    found = json.loads(heads("labels", "raters.csv", "--scale", "1:7", "--aggregate", "median", "--json").stdout)
    assert found["raters"]["calm"]["basis"] == "split-half"
    assert (found["n_photos"], found["n_rows_of_raters"], found["tasks"]["calm"]["n_missing"]) == (60, 360, 0)
    assert heads("labels", "raters.csv", "--quiet").output == ""


def test_a_look_at_nothing() -> None:
    for arguments, said in (
        (["labels"], "no label table named"),
        (["labels", "none.csv"], "none.csv does not exist"),
    ):
        result = heads(*arguments, code=1)
        assert said in result.stderr
        assert "Traceback" not in result.output
