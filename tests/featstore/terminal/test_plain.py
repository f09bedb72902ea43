"""Where a terminal or pipe is not UTF-8, every command writes plain ASCII, and never a traceback."""

import json
import os
import subprocess
import sys

import pytest

from featstore.terminal.plain import plain
from featstore.terminal.terminal import SCREEN_CHARACTERS, SCREEN_LINES, within_screen

ENVIRONMENTS = {
    "LANG=C": {"LANG": "C"},
    "POSIX": {"LC_ALL": "POSIX"},
    "no help of Python's": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    "ascii": {"PYTHONIOENCODING": "ascii"},
    "latin-1": {"PYTHONIOENCODING": "latin-1"},
    "cp1252": {"PYTHONIOENCODING": "cp1252"},
    "a locale of another codeset": {"LANG": "de_DE.ISO-8859-1"},
}
SAID_UTF8 = {
    "LANG": {"LANG": "C.UTF-8"},
    "nothing is said": {},
    "LANG=C, but PYTHONIOENCODING": {"LANG": "C", "PYTHONIOENCODING": "utf-8"},
    "LANG=C, but LC_CTYPE": {"LANG": "C", "LC_CTYPE": "C.UTF-8"},
}
PROGRAMS = {
    "featstore": "from featstore.cli import main; main()",
    "heads": "from heads.cli import main; main()",
    "pipelines": "import runpy; runpy.run_module('pipelines', run_name='__main__')",
}
LINES = {
    "featstore --help": 0,
    "featstore extract --help": 0,
    "featstore info nöwhere–×.zarr": 1,
    "heads train --help": 0,
    "heads show ämtl": 1,
    "heads list --json": 0,
    "pipelines --help": 0,
    "pipelines demo --ü": 2,
}
SPEAKING = """
import logging, sys, warnings
from featstore.terminal import Terminal, adapt_streams
adapt_streams()
class Speaks(Exception): pass
terminal, as_json = Terminal(), Terminal(as_json=True)
name = "caf\\u00e9 \\u00d7 \\udce9.jpg"
as_json.result({"name": name})
terminal.table(("photo", "r \\u00b1"), [(name, "0.1 \\u2013 0.2")])
terminal.raw(name + "\\n")
print("\\u2501\\u2502\\u250c", name, file=sys.stderr)
logging.getLogger("x").warning(name)
warnings.warn(name)
with terminal.errors(Speaks):
    raise Speaks(name)
"""


def run(code: str, *words: str, **env: str) -> subprocess.CompletedProcess[bytes]:
    kept = {name: os.environ[name] for name in ("PATH", "PYTHONPATH", "HOME") if name in os.environ}
    call = [sys.executable, "-c", f"import sys; sys.argv = ['command', *sys.argv[1:]]; {code}", *words]
    return subprocess.run(call, env={**kept, "OMP_NUM_THREADS": "1", **env}, capture_output=True, timeout=120)


@pytest.mark.parametrize("environment", ["LANG=C", "no help of Python's"])
@pytest.mark.parametrize("line", LINES)
def test_commands_write_ascii(line: str, environment: str) -> None:
    program, *words = line.split()
    done = run(PROGRAMS[program], *words, **ENVIRONMENTS[environment])
    assert (done.stdout + done.stderr).isascii()
    assert b"Traceback" not in done.stderr
    assert done.returncode == LINES[line]


@pytest.mark.parametrize("environment", ENVIRONMENTS)
def test_everything_that_is_written_goes_through(environment: str) -> None:
    """Results, tables, errors, and what libraries print, log and warn of."""
    done = run(SPEAKING, **ENVIRONMENTS[environment])
    assert (done.stdout + done.stderr).isascii()
    assert done.returncode == 1
    text, told = done.stdout.decode(), done.stderr.decode()
    document, end = json.JSONDecoder().raw_decode(text)
    assert document == {"name": "café × \udce9.jpg"}
    header, rule, row, raw = text[end:].strip().splitlines()
    assert header.index("r +-") > rule.index(" ---"), "columns are as wide as what is shown"
    assert "0.1 - 0.2" in row
    assert len(row) == len(rule)
    assert raw == "caf\\xe9 x \\udce9.jpg"
    assert "--|+ caf" in told.replace("-|", "--|")
    assert told.count("caf\\xe9 x \\udce9.jpg") >= 4
    assert "error: caf\\xe9 x \\udce9.jpg" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("environment", SAID_UTF8)
def test_where_utf8_is_said_nothing_is_spelled_out(environment: str) -> None:
    done = run(SPEAKING, **SAID_UTF8[environment])
    document, _ = json.JSONDecoder().raw_decode(done.stdout.decode("utf-8", "surrogateescape"))
    assert document == {"name": "café × \udce9.jpg"}
    assert done.stdout.endswith("café × ".encode() + b"\xe9.jpg\n"), "a pipe gets the name's own bytes"
    assert "0.1 – 0.2" in done.stdout.decode("utf-8", "surrogateescape")


def test_a_command_that_is_started_by_ours_is_plain_too() -> None:
    begin = "from featstore.terminal import adapt_streams; adapt_streams()"
    code = f"import subprocess; {begin}; subprocess.run([sys.executable, '-c', '{begin}; print(chr(215))'])"
    assert run(code, LANG="C").stdout.strip() == b"x"


def test_signs_are_spelled_as_usual_and_the_rest_is_escaped() -> None:
    assert plain("3 × 4 ± 1 – 5…") == "3 x 4 +- 1 - 5..."
    assert plain("├──▶ café\t\x1b[1m") == "+--\\u25b6 caf\\xe9\\t\\x1b[1m"
    assert plain("a\nb") == "a\nb"


def test_a_message_fits_on_a_screen_and_keeps_what_to_do() -> None:
    short = "a\nb"
    assert within_screen(short) == short
    many = "found:\n" + "\n".join(f"  - {number}" for number in range(500)) + "\ndo this"
    assert len(within_screen(many).splitlines()) <= SCREEN_LINES
    assert within_screen(many).endswith("do this")
    assert "more lines" in within_screen(many)
    wide = "found " + "x" * 50_000 + " do this"
    assert len(within_screen(wide)) <= SCREEN_CHARACTERS
    assert within_screen(wide).endswith("do this")
