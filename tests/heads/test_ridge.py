"""The baseline is scikit-learn's ridge, on standardised features, with a penalty chosen on the inner part."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from heads.errors import TrainingError
from heads.prediction import predict_rows
from heads.systems import find_system
from heads.systems.ridge import ALPHAS
from heads.training import Task

CPU = torch.device("cpu")


@pytest.fixture
def task(world, features_of) -> Task:
    """appeal and calm of fifty images to learn from, ten of them to choose by."""
    labels = ((world.table[["appeal", "calm"]].to_numpy() - 1) / 6 - 0.5).astype(np.float32)
    return Task(features_of(world.store, "whole"), labels, np.arange(10, 50), np.arange(10), seed=0)


def fit_and_predict(task: Task, *changes: str) -> NDArray[np.float32]:
    ridge = find_system("ridge")
    options = ridge.settle(changes)
    model = ridge.build(task.features.shape, task.labels.shape[1], options)
    assert ridge.fit(model, task, options) == []
    return predict_rows(model, task.features, np.arange(60), CPU)


def by_scikit_learn(features: NDArray[np.float64], task: Task, alphas: list[float]) -> NDArray[np.float64]:
    """Predictions of a Ridge per task, fitted on every training row with a label."""
    train = np.concatenate([task.fit_rows, task.inner_rows])
    out = []
    for k, alpha in enumerate(alphas):
        known = train[np.isfinite(task.labels[train, k])]
        out.append(Ridge(alpha=alpha).fit(features[known], task.labels[known, k].astype(float)).predict(features))
    return np.stack(out, axis=1)


def standardised(world, task: Task) -> NDArray[np.float64]:
    whole = world.whole.astype(np.float64)
    return StandardScaler().fit(whole[np.concatenate([task.fit_rows, task.inner_rows])]).transform(whole)


def best_by_brute_force(features: NDArray[np.float64], task: Task, k: int) -> float:
    def error(alpha: float) -> float:
        fit = task.fit_rows[np.isfinite(task.labels[task.fit_rows, k])]
        inner = task.inner_rows[np.isfinite(task.labels[task.inner_rows, k])]
        model = Ridge(alpha=alpha).fit(features[fit], task.labels[fit, k].astype(float))
        return float(np.square(model.predict(features[inner]) - task.labels[inner, k]).mean())

    return float(min(ALPHAS, key=error))


@pytest.mark.parametrize("alpha", [1.0, 100.0])
def test_is_scikit_learns_ridge_on_standardised_features(task: Task, world, alpha: float) -> None:
    expected = by_scikit_learn(standardised(world, task), task, [alpha, alpha])
    assert fit_and_predict(task, f"alpha={alpha}") == pytest.approx(expected, abs=1e-4)


def test_or_on_the_features_as_they_are(task: Task, world) -> None:
    expected = by_scikit_learn(world.whole.astype(np.float64), task, [10.0, 10.0])
    assert fit_and_predict(task, "alpha=10", "standardise=false") == pytest.approx(expected, abs=1e-4)


def test_the_penalty_of_each_task_is_the_best_on_the_inner_part(task: Task, world) -> None:
    noise = np.random.default_rng(0).normal(size=(60, 2)) * [0.05, 0.2]
    task = replace(task, labels=(task.labels + noise).astype(np.float32))
    features = standardised(world, task)
    alphas = [best_by_brute_force(features, task, k) for k in (0, 1)]
    assert ALPHAS[0] < alphas[0] < alphas[1]  # a choice, and one of its own for each task
    assert fit_and_predict(task) == pytest.approx(by_scikit_learn(features, task, alphas), abs=1e-4)


def test_missing_labels_are_left_out_task_by_task(task: Task, world) -> None:
    labels = task.labels.copy()
    labels[5:25, 0] = np.nan
    labels[30:45, 1] = np.nan
    partial = replace(task, labels=labels)
    features = standardised(world, task)
    alphas = [best_by_brute_force(features, partial, k) for k in (0, 1)]
    assert fit_and_predict(partial) == pytest.approx(by_scikit_learn(features, partial, alphas), abs=1e-4)


def test_without_labels_in_the_inner_part_the_penalty_is_the_middle_one(task: Task, world) -> None:
    labels = task.labels.copy()
    labels[:10, 0] = np.nan
    partial = replace(task, labels=labels)
    features = standardised(world, task)
    alphas = [float(np.median(ALPHAS)), best_by_brute_force(features, partial, 1)]
    assert fit_and_predict(partial) == pytest.approx(by_scikit_learn(features, partial, alphas), abs=1e-4)


def test_a_task_with_no_labels_to_fit_is_named(task: Task) -> None:
    labels = task.labels.copy()
    labels[10:50, 1] = np.nan
    with pytest.raises(TrainingError, match="task 1 has 0 labels in a training part"):
        fit_and_predict(replace(task, labels=labels))


def test_streaming_gives_the_same(task: Task, world, features_of) -> None:
    streaming = replace(task, features=features_of(world.store, "whole", memory_bytes=1))
    assert fit_and_predict(streaming) == pytest.approx(fit_and_predict(task), abs=1e-5)


def test_learns_the_planted_signal(task: Task) -> None:
    predicted = fit_and_predict(task)[50:]
    assert np.corrcoef(predicted[:, 0], task.labels[50:, 0])[0, 1] > 0.4
