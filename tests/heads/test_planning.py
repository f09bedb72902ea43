"""A training that is asked for in one call, as in a notebook: a head, a store and labels."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import featstore
import heads
from heads import HeadsError
from heads.errors import LabelsError, RunError

RIDGE = {"tensors": "whole", "scale": (1, 7), "folds": 3, "group": "source", "repeats": 2}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def ratings(world) -> pd.DataFrame:
    return world.table.drop(columns="note")


def test_a_head_a_store_and_a_table_are_enough(world, ratings: pd.DataFrame, here: Path) -> None:
    run = heads.train("ridge", world.store, labels=ratings, **RIDGE)
    assert run.folder.parent == Path("cache/runs")
    assert run.folder.name.startswith("ridge-")
    assert run.metrics["appeal"]["pearson"]["mean"] > 0.5
    planned = heads.train(
        heads.Plan(
            system="ridge",
            store=str(world.store),
            labels=heads.read_labels(str(world.labels), scales=(1, 7), group="source"),
            out="planned",
            tensors=["whole"],
            validation=heads.Validation(n_folds=3),
            n_repeats=2,
            group="source",
        )
    )
    assert run.folds.equals(planned.folds)
    for task, by_metric in run.metrics.items():
        assert by_metric["pearson"] == pytest.approx(planned.metrics[task]["pearson"], abs=1e-5)


@pytest.mark.parametrize("labels", [Path, str, lambda file: [file], heads.read_labels])
def test_labels_are_taken_as_people_have_them(world, here: Path, labels: Any) -> None:
    run = heads.train("ridge", featstore.open(world.store), labels(world.labels), tensors="whole", folds=3)
    assert run.config.n_images == 60
    assert run.config.store == str(world.store)


def test_a_cell_that_trains_can_run_again(world, ratings: pd.DataFrame, here: Path) -> None:
    first = heads.train("ridge", world.store, labels=ratings, out="run", **RIDGE)
    written = {file: file.stat().st_mtime_ns for file in Path("run").rglob("*")}
    again = heads.train("ridge", world.store, labels=ratings, out="run", **RIDGE)
    assert again.metrics == first.metrics
    assert {file: file.stat().st_mtime_ns for file in Path("run").rglob("*")} == written
    with pytest.raises(RunError, match="run exists already"):
        heads.train("ridge", world.store, labels=ratings, out="run", exist_ok=False, **RIDGE)
    with pytest.raises(RunError, match="values of the labels"):
        heads.train("ridge", world.store, labels=ratings.assign(calm=ratings["appeal"]), out="run", **RIDGE)


def test_featstore_toml_says_what_the_call_does_not(world, here: Path) -> None:
    Path("featstore.toml").write_text(
        f'store = "{world.store}"\nruns = "mine"\n[labels]\nfile = "{world.labels}"\nscale = [1, 7]\ngroup = "source"\n'
    )
    run = heads.train("ridge", tensors="whole", folds=3)
    assert (run.folder.parent.resolve(), run.config.group) == (here / "mine", "source")


def test_a_run_shows_what_the_command_prints(world, ratings: pd.DataFrame, here: Path) -> None:
    run = heads.train("ridge", world.store, labels=ratings.iloc[:-2], out="<b>", **RIDGE)
    shown, page = repr(run), run._repr_html_()
    for words in (
        "labels: 58 photos, 2 tasks (appeal, calm), scale 1:7; 12 groups by 'source' kept together",
        "2 images without labels, left out",
        "ridge: 3 folds, groups kept together, 2 repeats with redrawn folds, 58 images, out of fold",
        "95 %: of the method, on another sample of photos",
    ):
        assert words in shown
        assert words in page.replace("&#x27;", "'")
    figure = run.metrics["calm"]["pearson"]
    cells = (f"{figure['mean']:.3f}", f"{figure['low']:.3f} to {figure['high']:.3f}")
    assert any(all(each in line for each in ("calm", *cells)) for line in shown.splitlines())
    said = f"{cells[0]} ± {figure['spread']:.3f}"
    assert f"<td>calm</td><td>ridge</td><td>{said}</td><td>{cells[1]}</td>" in page
    assert "<b>" not in page
    assert run.figures.loc[("calm", "pearson"), "low"] == figure["low"]
    read_again = heads.Run("<b>")
    assert "ridge: 3 folds" in repr(read_again)
    (read_again.folder / "metrics.json").unlink()
    assert "metrics.json is missing" in repr(heads.Run("<b>"))


def test_comparisons_and_evaluations_show_their_figures(world, ratings: pd.DataFrame, here: Path) -> None:
    store = featstore.open(world.store)
    runs = [heads.train("ridge", store, labels=ratings, out=out, seed=seed, **RIDGE) for seed, out in enumerate("ab")]
    with pytest.raises(HeadsError, match="b was tested in other folds than a"):
        heads.compare(runs)
    found = heads.compare(runs, unpaired=True)
    assert repr(found).startswith("pearson of 2 runs on 60 images, 12 groups\ntask")
    assert "<th>difference</th>" in found._repr_html_()
    assert list(found.pandas()["run"]) == ["mean", "a", "b"] * 2
    assert len(heads.predict(runs[0], store)) == 60
    measured = heads.evaluate(runs[0], store, heads.read_labels(ratings), seen_too=True)
    assert repr(measured).startswith("60 images\ntask")
    assert "<td>appeal</td>" in measured._repr_html_()


def test_options_and_several_tensors(world, ratings: pd.DataFrame, here: Path) -> None:
    run = heads.train("linear", world.store, ratings, options={"epochs": 2, "standardise": False}, **RIDGE)
    assert (run.config.options["epochs"], run.config.options["standardise"]) == (2, False)


@pytest.mark.parametrize(
    ("said", "error", "message"),
    [
        ({"labels": None}, LabelsError, "no label table named"),
        ({"folds": 3, "hold_out": 0.2}, HeadsError, "folds 3 and hold_out 0.2 contradict each other"),
        ({"path_column": "photo"}, LabelsError, "DataFrame has no column 'photo'"),
        ({"split": "fold"}, LabelsError, "no column 'fold' to split by"),
        ({"options": {"epoch": 3}}, HeadsError, "epoch"),
        ({"labels": {"path": ["a"]}}, LabelsError, "labels are a dict; give a file, a pandas DataFrame"),
        ({"precision": "fp16"}, HeadsError, "precision 'fp16': expected fp32 or bf16"),
    ],
)
def test_what_makes_no_sense_is_answered(
    world, ratings: pd.DataFrame, here: Path, said: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        heads.train("ridge", world.store, **{"labels": ratings, "tensors": "whole", **said})
    assert not Path("cache").exists()


def test_a_plan_says_everything_itself(world) -> None:
    labels = heads.read_labels(world.labels)
    plan = heads.Plan(system="ridge", store=world.store, labels=labels, out="run")
    with pytest.raises(HeadsError, match="a plan says everything itself; leave out labels, seed"):
        heads.train(plan, labels=labels, seed=1)
    with pytest.raises(LabelsError, match="say them to read_labels"):
        heads.train("ridge", world.store, labels, scale=(1, 7))
    assert repr(plan).startswith("Plan(system='ridge', store=")
    assert repr(plan).endswith("out='run')")
    assert plan.out == Path("run")
