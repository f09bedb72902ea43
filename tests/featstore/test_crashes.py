"""Killed at any instant, a disk that fills up or turns read-only, two at once: what is marked present is right, and
the same command finishes the job with the bytes that an undisturbed run writes.

Run as a program, this file is the process that gets killed: see `main`.
"""

import errno
import io
import itertools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from featstore import engines, extraction
from featstore.backbones import Card, WeightsPolicy
from featstore.config import Config, TensorPlan
from featstore.errors import LockedError, StoreWriteError
from featstore.extraction import extract
from featstore.store import (
    ImageState,
    NewImages,
    RowState,
    SeenImages,
    StoredSegment,
    TensorLayout,
    Writer,
    lock,
    open_store,
)
from featstore.views import View

PRESENT = RowState.PRESENT
TINY = ("test_efficientnet", "test_resnet")
N_PHOTOS = 200
N_KILLS = 30
BLOCKS_AT_RISK = 2  # one is being written while the next one fills


# ---- what a process does to the disk

See = Callable[[str, str, tuple[Any, ...], Any], None]
"""Told of a call that changes the disk: when ("before" or "after"), its name, its arguments, what it returned."""

CALLS = [
    *((io, "open"), (os, "open"), (os, "fsync"), (os, "replace"), (os, "rename")),
    *((os, "unlink"), (os, "remove"), (os, "mkdir"), (os, "rmdir")),
]


@contextmanager
def watching(see: See) -> Iterator[None]:
    """Let `see` know of every call by which this process changes the disk."""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not opens_for_writing(*args, **kwargs):
                return real(*args, **kwargs)
            see("before", name, args, None)
            result = real(*args, **kwargs)
            see("after", name, args, result)
            return result

        return call

    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, watched(name, getattr(module, name)))
        yield


def opens_for_writing(_: Any, mode: Any = "r", *rest: Any, **kwargs: Any) -> bool:
    return bool(mode & (os.O_WRONLY | os.O_RDWR) if isinstance(mode, int) else set(mode) & set("wxa+"))


# ---- the process that gets killed


@dataclass(frozen=True)
class Job:
    """One extraction, and when it kills itself, if it does."""

    photos: str
    store: str
    log: str
    """Gets the number of every row as it is computed and, at the end, how many calls changed the disk."""
    block_rows: int
    real: bool = False
    """With the backbones themselves, not with the stand-in that is faster by far."""
    call: int | None = None
    """At which of the calls that change the disk."""
    moment: str = "before"
    """`before` that call, `after` it, or `torn`: before it, with half of the file lost."""


def main() -> None:
    """Carry out the job that is the argument; without one be a fork server, which saves each job the imports."""
    if sys.argv[1:]:
        carry_out(Job(**json.loads(sys.argv[1])))
        return
    import timm  # noqa: F401

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                carry_out(Job(**json.loads(line)))
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201


def carry_out(job: Job) -> None:
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = itertools.count()
    forward = extraction._Run._forward

    def strike(when: str, name: str, args: tuple[Any, ...], _: Any) -> None:
        if (when == "after") != (job.moment == "after") or next(numbers) != job.call:
            return
        if job.moment == "torn" and name == "fsync":
            with suppress(OSError):  # a folder
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def noted(run: Any, row: int, *args: Any) -> Any:
        os.write(log, f"{row}\n".encode())
        return forward(run, row, *args)

    def report(stage: str, done: int, total: int) -> None:
        if stage == "extract" and done == 1:
            print("computing", os.getpid(), flush=True)  # noqa: T201

    with pytest.MonkeyPatch.context() as patch, watching(strike):
        patch.setattr(extraction._Run, "_forward", noted)
        patch.setattr(extraction, "Writer", partial(Writer, block_rows=job.block_rows))
        if not job.real:
            patch.setattr(engines, "EagerEngine", StandIn)
        extract(config_of(Path(job.photos), Path(job.store)), on_progress=report)
    os.write(log, f"calls {next(numbers)}\n".encode())


