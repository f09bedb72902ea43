"""Commands called in this process, judged by what they say and how they end; and work in forked processes."""

import os
import re
import sys
import traceback
from collections.abc import Callable

import typer
from typer.testing import CliRunner

from .values import PLANTED

# A stranger's text may not steer a terminal: controls, and marks that turn the direction of text.
_STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class RefusedError(Exception):
    """A command said in words that it cannot do what was asked."""


class FoundError(Exception):
    """What must not happen has happened."""

    def __init__(self, kind: str, said: str) -> None:
        super().__init__(f"{kind}: {said}")
        self.kind, self.said = kind, said


def command(program: str, *arguments: object) -> str:
    """What a command prints that ends with 0.

    Raises:
        RefusedError: it ends with 1 or 2 and says why.
        FoundError: it ends otherwise, steers the terminal, or lets text of a file pass for a message of its own.
    """
    result = CliRunner().invoke(_app_of(program), [str(each) for each in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    check_text(result.output)
    if result.exit_code == 0:
        return result.stdout
    if result.exit_code not in (1, 2) or not result.output.strip():
        raise FoundError("exit code", f"{result.exit_code} with {result.output[-200:]!r}")
    raise RefusedError(result.output)


def check_text(text: str) -> None:
    """
    Raises:
        FoundError: the text steers a terminal, or misleads who reads it.
    """
    if found := _STEERING.search(text):
        raise FoundError("steers", repr(text[max(found.start() - 60, 0) : found.end() + 20]))
    if "Traceback (most recent call last)" in text:
        raise FoundError("traceback in output", text[-300:])
    if any(line.strip().startswith(PLANTED) for line in text.splitlines()):
        raise FoundError("misleads", f"a line begins with {PLANTED!r}")


def forked(work: Callable[[], None]) -> int:
    """Do something in a process of its own; its exit code, 0 if all was well."""
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(70)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _app_of(program: str) -> typer.Typer:
    from featstore.cli import app as featstore_app
    from heads.cli import app as heads_app

    return {"featstore": featstore_app, "heads": heads_app}[program]
