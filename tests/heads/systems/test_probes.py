"""The probes are scikit-learn's own solutions, with penalties chosen as they say, in a form that torch runs alone."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import log_loss

from heads.systems import find_system
from heads.systems.probes import ALPHAS, CS
from heads.systems.system import NO_FOLD, Sample
from heads.training.losses import predictions


def fitted(name: str, sample: Sample, *changes: str) -> torch.nn.Module:
    system = find_system(name)
    options = system.settle(changes)
    model = system.build(((sample.features.shape[1],),), sample.target, options)
    system.fit(model, sample, options)
    return model.eval()


def said(name: str, sample: Sample, *changes: str) -> NDArray[np.float32]:
    """What it says of the images that it was fitted to: ratings or probabilities."""
    with torch.inference_mode():
        outputs = fitted(name, sample, *changes)(torch.from_numpy(sample.features))
    return predictions(sample.target, outputs).numpy()


def without(sample: Sample, rows: object, task: int) -> Sample:
    labels = sample.labels.copy()
    labels[rows, task] = np.nan
    return replace(sample, labels=labels)


def known(sample: Sample, task: int) -> NDArray[np.int64]:
    return np.flatnonzero(np.isfinite(sample.labels[:, task]))


def inner(sample: Sample, task: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Rows to fit and rows to choose by, for every inner fold in which the task has a label."""
    rows, folds = known(sample, task), sample.folds[known(sample, task)]
    return [(rows[folds != fold], rows[folds == fold]) for fold in set(folds.tolist()) - {NO_FOLD}]


# ---------------------------------------------------------------------------------------------------------- ridge


def ridge_by_scikit_learn(sample: Sample, alphas: Sequence[float]) -> NDArray[np.float64]:
    out = []
    for task, alpha in enumerate(alphas):
        rows = known(sample, task)
        solution = Ridge(alpha=alpha).fit(sample.features[rows].astype(float), sample.labels[rows, task].astype(float))
        out.append(solution.predict(sample.features.astype(float)))
    return np.stack(out, 1)


def best_alpha(sample: Sample, task: int) -> float:
    """By trying each on the inner folds, or by leaving one out where there are none."""
    x, y = sample.features.astype(float), sample.labels[:, task].astype(float)

    def error(alpha: float) -> float:
        if not inner(sample, task):
            fit = known(sample, task)
            away = x[fit] - x[fit].mean(0)
            hat = away @ np.linalg.solve(away.T @ away + alpha * np.eye(x.shape[1]), away.T) + 1 / len(fit)
            return float(np.square((y[fit] - hat @ y[fit]) / (1 - np.diag(hat))).mean())
        solution = Ridge(alpha=alpha)
        parts = inner(sample, task)
        return sum(np.square(solution.fit(x[fit], y[fit]).predict(x[held]) - y[held]).sum() for fit, held in parts)

    return float(min(ALPHAS, key=error))


