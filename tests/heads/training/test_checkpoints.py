"""A run that is killed, at whatever moment, goes on to the bytes that an undisturbed one leaves.

Run as a program, this file is the server that forks the processes that get killed: see `serve`.
"""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from importlib import import_module
from pathlib import Path
from threading import Lock, Timer
from types import SimpleNamespace
from typing import Any

import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from heads import Plan, Run, Validation, read_labels, train
from heads.errors import DivergedError, LabelsError, RunError
from heads.systems import load_systems
from heads.training import checkpoints as drafts_module
from heads.training.checkpoints import Draft, begun_with
from heads.training.features import Features

SMALL = ["--set", "attention=4", "--set", "hidden=4", "--set", "epochs=12", "--set", "patience=5", "--device", "cpu"]
STREAM = "100kB"
"""Less than the features of the fixture."""


# ---- the process that gets killed


@dataclass(frozen=True)
class Command:
    """A `heads` command, and when it is to die."""

    folder: str
    arguments: list[str]
    said: str
    """Gets what it prints."""
    at: int | None = None
    """Before this replacement of a file or folder, counted from 1; after it if negative."""
    named: str | None = None
    """As soon as this file or folder has its name."""
    file_bytes: int | None = None
    """A limit to the size of files stands in for a full disk."""


def serve() -> None:
    """Fork a process for each command on standard input, which saves each the imports."""
    for name in ("heads.cli.training", "heads.runs.writing", "heads.report", "heads.inference.intervals",
                 "typer._adapters", "zarr", "pandas", "dask.threaded", "rich.table",
                 "scipy.stats", "sklearn.metrics", "safetensors.torch",
                 "torch._dynamo"):  # fmt: skip
        import_module(name)
    load_systems()
    for line in sys.stdin:
        command = Command(**json.loads(line))
        pid = os.fork()
        if pid == 0:
            carry_out(command)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])}\n")
        sys.stdout.flush()


def carry_out(command: Command) -> None:
    import heads.report
    from heads.cli import app

    os.chdir(command.folder)
    os.setsid()
    said = os.open(command.said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1)
    os.dup2(said, 2)
    drafts_module.PAUSE_S = drafts_module.REST = 0.0  # after every epoch
    heads.report.write_report = lambda run: run.folder / "report.html"  # which has no part in this
    Features.stream_bytes = property(lambda self: 600_000)  # room for many models at once, and small groups
    count, turn, move = iter(range(1, 10**9)), Lock(), Path.replace

    def counted(self: Path, target: Any) -> Any:
        with turn:
            number = next(count)
            if number == command.at:
                os.kill(os.getpid(), signal.SIGKILL)
            moved = move(self, target)
            if -number == command.at or Path(target).name == command.named:
                os.kill(os.getpid(), signal.SIGKILL)
            return moved

    Path.replace = counted  # type: ignore[method-assign, assignment]
    if command.file_bytes is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (command.file_bytes, command.file_bytes))
    code = 0
    try:
        app(command.arguments)
    except SystemExit as error:
        code = int(error.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Server:
    """Runs commands in a folder; each has an exit code, negative if a signal ended it, and says something."""

    def __init__(self, process: "subprocess.Popen[str]", folder: Path) -> None:
        self._process, self._folder = process, folder
        self.said = ""

    def run(self, *arguments: object, kill_after_s: float | None = None, **others: Any) -> int:
        said = self._folder / "said.txt"
        command = Command(str(self._folder), [str(each) for each in arguments], str(said), **others)
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(asdict(command)) + "\n")
        self._process.stdin.flush()
        pid = int(self._process.stdout.readline())
        if kill_after_s is not None:
            killer = Timer(kill_after_s, lambda: os.kill(pid, signal.SIGKILL))
            killer.start()
        code = int(self._process.stdout.readline())
        if kill_after_s is not None:
            killer.cancel()
            killer.join()
        self.said = said.read_text("utf-8")
        assert "Traceback" not in self.said, self.said
        return code


