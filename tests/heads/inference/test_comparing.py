"""Comparing runs: planted differences are found, others are not, and what cannot be compared is refused in words."""

import dataclasses
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.errors import RunError
from heads.inference.comparing import Comparison, Row, compare
from heads.inference.intervals import holm
from heads.inference.metrics import evaluate
from heads.labels.target import Target
from heads.runs.predictions import to_table
from heads.runs.run import Run, RunConfig

WriteRun = Callable[..., Run]
RATINGS = Target("regression", ("appeal", "calm"))
N = 120


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """A run folder with what a comparison reads: its configuration, folds and predictions."""

    def write(
        name: str,
        labels: np.ndarray,
        predicted: np.ndarray,
        *,
        target: Target = RATINGS,
        groups: Sequence[str] | None = None,
        folds: Sequence[str] | None = None,
        paths: Sequence[str] | None = None,
        sha256: Sequence[str] = ("abc",),
        scales: tuple[tuple[float, float], ...] = ((1, 7), (1, 7)),
        digest: str = "d",
    ) -> Run:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        n = len(labels)
        paths = list(paths or [f"{i}.jpg" for i in range(n)])
        folds = list(folds or [str(i % 5) for i in range(n)])
        config = RunConfig(
            system="ridge",
            options={},
            target=target,
            scales=scales[: len(target.tasks)],
            n_images=n,
            split="5 folds",
            parts=tuple("01234"),
            n_repeats=len(predicted),
            seed=0,
            group=None,
            labels={"files": [f"{name}.csv"], "sha256": list(sha256)},
            store="features.zarr",
            tensors=(),
            augmented=(),
            photos=None,
            versions={},
            command="heads train ridge",
            started="2026-01-01",
            elapsed_s=1.0,
            device="cpu",
            precision="float32",
        )
        (folder / "config.json").write_text(json.dumps(dataclasses.asdict(config)))
        table = pd.DataFrame({"path": paths, "group": groups or paths, "fold": folds, "digest": digest})
        table.to_csv(folder / "folds.csv", index=False)
        outcomes = to_table(target, labels, predicted, folds=folds, paths=paths)
        outcomes.to_csv(folder / "predictions.csv", index=False, float_format="%.6g")
        return Run(folder)

    return write


def ratings(seed: int = 0, n: int = N) -> np.ndarray:
    return np.random.default_rng(seed).uniform(1, 7, (n, 2))


def guesses(labels: np.ndarray, noise: Sequence[float], seed: int, n_repeats: int = 2) -> np.ndarray:
    """Ratings with errors of which half are the same for every seed: hard images are hard for all."""
    shared = np.random.default_rng(99).normal(size=labels.shape)
    own = np.random.default_rng(seed).normal(size=(n_repeats, *labels.shape))
    return labels + (shared + own) * np.array(noise)


def rows_of(found: Comparison, run: str) -> dict[str, Row]:
    return {row.task: row for row in found.rows if row.run == run}


def test_a_planted_difference_is_found_in_its_task_alone(write_run: WriteRun) -> None:
    labels = ratings()
    first = write_run("first", labels, guesses(labels, [2, 2], seed=1))
    better = write_run("better", labels, guesses(labels, [1, 2], seed=2))
    found = compare([first, better])
    assert (found.metric, found.n_images, found.n_groups, found.notes) == ("pearson", N, None, ())
    assert [(row.task, row.run) for row in found.rows] == [
        ("appeal", "first"),
        ("appeal", "better"),
        ("calm", "first"),
        ("calm", "better"),
    ]
    rows = rows_of(found, "better")
    assert rows["appeal"].real is True
    assert rows["appeal"].p_adjusted < 0.01
    assert rows["appeal"].difference > 0.1
    assert 0 < rows["appeal"].difference_low < rows["appeal"].difference < rows["appeal"].difference_high
    assert rows["calm"].real is False
    assert rows["calm"].difference_low < 0 < rows["calm"].difference_high
    assert json.dumps(dataclasses.asdict(found), allow_nan=False)
    assert compare([first, better]) == found


def test_values_are_those_of_the_metrics(write_run: WriteRun) -> None:
    labels = ratings()
    predicted = [guesses(labels, [1, 2], seed) for seed in (1, 2)]
    runs = [write_run(f"run{i}", labels, each) for i, each in enumerate(predicted)]
    for metric in ("rmse", "srocc"):
        found = compare(runs, metric=metric, n_resamples=200)
        values = [
            np.mean([evaluate(RATINGS, (labels - 4) / 6, (r - 4) / 6)["calm"][metric] for r in each])
            for each in predicted
        ]
        for i in range(2):
            row = rows_of(found, f"run{i}")["calm"]
            assert row.value == pytest.approx(values[i], abs=1e-4)
            assert row.low < row.value < row.high
        assert rows_of(found, "run1")["calm"].difference == pytest.approx(values[1] - values[0], abs=1e-4)
        assert rows_of(found, "run0")["calm"].difference is None


