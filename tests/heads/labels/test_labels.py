"""Reading one table of ratings: columns, cells, lines, scales, groups, strata and splits."""

import hashlib
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from heads.errors import LabelsError
from heads.labels.labels import read_labels

Table = Callable[[str], Path]


@pytest.fixture
def table(tmp_path: Path) -> Table:
    def write(text: str, encoding: str = "utf-8") -> Path:
        file = tmp_path / "labels.csv"
        file.write_text(text, encoding=encoding, newline="")
        return file

    return write


SIMPLE = """\
path,appeal,calm,who
a.jpg,1,2.5,Ann
b.jpg,7,4,Bob
c.jpg,3,1,Ann
"""


def test_a_table_is_paths_and_every_numeric_column(table: Table) -> None:
    labels = read_labels(table(SIMPLE))
    assert labels.paths == ["a.jpg", "b.jpg", "c.jpg"]
    assert (labels.target.kind, labels.target.tasks) == ("regression", ("appeal", "calm"))
    assert labels.values.tolist() == [[1, 2.5], [7, 4], [3, 1]]
    assert (labels.scales, labels.scale_given) == (((1, 7), (1, 4)), False)
    assert (labels.groups, labels.strata, labels.split, labels.ratings) == (None, None, None, None)
    assert (labels.sets.tolist(), labels.n_unlabelled) == ([0, 0, 0], 0)
    assert labels.sha256 == (hashlib.sha256(SIMPLE.encode()).hexdigest(),)


def test_named_tasks_come_in_the_order_named(table: Table) -> None:
    assert read_labels(table(SIMPLE), tasks=["calm", "appeal"]).target.tasks == ("calm", "appeal")
    assert read_labels(table(SIMPLE), tasks=["calm"]).values.tolist() == [[2.5], [4], [1]]


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "N/A", "null", "None"])
def test_a_missing_cell_is_a_missing_label(table: Table, missing: str) -> None:
    labels = read_labels(table(f"path,x,y\na.jpg,{missing},2\nb.jpg,1,3\n"), scales="1:7")
    np.testing.assert_array_equal(labels.values, [[np.nan, 2], [1, 3]])
    assert np.isnan(labels.scaled()[0, 0])


def test_a_short_line_lacks_its_last_labels(table: Table) -> None:
    labels = read_labels(table("path,x,y\na.jpg,1,2\nb.jpg,3\n"), scales="1:7")
    np.testing.assert_array_equal(labels.values, [[1, 2], [3, np.nan]])


def test_rows_without_any_label_are_left_out_and_counted(table: Table) -> None:
    labels = read_labels(table("path,x,y,who\na.jpg,,,Ann\nb.jpg,1,,Bob\nc.jpg,,2,Cid\n"), scales="1:7", group="who")
    assert (labels.paths, labels.groups, labels.n_unlabelled) == (["b.jpg", "c.jpg"], ["Bob", "Cid"], 1)


def test_a_table_without_any_label(table: Table) -> None:
    with pytest.raises(LabelsError, match="no labels in 'x'; fill it in"):
        read_labels(table("path,x\na.jpg,\nb.jpg,NA\n"), tasks=["x"])


def test_a_path_that_stands_twice_is_named_with_both_lines(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"1 of 2 photos stand several times, as 'a\.jpg' on lines 2 and 4"):
        read_labels(table("path,x\na.jpg,1\nb.jpg,2\n./a.jpg,3\n"))


def test_an_empty_path_is_named_with_its_line(table: Table) -> None:
    with pytest.raises(LabelsError, match="line 3: the path is empty"):
        read_labels(table("path,x\na.jpg,1\n,2\n"))


def test_a_cell_that_is_no_number_is_named_with_line_and_column(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"line 3, column 'x': '4,5' is not a number"):
        read_labels(table('path,x\na.jpg,1\nb.jpg,"4,5"\nc.jpg,2\n'))


@pytest.mark.parametrize("text", ["inf", "-inf", "1e999", "three"])
def test_only_finite_numbers_are_labels(table: Table, text: str) -> None:
    with pytest.raises(LabelsError, match="is not a number"):
        read_labels(table(f"path,x\na.jpg,{text}\nb.jpg,2\nc.jpg,3\n"))


@pytest.mark.parametrize(
    "cell", ["4_86", "4,86", "1 234", "1,234.5", "inf", "0x10", "４.８", "٤", "−3", "4.86%", "1'0"]
)
def test_what_only_a_program_takes_for_a_number_is_none(table: Table, cell: str) -> None:
    """Nor is such a column passed over while another is learned."""
    rows = "".join(f'{i}.jpg,"{cell}",{i}\n' for i in range(4)).replace(cell, "2.5", 1)
    with pytest.raises(LabelsError, match=r"line 3, column 'x': .* is not a number; write it with the digits 0 to 9"):
        read_labels(table(f"path,x,y\n{rows}"))


