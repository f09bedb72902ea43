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
import traceback
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from featstore.backbones import Card, WeightsPolicy
from featstore.backbones.networks import Network
from featstore.backbones.shapes import shape_of
from featstore.config import Config, TensorSpec
from featstore.engines import eager
from featstore.errors import LockedError, StoreWriteError
from featstore.extraction import extract as extraction
from featstore.extraction import run as running
from featstore.extraction.extract import extract
from featstore.photos.views import View
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
from featstore.store.format import metadata
from featstore.store.places import local
from featstore.store.replacing import set_aside

PRESENT = RowState.PRESENT
TINY = ("test_efficientnet", "test_resnet")
N_PHOTOS = 200
N_FEW = 56
N_KILLS = 30
EVERY = 17
EVERY_VISIBLE = 4
STORE = "features.zarr"
BLOCKS_AT_RISK = 2  # one is being written while the next one fills


# ---- what a process does to the disk

See = Callable[[str, str, tuple[Any, ...], Any], None]
"""Told of a call that changes the disk: when ("before" or "after"), its name, its arguments, what it returned."""

CALLS = [
    *((io, "open"), (os, "open"), (os, "fsync"), (os, "replace"), (os, "rename"), (os, "link")),
    *((os, "unlink"), (os, "remove"), (os, "mkdir"), (os, "rmdir")),
]


@contextmanager
def watching(see: See) -> Iterator[None]:
    """Let `see` know of every call by which this process changes the disk."""

    def watched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if name == "open" and not opens_for_writing(*args, **kwargs):
                return real(*args, **kwargs)
            with turn:  # zarr writes some documents side by side
                places = whole_paths(args, kwargs)
                see("before", name, places, None)
                result = real(*args, **kwargs)
                see("after", name, places, result)
            return result

        return call

    turn = threading.RLock()
    with pytest.MonkeyPatch.context() as patch:
        for module, name in CALLS:
            patch.setattr(module, name, watched(name, getattr(module, name)))
        yield


