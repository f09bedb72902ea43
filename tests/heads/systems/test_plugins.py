"""Heads of a user's own: a file or module that is named with --plugin, an installed package, a session of Python."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from torch import nn
from typer.testing import CliRunner

import heads
from heads import Option, Plan, Run, System, Validation, find_system, read_labels, register
from heads.cli import app
from heads.errors import RunError, TrainingError, UnknownSystemError
from heads.experiment import train
from heads.systems import registry
from heads.systems.registry import load_plugins, load_systems, system_like
from heads.training import cluster
from heads.training.checkpoints import Draft
from heads.training.joint import Work

HEAD = """
from torch import nn
import heads

class Narrow(nn.Module):
    def __init__(self, n_features, n_outputs, width):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, n_outputs))

    def forward(self, features):
        return self.layers(features)

heads.register(heads.System(
    name="mine", title="a narrow layer", source="ours", reads=("concat",), kinds=("regression",),
    options={"width": heads.Option(4, "ours", low=1)},
    build=lambda shapes, target, options: Narrow(shapes[0][0], target.n_outputs, options["width"]),
))
"""


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with my_head.py, and a register that forgets what a test has put into it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_head.py").write_text(HEAD)
    load_systems()
    systems, loaded, modules = dict(registry._SYSTEMS), set(registry._LOADED), set(sys.modules)
    yield tmp_path
    registry._SYSTEMS.clear()
    registry._SYSTEMS.update(systems)
    registry._LOADED.intersection_update(loaded)
    for name in set(sys.modules) - modules:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def command(*arguments: object) -> Any:
    result = CliRunner().invoke(app, [str(each) for each in arguments])
    assert "Traceback" not in result.output
    return result


def refused(*arguments: object) -> str:
    result = command(*arguments)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    return result.stderr


def as_if_new() -> None:
    """What another process would know."""
    del registry._SYSTEMS["mine"]


def training(world, *more: object) -> list[object]:
    asked = ["train", "mine", world.store, "--labels", world.labels, "--folds", 3, "--tensor", "whole"]
    return [*asked, "--set", "epochs=2", "--device", "cpu", "--out", "run", *more]


def a_head(**others: Any) -> System:
    facts = {"name": "mine", "title": "one map", "source": "ours", "reads": ("concat",), "kinds": ("regression",)}
    return System(**{**facts, "build": lambda shapes, target, options: nn.Linear(shapes[0][0], 2), **others})


def plan_of(world, **others: Any) -> Plan:
    labels = read_labels(world.labels, scales=["1:7"])
    facts = {"system": "mine", "labels": labels, "out": Path("run"), "tensors": ["whole"], "changes": ["epochs=2"]}
    return Plan(store=world.store, validation=Validation(n_folds=3), device="cpu", **{**facts, **others})


# ----------------------------------------------------------------------------------------------- a file of one's own


def test_a_head_of_ones_own_is_trained_shown_and_predicted_with(world) -> None:
    assert command(*training(world, "--plugin", "my_head.py")).exit_code == 0
    recorded = json.loads(Path("run/config.json").read_text())["plugin"]
    assert recorded["name"] == str(Path("my_head.py").absolute())
    assert len(recorded["sha256"]) == 64
    assert Run("run").config.options["width"] == 4

    as_if_new()
    said = refused("predict", "run", world.store)
    assert f"'mine' is from {recorded['name']}" in said
    assert f"add --plugin {recorded['name']}" in said
    assert "mine" not in load_systems()
    assert "add --plugin" in refused("evaluate", "run", world.store, "--labels", world.labels, "--seen")

    predicted = command("predict", "run", world.store, "--plugin", "my_head.py", "--out", "p.csv")
    assert predicted.exit_code == 0
    assert len(pd.read_csv("p.csv")) == 60
    as_if_new()
    assert (
        command("evaluate", "run", world.store, "--labels", world.labels, "--seen", "--plugin", "my_head.py").exit_code
        == 0
    )
    assert "a narrow layer" in command("list", "--plugin", "my_head.py").stdout
    shown = json.loads(command("show", "mine", "--plugin", "my_head.py", "--json").stdout)
    assert shown["width"] == {"default": 4, "source": "ours"}
    assert shown["lr"]["default"] == 1e-3  # of training, which the file does not say
    assert command("report", "run").exit_code == 0
    assert command("compare", "run", "run").exit_code == 0


def test_a_run_of_a_plugin_is_resumed_with_it_and_only_as_it_was(world) -> None:
    load_plugins(["my_head.py"])
    whole = train(plan_of(world, out=Path("whole")))
    stop_after(world, 1)
    as_if_new()
    said = refused("resume", "run")
    assert f"add --plugin {Path('my_head.py').absolute()}" in said

    Path("my_head.py").write_text(HEAD + "# another day\n")
    assert "was begun with other plugin" in refused("resume", "run", "--plugin", "my_head.py")
    Path("my_head.py").write_text(HEAD)
    result = command("resume", "run", "--plugin", "my_head.py")
    assert result.exit_code == 0
    assert "going on: 1 of 15 models finished" in result.stdout
    pd.testing.assert_frame_equal(Run("run").predictions, whole.predictions)


def stop_after(world, n_models: int) -> None:
    """Ctrl-C once so many models are finished."""
    finish, finished = Draft.finish, []

    def stop(self: Draft, trained: Any) -> None:
        finish(self, trained)
        finished.append(trained)
        if len(finished) == n_models:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Draft, "finish", stop)
        result = command(*training(world, "--scale", "1:7", "--plugin", "my_head.py"))
    assert result.exit_code == 130
    assert f"`heads resume run --plugin {Path('my_head.py').absolute()}` goes on with it" in result.stderr


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import os\nnothing_of_that_name\n", r"bad.py, line 2: NameError: name 'nothing_of_that_name'"),
        ("x = = 1\n", r"bad.py, line 1: SyntaxError"),
        ("import not_there\n", r"bad.py, line 1: ModuleNotFoundError: No module named 'not_there'"),
        ("raise SystemExit(0)\n", r"bad.py, line 1: SystemExit: 0"),
        ("x = 1\n", r"bad.py registers no head; it has to call heads.register"),
        (HEAD.replace('"mine"', '"ridge"'), r"bad.py registers a head 'ridge', and so does .*probes.py; give one"),
        (HEAD.replace('"mine"', '"my head"'), r"bad.py registers a head called 'my head'; a name has letters"),
        (HEAD.replace('("concat",)', '"concat"'), r"'mine', which reads 'concat'; expected a tuple of stack, concat"),
        (HEAD.replace('("regression",)', '("ratings",)'), r"kinds \('ratings',\); expected a tuple of regression"),
    ],
)
def test_a_plugin_that_does_not_do_is_named_with_the_place(desk: Path, text: str, said: str) -> None:
    (desk / "bad.py").write_text(text)
    before = find_system("ridge")
    message = refused("list", "--plugin", "bad.py")
    assert message.startswith("error: ")
    with pytest.raises(UnknownSystemError, match=said):
        load_plugins(["bad.py"])
    assert find_system("ridge") is before


def test_a_plugin_that_is_not_there() -> None:
    assert "plugin" in refused("list", "--plugin", "none.py")
    assert "there is no module 'none'; name a .py file or an installed module" in refused("list", "--plugin", "none")
    assert "there is a file: say --plugin my_head.py" in refused("list", "--plugin", "my_head")
    assert "--plugin adds one of your own" in refused("show", "mine")


def test_two_files_with_the_same_head_are_both_named(desk: Path) -> None:
    (desk / "other.py").write_text(HEAD)
    said = refused("list", "--plugin", "my_head.py", "--plugin", "other.py")
    assert "other.py registers a head 'mine', and so does" in said
    assert "my_head.py" in said


def test_a_file_that_was_edited_is_loaded_again() -> None:
    load_plugins(["my_head.py"])
    first = find_system("mine")
    load_plugins(["my_head.py"])
    assert find_system("mine") is first
    Path("my_head.py").write_text(HEAD.replace("Option(4", "Option(5"))
    load_plugins(["my_head.py"])
    assert find_system("mine").settle([])["width"] == 5


def test_a_plugin_that_has_changed_since_the_run_does_not_predict(world) -> None:
    assert command(*training(world, "--plugin", "my_head.py")).exit_code == 0
    Path("my_head.py").write_text(HEAD.replace("nn.ReLU()", "nn.Tanh()"))
    said = refused("predict", "run", world.store, "--plugin", "my_head.py")
    assert "is not what run was trained with" in said
    assert "my_head.py has changed since" in said


def test_of_a_plugin_that_fails_nothing_is_left() -> None:
    Path("my_head.py").write_text(HEAD + "raise RuntimeError('too late')\n")
    for _ in range(2):
        with pytest.raises(UnknownSystemError, match="RuntimeError: too late"):
            load_plugins(["my_head.py"])
    assert "mine" not in load_systems()


def test_two_ways_to_a_file_are_one_plugin() -> None:
    load_plugins(["my_head.py", "./folder/../my_head.py"])
    assert find_system("mine").settle([])["width"] == 4


def test_a_run_whose_plugin_is_not_described_rightly_is_no_run(world) -> None:
    assert command(*training(world, "--plugin", "my_head.py")).exit_code == 0
    config = json.loads(Path("run/config.json").read_text())
    for wrong in ("x", {"name": "my_head.py"}, 5):
        Path("run/config.json").write_text(json.dumps({**config, "plugin": wrong}))
        with pytest.raises(RunError, match="is not what this version of heads writes"):
            Run("run")


def test_a_module_is_a_plugin_too(desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = desk / "my_package"
    package.mkdir()
    (package / "__init__.py").write_text("from my_package import head\n")
    (package / "head.py").write_text(HEAD)
    monkeypatch.syspath_prepend(desk)
    load_plugins(["my_package", "my_package"])
    found = find_system("mine")
    assert found.plugin is not None
    assert found.plugin.plugin == "my_package.head"
    load_plugins([found.plugin.plugin])


# ---------------------------------------------------------------------------------------------- an installed package


def test_an_installed_package_brings_its_heads_by_an_entry_point(desk: Path, world) -> None:
    site = desk / "site"
    about = site / "their_heads-1.0.dist-info"
    about.mkdir(parents=True)
    (site / "their_heads.py").write_text(HEAD)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: their-heads\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[heads.systems]\nmine = their_heads\n")

    def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
        code = f"from heads.cli import main; import sys; sys.argv = {['heads', *map(str, arguments)]!r}; main()"
        path = os.pathsep.join([str(site), *sys.path])
        return subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, env={**os.environ, "PYTHONPATH": path}
        )

    assert "a narrow layer" in run("list").stdout
    assert run(*training(world)).returncode == 0
    assert Run("run").config.plugin == {"name": "their_heads", "sha256": sha256(HEAD.encode()).hexdigest()}
    assert len(run("predict", "run", world.store).stdout.splitlines()) == 61
    assert "'mine' is from their_heads, which is not loaded unless you say so" in refused("predict", "run", world.store)
    (site / "their_heads.py").write_text("import nothing_at_all\n")
    # A package that is broken stands in nobody's way, and is named where its head is missed.
    why = "plugin their_heads of the package their-heads cannot be loaded: "
    others = run("list")
    assert others.returncode == 0
    assert "ridge" in others.stdout
    assert f"note: {why}" in others.stdout
    missed = run("show", "mine")
    assert missed.returncode == 1
    assert f"\n{why}" in missed.stderr
    assert "their_heads.py, line 1: ModuleNotFoundError" in missed.stderr


# ----------------------------------------------------------------------------------------------- a session of Python


def test_a_head_that_a_session_registers_is_trained(world) -> None:
    register(a_head())
    run = train(plan_of(world))
    assert run.config.plugin is not None
    assert Path(run.config.plugin["name"]).name in (__name__, __name__.rpartition(".")[2])
    assert len(heads.predict(run, world.store)) == 60


def test_a_cell_of_a_notebook_may_be_run_again() -> None:
    cell = {"register": register, "a_head": a_head, "Option": Option, "__name__": "__main__"}
    exec("register(a_head())", cell)
    exec("register(a_head(options={'width': Option(7, 'ours')}))", cell)
    assert find_system("mine").settle([])["width"] == 7
    with pytest.raises(UnknownSystemError, match="so does this session of Python"):
        load_plugins(["my_head.py"])
    with pytest.raises(UnknownSystemError, match="registered in a session of Python; register it again there"):
        find_system("gone", plugin="")


def test_options_that_training_takes_are_there_without_being_said() -> None:
    ours = register(a_head(options={"lr": Option(0.5, "ours")}))
    assert ours.settle([])["lr"] == 0.5
    assert set(ours.options) == set(find_system("linear").options)
    solved = register(a_head(name="solved", fit=lambda *_: None, options={"gain": Option(2.0, "o")}))
    assert solved.settle([]) == {"gain": 2.0, "standardise": True}


# ------------------------------------------------------------------------------------------------ workers of a cluster


def test_a_worker_runs_the_source_that_it_is_sent() -> None:
    load_plugins(["my_head.py"])
    first = find_system("mine")
    assert system_like("mine", first.plugin) is first
    as_if_new()
    Path("my_head.py").unlink()
    assert system_like("mine", first.plugin).settle([])["width"] == 4
    elsewhere = replace(
        first.plugin, module="/b.py", file="/b.py", source=HEAD.replace("Option(4", "Option(6").encode()
    )
    assert system_like("mine", elsewhere).settle([])["width"] == 6
    assert system_like("mine", first.plugin).settle([])["width"] == 4
    assert system_like("ridge", None) is find_system("ridge")


def test_a_worker_without_the_module_or_with_another_one_says_so(setting_of) -> None:
    setting = setting_of("whole")
    load_plugins(["my_head.py"])
    problem = setting.problem("mine", "epochs=1")
    for origin, said in (
        (replace(problem.system.plugin, module="not_here", file="/x/not_here.py"), "there is no module 'not_here'"),
        (replace(problem.system.plugin, source=b"import not_here"), "ModuleNotFoundError"),
    ):
        system = replace(problem.system, origin=origin)
        setup = cluster._setup(replace(problem, system=system), "s.zarr", (), (), setting.job().fit, 10**9, "cpu")
        with pytest.raises(TrainingError, match=f"a worker cannot train 'mine': .*{said}"):
            cluster.train_one(setup, setting.job())


def test_a_head_of_a_session_cannot_be_sent_to_workers(world, setting_of) -> None:
    cell = {"register": register, "a_head": a_head, "__name__": "__main__"}
    exec("register(a_head())", cell)
    setting = setting_of("whole")
    work = Work(setting.problem("mine"), setting.job(), SimpleNamespace())
    with pytest.raises(TrainingError, match="'mine', which this session of Python registers itself; put it in a file"):
        cluster.train_on("tcp://127.0.0.1:1", [work], "s.zarr", [], [], setting.job().fit, 1, "cpu", lambda *_: None)
