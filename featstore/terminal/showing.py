"""Progress for calls from Python: a bar in a notebook and on a terminal, nothing where nobody looks.

A notebook gets one output that changes; it is plain HTML and needs no widgets, so a saved notebook shows how it ended.
"""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from typing import Any

from featstore.support import Progress, clock, no_progress
from featstore.terminal.terminal import Terminal

REDRAW_EVERY_S = 0.1


@contextmanager
def show_progress(progress: bool | Progress = True) -> Iterator[Progress]:
    """Show how far a long call is: `with show_progress() as bar: featstore.push(..., on_progress=bar)`.

    Args:
        progress: True: a bar in a notebook and on a terminal, and nothing in a script whose standard error goes
            elsewhere; False: nothing; or a callable of your own (stage, done, total).
    """
    if not isinstance(progress, bool):
        yield progress
    elif progress and _in_notebook():
        yield _Cell()
    elif progress and sys.stderr.isatty():
        with Terminal().progress() as bars:
            yield bars
    else:
        yield no_progress


def _in_notebook() -> bool:
    """Whether this is the kernel of a notebook, whose front end draws HTML."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class _Cell:
    """A line for each stage below the cell that runs."""

    def __init__(self) -> None:
        self._stages: dict[str, _Stage] = {}
        self._output: Any = None
        self._drawn = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.perf_counter()
        self._stages.setdefault(stage, _Stage(stage, now, done)).move(now, done, total)
        if done < total and now - self._drawn < REDRAW_EVERY_S:
            return
        self._drawn = now
        shown = _Bars(list(self._stages.values()))
        if self._output is None:
            from IPython.display import display

            self._output = display(shown, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._output.update(shown)


class _Stage:
    def __init__(self, name: str, began: float, first: int) -> None:
        self.name, self.began, self.now, self.first, self.done, self.total = name, began, began, first, first, 0

    def move(self, now: float, done: int, total: int) -> None:
        if done < self.done:  # it begins anew
            self.began, self.first = now, done
        self.now, self.done, self.total = now, done, total

    def html(self) -> str:
        bar = f'<progress value="{self.done}" max="{max(self.total, 1)}" style="width: 20em"></progress>'
        return f"<div>{bar} {escape(str(self))}</div>"

    def __str__(self) -> str:
        elapsed = self.now - self.began
        rate = (self.done - self.first) / elapsed if elapsed else 0.0
        facts = [f"{self.done}/{self.total}", f"{self.done / self.total if self.total else 1:.0%}"]
        if rate and elapsed >= 1:
            left = (self.total - self.done) / rate
            facts += [f"{rate:.2f}/s", f"{clock(left)} left" if left else clock(elapsed)]
        return f"{self.name}: {', '.join(facts)}"


class _Bars:
    def __init__(self, stages: list[_Stage]) -> None:
        self._text = "\n".join(map(str, stages))
        self._html = "".join(stage.html() for stage in stages)

    def __repr__(self) -> str:
        return self._text

    def _repr_html_(self) -> str:
        return self._html
