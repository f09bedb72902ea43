"""What a command shows: progress with rate and time left, tables, errors; the same for both commands.

Results go to standard output, progress and errors to standard error. On a terminal progress is a bar; in a
pipe or a log it is a plain line every few seconds, without control codes.
"""

import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from featstore.support import Progress, clock, no_progress

LINE_EVERY_S = 5.0
STOPPED = 130  # exit code after Ctrl-C: 128 and the number of the signal


class Terminal:
    """Where a command prints; `quiet` leaves only errors, `as_json` only the one result."""

    def __init__(self, *, quiet: bool = False, as_json: bool = False) -> None:
        self.quiet = quiet or as_json
        self.as_json = as_json

    def say(self, text: str = "") -> None:
        """A line for people."""
        if not self.quiet:
            _put(f"{_printable(text)}\n")

    def raw(self, text: str) -> None:
        """A result in a format of its own: as it is for a file or a pipe, printable for a person."""
        _put(_printable(text) if sys.stdout.isatty() else text)

    def result(self, value: Any) -> None:
        """The result for scripts, if `--json` was given."""
        if self.as_json:
            _put(json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")

    def table(self, header: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "") -> None:
        """Columns aligned with spaces: numbers to the right, words to the left; below them room, in a terminal."""
        if self.quiet:
            return
        from featstore.terminal.table import lay_out

        room = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        cells = [[_printable(one_line(cell)) for cell in row] for row in (header, *rows)]
        lines = [*([title] if title else []), *lay_out(cells, room)]
        self.say("\n".join(lines if room is None else [*lines, ""]))

    @contextmanager
    def progress(self) -> Iterator[Progress]:
        """A callable (stage, done, total) that shows how far a long piece of work is."""
        if self.quiet:
            yield no_progress
        elif sys.stderr.isatty():
            with _Bars() as bars:
                yield bars
        else:
            yield _Lines()

    @contextmanager
    def errors(self, *kinds: type[Exception], stopped: str = "nothing was changed") -> Iterator[None]:
        """Turn expected errors into one clear message and exit code 1, Ctrl-C into 130.

        Args:
            stopped: what to say of the work that Ctrl-C cut short.

        Raises:
            SystemExit: instead of the error.
        """
        try:
            yield
        except kinds as error:
            sys.stderr.write(f"error: {_printable(str(error))}\n")
            raise SystemExit(1) from None
        except KeyboardInterrupt:
            sys.stderr.write(f"\nstopped; {stopped}\n")
            raise SystemExit(STOPPED) from None
        except BrokenPipeError:
            sys.stderr.close()  # the reader of the pipe has gone, as in `featstore info | head -1`
            raise SystemExit(0) from None


def _put(text: str) -> None:
    """
    Raises:
        SystemExit: standard output takes no more, as on a full disk.
        BrokenPipeError: whoever read it has gone.
    """
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is left is tried again at the exit
        sys.stderr.write(f"error: cannot write to standard output: {error.strerror}\n")
        raise SystemExit(1) from None


class _Lines:
    def __init__(self) -> None:
        self._stage = ""
        self._began = self._printed = 0.0
        self._first = 0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        if stage != self._stage or done < self._first:
            self._stage, self._began, self._printed, self._first = stage, now, now, done
        if done < total and now - self._printed < LINE_EVERY_S:
            return
        if done == total and now - self._began < 1:
            return  # too quick to be worth a line
        self._printed = now
        elapsed = now - self._began
        rate = (done - self._first) / elapsed if elapsed else 0.0
        left = f", {clock((total - done) / rate)} left" if rate and done < total else ""
        sys.stderr.write(f"{stage}: {done}/{total}, {rate:.2f}/s{left}\n")
        sys.stderr.flush()


class _Bars:
    def __init__(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, ProgressColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as RichProgress
        from rich.progress import Task as RichTask
        from rich.text import Text

        class Rate(ProgressColumn):
            def render(self, task: RichTask) -> Text:
                return Text(f"{task.finished_speed or task.speed or 0:.2f}/s")

        self._bars = RichProgress(
            TextColumn("{task.description:<10}"),
            BarColumn(),
            MofNCompleteColumn(),
            Rate(),
            TimeRemainingColumn(),
            console=Console(file=sys.stderr),
        )
        self._tasks: dict[str, Any] = {}

    def __enter__(self) -> "_Bars":
        self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = self._bars.add_task(stage, total=total)
        self._bars.update(self._tasks[stage], completed=done, total=total)


def duration(seconds: float) -> str:
    """1.2 s; from ten seconds on as `clock` says it."""
    return clock(seconds) if seconds >= 10 else f"{seconds:.1f} s"


def _printable(text: str) -> str:
    """File names and labels are other people's text: no control characters reach the terminal."""
    return "".join(char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text)


def one_line(text: str) -> str:
    """Other people's text in a line of ours: a name with a line break in it cannot begin one of its own."""
    return text.replace("\n", "\N{REPLACEMENT CHARACTER}")
