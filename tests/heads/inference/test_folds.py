"""What folds say of a method: figures and intervals are those of formulas written out, and noise reads as noise."""

import warnings
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr, t
from sklearn.metrics import accuracy_score, balanced_accuracy_score, f1_score, r2_score, root_mean_squared_error

from heads.inference.folds import (
    LEAST_FOLD,
    NOT_TESTED,
    SHARED_BY_FIGURES,
    FoldFigures,
    by_fold,
    canonical,
    distinct,
    shared_by_differences,
)
from heads.inference.intervals import summarise
from heads.inference.metrics import METRICS
from heads.labels.target import Target

ONE = Target("regression", ("x",))
YES = Target("binary", ("x",))
seeds = st.integers(0, 2**32 - 1)


def redrawn(n: int, n_folds: int, n_repeats: int, rng: np.random.Generator) -> np.ndarray:
    """(R, N) folds whose sizes differ by one at most."""
    return np.stack([rng.permutation(np.arange(n) % n_folds) for _ in range(n_repeats)])


def world(rng: np.random.Generator, n: int, n_repeats: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Ratings (N, 1) and what R repeats predict of them (R, N, 1), all with the same skill."""
    labels = rng.normal(size=(n, 1)) / 5
    shared = rng.normal(size=(n, 1)) / 5
    return labels, labels + noise * (shared + rng.normal(size=(n_repeats, n, 1)) / 10)


def figures(
    labels: np.ndarray, predicted: np.ndarray, folds: np.ndarray, metric: str, target: Target = ONE, **others: int
) -> FoldFigures | None:
    facts = {"n_units": len(labels), **others}
    return by_fold(target, labels, predicted, folds, names=[metric], **facts)["x"][metric]


def found_of(*arguments: object, **others: object) -> FoldFigures:
    found = figures(*arguments, **others)  # type: ignore[arg-type]
    assert found is not None
    return found


def ends(values: np.ndarray, weights: np.ndarray, overlap: float, shared: float, freedom: float) -> tuple[float, float]:
    """Mean and half width: S2 * (sum of squared weights + shared * test / train) and Student's t."""
    mean = (weights * values).sum()
    variance = (weights * (values - mean) ** 2).sum() / (1 - (weights**2).sum())
    error = np.sqrt(variance * ((weights**2).sum() + shared * overlap))
    return float(mean), float(t.ppf(0.975, freedom) * error)


# ------------------------------------------------------------------------------------------ correlations


@pytest.mark.parametrize("metric", ["pearson", "plcc", "srocc"])
@settings(deadline=None, max_examples=20)
@given(seed=seeds, n_folds=st.integers(2, 6), n_repeats=st.integers(1, 4), size=st.integers(5, 12))
def test_correlations_are_averaged_over_equal_folds_by_fishers_z(
    metric: str, seed: int, n_folds: int, n_repeats: int, size: int
) -> None:
    """With the corrected variance: 1 / J for the J folds, and test / train for the photos that they share."""
    rng = np.random.default_rng(seed)
    n = n_folds * size
    labels, predicted = world(rng, n, n_repeats)
    folds = redrawn(n, n_folds, n_repeats, rng)
    assume(len(distinct(folds)) == n_repeats)
    correlate = spearmanr if metric == "srocc" else pearsonr
    z = np.arctanh([
        np.clip(correlate(labels[fold == k, 0], said[fold == k, 0]).statistic, -1 + 1e-9, 1 - 1e-9)
        for fold, said in zip(folds, predicted, strict=True) for k in range(n_folds)
    ])  # fmt: skip
    n_units = n // 2
    freedom = 1 / (1 / (n_repeats * (n_folds - 1)) + 1 / (n_units - 1))
    error = np.sqrt(z.var(ddof=1) * (1 / len(z) + 1.75 / (n_folds - 1)))
    half = t.ppf(0.975, freedom) * error
    value, low, high, p = found_of(labels, predicted, folds, metric, n_units=n_units).interval()
    assert SHARED_BY_FIGURES == 1.75
    assert value == pytest.approx(np.tanh(z.mean()))
    assert (low, high) == pytest.approx((np.tanh(z.mean() - half), np.tanh(z.mean() + half)))
    assert p == pytest.approx(2 * t.sf(abs(z.mean()) / error, freedom))


def test_a_fold_counts_by_its_photos_less_three_and_those_without_a_label_are_none() -> None:
    rng = np.random.default_rng(3)
    sizes, freedom = [30, 12, 8], 1 / (1 / 2 + 1 / 199)
    labels, predicted = world(rng, 60, 1)
    folds = np.repeat([0, 1, 2], 20)[None]
    for fold, size in enumerate(sizes):  # photos without a label are not there; fold 0 has 20, as it has no more
        labels[np.flatnonzero(folds[0] == fold)[size:]] = np.nan
    known, counts = np.isfinite(labels[:, 0]), np.array([20, 12, 8])
    z = np.array([
        np.arctanh(pearsonr(labels[known & (folds[0] == k), 0], predicted[0, known & (folds[0] == k), 0]).statistic)
        for k in range(3)
    ])  # fmt: skip
    weights = (counts - 3) / (counts - 3).sum()
    overlap = float((counts / 40 * counts / (40 - counts)).sum())
    mean, half = ends(z, weights, overlap, 1.75, freedom)
    found = found_of(labels, predicted, folds, "pearson", n_units=200).interval()
    assert found[:3] == pytest.approx((np.tanh(mean), np.tanh(mean - half), np.tanh(mean + half)))


def test_photos_in_groups_are_fewer_units_and_know_less() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = world(rng, 100, 10)
    folds = redrawn(100, 5, 10, rng)
    many, few = (found_of(labels, predicted, folds, "pearson", n_units=n) for n in (100, 10))
    assert few.value == many.value
    assert few.freedom == pytest.approx(1 / (1 / 40 + 1 / 9))
    assert few.interval().low < many.interval().low < many.value < many.interval().high < few.interval().high


def test_repeats_in_the_same_folds_count_once() -> None:
    """Whatever their folds are called: their figures are averaged, and make nothing surer of another sample."""
    rng = np.random.default_rng(0)
    labels, predicted = world(rng, 60, 4)
    one = redrawn(60, 5, 1, rng)[0]
    renamed = (one + 2) % 5
    found = found_of(labels, predicted, np.stack([one, renamed, one, one]), "pearson")
    each = [found_of(labels, predicted[r : r + 1], one[None], "pearson") for r in range(4)]
    assert len(found.values) == 5
    order = {fold: place for place, fold in enumerate(dict.fromkeys(one.tolist()))}
    assert sorted(found.values) == pytest.approx(sorted(np.mean([other.values for other in each], axis=0)))
    assert found.freedom == each[0].freedom
    assert canonical(one).tolist() == canonical(renamed).tolist() == [order[fold] for fold in one]
    assert [repeats for _, repeats in distinct(np.stack([one, redrawn(60, 5, 1, rng)[0], renamed]))] == [[0, 2], [1]]


@given(codes=st.lists(st.integers(NOT_TESTED, 4), min_size=1, max_size=12))
def test_numbers_of_folds_are_by_their_first_photo_and_what_is_not_tested_stays_so(codes: list[int]) -> None:
    found = canonical(np.array(codes))
    seen = [code for code in dict.fromkeys(codes) if code != NOT_TESTED]
    assert found.tolist() == [seen.index(code) if code != NOT_TESTED else NOT_TESTED for code in codes]


@pytest.mark.parametrize("size", [2, 3])
def test_folds_of_two_or_three_photos_say_nothing_of_a_correlation(size: int) -> None:
    """Two points always lie on a line. Other metrics are of all photos, and have no such limit."""
    rng = np.random.default_rng(0)
    n = 10 * size
    assert size < LEAST_FOLD
    labels, predicted = world(rng, n, 2)
    folds = redrawn(n, 10, 2, rng)
    assert figures(labels, predicted, folds, "pearson") is None
    error = found_of(labels, predicted, folds, "rmse")
    assert error.value == pytest.approx(np.mean([root_mean_squared_error(labels, each) for each in predicted]))
    assert error.interval().low < error.value < error.interval().high
    about = summarise(ONE, labels, predicted, groups=None, folds=folds, n_resamples=50)["x"]["pearson"]
    assert about["mean"] == pytest.approx(np.mean([pearsonr(labels[:, 0], each[:, 0]).statistic for each in predicted]))


def test_a_single_fold_says_nothing_of_another_sample() -> None:
    labels, predicted = world(np.random.default_rng(0), 40, 3)
    held = np.tile(np.repeat([0, NOT_TESTED], 20), (3, 1))
    predicted[:, 20:] = np.nan
    assert all(each is None for each in by_fold(
        ONE, labels, predicted, held, n_units=40, names=METRICS["regression"])["x"].values())  # fmt: skip


def test_what_never_varies_has_no_correlation_and_what_does_not_in_one_fold_has_none_there() -> None:
    rng = np.random.default_rng(0)
    labels, predicted = world(rng, 50, 1)
    folds = redrawn(50, 5, 1, rng)
    constant = np.full_like(predicted, 0.2)
    assert figures(labels, constant, folds, "pearson") is None
    assert figures(np.full_like(labels, 0.1), predicted, folds, "pearson") is None
    whole = found_of(labels, predicted, folds, "pearson")
    partly = predicted.copy()
    partly[:, folds[0] == 2] = 0.2  # says the same of all photos of a fold: it knows nothing of what is apart in it
    found = found_of(labels, partly, folds, "pearson")
    assert (found.values == 0).sum() == 1
    assert found.value < whole.value
    flat = labels.copy()
    flat[folds[0] == 2] = 0.1  # labels that do not vary have nothing to be known: the fold does not count
    assert len(found_of(flat, predicted, folds, "pearson").values) == 4


# ------------------------------------------------------------------------------------------ figures of all photos


OF_RATINGS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "r2": r2_score,
    "rmse": root_mean_squared_error,
    "pearson_pooled": lambda a, b: pearsonr(a, b).statistic,
    "srocc_pooled": lambda a, b: spearmanr(a, b).statistic,
    "accuracy": lambda a, b: accuracy_score(a >= 0, b >= 0),
}
OF_CLASSES: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda a, b: accuracy_score(a, b >= 0.5),
    "f1": lambda a, b: f1_score(a, b >= 0.5, average="weighted", zero_division=0),
    "balanced_accuracy": lambda a, b: balanced_accuracy_score(a, b >= 0.5),
}


