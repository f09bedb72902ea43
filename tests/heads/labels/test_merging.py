"""Several rows of a photo, and several files: raters, label sets, Parquet."""

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels.labels import read_labels

Table = Callable[..., Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(text: str, name: str = "labels.csv") -> Path:
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


RATED = """\
path,rater,trip,appeal,calm
a.jpg,Ann,x,1,
b.jpg,Ann,y,7,3
a.jpg,Bob,x,2,6
a.jpg,Cid,x,6,
b.jpg,Bob,y,,5
c.jpg,Bob,y,,
"""


def test_rows_of_one_photo_are_refused_unless_it_is_said_what_to_do(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"as 'a\.jpg' on lines 2 and 4; one row per photo.*--aggregate mean"):
        read_labels(table(RATED))
    numbered = "path,rater,x\na.jpg,61,1\nb.jpg,61,2\na.jpg,62,3\n"  # and a rater's number is no label off the scale
    with pytest.raises(LabelsError, match=r"1 of 2 photos stand several times, as 'a\.jpg' on lines 2 and 4"):
        read_labels(table(numbered), scales="1:7")


@pytest.mark.parametrize(("how", "appeal"), [("mean", [3, 7]), ("median", [2, 7])])
def test_raters_become_one_label(table: Table, how: str, appeal: list[float]) -> None:
    labels = read_labels(table(RATED), aggregate=how, group="trip", scales="1:7")
    assert (labels.paths, labels.target.tasks) == (["a.jpg", "b.jpg"], ("appeal", "calm"))
    assert labels.values[:, 0].tolist() == appeal
    assert labels.values[:, 1].tolist() == [6, 4]
    assert (labels.groups, labels.n_unlabelled) == (["x", "y"], 1)
    assert labels.ratings is not None
    assert (labels.ratings.n_rows, labels.ratings.n_raters, labels.ratings.aggregate) == (5, 2 + 1, how)


@pytest.mark.parametrize("column", ["rater", "Rater ID", "rater_id", "userId", "annotator"])
def test_who_rated_is_not_learned(table: Table, column: str) -> None:
    labels = read_labels(table(f"path,{column},x\na.jpg,1,1\na.jpg,2,3\nb.jpg,2,5\n"), aggregate="mean")
    assert labels.target.tasks == ("x",)
    assert labels.ratings is not None
    assert (labels.ratings.n_rows, labels.ratings.n_raters) == (3, 2)


def test_nobody_need_say_who_rated(table: Table) -> None:
    labels = read_labels(table("path,x\na.jpg,1\na.jpg,3\nb.jpg,5\n"), aggregate="mean")
    assert labels.ratings is not None
    assert labels.ratings.n_raters is None


def test_half_of_the_raters_are_enough_for_yes(table: Table) -> None:
    text = "path,x\na.jpg,yes\na.jpg,no\nb.jpg,no\nb.jpg,no\nb.jpg,yes\nc.jpg,\n"
    labels = read_labels(table(text), tasks=["x"], aggregate="mean")
    assert labels.values.tolist() == [[1], [0]]


def test_the_most_frequent_class_or_the_first_of_those(table: Table) -> None:
    rows = [("a", "joy"), ("a", "awe"), ("b", "joy"), ("b", "awe"), ("b", "joy"), ("c", ""), ("c", "fear"), ("d", "")]
    text = "\n".join(["path,x", *(f"{path}.jpg,{mood}" for path, mood in rows)])
    labels = read_labels(table(text), tasks=["x"], aggregate="mean")
    assert [labels.target.classes[int(i)] for i in labels.values[:, 0]] == ["awe", "joy", "fear"]
    assert (labels.paths, labels.n_unlabelled) == (["a.jpg", "b.jpg", "c.jpg"], 1)


def test_what_is_said_of_a_photo_has_to_be_the_same_in_all_its_rows(table: Table) -> None:
    text = "path,trip,x\na.jpg,1,1\nb.jpg,2,2\na.jpg,,1\na.jpg,3,1\n"
    for option in ("group", "split", "stratify"):
        with pytest.raises(
            LabelsError, match=r"line 5, column 'trip': 'a\.jpg' is '3' here and '1' in .*line 2; a photo has to have"
        ):
            read_labels(table(text), tasks=["x"], aggregate="mean", **{option: "trip"})


def test_strata_by_a_task_are_those_of_what_the_raters_say_together(table: Table) -> None:
    text = "path,x\na.jpg,joy\na.jpg,joy\na.jpg,awe\nb.jpg,awe\n"
    assert read_labels(table(text), tasks=["x"], aggregate="mean", stratify="x").strata == ["joy", "awe"]


@settings(deadline=None, max_examples=40)
@given(
    rows=st.lists(st.tuples(st.integers(0, 4), st.sampled_from(["", "1", "2", "4", "7"])), min_size=2, max_size=20),
    kind=st.sampled_from(["regression", "multiclass"]),
    how=st.sampled_from(["mean", "median"]),
)
def test_aggregates_are_those_of_each_photo_alone(rows: list[tuple[int, str]], kind: str, how: str) -> None:
    known = {photo: [float(text) for p, text in rows if p == photo and text] for photo, _ in rows}
    if len({value for values in known.values() for value in values}) < 2:
        return
    with TemporaryDirectory() as folder:
        file = Path(folder) / "labels.csv"
        file.write_text("\n".join(["path,x", *(f"{photo}.jpg,{text}" for photo, text in rows)]))
        labels = read_labels(
            file, tasks=["x"], kind=kind, aggregate=how, scales="1:7" if kind == "regression" else None
        )
    found = dict(zip(labels.paths, labels.values[:, 0], strict=True))
    assert set(found) == {f"{photo}.jpg" for photo, values in known.items() if values}
    for photo, values in known.items():
        if not values:
            continue
        if kind == "regression":
            assert found[f"{photo}.jpg"] == pytest.approx((np.mean if how == "mean" else np.median)(values))
        else:
            most = max(Counter(values).values())
            assert (
                labels.target.classes[int(found[f"{photo}.jpg"])]
                == f"{min(v for v in values if values.count(v) == most):g}"
            )


def test_two_label_sets_of_two_photo_sets(table: Table) -> None:
    """Aesthetics of some photos, personality of others and of one that both have."""
    first = table("path,beauty\na.jpg,1\nb.jpg,2\n", "beauty.csv")
    second = table("path,openness,calm\nq.jpg,,\nz.jpg,0.5,\nb.jpg,-1,1\n", "persons.csv")
    labels = read_labels([first, second], scales=["-1:1", "beauty=1:10"])
    assert labels.paths == ["a.jpg", "b.jpg", "z.jpg"]
    assert labels.target.tasks == ("beauty", "openness", "calm")
    nan = np.nan
    np.testing.assert_array_equal(labels.values, [[1, nan, nan], [2, -1, 1], [nan, 0.5, nan]])
    assert labels.sets.tolist() == [0, 0, 1]
    assert labels.scales == ((1, 10), (-1, 1), (-1, 1))
    assert (labels.files, len(set(labels.sha256)), labels.n_unlabelled) == ((first, second), 2, 1)


def test_a_photo_belongs_to_the_first_file_that_says_something_of_it(table: Table) -> None:
    first = table("path,x\na.jpg,1\nb.jpg,\n", "first.csv")
    second = table("path,y\nb.jpg,2\na.jpg,1\n", "second.csv")
    labels = read_labels([first, second], scales="1:2")
    assert dict(zip(labels.paths, labels.sets, strict=True)) == {"a.jpg": 0, "b.jpg": 1}


def test_files_may_say_the_same_twice_but_not_contradict_each_other(table: Table) -> None:
    first = table("path,x\na.jpg,1\nb.jpg,2\n", "first.csv")
    second = table("path,x\nb.jpg,2.0\nc.jpg,3\na.jpg,\n", "second.csv")
    assert read_labels([first, second]).values[:, 0].tolist() == [1, 2, 3]
    table("path,x\nb.jpg,4\nc.jpg,3\n", "second.csv")
    with pytest.raises(
        LabelsError,
        match=r"first\.csv and .*second\.csv disagree about 'x' of 'b\.jpg': 2 and 4 \(1 such.*another name",
    ):
        read_labels([first, second])


def test_classes_of_several_files_are_one_set(table: Table) -> None:
    first = table("path,x\na.jpg,joy\nb.jpg,awe\n", "first.csv")
    second = table("path,x\nc.jpg,fear\nb.jpg,joy\n", "second.csv")
    with pytest.raises(LabelsError, match=r"disagree about 'x' of 'b\.jpg': 'awe' and 'joy'"):
        read_labels([first, second], tasks=["x"])
    table("path,x\nc.jpg,fear\n", "second.csv")
    labels = read_labels([first, second], tasks=["x"])
    assert (labels.target.classes, labels.values[:, 0].tolist()) == (("awe", "fear", "joy"), [2, 0, 1])


def test_groups_may_stand_in_one_file_and_hold_for_all(table: Table) -> None:
    first = table("path,x,trip\na.jpg,1,t\nb.jpg,2,t\n", "first.csv")
    second = table("path,y\nb.jpg,2\nc.jpg,1\n", "second.csv")
    assert read_labels([first, second], group="trip", scales="1:2").groups == ["t", "t", "c.jpg"]
    table("path,y,trip\nb.jpg,2,u\nc.jpg,1,u\n", "second.csv")
    with pytest.raises(
        LabelsError, match=r"second\.csv, line 2, column 'trip': 'b\.jpg' is 'u' here and 't' in .*first"
    ):
        read_labels([first, second], group="trip", scales="1:2")


def test_no_file_at_all() -> None:
    with pytest.raises(LabelsError, match="no label table named"):
        read_labels([])


def test_an_unknown_column_is_one_that_no_file_has(table: Table) -> None:
    files = [table("path,x\na.jpg,1\n", "first.csv"), table("path,y\nb.jpg,2\n", "second.csv")]
    with pytest.raises(LabelsError, match=r"first\.csv, .*second\.csv has no column 'z'; known: path, x, y"):
        read_labels(files, tasks=["z"])


def test_parquet_says_the_same_as_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {
            "path": ["a.jpg", "b.jpg", "c.jpg"],
            "x": [1, 7, 3],
            "y": [0.5, None, 2.25],
            "good": [True, False, None],
            "mood": pd.Categorical(["joy", "awe", None]),
        },
        index=[5, 6, 7],
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet", index=True)
    for options in ({"tasks": ["x", "y"]}, {}, {"tasks": ["good"]}, {"tasks": ["mood"]}):
        one, other = read_labels(tmp_path / "t.csv", **options), read_labels(tmp_path / "t.parquet", **options)
        assert (one.paths, one.target, one.scales) == (other.paths, other.target, other.scales)
        np.testing.assert_array_equal(one.values, other.values)


def test_lists_of_parquet_are_several_labels(tmp_path: Path) -> None:
    pd.DataFrame({"path": ["a", "b", "c", "d"], "mood": [["joy", "awe"], ["awe"], [], None]}).to_parquet(
        tmp_path / "t.pq"
    )
    labels = read_labels(tmp_path / "t.pq", tasks=["mood"])
    assert (labels.target.kind, labels.target.tasks) == ("multilabel", ("awe", "joy"))
    assert labels.values.tolist() == [[1, 1], [1, 0], [0, 0]]


def test_parquet_that_makes_no_sense(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "t.parquet"
    pd.DataFrame({"path": ["a", "b", "b"], "x": ["1", "bad", "2"], "y": [1, 2, 3]}).to_parquet(file)
    with pytest.raises(LabelsError, match=r"t\.parquet, row 2, column 'x': 'bad' is not a number"):
        read_labels(file, aggregate="mean", tasks=["x"])
    with pytest.raises(LabelsError, match="as 'b' on rows 2 and 3"):
        read_labels(file, tasks=["y"])
    pd.DataFrame({"path": [], "x": []}).to_parquet(file)
    with pytest.raises(LabelsError, match="has no rows"):
        read_labels(file)
    file.write_bytes(b"path,x\na.jpg,1\n")
    with pytest.raises(LabelsError, match="cannot be read as Parquet"):
        read_labels(file)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(LabelsError, match=r"needs pyarrow to be read; pip install 'featstore\[exchange\]'"):
        read_labels(file)
