"""Ratings are on the disk when they are said to be, whoever else writes and whenever a process dies."""

import csv
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import heads
from heads.errors import LabelsError
from heads.explore.ratings import Ratings, check_rater


def said(ratings: Ratings) -> dict[tuple[str, str], float]:
    return {(each.path, each.rater): each.rating for each in ratings.read()}


def test_a_rating_is_in_the_file_when_it_is_given(tmp_path: Path) -> None:
    file = tmp_path / "new" / "ratings.csv"
    ratings = Ratings(file, (1, 7))
    assert not file.exists()
    ratings.add('a "b", c.jpg', "ann", 5)
    ratings.add("d.jpg", "bob", 2)
    assert file.read_text("utf-8").splitlines()[0] == "path,rater,rating,time"
    assert said(Ratings(file, (1, 7))) == {('a "b", c.jpg', "ann"): 5, ("d.jpg", "bob"): 2}


def test_a_new_rating_takes_the_place_of_the_old_one_and_can_be_taken_back(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r.csv", (1, 7))
    for path, rating in (("a.jpg", 1), ("b.jpg", 2), ("a.jpg", 7)):
        ratings.add(path, "ann", rating)
    ratings.add("a.jpg", "bob", 3)
    assert said(ratings) == {("a.jpg", "ann"): 7, ("b.jpg", "ann"): 2, ("a.jpg", "bob"): 3}
    ratings.remove("a.jpg", "ann")
    ratings.remove("never.jpg", "ann")
    assert said(ratings) == {("b.jpg", "ann"): 2, ("a.jpg", "bob"): 3}


def test_heads_train_reads_what_raters_gave(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r.csv", (1, 7))
    for i in range(20):
        ratings.add(f"{i}.jpg", "ann", 1 + i % 7)
        ratings.add(f"{i}.jpg", "bob", min(7, 1 + i % 7 + i % 2))
    labels = heads.read_labels(ratings.file, tasks=["rating"], aggregate="mean", scales=(1, 7))
    assert len(labels.paths) == 20
    assert labels.values[1, 0] == (2 + 3) / 2
    ceiling = labels.reliability()["rating"].ceiling
    assert ceiling is not None
    assert 0.8 < ceiling.value < 1  # two raters who agree fairly well


def test_a_line_that_a_kill_has_cut_off_is_passed_over_and_nothing_else_is_lost(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    ratings = Ratings(file, (1, 7))
    for i in range(3):
        ratings.add(f"{i}.jpg", "ann", i + 1)
    whole = file.read_bytes()
    for cut in range(len(whole)):
        file.write_bytes(whole[:cut])
        n_lines = whole[:cut].count(b"\n")
        found = said(Ratings(file, (1, 7)))
        assert len(found) in (max(0, n_lines - 1), max(0, n_lines))
        Ratings(file, (1, 7)).add("new.jpg", "ann", 7)
        after = said(Ratings(file, (1, 7)))
        assert after == {**found, ("new.jpg", "ann"): 7}


RATE = """
import sys
from pathlib import Path
from heads.explore.ratings import Ratings
ratings = Ratings(Path(sys.argv[1]), (1, 7))
for i in range(100_000):
    ratings.add(f"{sys.argv[2]} {i}.jpg", sys.argv[2], 1 + i % 7)
    print(i, flush=True)
"""


def test_every_rating_that_was_said_to_be_kept_survives_a_kill(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    for turn in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", RATE, str(file), f"turn{turn}"], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        first = process.stdout.readline()
        time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        told = [int(line) for line in (first + process.stdout.read()).split()]
        process.wait()
        process.stdout.close()
        kept = said(Ratings(file, (1, 7)))
        assert told
        assert all(kept[(f"turn{turn} {i}.jpg", f"turn{turn}")] == 1 + i % 7 for i in told)


def _rate(file: Path, rater: str) -> None:
    ratings = Ratings(file, (1, 7))
    for i in range(15):
        ratings.add(f"{i % 10}.jpg", rater, 1 + i % 7)  # five of them anew: the file is written again


def test_two_servers_write_to_one_file(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    context = multiprocessing.get_context("spawn")
    several = [context.Process(target=_rate, args=(file, rater)) for rater in ("ann", "bob")]
    for process in several:
        process.start()
    for process in several:
        process.join()
    assert [process.exitcode for process in several] == [0, 0]
    assert len(said(Ratings(file, (1, 7)))) == 20


@pytest.mark.parametrize("rating", [0, 8, 2.5e9, float("nan"), True, "5", None, [5]])
def test_a_rating_off_the_scale_is_refused(tmp_path: Path, rating: object) -> None:
    ratings = Ratings(tmp_path / "r.csv", (1, 7))
    with pytest.raises(LabelsError, match="a rating is a number from 1 to 7; found"):
        ratings.add("a.jpg", "ann", rating)  # type: ignore[arg-type]
    assert not ratings.file.exists()


@pytest.mark.parametrize("name", ["", "  ", "=1+1", "@x", "-a", "a\nb,c", "a<b>", "x" * 61, None, 5, "\x1b[1m"])
def test_the_name_of_a_rater_is_a_name(name: object) -> None:
    if name == "a\nb,c":
        with pytest.raises(LabelsError):
            check_rater(name)
        return
    with pytest.raises(LabelsError, match="the name of a rater has up to 60 letters"):
        check_rater(name)


@pytest.mark.parametrize("name", ["ann", "Ann-Marie O.", "名前", "p 07", "ann@lab.org"])
def test_names_of_people_everywhere(name: str) -> None:
    assert check_rater(f" {name} ") == name


def test_a_table_of_something_else_is_not_written_to(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("path,beauty\na.jpg,3\n", "utf-8")
    with pytest.raises(LabelsError, match="begins with the columns path, beauty"):
        Ratings(file, (1, 7))
    file.write_text("path,rater,rating,time\na.jpg,ann,3\nb.jpg,ann,3,2026-11-29T00:00:00\n", "utf-8")
    with pytest.raises(LabelsError, match="line 2: not a path, a rater, a rating and a time"):
        Ratings(file, (1, 7))
    file.write_text("path,rater,rating,time\na.jpg,ann,9,2026-11-29T00:00:00\n", "utf-8")
    with pytest.raises(
        LabelsError, match="line 2: the rating 9 is not on the scale 1:7; say its own scale with --rate"
    ):
        Ratings(file, (1, 7))


def test_a_folder_that_cannot_be_written_is_an_error_in_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", "utf-8")
    with pytest.raises(LabelsError, match="cannot be"):
        Ratings(tmp_path / "file" / "r.csv", (1, 7)).add("a.jpg", "ann", 1)


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    victim, link = tmp_path / "aliases", tmp_path / "explore-ratings.csv"
    for name in (link, link.with_name(f"{link.name}.lock")):
        name.symlink_to(victim)  # which is not there: a rating would make it
        with pytest.raises(LabelsError, match="it is a link"):
            Ratings(link, (1, 7))
        assert not victim.exists()
        name.unlink()


def test_a_cell_that_is_far_too_long_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "r.csv"
    file.write_text(f"path,rater,rating,time\n{'a' * 2000},ann,3,2026-01-01T00:00\n", "utf-8")
    before = csv.field_size_limit(1000)  # the library's own is of the process, and readers of other tables raise it
    try:
        with pytest.raises(LabelsError, match="is no table of ratings"):
            Ratings(file, (1, 7))
    finally:
        csv.field_size_limit(before)


def test_a_rating_is_taken_back_under_the_name_that_it_was_given(tmp_path: Path) -> None:
    ratings = Ratings(tmp_path / "r.csv", (1, 7))
    ratings.add("a.jpg", "Ann  B", 3)  # kept as "Ann B"
    ratings.remove("a.jpg", "Ann  B")
    assert ratings.read() == []
