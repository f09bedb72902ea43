"""The models of a run trained by a Dask cluster: real worker processes, real deaths."""

import gc
import logging
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from featstore import FeatstoreError
from featstore.support import no_progress
from heads import Plan, Run, Validation, read_labels, sweep, train
from heads.errors import TrainingError
from heads.systems import registry
from heads.systems.registry import load_plugins, load_systems
from heads.training import cluster
from heads.training.joint import Work

from ..conftest import MemoryCheckpoints, Setting, open_features

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")

SMALL = ["attention=4", "hidden=4", "epochs=4"]


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A scheduler and two workers with two threads each."""
    with (
        dask.config.set({"distributed.nanny.pre-spawn-environ": {}}),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=2,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            local_directory=str(tmp_path_factory.mktemp("crew")),
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as local,
    ):
        yield local


@pytest.fixture(scope="module")
def plan(world, tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return Plan(
        system="amtl",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"]),
        out=tmp_path_factory.mktemp("runs") / "here",
        changes=SMALL,
        validation=Validation(n_folds=3),
        n_repeats=2,
        device="cpu",
    )


@pytest.fixture(scope="module")
def here(plan: Plan) -> Run:
    """What this process makes of the plan."""
    return train(plan)


def assert_same(run: Run, expected: Run) -> None:
    names = [file.name for file in expected.weights_files()]
    assert [file.name for file in run.weights_files()] == names
    for name in names:
        ours, theirs = (load_file(each.folder / "weights" / name) for each in (run, expected))
        for key, value in theirs.items():
            assert ours[key].numpy() == pytest.approx(value.numpy(), abs=1e-5)
    numbers = [column for column in expected.predictions if str(column).endswith("predicted")]
    assert run.predictions[numbers].to_numpy() == pytest.approx(expected.predictions[numbers].to_numpy(), abs=1e-4)
    assert run.config.options == expected.config.options
    if expected.attention is not None:
        assert run.attention is not None
        for key, values in expected.attention.arrays.items():
            assert run.attention.arrays[key] == pytest.approx(values, abs=1e-5)


@pytest.mark.parametrize("memory_bytes", [10**9, 100_000], ids=["in memory", "streamed"])
def test_workers_train_what_this_process_would(plan: Plan, here: Run, crew: Any, tmp_path: Path, memory_bytes) -> None:
    told: list[tuple[str, int, int]] = []
    asked = replace(plan, scheduler=crew.scheduler_address, out=tmp_path / "run", memory_bytes=memory_bytes)
    run = train(asked, on_progress=lambda *one: told.append(one))
    if memory_bytes < 10**9:
        here = train(replace(plan, out=tmp_path / "here", memory_bytes=memory_bytes))
    assert_same(run, here)
    assert told == [("train", done, 6) for done in range(7)]


@pytest.mark.parametrize(
    ("system", "tensor", "changes"), [("ridge", "whole", []), ("amtl-single", "grid", SMALL)], ids=["ridge", "by task"]
)
def test_workers_train_other_kinds_of_heads(plan: Plan, crew: Any, tmp_path: Path, system, tensor, changes) -> None:
    asked = replace(plan, system=system, tensors=[tensor], changes=changes, n_repeats=1)
    ours = train(replace(asked, scheduler=crew.scheduler_address, out=tmp_path / "there"))
    assert_same(ours, train(replace(asked, out=tmp_path / "here")))


def test_a_worker_that_dies_loses_its_models_and_others_train_them(
    plan: Plan, here: Run, crew: Any, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill(stage: str, done: int, total: int) -> None:
        if done == 1 and not killed:
            killed.append(next(iter(crew.workers.values())).pid)
            os.kill(killed[0], signal.SIGKILL)

    asked = replace(plan, scheduler=crew.scheduler_address, out=tmp_path / "run")
    assert_same(train(asked, on_progress=kill), here)
    assert killed


def test_what_has_come_back_before_an_error_is_kept_and_not_trained_again(
    plan: Plan, here: Run, crew: Any, tmp_path: Path
) -> None:
    asked = replace(plan, scheduler=crew.scheduler_address, out=tmp_path / "run")

    def stop(stage: str, done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(asked, on_progress=stop)
    kept = {file.name: file.stat().st_mtime_ns for file in (tmp_path / "run.part" / "weights").iterdir()}
    assert len(kept) == 2
    run = train(asked)
    now = {file.name: file.stat().st_mtime_ns for file in (run.folder / "weights").iterdir()}
    assert {name: now[name] for name in kept} == kept
    assert_same(run, here)


def test_a_model_that_kills_every_worker_is_named(setting_of) -> None:
    """As the scheduler says it, which takes half a minute of dying."""

    class Future:
        def result(self) -> None:
            raise distributed.scheduler.KilledWorker("train_one-1", None, 3)

    setting: Setting = setting_of("grid")
    with pytest.raises(
        TrainingError, match=r"4 workers, one after another, died training repeat0-fold0 .*heads resume"
    ):
        cluster._result(Future(), setting.job())


def test_a_model_that_diverges_says_so_from_afar(plan: Plan, crew: Any, tmp_path: Path) -> None:
    asked = replace(plan, system="linear", tensors=["whole"], changes=["lr=1e30", "standardise=false", "epochs=9"])
    with pytest.raises(TrainingError, match=r"loss of repeat\d-fold\d is not a number after epoch \d; try a lower"):
        train(replace(asked, scheduler=crew.scheduler_address, out=tmp_path / "run"))


HEAD = """
import time, uuid
from pathlib import Path
from torch import nn
import heads