@pytest.fixture(scope="module")
def process() -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-W", "ignore", __file__]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as found:
        yield found
        assert found.stdin is not None
        found.stdin.close()


@pytest.fixture
def server(process: "subprocess.Popen[str]", tmp_path: Path) -> Server:
    return Server(process, tmp_path)


Ways = dict[str, tuple[list[object], Path]]


@pytest.fixture(scope="module")
def ways(world, process: "subprocess.Popen[str]", tmp_path_factory: pytest.TempPathFactory) -> Ways:
    """How to train, without --out, and what comes of it undisturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    found: Ways = {}
    for name, more in {
        "in memory": ["amtl", "--folds", 3],
        "streamed": ["amtl", "--folds", 3, "--memory", STREAM],
        "of each task": ["amtl-single", "--hold-out", "0.3"],
    }.items():
        system, *rest = more
        arguments = ["train", system, world.store, "--labels", world.labels, "--scale", "1:7",
                     "--repeats", 1, *SMALL, *rest]  # fmt: skip
        server = Server(process, folder)
        assert server.run(*arguments, "--out", name) == 0, server.said
        found[name] = arguments, folder / name
    return found


def assert_same(run: Path, expected: Path) -> None:
    """To the byte, but for the time it took and how it was asked for."""
    files = {file.relative_to(expected) for file in expected.rglob("*") if file.is_file()}
    assert {file.relative_to(run) for file in run.rglob("*") if file.is_file()} == files
    for file in sorted(files - {Path("config.json")}):
        assert (run / file).read_bytes() == (expected / file).read_bytes(), file
    ours, theirs = (
        replace(Run(each).config, command="", directory="", started="", elapsed_s=0.0) for each in (run, expected)
    )
    assert ours == theirs


def finished(part: Path) -> dict[str, int]:
    """When the models that are finished were."""
    names = [file.name for file in (part / "finished").glob("*.safetensors")]
    return {name: (part / "weights" / name).stat().st_mtime_ns for name in names}


# ------------------------------------------------------------------------------------------ killed


def swept(run: Path) -> Path:
    """Without what a run has no more use for, if it died when it had its name and before it could take that away."""
    for leftover in ("finished", "training"):
        shutil.rmtree(run / leftover, ignore_errors=True)
    (run / "plan.json").unlink(missing_ok=True)
    return run


@pytest.mark.parametrize(
    ("way", "kills"),
    [("in memory", [-1, 9, -6, 12, -17, 5]), ("streamed", [1, -8, 15, 4, -21]), ("of each task", [-45, 11])],
)
def test_killed_again_and_again_it_goes_on_to_the_same_bytes(
    ways: Ways, server: Server, tmp_path: Path, way: str, kills: list[int]
) -> None:
    """Before and after files and folders take their names; by `heads resume`, or the same command once more."""
    arguments, expected = ways[way]
    done: dict[str, int] = {}
    for attempt, at in enumerate([*kills, None]):
        again = ["resume", "run"] if attempt > 1 and attempt % 2 == 0 else [*arguments, "--out", "run"]
        code = server.run(*again, at=at)
        assert code == (0 if at is None else -signal.SIGKILL), server.said
        now = finished(tmp_path / "run.part") if at is not None else {}
        assert at is None or done.items() <= now.items()  # what was finished has not been trained again
        done = now or done
    assert done
    weights = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run" / "weights").iterdir()}
    assert done.items() <= weights.items()
    assert_same(tmp_path / "run", expected)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "said.txt"]


@pytest.mark.slow
@pytest.mark.parametrize("way", ["in memory", "streamed"])
def test_killed_at_random_moments(ways: Ways, server: Server, tmp_path: Path, way: str) -> None:
    arguments, expected = ways[way]
    began = time.monotonic()
    assert server.run(*arguments, "--out", "other") == 0
    took = time.monotonic() - began
    draw = random.Random(way)
    for _ in range(3):
        server.run(*arguments, "--out", "run", kill_after_s=draw.uniform(0.3, 0.8) * took)
        if (tmp_path / "run").exists():
            break
    else:
        assert server.run(*arguments, "--out", "run") == 0, server.said
    assert_same(swept(tmp_path / "run"), expected)
    assert_same(tmp_path / "other", expected)


def test_a_sweep_goes_on_whether_it_dies_in_training_or_between_two_runs(
    ways: Ways, server: Server, tmp_path: Path
) -> None:
    arguments = [*ways["in memory"][0], "--sweep", "lr=0.001,0.02"]
    assert server.run(*arguments, "--out", "whole") == 0
    assert server.run(*arguments, "--out", "run", at=25) == -signal.SIGKILL
    parts = ["lr=0.001.part", "lr=0.02.part"]
    assert sorted(each.name for each in (tmp_path / "run").iterdir() if each.is_dir()) == parts
    assert server.run("resume", "run/lr=0.02", named="lr=0.001") == -signal.SIGKILL, server.said
    assert sorted(each.name for each in (tmp_path / "run").iterdir() if each.is_dir()) == ["lr=0.001", parts[1]]
    assert server.run("resume", "run") == 0, server.said
    for name in ("lr=0.001", "lr=0.02"):
        assert_same(swept(tmp_path / "run" / name), tmp_path / "whole" / name)
    assert server.run("resume", "run") == 1
    assert "there is no run" in server.said


def test_a_full_disk_ends_with_a_message_and_it_goes_on_when_there_is_room(
    ways: Ways, server: Server, tmp_path: Path
) -> None:
    arguments, expected = ways["in memory"]
    assert server.run(*arguments, "--out", "run", at=20) == -signal.SIGKILL
    before = {file for file in (tmp_path / "run.part").rglob("*") if file.is_file()}
    checkpoint = min(file.stat().st_size for file in before if file.parent.name == "training")
    for file_bytes in (checkpoint - 1, 2_000):
        assert server.run("resume", "run", file_bytes=file_bytes) == 1
        assert server.said.splitlines()[-1].startswith("error: cannot write ")
        assert "File too large" in server.said
        now = set((tmp_path / "run.part").rglob("*"))
        assert {file for file in now - before if file.suffix == ".partial"} == set()
        assert {file for file in before if file.parent.name in ("weights", "finished")} <= now
    assert server.run("resume", "run") == 0, server.said
    assert_same(tmp_path / "run", expected)


# ------------------------------------------------------------------------------------------ refused


@pytest.fixture
def plan(world, tmp_path: Path) -> Plan:
    return Plan(
        system="linear",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"]),
        out=tmp_path / "run",
        tensors=["whole"],
        changes=["epochs=4"],
        validation=Validation(n_folds=3),
        device="cpu",
        arguments={"folder": str(tmp_path), "request": {}},
    )


class Interrupt:
    """Ctrl-C after so many epochs."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, stage: str, done: int, total: int) -> None:
        self.left -= stage == "train"
        if self.left < 0:
            raise KeyboardInterrupt