class StandIn:
    """An engine whose features are noise that the pixels seed."""

    name = "stand-in"

    def __init__(self, network: object, card: Card, *, device: object) -> None:
        self._card = card

    def run(self, blocks: NDArray[np.uint8], poolings: Iterable[str]) -> dict[str, NDArray[np.float32]]:
        shape, pixels = (len(blocks), self._card.width), zlib.crc32(blocks.tobytes())
        return {
            pooling: np.random.default_rng([pixels, len(self._card.name), *pooling.encode()]).normal(size=shape)
            for pooling in poolings
        }


def config_of(photos: Path, store: Path) -> Config:
    return Config(
        photos=photos,
        store=store,
        weights=WeightsPolicy(photos.parent / "weights", {"*": "random:0"}),
        views={"grid": View((128, 96), rows=2, columns=2), "whole": View((128, 96))},
        tensors=(TensorPlan("grid", "stack", TINY), TensorPlan("whole", "concat", (*TINY, f"{TINY[0]}:max"))),
    )


# ---- stories of processes that get killed

AtWork = Callable[[int], None]
"""Called with the number of the process when it has computed its first row."""


def in_a_process_of_its_own(job: Job, at_work: AtWork) -> int:
    command = [sys.executable, __file__, json.dumps(asdict(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline():
            at_work(process.pid)
    return process.returncode


@pytest.fixture(scope="module")
def fork() -> Iterator[Callable[[Job, AtWork], int]]:
    """Carries out jobs in processes that are forked from one in which everything is imported."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:

        def run(job: Job, at_work: AtWork) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            print(json.dumps(asdict(job)), file=server.stdin)  # noqa: T201
            while (answer := server.stdout.readline().split())[0] != "ended":
                with suppress(ProcessLookupError):
                    at_work(int(answer[1]))
            return int(answer[1])

        yield run


@pytest.fixture(scope="module")
def memory(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder in memory, where there is one: what a killed process wrote is there whether synced or not."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path_factory.mktemp("memory")
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="featstore-") as folder:
        yield Path(folder)


@pytest.fixture
def scratch(memory: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def photos(memory: Path) -> Path:
    folder = memory / "photos"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(N_PHOTOS):
        height, width = rng.integers(90, 140, 2)
        Image.fromarray(rng.integers(0, 255, (height, width, 3), np.uint8)).save(folder / f"photo {i:03}.jpg")
    return folder


@dataclass
class Story:
    """Extractions that go on from one another, in one store, until one comes to its end."""

    first: Job
    run: Callable[[Job, AtWork], int]
    reference: Path
    n_kills: int = 0
    computed: list[int] = field(default_factory=list)

    @property
    def store(self) -> Path:
        return Path(self.first.store)

    def go_on(self, at_work: AtWork = lambda pid: None, **strike: Any) -> bool:
        """Run the same command once more; says whether it came to its end."""
        before = present(self.store, self.reference)
        Path(self.first.log).unlink(missing_ok=True)
        status = self.run(replace(self.first, **strike), at_work)
        assert status in (0, -signal.SIGKILL)
        computed = [int(line) for line in self.lines() if line.isdigit()]
        after = present(self.store, self.reference)
        assert before <= after, "what was present stays"
        assert len(set(computed)) == len(computed)
        assert not before & set(computed), "what is present is not computed again"
        assert len(set(computed) - after) <= BLOCKS_AT_RISK * self.first.block_rows
        self.computed += computed
        self.n_kills += status != 0
        return status == 0

    def lines(self) -> list[str]:
        return Path(self.first.log).read_text().splitlines()

    def assert_ended_well(self) -> None:
        with Writer(self.store):
            pass  # TODO
        assert len(self.computed) - N_PHOTOS <= self.n_kills * BLOCKS_AT_RISK * self.first.block_rows
        assert_finished(self.store, self.reference)
        before = contents(self.store)
        assert self.go_on()
        assert self.lines()[0].startswith("calls"), "nothing is left to compute"
        assert contents(self.store) == before


def present(store: Path, reference: Path) -> set[int]:
    """The rows that are there in every tensor; whatever is marked present in any is as in the reference."""
    if not store.exists():
        return set()
    found, right = open_store(store), open_store(reference)
    assert found.images.paths in ([], right.images.paths)
    rows = set(range(len(found.images)))
    for name in right:
        if name not in found:
            return set()
        marked = np.flatnonzero(found[name].states == PRESENT)
        assert np.array_equal(found[name].read(marked), right[name].read(marked))
        assert np.array_equal(found.images.sizes[marked], right.images.sizes[marked])
        assert (found.images.states[marked] == ImageState.READABLE).all()
        rows &= set(marked.tolist())
    return rows


def assert_finished(store: Path, reference: Path) -> None:
    assert contents(store) == contents(reference)
    left_over = {file.name for file in store.parent.iterdir() if store.name in file.name} - {store.name}
    assert left_over <= {f"{store.name}.lock"}, "no record of a writer, no unfinished file"


def contents(store: Path) -> dict[str, bytes]:
    """Every file of a store, but for the recorded times in the provenance."""
    found = {}
    for file in sorted(store.rglob("*")):
        if not file.is_file():
            continue
        data = file.read_bytes()
        if file.name == "zarr.json":
            document = json.loads(data)
            if document["attributes"].pop("provenance", None):
                del document["attributes"]["seal"]  # it is over the provenance too
            data = json.dumps(document).encode()
        found[file.relative_to(store).as_posix()] = data
    return found


def kill_after(delay_s: float) -> AtWork:
    def kill(pid: int) -> None:
        time.sleep(delay_s)
        os.kill(pid, signal.SIGKILL)

    return kill


@dataclass(frozen=True)
class Undisturbed:
    job: Job
    store: Path
    n_calls: int
    working_s: float


def undisturbed(photos: Path, folder: Path, run: Callable[[Job, AtWork], int], **facts: Any) -> Undisturbed:
    """The run that all others are held against."""
    begun: list[float] = []
    store, log = folder / "reference.zarr", folder / "log"
    job = Job(str(photos), str(store), str(log), **facts)
    assert run(job, lambda pid: begun.append(time.perf_counter())) == 0
    working_s = time.perf_counter() - begun[0]
    *rows, last = log.read_text().splitlines()
    assert [int(row) for row in rows] == list(range(N_PHOTOS))
    return Undisturbed(replace(job, store=str(folder / "features.zarr")), store, int(last.split()[1]), working_s)


@pytest.mark.slow
def test_any_number_of_kills_leave_only_what_is_right_and_the_same_command_ends_with_the_same_bytes(
    photos: Path, scratch: Path, fork: Callable[[Job, AtWork], int]
) -> None:
    rng = np.random.default_rng(0)
    right = undisturbed(photos, scratch, fork, block_rows=16)
    n_kills = 0
    for chapter in itertools.count():
        story = Story(right.job, fork, right.store)
        # The first kills are spread over all that a run does, from the making of the store to the clean-up.
        call = round(chapter * 0.137 % 1 * right.n_calls)
        ended = story.go_on(call=call, moment=str(rng.choice(["before", "after", "torn"])))
        while not ended:
            if rng.random() < 0.4:
                ended = story.go_on(kill_after(rng.uniform(0, right.working_s)))
            else:
                call = int(rng.integers(right.n_calls))
                ended = story.go_on(call=call, moment=str(rng.choice(["before", "after", "torn"])))
        story.assert_ended_well()
        shutil.rmtree(story.store)
        n_kills += story.n_kills
        if n_kills >= N_KILLS:
            break
    print(f"{n_kills} kills in {chapter + 1} stories, {right.n_calls} calls in an undisturbed run")  # noqa: T201


if __name__ == "__main__":
    main()
