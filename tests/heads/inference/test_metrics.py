"""Metrics against their formulas, and their summary over repeats."""

import json
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.inference.metrics import ALL, METRICS, SHOWN, evaluate, summarise, tasks_of
from heads.labels.target import KINDS, Target

RATING, YES = Target("regression", ("x",)), Target("binary", ("x",))
MOOD = Target("multiclass", ("mood",), ("awe", "fear", "joy"))
LABELS = Target("multilabel", ("awe", "fear", "joy"))
NONE = dict.fromkeys(METRICS["regression"])
seeds = st.integers(0, 2**32 - 1)


def column(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def ranks(values: np.ndarray) -> np.ndarray:
    return np.array([(values < v).sum() + ((values == v).sum() + 1) / 2 for v in values])


@settings(deadline=None, max_examples=25)
@given(seed=seeds, n=st.integers(3, 50), steps=st.sampled_from([4, 1000]))
def test_metrics_of_ratings_are_their_formulas(seed: int, n: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, steps + 1, n) / steps - 0.5
    guess = np.round((truth / 2 + rng.normal(size=n) / 5) * steps) / steps
    if np.ptp(truth) == 0 or np.ptp(guess) == 0:
        return
    found = evaluate(RATING, truth[:, None], guess[:, None])["x"]
    assert tuple(found) == METRICS["regression"]
    residual = ((truth - guess) ** 2).mean()
    expected = {
        "pearson": np.corrcoef(truth, guess)[0, 1],
        "pearson2": np.corrcoef(truth, guess)[0, 1] ** 2,
        "r2": 1 - residual / truth.var(),
        "rmse": np.sqrt(residual),
        "srocc": np.corrcoef(ranks(truth), ranks(guess))[0, 1],
        "plcc": np.corrcoef(truth, guess)[0, 1],
        "accuracy": ((truth >= 0) == (guess >= 0)).mean(),
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_pearson2_and_r2_part_when_level_and_spread_are_wrong() -> None:
    truth = np.linspace(-0.5, 0.5, 11)[:, None]
    found = evaluate(RATING, truth, truth / 2 + 0.4)["x"]
    assert found["pearson2"] == pytest.approx(1)
    assert found["r2"] < 0


def test_srocc_sees_the_order_alone() -> None:
    truth = np.linspace(-0.5, 0.5, 11)[:, None]
    found = evaluate(RATING, truth, truth**3)["x"]
    assert found["srocc"] == pytest.approx(1)
    assert found["plcc"] < 0.95


def test_only_known_labels_of_tested_images_count() -> None:
    truth = column(0.1, np.nan, -0.2, 0.4, 0.3)
    guess = column(0.2, 0.5, -0.1, 0.1, np.nan)
    known = [0, 2, 3]
    assert evaluate(RATING, truth, guess) == evaluate(RATING, truth[known], guess[known])


def test_constant_predictions_have_no_correlation() -> None:
    truth = column(0.1, -0.2, 0.4)
    found = evaluate(RATING, truth, np.full((3, 1), 0.1, np.float32))["x"]
    assert (found["pearson"], found["pearson2"], found["srocc"], found["plcc"]) == (None,) * 4
    assert found["r2"] == pytest.approx(0)  # 0.1 is the mean
    assert found["rmse"] == pytest.approx(truth.std())
    assert found["accuracy"] == pytest.approx(2 / 3)


def test_predictions_that_differ_by_rounding_only_do_not_warn() -> None:
    almost = column(0.3, float(np.nextafter(np.float32(0.3), np.float32(1))), 0.3)
    evaluate(RATING, column(0.1, -0.2, 0.4), almost)


def test_constant_labels_have_an_error_only() -> None:
    found = evaluate(RATING, np.full((3, 1), 0.1), column(-0.1, 0.2, 0.3))["x"]
    assert found == NONE | {"rmse": pytest.approx(np.sqrt(0.09 / 3)), "accuracy": pytest.approx(2 / 3)}


@pytest.mark.parametrize("labels", [(np.nan, np.nan, np.nan), (np.nan, 1, np.nan)])
@pytest.mark.parametrize("kind", ["regression", "binary"])
def test_fewer_than_two_labels_have_no_metrics(labels: tuple[float, ...], kind: str) -> None:
    target = Target(kind, ("x",))
    assert evaluate(target, column(*labels), np.zeros((3, 1)))["x"] == dict.fromkeys(METRICS[kind])


def f1(truth: np.ndarray, guess: np.ndarray) -> float:
    return 2 * (truth & guess).sum() / max(truth.sum() + guess.sum(), 1)


def average_precision(truth: np.ndarray, score: np.ndarray) -> float:
    """The precision at each score that is reached, weighted by what is found there."""
    points = sorted(set(score), reverse=True)
    found = [truth[score == point].sum() for point in points]
    precision = [truth[score >= point].mean() for point in points]
    return float(np.dot(found, precision) / truth.sum())


def expected_of_classes(truth: np.ndarray, guess: np.ndarray, scores: dict[int, np.ndarray]) -> dict[str, float]:
    occur = sorted(set(truth))
    return {
        "f1": sum((truth == c).mean() * f1(truth == c, guess == c) for c in occur),
        "accuracy": (truth == guess).mean(),
        "balanced_accuracy": np.mean([(guess[truth == c] == c).mean() for c in occur]),
        "map": np.mean([average_precision(truth == c, scores[c]) for c in scores if c in occur]),
    }


@settings(deadline=None, max_examples=25)
@given(seed=seeds, n=st.integers(2, 40), steps=st.sampled_from([3, 1000]))
def test_metrics_of_yes_or_no_are_their_formulas(seed: int, n: int, steps: int) -> None:
    rng = np.random.default_rng(seed)
    truth, score = rng.integers(0, 2, n), rng.integers(0, steps + 1, n) / steps
    if len(set(truth)) < 2:
        return
    found = evaluate(YES, truth[:, None].astype(float), score[:, None])["x"]
    assert found == pytest.approx(expected_of_classes(truth, (score >= 0.5).astype(int), {1: score}))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, n=st.integers(2, 40))
def test_metrics_of_classes_are_their_formulas(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth, chances = rng.integers(0, 3, n), rng.dirichlet(np.ones(3), n).round(1)
    if len(set(truth)) < 2:
        return
    found = evaluate(MOOD, truth[:, None].astype(float), chances)["mood"]
    scores = {c: chances[:, c] for c in range(3)}
    assert found == pytest.approx(expected_of_classes(truth, chances.argmax(1), scores))


@settings(deadline=None, max_examples=25)
@given(seed=seeds, n=st.integers(2, 40))
def test_metrics_of_all_labels_together_are_their_formulas(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    truth, chances = rng.integers(0, 2, (n, 3)), rng.random((n, 3)).round(1)
    figures = evaluate(LABELS, truth.astype(float), chances)
    assert tuple(figures) == tasks_of(LABELS) == ("awe", "fear", "joy", ALL)
    guess = chances >= 0.5
    if truth.any():
        weighted = sum(truth[:, k].sum() * f1(truth[:, k] == 1, guess[:, k]) for k in range(3)) / truth.sum()
        assert figures[ALL]["f1"] == pytest.approx(weighted)
    assert figures[ALL]["accuracy"] == pytest.approx((truth == guess).all(1).mean())
    for metric in ("map", "balanced_accuracy"):
        known = [figures[task][metric] for task in LABELS.tasks if figures[task][metric] is not None]
        assert figures[ALL][metric] == (pytest.approx(np.mean(known)) if known else None)
    assert figures["joy"] == evaluate(Target("binary", ("joy",)), truth[:, 2:].astype(float), chances[:, 2:])["joy"]


def test_f1_of_all_labels_is_the_weighted_f1_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    rng = np.random.default_rng(0)
    truth, chances = rng.integers(0, 2, (50, 3)), rng.random((50, 3))
    found = evaluate(LABELS, truth.astype(float), chances)[ALL]
    assert found["f1"] == pytest.approx(f1_score(truth, chances >= 0.5, average="weighted"))
    assert found["accuracy"] == pytest.approx(accuracy_score(truth, chances >= 0.5))


def test_a_missing_label_takes_the_photo_out_of_that_label_only() -> None:
    truth = np.array([[1, 0, np.nan], [0, 1, 1], [1, 1, 0], [0, 0, 1]])
    chances = np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.8], [0.7, 0.8, 0.1], [0.4, 0.2, 0.9]])
    figures = evaluate(LABELS, truth, chances)
    assert [figures[task]["accuracy"] for task in LABELS.tasks] == [1, 0.75, 1]
    assert figures[ALL]["accuracy"] == pytest.approx(2 / 3)  # of the three photos of which all is known


