"""How busy each stage of a run is, and which one the others wait for."""

import json
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO

from featstore.errors import StoreWriteError

DECODE, FORWARD, WRITE = "decode", "forward", "write"


class Stages:
    """Clocks for the stages of a run; safe to use from many threads.

    Args:
        trace: a file to write every piece of work to, in the format of Chrome's and Perfetto's viewers.
    """

    def __init__(self, trace: Path | None = None) -> None:
        self.begun = time.perf_counter()
        self.workers: dict[str, int] = {}
        """How many threads (or processes) may be busy with a stage at a time."""
        self.busy_s: dict[str, float] = {}
        self._lock = threading.Lock()
        self._trace = None if trace is None else _Trace(trace, self.begun)

    @contextmanager
    def busy(self, stage: str, what: str = "") -> Iterator[None]:
        """Somebody works on a stage; `what` is for the trace."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, started, time.perf_counter() - started, what)

    def add(self, stage: str, started: float, elapsed_s: float, what: str = "") -> None:
        """Somebody has worked; `started` by `time.perf_counter`."""
        with self._lock:
            self.busy_s[stage] = self.busy_s.get(stage, 0.0) + elapsed_s
            if self._trace is not None:
                self._trace.write(stage, started, elapsed_s, what)

    def count(self, busy_s: Mapping[str, float]) -> None:
        """Others have worked, on clocks of their own."""
        with self._lock:
            for stage, seconds in busy_s.items():
                self.busy_s[stage] = self.busy_s.get(stage, 0.0) + seconds

    def shares(self, elapsed_s: float) -> dict[str, float]:
        """By stage, which part of the time its workers were busy."""
        return {
            stage: min(1.0, busy_s / self.workers.get(stage, 1) / elapsed_s) for stage, busy_s in self.busy_s.items()
        }

    @property
    def notices(self) -> list[str]:
        return [self._trace.trouble] if self._trace is not None and self._trace.trouble else []

    def __enter__(self) -> "Stages":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._trace is not None:
            self._trace.close()


class _Trace:
    """Written as it comes, so that memory does not grow with the run; the viewers do without the closing bracket."""

    def __init__(self, file: Path, begun: float) -> None:
        self._begun, self.trouble = begun, ""
        try:
            self._out: IO[str] = file.open("w", encoding="utf-8")
        except OSError as error:
            raise StoreWriteError(f"the trace {file} cannot be written: {error.strerror}") from error
        self._say("[\n")

    def write(self, stage: str, started: float, elapsed_s: float, what: str) -> None:
        event = {
            "name": stage,
            "cat": stage,
            "ph": "X",
            "ts": round((started - self._begun) * 1e6),
            "dur": round(elapsed_s * 1e6),
            "pid": 0,
            "tid": threading.get_native_id(),
            "args": {"what": what},
        }
        self._say(json.dumps(event) + ",\n")

    def close(self) -> None:
        self._say("{}]\n")
        with suppress(OSError):
            self._out.close()

    def _say(self, text: str) -> None:
        if self.trouble:
            return
        try:
            self._out.write(text)
            self._out.flush()  # what a killed run has done is in its trace
        except OSError as error:  # features are worth more than their timeline
            self.trouble = f"the trace {self._out.name} ends early: {error.strerror}"
