"""The training loop: standardisation, early stopping, missing labels, seeds."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from torch import nn

from heads.batches import Features
from heads.errors import TrainingError
from heads.prediction import predict_rows
from heads.systems import find_system
from heads.training import Epoch, Standardise, Task, masked_loss

CPU = torch.device("cpu")
SMALL = ["attention=8", "hidden=16", "epochs=6", "lr=0.01"]
WIDTHS = {0: 24, 1: 16, 2: 20}  # of the backbones of the fixture's grid, padded to 24


@pytest.fixture
def task(world, features_of) -> Task:
    """Forty rows to fit, ten to stop by; appeal and calm on -0.5 .. 0.5."""
    labels = ((world.table[["appeal", "calm"]].to_numpy() - 1) / 6 - 0.5).astype(np.float32)
    return Task(features_of(world.store, "grid"), labels, np.arange(40), np.arange(40, 50), seed=3)


def train(task: Task, *changes: str, seed: int = 0) -> tuple[nn.Module, list[Epoch]]:
    system = find_system("amtl")
    options = system.settle([*SMALL, *changes])
    torch.manual_seed(seed)
    model = system.build(task.features.shape, task.labels.shape[1], options)
    return model, system.fit(model, task, options)


# ------------------------------------------------------------------------------------------ standardisation


def test_statistics_are_those_of_the_named_rows_by_backbone_and_feature(world, features_of) -> None:
    rows = np.array([3, 7, 8, 20, 41, 59])
    model = Standardise((3, 16, 24), nn.Identity())
    model.learn(features_of(world.store, "grid"), rows)
    ready = model(torch.from_numpy(world.grid).float()).numpy()
    for i, width in WIDTHS.items():
        here = world.grid[rows, i, :, :width].astype(np.float64)
        expected = (world.grid[:, i, :, :width] - here.mean((0, 1))) / here.std((0, 1))
        assert ready[:, i, :, :width] == pytest.approx(expected, abs=1e-4)
        assert (ready[:, i, :, width:] == 0).all()  # padding stays padding


def test_statistics_of_a_concatenation(world, features_of) -> None:
    rows = np.arange(0, 60, 2)
    model = Standardise((60,), nn.Identity())
    model.learn(features_of(world.store, "whole", memory_bytes=1), rows)
    here = world.whole[rows].astype(np.float64)
    ready = model(torch.from_numpy(world.whole).float()).numpy()
    assert ready == pytest.approx((world.whole - here.mean(0)) / here.std(0), abs=1e-4)


@pytest.mark.parametrize("value", [0.1, 1 / 3, 17.3, 3000.7, 1e-5])
def test_features_that_do_not_vary_become_0_whatever_their_value(
    as_features: Callable[..., Features], value: float
) -> None:
    values = np.full((300, 2, 16, 3), value, np.float32)
    values[..., 1] = np.random.default_rng(0).normal(size=(300, 2, 16)) * value
    model = Standardise((2, 16, 3), nn.Identity())
    model.learn(as_features(values), np.arange(300))
    ready = model(torch.from_numpy(values))
    assert (ready[..., [0, 2]] == 0).all()
    assert ready[..., 1].std().item() == pytest.approx(1, abs=1e-3)
    # and one that did not vary in training counts for nothing when it does
    assert (model(torch.from_numpy(values) * 2)[..., [0, 2]] == 0).all()


def test_a_small_change_on_a_large_value_is_not_lost_to_rounding(as_features: Callable[..., Features]) -> None:
    values = (1000 + np.random.default_rng(0).normal(size=(300, 4))).astype(np.float32)
    model = Standardise((4,), nn.Identity())
    model.learn(as_features(values), np.arange(300))
    ready = model(torch.from_numpy(values)).numpy()
    assert ready.std(0) == pytest.approx(np.ones(4), abs=1e-3)
    assert ready.mean(0) == pytest.approx(np.zeros(4), abs=1e-3)


def test_a_head_is_standardised_on_the_rows_it_fits_and_no_others(task: Task, world) -> None:
    model, _ = train(task, "epochs=1")
    fitted = world.grid[:40, 0].astype(np.float64)
    assert model.mean[0, 0].numpy() == pytest.approx(fitted.mean((0, 1)), abs=1e-4)
    raw, _ = train(task, "epochs=1", "standardise=false")
    assert not isinstance(raw, Standardise)


# ------------------------------------------------------------------------------------------ the loss


def loss_in_numpy(predicted: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    total = 0.0
    for k in range(labels.shape[1]):
        known = ~np.isnan(labels[:, k])
        if known.any():
            total += np.mean((predicted[known, k] - labels[known, k]) ** 2)
    return total


finite = st.floats(-1, 1)


@settings(deadline=None)
@given(
    st.tuples(st.integers(1, 6), st.integers(1, 4)).flatmap(
        lambda shape: st.tuples(
            arrays(np.float64, shape, elements=finite), arrays(np.float64, shape, elements=finite | st.just(np.nan))
        )
    )
)
def test_the_loss_is_the_sum_over_tasks_of_mean_squares_over_known_labels(pair) -> None:
    predicted, labels = pair
    loss = masked_loss(torch.from_numpy(predicted), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(loss_in_numpy(predicted, labels), abs=1e-12)


def test_missing_labels_give_no_gradient() -> None:
    predicted = torch.tensor([[0.1, 0.2], [0.3, 0.4]], requires_grad=True)
    masked_loss(predicted, torch.tensor([[0.0, np.nan], [np.nan, np.nan]])).backward()
    assert torch.allclose(predicted.grad, torch.tensor([[0.2, 0.0], [0.0, 0.0]]))


# ------------------------------------------------------------------------------------------ the loop


def test_the_training_loss_falls(task: Task) -> None:
    _, history = train(task, "epochs=30", "patience=30", "dropout=0")
    assert [epoch.epoch for epoch in history] == list(range(30))
    assert history[-1].train_loss < history[0].train_loss / 4


def test_the_weights_of_the_best_epoch_are_kept(task: Task) -> None:
    model, history = train(task, "epochs=30", "patience=5", "lr=0.03")
    losses = [epoch.val_loss for epoch in history]
    best = int(np.argmin(losses))
    assert [epoch.epoch for epoch in history if epoch.best] == [best]
    assert best < len(history) - 1  # it went on for a while, and came back
    inner = predict_rows(model, task.features, task.inner_rows, CPU)
    assert loss_in_numpy(inner, task.labels[task.inner_rows]) == pytest.approx(losses[best], rel=1e-5)
    stopped, _ = train(task, f"epochs={best + 1}", "lr=0.03")
    for name, value in stopped.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_after_as_many_epochs_without_a_better_one(task: Task, patience: int) -> None:
    _, history = train(task, "epochs=60", f"patience={patience}", "lr=0.03")
    best = next(epoch.epoch for epoch in history if epoch.best)
    assert len(history) == best + patience + 1 < 60


def test_the_history_has_the_losses_of_the_rows_it_says(task: Task) -> None:
    """With a rate of 0 and no dropout the model stays as it was, so both losses can be computed by hand."""
    model, history = train(task, "lr=0", "dropout=0", "epochs=1", "batch=40")
    for rows, loss in ((task.fit_rows, history[0].train_loss), (task.inner_rows, history[0].val_loss)):
        assert loss_in_numpy(predict_rows(model, task.features, rows, CPU), task.labels[rows]) == pytest.approx(loss)


def test_epochs_are_told_as_they_end(task: Task) -> None:
    told: list[int] = []
    train(replace(task, on_epoch=told.append), "epochs=3")
    assert told == [1, 2, 3]


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(task: Task) -> None:
    first, same, other_weights = train(task)[0], train(task)[0], train(task, seed=1)[0]
    other_shuffling = train(replace(task, seed=4))[0]
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), same.parameters(), strict=True))
    rows = np.arange(50, 60)
    predicted = [predict_rows(each, task.features, rows, CPU) for each in (first, same, other_weights, other_shuffling)]
    assert np.array_equal(predicted[0], predicted[1])
    assert not np.array_equal(predicted[0], predicted[2])
    assert not np.array_equal(predicted[0], predicted[3])


def test_streaming_learns_as_well(task: Task, world, features_of) -> None:
    streaming = replace(task, features=features_of(world.store, "grid", memory_bytes=50_000))
    first, history = train(streaming)
    again, _ = train(streaming)
    assert history[-1].train_loss < history[0].train_loss
    assert all(torch.equal(one, two) for one, two in zip(first.parameters(), again.parameters(), strict=True))


def test_divergence_is_an_error_that_says_what_to_try(task: Task) -> None:
    with pytest.raises(TrainingError, match=r"not a number after epoch 1; try a lower rate, --set lr=1e\+29"):
        train(task, "lr=1e30", "standardise=false")


def test_a_task_without_labels_in_this_fold_is_left_alone(task: Task) -> None:
    labels = task.labels.copy()
    labels[:50, 1] = np.nan
    model, history = train(replace(task, labels=labels))
    assert np.isfinite([epoch.val_loss for epoch in history]).all()
    predicted = predict_rows(model, task.features, np.arange(60), CPU)
    assert predicted.shape == (60, 2)
    assert np.isfinite(predicted).all()
    untrained, _ = train(task, "lr=0", "epochs=1")
    assert torch.equal(model.model.out_weight[1], untrained.model.out_weight[1])
    assert not torch.equal(model.model.out_weight[0], untrained.model.out_weight[0])
