"""A local disk: what fails half-way, fills up, or becomes read-only."""

import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.errors import StoreWriteError
from featstore.store import TensorLayout, Writer, open_store
from featstore.store.format.limits import check_space
from featstore.store.places import local

from ..small_store import BLOCK_ROWS, assert_sound, commit, features_of, fill, list_images, open_writer, segment


def test_when_one_file_of_several_cannot_be_written_the_others_are_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one of them would come after its digest was settled."""
    write = local.write_durably

    def fail(root: Path, key: str, data: Any) -> None:
        if key.startswith("checksums/"):
            raise StoreWriteError("the disk is full")
        if key == "images/size/c.0.0":
            time.sleep(0.3)
        write(root, key, data)

    with Writer(path) as writer:
        list_images(writer, 12)
        monkeypatch.setattr(local, "write_durably", fail)
        with pytest.raises(StoreWriteError):
            commit(writer, 2)
    time.sleep(0.5)
    assert_sound(path)
    monkeypatch.undo()
    fill(path, n_images=12)
    assert_sound(path)


INTERRUPTED = """
import signal, sys, threading, time
import numpy as np
from featstore.store import NewImages, Writer
from featstore.store.places import local

write, main = local.write_durably, threading.main_thread().ident

def interrupted(root, key, data):
    if key == "images/path/c.0":
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.3)
    write(root, key, data)

signal.signal(signal.SIGINT, signal.default_int_handler)
with Writer(sys.argv[1]) as writer:
    local.write_durably = interrupted
    digests = np.array([[10] * 32, [11] * 32], np.uint8)
    writer.add_images(NewImages(["photo 10.jpg", "photo 11.jpg"], digests, [1010, 1011], [10, 11]))
"""


def test_ctrl_c_waits_for_the_file_that_is_being_written(path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    assert "KeyboardInterrupt" in subprocess.run(command, check=False, capture_output=True, text=True).stderr
    assert_sound(path)
    fill(path, n_images=12)
    assert_sound(path)


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path / "not there yet" / "features.zarr", 1)
    with pytest.raises(StoreWriteError, match=r"will take 1000000.00 GB and .* GB free"):
        check_space(tmp_path / "not there yet" / "features.zarr", 10**15)


def test_a_shard_that_may_not_be_written_leaves_what_was_there(path: Path) -> None:
    wide = TensorLayout("wide", "concat", (segment("w", n_blocks=1, width=4000),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writer(path) as writer:
        writer.ensure_tensor(wide, "float16")
        commit(writer, 0, layouts=(wide,))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a whole block is 32 kB
            with pytest.raises(StoreWriteError, match=r": a file would grow over the size limit .* untouched"):
                commit(writer, 1, layouts=(wide,))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(path.rglob("*.part"))
    assert_sound(path)
    assert open_store(path)["wide"].rows.tolist() == [0, 1, 2, 3]
    with Writer(path) as writer:
        commit(writer, 1, layouts=(wide,))
    assert np.array_equal(open_store(path)["wide"].read([7])[0], features_of(7, wide))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes; the table of up to 16384 images takes one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_stops_the_run_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "features.zarr"
    wide = TensorLayout("wide", "concat", (segment("w", n_blocks=1, width=100_000),))
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        list_images(writer, 40)
        writer.ensure_tensor(wide, "float16")
        commit(writer, 0, layouts=(wide,))
        commit(writer, 1, layouts=(wide,))
        fill_up(small_disk)
        with pytest.raises(StoreWriteError, match="the disk is full; what was stored before is untouched"):
            commit(writer, 2, layouts=(wide,))
    tensor = open_store(path)["wide"]
    assert tensor.rows.tolist() == list(range(8))
    assert np.array_equal(tensor.read(tensor.rows), np.stack([features_of(row, wide) for row in range(8)]))
    assert not list(path.rglob("*.part"))
    (small_disk / "something else").unlink()
    with Writer(path) as writer:
        commit(writer, 2, layouts=(wide,))
    assert open_store(path)["wide"].rows.tolist() == list(range(12))


def fill_up(disk: Path) -> None:
    (disk / "something else").write_bytes(bytes(shutil.disk_usage(disk).free - 400_000))


def test_a_disk_that_becomes_read_only_says_so_and_is_still_read(small_disk: Path) -> None:
    path = small_disk / "features.zarr"
    fill(path, n_images=6)
    with ExitStack() as undo:
        with Writer(path) as writer:
            list_images(writer, 10)
            undo.enter_context(read_only(small_disk))
            with pytest.raises(StoreWriteError, match="the file system is read-only; what was stored before is unt"):
                commit(writer, 2)
        for attempt in (path, small_disk / "another.zarr", small_disk / "folder" / "another.zarr"):
            with pytest.raises(StoreWriteError, match="the file system is read-only"):
                open_writer(attempt)
        assert open_store(path)["grid"].rows.tolist() == [0, 1, 2, 3, 4, 5]
        assert_sound(path)
    fill(path, n_images=10)
    assert_sound(path)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """While a file of it is open for writing, a disk is not remounted: it is covered by a read-only view of itself."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
