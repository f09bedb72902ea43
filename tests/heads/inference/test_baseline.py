"""The baseline that knows nothing says what scikit-learn's dummies say, fold by fold."""

import numpy as np
import pytest
from sklearn.dummy import DummyClassifier, DummyRegressor

from heads.inference.baseline import mean_of_labels, one_hot, predict_baseline
from heads.inference.folds import NOT_TESTED
from heads.inference.intervals import summarise
from heads.labels.target import Target

FOLDS = np.stack([np.random.default_rng(seed).permutation(np.arange(40) % 4) for seed in (0, 1)])
"""Two repeats in folds of their own."""


def parts() -> list[tuple[int, np.ndarray]]:
    """Each repeat, and which images a fold of it tests."""
    return [(repeat, folds == fold) for repeat, folds in enumerate(FOLDS) for fold in range(4)]


def test_ratings_are_the_mean_of_what_a_model_learns_from() -> None:
    labels = np.random.default_rng(0).normal(size=(40, 2))
    labels[3:9, 1] = np.nan
    said = predict_baseline(Target("regression", ("x", "y")), labels, FOLDS)
    for repeat, test in parts():
        for k in range(2):
            learnt = labels[~test, k][np.isfinite(labels[~test, k])]
            dummy = DummyRegressor(strategy="mean").fit(np.zeros((len(learnt), 1)), learnt)
            assert said[repeat, test, k] == pytest.approx(dummy.predict(np.zeros((test.sum(), 1))))


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass"])
def test_classes_are_as_probable_as_they_are_frequent(kind: str) -> None:
    many = kind == "multiclass"
    target = Target(kind, ("x",) if many else ("x", "y"), ("awe", "fear", "joy") if many else ())
    labels = np.random.default_rng(0).integers(0, 3 if many else 2, (40, len(target.tasks))).astype(float)
    said = predict_baseline(target, labels, FOLDS)
    assert said.shape == (2, 40, target.n_outputs)
    for repeat, test in parts():
        for k in range(len(target.tasks)):
            dummy = DummyClassifier(strategy="prior").fit(np.zeros(((~test).sum(), 1)), labels[~test, k])
            chances = dummy.predict_proba(np.zeros((test.sum(), 1)))
            assert (
                said[repeat, test] == pytest.approx(chances)
                if many
                else said[repeat, test, k] == pytest.approx(chances[:, 1])
            )


def test_what_is_not_tested_is_not_predicted_and_a_task_without_a_label_is_unknown() -> None:
    labels = np.array([[0.1, np.nan], [0.3, np.nan], [0.5, 0.2]])
    said = predict_baseline(Target("regression", ("x", "y")), labels, np.array([[NOT_TESTED, NOT_TESTED, 0]]))
    assert said[0, 2] == pytest.approx([0.2, np.nan], nan_ok=True)
    assert np.isnan(said[0, :2]).all()
    assert mean_of_labels(np.array([[0.0, 1.0], [1.0, np.nan]])).tolist() == [0.5, 1]
    classes = one_hot(Target("multiclass", ("mood",), ("awe", "joy")), np.array([[1], [np.nan]]))
    np.testing.assert_array_equal(classes, [[0, 1], [np.nan, np.nan]])


def test_the_summary_of_a_run_has_what_the_baseline_gets_and_whether_the_run_is_better() -> None:
    from sklearn.metrics import r2_score, root_mean_squared_error

    rng = np.random.default_rng(1)
    target, labels = Target("regression", ("known", "noise")), rng.normal(size=(40, 2)) / 5
    predicted = labels + rng.normal(size=(2, 40, 2)) / 10
    predicted[:, :, 1] = rng.normal(size=(2, 40)) / 50
    nothing = predict_baseline(target, labels, FOLDS)
    found = summarise(target, labels, predicted, groups=None, folds=FOLDS, baseline=nothing, n_resamples=100)
    for k, task in enumerate(target.tasks):
        for metric, figure in (("rmse", root_mean_squared_error), ("r2", r2_score)):
            expected = np.mean([figure(labels[:, k], each[:, k]) for each in nothing])
            assert found[task][metric]["baseline"] == pytest.approx(expected)
        assert found[task]["r2"]["baseline"] < 0  # other photos than those it is the mean of
        assert found[task]["pearson"]["baseline"] is None
    assert found["known"]["pearson"]["p"] < 0.01 < 0.05 < found["noise"]["pearson"]["p"]
    assert "p" not in found["known"]["rmse"]
