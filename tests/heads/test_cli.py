"""The `heads` command as a user types it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from heads.cli import app
from heads.runs import Run

FAST = ["--set", "epochs=2", "--set", "attention=4", "--set", "hidden=4", "--device", "cpu"]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, without a featstore.toml."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def heads(*arguments: object) -> Result:
    return CliRunner().invoke(app, [str(each) for each in arguments])


def refused(*arguments: object) -> str:
    """The message of a command that fails: one line, no traceback."""
    result = heads(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    assert "Traceback" not in result.output
    assert result.stderr.startswith("error: ")
    return result.stderr


def train(world, *more: object, system: str = "amtl") -> Result:
    fast = FAST if system == "amtl" else []
    result = heads("train", system, world.store, "--labels", world.labels, "--folds", 3, *fast, *more)
    assert result.exit_code == 0, result.output
    return result


def test_train_leaves_a_run_and_says_what_was_done(world) -> None:
    result = train(world, "--repeats", 2, "--scale", "1:7", "--group", "source", "--out", "runs/first")
    for text in (
        "labels: 60 photos, 2 tasks, scale 1:7; 12 groups by 'source' kept together",
        "amtl: 3 folds, 2 repeats, 60 images, out of fold",
        "pearson2: squared correlation; r2: coefficient of determination",
        "features standardised on the training rows (--no-standardise to match the paper)",
        "run: runs/first",
        "report: runs/first/report.html",
    ):
        assert text in result.stdout
    assert "\x1b" not in result.output
    run = Run(Path("runs/first"))
    assert (run.folder / "report.html").is_file()
    assert (run.folds.groupby("group")["fold"].nunique() == 1).all()
    assert set(run.metrics) == {"appeal", "calm"}
    assert set(run.metrics["calm"]["pearson"]) == {"mean", "spread"}
    assert run.config.options["epochs"] == 2


def test_what_is_assumed_is_said(world) -> None:
    said = train(world, system="ridge").stdout
    low, high = world.table[["appeal", "calm"]].min().min(), world.table[["appeal", "calm"]].max().max()
    assert f"scale {low:g}:{high:g} (the range of the labels; --scale gives another)" in said
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


def test_the_configuration_says_what_the_command_does_not(world, desk: Path) -> None:
    (desk / "featstore.toml").write_text(
        f'store = "{world.store}"\nruns = "out"\n[labels]\nfile = "{world.labels}"\n'
        'tasks = ["calm"]\nscale = [0, 10]\ngroup = "folder"\n',
        encoding="utf-8",
    )
    assert heads("train", "ridge", "--folds", 2).exit_code == 0
    run = Run(next(Path("out").iterdir()))
    assert (run.config.tasks, run.config.scale, run.config.group) == (("calm",), (0, 10), "folder")
    # another table has nothing to do with what the configuration says of its own
    world.table.to_csv("mine.csv", index=False)
    assert heads("train", "ridge", "--folds", 2, "--labels", "mine.csv", "--out", "mine").exit_code == 0
    assert (Run(Path("mine")).config.tasks, Run(Path("mine")).config.group) == (("appeal", "calm"), None)


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
        (["train", "amtl", "STORE", "--labels", "LABELS", "--scale", "7"], "--scale '7' is not of the form LOW:HIGH"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "lots"], "--memory 'lots' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "-4GB"], "--memory '-4GB' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--memory", "inf"], "--memory 'inf' is not a size"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--folds", "61"], "61 folds need at least as many"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--device", "gpu9"], "gpu9"),
        (["train", "amtl", "STORE", "--labels", "LABELS", "--out", "."], "exists already"),
        (["train", "amtl", "STORE", "--labels", "none.csv"], "none.csv does not exist"),
        (["train", "amtl", "STORE"], "no label table named; say --labels FILE.csv"),
        (["train", "amtl", "none.zarr", "--labels", "LABELS"], "none.zarr is not a feature store"),
        (["show", "rigde"], "did you mean 'ridge'?"),
        (["predict", "none", "STORE"], "none does not exist"),
        (["report", "none"], "none does not exist"),
    ],
)
def test_mistakes_are_answered_in_a_line(world, arguments: list[str], message: str) -> None:
    named = {"STORE": world.store, "LABELS": world.labels}
    assert message in refused(*(named.get(each, each) for each in arguments))
    assert not list(Path().glob("*.part"))


def test_seeds_that_no_generator_takes_are_refused_at_once(world) -> None:
    for seed in (-1, 2**32):
        result = heads("train", "ridge", world.store, "--labels", world.labels, "--seed", seed)
        assert result.exit_code == 2


def test_predict_writes_a_table_of_every_image(world) -> None:
    train(world, "--out", "run", "--quiet", system="ridge")
    printed = heads("predict", "run", world.store, "--quiet").stdout
    assert heads("predict", "run", world.store, "--out", "new.csv").stdout == "60 predictions: new.csv\n"
    assert Path("new.csv").read_text("utf-8") == printed
    table = pd.read_csv("new.csv")
    assert table["path"].tolist() == world.table["path"].tolist()
    assert table["calm"].corr(world.table["calm"]) > 0.5
    assert "cannot write none/new.csv" in refused("predict", "run", world.store, "--out", "none/new.csv")


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
    assert by_name["ridge"]["layout"] == "concat"
    assert json.loads(heads("show", "amtl", "--json").stdout)["hidden"]["default"] == 256
    assert "weight_decay" in heads("show", "amtl").stdout


def test_help_does_not_wait_for_torch() -> None:
    code = "import sys, heads.cli; assert not {'torch', 'zarr', 'pandas'} & set(sys.modules), sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.skipif(os.name == "nt", reason="signals")
def test_ctrl_c_ends_quietly_and_leaves_no_half_run(world) -> None:
    main = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"  # a run in the background ignores it
        "from heads.cli import main; main()"
    )
    command = [sys.executable, "-c", main, "train", "amtl", world.store, "--labels",
               world.labels, "--out", "run", "--set", "epochs=100000", "--set", "patience=100000"]  # fmt: skip
    with subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not list(Path().glob("run.*.part")) and time.monotonic() < deadline:
            time.sleep(0.1)
        time.sleep(1)  # into the training
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "stopped" in errors
    assert not Path("run").exists()
