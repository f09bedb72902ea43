"""Support vector regression is scikit-learn's, and its support vectors travel with the weights."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.torch import load, save
from sklearn.svm import SVR

from heads.systems import find_system
from heads.systems.svr import GRID, SupportVectors
from heads.systems.system import Sample


def fitted(sample: Sample, *changes: str) -> SupportVectors:
    system = find_system("svr")
    options = system.settle(changes)
    model = system.build(((sample.features.shape[1],),), sample.target, options)
    system.fit(model, sample, options)
    return model.eval()


def said(sample: Sample, *changes: str) -> NDArray[np.float32]:
    with torch.inference_mode():
        return fitted(sample, *changes)(torch.from_numpy(sample.features)).numpy()


def by_scikit_learn(sample: Sample, task: int, c: float, epsilon: float, times: float) -> NDArray[np.float64]:
    rows = np.flatnonzero(np.isfinite(sample.labels[:, task]))
    x = sample.features.astype(float)
    gamma = "scale" if times == 1 else times / (x.shape[1] * x[rows].var())
    return (
        SVR(C=c, epsilon=epsilon, gamma=gamma, tol=1e-5)
        .fit(x[rows], sample.labels[rows, task].astype(float))
        .predict(x)
    )


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(3, 50), n_features=st.integers(1, 30), k=st.integers(1, 3), c=st.floats(0.01, 3),
    epsilon=st.floats(0.001, 0.1), times=st.sampled_from([0.25, 1.0, 4.0]), seed=st.integers(0, 99),
)  # fmt: skip
def test_svr_of_given_parameters_is_scikit_learns(as_sample, n, n_features, k, c, epsilon, times, seed) -> None:
    sample = as_sample("regression", n=n, n_features=n_features, outputs=k, seed=seed)
    expected = np.stack([by_scikit_learn(sample, task, c, epsilon, times) for task in range(k)], 1)
    ours = said(sample, f"C={c}", f"epsilon={epsilon}", f"gamma={times}")
    assert ours == pytest.approx(expected, abs=1e-4)


def test_missing_labels_are_left_out_task_by_task(as_sample) -> None:
    sample = as_sample("regression", outputs=2)
    labels = sample.labels.copy()
    labels[5:25, 0], labels[40:, 1] = np.nan, np.nan
    sample = replace(sample, labels=labels)
    expected = np.stack([by_scikit_learn(sample, task, 0.3, 0.05, 1.0) for task in (0, 1)], 1)
    assert said(sample, "C=0.3", "epsilon=0.05", "gamma=1") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("narrow", [True, False], ids=["narrow Gaussians", "wide ones"])
def test_what_is_not_given_is_the_best_over_the_inner_folds(as_sample, narrow: bool) -> None:
    sample = as_sample("regression", n_features=2 if narrow else 8, outputs=1, seed=1)
    if narrow:  # a label that goes up and down
        sample = replace(sample, labels=0.4 * np.sin(3 * sample.features[:, :1]))
    x, y = sample.features.astype(float), sample.labels[:, 0].astype(float)

    def error(trial: tuple[float, float, float]) -> float:
        c, epsilon, times = trial
        model = SVR(C=c, epsilon=epsilon, gamma=times / (x.shape[1] * x.var()), tol=1e-5)
        held = [sample.folds == fold for fold in range(3)]
        return sum(np.square(model.fit(x[~one], y[~one]).predict(x[one]) - y[one]).sum() for one in held)

    best = min(product(GRID["C"], GRID["epsilon"], GRID["gamma"]), key=error)
    assert (best[2] > 0.1) == narrow
    assert said(sample)[:, 0] == pytest.approx(by_scikit_learn(sample, 0, *best), abs=1e-4)
    given = min(product(GRID["C"], [0.2], [1.0]), key=error)
    assert said(sample, "epsilon=0.2", "gamma=1")[:, 0] == pytest.approx(by_scikit_learn(sample, 0, *given), abs=1e-4)


def test_without_inner_folds_it_is_the_middle_of_what_is_tried(as_sample) -> None:
    sample = as_sample("regression", n_folds=0, outputs=1)
    expected = by_scikit_learn(sample, 0, 0.3, 0.05, 0.5)
    assert said(sample)[:, 0] == pytest.approx(expected, abs=1e-4)


def test_a_new_model_loads_as_many_support_vectors_as_were_saved(as_sample) -> None:
    sample = as_sample("regression")
    model = fitted(sample)
    features = torch.from_numpy(sample.features)
    assert 0 < len(model.support) < 60
    inside = torch.nn.Sequential(SupportVectors(8, 3))  # and within another module, as training wraps it
    inside.load_state_dict(load(save({f"0.{name}": value for name, value in model.state_dict().items()})))
    assert torch.equal(inside(features), model(features))


def test_only_support_vectors_are_kept(as_sample) -> None:
    """Errors below epsilon count for nothing; when all are, so do all images."""
    sample = as_sample("regression")
    sizes = [len(fitted(sample, "C=1", f"epsilon={e}", "gamma=1").support) for e in (0.001, 0.1, 1.0)]
    assert sizes[0] > sizes[1] > sizes[2] == 0
    everything = said(sample, "C=1", "epsilon=1", "gamma=1")
    assert np.ptp(everything, axis=0) == pytest.approx(0)


def test_gradients_are_those_of_finite_differences(as_sample, gradients_are_right) -> None:
    sample = as_sample("regression", n=10, n_folds=0, outputs=2)
    model = fitted(sample, "C=1", "epsilon=0.05", "gamma=1")
    gradients_are_right(model, torch.from_numpy(sample.features[:3] + 0.1))


def test_learns_what_is_not_linear(as_sample) -> None:
    draw = np.random.default_rng(0)
    features = draw.normal(size=(400, 3)).astype(np.float32)
    labels = (0.2 * features[:, :1] * features[:, 1:2]).clip(-0.5, 0.5)
    sample = as_sample("regression", outputs=1)
    model = fitted(replace(sample, features=features[:300], labels=labels[:300], folds=np.arange(300) % 3))
    out = model(torch.from_numpy(features[300:])).numpy()
    assert np.corrcoef(out[:, 0], labels[300:, 0])[0, 1] > 0.9
