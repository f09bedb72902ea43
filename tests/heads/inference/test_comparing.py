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
from heads.inference.folds import by_fold
from heads.inference.intervals import holm
from heads.inference.metrics import evaluate
from heads.labels.target import Target
from heads.runs.config import RunConfig
from heads.runs.predictions import to_table
from heads.runs.run import Run

WriteRun = Callable[..., Run]
RATINGS = Target("regression", ("appeal", "calm"))
N = 120
ONE_CROSS_VALIDATION = (
    "one cross-validation says little of another sample; ten with redrawn folds say more (--repeats 10)"
)

FEW_PHOTOS = "p-values of this comparison are known to be a little small below 150 photos"


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """A run folder with what a comparison reads: its configuration, folds and predictions.

    Folds are those of every repeat, or of each; five of them if none are given.
    """

    def write(
        name: str,
        labels: np.ndarray,
        predicted: np.ndarray,
        *,
        target: Target = RATINGS,
        groups: Sequence[str] | None = None,
        folds: Sequence[str] | Sequence[Sequence[str]] | None = None,
        paths: Sequence[str] | None = None,
        sha256: Sequence[str] = ("abc",),
        scales: tuple[tuple[float, float], ...] = ((1, 7), (1, 7)),
        digest: str = "d",
    ) -> Run:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        n = len(labels)
        paths = list(paths or [f"{i}.jpg" for i in range(n)])
        folds = folds or [str(i % 5) for i in range(n)]
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
            tensors=({"name": "whole", "layout": "concat", "shape": [8], "segments": [{"name": "net", "hash": "0"}]},),
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
        first, *others = [folds] if isinstance(folds[0], str) else folds
        table = pd.DataFrame({"path": paths, "group": groups or paths, "fold": first, "digest": digest})
        table = table.assign(**{f"fold_{repeat}": each for repeat, each in enumerate(others, start=1)})
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


def redrawn(n_repeats: int, n: int = N, seed: int = 0, n_folds: int = 5) -> list[list[str]]:
    """Folds of as even sizes as can be, others for each repeat."""
    rng = np.random.default_rng(seed)
    return [[str(i % n_folds) for i in rng.permutation(n)] for _ in range(n_repeats)]


def rows_of(found: Comparison, run: str) -> dict[str, Row]:
    return {row.task: row for row in found.rows if row.run == run}


def test_a_planted_difference_is_found_in_its_task_alone(write_run: WriteRun) -> None:
    labels = ratings()
    first = write_run("first", labels, guesses(labels, [2, 2], seed=1))
    better = write_run("better", labels, guesses(labels, [1, 2], seed=2))
    found = compare([first, better])
    assert (found.metric, found.n_images, found.n_groups, found.n_folds) == ("pearson", N, None, 5)
    assert (found.of, found.paired, found.n_tests) == ("method", True, 6)
    assert found.notes == (ONE_CROSS_VALIDATION, FEW_PHOTOS)
    assert [(row.task, row.run) for row in found.rows] == [
        ("appeal", "mean"),
        ("appeal", "first"),
        ("appeal", "better"),
        ("calm", "mean"),
        ("calm", "first"),
        ("calm", "better"),
    ]
    assert all(row.value is None and row.better is None for row in found.rows[::3])  # what does not vary has none
    assert all(row.better for row in found.rows if row.run != "mean")
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
    for metric in ("rmse", "srocc_pooled", "accuracy"):
        found = compare(runs, metric=metric)
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
    found = compare(runs)
    assert [row.run for row in found.rows[1:3]] == [str(run.folder) for run in runs]  # both are called `run`
    for row in found.rows[2::3]:
        assert (row.difference, row.difference_low, row.difference_high) == (0, 0, 0)
        assert (row.p, row.p_adjusted, row.real) == (1, 1, False)


def test_pairing_finds_what_two_intervals_beside_each_other_hide(write_run: WriteRun) -> None:
    labels = ratings()
    first = guesses(labels, [2, 2], seed=1)
    second = first + 0.25 * (labels - first)  # a quarter of every error mended
    found = compare([write_run("first", labels, first), write_run("second", labels, second)])
    for before, after in zip(found.rows[1::3], found.rows[2::3], strict=True):
        assert before.high > after.low
        assert after.real


