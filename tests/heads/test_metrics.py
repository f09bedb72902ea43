"""Metrics against their formulas."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from heads.metrics import METRICS, evaluate, summarise

NONE = dict.fromkeys(METRICS)


@settings(deadline=None)
@given(seed=st.integers(0, 1000), n=st.integers(3, 50))
def test_metrics_are_their_formulas(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.uniform(-0.5, 0.5, n).astype(np.float32)
    predicted = (labels / 2 + rng.normal(size=n) / 5).astype(np.float32)
    found = evaluate(labels, predicted)
    truth, guess = labels.astype(float), predicted.astype(float)
    pearson = ((truth - truth.mean()) * (guess - guess.mean())).mean() / (truth.std() * guess.std())
    residual = ((truth - guess) ** 2).mean()
    assert found["pearson"] == pytest.approx(pearson)
    assert found["pearson"] == pytest.approx(stats.pearsonr(truth, guess).statistic)
    assert found["pearson2"] == pytest.approx(pearson**2)
    assert found["r2"] == pytest.approx(1 - residual / truth.var())
    assert found["rmse"] == pytest.approx(np.sqrt(residual))


def test_pearson2_and_r2_part_when_level_and_spread_are_wrong() -> None:
    labels = np.linspace(-0.5, 0.5, 11, dtype=np.float32)
    found = evaluate(labels, labels / 2 + 0.4)
    assert found["pearson2"] == pytest.approx(1)
    assert found["r2"] < 0


def test_only_known_labels_count() -> None:
    labels = np.array([0.1, np.nan, -0.2, 0.4, np.nan], np.float32)
    predicted = np.array([0.2, 0.5, -0.1, 0.1, -0.5], np.float32)
    known = [0, 2, 3]
    assert evaluate(labels, predicted) == evaluate(labels[known], predicted[known])


def test_constant_predictions_have_no_correlation() -> None:
    labels = np.array([0.1, -0.2, 0.4], np.float32)
    found = evaluate(labels, np.full(3, 0.1, np.float32))
    assert (found["pearson"], found["pearson2"]) == (None, None)
    assert found["r2"] == pytest.approx(0)  # 0.1 is the mean
    assert found["rmse"] == pytest.approx(labels.std())


def test_predictions_that_differ_by_rounding_only_do_not_warn() -> None:
    almost = np.array([0.3, np.nextafter(np.float32(0.3), np.float32(1)), 0.3], np.float32)
    evaluate(np.array([0.1, -0.2, 0.4], np.float32), almost)


def test_constant_labels_have_an_error_only() -> None:
    found = evaluate(np.full(3, 0.1, np.float32), np.array([0.1, 0.2, 0.3], np.float32))
    assert found == NONE | {"rmse": pytest.approx(np.sqrt(0.05 / 3))}


@pytest.mark.parametrize("labels", [[np.nan, np.nan, np.nan], [np.nan, 0.1, np.nan]])
def test_fewer_than_two_labels_have_no_metrics(labels: list[float]) -> None:
    assert evaluate(np.array(labels, np.float32), np.zeros(3, np.float32)) == NONE


def test_mean_and_spread_over_repeats() -> None:
    repeats = [NONE | {"pearson": value, "rmse": 0.1} for value in (0.2, 0.4, 0.9)]
    found = summarise(repeats)
    assert found["pearson"] == {"mean": pytest.approx(0.5), "spread": pytest.approx(np.std([0.2, 0.4, 0.9], ddof=1))}
    assert found["rmse"] == {"mean": pytest.approx(0.1), "spread": pytest.approx(0, abs=1e-12)}
    assert found["r2"] == {"mean": None, "spread": None}


def test_a_single_repeat_has_no_spread_and_json_says_null() -> None:
    found = summarise([NONE | {"pearson": 0.5}])
    assert found["pearson"] == {"mean": 0.5, "spread": None}
    assert json.loads(json.dumps(found, allow_nan=False))["r2"] == {"mean": None, "spread": None}


def test_a_metric_that_one_repeat_lacks_has_no_mean() -> None:
    assert summarise([NONE | {"pearson": 0.5}, NONE])["pearson"] == {"mean": None, "spread": None}