@settings(deadline=None, max_examples=20)
@given(seed=seeds, n=st.integers(20, 60), n_folds=st.integers(2, 6), n_repeats=st.integers(1, 3), binary=st.booleans())
def test_other_metrics_are_scikit_learns_of_each_repeat_averaged(
    seed: int, n: int, n_folds: int, n_repeats: int, binary: bool
) -> None:
    """Of all photos that a repeat has tested, also where labels are missing and folds are of several sizes."""
    rng = np.random.default_rng(seed)
    labels, predicted = world(rng, n, n_repeats)
    if binary:
        labels, predicted = (labels > 0).astype(float), np.clip(predicted + 0.5, 0, 1)
    labels[rng.random(n) < 0.1] = np.nan
    known = np.isfinite(labels[:, 0])
    folds = rng.integers(0, n_folds, (n_repeats, n))
    assume(all(len(set(fold[known])) == n_folds for fold in folds))
    assume(len(set(labels[known, 0])) > 1)
    for metric, figure in (OF_CLASSES if binary else OF_RATINGS).items():
        found = figures(labels, predicted, folds, metric, YES if binary else ONE)
        values = [figure(labels[known, 0], each[known, 0]) for each in predicted]
        if len(distinct(folds)) == n_repeats:
            assert found is not None
            assert found.value == pytest.approx(np.mean(values), abs=1e-6), metric


