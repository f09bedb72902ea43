"""What the cells of a label table mean: ratings, yes or no, one class of several, several labels at once."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels.labels import Labels, read_labels
from heads.labels.table import natural
from heads.labels.target import Target

Read = Callable[..., Labels]


@pytest.fixture
def read(tmp_path: Path) -> Read:
    """The labels of photos a.jpg, b.jpg, ... from columns of cells, one text each."""

    def read(columns: dict[str, str], **options: object) -> Labels:
        rows = zip(*(cells.split(",") for cells in columns.values()), strict=True)
        lines = [f"{chr(97 + i)}.jpg,{','.join(row)}" for i, row in enumerate(rows)]
        file = tmp_path / "labels.csv"
        file.write_text("\n".join([",".join(["path", *columns]), *lines]))
        return read_labels(file, **options)

    return read


@pytest.mark.parametrize(
    ("columns", "options", "kind"),
    [
        ({"x": "1,2,3"}, {}, "regression"),
        ({"x": "0,1,0.5"}, {}, "regression"),
        ({"x": "0,1,0", "y": "1,2,3"}, {}, "regression"),
        ({"x": "0,1,0"}, {}, "binary"),
        ({"x": "0,1,0", "y": "1.0,,0"}, {}, "binary"),
        ({"x": "Yes,no,NA"}, {"tasks": ["x"]}, "binary"),
        ({"x": "TRUE,False,true"}, {"tasks": ["x"]}, "binary"),
        ({"x": "0,1,0"}, {"kind": "regression"}, "regression"),
        ({"x": "joy,fear,joy"}, {"tasks": ["x"]}, "multiclass"),
        ({"x": "3,1,2"}, {"tasks": ["x"], "kind": "multiclass"}, "multiclass"),
        ({"x": "joy|fear,fear,joy"}, {"tasks": ["x"]}, "multilabel"),
        ({"x": "0,1,0", "y": "1,1,0"}, {"kind": "multilabel"}, "multilabel"),
    ],
)
def test_kinds_are_said_or_guessed(read: Read, columns: dict, options: dict, kind: str) -> None:
    labels = read(columns, **options)
    assert labels.target.kind == kind
    if kind != "regression":
        assert (set(labels.scales), labels.scale_given) == ({(0, 1)}, True)
        np.testing.assert_array_equal(labels.scaled(), labels.values.astype(np.float32))
        chances = np.array([[0.25]])
        assert labels.unscaled(chances).tolist() == [[0.25]]


def test_yes_and_no_are_1_and_0(read: Read) -> None:
    labels = read({"x": "yes,NO,,1,0.0,True"}, tasks=["x"])
    assert (labels.values[:, 0].tolist(), labels.n_unlabelled) == ([1, 0, 1, 0, 1], 1)


def test_classes_are_sorted_and_labels_are_their_indices(read: Read) -> None:
    labels = read({"mood": "joy,awe,,fear,awe"}, tasks=["mood"])
    assert (labels.target.tasks, labels.target.classes) == (("mood",), ("awe", "fear", "joy"))
    assert labels.values.tolist() == [[2], [0], [1], [0]]
    assert labels.paths == ["a.jpg", "b.jpg", "d.jpg", "e.jpg"]


@pytest.mark.parametrize(
    ("cells", "classes"),
    [
        ("10,9,-1,9", ("-1", "9", "10")),
        ("type 10,type 9,Type 2,type 9", ("Type 2", "type 9", "type 10")),
        ("1,b,10,2", ("1", "2", "10", "b")),
    ],
)
def test_classes_sort_as_people_sort_them(read: Read, cells: str, classes: tuple[str, ...]) -> None:
    assert read({"x": cells}, tasks=["x"], kind="multiclass").target.classes == classes


@settings(max_examples=50)
@given(numbers=st.sets(st.integers(0, 10**6), min_size=1), others=st.sets(st.text(max_size=6), max_size=4))
def test_numbers_within_names_sort_by_value_whatever_else_there_is(numbers: set[int], others: set[str]) -> None:
    numbered = [f"class {number} of 9" for number in numbers]
    ordered = sorted([*numbered, *others], key=natural)
    assert [name for name in ordered if name in numbered] == [f"class {number} of 9" for number in sorted(numbers)]


def test_several_labels_in_a_cell(read: Read) -> None:
    """A separator alone says that there is none of the labels; an empty cell, that it is not known."""
    for separator in "|;":
        cells = f"joy{separator} fear,fear,{separator},,joy"
        labels = read({"mood": cells}, tasks=["mood"], kind="multilabel")
        assert labels.target.tasks == ("fear", "joy")
        assert labels.values.tolist() == [[1, 1], [1, 0], [0, 0], [0, 1]]
        assert (labels.paths, labels.n_unlabelled) == (["a.jpg", "b.jpg", "c.jpg", "e.jpg"], 1)


def test_several_columns_of_labels(read: Read) -> None:
    columns = {"joy": "1,0,1", "who": "Ann,Bob,Cid", "fear": "yes,no,", "age": "30,40,50"}
    labels = read(columns, kind="multilabel")
    assert labels.target.tasks == ("joy", "fear")
    np.testing.assert_array_equal(labels.values, [[1, 1], [0, 0], [1, np.nan]])


def test_strata_by_a_task(read: Read) -> None:
    assert read({"x": "joy,,fear", "y": "a,b,c"}, tasks=["x"], stratify="x").strata == ["joy", "fear"]
    assert read({"x": "1,0,1"}, stratify="x").strata == ["1", "0", "1"]


@pytest.mark.parametrize(
    ("columns", "options", "message"),
    [
        ({"x": "0,1,2"}, {"kind": "binary", "tasks": ["x"]}, "line 4, column 'x': '2' is neither 0 nor 1, yes nor no"),
        ({"x": "3,1,2"}, {"kind": "binary"}, "no column of 0 and 1, or yes and no, to learn; it has 'path', 'x'"),
        ({"x": "1,1,1"}, {}, "every label of 'x' .* is 1; there is nothing to learn"),
        ({"x": "1,1,1"}, {"tasks": ["x"], "kind": "multilabel"}, "one label, '1'"),
        ({"x": "1,1,", "y": "0,1,1"}, {"tasks": ["x", "y"], "kind": "multilabel"}, "every label of 'x' .* is 1; there"),
        ({"x": "5,5,", "y": "1,2,3"}, {"tasks": ["x", "y"], "scales": "1:7"}, "every label of 'x' .* is 5; there is"),
        ({"x": "joy|fear,joy,joy"}, {"tasks": ["x"]}, "every label of 'joy' .* is 1; there is nothing to learn"),
        (
            {"x": "a,b,a", "y": "c,d,c"},
            {"kind": "multiclass"},
            "name the column of the classes with --tasks; .* has 'path', 'x', 'y'",
        ),
        (
            {"x": "a,b", "y": "c,d"},
            {"kind": "multiclass", "tasks": ["x", "y"]},
            "one column of classes; found 'x', 'y'",
        ),
        ({"x": "joy,joy"}, {"tasks": ["x"]}, "column 'x' of .* has one class, 'joy'; two are needed"),
        ({"x": "joy,joy"}, {"tasks": ["x"], "kind": "multilabel"}, "one label, 'joy'; expected several in a cell"),
        (
            {"x": "a,b", "y": "c,d"},
            {"tasks": ["x", "y"]},
            "one column of classes; found 'x', 'y' of classes: name one .* --tasks 'x', and train a head for each; or "
            "give each class a column of 0 and 1 and say --kind multilabel",
        ),
        (
            {"x": "a,b,a,b", "y": "c,c,d,d"},
            {},
            r"no numeric column to learn; .* the one that --tasks names; 'x' \(2 classes\), 'y' \(2 classes\) may be",
        ),
        ({"x": "1,2,3"}, {"tasks": ["x"], "kind": "binary"}, "'2' is neither 0 nor 1"),
        ({"x": "a,b"}, {"tasks": ["x"], "scales": "1:7"}, "--scale is for ratings, and the labels x are multiclass"),
        ({"x": "a|path,b"}, {"tasks": ["x"]}, "'path' has the name of a column of a run's predictions"),
        ({"x": "a|all,b"}, {"tasks": ["x"]}, "a label is called 'all', as the metrics of all labels are; rename it"),
        ({"x": "a_is_b,b", "a_is_b": "1,2"}, {"tasks": ["a_is_b", "x"]}, "found 'x' of classes, and 'a_is_b' not"),
    ],
)
def test_cells_that_do_not_fit_their_kind(read: Read, columns: dict, options: dict, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read(columns, **options)


@pytest.mark.parametrize(
    "cells",
    [
        "12345678901234561,12345678901234568,12345678901234561",
        "1.10,1.1,1.2",
        "007,7,07",
        "1e5,100000,1E5",
        "4.0,4,4.00",
        "Joy,joy,JOY",
        "1_000,1000,1_000",
        "True,true,1",
        "N.A.,-,?",
    ],
)
def test_names_of_classes_are_text(read: Read, cells: str) -> None:
    """No two are merged, whatever they would be as numbers."""
    labels = read({"x": cells}, tasks=["x"], kind="multiclass")
    assert set(labels.target.classes) == set(cells.split(","))
    assert [labels.target.classes[int(value)] for value in labels.values[:, 0]] == cells.split(",")


@pytest.mark.parametrize("cells", ["12345678901234561,12345678901234568", "00501,10001", "007,008", "0123,7"])
def test_numbers_that_are_names_are_classes(read: Read, cells: str) -> None:
    labels = read({"who": cells}, tasks=["who"])
    assert (labels.target.kind, set(labels.target.classes)) == ("multiclass", set(cells.split(",")))
    rated = read({"x": "1,2", "who": cells})
    assert rated.target.tasks == ("x",)
    assert rated.left_out == {"who": f"numbers that are names, as {cells.split(',')[0]}"}
    assert read({"x": cells}, kind="regression").target.tasks == ("x",)  # unless it is said


@pytest.mark.parametrize(
    ("cells", "remark"),
    [
        ("9,9.0,10", "'9', '9.0' are one number, and stay 2 classes: names of classes are text"),
        ("Joy,joy,fear", "'Joy', 'joy' differ in upper and lower case alone, and stay 2 classes"),
        ("1.23457E+16,9.93457E+16", "'1.23457E+16', '9.93457E+16': were long numbers rounded by a spreadsheet"),
        ("joy,none,NA", "'NA', 'none' are classes here; --missing=NA --missing=none if that means that there is none"),
        ("joy,?,fear", "'?' is a class here; --missing='?' if that means"),
    ],
)
def test_classes_that_may_not_be_meant_are_remarked_on(read: Read, cells: str, remark: str) -> None:
    (said,) = read({"x": cells}, tasks=["x"], kind="multiclass").remarks
    assert said.startswith(remark)


@pytest.mark.parametrize("name", ["none", "None", "NA", "null", "nan", "N/A", "-", "?", "-9"])
def test_a_word_is_a_class_unless_it_is_said_to_be_missing(read: Read, name: str) -> None:
    columns = {"mood": f"joy,{name},fear,,joy"}
    labels = read(columns, tasks=["mood"])
    assert set(labels.target.classes) == {"joy", "fear", name}
    assert (labels.paths, labels.missing) == (["a.jpg", "b.jpg", "c.jpg", "e.jpg"], {"": 1})
    labels = read(columns, tasks=["mood"], missing=[name, "never"])
    assert labels.target.classes == ("fear", "joy")
    assert labels.paths == ["a.jpg", "c.jpg", "e.jpg"]
    assert labels.missing == {"": 1, name: 1, "never": 0}


def test_what_is_missing_in_columns_of_numbers_is_counted(read: Read) -> None:
    columns = {"x": "1,NA,-9,,5", "y": "1,na,NA,4,-9.0"}
    labels = read(columns, missing="-9")
    np.testing.assert_array_equal(labels.values, [[1, 1], [np.nan, 4], [5, np.nan]])
    assert labels.missing == {"": 1, "NA": 2, "na": 1, "-9": 1, "-9.0": 1}
    assert read({"x": "yes,no,NA"}).missing == {"NA": 1}
    with pytest.raises(LabelsError, match=r"'\?' is not a number; correct it, or say --missing '\?' if it means"):
        read({"x": "1,?,3"})
    assert read({"x": "1,?,3"}, missing=["?"]).missing == {"?": 1}


@pytest.mark.parametrize(
    "cells", ["yes,no,yes", "Y,n,Y", "TRUE,FALSE,TRUE", "True,False,True", "t,f,t", "1,0,1", "1.0,0.0,1.0", "Yes,NO,1"]
)
def test_yes_or_no_is_found_without_naming_it(read: Read, cells: str) -> None:
    labels = read({"who": "Ann,Bob,Cid", "liked": cells})
    assert (labels.target.kind, labels.target.tasks) == ("binary", ("liked",))
    assert labels.values.tolist() == [[1], [0], [1]]
    assert labels.left_out == {"who": "text, as 'Ann'"}


def test_columns_that_are_not_learned_are_told_with_the_reason(read: Read) -> None:
    columns = {
        "beauty": "4,2,3",
        "never": "0,0,",
        "smile": "yes,no,yes",
        "Unnamed: 0": "0,1,2",
        "photo_id": "17,4,9",
        "nothing": ",,",
        "mood": "joy,awe,joy",
        "age": "31,old,young",
    }
    labels = read(columns)
    assert labels.target.tasks == ("beauty",)
    assert labels.left_out == {
        "never": "always 0",
        "smile": "yes or no",
        "Unnamed: 0": "ids, by its name",
        "photo_id": "ids, by its name",
        "nothing": "empty",
        "mood": "2 classes",
        "age": "1 of 3 are numbers, 'old' is none",
    }
    named = read(columns, tasks=["beauty", "photo_id"])
    assert (named.target.tasks, named.left_out) == (("beauty", "photo_id"), {})


ratings = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(
    ends=st.lists(st.tuples(ratings, st.floats(1e-3, 1e6)), min_size=1, max_size=4),
    shares=st.lists(st.floats(0, 1), min_size=1, max_size=5),
)
def test_scaling_maps_each_scale_to_half_a_unit_either_side_and_back(
    ends: list[tuple[float, float]], shares: list[float]
) -> None:
    values = np.array([[low + span * share for low, span in ends] for share in shares])
    labels = labels_of(values, [(low, low + span) for low, span in ends])
    scaled = labels.scaled()
    assert scaled.dtype == np.float32
    assert scaled == pytest.approx(np.repeat(np.array(shares)[:, None] - 0.5, len(ends), 1), abs=1e-5)
    for k, (low, span) in enumerate(ends):
        assert labels.unscaled(scaled)[:, k] == pytest.approx(values[:, k], abs=span * 1e-5 + abs(low) * 1e-9)


def labels_of(values: np.ndarray, scales: list[tuple[float, float]]) -> Labels:
    from heads.labels.target import Target

    return Labels(
        columns=("task",),
        files=(Path("labels.csv"),),
        sha256=("",),
        paths=[f"{i}.jpg" for i in range(len(values))],
        target=Target("regression", tuple(f"x{k}" for k in range(values.shape[1]))),
        values=values,
        scales=tuple(scales),
        scale_given=True,
        groups=None,
        strata=None,
        split=None,
        sets=np.zeros(len(values), np.int64),
        n_unlabelled=0,
    )


def test_one_of_several_labels_is_read_as_the_run_knows_it(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("path,a,b\n1.jpg,1,0\n2.jpg,0,1\n")
    like = Target("multilabel", ("a", "b", "c"))
    labels = read_labels(tmp_path / "labels.csv", tasks=["a"], kind="multilabel", like=like)
    assert labels.target == Target("multilabel", ("a",))
    assert labels.values.tolist() == [[1], [0]]
