"""The bootstrap: figures of weighted images are those of resamples written out, and intervals cover the truth.

And the summary of a run: metrics with their spread over the repeats and their intervals.
"""

import json
import time

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from heads.inference.intervals import draw_weights, interval, resampled, summarise
from heads.inference.metrics import METRICS, evaluate, tasks_of
from heads.labels.target import KINDS, Target

seeds = st.integers(0, 2**32 - 1)


def population(kind: str, rng: np.random.Generator, n: int, n_repeats: int) -> tuple[Target, np.ndarray, np.ndarray]:
    """Labels and predictions with ties, some labels missing and some images not tested."""
    if kind == "multiclass":
        target = Target("multiclass", ("mood",), ("awe", "fear", "joy"))
        truth, predicted = rng.integers(0, 3, (n, 1)).astype(float), rng.dirichlet(np.ones(3), (n_repeats, n)).round(1)
    else:
        target = Target(kind, ("x", "y"))
        truth = rng.integers(0, 7, (n, 2)) / 6 - 0.5
        predicted = (truth + rng.normal(size=(n_repeats, n, 2)) / 2).round(1)
        if kind != "regression":
            truth, predicted = (truth > 0).astype(float), np.clip(predicted + 0.5, 0, 1)
    truth[rng.random(truth.shape) < 0.1] = np.nan
    predicted[rng.random((n_repeats, n)) < 0.1] = np.nan
    return target, truth, predicted


@pytest.mark.parametrize("kind", KINDS)
@settings(deadline=None, max_examples=6)
@given(seed=seeds, n=st.integers(2, 25), n_repeats=st.integers(1, 3))
@example(seed=1, n=20, n_repeats=2)
@example(seed=2, n=5, n_repeats=3)
def test_figures_are_those_of_the_resample_written_out(kind: str, seed: int, n: int, n_repeats: int) -> None:
    """Of rows repeated as often as the weights say, averaged over the repeats."""
    rng = np.random.default_rng(seed)
    target, truth, predicted = population(kind, rng, n, n_repeats)
    (weights,) = draw_weights(n, None, n_resamples=4, seed=seed)
    found = resampled(target, truth, predicted, [weights])
    for s, counts in enumerate(weights.astype(int)):
        rows = np.repeat(np.arange(n), counts)
        figures = [evaluate(target, truth[rows], each[rows]) for each in predicted]
        for task in tasks_of(target):
            for metric in METRICS[kind]:
                values = [each[task][metric] for each in figures]
                expected = np.nan if None in values else np.mean(values)
                assert found[task][metric][s] == pytest.approx(expected, abs=1e-9, nan_ok=True), (task, metric)


@settings(deadline=None, max_examples=30)
@given(seed=seeds, sizes=st.lists(st.integers(1, 4), min_size=2, max_size=6))
def test_groups_are_drawn_whole_and_as_many_as_there_are(seed: int, sizes: list[int]) -> None:
    groups = [f"g{i}" for i, size in enumerate(sizes) for _ in range(size)]
    order = np.random.default_rng(seed).permutation(len(groups))
    groups = [groups[i] for i in order]
    (weights,) = draw_weights(len(groups), groups, n_resamples=20, seed=seed)
    columns = {name: weights[:, [i for i, g in enumerate(groups) if g == name]] for name in set(groups)}
    for column in columns.values():
        assert (column == column[:, :1]).all()
    assert (sum(column[:, 0] for column in columns.values()) == len(sizes)).all()


def test_resamples_come_in_blocks_and_every_image_as_often_as_any() -> None:
    blocks = list(draw_weights(30_000, None, n_resamples=7, seed=0))
    assert len(blocks) > 1
    weights = np.concatenate(blocks)
    assert weights.shape == (7, 30_000)
    assert (weights.sum(1) == 30_000).all()
    assert np.concatenate(list(draw_weights(50, None, n_resamples=4000, seed=0))).mean(0) == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("groups", [["a", "a", "a"], None])
def test_a_single_unit_cannot_be_resampled(groups: list[str] | None) -> None:
    n = 3 if groups else 1
    target = Target("regression", ("x",))
    labels, predicted = np.linspace(-0.5, 0.5, n)[:, None], np.zeros((1, n, 1))
    found = resampled(target, labels, predicted, draw_weights(n, groups, n_resamples=10, seed=0))
    assert all(np.isnan(values).all() for values in found["x"].values())
    assert interval(found["x"]["rmse"]) == (None, None)


