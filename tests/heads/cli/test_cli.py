"""The `heads` command as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import Result

from heads import experiment
from heads.cli.request import parse_bytes
from heads.errors import HeadsError
from heads.runs.run import Run

from ..conftest import heads, refused

FAST = ["--set", "epochs=2", "--set", "attention=4", "--set", "hidden=4", "--repeats", 1, "--device", "cpu"]
HEADS = Path(sys.executable).with_name("heads")


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without a featstore.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(world, *more: object, system: str = "amtl") -> Result:
    fast = FAST if system == "amtl" else ["--tensor", "whole"]
    folds = [] if "--hold-out" in more else ["--folds", 3]
    result = heads("train", system, world.store, "--labels", world.labels, *folds, *fast, *more)
    assert result.exit_code == 0, result.output
    return result


def test_train_leaves_a_run_and_says_what_was_done(world) -> None:
    result = train(world, "--repeats", 2, "--scale", "1:7", "--group", "source", "--out", "runs/first")
    for text in (
        "labels: 60 photos, 2 tasks (appeal, calm), scale 1:7; 12 groups by 'source' kept together",
        "amtl: 3 folds, groups kept together, 2 repeats with redrawn folds, 60 images, out of fold",
        "pearson: within folds, averaged by Fisher's z; r2: coefficient of determination",
        "95 %: of the method, on another sample of photos to learn from and to be tested on",
        "±: spread over repeats",
        "mean: says the mean of the training photos of every photo; better: than that, p < 0.05 (Holm over 2 tasks)",
        "features standardised on the training rows (--no-standardise to match the paper)",
        "trained in ",
        "run: runs/first",
        "report: runs/first/report.html",
    ):
        assert text in result.stdout
    assert "\x1b" not in result.output
    run = Run(Path("runs/first"))
    assert (run.folder / "report.html").is_file()
    assert (run.folds.groupby("group")[["fold", "fold_1"]].nunique() == 1).all(axis=None)
    assert set(run.metrics) == {"appeal", "calm"}
    named = {"mean", "spread", "low", "high", "models_low", "models_high", "baseline"}
    assert set(run.metrics["calm"]["rmse"]) == named
    assert set(run.metrics["calm"]["pearson"]) == {*named, "p"}
    assert run.config.options["epochs"] == 2


@pytest.mark.parametrize("tensors", [["whole"], ["grid"], ["whole", "grid"]])
def test_sparse_says_how_much_each_backbone_says(world, tensors: list[str]) -> None:
    """appeal is a feature of the first backbone, calm one of the second."""
    read = [word for name in tensors for word in ("--tensor", name)]
    how = ["--folds", 3, "--repeats", 1, "--out", "run"]
    result = heads("train", "sparse", world.store, "--labels", world.labels, *read, *how)
    assert result.exit_code == 0, result.output
    table = result.stdout[result.stdout.index("share of |weight|") :].splitlines()
    assert table[0].split("  ")[-2:] == ["appeal", " calm"]
    said = {row.split()[0]: [float(each) for each in row.split()[1:]] for row in table[2:5]}
    assert list(said) == ["net0", "net1", "net2"]
    assert said["net0"][0] > 0.6 > 0.4 > said["net0"][1]
    assert said["net1"][1] > 0.6 > 0.4 > said["net1"][0]
    learned = Run(Path("run")).learned
    assert learned is not None
    assert learned["name"].nunique() == 3
    np.testing.assert_allclose(learned.groupby(["fold", "index"])["value"].sum(), 1, atol=1e-6)
    page = Path("run/report.html").read_text()
    assert "share of |weight|, appeal" in page
    assert '<th scope="row">net2</th>' in page


def test_what_is_assumed_is_said(world) -> None:
    said = train(world, system="ridge").stdout
    ranges = [f"{world.table[task].min():g}:{world.table[task].max():g}" for task in ("appeal", "calm")]
    assert f"scales appeal {ranges[0]}, calm {ranges[1]} (the range of the labels; --scale gives another)" in said
    assert "no groups: if some photos are nearly alike, --group keeps them" in said
    assert len(list(Path("cache/runs").glob("ridge-*"))) == 1


def test_the_same_seed_gives_the_same_predictions(world) -> None:
    for out, seed in (("a", 5), ("b", 5), ("c", 6)):
        train(world, "--repeats", 1, "--seed", seed, "--out", out, "--quiet")
    a, b, c = (Run(Path(out)).predictions for out in "abc")
    pd.testing.assert_frame_equal(a, b)
    assert not a.equals(c)


def test_features_that_stream_and_features_as_they_are(world) -> None:
    train(world, "--repeats", 1, "--memory", "20kB", "--no-standardise", "--out", "run")
    run = Run(Path("run"))
    assert run.config.options["standardise"] is False
    assert run.predictions[["appeal_predicted", "calm_predicted"]].notna().all(axis=None)


def test_json_is_json_and_nothing_else(world) -> None:
    result = train(world, "--json", "--out", "run", system="ridge")
    found = json.loads(result.stdout)
    assert (found["run"], found["report"]) == ("run", "run/report.html")
    assert found["metrics"] == Run(Path("run")).metrics
    assert result.stderr == ""


def test_quiet_says_nothing(world) -> None:
    assert train(world, "--quiet", "--out", "run", system="ridge").output == ""


def test_progress_is_told_in_plain_lines_each_once(world, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("featstore.terminal.terminal.LINE_EVERY_S", 0.0)
    lines = train(world, "--out", "run").stderr.splitlines()
    told = [line.partition(",")[0] for line in lines if line.startswith("train: ")]
    assert told[:5] == [f"train: {done}/6" for done in range(1, 6)]
    assert len(set(told)) == len(told)


def test_a_test_part_is_counted_by_itself(world) -> None:
    said = train(world, "--hold-out", 0.2, "--out", "run", system="ridge").stdout
    assert "ridge: hold-out of 20%, tested on 12 of 60 images" in said


def test_labels_of_other_kinds_and_splits_that_are_given(world) -> None:
    table = world.table.assign(
        mood=["good" if each > 4 else "bad" for each in world.table["calm"]],
        liked=(world.table["appeal"] > 4).astype(int),
        side=["test"] * 12 + ["train"] * 48,
    )
    table.to_csv("more.csv", index=False)
    common = ["train", "logistic", world.store, "--labels", "more.csv", "--tensor", "whole"]
    moods = heads(*common, "--tasks", "mood", "--stratify", "mood", "--folds", 2, "--out", "moods")
    assert "labels: 60 photos, mood: 2 classes (bad, good)" in moods.stdout
    assert (
        "logistic: 2 folds, stratified by mood, 10 repeats with redrawn folds, 60 images, out of fold" in moods.stdout
    )
    assert all(name in moods.stdout for name in ("f1", "accuracy", "balanced_accuracy", "map"))
    liked = heads(*common, "--tasks", "liked", "--split", "side", "--out", "liked")
    assert "labels: 60 photos, 1 binary task (liked)\n" in liked.stdout
    assert "tested on 12 of 60 images" in liked.stdout
    again = heads(*common, "--tasks", "liked", "--split", "moods", "--out", "again")
    assert again.exit_code == 0, again.output
    pd.testing.assert_frame_equal(Run(Path("again")).folds, Run(Path("moods")).folds)


def test_a_sweep_says_which_run_to_choose(world) -> None:
    sweep = ["--sweep", "lr=0.01,1e-4", "--set", "epochs=5", "--repeats", 1]
    result = train(world, *sweep, "--out", "all", system="linear")
    runs = {name: Run(Path("all") / name) for name in ("lr=0.01", "lr=1e-4")}
    inner = {name: run.history[run.history["best"] == 1]["val_loss"].mean() for name, run in runs.items()}
    chosen = min(inner, key=inner.__getitem__)
    (starred,) = (line for line in result.stdout.splitlines() if " * " in line)
    assert starred.split()[0] == f"all/{chosen}"
    assert "* least loss on the inner rows: the one to use. What to report of it is the last row" in result.stdout
    assert next(line for line in result.stdout.splitlines() if "mean" in line.split())  # the baseline comes first
    assert (Path("all") / chosen / "report.html").is_file()
    found = json.loads(train(world, *sweep, "--json", "--out", "more", system="linear").stdout)
    assert [run["chosen"] for run in found["runs"]] == [name == chosen for name in inner]
    assert [run["inner_loss"] for run in found["runs"]] == pytest.approx(list(inner.values()))
    nested = found["nested"]["metrics"]
    assert sum(found["nested"]["times"].values()) == 3  # a choice in each fold
    assert set(nested) == {"appeal", "calm"}
    (last,) = (line for line in result.stdout.splitlines() if line.strip().startswith("chosen within each fold"))
    assert last.split()[-2:] == [f"{nested[task]['pearson']['mean']:.3f}" for task in ("appeal", "calm")]


def test_a_sweep_does_not_write_into_a_run(world) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    before = sorted(Path("run").iterdir())
    common = ["linear", world.store, "--labels", world.labels, "--tensor", "whole"]
    assert "run is a run, and a sweep leaves runs below its folder" in refused(
        "train", *common, "--sweep", "lr=0.01,1e-4", "--out", "run"
    )
    assert sorted(Path("run").iterdir()) == before


@pytest.mark.parametrize(
    ("system", "sweep", "why"),
    [
        ("mlp", ["lr=0.01,1e-4", "--set", "epochs=1"], "no inner rows (--set inner=0.15 sets some aside)"),
        ("ridge", ["alpha=1,10"], "head 'ridge' is solved, without an inner loss"),
    ],
)
def test_a_sweep_without_anything_to_choose_by_says_so_before_it_begins(world, system: str, sweep, why: str) -> None:
    said = train(world, "--sweep", *sweep, "--out", "all", system=system).stdout
    sentence = f"{why}: nothing says which run to choose, and test folds are not for choosing"
    first, last = said.splitlines()[0], said.splitlines()[-1]
    assert (first, last) == (f"{sentence}; the runs can still be compared", sentence)
    assert "of 2 of 2 combinations" in said
    chosen = train(world, "--sweep", "inner=0,0.3", "--set", "epochs=1", "--out", "more", system="mlp").stdout
    assert "no inner rows" not in chosen


def test_a_class_may_be_called_none_unless_that_is_said_to_be_missing(world) -> None:
    names = ["none", "007", "7", "1.10"]
    world.table.assign(mood=[names[i % 4] for i in range(60)]).to_csv("moods.csv", index=False)
    asked = [
        "logistic",
        world.store,
        "--labels",
        "moods.csv",
        "--tasks",
        "mood",
        "--tensor",
        "whole",
        "--kind",
        "multiclass",
    ]
    said = heads("train", *asked, "--out", "run").output
    assert "labels: 60 photos, mood: 4 classes (1.10, 007, 7, none)\n" in said, said
    assert "  'none' is a class here; --missing=none if that means that there is none\n" in said
    again = heads("evaluate", "run", world.store, "--labels", "moods.csv", "--seen")
    assert (again.exit_code, "mood" in again.stdout) == (0, True), again.output
    fewer = heads("train", *asked, "--missing", "none", "--missing", "-9", "--out", "fewer").stdout
    assert "labels: 45 photos, mood: 3 classes (1.10, 007, 7); missing: 15 'none', 0 '-9'\n" in fewer
    assert json.loads(Path("fewer/config.json").read_text())["labels"]["missing"] == ["-9", "none"]
    other = heads("train", *asked, "--out", "fewer")
    assert (other.exit_code, other.stderr.startswith("error: fewer")) == (1, True), other.output
    refused = heads("evaluate", "fewer", world.store, "--labels", "moods.csv", "--seen")
    assert "has 'none', which the run does not know" in refused.stderr
    assert (
        heads("evaluate", "fewer", world.store, "--labels", "moods.csv", "--seen", "--missing", "none").exit_code == 0
    )


def test_a_split_file_calls_the_photos_what_the_labels_call_them(world) -> None:
    table = world.table.rename(columns={"path": "filename"})
    table.to_csv("named.csv", index=False)
    table[["filename"]].assign(fold=[i // 20 for i in range(60)]).to_csv("folds.csv", index=False)
    asked = ["--labels", "named.csv", "--path-column", "filename", "--tensor", "whole", "--split", "folds.csv"]
    said = heads("train", "ridge", world.store, *asked, "--tasks", "appeal", "--out", "run")
    assert "ridge: 3 folds of folds.csv, 60 images, out of fold" in said.stdout, said.output


def test_what_is_counted_is_what_is_trained_on(world, write_store) -> None:
    write_store(Path("s.zarr"), list(world.table["path"][:21]), {"whole": world.whole[:21]}, widths=[24, 16, 20])
    asked = ["--labels", world.labels, "--scale", "1:7", "--scale", "calm=1:10", "--group", "source", "--folds", 2]
    said = heads("train", "ridge", "s.zarr", *asked, "--out", "run").stdout
    assert (
        "labels: 21 photos, 2 tasks (appeal, calm), scales appeal 1:7, calm 1:10; 5 groups by 'source' kept together"
        in said
    )
    assert "  39 labels without features, left out: " in said


def test_a_head_that_learnt_nothing_ends_with_a_line_that_says_so(world) -> None:
    still = ["--set", "epochs=3", "--set", "lr=1e-9"]
    said = train(world, *still, "--out", "still", system="linear").stdout
    last = said.strip().splitlines()[-1]
    assert "redictions of appeal, calm hardly vary" in last
    assert "Let the inner photos choose another rate: --sweep lr=1e-11,1e-10,1e-08,1e-07." in last
    assert "hardly vary" in Path("still/report.html").read_text(encoding="utf-8")
    assert json.loads(train(world, *still, "--json", "--out", "json", system="linear").stdout)["doubt"] == last
    swept = train(world, "--set", "epochs=3", "--sweep", "lr=0.001,1e-9", "--out", "all", system="linear").stdout
    assert f"all/lr=1e-9: {last}"[:80] in swept
    assert "all/lr=0.001: " not in swept

    assert "hardly" not in train(world, "--out", "good", system="ridge").stdout


def test_a_sweep_names_what_diverged(world) -> None:
    sweep = ["--sweep", "lr=0.01,1e30", "--set", "epochs=3"]
    result = train(world, *sweep, "--out", "all", system="linear")
    assert "pearson of 1 of 2 combinations" in result.stdout
    assert "all/lr=1e30: no run, the loss of repeat0-fold" in result.stdout
    found = json.loads(train(world, *sweep, "--json", "--out", "more", system="linear").stdout)
    assert [run["run"] for run in found["runs"]] == ["more/lr=0.01"]
    assert list(found["diverged"]) == ["more/lr=1e30"]
    asked = ["--labels", world.labels, "--tensor", "whole", "--sweep", "lr=1e30,1e29", "--out", "none"]
    assert "is not a number after epoch" in refused("train", "linear", world.store, *asked)


def test_the_configuration_says_what_the_command_does_not(world, desk: Path) -> None:
    (desk / "featstore.toml").write_text(
        f'store = "{world.store}"\nruns = "out"\n[labels]\nfile = "{world.labels}"\n'
        'tasks = ["calm"]\nscale = [0, 10]\ngroup = "folder"\n',
        encoding="utf-8",
    )
    assert heads("train", "ridge", "--folds", 2).exit_code == 0
    run = Run(next(Path("out").iterdir()))
    assert (run.config.target.tasks, run.config.scales, run.config.group) == (("calm",), ((0, 10),), "folder")
    # another table has nothing to do with what the configuration says of its own
    world.table.to_csv("mine.csv", index=False)
    assert heads("train", "ridge", "--folds", 2, "--labels", "mine.csv", "--out", "mine").exit_code == 0
    config = Run(Path("mine")).config
    assert (config.target.tasks, config.group) == (("appeal", "calm"), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "amlt", "STORE", "--labels", "LABELS"], "unknown head 'amlt'; did you mean 'amtl'?"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--set", "epoch=3"], "did you mean 'epochs'?"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--tasks", "cam"], "did you mean 'calm'?"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--tensor", "gird"], "did you mean 'grid'?"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--tensor", "whole"], "reads a stack"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--group", "trip"], "no column 'trip' to group by"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--path-column", "file"], "no column 'file'"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--scale", "7"], "--scale '7' is not of the form"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--kind", "rating"], "unknown kind 'rating'; known: binary"),
        (["train", "logistic", "STORE", "--labels", "LABELS"], "learns binary or multilabel or multiclass labels"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--precision", "fp8"], "'fp8': expected fp32 or bf16"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--sweep", "lr"], "is not of the form NAME=VALUE,VALUE,"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--sweep", "lr=,"], "is not of the form NAME=VALUE,VALUE,"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--sweep", "lrr=1,2"], "did you mean 'lr'?"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--hold-out", "2"], "a share between 0 and 1 is expected"),
        (
            ["train", "ridge", "STORE", "--labels", "LABELS", "--hold-out", "0.2", "--folds", "3"],
            "--folds 3 and --hold-out 0.2 contradict each other; name one",
        ),
        (
            ["train", "ridge", "STORE", "--labels", "LABELS", "--split", "run", "--folds", "5"],
            "--folds 5 and --split run contradict each other; name one",
        ),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--split", "side"], "no column 'side' to split by"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--split", "side.csv"], "side.csv does not exist; a split"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--stratify", "side"], "no column 'side' to stratify by"),
        (["train", "amtl", "STORE", "--labels", "EMPTY"], "empty.csv"),
        (["train", "amtl", "STORE", "--labels", "TEXT"], "no path in text.csv is in the store"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "lots"], "--memory 'lots' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "-4GB"], "--memory '-4GB' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "inf"], "--memory 'inf' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "4"], "'4' is 4 bytes; write 4GB if that"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--set", "lr=inf"], "'lr' is 0 or more; found 'inf'"),
        (
            ["train", "ridge", "STORE", "--labels", "LABELS", "--hold-out", "0.001", "--tensor", "whole"],
            "a hold-out of 0.001 tests on 1 of 60 images, and no metric is defined of less than 2; hold out more",
        ),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--folds", "61"], "61 folds need at least as many"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--device", "gpu9"], "gpu9"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--out", "."], "exists already"),
        (["train", "amtl", "STORE", "--labels", "none.csv"], "none.csv does not exist"),
        (["train", "amtl", "STORE"], "no label table named; say --labels FILE.csv"),
        (["train", "amtl", "none.zarr", "--labels", "LABELS"], "none.zarr is not a feature store"),
        (["show", "rigde"], "did you mean 'ridge'?"),
        (["predict", "none", "STORE"], "none does not exist"),
        (["report", "none"], "none does not exist"),
        (["resume", "none"], "there is no run none to go on with; `heads train` begins one"),
        (["evaluate", "none", "STORE", "--labels", "LABELS"], "none does not exist"),
    ],
)
def test_mistakes_are_answered_in_a_line(world, arguments: list[str], message: str) -> None:
    Path("empty.csv").write_text("")
    Path("text.csv").write_text("path,calm,appeal\nelsewhere.jpg,3,4\nother.jpg,4,5\n")
    named = {"STORE": world.store, "LABELS": world.labels, "EMPTY": "empty.csv", "TEXT": "text.csv"}
    assert message in refused(*(named.get(each, each) for each in arguments))
    assert not list(Path().glob("*.part"))


def test_seeds_that_no_generator_takes_are_refused_at_once(world) -> None:
    for seed in (-1, 2**32):
        result = heads("train", "ridge", world.store, "--labels", world.labels, "--seed", seed)
        assert result.exit_code == 2


def test_predict_writes_a_table_of_every_image(world) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    printed = heads("predict", "run", world.store, "--quiet").stdout
    warning = (
        "60 of 60 images are photos that the run was trained on (column `trained`): see run/predictions.csv for what "
        "models said that had not seen them\n"
    )
    said = heads("predict", "run", world.store, "--out", "new.csv")
    assert (said.stdout, said.stderr) == ("60 predictions: new.csv\n" + warning, "")
    apart = heads("predict", "run", world.store)
    assert (apart.stdout, apart.stderr) == (printed, warning)  # what is piped on is a CSV and nothing else
    assert Path("new.csv").read_text("utf-8") == printed
    table = pd.read_csv("new.csv")
    assert table["path"].tolist() == world.table["path"].tolist()
    assert table["calm_predicted"].corr(world.table["calm"]) > 0.5
    assert "cannot write none/new.csv" in refused("predict", "run", world.store, "--out", "none/new.csv")


def test_no_path_in_a_table_that_is_handed_on_is_a_formula(world, write_store) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    names = ["=HYPERLINK(1).jpg", "+1.jpg", "plain.jpg"]
    write_store(Path("s.zarr"), names, {"whole": world.whole[:3]}, widths=[24, 16, 20])
    pd.DataFrame({"path": names, "appeal": [1, 4, 6], "calm": [3, 2, 5]}).to_csv("l.csv", index=False)
    expected = ["'=HYPERLINK(1).jpg", "'+1.jpg", "plain.jpg"]
    heads("predict", "run", "s.zarr", "--out", "new.csv")
    assert pd.read_csv("new.csv")["path"].tolist() == expected
    heads("evaluate", "run", "s.zarr", "--labels", "l.csv", "--seen", "--out", "said.csv")
    assert pd.read_csv("said.csv")["path"].tolist() == expected


def test_evaluate_leaves_out_what_was_seen_unless_told_otherwise(world, write_store) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    message = refused("evaluate", "run", world.store, "--labels", world.labels)
    assert "run was trained on all 60 labelled images" in message
    names = ["a.jpg", "b.jpg", "c.jpg", world.table["path"][3]]
    write_store(Path("s.zarr"), names, {"whole": world.whole[:4]}, widths=[24, 16, 20])
    pd.DataFrame({"path": names, "appeal": [1, 4, 6, 2], "calm": [3, 2, 5, 5]}).to_csv("l.csv", index=False)
    result = heads("evaluate", "run", "s.zarr", "--labels", "l.csv", "--out", "said.csv")
    assert "ridge on 3 images" in result.stdout
    assert "1 image left out: the run was trained on them (--seen counts them)" in result.stdout
    assert pd.read_csv("said.csv")["path"].tolist() == names[:3]
    every = json.loads(heads("evaluate", "run", "s.zarr", "--labels", "l.csv", "--seen", "--json").stdout)
    assert (every["n_images"], every["n_seen"]) == (4, 0)
    assert set(every["metrics"]) == {"appeal", "calm"}


def test_ratings_on_another_scale_than_the_runs_are_noticed(world, write_store) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    write_store(Path("s.zarr"), list("abc"), {"whole": world.whole[:3]}, widths=[24, 16, 20])
    pd.DataFrame({"path": list("abc"), "appeal": [1, 9, 6], "calm": [10, 2, 5]}).to_csv("l.csv", index=False)
    asked = ["evaluate", "run", "s.zarr", "--labels", "l.csv", "--seen"]
    assert "2 ratings outside the scale that the run learnt; if these labels are on another one" in heads(*asked).stdout
    assert json.loads(heads(*asked, "--json").stdout)["n_outside"] == 2
    assert "outside" not in heads(*asked, "--scale", "1:10").stdout


def test_labels_that_are_all_the_same_can_be_evaluated(world, write_store) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    write_store(Path("s.zarr"), list("abc"), {"whole": world.whole[:3]}, widths=[24, 16, 20])
    pd.DataFrame({"path": list("abc"), "appeal": [4, 4, 4], "calm": [5, 2, 5]}).to_csv("l.csv", index=False)
    found = json.loads(heads("evaluate", "run", "s.zarr", "--labels", "l.csv", "--seen", "--json").stdout)["metrics"]
    assert found["appeal"]["pearson"]["mean"] is None
    assert found["appeal"]["rmse"]["mean"] > 0
    assert found["calm"]["pearson"]["mean"] is not None


def test_ratings_keep_the_digits_that_they_have(world) -> None:
    table = world.table.assign(calm=world.table["calm"] + 20_000)
    table.to_csv("l.csv", index=False)
    asked = ["--labels", "l.csv", "--tasks", "calm", "--tensor", "whole", "--folds", 3, "--out", "run", "--quiet"]
    assert heads("train", "ridge", world.store, "--repeats", 1, *asked).exit_code == 0
    found = Run(Path("run")).predictions.set_index("path")["calm"]
    assert found[table["path"]].tolist() == pd.read_csv("l.csv")["calm"].tolist()


def test_a_task_may_have_a_comma_in_its_name(world) -> None:
    world.table.rename(columns={"appeal": "appeal, mean"})[["path", "appeal, mean"]].to_csv("l.csv", index=False)
    asked = ["--labels", "l.csv", "--scale", "1:7", "--tensor", "whole", "--folds", 3, "--out", "run", "--quiet"]
    assert heads("train", "ridge", world.store, *asked).exit_code == 0
    found = json.loads(heads("evaluate", "run", world.store, "--labels", "l.csv", "--seen", "--json").stdout)
    assert set(found["metrics"]) == {"appeal, mean"}


def test_predict_refuses_features_of_other_weights(world, write_store) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    write_store(Path("s.zarr"), list("abc"), {"whole": world.whole[:3]}, widths=[24, 16, 20], weights="second")
    assert "holds no tensor of the features that run was trained on" in refused("predict", "run", "s.zarr")


def test_report_is_made_again(world) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    Path("run/report.html").unlink()
    assert heads("report", "run").stdout == "report: run/report.html\n"
    assert Path("run/report.html").is_file()


def test_list_and_show() -> None:
    listed = heads("list")
    assert listed.exit_code == 0
    assert "amtl" in listed.stdout
    assert "\x1b" not in listed.stdout
    by_name = {each["name"]: each for each in json.loads(heads("list", "--json").stdout)}
    assert by_name["amtl"]["options"]["epochs"] == 60
    assert (by_name["amtl"]["reads"], by_name["ridge"]["kinds"]) == (["stack"], ["regression"])
    assert json.loads(heads("show", "amtl", "--json").stdout)["hidden"]["default"] == 256
    assert "weight_decay" in heads("show", "amtl").stdout


def test_sizes_as_memory_takes_them() -> None:
    sizes = {"4GB": 4e9, "500MB": 5e8, " 2 gib ": 2**31, "1.5kB": 1500, "7000": 7000, "3b": 3}
    for text, n_bytes in sizes.items():
        assert parse_bytes(text) == n_bytes
    with pytest.raises(HeadsError, match="--memory '4' is 4 bytes; write 4GB if that is what is meant"):
        parse_bytes("4")
    for text in ("lots", "-4GB", "inf", "nan", "", "GB", "4 parsecs", "2t"):
        with pytest.raises(HeadsError, match="is not a size; write 4GB or 500MB"):
            parse_bytes(text)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
@pytest.mark.parametrize("words", [["list"], ["show", "ridge", "--json"]])
def test_output_that_cannot_be_written_is_an_error_in_a_line(words: list[str]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([HEADS, *words], stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: cannot write to standard output: No space left on device\n")


def test_help_does_not_wait_for_torch() -> None:
    code = (
        "import sys, heads.cli; assert not {'torch', 'zarr', 'pandas', 'sklearn'} & set(sys.modules);"
        "import resource, subprocess; subprocess.run([sys.argv[1], '--help'], check=True);"
        "used = resource.getrusage(resource.RUSAGE_CHILDREN); print(used.ru_utime + used.ru_stime)"
    )
    done = subprocess.run([sys.executable, "-c", code, HEADS], capture_output=True, text=True, check=True)
    assert "Train light heads on frozen features" in done.stdout
    assert float(done.stdout.splitlines()[-1]) < 0.3
    assert "\x1b" not in done.stdout


# ------------------------------------------------------------------------------------------ stopped


@pytest.mark.skipif(os.name == "nt", reason="signals")
@pytest.mark.parametrize("memory", ["4GB", "100kB"], ids=["in memory", "streamed"])
def test_ctrl_c_ends_soon_and_says_how_to_go_on(world, memory: str) -> None:
    main = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a run in the background ignores it
        "from heads.cli import main; main()"
    )
    command = [HEADS.with_name("python"), "-W", "ignore", "-c", main, "train", "amtl", world.store, "--labels",
               world.labels, "--out", "run", "--set", "epochs=100000", "--set", "patience=0", "--set", "hidden=4",
               "--set", "attention=4", "--memory", memory]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(Path().glob("run.part/training/*")) and time.monotonic() < deadline:
            time.sleep(0.05)  # until there is something to go on with
        began = time.monotonic()
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert time.monotonic() - began < 10
    assert "Traceback" not in errors
    assert errors.splitlines()[-1] == "stopped; `heads resume run` goes on with it"
    assert not Path("run").exists()
    assert list(Path("run.part/training").iterdir())


def test_resume_goes_on_with_what_was_asked_wherever_it_is_called_from(
    world, desk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    (desk / "labels.csv").write_bytes(world.labels.read_bytes())
    asked = ["--labels", "labels.csv", "--folds", 3, *FAST, "--seed", 4, "--tasks", "calm", "--out", "my run"]
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "train_together", stop)
        stopped = heads("train", "amtl", world.store, *asked)
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1] == "stopped; `heads resume 'my run'` goes on with it"
    assert "my run is not finished; `heads resume my run` goes on with it" in refused("report", "my run")
    (desk / "elsewhere").mkdir()
    monkeypatch.chdir(desk / "elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(experiment, "write_results", stop)
        assert "going on: 0 of 3 models finished" in heads("resume", "../my run").output
        assert "going on: 3 of 3 models finished" in heads("resume", desk / "my run").stdout
    result = heads("resume", desk / "my run", "--json")
    assert result.exit_code == 0, result.output
    assert set(json.loads(result.stdout)["metrics"]) == {"calm"}
    assert Run(desk / "my run").config.seed == 4
    assert "is complete; there is nothing to go on with" in refused("resume", desk / "my run")


def test_ctrl_c_before_anything_has_begun_promises_nothing(world, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "make_dataset", stop)
    stopped = heads("train", "amtl", world.store, "--labels", world.labels, *FAST, "--out", "run")
    assert stopped.exit_code == 130
    assert stopped.stderr.splitlines()[-1] == "stopped; nothing was changed"
    assert list(Path().iterdir()) == []


def test_a_plan_that_cannot_be_asked_again_says_why(world, desk: Path) -> None:
    Path("run.part").mkdir()
    request = {"labels": {}, "system": "ridge", "out": "run", "same_folds": False}
    plan = {"facts": {}, "arguments": {"folder": str(desk / "gone"), "request": request}}
    Path("run.part/plan.json").write_text(json.dumps(plan))
    assert "which is no more" in refused("resume", "run")
    plan["arguments"] = {"folder": str(desk), "request": {"labels": {"colour": 1}}}
    Path("run.part/plan.json").write_text(json.dumps(plan))
    assert "was not written by this version of heads" in refused("resume", "run")
