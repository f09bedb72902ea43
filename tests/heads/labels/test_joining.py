"""Joining labels to the photos of a store, by path or by digest."""

import hashlib
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels.joining import Join, describe, join
from heads.labels.labels import Labels, read_labels
from heads.labels.target import Target


def labels_of(paths: list[str]) -> Labels:
    return Labels(
        columns=("task",),
        files=(Path("labels.csv"),),
        sha256=("",),
        paths=paths,
        target=Target("regression", ("x",)),
        values=np.zeros((len(paths), 1)),
        scales=((0, 1),),
        scale_given=True,
        groups=None,
        strata=None,
        split=None,
        sets=np.zeros(len(paths), np.int64),
        n_unlabelled=0,
    )


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
    with pytest.raises(LabelsError, match=r"6 labels without features \('3.jpg', .*'7.jpg' and 1 more\), 0 images"):
        join(labels_of(paths), paths[:3], np.arange(3), strict=True)
    with pytest.raises(LabelsError, match=r"0 labels .*, 6 images without labels"):
        join(labels_of(paths[:3]), paths, np.arange(9), strict=True)
    assert len(join(labels_of(paths), paths, np.arange(9), strict=True).store_rows) == 9


def test_paths_match_in_whatever_unicode_form_and_are_given_as_the_store_writes_them() -> None:
    """Finder writes letters and accents apart, the table has them as one character."""
    apart, together = (unicodedata.normalize(form, "Été/naïve.jpg") for form in ("NFD", "NFC"))
    for stored, labelled in ((apart, together), (together, apart)):
        joined = join(labels_of([labelled, "b.jpg"]), ["b.jpg", stored], np.array([3, 8]))
        assert joined.store_rows.tolist() == [3, 8]
        assert joined.paths == ["b.jpg", stored]
        assert (joined.only_labels, joined.only_store) == ([], [])


def test_two_files_whose_names_differ_by_unicode_form_alone_stay_two() -> None:
    apart, together = (unicodedata.normalize(form, "é.jpg") for form in ("NFD", "NFC"))
    joined = join(labels_of([together, apart]), [apart, together], np.array([0, 1]))
    assert joined.label_rows.tolist() == [1, 0]


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def test_labels_by_digest_find_photos_whatever_they_are_called(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"sha256,x\n{digest('a').upper()},1\n{digest('b')},2\n{digest('z')},3\n")
    labels = read_labels(file, path_column="sha256")
    assert (labels.by_digest, labels.target.tasks) == (True, ("x",))
    joined = join(labels, ["new/b.jpg", "c.jpg", "a 1.jpg"], np.array([1, 4, 6]), digests=[*map(digest, "bca")])
    assert (joined.store_rows.tolist(), joined.label_rows.tolist()) == ([1, 6], [1, 0])
    assert joined.paths == ["new/b.jpg", "a 1.jpg"]
    assert (joined.only_labels, joined.only_store) == ([digest("z")], ["c.jpg"])


def test_of_copies_of_a_photo_the_first_alone_is_labelled(tmp_path: Path) -> None:
    """Otherwise a model would be tested on bytes that it was trained on."""
    file = tmp_path / "labels.csv"
    file.write_text(f"digest,x\n{digest('a')},1\n{digest('b')},2\n")
    labels = read_labels(file, path_column="digest")
    joined = join(labels, ["1.jpg", "2.jpg", "3.jpg"], np.arange(3), digests=[*map(digest, "aab")])
    assert (joined.paths, joined.only_store) == (["1.jpg", "3.jpg"], ["2.jpg"])