def test_decimal_commas_are_read_as_points(table: Table, tmp_path: Path) -> None:
    commas = table('path,beauty,n\na.jpg,"4,86",43\nb.jpg," -2,5 ",58\nc.jpg,3,47\nd.jpg,NA,40\n')
    labels = read_labels(commas)
    np.testing.assert_array_equal(labels.values, [[4.86, 43], [-2.5, 58], [3, 47], [np.nan, 40]])
    assert labels.remarks == ("decimal commas of 'beauty' read as points",)
    german = tmp_path / "german.csv"
    german.write_text("path;beauty\na.jpg;4,86\nb.jpg;2,5\n", encoding="utf-8-sig")
    assert read_labels(german).values.tolist() == [[4.86], [2.5]]
    frame = pd.DataFrame({"path": ["a", "b"], "x": ["0,5", "1,25"]})
    assert read_labels(frame, tasks=["x"]).values.tolist() == [[0.5], [1.25]]
    strata = read_labels(
        table("path,x,v\n" + "".join(f'{i}.jpg,{i},"{i},5"\n' for i in range(20))), stratify="v"
    ).strata
    assert strata == [f"{i // 4 + 1} of 5" for i in range(20)]


def test_commas_that_may_part_thousands_are_not_guessed_at(table: Table) -> None:
    with pytest.raises(
        LabelsError, match=r"'1,234' is not a number; it may be 1\.234 or 1234; write it without the comma"
    ):
        read_labels(table('path,x\na.jpg,"1,234"\nb.jpg,"2,500"\n'))


def test_lines_are_counted_as_an_editor_counts_them(table: Table) -> None:
    """Blank lines, lines of commas and cells of several lines do not shift the line that is named."""
    with pytest.raises(LabelsError, match="line 9, column 'x'"):
        read_labels(table('path,x,note\n\na.jpg,1,"two\nlines"\n,,\nb.jpg,2,\n\nc.jpg,3,\nd.jpg,bad,\n\n'))


def test_outside_the_scale_is_named(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"line 3, column 'appeal': 7 is outside the scale 1:5 \(1 such"):
        read_labels(table(SIMPLE), scales="1:5")
    with pytest.raises(LabelsError, match=r"line 2, column 'calm': 2.5 is outside the scale 3:4 \(2 such"):
        read_labels(table(SIMPLE), scales=["1:7", "calm=3:4"])


@pytest.mark.parametrize("scales", ["0:10", (0, 10), [0, 10], ["0:10"], {"appeal": (0, 10), "calm": (0, 10)}])
def test_a_scale_that_is_given_is_kept(table: Table, scales: object) -> None:
    labels = read_labels(table(SIMPLE), scales=scales)
    assert (labels.scales, labels.scale_given) == (((0, 10), (0, 10)), True)
    assert labels.scaled().tolist() == pytest.approx(np.array([[-0.4, -0.25], [0.2, -0.1], [-0.2, -0.4]]))


def test_each_task_may_have_a_scale(table: Table) -> None:
    labels = read_labels(table(SIMPLE), scales=["1:7", "calm=0:5"])
    assert (labels.scales, labels.scale_given) == (((1, 7), (0, 5)), True)
    assert labels.scaled()[0].tolist() == [-0.5, 0]
    assert labels.unscaled(labels.scaled()) == pytest.approx(labels.values)
    partly = read_labels(table(SIMPLE), scales=["calm=0:5"])
    assert (partly.scales, partly.scale_given) == (((1, 7), (0, 5)), False)


