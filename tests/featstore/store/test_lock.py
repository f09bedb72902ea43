"""One writer at a time."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.errors import LockedError
from featstore.store import Writer

from .small_store import assert_sound, fill, open_writer

HOLD = """
import sys, time
from pathlib import Path
from featstore.store import Writer
with Writer(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is_and_a_dead_one_does_not_keep_the_lock(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            with pytest.raises(LockedError, match=f"process {first.pid} on {socket.gethostname()}, since 20"):
                open_writer(path)
            assert_sound(path)  # reading goes on
        finally:
            first.send_signal(signal.SIGKILL)
    fill(path, n_images=12)
    assert_sound(path)


def test_a_second_writer_in_the_same_process_is_refused_too(path: Path) -> None:
    with Writer(path), pytest.raises(LockedError, match=f"process {os.getpid()} "):
        open_writer(path)
    open_writer(path)
    assert not Path(f"{path}.lock.json").exists()
