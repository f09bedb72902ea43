"""A shared repository that was damaged, may not be written, or is read where nothing can be kept."""

from collections.abc import Callable
from pathlib import Path

import pytest

from featstore.errors import DamagedError, StoreError
from featstore.sharing.push_pull import pull, push
from featstore.sharing.remote import list_remote
from featstore.store import TensorLayout, open_store, repair, verify
from featstore.store.places.repository import Repository

from .sharing_stores import check_sound, expected, features_of, folder_bytes, held, make_store, photos, segment

LARGE = TensorLayout("grid", "stack", (segment("a", width=300),), width=300)
"""Icechunk keeps what is smaller in its manifests."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "blocks"))


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    make_store(tmp_path / "anna.zarr", photos(0, 10), layouts=(LARGE,))
    return tmp_path / "anna.zarr"


@pytest.fixture
def team(tmp_path: Path) -> str:
    return str(tmp_path / "team")


def spoil(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 255
    file.write_bytes(data)


@pytest.mark.parametrize("how", [spoil, Path.unlink], ids=["spoilt", "lost"])
def test_a_repository_with_damaged_chunks_is_mended_and_filled_again(
    anna: Path, tmp_path: Path, team: str, how: Callable[[Path], None]
) -> None:
    push(anna, team, message="ten")
    row = features_of("photo 5.jpg", LARGE).tobytes()
    (shard,) = (file for file in (tmp_path / "team/chunks").iterdir() if row in file.read_bytes())
    how(shard)
    assert {each.tensor for each in verify(team).damage} == {"grid"}
    with pytest.raises(DamagedError, match=r"`featstore repair`"):
        pull(team, tmp_path / "ben.zarr")
    done = repair(team)
    assert set(done.absent) == {"grid"}
    assert not done.remaining
    assert next(Repository(team).history()).snapshot == done.snapshot
    assert verify(team).sound
    moved = push(anna, team, message="what was damaged")
    assert moved.n_rows == len(done.absent["grid"])
    pull(team, tmp_path / "ben.zarr")
    assert held(tmp_path / "ben.zarr") == held(team) == expected(photos(0, 10), LARGE)
    assert repair(team).snapshot == ""
    check_sound(team)


@pytest.mark.parametrize("kind", ["manifests", "snapshots"])
def test_a_repository_whose_own_files_are_damaged_is_not_taken_for_an_empty_place(
    anna: Path, tmp_path: Path, team: str, kind: str
) -> None:
    push(anna, team, message="ten")
    for file in (tmp_path / "team" / kind).iterdir():
        file.unlink() if kind == "manifests" else file.write_bytes(b"what is this?" * 20)
    before = folder_bytes(tmp_path / "team")
    for ask in (lambda: open_store(team).images, lambda: push(anna, team, message="x"), lambda: repair(team)):
        with pytest.raises(
            StoreError,
            match=r"team(: the repository is damaged|: manifests/.* is lost| is a shared rep).*`featstore log`",
        ) as e:
            ask()
        assert "extract" not in str(e.value)
    assert folder_bytes(tmp_path / "team") == before


def test_a_folder_that_may_not_be_written_is_said(anna: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StoreError, match="file may not be written: File exists"):
        push(anna, str(tmp_path / "file/team"), message="x")
    with pytest.raises(StoreError, match="holds something that is no shared repository"):
        push(anna, str(anna), message="x")
    assert not list(tmp_path.glob("*.zarr.lock.lock"))
    assert not list(tmp_path.glob(".*.lock"))


def test_a_cache_that_cannot_be_written_is_done_without(
    anna: Path, tmp_path: Path, team: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(anna, team, message="ten")
    (tmp_path / "file").touch()
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "file" / "blocks"))
    assert held(team) == expected(photos(0, 10), LARGE)


def test_the_tags_of_a_version_are_those_up_to_it(anna: Path, tmp_path: Path, team: str) -> None:
    push(anna, team, message="ten")
    Repository(team).tag("v1")
    push(make_store(tmp_path / "ben.zarr", photos(10, 12), layouts=(LARGE,)), team, message="two")
    Repository(team).tag("v2")
    assert set(list_remote(f"{team}@v1").tags) == {"v1"}
    assert set(list_remote(team).tags) == {"v1", "v2"}
