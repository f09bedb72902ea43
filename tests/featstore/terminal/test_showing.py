"""Progress of a call from Python: a bar on a terminal, nothing in a script; tests/docs shows it in a notebook."""

import os
import pty
import subprocess
import sys

import pytest

from featstore import show_progress

WORK = "from featstore import show_progress\nwith show_progress() as tell: [tell('extract', i, 40) for i in range(41)]"


def test_a_script_whose_errors_go_elsewhere_is_left_in_peace() -> None:
    done = subprocess.run([sys.executable, "-c", WORK], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


def test_a_terminal_gets_a_bar_that_ends_full() -> None:
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    with subprocess.Popen([sys.executable, "-c", WORK], stderr=theirs, stdout=subprocess.PIPE, env=environment) as work:
        os.close(theirs)
        said = b""
        try:
            while part := os.read(ours, 10_000):
                said += part
        except OSError:  # Linux says so that nobody holds the other end any more
            pass
        os.close(ours)
    assert work.returncode == 0
    assert "extract" in said.decode()
    assert "40/40" in said.decode()


def test_false_shows_nothing_and_a_callable_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    told: list[tuple[str, int, int]] = []
    for progress in (False, lambda *what: told.append(what)):
        with show_progress(progress) as tell:
            tell("extract", 3, 4)
    assert told == [("extract", 3, 4)]
    assert capsys.readouterr() == ("", "")