def test_a_folds_part_in_accuracy_is_its_own_accuracy() -> None:
    """A share is a mean over photos, so that its derivative by the weight of a fold is the share of the fold."""
    rng = np.random.default_rng(1)
    labels, chances = (rng.random((90, 1)) > 0.4).astype(float), rng.random((2, 90, 1))
    labels[::13] = np.nan
    known = np.isfinite(labels[:, 0])
    folds = np.stack([rng.permutation(np.repeat([0, 1, 2], [40, 30, 20])) for _ in range(2)])
    found = found_of(labels, chances, folds, "accuracy", YES)
    right = labels[:, 0] == (chances[:, :, 0] >= 0.5)
    shares = [right[r, known & (folds[r] == k)].mean() for r in range(2) for k in range(3)]
    counts = np.array([(known & (folds[r] == k)).sum() for r in range(2) for k in range(3)])
    parts = sorted(zip(found.values, found.weights, strict=True))  # folds come as their first photos do
    assert np.array(parts) == pytest.approx(np.array(sorted(zip(shares, counts / counts.sum(), strict=True))), abs=1e-6)
    assert found.freedom == pytest.approx(1 / (1 / 4 + 1 / 89))


def test_a_folds_part_in_an_error_is_that_of_the_delta_method() -> None:
    rng = np.random.default_rng(2)
    labels, predicted = world(rng, 80, 1)
    folds = np.repeat([0, 1, 2, 3], [35, 20, 15, 10])[None]
    squares = (labels[:, 0] - predicted[0, :, 0]) ** 2
    of_fold = np.array([squares[folds[0] == k].mean() for k in range(4)])
    rmse = np.sqrt(squares.mean())
    found = found_of(labels, predicted, folds, "rmse")
    assert found.values == pytest.approx(rmse + (of_fold - squares.mean()) / (2 * rmse), abs=1e-6)
    deviations = (labels[:, 0] - labels.mean()) ** 2
    variance, r2 = deviations.mean(), 1 - squares.mean() / deviations.mean()
    spread = np.array([deviations[folds[0] == k].mean() for k in range(4)])
    slope = -(of_fold - squares.mean()) / variance + squares.mean() / variance**2 * (spread - variance)
    assert found_of(labels, predicted, folds, "r2").values == pytest.approx(r2 + slope, abs=1e-5)
    counts = np.array([35, 20, 15, 10])
    overlap = float((counts / 80 * counts / (80 - counts)).sum())
    mean, half = ends(found.values, counts / 80, overlap, 1.75, found.freedom)
    assert mean == pytest.approx(rmse)
    # An error cannot fall below 0: the interval is that of its logarithm.
    assert found.interval()[1:3] == pytest.approx((rmse * np.exp(-half / rmse), rmse * np.exp(half / rmse)), rel=1e-5)