@pytest.fixture
def draft(plan: Plan) -> Path:
    """The draft of a run of which some models are finished."""
    with pytest.raises(KeyboardInterrupt):
        train(plan, on_progress=Interrupt(11))
    part = plan.out.with_name("run.part")
    assert finished(part)
    return part


def contents(folder: Path) -> dict[str, int]:
    return {str(file.relative_to(folder)): file.stat().st_mtime_ns for file in folder.rglob("*") if file.is_file()}


def test_another_plan_is_refused_in_words_that_name_what_differs(plan: Plan, draft: Path, world) -> None:
    before = contents(draft)
    other_labels = world.table.assign(calm=world.table["calm"] + 0.001)
    other_labels.to_csv(plan.out.parent / "other.csv", index=False)
    others: dict[str, dict[str, Any]] = {
        r"begun with other options: epochs was 4, is now 5; go on as it was begun, choose another --out": {
            "changes": ["epochs=5"]
        },
        r"begun with other seed, folds: seed was 0, is now 1; go on": {"seed": 1},
        r"begun with other split, folds: split was \"3 folds\", is now \"4 folds\"; go on": {
            "validation": Validation(n_folds=4)
        },
        r"begun with other repeats, folds: repeats was 5, is now 2; go on": {"n_repeats": 2},
        r"begun with other precision: precision was \"fp32\", is now \"bf16\"; go on": {"precision": "bf16"},
        r"begun with other features; go on": {"tensors": ["grid"]},
        r"begun with other memory: memory was \"enough\", is now 1000; go on": {"memory_bytes": 1000},
        r"begun with other values of the labels, labels; go on": {
            "labels": read_labels(plan.out.parent / "other.csv", scales=["1:7"])
        },
        r"begun with other values of the labels, tasks, scales: tasks was .*, is now \[\"calm\"\], scales was": {
            "labels": read_labels(world.labels, tasks=["calm"])
        },
    }
    for message, change in others.items():
        with pytest.raises(RunError, match=message):
            train(replace(plan, **change))
    assert contents(draft) == before
    assert train(plan).config.n_images == 60