def build(shapes, target, options):
    Path({built!r}, f"{{options['lr']:g}} {{uuid.uuid4()}}").touch()
    time.sleep(0.5 if options["lr"] > 1 else 0)
    return nn.Linear(shapes[0][0], target.n_outputs)

heads.register(heads.System(
    name="mine", title="one map", source="ours", reads=("concat",), kinds=("regression",), build=build))
"""


def test_workers_get_a_plugin_and_train_no_more_of_a_problem_of_which_a_model_diverged(
    plan: Plan, crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = tmp_path / "built"
    built.mkdir()
    (tmp_path / "my_head.py").write_text(HEAD.format(built=str(built)))
    monkeypatch.setattr(registry, "_SYSTEMS", {**load_systems()})
    load_plugins([str(tmp_path / "my_head.py")])
    told: list[tuple[str, int, int]] = []
    asked = replace(
        plan,
        system="mine",
        tensors=["whole"],
        changes=["standardise=false", "epochs=1"],
        sweep={"lr": ["1e30", "1e-3"]},
        n_repeats=20,
        scheduler=crew.scheduler_address,
        out=tmp_path / "runs",
    )
    found = sweep(asked, on_progress=lambda *one: told.append(one))
    assert [run.folder.name for run in found.runs] == ["lr=1e-3"]
    assert [out.name for out in found.diverged] == ["lr=1e30"]
    assert told[-1] == ("train", 120, 120)
    names = [file.name.split()[0] for file in built.iterdir()]
    # Those that were being trained already are built, and there is one more build to know the size of a model.
    assert 0 < names.count("1e+30") < names.count("0.001") / 2


def test_workers_that_see_another_store_or_none_say_so(
    crew: Any, world, setting_of, write_store, tmp_path: Path
) -> None:
    setting: Setting = setting_of("grid")
    works = [Work(setting.problem("amtl", *SMALL), setting.job(), MemoryCheckpoints())]
    tensor = open_features(world.store, "grid")._tensors
    write_store(tmp_path / "s.zarr", list("abc"), {"grid": world.grid[:3]}, widths=[24, 16, 20], weights="second")
    for place, message in (
        (tmp_path / "s.zarr", r"s\.zarr as a worker sees it has other features in grid than the plan"),
        (tmp_path / "none.zarr", r"a worker cannot read the store .*none\.zarr"),
    ):
        with pytest.raises(TrainingError, match=message):
            cluster.train_on(crew.scheduler_address, works, place, tensor, [], np.arange(60), 10**9, "cpu", no_progress)


def test_a_worker_of_another_version_refuses(setting_of) -> None:
    setting: Setting = setting_of("grid")
    assignment = cluster._setup(setting.problem("amtl", *SMALL), "s.zarr", (), (), np.arange(60), 10**9, "cpu")
    with pytest.raises(TrainingError, match=r"a worker has featstore .*, the plan was made with 0\.0"):
        cluster.train_one(replace(assignment, version="0.0"), setting.job())


@pytest.mark.skipif(torch.cuda.is_available(), reason="workers would have a GPU")
def test_a_worker_without_the_device_that_the_plan_names_refuses(plan: Plan, crew: Any, tmp_path: Path) -> None:
    """It does not compute on its CPU what was asked of a GPU; this process needs no GPU to ask."""
    asked = replace(plan, scheduler=crew.scheduler_address, out=tmp_path / "run", device="cuda")
    with pytest.raises(TrainingError, match=r"^worker [01]: device 'cuda' was asked for, but .* say --device auto"):
        train(asked)
    with pytest.raises(TrainingError, match=r"^worker [01]: unknown device 'gpu'; say auto, cpu"):
        train(replace(asked, device="gpu"))
    assert list(tmp_path.glob("*.part")) == []


def test_auto_is_what_each_worker_has(plan: Plan, here: Run, crew: Any, tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("it would have a GPU, which draws other numbers")
    run = train(replace(plan, scheduler=crew.scheduler_address, out=tmp_path / "run", device="auto"))
    assert_same(run, here)
    assert (run.config.device, here.config.device) == ("workers (auto)", "cpu")


def test_a_scheduler_that_is_not_there_or_has_no_workers(plan: Plan, tmp_path: Path) -> None:
    elsewhere = replace(plan, out=tmp_path / "run")
    for address, said in {
        "tcp://127.0.0.1:1": "no Dask scheduler answers at tcp://127.0.0.1:1",
        "127.0.0.1": "is not of the form tcp://HOST:PORT",
        "carrier-pigeon://loft": "is not of the form tcp://HOST:PORT",
    }.items():
        with pytest.raises(FeatstoreError, match=said):
            train(replace(elsewhere, scheduler=address))
    gc.collect()  # a client that could not be closed would say so, at length
    with (
        distributed.LocalCluster(
            n_workers=0,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            silence_logs=logging.CRITICAL,
        ) as idle,
        pytest.raises(TrainingError, match=r"has no workers; start some: dask worker tcp://127\.0\.0\.1:\d+"),
    ):
        train(replace(elsewhere, scheduler=idle.scheduler_address))
    assert list(tmp_path.iterdir()) == []