@settings(deadline=None, max_examples=30)
@given(
    seed=seeds,
    n=st.integers(6, 40),
    n_folds=st.integers(2, 5),
    n_repeats=st.integers(1, 3),
    kind=st.sampled_from(["regression", "binary", "multilabel", "multiclass"]),
)
def test_whatever_the_folds_an_interval_holds_its_figure_and_its_bounds(
    seed: int, n: int, n_folds: int, n_repeats: int, kind: str
) -> None:
    rng = np.random.default_rng(seed)
    tasks = ("x",) if kind == "multiclass" else ("x", "y")
    target = Target(kind, tasks, ("a", "b", "c") if kind == "multiclass" else ())
    labels = rng.integers(0, 3 if kind == "multiclass" else 2, (n, len(tasks))).astype(float)
    if kind == "regression":
        labels += rng.normal(size=labels.shape) / 10
    predicted = rng.random((n_repeats, n, target.n_outputs)).round(int(rng.integers(0, 3)))
    labels[rng.random(labels.shape) < 0.15] = np.nan
    folds = rng.integers(0, n_folds, (n_repeats, n))
    for by_metric in by_fold(target, labels, predicted, folds, n_units=n, names=METRICS[kind]).values():
        for name, found in by_metric.items():
            if found is None:
                continue
            value, low, high, p = found.interval()
            assert low <= value + 1e-9, name
            assert value <= high + 1e-9, name
            assert 0 <= p <= 1
            assert found.weights.sum() == pytest.approx(1)
            if (bound := found.metric.bound) is not None:
                better = found.metric.better == "higher"
                assert (high <= bound + 1e-9) if better else (low >= bound - 1e-9)
            if found.metric.averaging is not None:
                assert -1 <= low <= high <= 1


# ------------------------------------------------------------------------------------------ differences


@pytest.mark.parametrize("metric", ["pearson", "r2", "rmse", "accuracy"])
@settings(deadline=None, max_examples=25)
@given(seed=seeds, apart=st.floats(0, 1))
def test_a_difference_is_found_exactly_if_0_lies_outside_of_its_interval(metric: str, seed: int, apart: float) -> None:
    rng = np.random.default_rng(seed)
    labels, predicted = world(rng, 60, 3)
    _, other = world(rng, 60, 3)
    worse = labels + (1 + apart) * (other - predicted.mean(0)) + apart * rng.normal(size=predicted.shape) / 10
    folds = redrawn(60, 5, 3, rng)
    first, second = (found_of(labels, each, folds, metric) for each in (predicted, worse))
    for found in (second.difference(first), second.unpaired_difference(first)):
        assert found.value == pytest.approx(second.value - first.value)
        assert (found.p < 0.05) == (not found.low <= 0 <= found.high)
        assert found.low <= found.value <= found.high
    back = first.difference(second)
    forth = second.difference(first)
    assert (back.value, back.p) == pytest.approx((-forth.value, forth.p))


