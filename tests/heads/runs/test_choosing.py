"""Choosing among the runs of a sweep: within every fold by its inner rows alone, and measured on its test photos."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from heads import Plan, Run, Validation, read_labels, sweep
from heads.inference.baseline import predict_baseline
from heads.inference.intervals import summarise
from heads.runs.choosing import choose
from heads.runs.predictions import from_table

VALUES = ("lr=0.03", "lr=0.001", "lr=1e-05")


@pytest.fixture(scope="module")
def runs(world, tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    plan = Plan(
        system="linear",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"], group="source"),
        out=tmp_path_factory.mktemp("sweep") / "runs",
        tensors=["whole"],
        changes=["epochs=4"],
        sweep={"lr": [each.partition("=")[2] for each in VALUES]},
        validation=Validation(n_folds=3),
        n_repeats=2,
        device="cpu",
    )
    return sweep(plan).runs


def inner_loss(run: Run, repeat: int, fold: str) -> float:
    table = run.history
    kept = table[(table["repeat"] == repeat) & (table["fold"] == fold) & (table["best"] == 1)]
    (loss,) = kept["val_loss"]
    return float(loss)


def test_every_fold_is_predicted_by_what_its_own_inner_rows_choose(runs: list[Run]) -> None:
    choice = choose(runs)
    assert choice is not None
    of_run = [from_table(run.predictions, run.config.target) for run in runs]
    target, predicted, times = (
        runs[0].config.target,
        np.full_like(of_run[0].predicted, np.nan),
        dict.fromkeys(VALUES, 0),
    )
    for repeat in range(2):
        for fold in "012":
            losses = [inner_loss(run, repeat, fold) for run in runs]
            best = losses.index(min(losses))
            here = of_run[0].folds[repeat] == fold
            predicted[repeat, here] = of_run[best].predicted[repeat, here]
            times[VALUES[best]] += 1
    assert choice.times == {name: n for name, n in times.items() if n}
    means = [np.mean([inner_loss(run, r, f) for r in range(2) for f in "012"]) for run in runs]
    assert choice.inner_loss == pytest.approx(means)
    assert choice.best == int(np.argmin(means))
    labels, predicted = ((each - 1) / 6 - 0.5 for each in (of_run[0].labels, predicted))
    folds = of_run[0].partitions()
    groups = runs[0].folds.set_index("path")["group"][of_run[0].paths].tolist()
    nothing = predict_baseline(target, labels, folds)
    assert choice.metrics == summarise(target, labels, predicted, groups=groups, folds=folds, baseline=nothing)
    assert json.dumps(choice.metrics, allow_nan=False)


def test_a_choice_that_is_always_the_same_has_the_figures_of_that_run(runs: list[Run], tmp_path: Path) -> None:
    """What a run of its own would have printed: nothing is gained, and nothing lost, where there is one to choose."""
    alone = choose(runs[:1])
    assert alone is not None
    assert alone.times == {VALUES[0]: 6}
    for task, by_metric in runs[0].metrics.items():
        for metric, about in by_metric.items():
            assert alone.metrics[task][metric] == pytest.approx(about, abs=1e-4)


def test_runs_without_inner_rows_are_not_chosen_among(runs: list[Run], world, tmp_path: Path) -> None:
    plan = Plan(
        system="linear",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"]),
        out=tmp_path / "runs",
        tensors=["whole"],
        changes=["epochs=1", "inner=0"],
        sweep={"lr": ["0.01", "0.001"]},
        validation=Validation(n_folds=3),
        n_repeats=1,
        device="cpu",
    )
    assert choose(sweep(plan).runs) is None
    ridge = replace(plan, system="ridge", changes=[], sweep={"alpha": ["1", "10"]}, out=tmp_path / "ridge")
    assert choose(sweep(ridge).runs) is None


def test_models_of_all_rows_have_no_say(world, tmp_path: Path) -> None:
    """Their inner rows may be those that others are tested on."""
    plan = Plan(
        system="linear",
        store=world.store,
        labels=read_labels(world.labels, scales=["1:7"]),
        out=tmp_path / "runs",
        tensors=["whole"],
        changes=["epochs=3"],
        sweep={"lr": ["0.03", "0.0001"]},
        validation=Validation(hold_out=0.3),
        device="cpu",
    )
    runs = sweep(plan).runs
    best = choose(runs)
    assert best is not None
    worst = 1 - best.best
    table = pd.read_csv(runs[worst].folder / "history.csv", dtype={"fold": str})
    table.loc[table["fold"] == "all", "val_loss"] = 0.0
    table.to_csv(runs[worst].folder / "history.csv", index=False)
    again = choose([Run(run.folder) for run in runs])
    assert again is not None
    assert (again.best, again.times) == (best.best, best.times)
    assert again.inner_loss == pytest.approx(best.inner_loss)
