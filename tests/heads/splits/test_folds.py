"""Nothing is trained on what it is tested on, whoever made the split; and the same labels are split the same way."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.splits.folds import Split, hold_out, k_fold, split_inner
from heads.splits.given import fixed, read_splits

names = st.integers(0, 12).map(lambda i: f"g{i}")
emotions = st.sampled_from(["joy", "fear", "awe", "awe", "awe", "joy"])
rows_of_labels = st.lists(st.tuples(names, emotions), min_size=2, max_size=60)
seeds = st.integers(0, 2**32 - 1)


def columns(rows: list[tuple[str, str]], grouped: bool, stratified: bool) -> tuple[list[str] | None, list[str] | None]:
    return [group for group, _ in rows] if grouped else None, [stratum for _, stratum in rows] if stratified else None


def check(split: Split, n: int, groups: list[str] | None) -> None:
    """No row and no group on two sides, and `folds` says the same as the parts."""
    assert len(split.folds) == n
    for part in split.parts:
        sides = [part.train, part.test, *([] if part.inner is None else [part.inner])]
        assert all(len(side) for side in sides)
        assert sorted(np.concatenate(sides).tolist()) == list(range(n))
        assert part.test.tolist() == [row for row in range(n) if split.folds[row] == part.name]
        kinds = [{groups[row] for row in side} for side in sides] if groups else []
        assert len(set().union(*kinds)) == sum(map(len, kinds))


# ------------------------------------------------------------------------------------------ folds


@settings(deadline=None)
@given(rows=rows_of_labels, grouped=st.booleans(), stratified=st.booleans(), n_folds=st.integers(2, 6), seed=seeds)
def test_every_row_is_tested_once_by_a_model_that_saw_none_of_its_group(
    rows: list[tuple[str, str]], grouped: bool, stratified: bool, n_folds: int, seed: int
) -> None:
    n, (groups, strata) = len(rows), columns(rows, grouped, stratified)
    units = len(set(groups)) if groups else n
    if units < n_folds or (strata and max(Counter(strata).values()) < n_folds):
        with pytest.raises(LabelsError, match=f"{n_folds} (stratified )?folds need"):
            k_fold(n, n_folds=n_folds, groups=groups, strata=strata, seed=seed)
        return
    split = k_fold(n, n_folds=n_folds, groups=groups, strata=strata, seed=seed)
    check(split, n, groups)
    assert [part.name for part in split.parts] == [str(fold) for fold in range(n_folds)]
    assert sorted(np.concatenate([part.test for part in split.parts]).tolist()) == list(range(n))
    if groups is None:
        sizes = [len(part.test) for part in split.parts]
        assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(strata=st.lists(emotions, min_size=12, max_size=90), n_folds=st.integers(2, 4), seed=seeds)
def test_every_fold_has_its_share_of_each_stratum(strata: list[str], n_folds: int, seed: int) -> None:
    split = k_fold(len(strata), n_folds=n_folds, groups=None, strata=strata, seed=seed)
    sizes = Counter(strata)
    if min(sizes.values()) < n_folds:
        return
    for part in split.parts:
        found = Counter(strata[row] for row in part.test)
        assert all(abs(found[stratum] - size / n_folds) < 2 for stratum, size in sizes.items())


def test_groups_are_spread_by_stratum() -> None:
    groups = [f"scene {i // 5}" for i in range(300)]
    strata = ["awe" if i // 5 % 4 == 0 else "joy" for i in range(300)]
    split = k_fold(300, n_folds=5, groups=groups, strata=strata, seed=3, by="emotion")
    check(split, 300, groups)
    assert [sum(strata[row] == "awe" for row in part.test) for part in split.parts] == [15] * 5
    assert split.words == "5 folds, groups kept together, stratified by emotion"


def test_no_fold_stays_empty_where_groups_are_as_few_as_folds() -> None:
    sizes, strata = (23, 15, 12, 19), "jjaa"  # of which StratifiedGroupKFold makes three folds of four
    groups = [f"g{i}" for i in range(4) for _ in range(sizes[i])]
    split = k_fold(69, n_folds=4, groups=groups, strata=[strata[int(group[1])] for group in groups], seed=1)
    check(split, 69, groups)
    assert {len(part.test) for part in split.parts} == set(sizes)


def test_rare_strata_are_spread_together() -> None:
    strata = ["joy"] * 20 + ["awe", "awe", "fear", "anger", "anger"]
    split = k_fold(25, n_folds=5, groups=None, strata=strata, seed=0)
    assert [sum(strata[row] != "joy" for row in part.test) for part in split.parts] == [1] * 5


@pytest.mark.parametrize("grouped", [False, True])
@pytest.mark.parametrize("stratified", [False, True])
def test_nothing_but_rows_groups_strata_and_seed_decides(grouped: bool, stratified: bool) -> None:
    groups, strata = columns([(f"g{i % 17}", "ab"[i % 3 == 0]) for i in range(80)], grouped, stratified)
    first = k_fold(80, n_folds=4, groups=groups, strata=strata, seed=7)
    np.random.default_rng(0).random()
    np.random.seed(3)  # whatever happened before
    assert first.folds == k_fold(80, n_folds=4, groups=groups, strata=strata, seed=7).folds
    assert first.folds != k_fold(80, n_folds=4, groups=groups, strata=strata, seed=8).folds


def test_says_what_is_too_few() -> None:
    def folds(n: int, n_folds: int, groups: list[str] | None = None, strata: list[str] | None = None) -> Split:
        return k_fold(n, n_folds=n_folds, groups=groups, strata=strata, seed=0)

    with pytest.raises(LabelsError, match="1 folds: at least 2"):
        folds(10, 1)
    with pytest.raises(LabelsError, match="5 folds need at least as many labelled images; there are 4"):
        folds(4, 5)
    with pytest.raises(LabelsError, match="3 folds need at least as many groups; there are 2"):
        folds(6, 3, groups=list("aabbbb"))
    with pytest.raises(LabelsError, match="the largest, 'joy', has 2: use fewer folds"):
        folds(4, 4, strata=["joy", "joy", "awe", "fear"])


# ------------------------------------------------------------------------------------------ hold-outs


@settings(deadline=None)
@given(rows=rows_of_labels, grouped=st.booleans(), stratified=st.booleans(), share=st.floats(0.01, 0.99), seed=seeds)
def test_a_hold_out_tests_its_share(
    rows: list[tuple[str, str]], grouped: bool, stratified: bool, share: float, seed: int
) -> None:
    n, (groups, strata) = len(rows), columns(rows, grouped, stratified)
    if (groups and len(set(groups)) < 2) or (strata and max(Counter(strata).values()) < 2):
        with pytest.raises(LabelsError, match=r"a hold-out needs at least 2 groups|a stratum of its own"):
            hold_out(n, share=share, groups=groups, strata=strata, seed=seed)
        return
    split = hold_out(n, share=share, groups=groups, strata=strata, seed=seed)
    check(split, n, groups)
    assert [part.name for part in split.parts] == ["test"]
    assert set(split.folds) == {"train", "test"}
    if not grouped and not stratified:
        assert abs(len(split.parts[0].test) - share * n) <= 1


def test_a_stratified_hold_out_has_the_proportions_of_the_whole() -> None:
    strata = ["joy"] * 100 + ["awe"] * 50 + ["fear"] * 10
    split = hold_out(160, share=0.2, groups=None, strata=strata, seed=0, by="emotion")
    assert Counter(strata[row] for row in split.parts[0].test) == {"joy": 20, "awe": 10, "fear": 2}
    assert split.words == "hold-out of 20%, stratified by emotion"


def test_a_hold_out_of_nothing_or_all_is_refused() -> None:
    for share in (0.0, 1.0, 20.0):
        with pytest.raises(LabelsError, match="between 0 and 1"):
            hold_out(10, share=share, groups=None, strata=None, seed=0)
    with pytest.raises(LabelsError, match="at least 2 groups; there are 1"):
        hold_out(3, share=0.2, groups=["a"] * 3, strata=None, seed=0)


# ------------------------------------------------------------------------------------------ splits made by others


def test_train_validation_and_test_are_one_part() -> None:
    values = ["Training", " val", "test", "train", "dev", "TEST"]
    split = fixed(values, "column 'split' of labels.csv")
    check(split, 6, None)
    (part,) = split.parts
    assert (part.train.tolist(), part.test.tolist()) == ([0, 3], [2, 5])
    assert part.inner is not None
    assert part.inner.tolist() == [1, 4]
    assert split.folds == ["train", "val", "test", "train", "val", "test"]
    assert split.words == "2 train, 2 val, 2 test of column 'split' of labels.csv"
    assert fixed(["train", "test"], "x").parts[0].inner is None


@given(values=st.lists(st.sampled_from(["2", "10", "early", "late"]), min_size=2))
def test_other_values_are_folds(values: list[str]) -> None:
    if len(set(values)) == 1:
        with pytest.raises(LabelsError, match="at least two values"):
            fixed(values, "column 'year'")
        return
    split = fixed(values, "column 'year'")
    check(split, len(values), None)
    assert [part.name for part in split.parts] == [name for name in ("2", "10", "early", "late") if name in values]
    assert split.folds == values


def test_says_what_is_wrong_with_a_given_split() -> None:
    where = "column 'split' of labels.csv"
    for values, said in (
        (["train", "", "test", " "], r"empty for 2 of 4 photos; say train, val or test"),
        (["train", "test", "spare"], r"both train, val or test and other values \('spare'\)"),
        (["train", "dev"], r"no photo to test \(1 train, 1 val\); say 'test' of some"),
        (["val", "test"], r"no photo to train"),
    ):
        with pytest.raises(LabelsError, match=r"column 'split' of labels.csv .*" + said):
            fixed(values, where)


def test_a_group_on_both_sides_is_named() -> None:
    groups = ["a", "a", "b", "c"]
    assert fixed(["train", "train", "val", "test"], "x", groups=groups).parts
    with pytest.raises(LabelsError, match=r"x parts 1 groups: 'a' is in 'test' and 'train'"):
        fixed(["train", "test", "val", "test"], "x", groups=groups)
    with pytest.raises(LabelsError, match=r"'a' is in '2' and '10'"):
        fixed(["10", "2", "2", "10"], "x", groups=groups)


def test_reads_the_split_of_a_table_or_of_a_run(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text(
        "path,split,note\nb\\Ete\u0301.jpg,test,\na.jpg,train,x\nc.jpg,train,\n", "utf-8"
    )
    assert read_splits(tmp_path / "split.csv", ["a.jpg", "b/Et\u00e9.jpg"]) == [["train", "test"]]
    (tmp_path / "folds.csv").write_text("path,group,fold,digest\na.jpg,g,0,\nb.jpg,g,10,\n", "utf-8-sig")
    assert read_splits(tmp_path, ["b.jpg", "a.jpg"]) == [["10", "0"]]


def test_a_split_may_call_the_paths_what_the_labels_call_them(tmp_path: Path) -> None:
    (tmp_path / "split.csv").write_text("filename,fold\na.jpg,01\nb.jpg,1\n")
    assert read_splits(tmp_path / "split.csv", ["b.jpg", "a.jpg"], "filename") == [["1", "01"]]
    (tmp_path / "split.tsv").write_text("path\tfold\na.jpg\t0\nb.jpg\t1\n")
    for called in ("filename", "sha256"):
        assert read_splits(tmp_path / "split.tsv", ["b.jpg", "a.jpg"], called) == [["1", "0"]]
    with pytest.raises(LabelsError, match=r"no column 'path'.*the columns are filename, fold; --path-column says"):
        read_splits(tmp_path / "split.csv", ["a.jpg"])
    with pytest.raises(LabelsError, match=r"2 of 2 would match but for the case of \.jpg; write \.JPG, as the store"):
        read_splits(tmp_path / "split.csv", ["a.JPG", "b.JPG"], "filename")


def test_the_split_of_a_run_is_that_of_the_next(tmp_path: Path) -> None:
    paths = [f"{i}.jpg" for i in range(30)]
    split = hold_out(30, share=0.3, groups=None, strata=None, seed=1)
    lines = [f"{path},{fold}" for path, fold in zip(paths, split.folds, strict=True)]
    (tmp_path / "folds.csv").write_text("\n".join(["path,fold", *reversed(lines)]))
    (values,) = read_splits(tmp_path, paths)
    again = fixed(values, "folds.csv")
    assert again.folds == split.folds
    assert again.parts[0].test.tolist() == split.parts[0].test.tolist()


def test_says_what_is_wrong_with_a_file(tmp_path: Path) -> None:
    file = tmp_path / "split.csv"
    photos = [f"{i}.jpg" for i in range(9)]
    for text, said in (
        ("path,fold\n0.jpg,1\n8.jpg,2\n", r"does not name 7 of 9 photos: '1.jpg', .*'5.jpg' and 2 more; add them"),
        ("file,fold\n0.jpg,1\n", "no column 'path'"),
        ("path,part\n0.jpg,1\n", "no column 'fold' or 'split'; it has path, part"),
        ("path,fold\n0.jpg,1\n0.jpg,2\n", "line 3: '0.jpg' is in '2' here, in '1' above"),
    ):
        file.write_text(text)
        with pytest.raises(LabelsError, match=said):
            read_splits(file, photos)
    with pytest.raises(LabelsError, match=r"nowhere.csv does not exist"):
        read_splits(tmp_path / "nowhere.csv", photos)
    (tmp_path / "empty").mkdir()
    with pytest.raises(LabelsError, match=r"empty is not a run folder: it has no folds.csv"):
        read_splits(tmp_path / "empty", photos)
    file.write_bytes(b"path,fold\n\xff\xfe,1\n")
    with pytest.raises(LabelsError, match=r"is not UTF-8 \(found the byte 0xff\); save it as CSV UTF-8"):
        read_splits(file, photos)


# ------------------------------------------------------------------------------------------ inner splits


@settings(deadline=None)
@given(
    labels=rows_of_labels, grouped=st.booleans(), stratified=st.booleans(), share=st.floats(0, 0.9), seed=seeds,
    data=st.data(),
)  # fmt: skip
def test_inner_parts_share_no_row_and_no_group(
    labels: list[tuple[str, str]], grouped: bool, stratified: bool, share: float, seed: int, data: st.DataObject
) -> None:
    groups, strata = columns(labels, grouped, stratified)
    rows = np.array(sorted(data.draw(st.sets(st.integers(0, len(labels) - 1), min_size=1))))
    units = len({groups[row] for row in rows}) if groups else len(rows)
    if share and units < 2:
        with pytest.raises(LabelsError, match="use fewer folds"):
            split_inner(rows, groups=groups, strata=strata, share=share, seed=seed)
        return
    fit, inner = split_inner(rows, groups=groups, strata=strata, share=share, seed=seed)
    assert sorted([*fit, *inner]) == rows.tolist()
    assert len(fit) >= 1
    assert (len(inner) >= 1) == (share > 0)
    if groups:
        assert not {groups[row] for row in fit} & {groups[row] for row in inner}
    if not grouped and not stratified:
        assert abs(len(inner) - share * len(rows)) <= 1


def test_early_stopping_sees_the_proportions_of_the_whole() -> None:
    strata = ["joy"] * 200 + ["awe"] * 40
    _, inner = split_inner(np.arange(0, 240, 2), groups=None, strata=strata, share=0.15, seed=0)
    assert Counter(strata[row] for row in inner) == {"joy": 15, "awe": 3}


def test_strata_that_cannot_be_parted_are_given_up() -> None:
    strata = [f"s{i}" for i in range(10)]
    fit, inner = split_inner(np.arange(10), groups=None, strata=strata, share=0.2, seed=0)
    assert (len(fit), len(inner)) == (8, 2)
