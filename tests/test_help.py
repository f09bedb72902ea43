"""The help of the three commands: a newcomer reads whole sentences, in a terminal of 80 columns."""

import re

import pytest
import typer
from typer.testing import CliRunner

import featstore.cli
import heads.cli
import pipelines.__main__

APPS = {"featstore": featstore.cli.app, "heads": heads.cli.app, "pipelines": pipelines.__main__.app}


def shown(program: str, *words: str) -> str:
    done = CliRunner().invoke(APPS[program], [*words, "--help"], env={"COLUMNS": "80"})
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize("program", APPS)
def test_the_first_sentence_of_every_command_fits_its_line(program: str) -> None:
    cut = re.findall(r"^  (\S+) +.*\.\.\.$", shown(program).partition("\nCommands:\n")[2], re.MULTILINE)
    assert cut == [], f"`{program} --help` cuts the first sentence of: {', '.join(cut)}"


@pytest.mark.parametrize("program", APPS)
def test_every_command_argument_and_option_says_what_it_is(program: str) -> None:
    commands = typer.main.get_command(APPS[program]).commands  # type: ignore[attr-defined]
    silent = [name for name, command in commands.items() if not (command.help or "").rstrip().endswith(".")]
    silent += [f"{name} {each.name}" for name, command in commands.items() for each in command.params if not each.help]
    assert silent == [], f"`{program} --help` says nothing of: {', '.join(silent)}"
