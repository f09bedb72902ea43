"""Tables in a pipe and in a narrow terminal: nothing is left out, cut short or padded."""

import os
import pty
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from featstore.terminal import Terminal
from featstore.terminal.table import lay_out

HEADER = ("tensor", "rows", "size", "what")
ROWS = [
    ("tf_efficientnet_lite0", "7", "0.1 to 0.2", "seven photos of the beach, and one of the harbour"),
    ("grid", "1200", "-", ""),
]


def test_figures_stand_to_the_right_and_words_to_the_left() -> None:
    assert lay_out([HEADER, *ROWS]) == [
        "tensor                 rows        size  what",
        "---------------------  ----  ----------  -------------------------------------------------",
        "tf_efficientnet_lite0     7  0.1 to 0.2  seven photos of the beach, and one of the harbour",
        "grid                   1200           -",
    ]


def test_wide_cells_fold_between_words() -> None:
    assert lay_out([HEADER, *ROWS], 60) == [
        "tensor                 rows        size  what",
        "---------------------  ----  ----------  -------------------",
        "tf_efficientnet_lite0     7  0.1 to 0.2  seven photos of the",
        "                                         beach, and one of",
        "                                         the harbour",
        "grid                   1200           -",
    ]


def test_what_cannot_fit_is_as_wide_as_it_is() -> None:
    assert lay_out([HEADER, *ROWS], 40) == lay_out([HEADER, *ROWS])


@given(
    st.integers(1, 4).flatmap(lambda n: st.lists(st.lists(st.text("ab 1.图"), min_size=n, max_size=n), min_size=1)),
    st.none() | st.integers(1, 60),
)
def test_every_word_is_there(cells: list[list[str]], room: int | None) -> None:
    lines = lay_out(cells, room)
    assert sorted("".join(lines).replace(" ", "").replace("-", "")) == sorted(
        "".join(cell for row in cells for cell in row).replace(" ", "")
    )
    assert all(line == line.rstrip() for line in lines)
    words = {word for line in lines for word in line.split()}
    assert all(set(cell.split()) <= words for row in cells for cell in row)
    if room is not None and len(lines) > len(cells) + 1:
        assert max(map(cell_len, lines)) <= room


def test_tables_in_a_pipe_have_no_lines_and_spaces_but_their_own(capsys: pytest.CaptureFixture[str]) -> None:
    Terminal().table(HEADER, ROWS, title="all")
    assert capsys.readouterr().out == "\n".join(["all", *lay_out([HEADER, *ROWS]), ""])


def test_a_terminal_of_80_columns_shows_all(run_in_terminal: Callable[[str], str]) -> None:
    shown = run_in_terminal(
        "from featstore.terminal.terminal import Terminal\n"
        "Terminal().table(('version', 'who', 'what'), [('30XGP93AFVW3QH2M1S90', 'ada', 'word ' * 30)])"
    )
    assert "30XGP93AFVW3QH2M1S90" in shown
    assert "…" not in shown
    assert shown.count("word") == 30
    assert max(map(len, shown.splitlines())) <= 80


@pytest.fixture
def run_in_terminal(tmp_path: Path) -> Callable[[str], str]:
    """Runs Python in a terminal of 80 columns."""

    def run(code: str) -> str:
        shown = b""

        def read(terminal: int) -> bytes:
            nonlocal shown
            data = os.read(terminal, 1024)
            shown += data
            return data

        script = tmp_path / "script.py"
        script.write_text(code)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("COLUMNS", "80")
            assert pty.spawn([sys.executable, str(script)], read) == 0
        return shown.decode()

    return run
