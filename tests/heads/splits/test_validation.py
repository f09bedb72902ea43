"""Which models a run has to train: what each is fitted to, what stops it and what it is tested on are apart."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels.labels import Labels, read_labels
from heads.labels.target import Kind, Target
from heads.splits.folds import Split, hold_out, k_fold
from heads.splits.given import fixed
from heads.splits.validation import Validation, arrange, check_labelled, check_learnable, jobs, pick
from heads.systems import find_system
from heads.training.learner import Job

groupings = st.none() | st.lists(st.integers(0, 14).map(str), min_size=30, max_size=60)


def models(split: Split, groups: list[str] | None = None, *, n_repeats: int = 2, **others: object) -> list[Job]:
    """Of a split and its repeats in the same parts."""
    facts = {"strata": None, "n_tasks": None, "inner": 0.2, "inner_folds": 0, "on_all": False, "seed": 5}
    return jobs([split] * n_repeats, groups=groups, **{**facts, **others})


# ------------------------------------------------------------------------------------------ models


@given(groups=groupings, seed=st.integers(0, 2**32 - 1), share=st.sampled_from([None, 0.2, 0.4]))
def test_what_is_fitted_what_stops_and_what_is_tested_are_apart(groups, seed, share) -> None:
    n = len(groups) if groups else 40
    if groups is not None and len(set(groups)) < 6:
        return
    facts = {"groups": groups, "strata": None, "seed": seed}
    split = k_fold(n, n_folds=4, **facts) if share is None else hold_out(n, share=share, **facts)
    found = models(split, groups, seed=seed)
    assert [job.name for job in found] == [f"repeat{r}-fold{part}" for r in (0, 1) for part in range(len(split.parts))]
    of_row = groups or [str(i) for i in range(n)]
    for job in found:
        assert sorted(np.concatenate([job.fit, job.inner, job.test])) == list(range(n))
        assert min(len(job.fit), len(job.inner), len(job.test)) > 0
        kinds = [{of_row[row] for row in rows} for rows in (job.fit, job.inner, job.test)]
        assert sum(map(len, kinds)) == len(set().union(*kinds))
        assert split.parts[job.part].test.tolist() == job.test.tolist()


def test_each_model_has_its_own_seed_and_inner_part() -> None:
    found = models(k_fold(60, n_folds=3, groups=None, strata=None, seed=0))
    assert len({job.seed for job in found}) == 6
    assert len({tuple(sorted(job.inner)) for job in found}) == 6


def test_models_of_each_task_share_their_rows_and_not_their_seeds() -> None:
    split = k_fold(30, n_folds=3, groups=None, strata=None, seed=0)
    found, together = models(split, n_tasks=2, n_repeats=1), models(split, n_repeats=1)
    assert [job.name for job in found] == [f"repeat0-fold{fold}-task{task}" for fold in range(3) for task in (0, 1)]
    assert len({job.seed for job in found}) == 6
    for first, second, whole in zip(found[::2], found[1::2], together, strict=True):
        assert first.fit.tolist() == second.fit.tolist() == whole.fit.tolist()
        assert first.inner.tolist() == second.inner.tolist() == whole.inner.tolist()


def test_more_repeats_and_models_on_all_rows_change_nothing_for_the_others() -> None:
    split = k_fold(30, n_folds=3, groups=None, strata=None, seed=0)
    few = {job.name: (job.seed, job.inner.tolist()) for job in models(split, n_repeats=1)}
    many = {job.name: (job.seed, job.inner.tolist()) for job in models(split, n_repeats=3, on_all=True)}
    assert {name: many[name] for name in few} == few
    assert len(many) == 12


def test_models_on_all_rows_are_tested_on_none() -> None:
    found = models(hold_out(40, share=0.25, groups=None, strata=None, seed=0), on_all=True)
    assert [job.name for job in found] == ["repeat0-fold0", "repeat0-all", "repeat1-fold0", "repeat1-all"]
    for job in found[1::2]:
        assert (job.part, len(job.test)) == (None, 0)
        assert sorted([*job.fit, *job.inner]) == list(range(40))
    assert len({job.seed for job in found}) == 4


def test_the_validation_part_that_a_split_names_is_the_one_that_stops() -> None:
    sides = ["train"] * 20 + ["val"] * 6 + ["test"] * 4
    for job in models(fixed(sides, "here")):
        assert (job.fit.tolist(), job.inner.tolist()) == (list(range(20)), list(range(20, 26)))
        assert job.test.tolist() == list(range(26, 30))


@given(groups=groupings, n_folds=st.integers(0, 7), seed=st.integers(0, 2**32 - 1))
def test_estimators_choose_by_folds_of_the_training_rows_groups_kept_together(groups, n_folds, seed) -> None:
    n = len(groups) if groups else 40
    if groups is not None and len(set(groups)) < 3:
        return
    of_row = groups or [str(i) for i in range(n)]
    split = k_fold(n, n_folds=3, groups=groups, strata=None, seed=seed)
    for job in models(split, groups, inner=0.0, inner_folds=n_folds):
        train = split.parts[job.part].train.tolist()
        n_units = len({of_row[row] for row in train})
        folds = min(n_folds, n_units)
        assert len(job.inner_folds) == (folds if folds > 1 else 0)
        assert job.fit.tolist() == train
        assert sorted(np.concatenate([*job.inner_folds, np.empty(0, int)])) == (train if folds > 1 else [])
        kinds = [{of_row[row] for row in rows} for rows in job.inner_folds]
        assert sum(map(len, kinds)) == (n_units if folds > 1 else 0)


def test_estimators_choose_by_the_validation_part_that_a_split_names() -> None:
    for job in models(fixed(["train"] * 20 + ["val"] * 6 + ["test"] * 4, "here"), inner_folds=5):
        assert (job.inner.tolist(), job.inner_folds) == (list(range(20, 26)), ())


def test_nothing_stops_models_if_the_inner_share_is_0() -> None:
    for job in models(k_fold(30, n_folds=3, groups=None, strata=None, seed=0), inner=0.0):
        assert (len(job.fit), len(job.inner)) == (20, 0)


# ------------------------------------------------------------------------------------------ enough to learn from


def refusal(name: str, kind: Kind, labels: list[list[float]], **others: object) -> str:
    """What is said of 3 folds of 9 rows and their labels; empty if they are enough."""
    split = fixed(list("aaabbbccc"), "here")
    given = np.array(labels, np.float32).T
    tasks = tuple(f"t{k}" for k in range(given.shape[1]))
    target = Target(kind, tasks, ("no", "yes") if kind == "multiclass" else ())
    found = models(split, **{"n_repeats": 1, "inner": 0.0, **others})
    try:
        check_learnable(find_system(name), target, given, found)
    except LabelsError as error:
        return str(error)
    return ""


GOOD, NONE = [0, 1, 0, 1, 0, 1, 0, 1, 0], np.nan


@pytest.mark.parametrize(
    ("name", "labels", "n"),
    [("linear", [0.1, 0, 0, *[NONE] * 6], 0), ("ridge", [0, 0.1, 0.2, 0.3, *[NONE] * 5], 1)],
)
def test_a_model_without_labels_of_a_task_is_refused_before_anything_is_trained(name, labels, n) -> None:
    said = refusal(name, "regression", [GOOD, labels])
    least = 1 if name == "linear" else 2
    assert said.startswith(f"'{name}' needs {least} or more labels of 't1'; there are {n} on the 6 images that ")
    assert "repeat0-fold0 would learn from; label more, use fewer folds" in said
    assert not refusal(name, "regression", [GOOD, GOOD])


def test_a_model_of_one_task_needs_labels_of_no_other() -> None:
    labels = [GOOD, [0.1, 0, 0, *[NONE] * 6]]
    assert "repeat0-fold0-task1" in refusal("amtl-single", "regression", labels, n_tasks=2)
    assert not refusal("amtl-single", "regression", labels[:1], n_tasks=1)


def test_labels_that_only_stop_are_not_learnt_from_by_gradient_and_are_by_estimators() -> None:
    """Labelled rows that a split names for validation."""
    split, target = fixed(["train"] * 4 + ["val"] * 3 + ["test"] * 2, "here"), Target("regression", ("t0",))
    labels = np.array([[NONE] * 4 + [0.1, 0.2, 0.3, 0, 0]], np.float32).T
    check_learnable(find_system("ridge"), target, labels, models(split))
    with pytest.raises(LabelsError, match="there are 0 on the 4 images that repeat0-fold0"):
        check_learnable(find_system("linear"), target, labels, models(split))


@pytest.mark.parametrize(("kind", "what"), [("multilabel", "1"), ("multiclass", "yes")])
def test_one_class_is_too_few_for_a_logistic_regression(kind: Kind, what: str) -> None:
    said = refusal("logistic", kind, [[0, 0, 1, 1, 1, 1, 1, 1, 1]])
    assert said.startswith(
        f"'logistic' cannot learn 't0': all 6 labels that repeat0-fold0 would learn from are {what};"
    )
    assert "stratify by it (--stratify t0)" in said
    assert not refusal("logistic", kind, [GOOD])
    assert not refusal("mlp", kind, [[0, 0, 1, 1, 1, 1, 1, 1, 1]])


# ------------------------------------------------------------------------------------------ splits


@pytest.fixture
def labels(world) -> Labels:
    return read_labels(world.labels, scales=["1:7"], group="source")


def splits_of(
    validation: Validation,
    labels: Labels,
    rows: range | None = None,
    seed: int = 0,
    system: str = "ridge",
    n_repeats: int | None = None,
) -> tuple[Split, ...]:
    chosen = np.array(rows or range(len(labels.paths)))
    paths = [labels.paths[i] for i in chosen]
    groups = pick(labels.groups, chosen)
    return arrange(validation, labels, chosen, paths, groups, seed, system=find_system(system), n_repeats=n_repeats)


def split_of(validation: Validation, labels: Labels, rows: range | None = None, seed: int = 0) -> Split:
    """That of the only repeat."""
    (split,) = splits_of(validation, labels, rows, seed, n_repeats=1)
    return split


def test_folds_keep_groups_together_and_are_of_the_chosen_rows_alone(labels: Labels) -> None:
    assert labels.groups is not None
    split = split_of(Validation(n_folds=3), labels, range(10, 50))
    assert split.words == "3 folds, groups kept together"
    assert len(split.folds) == 40
    assert len(set(zip(labels.groups[10:50], split.folds, strict=True))) == 8
    assert split_of(Validation(n_folds=3), labels, range(10, 50)).folds == split.folds
    assert split_of(Validation(n_folds=3), labels, range(10, 50), seed=1).folds != split.folds


def test_a_hold_out_goes_before_folds(labels: Labels) -> None:
    split = split_of(Validation(hold_out=0.25), labels)
    assert split.words == "hold-out of 25%, groups kept together"
    assert split.folds.count("test") == 15


def test_splits_that_are_given_go_before_folds_and_contradict_each_other(labels: Labels, world, tmp_path: Path) -> None:
    by_trip = [f"fold {int(source.split()[1]) % 4}" for source in world.table["source"]]
    world.table.assign(fold=by_trip)[["path", "fold"]].to_csv(tmp_path / "split.csv", index=False)
    validation = Validation(split=tmp_path / "split.csv")
    assert split_of(validation, labels).folds == by_trip
    assert split_of(validation, labels).words == f"4 folds of {tmp_path / 'split.csv'}"
    sides = ["test" if i >= 50 else "train" for i in range(60)]
    world.table.assign(side=sides).to_csv(tmp_path / "labels.csv", index=False)
    own = read_labels(tmp_path / "labels.csv", tasks=["calm"], split="side", group="source")
    assert split_of(Validation(), own).folds == sides
    assert split_of(Validation(), own).words == "50 train, 10 test of the split column of the labels"
    for table, asked in (
        (own, validation),
        (own, Validation(hold_out=0.5)),
        (labels, replace(validation, hold_out=0.5)),
    ):
        with pytest.raises(LabelsError, match="contradict each other; name one"):
            split_of(asked, table)


def test_strata_are_spread_evenly_and_named(world) -> None:
    labels = read_labels(world.labels, scales=["1:7"], stratify="appeal")
    split = split_of(Validation(n_folds=3, stratify="appeal"), labels)
    assert split.words == "3 folds, stratified by appeal"
    assert labels.strata is not None
    counts = [[(f, s) for f, s in zip(split.folds, labels.strata, strict=True)].count((str(fold), stratum))
              for fold in range(3) for stratum in set(labels.strata)]  # fmt: skip
    assert max(counts) - min(counts) <= 1


def test_more_folds_than_groups(labels: Labels) -> None:
    with pytest.raises(LabelsError, match="13 folds need at least as many groups; there are 12"):
        split_of(Validation(n_folds=13), labels)


def test_a_task_without_a_label_is_named() -> None:
    labels = np.array([[1, np.nan], [2, np.nan]], np.float32)
    with pytest.raises(LabelsError, match="task 'calm' has no label among the 2 images that have features"):
        check_labelled(labels, ["appeal", "calm"])
    check_labelled(labels[:, :1], ["appeal"])


def test_a_task_whose_labels_are_all_the_same_is_named() -> None:
    labels = np.array([[1, 0], [2, 0], [3, np.nan]], np.float32)
    with pytest.raises(LabelsError, match=r"all 2 labels of 'calm' among the 3 images .* leave it out with --tasks"):
        check_labelled(labels, ["appeal", "calm"])


def test_repeats_whose_folds_have_other_names_or_that_are_to_be_the_same_are_refused(
    labels: Labels, world, tmp_path: Path
) -> None:
    by_trip = [int(source.split()[1]) for source in world.table["source"]]
    table = world.table[["path"]].assign(
        fold=[f"{trip % 3}" for trip in by_trip], fold_1=[f"{trip % 4}" for trip in by_trip]
    )
    table.to_csv(tmp_path / "other.csv", index=False)
    with pytest.raises(LabelsError, match="column fold_1 names 0, 1, 2, 3, and the first 0, 1, 2; give the folds"):
        split_of(Validation(split=tmp_path / "other.csv"), labels)
    table.assign(fold_1=[f"{(trip + trip // 3) % 3}" for trip in by_trip]).to_csv(tmp_path / "two.csv", index=False)
    with pytest.raises(
        LabelsError, match="folds of its own for each repeat; leave out --same-folds, or say --repeats 1"
    ):
        splits_of(Validation(split=tmp_path / "two.csv", same_folds=True), labels)