def test_whole_groups_of_a_hold_out_are_resampled(write_run: WriteRun) -> None:
    """Six groups, two of which a head errs on as wholes: single images would be far too sure of the difference."""
    held = ["test"] * N
    labels = ratings()
    groups = [f"trip {i // 20}" for i in range(N)]
    level = np.repeat([3, 0, 0, 3, 0, 0], 20)[:, None]
    runs = [
        (name, labels + np.random.default_rng(3).normal(size=(1, N, 2)) + shift)
        for name, shift in (("first", 0), ("second", level))
    ]
    alone = compare([write_run(f"alone/{name}", labels, each, folds=held) for name, each in runs], metric="rmse")
    together = compare([write_run(name, labels, each, folds=held, groups=groups) for name, each in runs], metric="rmse")
    assert (alone.n_groups, together.n_groups) == (None, 6)
    assert (alone.of, together.of) == ("models", "models")
    assert "by a paired bootstrap over images or whole groups" in repr(together)
    for one, other in zip(alone.rows[2::3], together.rows[2::3], strict=True):
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
        groups=[str(i // 2) for i in range(100)],
        scales=((0, 10),),
        digest="other",
    )
    found = compare([first, second])
    assert ([row.task for row in found.rows], found.n_images, found.n_groups) == (["appeal"] * 3, 100, 50)
    assert found.notes == (
        "images tested: first 120, second 100; compared on the 100 that all have tested",
        "not in every run, left out: calm of first",
        "second has other groups than first; the larger groups count (100 of 100 images)",
        "second saw other photos under the same paths than first (100 of 100 images)",
        "second has other scales than first; the scales of first are used",
        ONE_CROSS_VALIDATION,
        FEW_PHOTOS,
    )
    assert found.rows[2].difference == pytest.approx(0, abs=1e-9)  # the same predictions, whatever the scale


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
        write_run(name, labels, np.repeat(each, 5, axis=0), target=target, scales=scales, folds=redrawn(5))
        for name, each in (("chance", chance), ("good", good))
    ]
    found = compare(runs)
    assert found.metric == "f1"
    assert [row.task for row in found.rows[::3]] == [*target.tasks, *(["all"] if kind == "multilabel" else [])]
    assert {row.run for row in found.rows[::3]} == {"majority"}
    for row in found.rows[2::3]:
        assert row.real
        assert row.better or kind == "multilabel"  # yes of every photo has an F1 of .7 where yes is frequent
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
    found = compare(runs)
    assert (found.rows[2].difference, found.notes) == (pytest.approx(0, abs=1e-9), (ONE_CROSS_VALIDATION, FEW_PHOTOS))


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
    assert all(row.difference == pytest.approx(0, abs=1e-9) for row in found.rows if row.run == "b")


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


# ------------------------------------------------------------------------------------------ folds, tests, baseline


def folded(labels: np.ndarray, noise: float, seed: int, n_repeats: int) -> np.ndarray:
    """Ratings of which every repeat knows as much; errors are of this seed alone."""
    return labels + noise * np.random.default_rng(seed).normal(size=(n_repeats, *labels.shape))


def test_the_baseline_that_knows_nothing_begins_every_task(write_run: WriteRun) -> None:
    """It says the mean of the other folds; a run is better if it is so beyond chance, of all tests of the table."""
    labels, folds = ratings(), redrawn(4)
    knows = write_run("knows", labels, folded(labels, 1, 1, 4), folds=folds)
    guesses = write_run("guesses", labels, folded(np.full_like(labels, 4), 1.7, 2, 4), folds=folds)
    found = compare([knows, guesses], metric="rmse")
    assert [(row.task, row.run) for row in found.rows[::3]] == [("appeal", "mean"), ("calm", "mean")]
    for k, row in enumerate(found.rows[::3]):
        errors = []
        for fold in np.array(folds):
            said = np.array([labels[fold != each, k].mean() for each in fold])
            errors.append(np.sqrt((((said - labels[:, k]) / 6) ** 2).mean()))
        assert row.value == pytest.approx(np.mean(errors), abs=1e-5)
        assert (row.low, row.better, row.difference, row.p, row.real) == (None,) * 5
    assert [row.better for row in found.rows if row.run != "mean"] == [True, False, True, False]
    assert all(row.real and row.difference > 0 for row in rows_of(found, "guesses").values())
    assert found.n_tests == 6  # two differences, and four runs against the baseline
    shown = found.figures()
    assert shown.header == ("task", "run", "rmse", "95 %", "better", "difference", "95 % of it", "p", "real")
    assert [row[4] for row in shown.rows] == ["", "yes", "no", "", "yes", "no"]
    assert any("adjusted over the 6 tests of this table (Holm)" in note for note in shown.notes)