def test_a_run_that_diverged_is_not_gone_on_with(plan: Plan) -> None:
    """It would diverge again, and a draft would stand in the way of the lower rate that the message advises."""
    with pytest.raises(DivergedError, match="try a lower rate, --set lr="):
        train(replace(plan, changes=["lr=1e30", "standardise=false"]))
    assert not list(plan.out.parent.glob("run*"))
    assert train(plan).config.options["epochs"] == 4


def test_labels_that_are_too_few_are_refused_before_a_draft_is_begun(plan: Plan, world) -> None:
    few = world.table.assign(calm=[3.0, *[None] * 59])
    few.to_csv(plan.out.parent / "few.csv", index=False)
    labels = read_labels(plan.out.parent / "few.csv", scales=["1:7"])
    with pytest.raises(LabelsError, match=r"'linear' needs 1 or more labels of 'calm'; there are 0 on the \d+ images"):
        train(replace(plan, labels=labels))
    assert not list(plan.out.parent.glob("run*"))


def test_a_run_that_was_gone_on_with_says_who_began_it_and_when(plan: Plan, draft: Path) -> None:
    about = json.loads((draft / "plan.json").read_text())
    about["begun"] = {"command": "heads train linear", "directory": "/there", "started": "2026-01-01T00:00:00+00:00"}
    (draft / "plan.json").write_text(json.dumps(about))
    for file in (draft / "finished").iterdir():  # as if the first session had taken an hour
        with safe_open(file, framework="pt") as stored:
            tensors, said = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
        assert 0 < float(said["worked_s"]) < 60
        save_file(tensors, file, metadata={**said, "worked_s": "3600"})
    run = train(replace(plan, command="heads resume run"))
    config = run.config
    assert (config.command, config.directory, config.started[:10]) == ("heads train linear", "/there", "2026-01-01")
    assert 3600 < config.elapsed_s < 3660


def test_two_at_once_on_the_same_run_are_one_too_many(
    plan: Plan, server: Server, ways: Ways, tmp_path: Path, draft: Path
) -> None:
    before = contents(draft)
    with Draft(tmp_path / "run", json.loads((draft / "plan.json").read_text())["facts"], arguments={}):
        with pytest.raises(RunError, match="another process is training"):
            train(plan)
        assert server.run(*ways["in memory"][0], "--out", "run") == 1
        assert server.said.splitlines()[-1] == "error: another process is training run"
    assert contents(draft) == before
    train(plan)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["run", "said.txt"]  # and no lock


