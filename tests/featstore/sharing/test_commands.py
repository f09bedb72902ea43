"""The commands of sharing as people and scripts use them."""

import errno
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from featstore.cli import app
from featstore.errors import StoreWriteError
from featstore.sharing import transfer
from featstore.sharing.push_pull import pull, push
from featstore.store import open_store
from featstore.store.places import local

from .sharing_stores import check_sound, expected, held, make_store, photos


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEATSTORE_WHO", "anna")
    make_store("anna.zarr", photos(0, 6))


def run(*command: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, command)
    assert done.exit_code == code, done.output
    return done.output


def facts(*command: str) -> Any:
    return json.loads(run(*command, "--json"))


def test_a_session() -> None:
    assert "pushed 12 rows of grid, whole (6 new images)" in run("push", "anna.zarr", "team", "-m", "six photos")
    assert "nothing to be pushed: team has all of it" in run("push", "anna.zarr", "team", "-m", "again")
    assert "team@v1 is " in run("tag", "team", "v1")
    listed = run("ls", "team")
    assert "6 x 2 x 2 x 6" in listed
    assert "by anna: six photos" in listed
    assert "tags: v1" in listed
    assert "six photos" in run("log", "team")
    assert "pulled 2 rows" in run("pull", "team@v1", "part.zarr", "--tensors", "grid", "--rows", "photo [01].jpg")
    make_store("ben.zarr", photos(4, 8))
    assert "merged 16 rows" in run("merge", "anna.zarr", "ben.zarr", "--into", "both.zarr")
    assert "images: 2 on both sides, 4 only here" in run("diff", "team@v1", "ben.zarr")
    assert "the same on both sides, to the last bit" in run("diff", "anna.zarr", "team")
    assert run("push", "ben.zarr", "team", "-m", "more", "--quiet") == ""
    assert "equal" in run("diff", "team@v1", "team")
    assert [entry["message"] for entry in facts("log", "team", "-n", "1")] == ["more"]


def test_what_two_machines_computed_differently_can_be_left() -> None:
    run("push", "anna.zarr", "team", "-m", "six photos")
    make_store("ben.zarr", photos(5, 7), seed=1)
    assert "--leave-different lets each side keep its own" in run("push", "ben.zarr", "team", "-m", "mine", code=1)
    told = run("push", "ben.zarr", "team", "-m", "mine", "--leave-different")
    assert "note: 1 image left as they are" in told
    assert "pushed 2 rows of grid, whole (1 new image)" in told
    assert "nothing to be pushed: team has the rest" in run("push", "ben.zarr", "team", "-m", "-", "--leave-different")


def test_a_pull_that_is_to_be_verified_says_first_that_it_lacks_the_photos() -> None:
    run("push", "anna.zarr", "team", "-m", "six photos")
    assert "name their folder with --photos" in run("pull", "team", "ben.zarr", "--verify", "2", code=1)
    assert not Path("ben.zarr").exists()


def test_scripts_get_json() -> None:
    pushed = facts("push", "anna.zarr", "team", "-m", "six photos")
    assert (pushed["rows"], pushed["new_images"], len(pushed["snapshots"])) == (12, 6, 1)
    assert facts("tag", "team", "v1") == {"tag": "v1", "snapshot": pushed["snapshots"][0]}
    (entry,) = facts("log", "team")
    assert (entry["message"], entry["tags"], entry["facts"]["who"]) == ("six photos", ["v1"], "anna")
    listed = facts("ls", "team")
    assert listed["tensors"]["grid"]["rows"]["present"] == 6
    assert listed["version"]["snapshot"] == pushed["snapshots"][0]
    assert facts("pull", "team", "ben.zarr", "--version", "v1")["rows"] == 12
    assert facts("diff", "team", "ben.zarr")["same"] is True
    assert facts("merge", "team", "ben.zarr", "--into", "both.zarr")["new_images"] == 6


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("push", "nothing.zarr", "team", "-m", "x"), "is not a feature store"),
        (("push", "anna.zarr", "ftp://host/team", "-m", "x"), "ftp://host/team"),
        (("push", "anna.zarr", "team", "-m", ""), "needs a message"),
        (("push", "anna.zarr", "team", "-m", "x", "--rows", "@nothing.txt"), "cannot be read"),
        (("push", "anna.zarr", "team", "-m", "x", "--tensors", ","), "names nothing"),
        (("pull", "nowhere", "b.zarr"), "nowhere is not a shared repository"),
        (("log", "anna.zarr"), "is not a shared repository"),
        (("ls", "nowhere@v1"), "is not a shared repository"),
        (("diff", "anna.zarr", "nowhere"), "is not a feature store"),
        (("merge", "anna.zarr", "--into", "team@v1", "--rows", "z*"), "no image of anna.zarr is called 'z*'"),
    ],
)
def test_what_makes_no_sense_is_one_message_and_exit_code_1(command: tuple[str, ...], said: str) -> None:
    before = sorted(Path().iterdir())
    output = run(*command, code=1)
    assert output.startswith("error: ")
    assert said in output
    assert sorted(Path().iterdir()) == before


def test_a_full_disk_stops_a_pull_and_the_next_one_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    make_store("big.zarr", photos(0, 40))
    push("big.zarr", "team", message="forty")
    monkeypatch.setattr(transfer, "RECORD_BYTES", 1)
    n_written = 0
    write = local._write_all

    def fill(*args: Any) -> None:
        nonlocal n_written
        n_written += 1
        if n_written > 100:
            raise OSError(errno.ENOSPC, "no space")
        write(*args)

    with monkeypatch.context() as patch:
        patch.setattr(local, "_write_all", fill)
        with pytest.raises(StoreWriteError, match="the disk is full; what was stored before is untouched"):
            pull("team", "ben.zarr")
    n_there = len(open_store("ben.zarr")["grid"].rows)
    assert 0 < n_there < 40
    assert pull("team", "ben.zarr").n_rows == 2 * (40 - n_there)
    assert held("ben.zarr") == expected(photos(0, 40))
    check_sound("ben.zarr")
    check_sound("team")
