"""A folder from a stranger: nothing is written or deleted through its links, and its pipes and giants hang nobody."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from featstore.errors import StoreWriteError
from featstore.store import RowState, Writer, open_store, repair, verify
from featstore.store.places.local import DurableStore, write_durably
from featstore.store.replacing import remove_tensors, set_aside

from .small_store import BLOCK_ROWS, CONCAT, assert_sound, commit, fill, list_images

CANARY = b"the victim's own file"


@pytest.fixture
def store(path: Path) -> Path:
    fill(path, n_images=3 * BLOCK_ROWS)
    return path


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    folder = tmp_path / "victim"
    folder.mkdir()
    (folder / "file").write_bytes(CANARY)
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def untouched(victim: Path) -> Callable[[], None]:
    before = everything(victim)

    def check() -> None:
        assert everything(victim) == before

    return check


def test_temporary_files_have_names_that_cannot_lie_there_already(
    store: Path, victim: Path, untouched: Callable[[], None]
) -> None:
    """The names of old: a link under one of them was written through."""
    for folder in [store, *(each for each in store.rglob("*") if each.is_dir())]:
        for name in ("zarr.json", "c.0", "c.0.0", "c.0.0.0", "c.0.0.0.0"):
            (folder / f".{name}.part").symlink_to(victim / "file")
    (store / "checksums" / "grid" / "c.0").unlink()
    repair(store)
    remove_tensors(store, ["whole"])
    untouched()


@pytest.mark.parametrize("folder", ["rows/grid", "checksums/grid", "tensors/grid", "images/error", "rows", "images"])
def test_a_folder_that_is_a_link_is_not_written_through(
    store: Path, victim: Path, untouched: Callable[[], None], folder: str
) -> None:
    moved = victim / "elsewhere"
    shutil.move(store / folder, moved)
    (store / folder).symlink_to(moved)
    untouched_there = everything(moved)
    with pytest.raises(StoreWriteError, match=rf"{folder} is a link or a file, and not a"):
        fill(store, n_images=4 * BLOCK_ROWS)
    assert everything(moved) == untouched_there


@pytest.mark.parametrize("folder", ["rows/grid", "tensors/grid"])
def test_repair_and_rm_do_not_follow_a_folder_that_is_a_link(store: Path, victim: Path, folder: str) -> None:
    moved = victim / "elsewhere"
    shutil.move(store / folder, moved)
    (store / folder).symlink_to(moved)
    for file in moved.iterdir():
        if file.name != "zarr.json":
            file.write_bytes(file.read_bytes()[:-1])  # damage, which repair would mend
    before = everything(moved)
    with pytest.raises(StoreWriteError, match="is a link or a file"):
        repair(store)
    assert everything(moved) == before
    remove_tensors(store, ["grid"])  # of the folder's own name: the link goes, and not what it leads to
    assert everything(moved) == before
    assert not (store / folder).exists()


def test_a_file_that_is_a_link_is_read_and_replaced(store: Path, victim: Path) -> None:
    """As git-annex and DVC keep shards; a writer leaves what they point to as it is."""
    shard = next((store / "tensors" / "grid").glob("c.0*"))
    kept = victim / "shard"
    shutil.move(shard, kept)
    shard.symlink_to(kept)
    assert_sound(store)
    before = kept.read_bytes()
    with Writer(store) as writer:
        set_aside(writer, "grid")
    assert kept.read_bytes() == before
    shard = next((store / "tensors" / "whole").glob("c.0*"))
    shutil.move(shard, kept)
    shard.symlink_to(kept)
    before = kept.read_bytes()
    with Writer(store) as writer:
        writer.set_row_states("whole", [0], RowState.ABSENT)
        commit(writer, 0, layouts=(CONCAT,))
    assert kept.read_bytes() == before
    assert not shard.is_symlink()


def test_a_file_with_a_second_name_elsewhere_is_never_changed_in_place(store: Path, victim: Path) -> None:
    record = store / "rows" / "grid" / "c.0"
    os.link(record, victim / "second name")
    before = record.read_bytes()
    with Writer(store) as writer:
        list_images(writer, 4 * BLOCK_ROWS)
        commit(writer, 3)
    assert (victim / "second name").read_bytes() == before
    assert record.read_bytes() != before


def test_a_folder_exchanged_for_a_link_between_two_steps(tmp_path: Path, victim: Path) -> None:
    """The folder was opened; what has its name now is not where we write."""
    root = tmp_path / "store"
    write_durably(root, "rows/grid/c.0", b"one")
    real = os.replace

    def exchange(*args: object, **kwargs: object) -> None:
        if (root / "rows/grid").is_dir() and not (root / "rows/grid").is_symlink():
            (root / "rows/grid").rename(root / "rows/aside")
            (root / "rows/grid").symlink_to(victim)
        real(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "replace", exchange)
        write_durably(root, "rows/grid/c.0", b"two")
    assert everything(victim) == {"file": CANARY}
    assert (root / "rows/aside/c.0").read_bytes() == b"two"
    with pytest.raises(StoreWriteError, match="rows/grid is a link"):
        write_durably(root, "rows/grid/c.0", b"three")


COMMAND = [sys.executable, "-c", "from featstore.cli import main; main()"]


@pytest.mark.parametrize("key", ["zarr.json", "images/path/zarr.json", "images/path/c.0", "rows/grid/c.0", "shard"])
def test_a_pipe_hangs_nobody(store: Path, key: str) -> None:
    """It is as if nothing were there: the commands say so, and repair puts a file in its place."""
    file = next((store / "tensors" / "grid").glob("c.0*")) if key == "shard" else store / key
    file.unlink()
    os.mkfifo(file)
    for command in ("info", "verify", "repair"):
        done = subprocess.run([*COMMAND, command, store], capture_output=True, text=True, timeout=30, check=False)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        assert command != "verify" or done.returncode == 1
    assert verify(store).damage == []
    assert key == "images/path/c.0" or open_store(store)["whole"].rows.tolist()


@pytest.mark.parametrize("name", ["{}.lock", "{}.lock.json"])
@pytest.mark.parametrize("kind", ["link", "dangling link", "pipe", "device"])
def test_the_lock_is_a_file(store: Path, victim: Path, untouched: Callable[[], None], name: str, kind: str) -> None:
    place = store.with_name(name.format(store.name))
    place.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(place)
    else:
        place.symlink_to({"link": victim / "file", "dangling link": victim / "new", "device": Path("/dev/zero")}[kind])
    try:
        with Writer(store) as writer:
            list_images(writer, 4 * BLOCK_ROWS)
    except StoreWriteError as error:
        assert f"cannot write {place}: it is a" in str(error)  # noqa: PT017
    untouched()


def test_what_a_killed_writer_was_about_to_rename_is_gone_when_the_next_one_begins(store: Path) -> None:
    left = [store / "rows" / "grid" / ".0123456789abcdef.part", store / ".fedcba9876543210.part"]
    for file in left:
        file.write_bytes(b"half of it")
    assert verify(store).damage == []
    store.with_name(f"{store.name}.lock.json").write_text("{}")
    with Writer(store) as writer:
        assert "died at work" in writer.notice
    assert not [file for file in left if file.exists()]


def test_nothing_is_deleted_through_a_link(tmp_path: Path, victim: Path, untouched: Callable[[], None]) -> None:
    from zarr.core.sync import sync

    root = tmp_path / "store"
    (root / "rows").mkdir(parents=True)
    (root / "rows" / "there").symlink_to(victim)
    (root / "rows" / "one").symlink_to(victim / "file")
    store = DurableStore(root)
    for key in ("rows/there/file", "rows/there/no/more"):
        with pytest.raises(StoreWriteError, match="rows/there is a link"):
            sync(store.delete(key))
    sync(store.delete("rows/one"))
    sync(store.delete_dir("rows/there"))
    sync(store.delete_dir("rows/nothing"))
    assert list((root / "rows").iterdir()) == []
    untouched()
