"""`heads resume` of drafts that a stranger may have forged: nothing beyond this machine is reached, nothing is written
elsewhere, and what is not as `heads train` left it is trained again or refused.
"""

import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from heads import experiment
from heads.runs.run import Run

from ..conftest import heads, refused

FAST = ["--set", "epochs=2", "--set", "attention=4", "--set", "hidden=4", "--folds", "3", "--repeats", "1"]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def begin(world) -> Callable[..., Path]:
    """A draft at run.part, or those of a sweep below run, all of whose models are finished."""

    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    def make(*more: object) -> Path:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(experiment, "write_results", stop)
            result = heads("train", "amtl", world.store, "--labels", world.labels, *FAST, "--out", "run", *more)
        assert result.exit_code == 130, result.output
        return Path("run.part")

    return make


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """Somebody else's server."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        yield server


def was_called(server: socket.socket) -> bool:
    try:
        server.accept()[0].close()
    except TimeoutError:
        return False
    return True


def forge(part: Path, place: str, value: object) -> None:
    """Set what is at a place of the plan of a draft, as `request.scheduler`."""
    plan = json.loads((part / "plan.json").read_text("utf-8"))
    *way, last = ("arguments." + place).split(".")
    inner: Any = plan
    for name in way:
        inner = inner[name]
    inner[last] = value
    (part / "plan.json").write_text(json.dumps(plan), "utf-8")


# ------------------------------------------------------------------------------------------ what reaches out


def test_a_scheduler_is_not_asked_because_a_draft_names_it(begin, listener: socket.socket) -> None:
    address = f"tcp://127.0.0.1:{listener.getsockname()[1]}"
    forge(begin(), "request.scheduler", address)
    result = heads("resume", "run")
    assert result.exit_code == 0, result.output
    assert (
        f"begun with --scheduler {address}, which is not asked unless you say so; this process trains" in result.stdout
    )
    assert not was_called(listener)


def test_a_scheduler_that_is_named_is_asked(begin, listener: socket.socket) -> None:
    begin()
    said = refused("resume", "run", "--scheduler", f"udp://127.0.0.1:{listener.getsockname()[1]}")
    assert "is not of the form tcp://HOST:PORT" in said


def test_a_store_that_is_a_url_is_not_asked_because_a_draft_names_it(begin, listener: socket.socket, world) -> None:
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/features.zarr"
    forge(begin(), "request.store", url)
    assert f"reads the store {url}, which is not asked unless you say so: add --store {url}" in refused("resume", "run")
    assert not was_called(listener)
    assert heads("resume", "run", "--store", world.store).exit_code == 0


def test_nor_because_a_configuration_beside_the_draft_names_it(begin, desk: Path, monkeypatch) -> None:
    forge(begin(), "request.store", None)
    Path("featstore.toml").write_text('photos = "photos"\nstore = "s3://bucket/features.zarr"\n')
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    assert "reads the store s3://bucket/features.zarr, which is not asked" in refused("resume", desk / "run")


def test_nothing_is_logged_because_a_draft_says_so(begin) -> None:
    forge(begin(), "request.log", ["tensorboard"])
    result = heads("resume", "run")
    assert result.exit_code == 0, result.output
    assert "begun with --log tensorboard: say it again, or `heads log` the run afterwards" in result.stdout
    assert not Path("run/tensorboard").exists()


def test_how_to_go_on_is_said_with_all_that_has_to_be_said(world, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiment, "write_results", stop)
    asked = ["train", "amtl", world.store, "--labels", world.labels, *FAST, "--out", "run", "--log", "tensorboard"]
    assert "`heads resume run --log tensorboard` goes on with it" in heads(*asked).stderr


# ------------------------------------------------------------------------------------------ what is written where


@pytest.mark.parametrize("out", ["/tmp/elsewhere", "../../elsewhere", "~/elsewhere", ""])
def test_the_run_is_where_its_draft_is(begin, out: str) -> None:
    forge(begin(), "request.out", out)
    assert heads("resume", "run").exit_code == 0
    assert Run("run").metrics
    assert sorted(each.name for each in Path().iterdir()) == ["run"]


def test_so_are_the_runs_of_a_sweep(begin, desk: Path) -> None:
    begin("--sweep", "lr=0.001,0.002")
    for part in sorted(Path("run").iterdir()):
        forge(part, "request.out", str(desk / "elsewhere"))
    assert heads("resume", "run").exit_code == 0
    assert sorted(each.name for each in Path().iterdir()) == ["run"]
    assert sorted(each.name for each in Path("run").iterdir()) == ["lr=0.001", "lr=0.002"]


def test_a_sweep_that_a_draft_is_not_part_of(begin) -> None:
    forge(begin(), "request.sweep", ["lr=0.001,../../x"])
    assert "run.part is not a run of its sweep 'lr=0.001,../../x'" in refused("resume", "run")


def test_the_folder_to_work_in_is_not_the_drafts_to_choose(begin, desk: Path) -> None:
    other = desk / "other"
    other.mkdir()
    forge(begin(), "folder", str(other))
    assert f"run was begun in {other}: go there, and say `heads resume ../run`" in refused("resume", "run")
    assert Path.cwd() == desk
    for folder in ("\0", "x" * 10_000):
        forge(Path("run.part"), "folder", folder)
        refused("resume", "run")


@pytest.mark.parametrize("name", ["", "weights", "finished", "training"])
def test_a_draft_that_is_a_link_is_not_written_through(begin, desk: Path, name: str) -> None:
    part, precious = begin(), desk / "precious"
    (part / name).rename(precious)
    (part / name).symlink_to(precious)
    before = {file: file.read_bytes() for file in precious.rglob("*") if file.is_file()}
    assert "is a link, and heads writes and deletes in folders of its own only" in refused("resume", "run")
    assert {file: file.read_bytes() for file in precious.rglob("*") if file.is_file()} == before


def test_links_where_files_will_be_are_not_written_through(begin, desk: Path) -> None:
    part, precious = begin(), desk / "precious"
    precious.mkdir()
    (precious / "file").write_text("kept")
    for name in ("folds.csv", "predictions.csv", "metrics.json", "config.json", "report.html"):
        if name != "config.json":
            (part / name).symlink_to(precious / "file")
    (part / "attention.zarr").symlink_to(precious)
    assert heads("resume", "run").exit_code == 0
    assert [(each.name, each.read_text()) for each in precious.iterdir()] == [("file", "kept")]
    assert not any(each.is_symlink() for each in Path("run").rglob("*"))
    assert Run("run").attention is not None


def test_a_lock_that_is_a_link_or_a_pipe_does_no_harm(begin, desk: Path) -> None:
    begin()
    (desk / "file").write_text("kept")
    Path("run.lock").symlink_to(desk / "file")
    assert "cannot make the run folder" in refused("resume", "run")
    assert (desk / "file").read_text() == "kept"


# ------------------------------------------------------------------------------------------ what cannot be


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        ("request.folds", "many", "request.folds: input should be a valid integer, found 'many'"),
        ("request.labels", 7, "request.labels: "),
        ("request.labels.labels", [7], "request.labels.labels.0: input should be a valid string, found 7"),
        ("request.colour", "red", "request.colour is unknown"),
        ("request.repeats", 10**9, "asks for 1000000000 repeats"),
        ("request.system", "../x", "unknown head '../x'"),
        ("request.sweep", "lr", "request.sweep: "),
        ("request.memory", "all", "--memory 'all' is not a size"),
        ("request.split", "/dev/zero", "/dev/zero is no file; a split is a CSV"),
        ("folder", 7, "folder: input should be a valid string, found 7"),
        ("plugin", ["x.py"], "plugin: "),
    ],
)
def test_a_plan_that_cannot_be(begin, place: str, value: object, said: str) -> None:
    forge(begin(), place, value)
    assert said in refused("resume", "run")


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 10**5, b'{"facts": 7}', b'{"begun": {"seed": "9"}}', b"\xff"])
def test_a_plan_that_is_something_else(begin, content: bytes) -> None:
    (begin() / "plan.json").write_bytes(content)
    assert "plan.json" in refused("resume", "run")


def test_a_plan_that_is_a_pipe_is_not_waited_for(begin) -> None:
    plan = begin() / "plan.json"
    plan.unlink()
    os.mkfifo(plan)
    assert "it is a named pipe" in refused("resume", "run")


def test_a_plugin_is_not_loaded_because_a_draft_names_it(begin, desk: Path) -> None:
    Path("evil.py").write_text(f"open({str(desk / 'owned')!r}, 'w')\n")
    part = begin()
    forge(part, "plugin", "evil.py")
    forge(part, "request.system", "mine")
    assert "which is not loaded unless you say so: add --plugin evil.py" in refused("resume", "run")
    assert not Path("owned").exists()


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-10])


def _without(name: str) -> Callable[[Path], None]:
    return lambda file: _save({key: value for key, value in load_file(file).items() if key != name}, file)


def _with(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    return lambda file: _save({**load_file(file), name: value}, file)


def _saying(facts: str) -> Callable[[Path], None]:
    return lambda file: save_file(load_file(file), file, metadata={"facts": facts, "worked_s": "nan"})


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    with safe_open(file, framework="pt") as stored:
        metadata = stored.metadata()
    save_file(tensors, file, metadata=metadata)


@pytest.mark.parametrize(
    "change",
    [
        _cut,
        _without("predicted"),
        _with("predicted", torch.zeros(3, 2)),
        _with("predicted", torch.zeros(20, 2, dtype=torch.int64)),
        _with("predicted", torch.zeros(20)),
        _with("attention.blocks", torch.zeros(20, 3)),
        _with("attention.noses", torch.zeros(20, 3)),
        _with("more", torch.zeros(20)),
        _saying(""),
        _saying("[]"),
        _saying('{"history": 7}'),
        _saying('{"history": [{"stage": 0, "epoch": 0, "train_loss": NaN, "val_loss": 1}]}'),
        _saying("[" * 10**5),
    ],
)
def test_a_model_that_is_not_as_it_was_left_is_trained_again(begin, change: Callable[[Path], None]) -> None:
    part = begin()
    shutil.copytree(part, "whole.part")
    assert heads("resume", "whole").exit_code == 0
    change(part / "finished" / "repeat0-fold1.safetensors")
    result = heads("resume", "run")
    assert result.exit_code == 0, result.output
    assert "going on: 2 of 3 models finished" in result.stdout
    pd.testing.assert_frame_equal(Run("run").predictions, Run("whole").predictions)


def test_predictions_of_another_width_are_refused(begin) -> None:
    file = begin() / "finished" / "repeat0-fold1.safetensors"
    _with("predicted", torch.zeros(20, 7))(file)
    assert "repeat0-fold1.safetensors" in refused("resume", "run")
