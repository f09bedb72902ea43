"""Reading label tables and joining them to a store."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels import Join, Labels, join, read_labels

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
    assert labels.tasks == ("appeal", "calm")
    assert labels.values.tolist() == [[1, 2.5], [7, 4], [3, 1]]
    assert (labels.scale, labels.scale_given) == ((1, 7), False)
    assert (labels.groups, labels.n_unlabelled) == (None, 0)
    assert len(labels.sha256) == 64


def test_named_tasks_come_in_the_order_named(table: Table) -> None:
    assert read_labels(table(SIMPLE), tasks=["calm", "appeal"]).tasks == ("calm", "appeal")
    assert read_labels(table(SIMPLE), tasks=["calm"]).values.tolist() == [[2.5], [4], [1]]


@pytest.mark.parametrize("missing", ["", " ", "NA", "nan", "N/A", "null", "None"])
def test_a_missing_cell_is_a_missing_label(table: Table, missing: str) -> None:
    labels = read_labels(table(f"path,x,y\na.jpg,{missing},2\nb.jpg,1,3\n"))
    np.testing.assert_array_equal(labels.values, [[np.nan, 2], [1, 3]])
    assert np.isnan(labels.scaled()[0, 0])


def test_a_short_line_lacks_its_last_labels(table: Table) -> None:
    np.testing.assert_array_equal(read_labels(table("path,x,y\na.jpg,1,2\nb.jpg,1\n")).values, [[1, 2], [1, np.nan]])


def test_rows_without_any_label_are_left_out_and_counted(table: Table) -> None:
    labels = read_labels(table("path,x,y,who\na.jpg,,,Ann\nb.jpg,1,,Bob\nc.jpg,,2,Cid\n"), group="who")
    assert (labels.paths, labels.groups, labels.n_unlabelled) == (["b.jpg", "c.jpg"], ["Bob", "Cid"], 1)


def test_a_table_without_any_label(table: Table) -> None:
    with pytest.raises(LabelsError, match="no labels in x"):
        read_labels(table("path,x\na.jpg,\nb.jpg,NA\n"), tasks=["x"])


def test_a_path_that_stands_twice_is_named_with_both_lines(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"'a\.jpg' stands on lines 2 and 4"):
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


def test_lines_are_counted_as_an_editor_counts_them(table: Table) -> None:
    """Blank lines, lines of commas and cells of several lines do not shift the line that is named."""
    with pytest.raises(LabelsError, match="line 9, column 'x'"):
        read_labels(table('path,x,note\n\na.jpg,1,"two\nlines"\n,,\nb.jpg,2,\n\nc.jpg,3,\nd.jpg,bad,\n\n'))


def test_outside_the_scale_is_named(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"line 3, column 'appeal': 7 is outside the scale 1:5 \(1 such"):
        read_labels(table(SIMPLE), scale=(1, 5))
    with pytest.raises(LabelsError, match=r"7:1.*below"):
        read_labels(table(SIMPLE), scale=(7, 1))


def test_a_scale_that_is_given_is_kept(table: Table) -> None:
    labels = read_labels(table(SIMPLE), scale=(0, 10))
    assert (labels.scale, labels.scale_given) == ((0, 10), True)
    assert labels.scaled().tolist() == pytest.approx(np.array([[-0.4, -0.25], [0.2, -0.1], [-0.2, -0.4]]))


def test_labels_that_are_all_equal_teach_nothing(table: Table) -> None:
    with pytest.raises(LabelsError, match=r"every label .* is 3"):
        read_labels(table("path,x\na.jpg,3\nb.jpg,3\n"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"path_column": "paths"}, "no column 'paths'; did you mean 'path'"),
        ({"tasks": ["apeal"]}, "no column 'apeal'; did you mean 'appeal'"),
        ({"group": "folde"}, "no column 'folde' to group by; did you mean 'folder'"),
        ({"group": "wh"}, "did you mean 'who'"),
        ({"tasks": ["zzz"]}, "known: appeal, calm, path, who"),
        ({"tasks": ["calm", "calm"]}, "named twice"),
        ({"tasks": ["who"]}, "line 2, column 'who': 'Ann' is not a number"),
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
        ("path,who\na.jpg,Ann\n", "no numeric column to learn; it has path, who"),
        ("path,x,x\na.jpg,1,2\n", "two columns 'x'"),
        ("path,x\na.jpg,1\nb.jpg,1,3\n", "line 3: 3 cells under 2 column names"),
        ("path,x\na.jpg,1,5\nb.jpg,1,6\n", "line 2: 3 cells under 2 column names"),
        ('path,x\n"a.jpg,1\n', "cannot be read as CSV"),
        ("path,x,fold\na.jpg,1,0\nb.jpg,2,1\n", "column 'fold' has the name of a column of a run's predictions"),
        ("path,x,x_predicted\na.jpg,1,0\nb.jpg,2,1\n", "column 'x_predicted' has the name of a column"),
    ],
)
def test_tables_that_make_no_sense(table: Table, text: str, message: str) -> None:
    with pytest.raises(LabelsError, match=message):
        read_labels(table(text))


def test_a_file_that_is_not_there_or_not_text(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="does not exist"):
        read_labels(tmp_path / "none.csv")
    with pytest.raises(LabelsError, match="cannot be read as CSV"):
        read_labels(tmp_path)
    (tmp_path / "photo.csv").write_bytes(b"\xff\xd8\xff\xe0path,x\n")
    with pytest.raises(LabelsError, match="cannot be read as CSV"):
        read_labels(tmp_path / "photo.csv")


def test_the_numbering_that_pandas_writes_is_not_a_task(table: Table) -> None:
    assert read_labels(table(",path,x\n0,a.jpg,1\n1,b.jpg,2\n")).tasks == ("x",)


def test_commas_at_the_end_of_lines_are_harmless(table: Table) -> None:
    labels = read_labels(table("path,x\na.jpg,1,\nb.jpg,2,\n"))
    assert (labels.paths, labels.values.tolist()) == (["a.jpg", "b.jpg"], [[1], [2]])


def test_tables_from_spreadsheets(table: Table) -> None:
    """A byte order mark, carriage returns, spaces around cells, and paths as Windows writes them."""
    labels = read_labels(table("path , x\r\nAlps\\day 1\\a.jpg, 1\r\n ./Alps/b.jpg ,2\r\n", encoding="utf-8-sig"))
    assert labels.paths == ["Alps/day 1/a.jpg", "Alps/b.jpg"]
    assert (labels.tasks, labels.values.tolist()) == (("x",), [[1], [2]])


def test_any_letters_and_spaces_in_names(table: Table) -> None:
    labels = read_labels(table("файл,schön & gut\nété 1/日本.jpg,1\nété 1/a b.jpg,2\n"), path_column="файл")
    assert (labels.paths, labels.tasks) == (["été 1/日本.jpg", "été 1/a b.jpg"], ("schön & gut",))


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
    assert ("trip" in labels.tasks) == (group != "trip")  # what groups is not learned


numbers = st.floats(-1e6, 1e6)


@settings(deadline=None)
@given(low=numbers, span=st.floats(1e-3, 1e6), shares=st.lists(st.floats(0, 1), min_size=1, max_size=5))
def test_scaling_maps_the_scale_to_half_a_unit_either_side_and_back(
    low: float, span: float, shares: list[float]
) -> None:
    values = low + span * np.array(shares)[:, None]
    labels = labels_of([f"{i}.jpg" for i in range(len(shares))], values=values, scale=(low, low + span))
    scaled = labels.scaled()
    assert scaled.dtype == np.float32
    assert scaled == pytest.approx(np.array(shares)[:, None] - 0.5, abs=1e-6)
    assert labels.unscaled(scaled) == pytest.approx(values, abs=span * 1e-6)


def labels_of(paths: list[str], values: np.ndarray | None = None, scale: tuple[float, float] = (0, 1)) -> Labels:
    values = np.zeros((len(paths), 1)) if values is None else values
    return Labels(Path("labels.csv"), "", paths, ("x",), values, scale, True, None, 0)


def test_joins_by_path_in_the_order_of_the_store() -> None:
    joined = join(labels_of(["c.jpg", "a.jpg", "z.jpg"]), ["a.jpg", "b.jpg", "c.jpg"], np.array([2, 5, 9]))
    assert joined.store_rows.tolist() == [2, 9]
    assert joined.label_rows.tolist() == [1, 0]
    assert (joined.only_labels, joined.only_store) == (["z.jpg"], ["b.jpg"])


@settings(deadline=None)
@given(
    labelled=st.lists(st.integers(0, 30), unique=True, min_size=1),
    stored=st.lists(st.integers(0, 30), unique=True, min_size=1),
)
def test_a_join_pairs_equal_paths_and_accounts_for_the_others(labelled: list[int], stored: list[int]) -> None:
    label_paths, store_paths = [f"{i}.jpg" for i in labelled], [f"{i}.jpg" for i in stored]
    if not set(labelled) & set(stored):
        with pytest.raises(LabelsError, match="no path"):
            join(labels_of(label_paths), store_paths, np.arange(len(stored)))
        return
    joined: Join = join(labels_of(label_paths), store_paths, np.arange(len(stored)))
    assert [label_paths[i] for i in joined.label_rows] == [store_paths[i] for i in joined.store_rows]
    assert (np.diff(joined.store_rows) > 0).all()
    both = {label_paths[i] for i in joined.label_rows}
    assert both | set(joined.only_labels) == set(label_paths)
    assert both | set(joined.only_store) == set(store_paths)
    assert len(joined.only_labels) == len(label_paths) - len(both)


def test_nothing_in_common_shows_what_either_side_looks_like() -> None:
    with pytest.raises(
        LabelsError, match=r"the table says 'photos/a\.jpg', the store has 'a\.jpg'; paths are relative"
    ):
        join(labels_of(["photos/a.jpg"]), ["a.jpg"], np.array([0]))
    with pytest.raises(LabelsError, match="the store has none"):
        join(labels_of(["a.jpg"]), [], np.empty(0, np.int64))


def test_strict_refuses_what_does_not_match_and_names_five() -> None:
    paths = [f"{i}.jpg" for i in range(9)]
    with pytest.raises(LabelsError, match=r"6 labels without features \('3.jpg', .*'7.jpg', \.\.\.\), 0 images"):
        join(labels_of(paths), paths[:3], np.arange(3), strict=True)
    with pytest.raises(LabelsError, match=r"0 labels .*, 6 images without labels"):
        join(labels_of(paths[:3]), paths, np.arange(9), strict=True)
    assert len(join(labels_of(paths), paths, np.arange(9), strict=True).store_rows) == 9