@settings(max_examples=25, deadline=None)
@given(
    n=st.integers(4, 40), n_features=st.integers(1, 60), k=st.integers(1, 4), alpha=st.floats(1e-2, 1e4),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_ridge_of_a_given_penalty_is_scikit_learns(as_sample, n, n_features, k, alpha, seed) -> None:
    sample = as_sample("regression", n=n, n_features=n_features, outputs=k, seed=seed)
    assert said("ridge", sample, f"alpha={alpha}") == pytest.approx(
        ridge_by_scikit_learn(sample, [alpha] * k), abs=1e-4
    )


@pytest.mark.parametrize("n_features", [8, 200], ids=["more images", "more features"])
def test_the_penalty_of_each_task_is_the_best_over_the_inner_folds(as_sample, n_features: int) -> None:
    sample = as_sample("regression", n_features=n_features)
    rng = np.random.default_rng(4)
    sample = replace(sample, labels=sample.labels + rng.normal(size=(60, 3)).astype(np.float32) * [0, 0.1, 0.5])
    sample = replace(sample, labels=sample.labels.astype(np.float32))
    alphas = [best_alpha(sample, k) for k in range(3)]
    assert len(set(alphas)) > 1  # a choice of its own for each task
    assert said("ridge", sample) == pytest.approx(ridge_by_scikit_learn(sample, alphas), abs=1e-6)


def test_without_inner_folds_the_penalty_is_the_best_by_leaving_one_out(as_sample) -> None:
    sample = as_sample("regression", n=24, n_folds=0, outputs=2)
    alphas = [best_alpha(sample, k) for k in range(2)]
    assert said("ridge", sample) == pytest.approx(ridge_by_scikit_learn(sample, alphas), abs=1e-4)


def test_missing_labels_are_left_out_task_by_task(as_sample) -> None:
    """Task 0 and 2 are labelled alike; task 1 has no label in the third inner fold."""
    sample = without(without(without(as_sample("regression"), slice(5, 25), 0), slice(5, 25), 2), slice(2, 60, 3), 1)
    alphas = [best_alpha(sample, k) for k in range(3)]
    assert said("ridge", sample) == pytest.approx(ridge_by_scikit_learn(sample, alphas), abs=1e-4)


# ------------------------------------------------------------------------------------------------------- logistic


def logistic_by_scikit_learn(sample: Sample, task: int, c: float) -> NDArray[np.float64]:
    """Probabilities of the classes that occur (n, .)."""
    rows = known(sample, task)
    solution = LogisticRegression(C=c, max_iter=10_000, tol=1e-7)
    return solution.fit(sample.features[rows], sample.labels[rows, task]).predict_proba(sample.features)


def best_c(sample: Sample, task: int) -> float:
    x, y = sample.features, sample.labels[:, task]

    def error(c: float) -> float:
        model = LogisticRegression(C=c, max_iter=10_000, tol=1e-7)
        return sum(
            log_loss(y[held], model.fit(x[fit], y[fit]).predict_proba(x[held]), labels=model.classes_, normalize=False)
            for fit, held in inner(sample, task)
        )

    return float(min(CS, key=error))


@pytest.mark.parametrize("c", [0.01, 1.0])
@pytest.mark.parametrize("kind", ["binary", "multilabel"])
def test_logistic_of_a_given_penalty_is_scikit_learns(as_sample, kind: str, c: float) -> None:
    sample = as_sample(kind)
    expected = np.stack([logistic_by_scikit_learn(sample, k, c)[:, 1] for k in range(3)], 1)
    # lbfgs ends within its own tolerance, wherever the rounding of a processor has led it.
    assert said("logistic", sample, f"C={c}") == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize("n_classes", [2, 3, 5])
def test_logistic_of_classes_is_scikit_learns(as_sample, n_classes: int) -> None:
    sample = as_sample("multiclass", outputs=n_classes)
    assert said("logistic", sample, "C=0.1") == pytest.approx(logistic_by_scikit_learn(sample, 0, 0.1), abs=1e-4)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_logistic_of_more_features_than_images_is_solved_among_as_many_weights_as_images(
    as_sample, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of features of few photos took as long as those of many, and the solution is the same."""
    sample = as_sample(kind, n_features=300)
    sample = replace(sample, features=sample.features[[*range(59), 0]])  # two photos alike, which span no more than one
    expected = logistic_by_scikit_learn(sample, 0, 0.01)
    fit, widths = LogisticRegression.fit, []

    def noticed(self: LogisticRegression, features: NDArray[np.float64], labels: object) -> LogisticRegression:
        widths.append(features.shape[1])
        return fit(self, features, labels)

    monkeypatch.setattr(LogisticRegression, "fit", noticed)
    found = said("logistic", sample, "C=0.01")
    assert (found[:, 0] if kind == "multilabel" else found) == pytest.approx(
        expected[:, 1] if kind == "multilabel" else expected, abs=5e-4
    )
    assert set(widths) == {60}


@pytest.mark.parametrize("n_seen", [2, 3])
def test_a_class_that_never_occurs_has_probability_0(as_sample, n_seen: int) -> None:
    """Of five classes; those that occur are as if there were no others."""
    sample = as_sample("multiclass", outputs=5)
    seen = np.array([1, 4, 2])[:n_seen]
    sample = replace(sample, labels=seen[sample.labels.astype(int) % n_seen].astype(np.float32))
    expected = np.zeros((60, 5))
    expected[:, np.sort(seen)] = logistic_by_scikit_learn(sample, 0, 0.1)
    assert said("logistic", sample, "C=0.1") == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["multilabel", "multiclass"])
def test_logistic_chooses_its_penalty_by_the_inner_folds(as_sample, kind: str) -> None:
    sample = as_sample(kind, seed=3)
    if kind == "multiclass":
        expected = logistic_by_scikit_learn(sample, 0, best_c(sample, 0))
    else:
        sample = without(sample, slice(5, 20), 1)
        sample.labels[:, 2] = np.arange(60) % 2  # which the features say nothing of
        cs = [best_c(sample, k) for k in range(3)]
        assert len(set(cs)) > 1
        expected = np.stack([logistic_by_scikit_learn(sample, k, c)[:, 1] for k, c in enumerate(cs)], 1)
    assert said("logistic", sample) == pytest.approx(expected, abs=1e-3)


def test_without_inner_folds_the_penalty_is_the_middle_one(as_sample) -> None:
    sample = as_sample("binary", n_folds=0, outputs=1)
    expected = logistic_by_scikit_learn(sample, 0, float(np.median(CS)))[:, 1:]
    assert said("logistic", sample) == pytest.approx(expected, abs=1e-4)


# --------------------------------------------------------------------------------------------------------- linear


@pytest.mark.parametrize("kind", ["regression", "binary", "multilabel", "multiclass"])
def test_linear_learns_by_gradient_what_is_linear(kind: str, as_sample: Callable[..., Sample], learn) -> None:
    sample = as_sample(kind, n=600, n_folds=0)
    system = find_system("linear")
    torch.manual_seed(0)
    model = system.build(((2, 2), (4,)), sample.target, system.settle([]))  # 8 features, in two tensors
    features, labels = torch.from_numpy(sample.features), torch.from_numpy(sample.labels)

    def call(rows: torch.Tensor) -> torch.Tensor:
        return model(rows[:, :4].view(-1, 2, 2), rows[:, 4:])

    both = torch.nn.Module()
    both.model, both.forward = model, call
    learn(both, sample.target, features, labels, steps=500)
    out = call(features).detach()
    assert out.shape == (600, 3)
    if kind == "multiclass":
        expected = logistic_by_scikit_learn(sample, 0, 10).argmax(1)
        assert (out.argmax(1).numpy() == expected).mean() > 0.95
        return
    by_solving = fitted("ridge" if kind == "regression" else "logistic", sample)(features).detach()
    for ours, theirs in zip(out.T, by_solving.T, strict=True):
        assert np.corrcoef(ours, theirs)[0, 1] > 0.97