@pytest.mark.parametrize(
    ("scales", "message"),
    [
        ("1-7", "'1-7' is not of the form LOW:HIGH"),
        (["calm=1-7"], "'1-7' is not of the form LOW:HIGH.*TASK=LOW:HIGH, as beauty=1:10"),
        ("7:1", "7:1.*below"),
        ((7, 1), "7:1.*below"),
        (["clam=1:7"], "no such task; did you mean 'calm'"),
        (["1:7", "0:7"], "two scales of every task"),
        (["calm=1:7", "calm=0:7"], "two scales of 'calm'"),
    ],
)
def test_scales_that_make_no_sense(table: Table, scales: object, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(table(SIMPLE), scales=scales)


def test_labels_that_are_all_equal_teach_nothing(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"every label of 'x' in .*csv is 3; there is nothing to learn"):
        read_labels(table("path,x\na.jpg,3\nb.jpg,3\n"))
    with pytest.raises(LabelsError, match=r"every label of 'x' in .*csv is 3; there is nothing to learn"):
        read_labels(table("path,x\na.jpg,3\nb.jpg,3.0\n"), scales="1:7")
    labels = read_labels(table("path,x,y\na.jpg,3,1\nb.jpg,3,2\n"), scales="1:7")
    assert (labels.target.tasks, labels.left_out) == (("y",), {"x": "always 3"})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_column": "paths"}, "no column 'paths'; did you mean 'path'"),
        ({"tasks": ["apeal"]}, "no column 'apeal'; did you mean 'appeal'"),
        ({"group": "folde"}, "no column 'folde' to group by; did you mean 'folder'"),
        ({"group": "wh"}, "did you mean 'who'"),
        ({"tasks": ["zzz"]}, "known: appeal, calm, path, who"),
        ({"tasks": ["calm", "calm"]}, "named twice"),
        ({"tasks": ["who"], "kind": "regression"}, "line 2, column 'who': 'Ann' is not a number"),
        ({"stratify": "wh"}, "no column 'wh' to stratify by; did you mean 'who'"),
        ({"split": "pat"}, "no column 'pat' to split by; did you mean 'path'"),
        ({"kind": "regresion"}, "unknown kind 'regresion'; did you mean 'regression'"),
        ({"aggregate": "mode"}, "'mode': expected mean or median"),
    ],
)
def test_unknown_columns_are_answered_with_a_suggestion(table: Table, options: dict, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(table(SIMPLE), **options)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no rows"),
        ("\n\n", "has no rows"),
        ("path,x\n", "has no rows"),
        ("path,who\na.jpg,Ann\n", "no numeric column to learn; it has 'path', 'who'; a column of classes"),
        ("path;x\na.jpg;1;2\n", "line 2: 3 cells under 2 column names"),
        ("path,x,x\na.jpg,1,2\n", "two columns 'x'"),
        ("path,x\na.jpg,1\nb.jpg,1,3\n", "line 3: 3 cells under 2 column names"),
        ("path,x\na.jpg,1,5\nb.jpg,1,6\n", "line 2: 3 cells under 2 column names"),
        ('path,x\n"a.jpg,1\n', "cannot be read as CSV"),
        ("path,x,fold\na.jpg,1,0\nb.jpg,2,1\n", "'fold' has the name of a column of a run's predictions"),
        ("path,x,x_predicted\na.jpg,1,0\nb.jpg,2,1\n", "'x_predicted' has the name of a column"),
    ],
)
def test_tables_that_make_no_sense(table: Table, text: str, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(table(text))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="does not exist"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelsError, match="cannot be read: Is a directory"):
        read_labels(tmp_path)
    (tmp_path / "photo.csv").write_bytes(b"\xff\xd8\xff\xe0path,x\n")
    with pytest.raises(LabelsError, match=r"photo.csv is not UTF-8 \(found the byte 0xff\); save it as CSV UTF-8"):
        read_labels(tmp_path / "photo.csv")


@pytest.mark.parametrize("name", ["labels.xlsx", "labels.ods"])
def test_a_spreadsheet_has_to_be_saved_as_csv(tmp_path: Path, name: str) -> None:
    with pytest.raises(LabelsError, match="is a spreadsheet; save it as CSV"):
        read_labels(tmp_path / name)


def test_a_table_with_tabs(tmp_path: Path) -> None:
    (tmp_path / "labels.tsv").write_text("path\tx\na, b.jpg\t1\n c.jpg\t2\n")
    assert read_labels(tmp_path / "labels.tsv").paths == ["a, b.jpg", "c.jpg"]


def test_the_numbering_that_pandas_writes_is_not_a_task(table: Table) -> None:
    assert read_labels(table(",path,x\n0,a.jpg,1\n1,b.jpg,2\n")).target.tasks == ("x",)


def test_columns_may_be_parted_by_semicolons_or_tabs(table: Table) -> None:
    assert read_labels(table("path;x\na, b.jpg;1\nc.jpg;2\n")).paths == ["a, b.jpg", "c.jpg"]
    assert read_labels(table("path\tx\na, b.jpg\t1\nc.jpg\t2\n")).values.tolist() == [[1], [2]]


def test_commas_at_the_end_of_lines_are_harmless(table: Table) -> None:
    labels = read_labels(table("path,x\na.jpg,1,\nb.jpg,2,\n"))
    assert (labels.paths, labels.values.tolist()) == (["a.jpg", "b.jpg"], [[1], [2]])