def test_a_paired_difference_is_the_corrected_resampled_t_test() -> None:
    rng = np.random.default_rng(5)
    labels, predicted = world(rng, 100, 4)
    other = predicted + rng.normal(size=predicted.shape) / 10
    folds = redrawn(100, 5, 4, rng)
    first, second = (found_of(labels, each, folds, "pearson") for each in (predicted, other))
    z = second.values - first.values
    error = np.sqrt(z.var(ddof=1) * (1 / 20 + shared_by_differences(100) / 4))
    freedom = 1 / (1 / 16 + 1 / 99)
    assert shared_by_differences(100) == pytest.approx(1.65)
    assert second.difference(first).p == pytest.approx(2 * t.sf(abs(z.mean()) / error, freedom))
    assert first.difference(first) == (0, 0, 0, 1)


def test_an_unpaired_difference_is_welchs() -> None:
    """Of runs in folds of their own, of other numbers; and less sure than a paired one, as nothing is common."""
    rng = np.random.default_rng(6)
    labels, predicted = world(rng, 100, 5)
    better = labels + (predicted - labels) / 2
    folds, others = redrawn(100, 5, 5, rng), redrawn(100, 4, 3, rng)
    first = found_of(labels, predicted, folds, "pearson")
    second = found_of(labels, better[:3], others, "pearson")
    factor = shared_by_differences(100)
    variances = [
        first.values.var(ddof=1) * (1 / 25 + factor / 4),
        second.values.var(ddof=1) * (1 / 12 + factor / 3),
    ]
    freedom = sum(variances) ** 2 / sum(v**2 / each.freedom for v, each in zip(variances, (first, second), strict=True))
    apart = second.values.mean() - first.values.mean()
    found = second.unpaired_difference(first)
    assert found.p == pytest.approx(2 * t.sf(abs(apart) / np.sqrt(sum(variances)), freedom))
    assert found.value == pytest.approx(np.tanh(second.values.mean()) - np.tanh(first.values.mean()))
    same = found_of(labels, better, folds, "pearson")
    assert same.difference(first).p < same.unpaired_difference(first).p


# ------------------------------------------------------------------------------------------ no skill


def test_features_that_are_noise_have_no_correlation() -> None:
    """Models of other folds predict the means of theirs, so that pooled over folds they correlate negatively.

    A weak model predicts nearly the mean of its training photos, which is low where the photos tested are high.
    """
    rng = np.random.default_rng(0)
    n, n_features, within, pooled, squared = 120, 10, [], [], []
    for _ in range(150):
        features, labels = rng.normal(size=(n, n_features)), rng.normal(size=(n, 1)) / 5
        folds = redrawn(n, 5, 2, rng)
        predicted = np.empty((2, n, 1))
        for r, fold in enumerate(folds):
            for k in range(5):
                train, test = fold != k, fold == k
                mean, gram = labels[train].mean(), features[train].T @ features[train]
                weights = np.linalg.solve(gram + 1000 * np.eye(n_features), features[train].T @ (labels[train] - mean))
                predicted[r, test] = mean + features[test] @ weights
        found = by_fold(ONE, labels, predicted, folds, n_units=n, names=["pearson", "pearson2", "pearson_pooled"])["x"]
        within.append(found["pearson"].value)
        pooled.append(found["pearson_pooled"].value)
        squared.append(found["pearson2"].interval())
    assert abs(np.mean(within)) < 0.02
    assert np.mean(pooled) < -0.05
    assert np.mean([each.low <= 0 <= each.high for each in squared]) > 0.9  # its sign is kept: 0 is in it, not its end
    assert np.mean([each.value < 0 for each in squared]) > 0.3


def test_no_warning_reaches_anyone() -> None:
    labels, predicted = np.zeros((12, 1)), np.zeros((1, 12, 1))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        by_fold(ONE, labels, predicted, np.arange(12)[None] % 3, n_units=12, names=METRICS["regression"])


def test_a_share_is_never_below_0() -> None:
    """Two rare labels: the interval of their f1 would reach far below."""
    rng = np.random.default_rng(0)
    target = Target("multilabel", ("a", "b"))
    labels = (rng.random((200, 2)) < 0.03).astype(float)
    predicted = np.clip(labels * rng.random((3, 200, 2)) + 0.6 * (rng.random((3, 200, 2)) < 0.03), 0, 1)
    folds = np.stack([rng.permutation(200) % 5 for _ in range(3)])
    found = by_fold(target, labels, predicted, folds, n_units=200, names=["f1", "accuracy"])
    for by_metric in found.values():
        for figures in by_metric.values():
            assert figures is None or 0 <= figures.interval().low <= figures.value <= figures.interval().high <= 1