def whole_paths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """The arguments, with names in folders that are open as paths."""
    folders = [kwargs.get("src_dir_fd", kwargs.get("dir_fd")), kwargs.get("dst_dir_fd")]
    named = [os.path.join(os.readlink(f"/proc/self/fd/{each}"), arg) for each, arg in zip(folders, args) if each]  # noqa: PTH115, PTH118, B905
    return (*named, *args[len(named) :])


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

    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            try:
                carry_out(Job(**json.loads(line)))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        print("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)  # noqa: T201


def carry_out(job: Job) -> None:
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    numbers = itertools.count()
    take = running.Extraction._take

    def strike(when: str, name: str, args: tuple[Any, ...], _: Any) -> None:
        if (when == "after") != (job.moment == "after") or next(numbers) != job.call:
            return
        if job.moment == "torn" and name == "fsync":
            with suppress(OSError):  # a folder
                os.ftruncate(args[0], os.fstat(args[0]).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)

    def noted(run: Any, result: Any, block: Any) -> Any:
        os.write(log, f"{result.row}\n".encode())
        return take(run, result, block)

    def report(stage: str, done: int, total: int) -> None:
        if stage == "extract" and done == 1:
            print("computing", os.getpid(), flush=True)  # noqa: T201

    with pytest.MonkeyPatch.context() as patch, watching(strike):
        patch.setattr(running.Extraction, "_take", noted)
        patch.setattr(extraction, "Writer", partial(Writer, block_rows=job.block_rows))
        if not job.real:
            patch.setattr(eager, "EagerEngine", StandIn)
        extract(config_of(Path(job.photos), Path(job.store)), on_progress=report)
    os.write(log, f"calls {next(numbers)}\n".encode())


class StandIn:
    """An engine whose features are noise that the pixels seed."""

    name = "eager"  # which is taken as it is

    def __init__(self, network: Network, card: Card, *, device: object, precision: str) -> None:
        self.card, self.outputs = card, network.outputs

    def run(self, blocks: torch.Tensor) -> list[torch.Tensor]:
        height, width = blocks.shape[1:3]
        seed = [zlib.crc32(blocks.numpy().tobytes()), len(self.card.name)]
        return [
            torch.from_numpy(
                np.random.default_rng([*seed, *output.pooling.encode()])
                .normal(size=(len(blocks), shape_of(self.card, output, (width, height))[1]))
                .astype(np.float32)
            )
            for output in self.outputs
        ]


def config_of(photos: Path, store: Path) -> Config:
    return Config(
        photos=photos,
        store=store,
        weights=WeightsPolicy(photos.parent / "weights", {"*": "random:0"}),
        views={"grid": View((128, 96), rows=2, columns=2), "whole": View((128, 96))},
        tensors=(TensorSpec("grid", "stack", TINY), TensorSpec("whole", "concat", (*TINY, f"{TINY[0]}:max"))),
        engine="eager",
    )


# ---- stories of processes that get killed

AtWork = Callable[[int], None]
"""Called with the number of the process when it has computed its first row."""
Run = Callable[[Job, AtWork], int]
"""Sees a job through; returns what its process ended with."""


def in_a_process_of_its_own(job: Job, at_work: AtWork) -> int:
    command = [sys.executable, __file__, json.dumps(asdict(job))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if process.stdout.readline():
            at_work(process.pid)
    return process.returncode


@pytest.fixture(scope="module")
def fork() -> Iterator[Run]:
    """Carries out jobs in processes that are forked from one in which everything is imported."""
    command = [sys.executable, __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as server:

        def run(job: Job, at_work: AtWork) -> int:
            assert server.stdin is not None
            assert server.stdout is not None
            print(json.dumps(asdict(job)), file=server.stdin)
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


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(eager, "EagerEngine", StandIn)
    monkeypatch.setattr(extraction, "Writer", partial(Writer, block_rows=16))


@pytest.fixture(scope="module")
def few(photos: Path) -> Path:
    folder = photos.with_name("few")
    folder.mkdir()
    for file in sorted(photos.iterdir())[:N_FEW]:
        shutil.copy2(file, folder)
    return folder


@dataclass
class Story:
    """Extractions that go on from one another, in one store, until one comes to its end."""

    first: Job
    run: Run
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
        n_rows = len(open_store(self.reference).images)
        assert len(self.computed) - n_rows <= self.n_kills * BLOCKS_AT_RISK * self.first.block_rows
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
    """Every file of a store, but for the recorded times in the provenance and what is computed from them."""
    found = {path.relative_to(store).as_posix(): path.read_bytes() for path in store.rglob("*") if path.is_file()}
    documents = {key: json.loads(data) for key, data in found.items() if key.endswith("zarr.json")}
    dated = [key for key, document in documents.items() if document["attributes"].pop("provenance", None)]
    root = documents["zarr.json"]["attributes"]
    for key in dated:
        del documents[key]["attributes"]["seal"]
        root["sums"][key] = len(root["sums"].get(key, []))
    if dated:
        del root["seal"]
    return found | {key: json.dumps(document).encode() for key, document in documents.items()}


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


def undisturbed(photos: Path, folder: Path, run: Run, **facts: Any) -> Undisturbed:
    """The run that all others are held against."""
    begun: list[float] = []
    store, log = folder / "reference.zarr", folder / "log"
    job = Job(str(photos), str(store), str(log), **facts)
    assert run(job, lambda pid: begun.append(time.perf_counter())) == 0
    working_s = time.perf_counter() - begun[0]
    *rows, last = log.read_text().splitlines()
    assert [int(row) for row in rows] == list(range(len(list(photos.iterdir()))))
    return Undisturbed(replace(job, store=str(folder / STORE)), store, int(last.split()[1]), working_s)


@pytest.mark.slow
def test_any_number_of_kills_leave_only_what_is_right_and_the_same_command_ends_with_the_same_bytes(
    photos: Path, scratch: Path, fork: Run
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
            soon = 0.5 * rng.random()  # the later a kill, the more likely it comes too late
            if rng.random() < 0.4:
                ended = story.go_on(kill_after(soon * rng.uniform(0, right.working_s)))
            else:
                call = int(soon * rng.integers(right.n_calls))
                ended = story.go_on(call=call, moment=str(rng.choice(["before", "after", "torn"])))
        story.assert_ended_well()
        shutil.rmtree(story.store)
        n_kills += story.n_kills
        if n_kills >= N_KILLS:
            break
    print(f"{n_kills} kills in {chapter + 1} stories, {right.n_calls} calls in an undisturbed run")  # noqa: T201


@pytest.mark.slow
def test_the_real_thing_survives_kills_too(few: Path, scratch: Path, fork: Run) -> None:
    right = undisturbed(few, scratch, fork, block_rows=16, real=True)
    n_kills = 0
    for run in (in_a_process_of_its_own, fork):
        story = Story(right.job, run, right.store)
        story.go_on(call=int(0.3 * right.n_calls), moment="torn")
        story.go_on(kill_after(0.1 * right.working_s))
        story.go_on(call=int(0.05 * right.n_calls), moment="after")
        story.run = fork
        assert story.go_on()
        story.assert_ended_well()
        shutil.rmtree(story.store)
        n_kills += story.n_kills
    assert n_kills == 6


# ---- all that a writer can do, cut short at every call that changes the disk


def segment(name: str, *, n_blocks: int, width: int) -> StoredSegment:
    return StoredSegment(name, {"architecture": name, "weights": {"sha256": "ab"}}, n_blocks, width)


STACK = TensorLayout("grid", "stack", (segment("a", n_blocks=2, width=3), segment("b", n_blocks=2, width=5)))
CONCAT = TensorLayout("whole", "concat", (segment("a", n_blocks=1, width=3), segment("b", n_blocks=2, width=5)))
LAYOUTS = (STACK, CONCAT)
UNREADABLE_ROW = 4

Kept = set[tuple[str, int]]
"""Rows by tensor that a commit has promised."""


def session(path: Path, kept: Kept) -> None:
    """Everything that a writer can do; done once more from any point on, it ends in the same way."""
    with Writer(path, block_rows=4) as writer:
        list_images(writer, 6)
        for layout in LAYOUTS:
            writer.ensure_tensor(layout, "float16")
        writer.record_run(["grid", "whole"], {"device": "cpu"})
        for block in (0, 1):
            commit(writer, block, LAYOUTS, kept)
        kept -= {("grid", 1), ("grid", 5)}
        writer.set_row_states("grid", [1, 5], RowState.ABSENT)
        commit(writer, 0, (STACK,), kept)
    with Writer(path) as writer:
        writer.note_unchanged([2], [7], [8])
        writer.set_image_states([3], ImageState.GONE)
        list_images(writer, 10)
        for block in (1, 2):
            commit(writer, block, LAYOUTS, kept)
        writer.set_image_states([3], ImageState.GONE)
        set_aside(writer, "whole")
        kept -= {each for each in kept if each[0] == "whole"}
        for name in [name for name in writer.store if name.startswith("whole")]:
            writer.remove(name)


def list_images(writer: Writer, n_images: int) -> None:
    new = range(len(writer.store.images), n_images)
    if new:
        digests = np.array([[row] * 32 for row in new], np.uint8)
        writer.add_images(NewImages([f"{row}.jpg" for row in new], digests, [9] * len(new), list(new)))


def commit(writer: Writer, block: int, layouts: tuple[TensorLayout, ...], kept: Kept) -> None:
    rows = list(range(len(writer.store.images)))[block * 4 : block * 4 + 4]
    states = np.array([RowState.FAILED if row == UNREADABLE_ROW else PRESENT for row in rows], np.uint8)
    known = [ImageState.UNREADABLE if row == UNREADABLE_ROW else ImageState.READABLE for row in rows]
    seen = SeenImages(rows, [(40, 60)] * len(rows), known, ["torn" * (row == UNREADABLE_ROW) for row in rows])
    features = {each.name: np.stack([features_of(row, each) for row in rows]) for each in layouts}
    writer.commit(block, {name: (values, states) for name, values in features.items()}, seen)
    kept |= {(layout.name, row) for layout in layouts for row in rows if row != UNREADABLE_ROW}


def features_of(row: int, layout: TensorLayout) -> NDArray[np.float16]:
    if row == UNREADABLE_ROW:
        return np.full(layout.row_shape, np.nan, np.float16)
    return np.random.default_rng([row, len(layout.name)]).normal(size=layout.row_shape).astype(np.float16)


def assert_sound(path: Path, kept: Kept) -> None:
    """Whatever is marked present is right, and what a commit has promised is there."""
    there: Kept = set()
    if path.exists():
        store = open_store(path)
        assert store.images.paths == [f"{row}.jpg" for row in range(len(store.images))]
        for name, tensor in store.tensors.items():
            [layout] = [each for each in LAYOUTS if name.startswith(each.name)]  # `whole_replaced` is one set aside
            rows = np.flatnonzero(tensor.states == PRESENT).tolist()
            for row, values in zip(rows, tensor.read(rows), strict=True):
                assert np.array_equal(values, features_of(row, layout))
            there |= {(layout.name, row) for row in rows}
    assert kept <= there


Files = dict[str, bytes | None]
"""By path in a folder, the bytes of a file; None for a folder."""


@dataclass
class Moment:
    """What a crash may leave behind, and what must be in it."""

    told: str
    files: Files
    kept: Kept


@dataclass(frozen=True)
class Renaming:
    """A name that is on the disk only once its folder is synced."""

    source: Path | None
    """None: it is one more name of a file."""
    target: Path
    folder: int
    """Its inode; the folder itself may be renamed."""
    overwritten: Files


class Disk:
    """A folder, and all that a crash at any moment may leave of it.

    A killed process leaves what it wrote. A power cut also takes what was not synced: half of the bytes of a file,
    and a renaming whose folder was not synced.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.kept: Kept = set()
        self.moments: dict[str, Moment] = {}
        self.n_calls = 0
        self._unsynced: set[int] = set()
        self._renamed: list[Renaming] = []

    def see(self, when: str, name: str, args: tuple[Any, ...], result: Any) -> None:
        if when == "before":
            self.n_calls += 1
            if name in ("replace", "rename", "link"):
                source, target = map(Path, args[:2])
                overwritten = {key: data for key, data in self._read()[0].items() if self._is_in(key, target)}
                folder = target.parent.stat().st_ino
                self._renamed.append(Renaming(None if name == "link" else source, target, folder, overwritten))
                self._note(f"before call {self.n_calls}, {name}", undo=self._renamed[:-1])
                return
        elif name == "open":
            self._unsynced.add(os.fstat(result if isinstance(result, int) else result.fileno()).st_ino)
        elif name == "fsync":
            inode = os.fstat(args[0]).st_ino
            self._unsynced.discard(inode)
            self._renamed = [each for each in self._renamed if each.folder != inode]
        self._note(f"{when} call {self.n_calls}, {name}", undo=self._renamed)

    def visible_moments(self) -> list[Moment]:
        """The moments but for those in which only an unfinished file is another; of these the first."""
        found: dict[str, Moment] = {}
        for moment in self.moments.values():
            whole = [each for each in sorted(moment.files.items()) if ".part" not in each[0]]
            found.setdefault(repr((whole, sorted(moment.kept))), moment)
        return list(found.values())

    def _note(self, told: str, *, undo: list[Renaming]) -> None:
        files, inodes = self._read()
        torn: Files = {
            key: data[: len(data) // 2] if data and inodes[key] in self._unsynced else data
            for key, data in files.items()
        }
        lost = dict(torn)
        for each in reversed(undo):
            moved = {key: lost.pop(key) for key in list(lost) if self._is_in(key, each.target)}
            if each.source is not None:
                prefix = len(self._key(each.target))
                lost |= {self._key(each.source) + key[prefix:]: data for key, data in moved.items()}
            lost |= each.overwritten
        for what, left in (("killed", files), ("power cut", lost)):
            known = self.moments.setdefault(repr(sorted(left.items())), Moment(f"{what} {told}", left, set()))
            known.kept |= self.kept

    def _read(self) -> tuple[Files, dict[str, int]]:
        paths = {self._key(path): path for path in sorted(self.folder.rglob("*"))}
        files = {key: path.read_bytes() if path.is_file() else None for key, path in paths.items()}
        return files, {key: path.stat().st_ino for key, path in paths.items()}

    def _key(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    def _is_in(self, key: str, path: Path) -> bool:
        return key == self._key(path) or key.startswith(f"{self._key(path)}/")


def put_back(files: Files, folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    for key, data in sorted(files.items()):
        if data is None:
            (folder / key).mkdir(exist_ok=True)
        else:
            (folder / key).write_bytes(data)


@pytest.mark.slow
def test_a_crash_before_or_after_any_call_of_a_writer_loses_nothing_that_was_committed(
    scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "TABLE_CHUNK", 16)  # small files, for they are written back very often
    disk, folder = Disk(scratch / "disk"), scratch / "again"
    disk.folder.mkdir()
    write = local.write_durably

    def write_late(root: Path, key: str, data: Any) -> None:
        time.sleep(0.4 * ("/c.1." in key))  # time enough for the record to overtake the shard, if it can
        write(root, key, data)

    with watching(disk.see), monkeypatch.context() as patch:
        patch.setattr("featstore.store.writer.write_durably", write_late)
        session(disk.folder / STORE, disk.kept)
    assert_finished(disk.folder / STORE, disk.folder / STORE)
    visible = disk.visible_moments()
    for number, moment in enumerate([*visible, *disk.moments.values()]):
        again = number % EVERY == 0  # most of the moments are the same to a writer as well
        if number >= len(visible) and not again:
            continue
        put_back(moment.files, folder)
        try:
            assert_sound(folder / STORE, moment.kept)
            if again:
                session(folder / STORE, set())
                assert_finished(folder / STORE, disk.folder / STORE)
        except Exception as error:
            raise AssertionError(moment.told) from error
    print(f"{disk.n_calls} calls, {len(disk.moments)} moments, {len(visible)} to a reader")  # noqa: T201


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
def test_an_extraction_goes_on_from_wherever_it_was_cut_short(
    photos: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its beginning and its end as well, which a kill at random hardly ever hits."""
    monkeypatch.setattr(metadata, "TABLE_CHUNK", 16)
    disk, folder = Disk(scratch / "disk"), scratch / "again"
    for place in (disk.folder, scratch / "photos"):
        place.mkdir()
    for file in sorted(photos.iterdir())[:3]:
        shutil.copy2(file, scratch / "photos")
    with watching(disk.see):
        extract(config_of(scratch / "photos", disk.folder / STORE))
    *moments, a, b, c = disk.visible_moments()
    for moment in [*moments[::EVERY_VISIBLE], a, b, c]:
        put_back(moment.files, folder)
        try:
            present(folder / STORE, disk.folder / STORE)
            extract(config_of(scratch / "photos", folder / STORE))
            assert_finished(folder / STORE, disk.folder / STORE)
        except Exception as error:
            raise AssertionError(moment.told) from error


# ---- a disk that refuses


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes, two of which a store takes."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """While it is being written to, a disk is not remounted: it is covered by a read-only view of itself."""
    view = disk.with_name("view")
    view.mkdir()
    subprocess.run(["mount", "--bind", disk, view], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", view], check=True)
        subprocess.run(["mount", "--bind", view, disk], check=True)
        try:
            yield
        finally:
            subprocess.run(["umount", "-l", disk], check=True)
    finally:
        subprocess.run(["umount", "-l", view], check=True)


@pytest.fixture(scope="module")
def calm(few: Path, memory: Path, fork: Run) -> Undisturbed:
    folder = memory / "calm"
    folder.mkdir()
    return undisturbed(few, folder, fork, block_rows=16)


@pytest.fixture(scope="module")
def reference(calm: Undisturbed) -> Path:
    """The store that an undisturbed run makes."""
    return calm.store


def once(stage: str, n_done: int, act: Callable[[], object]) -> Callable[[str, int, int], None]:
    """Something that happens when an extraction has come to a certain point."""

    def report(now: str, done: int, total: int) -> None:
        if (now, done) == (stage, n_done):
            act()

    return report


# The last of them is before the last row block is handed over: after that the writer and the disk would race.
POINTS = [("load", 0), ("extract", 1), ("extract", 40), ("extract", N_FEW - 1)]


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("n_free", [0, 100_000])
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_disk_that_fills_up_stops_an_extraction_which_goes_on_when_there_is_space(
    few: Path, reference: Path, small_disk: Path, point: tuple[str, int], n_free: int
) -> None:
    config, other = config_of(few, small_disk / STORE), small_disk / "something else"

    def fill_up() -> None:
        other.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - n_free)))

    with pytest.raises(StoreWriteError, match="the disk is full; what was stored before is untouched"):
        extract(config, on_progress=once(*point, fill_up))
    n_present = len(present(small_disk / STORE, reference))
    assert n_present < N_FEW
    assert not list(small_disk.rglob("*.part"))
    other.unlink()
    assert extract(config).n_computed == N_FEW - n_present
    assert_finished(small_disk / STORE, reference)


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("point", POINTS, ids=str)
def test_a_disk_that_turns_read_only_stops_an_extraction_which_goes_on_when_it_is_writable(
    few: Path, reference: Path, small_disk: Path, point: tuple[str, int]
) -> None:
    config = config_of(few, small_disk / STORE)
    with ExitStack() as undo:
        with pytest.raises(StoreWriteError, match="the file system is read-only; what was stored before is untouched"):
            extract(config, on_progress=once(*point, lambda: undo.enter_context(read_only(small_disk))))
        n_present = len(present(small_disk / STORE, reference))
    assert extract(config).n_computed == N_FEW - n_present
    assert_finished(small_disk / STORE, reference)


@pytest.mark.slow
@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("share", [0, 0.07, 0.15, 0.3, 0.5, 0.7, 0.9])
def test_whichever_call_a_disk_refuses_first_the_reason_is_told_and_nothing_is_lost(
    few: Path, calm: Undisturbed, scratch: Path, share: float
) -> None:
    config, numbers = config_of(few, scratch / STORE), itertools.count()
    code, reason = (errno.ENOSPC, "is full") if round(share * 100) % 2 else (errno.EROFS, "is read-only")

    def refuse(when: str, name: str, args: tuple[Any, ...], _: Any) -> None:
        frees = name in ("unlink", "remove", "rmdir") and code == errno.ENOSPC
        if when == "before" and next(numbers) >= share * calm.n_calls and not frees:
            raise OSError(code, os.strerror(code))

    with watching(refuse), pytest.raises(StoreWriteError, match=f"{reason}; what was stored before is untouched"):
        extract(config)
    n_present = len(present(scratch / STORE, calm.store))
    assert extract(config).n_computed == N_FEW - n_present
    assert_finished(scratch / STORE, calm.store)


# ---- the lock


@pytest.mark.usefixtures("in_this_process")
def test_a_second_extraction_is_told_who_is_at_work_and_the_first_goes_on(
    few: Path, reference: Path, scratch: Path, fork: Run
) -> None:
    refused = []

    def try_another(pid: int) -> None:
        os.kill(pid, signal.SIGSTOP)
        try:
            with pytest.raises(LockedError) as error:
                extract(config_of(few, scratch / STORE))
            refused.append((pid, str(error.value)))
        finally:
            os.kill(pid, signal.SIGCONT)

    job = Job(str(few), str(scratch / STORE), str(scratch / "log"), block_rows=16)
    assert fork(job, try_another) == 0
    [(pid, told)] = refused
    assert re.search(rf"by process {pid} on {socket.gethostname()}, since \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d", told)
    assert_finished(scratch / STORE, reference)


@pytest.mark.usefixtures("in_this_process")
def test_the_lock_of_a_killed_process_is_taken_over_at_once_and_the_summary_says_so(
    few: Path, reference: Path, scratch: Path, fork: Run
) -> None:
    pids = []

    def kill(pid: int) -> None:
        pids.append(pid)
        os.kill(pid, signal.SIGKILL)

    job = Job(str(few), str(scratch / STORE), str(scratch / "log"), block_rows=16)
    assert fork(job, kill) == -signal.SIGKILL
    assert Path(f"{job.store}.lock.json").exists()
    started = time.perf_counter()
    with Writer(job.store) as writer:
        assert time.perf_counter() - started < lock.BEAT_S / 2
        assert f"process {pids[0]} on {socket.gethostname()}, since 20" in writer.notice
        assert writer.notice.endswith("died at work; what it committed is kept")
    assert fork(job, kill) == -signal.SIGKILL
    assert f"process {pids[1]} " in extract(config_of(few, scratch / STORE)).notices[0]
    assert_finished(scratch / STORE, reference)


@pytest.fixture
def short_of_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT_S", 0.05)
    monkeypatch.setattr(lock, "PATIENCE_S", 0.2)


def record_of_another_host(store: Path, *, age_s: float) -> None:
    facts = {"host": "elsewhere", "pid": 7, "since": "2026-01-02T03:04:05+00:00", "token": "t"}
    part = store.with_name("part")
    part.write_text(json.dumps({**facts, "beat": time.time() - age_s}))
    part.replace(f"{store}.lock.json")


@pytest.mark.usefixtures("short_of_patience")
def test_another_host_that_shares_the_disk_and_was_heard_of_is_not_disturbed(scratch: Path) -> None:
    store = scratch / STORE
    record_of_another_host(store, age_s=0)
    with pytest.raises(LockedError, match=r"written by process 7 on elsewhere, since 2026-01-02T03:04:05\+00:00"):
        Writer(store).__enter__()
    assert json.loads(Path(f"{store}.lock.json").read_text())["host"] == "elsewhere", "its record is left alone"
    assert not store.exists()


@pytest.mark.usefixtures("short_of_patience")
def test_another_host_whose_clock_is_wrong_is_known_by_its_beat(scratch: Path) -> None:
    store, stop = scratch / STORE, threading.Event()
    record_of_another_host(store, age_s=3600)

    def beat() -> None:
        while not stop.wait(0.01):
            record_of_another_host(store, age_s=3600)

    beating = threading.Thread(target=beat)
    beating.start()
    try:
        with pytest.raises(LockedError, match="process 7 on elsewhere"):
            Writer(store).__enter__()
    finally:
        stop.set()
        beating.join()


@pytest.mark.usefixtures("short_of_patience")
@pytest.mark.parametrize("age_s", [1, 3600, -3600])
def test_another_host_that_is_heard_of_no_more_is_taken_over_after_watching_it(scratch: Path, age_s: float) -> None:
    record_of_another_host(scratch / STORE, age_s=age_s)
    started = time.perf_counter()
    with Writer(scratch / STORE) as writer:
        assert time.perf_counter() - started >= 2 * lock.BEAT_S
        assert "process 7 on elsewhere, since 2026-01-02T03:04:05+00:00) died at work" in writer.notice
    assert not Path(f"{scratch / STORE}.lock.json").exists()


if __name__ == "__main__":
    main()