def test_digests_that_make_no_sense(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"digest,x\n{digest('a')},1\nb.jpg,2\n")
    with pytest.raises(LabelsError, match=r"line 3, column 'digest': 'b\.jpg' is not a SHA-256.*rename it"):
        read_labels(file, path_column="digest")
    file.write_text(f"digest,x\n{digest('a')},1\n{digest('b')},2\n")
    with pytest.raises(LabelsError, match="--group folder: photos named by 'digest' have no folder; name a column"):
        read_labels(file, path_column="digest", group="folder")
    labels = read_labels(file, path_column="digest")
    with pytest.raises(LabelsError, match="the digests of the store's photos are needed"):
        join(labels, ["a.jpg"], np.array([0]))
    with pytest.raises(LabelsError, match=r"no digest in .*csv is in the store.*were the photos changed"):
        join(labels, ["a.jpg"], np.array([0]), digests=[digest("other")])


@pytest.mark.parametrize(
    ("labelled", "stored", "said"),
    [
        (["a.jpg", "b.jpg"], ["pictures/a.jpg", "pictures/b.jpg"], "2 of 2 would match with 'pictures/' before them"),
        (["x/y/a.jpg", "x/y/b.jpg", "x/y/c.jpg"], ["y/b.jpg"], "1 of 3 would match without 'x/' before them"),
        (["a", "b"], ["a.jpg", "b.jpg"], "2 of 2 would match with '.jpg' behind them"),
        (["a", "b"], ["x/a.jpg", "x/b.jpg"], "2 of 2 would match with 'x/' before them and '.jpg' behind them"),
        (["a.jpg", "b.jpg"], ["x/a.jpg", "y/b.jpg"], None),
        (["x/a.jpg", "y/b.jpg"], ["a.jpg", "b.jpg"], None),
        (["a.jpg", "b.jpg"], ["c.jpg", "d.jpg"], None),
        (
            ["a.JPG", "b.JPG"],
            ["a.jpg", "b.jpg"],
            "2 of 2 would match but for the case of .JPG; write .jpg, as the store does",
        ),
        (
            ["A.jpg", "b.jpg"],
            ["a.jpg", "B.jpg"],
            "2 of 2 would match but for upper and lower case, as 'A.jpg' and 'a.jpg'; write them as the store does",
        ),
        (["a.jpeg", "b.jpeg"], ["a.jpg", "b.jpg"], "2 of 2 would match with .jpg in place of .jpeg"),
        (
            ["a.JPG", "b.JPG"],
            ["x/a.jpg", "x/b.jpg"],
            "2 of 2 would match with 'x/' before them, but for upper and lower case",
        ),
    ],
)
def test_paths_that_all_miss_in_one_way_are_told_which(
    labelled: list[str], stored: list[str], said: str | None
) -> None:
    with pytest.raises(LabelsError) as caught:
        join(labels_of(labelled), stored, np.arange(len(stored)))
    rule = "; paths are relative to the photo folder"
    assert str(caught.value).endswith(rule if said is None else f"{rule}: {said}")


def test_the_first_line_names_the_tasks_and_the_next_what_is_not_learned(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,beauty,calm,who\na.jpg,1,2,Ann\nb.jpg,NA,3,Bob\nc.jpg,3,4,Cid\nD.JPG,3,5,Dan\n")
    labels = read_labels(file, scales="1:7")
    joined = join(labels, ["a.jpg", "b.jpg", "c.jpg", "D.jpg"], np.arange(4))
    assert describe(labels, None, joined) == [
        "labels: 3 photos, 2 tasks (beauty, calm), scale 1:7; missing: 1 'NA'",
        "  not learned: 'who' (text, as 'Ann'); --tasks names what to learn",
        "  1 label without features, left out: D.JPG",
        "  1 image without labels, left out: D.jpg",
        "  1 of 1 would match but for the case of .JPG; write .jpg, as the store does",
        "  no groups: if some photos are nearly alike, --group keeps them on one side of a split",
    ]
    with pytest.raises(LabelsError, match=r"--strict: 1 labels .*; 1 of 1 would match but for the case of \.JPG"):
        join(labels, [*joined.paths, "D.jpg"], np.arange(4), strict=True)
