"""Metrics against their formulas and against scikit-learn and SciPy, and the table that they stand in."""

import dataclasses
import tracemalloc
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.inference.metrics import METRICS, SHOWN, TABLE, Metric, by_kind, evaluate, tasks_of
from heads.inference.samples import NO_SPREAD
from heads.labels.target import ALL, KINDS, Target

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
        "pearson2": np.corrcoef(truth, guess)[0, 1] ** 2 * np.sign(np.corrcoef(truth, guess)[0, 1]),
        "pearson_pooled": np.corrcoef(truth, guess)[0, 1],
        "r2": 1 - residual / truth.var(),
        "rmse": np.sqrt(residual),
        "srocc": np.corrcoef(ranks(truth), ranks(guess))[0, 1],
        "srocc_pooled": np.corrcoef(ranks(truth), ranks(guess))[0, 1],
        "plcc": np.corrcoef(truth, guess)[0, 1],
        "accuracy": ((truth >= 0) == (guess >= 0)).mean(),
    }
    assert found == pytest.approx(expected, abs=1e-9)


def test_pearson2_and_r2_part_when_level_and_spread_are_wrong() -> None:
    truth = np.linspace(-0.5, 0.5, 11)[:, None]
    found = evaluate(RATING, truth, truth / 2 + 0.4)["x"]
    assert found["pearson2"] == pytest.approx(1)
    assert found["r2"] < 0


def test_a_correlation_below_zero_stays_below_zero_when_it_is_squared() -> None:
    truth = np.linspace(-0.5, 0.5, 11)[:, None]
    found = evaluate(RATING, truth, -truth)["x"]
    assert (found["pearson"], found["pearson2"]) == (pytest.approx(-1), pytest.approx(-1))


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
    alone = evaluate(Target("binary", ("joy",)), truth[:, 2:].astype(float), chances[:, 2:])["joy"]
    # Of a label, which is one class among several, F1 is that of its yes; of yes and no, it is that of both.
    yes = pytest.approx(f1(truth[:, 2] == 1, guess[:, 2])) if truth[:, 2].any() else None
    assert figures["joy"] == alone | {"f1": yes}


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


# ------------------------------------------------------------------------- scikit-learn and SciPy say the same


def figures_of_ratings(truth: np.ndarray, guess: np.ndarray) -> dict[str, float | None]:
    from scipy.stats import pearsonr, spearmanr
    from sklearn.metrics import accuracy_score, r2_score, root_mean_squared_error

    if len(truth) < 2:
        return dict.fromkeys(METRICS["regression"])
    varies = np.ptp(truth) > NO_SPREAD and np.ptp(guess) > NO_SPREAD
    pearson = pearsonr(truth, guess).statistic if varies else None
    return {
        "pearson": pearson,
        "pearson2": None if pearson is None else pearson * abs(pearson),
        "pearson_pooled": pearson,
        "r2": r2_score(truth, guess) if np.ptp(truth) > NO_SPREAD else None,
        "rmse": root_mean_squared_error(truth, guess),
        "srocc": spearmanr(truth, guess).statistic if varies else None,
        "srocc_pooled": spearmanr(truth, guess).statistic if varies else None,
        "plcc": pearson,
        "accuracy": accuracy_score(truth >= 0, guess >= 0),
    }


def figures_of_decisions(truth: np.ndarray, guess: np.ndarray, scores: dict[int, np.ndarray]) -> dict:
    from sklearn.metrics import accuracy_score, average_precision_score, f1_score, recall_score

    if len(truth) < 2:
        return dict.fromkeys(METRICS["binary"])
    occur = np.unique(truth)
    several = len(occur) > 1
    precisions = [average_precision_score(truth == c, score) for c, score in scores.items() if c in occur]
    return {
        "f1": f1_score(truth, guess, average="weighted", zero_division=0),
        "accuracy": accuracy_score(truth, guess),
        "balanced_accuracy": recall_score(truth, guess, labels=occur, average="macro") if several else None,
        "map": np.mean(precisions) if several else None,
    }