def test_tables_from_spreadsheets(table: Table) -> None:
    """A byte order mark, carriage returns, spaces around cells, and paths as Windows writes them."""
    labels = read_labels(table("path , x\r\nAlps\\day 1\\a.jpg, 1\r\n ./Alps/b.jpg ,2\r\n", encoding="utf-8-sig"))
    assert labels.paths == ["Alps/day 1/a.jpg", "Alps/b.jpg"]
    assert (labels.target.tasks, labels.values.tolist()) == (("x",), [[1], [2]])


def test_any_letters_and_spaces_in_names(table: Table) -> None:
    labels = read_labels(table("файл,schön & gut\nété 1/日本.jpg,1\nété 1/a b.jpg,2\n"), path_column="файл")
    assert (labels.paths, labels.target.tasks) == (["été 1/日本.jpg", "été 1/a b.jpg"], ("schön & gut",))


GROUPED = """\
path,x,trip
Oak/Acorns 1.jpg,1,7
Oak/Acorns 12.jpg,2,7
Elm/leaf-3.jpg,3,8
Elm/leaf_04.jpg,4,7
Elm/bark.jpg,5,8
"""


@pytest.mark.parametrize(
    ("group", "expected"),
    [
        ("trip", ["7", "7", "8", "7", "8"]),
        ("name", ["Acorns", "Acorns", "leaf", "leaf", "bark"]),
        ("folder", ["Oak", "Oak", "Elm", "Elm", "Elm"]),
    ],
)
def test_groups_by_column_by_name_or_by_folder(table: Table, group: str, expected: list[str]) -> None:
    labels = read_labels(table(GROUPED), group=group)
    assert labels.groups == expected
    assert ("trip" in labels.target.tasks) == (group != "trip")  # what groups is not learned


def test_a_photo_without_a_group_is_a_group_of_its_own(table: Table) -> None:
    labels = read_labels(table("path,x,series\na.jpg,1,s\nb.jpg,2,\nc.jpg,3,\nd.jpg,4,s\ne.jpg,4,NA\n"), group="series")
    assert labels.groups == ["s", "b.jpg", "c.jpg", "s", "NA"]


def test_strata_are_a_column_as_it_is(table: Table) -> None:
    assert read_labels(table(SIMPLE), stratify="who").strata == ["Ann", "Bob", "Ann"]
    assert read_labels(table("path,x,v\na.jpg,1,7\nb.jpg,2,\n"), tasks=["x"], stratify="v").strata == ["7", ""]


def test_numbers_with_many_values_are_cut_into_quantiles(table: Table) -> None:
    """Twenty ratings, one of them missing, in no order: five bins that hold about as many."""
    values = np.random.default_rng(0).permutation(20) / 2
    lines = [f"{i}.jpg,{value if i else ''},1,{i % 2}" for i, value in enumerate(values)]
    labels = read_labels(table("\n".join(["path,x,y,z", *lines])), tasks=["x", "z"], stratify="x", scales="0:10")
    assert labels.strata is not None
    assert labels.strata[0] == ""
    bins = [int(text.removesuffix(" of 5")) for text in labels.strata[1:]]
    assert sorted(np.bincount(bins, minlength=6).tolist()) == [0, 3, 4, 4, 4, 4]
    assert (np.diff(np.array(bins)[np.argsort(values[1:])]) >= 0).all()


def test_ten_values_are_strata_as_they_are(table: Table) -> None:
    lines = [f"{i}.jpg,{i % 10}" for i in range(40)]
    assert len(set(read_labels(table("\n".join(["path,x", *lines])), stratify="x").strata or [])) == 10


def test_a_split_is_the_text_of_a_column_and_not_a_task(table: Table) -> None:
    text = "path,x,part,fold\na.jpg,1,train,1\nb.jpg,2,test,2\n"
    assert read_labels(table(text), tasks=["x"], split="part").split == ["train", "test"]
    labels = read_labels(table(text), split="fold")
    assert (labels.split, labels.target.tasks) == (["1", "2"], ("x",))


def test_every_labelled_photo_needs_a_part_of_the_split(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"column 'part' says of 1 labelled photos no part of the split, 'b\.jpg'"):
        read_labels(table("path,x,part\na.jpg,1,train\nb.jpg,2,\n"), split="part")
    assert read_labels(table("path,x,part\na.jpg,1,train\nb.jpg,,\nc.jpg,2,test\n"), split="part").paths == [
        "a.jpg",
        "c.jpg",
    ]