def test_intervals_leave_out_resamples_without_the_metric_unless_they_are_most() -> None:
    values = np.arange(1001.0)
    assert interval(values) == pytest.approx((25, 975))
    assert interval(np.append(values, [np.nan] * 900)) == pytest.approx((25, 975))
    assert interval(np.append(values, [np.nan] * 1001)) == (None, None)


@pytest.mark.parametrize(
    ("metric", "kind"), [("pearson", "regression"), ("rmse", "regression"), ("accuracy", "binary")]
)
def test_intervals_cover_the_truth_about_as_often_as_they_say(metric: str, kind: str) -> None:
    """Of samples of 80 images from a known population, nearly 95 % have an interval around its true figure.

    A thousand samples gave 93 % for pearson, 92 % for rmse and 96 % for accuracy: percentile intervals of few images
    are a little short. The bounds are those figures and three standard errors of 400 samples.
    """
    rng = np.random.default_rng(7)
    n, n_samples = 80, 400
    signal = rng.normal(size=(n_samples, n))
    guess = signal + rng.normal(size=(n_samples, n))  # correlation 1 / sqrt 2, error 1, right in 3 of 4 cases
    true = {"pearson": np.sqrt(0.5), "rmse": 1.0, "accuracy": 0.75}[metric]
    target = Target(kind, ("x",))
    covered = 0
    for s, g in zip(signal, guess, strict=True):
        labels, predicted = (s, g) if kind == "regression" else (s > 0, g > 0)
        weights = draw_weights(n, None, n_resamples=200, seed=1)
        found = resampled(target, labels[:, None].astype(float), predicted[None, :, None].astype(float), weights)
        low, high = interval(found["x"][metric])
        covered += low <= true <= high
    assert 0.88 <= covered / n_samples <= 0.99


def test_intervals_of_groups_cover_the_truth_where_those_of_images_do_not() -> None:
    """Twenty groups of eight images that share an error: images alone are far too sure of themselves."""
    rng = np.random.default_rng(3)
    groups = [str(i // 8) for i in range(160)]
    target = Target("regression", ("x",))
    covered = {"groups": 0, "images": 0}
    for _ in range(100):
        error = np.repeat(rng.choice([0.1, 0.3], 20), 8)
        labels = rng.uniform(-0.5, 0.5, 160)
        for name, units in (("groups", groups), ("images", None)):
            weights = draw_weights(160, units, n_resamples=200, seed=1)
            found = resampled(target, labels[:, None], (labels + error)[None, :, None], weights)
            low, high = interval(found["x"]["rmse"])
            covered[name] += low <= np.sqrt((0.01 + 0.09) / 2) <= high
    assert covered["groups"] >= 85
    assert covered["images"] <= 65


# ------------------------------------------------------------------------- the summary of a run


def some_outcomes(
    kind: str, n: int = 60, n_repeats: int = 3, n_tasks: int = 2
) -> tuple[Target, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    if kind == "multiclass":
        truth = rng.integers(0, 3, (n, 1)).astype(float)
        return (
            Target("multiclass", ("mood",), ("awe", "fear", "joy")),
            truth,
            rng.dirichlet(np.ones(3), (n_repeats, n)) * 0.7 + np.eye(3)[truth[:, 0].astype(int)] * 0.3,
        )
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


def test_levels_of_folds_that_say_nothing_of_an_image_have_no_correlation() -> None:
    """Pooled over the folds they would have one, and a negative one."""
    rng = np.random.default_rng(0)
    target, labels = Target("regression", ("x",)), rng.uniform(-0.5, 0.5, (100, 1))
    folds = np.stack([rng.permutation(100) % 5 for _ in range(3)])
    levels = np.array([[labels[of != fold].mean(0) for fold in of] for of in folds])
    found = summarise(target, labels, levels, groups=None, folds=folds, n_resamples=50)["x"]
    assert found["pearson"]["mean"] is None
    assert found["pearson_pooled"]["mean"] < -0.05