def test_two_heads_as_good_as_each_other_seldom_differ(write_run: WriteRun) -> None:
    """Of 25 pairs, each of two tasks, a real difference in 5 % is to be expected."""
    n_real = 0
    for i in range(25):
        labels = ratings(i, 60)
        rng = np.random.default_rng(i)
        runs = [write_run(f"{i}/{name}", labels, labels + rng.normal(size=(1, 60, 2)) * 2) for name in "ab"]
        n_real += any(row.real for row in compare(runs, n_resamples=300).rows)
    assert n_real <= 4


def test_a_run_does_not_differ_from_itself(write_run: WriteRun) -> None:
    labels = ratings()
    runs = [write_run(name, labels, guesses(labels, [1, 1], seed=1)) for name in ("a/run", "b/run")]
    found = compare(runs, n_resamples=100)
    assert [row.run for row in found.rows[:2]] == [str(run.folder) for run in runs]  # both are called `run`
    for row in found.rows[1::2]:
        assert (row.difference, row.difference_low, row.difference_high) == (0, 0, 0)
        assert (row.p, row.p_adjusted, row.real) == (1, 1, False)


def test_pairing_finds_what_two_intervals_beside_each_other_hide(write_run: WriteRun) -> None:
    labels = ratings()
    first = guesses(labels, [2, 2], seed=1)
    second = first + 0.25 * (labels - first)  # a quarter of every error mended
    found = compare([write_run("first", labels, first), write_run("second", labels, second)])
    for before, after in zip(found.rows[::2], found.rows[1::2], strict=True):
        assert before.high > after.low
        assert after.real


def test_whole_groups_are_resampled(write_run: WriteRun) -> None:
    """Six groups, two of which a head errs on as wholes: single images would be far too sure of the difference."""
    labels = ratings()
    groups = [f"trip {i // 20}" for i in range(N)]
    level = np.repeat([3, 0, 0, 3, 0, 0], 20)[:, None]
    runs = [
        (name, labels + np.random.default_rng(3).normal(size=(1, N, 2)) + shift)
        for name, shift in (("first", 0), ("second", level))
    ]
    alone = compare([write_run(f"alone/{name}", labels, each) for name, each in runs], metric="rmse")
    together = compare([write_run(name, labels, each, groups=groups) for name, each in runs], metric="rmse")
    assert (alone.n_groups, together.n_groups) == (None, 6)
    for one, other in zip(alone.rows[1::2], together.rows[1::2], strict=True):
        assert other.difference == pytest.approx(one.difference)
        assert other.difference_high - other.difference_low > 1.5 * (one.difference_high - one.difference_low)