def test_accents_are_one_character_unless_two_paths_become_one(table: Table) -> None:
    apart = unicodedata.normalize("NFD", "é.jpg")
    assert read_labels(table(f"path,x\n{apart},1\nb.jpg,2\n")).paths == ["é.jpg", "b.jpg"]
    assert read_labels(table(f"path,x\n{apart},1\né.jpg,2\n")).paths == [apart, "é.jpg"]


# ---- tables in memory


FRAME = pd.DataFrame(
    {"path": ["a.jpg", "b.jpg", "c.jpg"], "x": [1.0, None, 3.0], "y": [2, 4, 6], "who": ["A", "B", "B"]}
)


def test_a_frame_is_read_like_the_file_that_it_could_be(tmp_path: Path) -> None:
    FRAME.to_csv(tmp_path / "l.csv", index=False)
    from_file, from_frame = (read_labels(each, scales=(1, 7), group="who") for each in (str(tmp_path / "l.csv"), FRAME))
    np.testing.assert_array_equal(from_frame.values, from_file.values)
    assert (from_frame.paths, from_frame.groups) == (from_file.paths, from_file.groups)
    assert from_frame.target == from_file.target
    assert repr(from_frame) == "<Labels of 3 photos from DataFrame: regression of x, y, scale 1:7>"
    again = read_labels(FRAME.copy(), scales=(1, 7), group="who")
    other = read_labels(FRAME.assign(y=[2, 4, 5]), scales=(1, 7), group="who")
    assert from_frame.sha256 == again.sha256 != other.sha256


@pytest.mark.parametrize("name", ["path", "photo", None])
def test_an_index_of_words_names_the_photos(name: str | None) -> None:
    frame = FRAME.set_index("path").rename_axis(index=name)
    assert read_labels(frame, tasks=["y"]).paths == ["a.jpg", "b.jpg", "c.jpg"]


def test_a_frame_may_have_classes_and_what_is_missing_in_it_is_missing() -> None:
    frame = pd.DataFrame({"path": ["a", "b", "c", "d"], "mood": pd.Categorical(["sad", "glad", None, "sad"])})
    labels = read_labels(frame, tasks=["mood"], kind="multiclass")
    assert (labels.paths, labels.target.classes, labels.n_unlabelled) == (["a", "b", "d"], ("glad", "sad"), 1)
    frame = pd.DataFrame({"path": ["a", "b", "c"], "x": pd.array([1, None, 3], dtype="Int64")})
    assert read_labels(frame).paths == ["a", "c"]


def test_classes_of_a_frame_and_of_parquet_are_those_of_the_file(tmp_path: Path) -> None:
    """Whole numbers that a missing cell turned into fractions are whole again; long ones are not cut."""
    ids = pd.array([12345678901234561, None, 12345678901234568], dtype="Int64")
    codes = [1.0, None, 2.0]
    for column, classes in ((ids, ("12345678901234561", "12345678901234568")), (codes, ("1", "2"))):
        frame = pd.DataFrame({"path": ["a", "b", "c"], "x": column})
        frame.to_parquet(tmp_path / "l.parquet")
        for source in (frame, tmp_path / "l.parquet"):
            labels = read_labels(source, tasks=["x"], kind="multiclass")
            assert (labels.target.classes, labels.missing) == (classes, {"": 1})
    rounded = read_labels(
        pd.DataFrame({"path": ["a", "b"], "x": [12345678901234561.0, 2e17]}), tasks=["x"], kind="multiclass"
    )
    assert "were long numbers rounded" in rounded.remarks[0]


def test_true_and_false_of_a_frame_are_yes_and_no(tmp_path: Path) -> None:
    frame = pd.DataFrame({"path": ["a", "b", "c"], "liked": [True, False, None], "x": ["u", "v", "w"]})
    frame.to_parquet(tmp_path / "l.parquet")
    for source in (frame, tmp_path / "l.parquet"):
        labels = read_labels(source)
        assert (labels.target.kind, labels.values.tolist()) == ("binary", [[1], [0]])


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (FRAME.rename(columns={"path": "photo"}), "DataFrame has no column 'path'; known: photo, who, x, y"),
        (FRAME.assign(x=[1, "bad", 3]), "DataFrame, row 1, column 'x': 'bad' is not a number"),
        (FRAME.iloc[:0], "DataFrame has no rows"),
        (pd.concat([FRAME, FRAME[["x"]]], axis=1), "DataFrame has two columns 'x'"),
        (pd.concat([FRAME, FRAME]), "3 of 3 photos stand several times, as 'a.jpg' on rows 0 and 3"),
    ],
)
def test_a_frame_that_makes_no_sense_is_answered_like_a_file(frame: pd.DataFrame, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(frame, tasks=["x"])