def test_p_values_are_adjusted_over_all_tests_of_the_table(write_run: WriteRun) -> None:
    """Those of differences and those with the baseline together: one that knows nothing makes all others less sure."""
    labels, folds = ratings(), redrawn(4)
    predicted = {
        "a": folded(labels, 1.5, 0, 4),
        "b": folded(labels, 2.2, 1, 4),
        "nothing": folded(np.full_like(labels, 4), 1, 2, 4),
    }
    found = compare([write_run(name, labels, each, folds=folds) for name, each in predicted.items()])
    against_nothing = [
        by_fold(RATINGS, labels, each, np.array(folds).astype(int), n_units=N, names=["pearson"])[task]["pearson"]
        for task in RATINGS.tasks
        for each in predicted.values()
    ]
    p_of_nothing = [each.interval().p for each in against_nothing]
    assert max(p_of_nothing) > 0.1  # which counts among the tests that come after the small ones
    differing = [row for row in found.rows if row.p is not None]
    assert [row.run for row in differing] == ["b", "nothing"] * 2
    adjusted = holm([*(row.p for row in differing), *p_of_nothing])
    assert found.n_tests == len(adjusted) == 10
    assert [row.p_adjusted for row in differing] == pytest.approx(adjusted[:4], rel=1e-3)
    assert [row.real for row in differing] == [p < 0.05 for p in adjusted[:4]]
    assert [row.better for row in found.rows if row.run != "mean"] == [p < 0.05 for p in adjusted[4:]]


def test_runs_in_other_folds_are_refused_unless_they_are_to_be_compared_as_two_samples(write_run: WriteRun) -> None:
    labels = ratings()
    first = write_run("first", labels, folded(labels, 1, 1, 3), folds=redrawn(3))
    second = write_run("second", labels, folded(labels, 1, 2, 2), folds=redrawn(2, seed=1, n_folds=4))
    with pytest.raises(
        RunError, match=r"second was tested in other folds than first, .*; train it with --split first .* --unpaired"
    ):
        compare([first, second])
    for metric in ("pearson", "rmse", "r2", "accuracy"):  # of which the baseline has some, in each run's own folds
        found = compare([first, second], metric=metric, unpaired=True)
        assert (found.of, found.paired) == ("method", False)
        for row in rows_of(found, "second").values():
            assert row.difference_low < 0 < row.difference_high
            assert row.difference == pytest.approx(row.value - rows_of(found, "first")[row.task].value)
            assert (row.better, row.real) == (True, False)
        assert "each in folds of its own, as of two samples (unpaired)" in repr(found)


def test_a_planted_difference_is_found_between_two_samples_as_well(write_run: WriteRun) -> None:
    labels = ratings()
    first = write_run("first", labels, folded(labels, 3, 1, 5), folds=redrawn(5))
    second = write_run("second", labels, folded(labels, 0.5, 2, 5), folds=redrawn(5, seed=1))
    assert all(row.real for row in rows_of(compare([first, second], unpaired=True), "second").values())


def test_the_same_head_with_another_seed_of_the_folds_is_seldom_real(write_run: WriteRun) -> None:
    """A ridge on features that know half: its predictions hang together, as they are of the same photos."""
    n_real = 0
    for i in range(12):
        rng = np.random.default_rng(i)
        features = rng.normal(size=(N, 15))
        labels = np.clip(4 + features[:, :2] / 2 + rng.normal(size=(N, 2)) / 2, 1, 7)
        runs = []
        for seed in (0, 1):
            folds = redrawn(5, seed=100 * i + seed)
            predicted = np.stack([ridge(features, labels, np.array(fold)) for fold in folds])
            runs.append(write_run(f"{i}/{seed}", labels, predicted, folds=folds))
        found = compare(runs, unpaired=True)
        n_real += sum(row.real for row in found.rows if row.real is not None)
        assert all(row.better for row in found.rows if row.run != "mean")
    assert n_real == 0