@pytest.mark.parametrize("kind", ["training", "finished"])
@pytest.mark.parametrize("how", ["empty", "half", "zeros"])
def test_a_torn_file_is_as_if_it_were_not_there(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, how: str
) -> None:
    monkeypatch.setattr(drafts_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(drafts_module, "REST", 0.0)
    expected = train(replace(plan, out=tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt):
        train(plan, on_progress=Interrupt(7))
    files = list((tmp_path / "run.part" / kind).iterdir())
    assert files
    for file in files:
        data = file.read_bytes()
        file.write_bytes({"empty": b"", "half": data[: len(data) // 2], "zeros": bytes(len(data))}[how])
    assert_same(train(plan).folder, expected.folder)


# ------------------------------------------------------------------------------------------ begun and ended


def test_ctrl_c_before_anything_is_learnt_leaves_the_plan_and_an_error_leaves_nothing(plan: Plan) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(plan, on_progress=Interrupt(0))
    assert begun_with(plan.out) == plan.arguments
    other = replace(plan, out=plan.out.with_name("other"))

    def fail(stage: str, done: int, total: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(RunError, match=r"cannot write the run .*other: No space left on device"):
        train(other, on_progress=fail)
    assert sorted(each.name for each in plan.out.parent.iterdir()) == ["run.part"]
    train(plan)
    with pytest.raises(RunError, match="is complete; there is nothing to go on with"):
        begun_with(plan.out)


def test_a_run_that_was_not_begun_by_a_command_says_how_to_go_on(plan: Plan, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"there is no run .*run to go on with; `heads train` begins one"):
        begun_with(plan.out)
    with pytest.raises(KeyboardInterrupt):
        train(replace(plan, arguments={}), on_progress=Interrupt(0))
    for name in ("run", "run.part"):
        with pytest.raises(RunError, match=r"was not begun by `heads train`; call heads\.train with the same plan"):
            begun_with(tmp_path / name)
    (tmp_path / "run.part" / "plan.json").write_text("{")
    with pytest.raises(RunError, match=r"plan\.json cannot be read"):
        begun_with(plan.out)


def test_a_folder_that_cannot_be_made_is_named(plan: Plan, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot make the run folder .*file/run\.part: (Not a directory|File exists)"):
        train(replace(plan, out=tmp_path / "file" / "run"))


# ------------------------------------------------------------------------------------------ how often


@pytest.mark.parametrize("in_step", [1, 2, 40])
@pytest.mark.parametrize(("epoch_s", "write_s"), [(0.001, 0.01), (0.3, 0.05), (5, 2)])
def test_checkpoints_take_little_of_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_step: int, epoch_s: float, write_s: float
) -> None:
    """By a clock that an epoch and a write of each model move on."""
    clock = {"now": 100.0, "writing": 0.0}
    written: list[str] = []

    def write(file: Path, *_: Any) -> None:
        clock["now"] += write_s
        clock["writing"] += write_s
        written.append(file.stem)

    monkeypatch.setattr(drafts_module, "time", SimpleNamespace(monotonic=lambda: clock["now"]))
    monkeypatch.setattr(drafts_module, "_write", write)
    models: list[Any] = [
        SimpleNamespace(job=SimpleNamespace(name=f"model {i}"), done=False, state=lambda: ({}, "{}"))
        for i in range(in_step)
    ]
    n_epochs = int(50 * max(1, drafts_module.REST * write_s * in_step) / epoch_s / in_step) + 1
    n_epochs = min(n_epochs, 20_000)
    with Draft(tmp_path / "run", {}, arguments={}) as draft:
        for model in models:
            assert not draft.restore(model)
        for _ in range(n_epochs):
            clock["now"] += epoch_s * in_step
            for model in models:
                draft.checkpoint(model, in_step=in_step)
    assert set(written) == {model.job.name for model in models}
    spent = clock["now"] - 100
    assert clock["writing"] <= 0.02 * spent + write_s * in_step
    assert len(written) > 5 * in_step


def test_a_model_that_is_done_needs_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts_module, "PAUSE_S", 0.0)
    monkeypatch.setattr(drafts_module, "FIRST_S", 0.0)
    make: Callable[[bool], Any] = lambda done: SimpleNamespace(  # noqa: E731
        job=SimpleNamespace(name="model"), done=done, state=lambda: ({}, "{}")
    )
    with Draft(tmp_path / "run", {}, arguments={}) as draft:
        draft.restore(make(True))
        draft.checkpoint(make(True), in_step=1)
        assert not list((draft.part / "training").iterdir())
        draft.checkpoint(make(False), in_step=1)
        assert [file.name for file in (draft.part / "training").iterdir()] == ["model.safetensors"]


if __name__ == "__main__":
    serve()