def test_one_class_alone_has_neither_balance_nor_precision() -> None:
    found = evaluate(YES, column(1, 1, 1), column(0.9, 0.2, 0.8))["x"]
    assert found == {"f1": pytest.approx(0.8), "accuracy": pytest.approx(2 / 3), "balanced_accuracy": None, "map": None}
    found = evaluate(MOOD, column(2, 2), np.array([[0.1, 0.2, 0.7], [0.8, 0.1, 0.1]]))["mood"]
    assert (found["accuracy"], found["balanced_accuracy"], found["map"]) == (0.5, None, None)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_measured(kind: str) -> None:
    assert set(SHOWN[kind]) <= set(METRICS[kind])


def some_outcomes(
    kind: str, n: int = 60, n_repeats: int = 3, n_tasks: int = 2
) -> tuple[Target, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    if kind == "multiclass":
        truth = rng.integers(0, 3, (n, 1)).astype(float)
        return MOOD, truth, rng.dirichlet(np.ones(3), (n_repeats, n)) * 0.7 + np.eye(3)[truth[:, 0].astype(int)] * 0.3
    target = Target(kind, tuple(f"task {k}" for k in range(n_tasks)))
    signal = rng.normal(size=(n, n_tasks))
    guess = signal + rng.normal(size=(n_repeats, n, n_tasks))
    if kind == "regression":
        return target, np.clip(signal / 6, -0.5, 0.5), guess / 9
    return target, (signal > 0).astype(float), 1 / (1 + np.exp(-guess))


@pytest.mark.parametrize("kind", KINDS)
def test_a_summary_has_mean_spread_and_an_interval_around_it(kind: str) -> None:
    target, truth, predicted = some_outcomes(kind)
    found = summarise(target, truth, predicted, groups=None, n_resamples=200)
    assert tuple(found) == tasks_of(target)
    repeats = [evaluate(target, truth, each) for each in predicted]
    for task in tasks_of(target):
        assert tuple(found[task]) == METRICS[kind]
        for metric in METRICS[kind]:
            values, each = [figures[task][metric] for figures in repeats], found[task][metric]
            assert each["mean"] == pytest.approx(np.mean(values))
            assert each["spread"] == pytest.approx(np.std(values, ddof=1), abs=1e-12)
            assert each["low"] < each["mean"] < each["high"]
    assert found == summarise(target, truth, predicted, groups=None, n_resamples=200)
    assert found != summarise(target, truth, predicted, groups=None, n_resamples=200, seed=1)


def test_a_single_repeat_has_no_spread() -> None:
    target, truth, predicted = some_outcomes("regression", n_repeats=1)
    found = summarise(target, truth, predicted, groups=None, n_resamples=50)
    assert found["task 0"]["pearson"]["spread"] is None
    assert found["task 0"]["pearson"]["low"] is not None


def test_images_that_were_never_tested_do_not_count() -> None:
    target, truth, predicted = some_outcomes("regression")
    truth[3] = np.nan
    predicted[:, 10:20] = np.nan
    kept = [i for i in range(60) if i != 3 and not 10 <= i < 20]
    groups = [f"{i // 4}" for i in range(60)]
    assert summarise(target, truth, predicted, groups=groups, n_resamples=50) == summarise(
        target, truth[kept], predicted[:, kept], groups=[groups[i] for i in kept], n_resamples=50
    )


def test_a_metric_that_one_repeat_lacks_has_no_mean_and_json_says_null() -> None:
    target, truth, predicted = some_outcomes("regression")
    predicted[1, :, 0] = 0.25
    found = summarise(target, truth, predicted, groups=None, n_resamples=50)
    assert set(found["task 0"]["pearson"].values()) == {None}
    assert found["task 0"]["rmse"]["mean"] is not None
    assert json.loads(json.dumps(found, allow_nan=False)) == found


def test_a_single_group_has_no_interval() -> None:
    target, truth, predicted = some_outcomes("regression")
    found = summarise(target, truth, predicted, groups=["one"] * 60, n_resamples=50)["task 0"]["pearson"]
    assert found["mean"] is not None
    assert (found["low"], found["high"]) == (None, None)


def test_groups_of_copies_widen_the_interval_as_fewer_images_would() -> None:
    """Each of 60 images thrice says as much as each once."""
    target, truth, predicted = some_outcomes("regression")
    groups = [str(i % 60) for i in range(180)]
    alone = summarise(target, truth, predicted, groups=None)["task 0"]["pearson"]
    thrice = np.tile(truth, (3, 1)), np.tile(predicted, (1, 3, 1))
    clustered, naive = (summarise(target, *thrice, groups=g)["task 0"]["pearson"] for g in (groups, None))

    def width(each: dict) -> float:
        return each["high"] - each["low"]

    assert width(clustered) == pytest.approx(width(alone), rel=0.15)
    assert width(naive) < 0.75 * width(alone)


def test_a_thousand_resamples_of_a_whole_run_take_seconds() -> None:
    target, truth, predicted = some_outcomes("regression", n=900, n_repeats=5, n_tasks=12)
    before = time.process_time()
    summarise(target, truth, predicted, groups=None)
    assert time.process_time() - before < 10  # on a busy machine; 2 to 4 s else