def ridge(features: np.ndarray, labels: np.ndarray, folds: np.ndarray) -> np.ndarray:
    """(N, K) out of fold."""
    said = np.empty_like(labels)
    for fold in np.unique(folds):
        train, mean = folds != fold, labels[folds != fold].mean(0)
        gram = features[train].T @ features[train] + 10 * np.eye(features.shape[1])
        said[~train] = mean + features[~train] @ np.linalg.solve(gram, features[train].T @ (labels[train] - mean))
    return said


def test_runs_with_other_numbers_of_repeats_are_compared_on_those_that_all_have(write_run: WriteRun) -> None:
    """Whatever their order, and what the folds are called."""
    labels, folds = ratings(), redrawn(4)
    predicted = folded(labels, 1, 1, 4)
    many = write_run("many", labels, predicted, folds=folds)
    few = write_run("few", labels, predicted[[2, 0]], folds=[folds[2], [f"fold {name}" for name in folds[0]]])
    found = compare([many, few])
    assert "cross-validations: many 4, few 2; compared on the 2 that all have" in found.notes
    assert found.n_folds == 10
    for row in rows_of(found, "few").values():
        assert row.difference == pytest.approx(0, abs=1e-9)
        twice = write_run(f"twice {row.task}", labels, predicted[[0, 2]], folds=[folds[0], folds[2]])
        assert row.value == pytest.approx(rows_of(compare([twice, twice]), str(twice.folder))[row.task].value)


def test_runs_of_one_split_are_compared_by_a_bootstrap_that_is_about_their_models(write_run: WriteRun) -> None:
    labels = ratings()
    held = ["test"] * 80 + ["train"] * 40
    predicted = [folded(labels, noise, seed, 1) for seed, noise in enumerate((1, 3))]
    for each in predicted:
        each[:, 80:] = np.nan
    runs = [write_run(name, labels, each, folds=held) for name, each in zip("ab", predicted, strict=True)]
    found = compare(runs)
    assert (found.of, found.n_folds, found.n_images) == ("models", 1, 80)
    said = repr(found)
    assert "95 %: of these models, on other photos (bootstrap over photos, or over whole groups)" in said
    assert "in folds" not in said
    assert "another sample" not in said
    assert all(row.real and row.difference < 0 for row in rows_of(found, "b").values())
    again = compare(runs, unpaired=True)
    assert "as of two samples (unpaired bootstrap)" in repr(again)
    paired, apart = (rows_of(each, "b")["calm"] for each in (found, again))
    assert apart.difference == pytest.approx(paired.difference)


def test_p_values_of_few_photos_are_said_to_be_small(write_run: WriteRun) -> None:
    for n in (120, 160):
        labels = ratings(n=n)
        runs = [
            write_run(f"{name} {n}", labels, folded(labels, 1, seed, 2), folds=redrawn(2, n))
            for seed, name in enumerate("ab")
        ]
        small = "p-values of this comparison are known to be a little small below 150 photos"
        assert (small in compare(runs).notes) == (n < 150)


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


def test_a_head_that_says_nothing_has_no_correlation_and_spoils_no_table(write_run: WriteRun) -> None:
    """Its predictions are the levels of its folds: pooled, they would correlate with the labels, negatively."""
    labels = ratings()
    folds = [str(i % 5) for i in range(N)]
    levels = np.stack([labels[[f != fold for f in folds]].mean(0) for fold in folds])[None]
    runs = [
        write_run("first", labels, guesses(labels, [2, 2], seed=1), folds=folds),
        write_run("better", labels, guesses(labels, [1, 2], seed=2), folds=folds),
        write_run("dead", labels, levels, folds=folds),
    ]
    found = compare(runs)
    assert found.of == "method"
    assert rows_of(found, "better")["appeal"].real
    assert rows_of(found, "dead")["appeal"].value is None


def test_runs_of_which_no_fold_is_common_to_all_are_named(write_run: WriteRun) -> None:
    labels, predicted = ratings(), guesses(ratings(), [1, 1], seed=1)
    one, other = [str(i % 5) for i in range(N)], [str(i // 24) for i in range(N)]
    first = write_run("first", labels, predicted, folds=[one, other])
    runs = [first, *(write_run(name, labels, predicted[:1], folds=[each]) for name, each in (("a", one), ("b", other)))]
    with pytest.raises(RunError, match="one of the others was tested in other folds than first"):
        compare(runs)
