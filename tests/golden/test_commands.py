"""The commands and what can be said to them."""

import subprocess
import sys
from pathlib import Path

import pytest

from . import making, tree

THEN = making.recorded("commands.json")
COMMANDS = [command for program in THEN.values() for command in program]
BAD = {
    "featstore": 2,
    "featstore extrac": 2,
    "featstore info nowhere.zarr": 1,
    "featstore info --no-such-option": 2,
    "featstore extract nowhere": 1,
    "featstore extract photos --dtype float8": 1,
    "featstore extract photos --tensor grid": 1,
    "featstore extract photos --store s.zarr --backbones no_such_network": 1,
    "featstore extract photos --batch many": 2,
    "featstore verify nowhere.zarr": 1,
    "featstore verify features.zarr --recompute -1": 2,
    "featstore import x --from nowhere.npy": 1,
    "featstore import x": 2,
    "featstore export features.zarr --to features.docx": 1,
    "featstore rm nothing": 1,
    "featstore init photos": 1,
    "featstore push features.zarr team": 2,
    "featstore pull nowhere s.zarr": 1,
    "featstore --version": 0,
    "heads": 2,
    "heads train": 2,
    "heads train no-such-head": 1,
    "heads train ridge nowhere.zarr --labels labels.csv": 1,
    "heads train ridge features.zarr --labels nowhere.csv": 1,
    "heads train ridge features.zarr --labels bad.csv": 1,
    "heads train ridge features.zarr --labels labels.csv --tasks nothing": 1,
    "heads train ridge --folds 1": 2,
    "heads train ridge --folds 2 --hold-out 0.2": 1,
    "heads train ridge --tensor whole --set nothing=1": 1,
    "heads train ridge --tensor whole --memory lots": 1,
    "heads train ridge --tensor whole --precision fp8": 1,
    "heads show nothing": 1,
    "heads report nowhere": 1,
    "heads resume nowhere": 1,
    "heads compare runs/ridge": 1,
    "heads predict runs/ridge nowhere.zarr": 1,
    "heads log runs/ridge nothing": 1,
    "pipelines": 2,
    "pipelines nothing": 2,
    "pipelines personality": 2,
    "pipelines mediaeval --photos photos --labels labels.csv": 1,
}
"""By the words of a command, its exit code."""


@pytest.mark.parametrize("program", making.PROGRAMS)
def test_commands_take_what_they_took(program: str) -> None:
    now = tree.look_at(program)
    assert THEN[program].keys() <= now.keys()
    for command, parameters in THEN[program].items():
        assert {name: now[command].get(name) for name in parameters} == parameters, command


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    program, *words = command.split()
    assert "Usage: " in making.run(program, *words, "--help")


@pytest.mark.parametrize("program", ["featstore", "heads"])
def test_the_programs_start(program: str) -> None:
    script = Path(sys.executable).with_name(program)
    assert subprocess.run([script, "--help"], capture_output=True, check=False).returncode == 0


def test_the_recipes_start() -> None:
    command = [sys.executable, "-m", "pipelines", "--help"]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_bad_inputs_end_with_the_same_exit_codes(desk: Path) -> None:
    (desk / "bad.csv").write_text("path,appeal\nphoto 0.png,1\nphoto 0.png,2\n", encoding="utf-8")
    found = {}
    for words in BAD:
        program, *arguments = words.split()
        result = making.call(program, *arguments)
        assert result.exception is None or isinstance(result.exception, SystemExit), words
        found[words] = result.exit_code
    assert found == BAD