def test_what_is_not_quite_alike_is_said(write_run: WriteRun) -> None:
    labels = ratings()
    predicted = guesses(labels, [1, 1], seed=1)
    first = write_run("first", labels, predicted)
    second = write_run(
        "second",
        labels[:100, :1],
        predicted[:, :100, :1],
        target=RATINGS.only(0),
        folds=["0"] * 50 + ["1"] * 50,
        groups=[str(i // 2) for i in range(100)],
        scales=((0, 10),),
        digest="other",
    )
    found = compare([first, second], n_resamples=100)
    assert ([row.task for row in found.rows], found.n_images, found.n_groups) == (["appeal"] * 2, 100, 50)
    assert found.notes == (
        "images tested: first 120, second 100; compared on the 100 that all have tested",
        "not in every run, left out: calm of first",
        "second has other folds than first, which is part of the difference; --split first gives it the same "
        "(80 of 100 images)",
        "second has other groups than first; the larger groups are resampled (100 of 100 images)",
        "second saw other photos under the same paths than first (100 of 100 images)",
        "second has other scales than first; the scales of first are used",
    )
    assert found.rows[1].difference == pytest.approx(0, abs=1e-9)  # the same predictions, whatever the scale


@pytest.mark.parametrize("kind", ["binary", "multiclass", "multilabel"])
def test_kinds_other_than_ratings(write_run: WriteRun, kind: str) -> None:
    rng = np.random.default_rng(0)
    if kind == "multiclass":
        target = Target(kind, ("mood",), ("awe", "fear", "joy"))
        labels = rng.integers(0, 3, (N, 1)).astype(float)
        chance = rng.dirichlet(np.ones(3), (1, N))
        good = chance / 2 + np.eye(3)[labels[:, 0].astype(int)] / 2
    else:
        target = Target(kind, ("x", "y"))
        labels = rng.integers(0, 2, (N, 2)).astype(float)
        chance = rng.random((1, N, 2))
        good = chance * 0.6 + labels * 0.4
    scales = ((0, 1),) * 2
    runs = [
        write_run(name, labels, each, target=target, scales=scales)
        for name, each in (("chance", chance), ("good", good))
    ]
    found = compare(runs, n_resamples=200)
    assert found.metric == "f1"
    assert [row.task for row in found.rows[::2]] == [*target.tasks, *(["all"] if kind == "multilabel" else [])]
    for row in found.rows[1::2]:
        assert row.real
        assert row.difference > 0.1


def test_images_may_come_in_any_order(write_run: WriteRun) -> None:
    labels = ratings()
    predicted = guesses(labels, [1, 1], seed=1)
    order = np.random.default_rng(0).permutation(N)
    names, folds = [f"{i}.jpg" for i in order], [str(i % 5) for i in order]
    runs = [
        write_run("first", labels, predicted),
        write_run("second", labels[order], predicted[:, order], paths=names, folds=folds),
    ]
    found = compare(runs, n_resamples=100)
    assert (found.rows[1].difference, found.notes) == (pytest.approx(0, abs=1e-9), ())


def test_an_undefined_metric_is_none(write_run: WriteRun) -> None:
    labels = ratings()
    constant = np.full((1, N, 2), 4.0)
    found = compare([write_run("a", labels, guesses(labels, [1, 1], 1)), write_run("b", labels, constant)])
    assert rows_of(found, "b")["calm"] == Row("calm", "b", None, None, None)


def test_another_label_table_with_the_same_labels_is_said_and_compared(write_run: WriteRun) -> None:
    labels = ratings()
    predicted = guesses(labels, [1, 1], seed=1)
    found = compare([write_run("a", labels, predicted), write_run("b", labels, predicted, sha256=["xyz"])])
    assert "b was trained with another label table than a; the labels compared are the same" in found.notes
    assert all(row.difference == 0 for row in found.rows if row.run == "b")


def test_runs_that_cannot_be_compared(write_run: WriteRun) -> None:
    labels = ratings()
    predicted = guesses(labels, [1, 1], seed=1)
    first = write_run("first", labels, predicted)
    with pytest.raises(RunError, match="1 runs: at least two are needed"):
        compare([first])
    with pytest.raises(RunError, match="regression has no metric 'pearsn'; did you mean 'pearson'"):
        compare([first, first], metric="pearsn")
    other = write_run("tables", labels + 0.1, predicted, sha256=["xyz"])
    with pytest.raises(RunError, match=r"first and tables have other labels of 'appeal' for '0\.jpg', and of 239 more"):
        compare([first, other])
    yes = Target("binary", ("appeal", "calm"))
    other = write_run("kinds", (labels > 4).astype(float), predicted / 10, target=yes)
    with pytest.raises(RunError, match=r"first learned regression labels and .*kinds binary"):
        compare([first, other])
    other = write_run("tasks", labels, predicted, target=Target("regression", ("x", "y")))
    with pytest.raises(RunError, match=r"no task in common: .*first: appeal, calm; .*tasks: x, y"):
        compare([first, other])
    other = write_run("images", labels, predicted, paths=[f"new/{i}.jpg" for i in range(N)])
    with pytest.raises(RunError, match=r"no image was tested by every run \(first 120, images 120\); train them with"):
        compare([first, other])
    median = np.where(np.arange(N)[:, None] == 7, 1, labels)
    other = write_run("aggregates", median, predicted)
    with pytest.raises(
        RunError, match=r"first and aggregates have other labels of 'appeal' for '7\.jpg', and of 1 more; .*--aggregate"
    ):
        compare([first, other])


def test_classes_have_to_be_the_same(write_run: WriteRun) -> None:
    runs = [
        write_run(
            "-".join(classes),
            np.zeros((4, 1)),
            np.full((1, 4, 2), 0.5),
            target=Target("multiclass", ("mood",), classes),
        )
        for classes in (("awe", "joy"), ("awe", "fear"))
    ]
    with pytest.raises(RunError, match="have other classes: awe, joy; awe, fear"):
        compare(runs)


@given(values=st.lists(st.floats(0, 1) | st.none(), max_size=8))
def test_holms_adjustment_is_its_definition(values: list[float | None]) -> None:
    """The largest, over the p-values that are no larger, of each times how many are at least as large."""
    found = holm(values)
    known = sorted(value for value in values if value is not None)
    for value, adjusted in zip(values, found, strict=True):
        if value is None:
            assert adjusted is None
        else:
            steps = [p * (len(known) - i) for i, p in enumerate(known) if p <= value]
            assert adjusted == pytest.approx(min(1, max(steps[: known.index(value) + 1])))