@pytest.mark.parametrize("kind", ["regression", "binary", "multiclass"])
@settings(deadline=None, max_examples=40)
@given(
    seed=seeds,
    n=st.integers(0, 40),
    digits=st.integers(0, 12),
    spread=st.sampled_from([0, 1e-11, 1e-6, 1]),
    missing=st.sampled_from([0, 0.3]),
)
def test_figures_are_those_of_scikit_learn_and_scipy(
    kind: str, seed: int, n: int, digits: int, spread: float, missing: float
) -> None:
    """Also with ties, missing labels, few images, a single class, and predictions that hardly differ."""
    rng = np.random.default_rng(seed)
    if kind == "multiclass":
        truth, chances = rng.integers(0, rng.integers(1, 4), n).astype(float), rng.dirichlet(np.ones(3), n)
        chances = chances.round(digits)
        truth[rng.random(n) < missing] = np.nan
        known = np.isfinite(truth)
        found = evaluate(MOOD, truth[:, None], chances)["mood"]
        scores = {c: chances[known, c] for c in range(3)}
        expected = figures_of_decisions(truth[known].astype(int), chances[known].argmax(1), scores)
    else:
        truth = (rng.integers(0, 7, n) / 6 - 0.5) * rng.integers(0, 2)
        guess = (0.1 + spread * (truth + rng.normal(size=n))).round(digits)
        if kind == "binary":
            truth, guess = (truth > 0).astype(float), np.clip(guess + 0.4, 0, 1)
        truth[rng.random(n) < missing] = np.nan
        known = np.isfinite(truth)
        found = evaluate(Target(kind, ("x",)), truth[:, None], guess[:, None])["x"]
        truth, guess = truth[known], guess[known]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of predictions that hardly differ
            if kind == "regression":
                expected = figures_of_ratings(truth, guess)
            else:
                expected = figures_of_decisions(truth.astype(int), (guess >= 0.5).astype(int), {1: guess})
    assert found == {
        name: None if value is None else pytest.approx(value, rel=1e-9, abs=1e-12) for name, value in expected.items()
    }


# ------------------------------------------------------------------------- the table


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_shown_is_measured(kind: str) -> None:
    assert set(SHOWN[kind]) <= set(METRICS[kind])


def test_an_entry_that_lacks_a_part_is_refused_at_once() -> None:
    whole = {"name": "bias", "kinds": ("regression",), "figure": len, "words": "mean error", "better": "lower"}
    Metric(**whole)
    for part in whole:
        with pytest.raises(TypeError, match=part):
            Metric(**{key: value for key, value in whole.items() if key != part})
    for part in ("name", "kinds", "words"):
        with pytest.raises(ValueError, match="needs a name, words, and kinds"):
            Metric(**whole | {part: type(whole[part])()})
    with pytest.raises(ValueError, match="kinds among regression"):
        Metric(**whole | {"kinds": ("ordinal",)})
    for wrong in ({"kinds": ("multilabel",)}, {"together": len}):
        with pytest.raises(ValueError, match="'bias': `together` belongs to the kind multilabel"):
            Metric(**whole | wrong)


def test_two_metrics_of_one_name_and_kind_are_refused() -> None:
    first = TABLE[0]
    with pytest.raises(ValueError, match="two metrics of regression are called 'pearson'"):
        by_kind((first, dataclasses.replace(first, words="another")))


def test_the_documentation_lists_every_metric() -> None:
    text = (Path(__file__).parents[3] / "docs" / "heads.md").read_text(encoding="utf-8")
    for metric in TABLE:
        labels = "ratings" if metric.kinds == ("regression",) else "classes"
        assert f"| {metric.name} | {labels} | {metric.words} | {metric.better} |" in text


def test_no_correlation_is_above_one() -> None:
    rng = np.random.default_rng(0)
    target = Target("regression", ("score",))
    for _ in range(300):
        labels = rng.normal(size=(int(rng.integers(2, 30)), 1))
        found = evaluate(target, labels, labels * rng.uniform(0.1, 3))["score"]
        assert max(found["pearson"], found["pearson2"], found["srocc"]) <= 1  # type: ignore[type-var]


def test_two_hundred_classes_take_little_memory() -> None:
    rng = np.random.default_rng(0)
    target = Target("multiclass", ("kind",), tuple(map(str, range(200))))
    labels = rng.integers(0, 200, (400, 1)).astype(float)
    tracemalloc.start()
    evaluate(target, labels, rng.random((400, 200)))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000_000  # a cell for each pair of a class and one that it is taken for, for each image: 12.8 GB
