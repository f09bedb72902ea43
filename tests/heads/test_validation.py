"""Nothing that a fold is tested on reaches the model that is tested: neither the row nor another of its group."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

import featstore
from heads.batches import Features
from heads.errors import LabelsError
from heads.systems import System, find_system
from heads.systems.system import Option
from heads.training import Epoch, Task
from heads.validation import Outcome, assign_folds, cross_validate, split_inner

groupings = st.lists(st.integers(0, 12), min_size=2, max_size=60).map(lambda labels: [f"g{i}" for i in labels])


# ------------------------------------------------------------------------------------------ folds


@settings(deadline=None)
@given(n=st.integers(2, 200), n_folds=st.integers(2, 10), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_in_one_fold_and_folds_are_of_one_size(n: int, n_folds: int, seed: int) -> None:
    if n < n_folds:
        with pytest.raises(LabelsError, match=f"{n_folds} folds need at least as many labelled images; there are {n}"):
            assign_folds(n, None, n_folds, seed)
        return
    folds = assign_folds(n, None, n_folds, seed)
    sizes = np.bincount(folds, minlength=n_folds)
    assert (folds.shape, sizes.sum(), len(sizes)) == ((n,), n, n_folds)
    assert sizes.max() - sizes.min() <= 1


@settings(deadline=None)
@given(groups=groupings, n_folds=st.integers(2, 6), seed=st.integers(0, 99))
def test_no_group_is_in_two_folds(groups: list[str], n_folds: int, seed: int) -> None:
    if len(set(groups)) < n_folds:
        with pytest.raises(LabelsError, match=f"groups; there are {len(set(groups))}"):
            assign_folds(len(groups), groups, n_folds, seed)
        return
    folds = assign_folds(len(groups), groups, n_folds, seed)
    assert set(folds.tolist()) == set(range(n_folds))
    assert len(set(zip(groups, folds.tolist(), strict=True))) == len(set(groups))


@pytest.mark.parametrize("groups", [None, [f"g{i % 9}" for i in range(50)]])
def test_the_seed_alone_decides_the_folds(groups: list[str] | None) -> None:
    folds = assign_folds(50, groups, 5, 7)
    np.random.default_rng(0).random()  # whatever happened before
    np.testing.assert_array_equal(folds, assign_folds(50, groups, 5, 7))
    assert (folds != assign_folds(50, groups, 5, 8)).any()


def test_one_fold_is_none() -> None:
    with pytest.raises(LabelsError, match="at least 2"):
        assign_folds(10, None, 1, 0)


# ------------------------------------------------------------------------------------------ inner splits


@settings(deadline=None)
@given(
    rows=st.sets(st.integers(0, 300), min_size=2, max_size=80),
    share=st.floats(0, 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_both_inner_parts_have_rows_and_share_none(rows: set[int], share: float, seed: int) -> None:
    fit, inner = split_inner(np.array(sorted(rows)), None, share, seed)
    assert min(len(fit), len(inner)) >= 1
    assert sorted([*fit, *inner]) == sorted(rows)
    assert abs(len(inner) - share * len(rows)) <= 1


@settings(deadline=None)
@given(groups=groupings, share=st.floats(0, 1), seed=st.integers(0, 99), data=st.data())
def test_inner_parts_share_no_group(groups: list[str], share: float, seed: int, data: st.DataObject) -> None:
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(groups) - 1), min_size=1))))
    here = {groups[row] for row in rows}
    if len(here) < 2:
        with pytest.raises(LabelsError, match="use fewer folds"):
            split_inner(rows, groups, share, seed)
        return
    fit, inner = split_inner(rows, groups, share, seed)
    assert min(len(fit), len(inner)) >= 1
    assert sorted([*fit, *inner]) == rows.tolist()
    assert not {groups[row] for row in fit} & {groups[row] for row in inner}


# ------------------------------------------------------------------------------------------ cross-validation


class Watched(Features):
    """Features that note which rows anybody asks for."""

    asked: frozenset[int] = frozenset()

    def batches(self, rows, size, *, rng=None):
        self.asked |= frozenset(rows.tolist())
        return super().batches(rows, size, rng=rng)


class Seen(nn.Module):
    """Predicts the number of the model it is."""

    number = 0.0

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return torch.full((len(features), 2), self.number)


def spy(tasks: list[Task]) -> System:
    """A system that keeps what it was given to fit, and numbers its models."""

    def fit(model: nn.Module, task: Task, options: object) -> list[Epoch]:
        model.number = float(len(tasks))
        tasks.append(task)
        return [Epoch(0, 1.0, 1.0, best=True)]

    return System(
        name="spy",
        title="watches",
        source="here",
        layout="stack",
        repeats=1,
        options={"inner": Option(0.2, "here")},
        build=lambda shape, n_tasks, options: Seen(),
        fit=fit,
    )


def run(
    system: System,
    features: Features,
    labels: NDArray[np.float32],
    folds: NDArray[np.int64],
    groups: list[str] | None,
    *,
    changes: tuple[str, ...] = (),
    n_repeats: int = 2,
    weights: list[dict[str, torch.Tensor]] | None = None,
) -> Outcome:
    def keep(repeat: int, fold: int, model: nn.Module, history: list[Epoch]) -> None:
        if weights is not None:
            weights.append({name: value.clone() for name, value in model.state_dict().items()})

    return cross_validate(
        system,
        system.settle(changes),
        features,
        labels,
        folds,
        groups=groups,
        paths=[f"{i}.jpg" for i in range(len(labels))],
        n_repeats=n_repeats,
        seed=5,
        device=torch.device("cpu"),
        on_model=keep,
        on_progress=lambda stage, done, total: None,
    )


@pytest.fixture
def labels(world) -> NDArray[np.float32]:
    return ((world.table[["appeal", "calm"]].to_numpy() - 1) / 6 - 0.5).astype(np.float32)


@settings(max_examples=20, deadline=None)
@given(groups=st.none() | st.lists(st.integers(0, 14).map(str), min_size=60, max_size=60), seed=st.integers(0, 99))
def test_what_is_fitted_what_stops_and_what_is_tested_are_apart(world, features_of, groups, seed) -> None:
    features = features_of(world.store, "whole")
    if groups is not None and len(set(groups)) < 6:
        return
    folds, tasks = assign_folds(60, groups, 4, seed), []
    run(spy(tasks), features, np.zeros((60, 2), np.float32), folds, groups)
    of_row = groups or [str(i) for i in range(60)]
    assert len(tasks) == 8
    for i, task in enumerate(tasks):
        parts = [task.fit_rows, task.inner_rows, np.flatnonzero(folds == i % 4)]
        assert sorted(np.concatenate(parts)) == list(range(60))
        kinds = [{of_row[row] for row in part} for part in parts]
        assert not kinds[0] & kinds[1]
        assert not kinds[0] & kinds[2]
        assert not kinds[1] & kinds[2]


def test_every_prediction_is_by_the_model_that_did_not_see_the_row(world, features_of, labels) -> None:
    folds = assign_folds(60, None, 3, 0)
    outcome = run(spy([]), features_of(world.store, "grid"), labels, folds, None)
    assert outcome.n_models == 6
    assert outcome.attention is None
    for repeat in (0, 1):
        assert (outcome.predicted[repeat, :, 0] == 3 * repeat + folds).all()


def test_each_model_has_its_own_seed_and_inner_part(world, features_of, labels) -> None:
    tasks: list[Task] = []
    folds = assign_folds(60, None, 3, 0)
    run(spy(tasks), features_of(world.store, "whole"), labels, folds, None)
    assert len({task.seed for task in tasks}) == 6
    assert len({tuple(sorted(task.inner_rows)) for task in tasks}) == 6


SMALL = ("attention=4", "hidden=4", "epochs=2")


@pytest.mark.parametrize("system", ["amtl", "ridge"])
def test_training_asks_for_no_features_of_the_test_fold(world, labels, system: str) -> None:
    real = find_system(system)
    stored = featstore.open(world.store)["grid" if real.layout == "stack" else "whole"]
    features = Watched(stored, stored.rows, memory_bytes=10**9)
    folds = assign_folds(60, world.table["source"].tolist(), 3, 0)
    asked_in_training: list[frozenset[int]] = []

    def fit(model, task, options):
        features.asked = frozenset()
        history = real.fit(model, task, options)
        asked_in_training.append(features.asked)
        return history

    run(
        replace(real, fit=fit), features, labels, folds, world.table["source"].tolist(),
        changes=SMALL if system == "amtl" else (), n_repeats=1,
    )  # fmt: skip
    for fold, asked in enumerate(asked_in_training):
        assert asked == set(np.flatnonzero(folds != fold).tolist())


@pytest.mark.parametrize("system", ["amtl", "ridge"])
def test_neither_labels_nor_features_of_the_test_fold_change_a_weight(world, labels, system: str, as_features) -> None:
    real = find_system(system)
    changes = SMALL if system == "amtl" else ()
    values = (world.grid if real.layout == "stack" else world.whole).astype(np.float32)
    groups = world.table["source"].tolist()
    folds = assign_folds(60, groups, 3, 0)
    honest: list[dict[str, torch.Tensor]] = []
    run(real, as_features(values), labels, folds, groups, changes=changes, n_repeats=1, weights=honest)
    for fold in range(3):
        test = folds == fold
        other_values, other_labels = values.copy(), labels.copy()
        other_values[test] = 99
        other_labels[test] = -0.5
        found: list[dict[str, torch.Tensor]] = []
        run(real, as_features(other_values), other_labels, folds, groups, changes=changes, n_repeats=1, weights=found)
        assert all(torch.equal(value, honest[fold][name]) for name, value in found[fold].items())
        assert not all(torch.equal(value, honest[fold - 1][name]) for name, value in found[fold - 1].items())


def test_attention_is_the_mean_over_repeats_of_out_of_fold_models(world, features_of, labels) -> None:
    folds = assign_folds(60, None, 3, 0)
    outcome = run(find_system("amtl"), features_of(world.store, "grid"), labels, folds, None, changes=SMALL)
    assert outcome.attention is not None
    assert (outcome.attention.blocks.shape, outcome.attention.backbones.shape) == ((60, 3, 16), (60, 2, 3))
    for weights in (outcome.attention.blocks, outcome.attention.backbones):
        assert weights.sum(-1) == pytest.approx(1, abs=1e-5)


def test_cross_validation_leaves_the_callers_random_numbers_alone(world, features_of, labels) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    run(
        find_system("amtl"), features_of(world.store, "grid"), labels, assign_folds(60, None, 2, 0), None, changes=SMALL
    )
    assert torch.equal(torch.rand(1), expected)
