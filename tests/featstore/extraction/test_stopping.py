"""Ctrl-C ends a run at once, whatever a thread waits for: here for files that another process holds on to.

A lease (Linux) lets the system keep whoever opens a file waiting until its holder lets go, for 45 seconds at most, as
a server does that has gone away.
"""

import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import featstore

F_SETLEASE = getattr(fcntl, "F_SETLEASE", None)
COMMAND = [sys.executable, "-c", "from featstore.cli import main; main()"]


@contextmanager
def held(file: Path) -> Iterator[None]:
    """While nobody else can open a file."""
    if F_SETLEASE is None:
        pytest.skip("needs leases of files, which Linux has")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # "somebody wants it"
    with file.open("r+b") as opened:
        try:
            fcntl.fcntl(opened, F_SETLEASE, fcntl.F_WRLCK)
        except OSError:
            pytest.skip("this file system has no leases")
        try:
            yield
        finally:
            fcntl.fcntl(opened, F_SETLEASE, fcntl.F_UNLCK)
            signal.signal(signal.SIGIO, before)


def extract(folder: Path, *options: str) -> list[str]:
    return [*COMMAND, "extract", "photos", "--store", "s.zarr", "--weights", "random:0", "--engine", "eager", *options]


def stop(process: "subprocess.Popen[str]") -> tuple[float, str]:
    started = time.perf_counter()
    process.send_signal(signal.SIGINT)
    try:
        _, errors = process.communicate(timeout=20)
    finally:
        process.kill()
    return time.perf_counter() - started, errors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for i in range(8):
        values = np.random.default_rng(i).integers(0, 256, (48, 64, 3)).astype(np.uint8)
        Image.fromarray(values).save(tmp_path / "photos" / f"{i}.png")
    return tmp_path


def wait_until_opening(process: "subprocess.Popen[str]", file: Path) -> None:
    """Until a thread of the process sleeps in `open`; the system says where each one is."""
    for _ in range(1200):
        for task in Path(f"/proc/{process.pid}/task").glob("*/wchan"):
            if "lease" in task.read_text():
                return
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    pytest.fail(f"nobody opened {file}")


def test_ctrl_c_ends_a_run_that_hashes_a_file_which_cannot_be_opened(folder: Path) -> None:
    file = folder / "photos" / "7.png"
    with held(file):
        command = extract(folder, "-b", "lite0")
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            wait_until_opening(process, file)
            took, errors = stop(process)
    assert (process.returncode, "stopped" in errors) == (130, True), errors
    assert took < 2
    assert "Traceback" not in errors


def test_ctrl_c_ends_a_run_that_decodes_a_file_which_cannot_be_opened_and_keeps_the_others(folder: Path) -> None:
    subprocess.run(extract(folder, "--tensor", "a=pixels:pixels@whole", "-b", ""), cwd=folder, check=True)
    file = folder / "photos" / "7.png"
    with held(file):
        command = extract(folder, "--tensor", "b=concat:lite0@whole", "-b", "")
        with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
            wait_until_opening(process, file)
            time.sleep(8)  # the others are computed meanwhile
            took, errors = stop(process)
    assert (process.returncode, "what was computed is kept" in errors) == (130, True), errors
    assert took < 2
    store = featstore.open(folder / "s.zarr")
    assert len(store["b"].rows) == 7
    subprocess.run(command, cwd=folder, check=True)
    assert len(featstore.open(folder / "s.zarr")["b"].rows) == 8


def test_ctrl_c_ends_a_run_that_decodes_a_very_large_photo(folder: Path) -> None:
    shutil.rmtree(folder / "photos")
    (folder / "photos").mkdir()
    Image.new("RGB", (18_000, 18_000)).save(folder / "photos" / "huge.png", compress_level=1)
    command = extract(folder, "--tensor", "a=pixels:pixels@whole", "-b", "")
    with subprocess.Popen(command, cwd=folder, stderr=subprocess.PIPE, text=True) as process:
        for _ in range(1200):  # Pillow's memory for 324 megapixels is there: it decodes
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
            if pages * os.sysconf("SC_PAGE_SIZE") > 1e9 or process.poll() is not None:
                break
            time.sleep(0.02)
        took, errors = stop(process)
    assert process.returncode == 130, errors
    assert took < 2
