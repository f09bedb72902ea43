"""The same run on a Dask cluster: real schedulers, real worker processes, real deaths.

Most tests share one cluster, reached as any scheduler is. Photos that keep a worker busy are held by a lease once
the photos have been listed; `/proc/self/cwd` is a folder that every process sees differently.
"""

import fcntl
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from featstore import support
from featstore.backbones import WeightsPolicy, find_card
from featstore.backbones.networks import build_network
from featstore.backbones.weights import Weights
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.engines import Runtime
from featstore.errors import ClusterError, ConfigError, DeviceLostError, WeightsError
from featstore.extraction import cluster, worker
from featstore.extraction import extract as extraction
from featstore.extraction.extract import extract
from featstore.extraction.pipeline import PhotoJob
from featstore.photos.augmentation import Augmentation
from featstore.photos.files import digest_photos, find_photos
from featstore.photos.views import View
from featstore.store import RowState, Writer, open_store

from ..conftest import TINY, VIEWS, draw_photo

dask = pytest.importorskip("dask")
distributed = pytest.importorskip("distributed")
psutil = pytest.importorskip("psutil")

BLOCK_ROWS = 4
F_SETLEASE = getattr(fcntl, "F_SETLEASE", None)
N_PHOTOS = 48
DEATHS = 2  # that the shared cluster forgives no task
GONE_S = 10.0
HERE = "/proc/self/cwd"

sees_folders = pytest.mark.skipif(not Path(HERE).exists(), reason="needs /proc")


# ---- what the tests share


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extraction, "Writer", partial(Writer, block_rows=BLOCK_ROWS))


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """In this process as in the workers: the last bit of a feature depends on how many share the work."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A scheduler and two workers, which outlive the runs."""
    folder = tmp_path_factory.mktemp("crew")
    with (
        dask.config.set(
            {"distributed.scheduler.allowed-failures": DEATHS - 1, "distributed.nanny.pre-spawn-environ": {}}
        ),
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
            local_directory=str(folder),
            memory_limit=0,
            silence_logs=logging.CRITICAL,
        ) as local,
    ):
        yield local


@pytest.fixture
def on_crew(crew: Any) -> Iterator[Runtime]:
    yield Runtime("cpu", "eager", scheduler=crew.scheduler_address)
    crew.scale(2)  # whatever a test has done to them
    await_workers(crew, 2)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("many") / "photos"
    folder.mkdir()
    for i in range(N_PHOTOS):
        draw_photo(folder / f"photo {i:02}.jpg", seed=i)
    return folder


@pytest.fixture
def config(many: Path, tmp_path: Path) -> Config:
    return config_of(many, tmp_path / "features.zarr")


@pytest.fixture(scope="module")
def reference(many: Path) -> Path:
    """The store that one process makes."""
    store = many.parent / "reference.zarr"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(extraction, "Writer", partial(Writer, block_rows=BLOCK_ROWS))
        extract(config_of(many, store), runtime=Runtime("cpu", "eager"))
    return store


def config_of(photos: Path, store: Path) -> Config:
    return Config(
        photos=photos,
        store=store,
        weights=WeightsPolicy(store.parent / "weights", {"*": "random:0"}),
        views=VIEWS,
        engine="eager",
        tensors=(TensorSpec("grid", "stack", TINY), TensorSpec("whole", "concat", (*TINY, f"{TINY[0]}:max"))),
    )


def rows(store: Path, name: str, state: RowState = RowState.PRESENT) -> list[int]:
    found = open_store(store)
    return np.flatnonzero(found[name].states == state).tolist() if name in found else []


def assert_same(store: Path, right: Path) -> None:
    """All that a user reads is the same, to the bit."""
    ours, theirs = open_store(store), open_store(right)
    assert ours.images.paths == theirs.images.paths
    assert ours.images.errors == theirs.images.errors
    assert np.array_equal(ours.images.states, theirs.images.states)
    assert np.array_equal(ours.images.sizes, theirs.images.sizes)
    assert set(ours) == set(theirs)
    for name in theirs:
        assert ours[name].layout == theirs[name].layout
        assert np.array_equal(ours[name].states, theirs[name].states), name
        present = rows(right, name)
        assert np.array_equal(ours[name].read(present), theirs[name].read(present)), name


def assert_part(store: Path, right: Path) -> list[int]:
    """What is marked present is right; returns those rows."""
    if not store.exists():
        return []
    ours, theirs = open_store(store), open_store(right)
    for name in ours:
        present = rows(store, name)
        assert np.array_equal(ours[name].read(present), theirs[name].read(present)), name
    return rows(store, "whole")


def once(stage: str, n_done: int, act: Callable[[], object]) -> Callable[[str, int, int], None]:
    """Something that happens when a run has come to a certain point, or beyond."""
    acted: list[bool] = []

    def report(now: str, done: int, total: int) -> None:
        if now == stage and done >= n_done and not acted:
            acted.append(True)
            act()

    return report


class HeldPhoto:
    """A photo that this process holds (by a lease, Linux): whoever opens it waits, for 45 seconds at most."""

    def __init__(self, photo: Path) -> None:
        self.photo = photo
        self._held: int | None = None

    def put(self) -> None:
        """Hold it from now on."""
        self._held = os.open(self.photo, os.O_RDWR)
        fcntl.fcntl(self._held, F_SETLEASE, fcntl.F_WRLCK)

    def reader(self, among: Callable[[], list[int]], stop: threading.Event | None = None) -> int | None:
        """The process that waits, once there is one."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (stop and stop.is_set()):
            for pid in among():
                with suppress(OSError):  # a process or a thread that has ended meanwhile
                    if any("lease" in task.read_text() for task in Path(f"/proc/{pid}/task").glob("*/wchan")):
                        return pid
            time.sleep(0.02)
        return None

    def hold_again(self) -> None:
        """For the next one, after the one that waited has died."""
        assert self._held is not None
        fcntl.fcntl(self._held, F_SETLEASE, fcntl.F_UNLCK)
        fcntl.fcntl(self._held, F_SETLEASE, fcntl.F_WRLCK)

    def let_go(self) -> None:
        if self._held is not None:
            os.close(self._held)  # with its lease
            self._held = None


@pytest.fixture
def hold(many: Path) -> Iterator[Callable[[int], HeldPhoto]]:
    if F_SETLEASE is None:
        pytest.skip("needs leases of files, which Linux has")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # "somebody wants it"
    made: list[HeldPhoto] = []

    def make(number: int) -> HeldPhoto:
        made.append(HeldPhoto(many / f"photo {number:02}.jpg"))
        return made[-1]

    yield make
    for each in made:
        each.let_go()
    signal.signal(signal.SIGIO, before)


def pids(crew: Any) -> list[int]:
    return [nanny.pid for nanny in crew.workers.values() if nanny.pid]


def await_workers(crew: Any, n_workers: int) -> None:
    deadline = time.monotonic() + 60
    while len(crew.scheduler.workers) != n_workers:
        assert time.monotonic() < deadline
        time.sleep(0.05)


@contextmanager
def in_background(work: Callable[[], object]) -> Iterator[None]:
    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        thread.join()


# ---- the same store


def test_workers_make_the_store_that_one_process_makes(on_crew: Runtime, tmp_path: Path) -> None:
    """Several tensors of several kinds, rows copied from another store, photos that cannot be read, small blocks."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(22):
        draw_photo(photos / f"photo {i:02}.jpg", seed=i)
    (photos / "photo 05.jpg").write_bytes(b"")
    (photos / "photo 11.jpg").write_bytes((photos / "photo 10.jpg").read_bytes()[:900])
    some = tmp_path / "some"
    some.mkdir()
    for i in (0, 1, 2, 3, 8, 10, 21):
        shutil.copy2(photos / f"photo {i:02}.jpg", some)
    base = config_of(photos, tmp_path / "one.zarr")
    small = View((64, 48))
    config = replace(
        base,
        views={**VIEWS, "augmented": View((128, 96), augmentation=Augmentation(copies=2)), "small": small},
        tensors=(
            *base.tensors,
            TensorSpec("copies", "stack", (TINY[0],), view="augmented"),
            TensorSpec("pixels", "pixels", ("pixels",), view="small"),
        ),
    )
    reuse = tmp_path / "reuse.zarr"
    extract(replace(config, photos=some, store=reuse, tensors=config.tensors[:2]), runtime=Runtime("cpu", "eager"))
    alone = extract(config, runtime=Runtime("cpu", "eager"), reuse=[reuse])
    together = extract(replace(config, store=tmp_path / "two.zarr"), runtime=on_crew, reuse=[reuse])
    assert_same(tmp_path / "two.zarr", tmp_path / "one.zarr")
    assert (together.n_computed, together.n_reused) == (alone.n_computed, alone.n_reused)
    assert together.failed == alone.failed
    assert {path for path, _ in together.failed} == {"photo 05.jpg", "photo 11.jpg"}
    again = extract(replace(config, store=tmp_path / "two.zarr"), runtime=on_crew)
    assert again.n_computed == 0


def test_rows_that_are_only_copied_are_not_sent_to_workers(
    on_crew: Runtime, config: Config, reference: Path, crew: Any, tmp_path: Path
) -> None:
    before = len(computing(crew))
    summary = extract(config, runtime=on_crew, reuse=[reference])
    assert (summary.n_computed, summary.n_reused) == (0, N_PHOTOS)
    assert len(computing(crew)) == before
    assert_same(tmp_path / "features.zarr", reference)


def test_progress_counts_photos_and_the_summary_says_who_was_busy(
    on_crew: Runtime, config: Config, reference: Path, crew: Any, tmp_path: Path
) -> None:
    counts: list[int] = []
    in_flight: list[int] = []
    networks: Counter[tuple[str, int]] = Counter()
    with distributed.Client(crew, set_as_default=False) as client:

        def report(stage: str, done: int, total: int) -> None:
            if stage != "extract":
                return
            counts.append(done)
            in_flight.append(sum(key.startswith("compute") for key in map(str, crew.scheduler.tasks)))
            if done % 8 == 0:
                states = client.run(lambda dask_worker: [id(each.backbones) for each in dask_worker.featstore_states])
                networks.update((worker, each) for worker, found in states.items() for each in found)

        summary = extract(config, runtime=on_crew, on_progress=report)
        forgotten = client.run(lambda dask_worker: len(dask_worker.featstore_states))
    assert_same(tmp_path / "features.zarr", reference)
    assert counts == list(range(N_PHOTOS + 1))
    assert max(in_flight) <= cluster.AHEAD * 2
    assert len(networks) == 2, "the networks are loaded once by each worker"
    assert list(forgotten.values()) == [0, 0], "a worker that others use too lets go of them"
    assert summary.n_computed == N_PHOTOS
    assert all(0 <= share <= 1 for share in summary.shares.values()), summary.shares
    assert summary.shares["forward"] > 0.05
    assert summary.engines == dict.fromkeys(TINY, "eager")
    provenance = open_store(tmp_path / "features.zarr")["grid"].provenance[-1]
    assert provenance["scheduler"] == crew.scheduler_address
    assert len(provenance["workers"]) == 2
    json.dumps(provenance)


def test_tasks_stay_within_a_block_and_hold_few_photos_to_look_at() -> None:
    jobs = [PhotoJob(row, f"{row}", b"", frozenset({"a"}), (1, 1) if row % 3 == 0 else None) for row in range(50)]
    tasks = list(cluster._tasks(jobs, 16, 4))
    assert [job for task in tasks for job in task] == jobs
    for task in tasks:
        assert len({job.row // 16 for job in task}) == 1
        assert sum(job.size is None for job in task) <= 4
    assert list(cluster._tasks([], 16, 4)) == []


# ---- workers of its own


@pytest.mark.slow
def test_workers_of_its_own_leave_nothing_behind_and_are_out_of_reach(
    config: Config, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = psutil.Process()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    for folder in ("tmp", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "work")

    def state() -> Any:
        loggers = [logging.getLogger(name) for name in ("distributed", "distributed.client", "tornado")]
        return {
            "configuration": json.loads(json.dumps(dask.config.config, default=str)),
            "levels": [(logger.level, [handler.level for handler in logger.handlers]) for logger in loggers],
            "environment": {
                key: os.environ[key] for key in os.environ if key.startswith(("OMP", "MKL", "MALLOC", "DASK"))
            },
            "modules": list(sys.path),
            "signals": signal.pthread_sigmask(signal.SIG_BLOCK, ()),
        }

    def listening() -> set[Any]:
        processes = [here, *here.children(recursive=True)]
        return {c.laddr for each in processes for c in each.net_connections() if c.status == psutil.CONN_LISTEN}

    before = state()
    threads, children, listened = set(threading.enumerate()), set(here.children()), listening()
    seen: list[Any] = []

    def look() -> None:
        seen.append(listening() - listened)
        seen.append(len([child for child in set(here.children()) - children if "spawn_main" in str(child.cmdline())]))

    started = time.perf_counter()
    summary = extract(
        config, runtime=Runtime("cpu", "eager", workers=2), on_progress=once("extract", N_PHOTOS // 2, look)
    )
    print(f"2 workers of its own: {summary.first_s:.1f} s to the first photo, {time.perf_counter() - started:.1f} s")  # noqa: T201
    assert_same(tmp_path / "features.zarr", reference)
    assert seen[1] == 2
    assert {address.ip for address in seen[0]} == {"127.0.0.1"}
    left = {each for each in set(here.children()) - children if "resource_tracker" not in str(each.cmdline())}
    assert not left
    assert listening() == listened
    assert not list((tmp_path / "work").iterdir())
    assert not list((tmp_path / "tmp").iterdir())
    assert state() == before
    assert not [thread for thread in set(threading.enumerate()) - threads if not thread.daemon]


def test_too_many_workers_are_refused(config: Config) -> None:
    with pytest.raises(ClusterError, match=r"--workers 1000 is too many for this machine, which has \d+ cores"):
        extract(config, runtime=Runtime("cpu", "eager", workers=1000))


# ---- deaths


def computing(crew: Any) -> Counter[str]:
    """How often each task was given to a worker."""
    return Counter(
        str(entry[0])
        for entry in crew.scheduler.transition_log
        if entry[2] == "processing" and "compute" in str(entry[0])
    )


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_its_tasks_and_no_others(
    on_crew: Runtime, config: Config, reference: Path, crew: Any, tmp_path: Path, hold: Callable[[int], HeldPhoto]
) -> None:
    blocked, before = hold(17), computing(crew)
    killed: list[int] = []

    def kill() -> None:
        pid = blocked.reader(partial(pids, crew))
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)
        blocked.let_go()

    def begin() -> None:
        blocked.put()
        thread.start()

    thread = threading.Thread(target=kill)
    started = time.perf_counter()
    summary = extract(config, runtime=on_crew, on_progress=once("load", 2, begin))
    elapsed_s = time.perf_counter() - started
    thread.join()
    await_workers(crew, 2)
    assert_same(tmp_path / "features.zarr", reference)
    assert summary.n_computed == N_PHOTOS
    assert not summary.failed
    times = {key: n for key, n in (computing(crew) - before).items() if key not in before}
    assert len(times) == N_PHOTOS / BLOCK_ROWS
    assert sum(times.values()) - len(times) <= 2 * cluster.AHEAD, "what had been sent back is not done again"
    assert killed[0] not in pids(crew)
    print(f"with a worker killed: {elapsed_s:.1f} s")  # noqa: T201


@pytest.mark.slow
def test_what_a_worker_sends_is_looked_at_before_any_of_it_is_written(
    on_crew: Runtime, config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What else a lie may be: `test_lying_workers.py`."""
    fetch = cluster.Cluster._fetch

    def of_another_shape(self: Any, future: Any) -> Any:
        computed = fetch(self, future)
        lies = [
            replace(result, features={key: values[:, :-1] for key, values in result.features.items()})
            for result in computed.results
        ]
        return replace(computed, results=lies)

    monkeypatch.setattr(cluster.Cluster, "_fetch", of_another_shape)
    with pytest.raises(ClusterError, match="a worker sent"):
        extract(config, runtime=on_crew)
    assert [rows(tmp_path / "features.zarr", name) for name in ("grid", "whole")] == [[], []]


@pytest.mark.slow
def test_photos_that_kill_every_worker_end_the_run_in_words_and_one_process_goes_on(
    on_crew: Runtime, config: Config, reference: Path, crew: Any, tmp_path: Path, hold: Callable[[int], HeldPhoto]
) -> None:
    deadly, stop = hold(30), threading.Event()
    n_killed: list[int] = []

    def kill() -> None:
        while (pid := deadly.reader(partial(pids, crew), stop)) is not None:
            victim = psutil.Process(pid)
            victim.kill()
            n_killed.append(pid)
            psutil.wait_procs([victim], timeout=GONE_S)
            deadly.hold_again()

    def begin() -> None:
        deadly.put()
        thread.start()

    thread = threading.Thread(target=kill)
    try:
        with pytest.raises(ClusterError) as error:
            extract(config, runtime=on_crew, on_progress=once("load", 2, begin))
    finally:
        stop.set()
        thread.join()
    assert f"{DEATHS} workers, one after another, died at the photos photo " in str(error.value)
    assert "what was computed is kept" in str(error.value)
    assert len(n_killed) == DEATHS
    await_workers(crew, 2)
    kept = assert_part(tmp_path / "features.zarr", reference)
    assert kept
    deadly.let_go()
    assert extract(config, runtime=Runtime("cpu", "eager")).n_computed == N_PHOTOS - len(kept)
    assert_same(tmp_path / "features.zarr", reference)


@pytest.mark.slow
def test_a_run_waits_for_workers_as_long_as_its_patience_and_a_late_one_gets_work(
    on_crew: Runtime, config: Config, reference: Path, crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster, "PATIENCE_S", 0.5)
    monkeypatch.setattr(cluster, "LOOK_S", 0.1)
    # Photos that were handed from one retiring worker to the other have seen two of them go.
    gone = (
        r"(all workers are gone, and none came back in|2 workers, one after another, died) .* what was computed is kept"
    )
    with pytest.raises(ClusterError, match=gone):
        extract(config, runtime=on_crew, on_progress=once("extract", 8, lambda: crew.scale(0)))
    kept = assert_part(tmp_path / "features.zarr", reference)
    assert kept
    await_workers(crew, 0)
    crew.scale(1)
    await_workers(crew, 1)
    result, workers = cluster.Cluster._result, []
    once_there = once("extract", 4, lambda: (crew.scale(2), await_workers(crew, 2)))

    def watched(self: Any, future: Any, jobs: Any) -> Any:
        found = result(self, future, jobs)
        workers.append(found.worker)
        return found

    monkeypatch.setattr(cluster.Cluster, "_result", watched)
    summary = extract(config, runtime=on_crew, on_progress=once_there)
    assert summary.n_computed == N_PHOTOS - len(kept)
    assert len(set(workers)) == 2
    assert all(0 <= share <= 1 for share in summary.shares.values())
    assert_same(tmp_path / "features.zarr", reference)


# ---- workers that are not fit for it


@sees_folders
def test_a_worker_that_lacks_the_photos_says_so_and_the_rows_stay_absent(
    on_crew: Runtime, many: Path, reference: Path, crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(many.parent)
    config = config_of(Path(HERE, "photos"), tmp_path / "features.zarr")
    with folders(crew, tmp_path, tmp_path):
        summary = extract(config, runtime=on_crew)
    assert (summary.n_computed, len(summary.failed)) == (0, N_PHOTOS)
    assert {reason for _, reason in summary.failed} == {"cannot be read: No such file or directory"}
    assert rows(tmp_path / "features.zarr", "whole", RowState.ABSENT) == list(range(N_PHOTOS))
    with folders(crew, many.parent, tmp_path):
        some = extract(config, runtime=on_crew)
    assert some.n_computed + len(some.failed) == N_PHOTOS
    with folders(crew, many.parent, many.parent):
        assert extract(config, runtime=on_crew).n_computed == N_PHOTOS - some.n_computed
    assert_same(tmp_path / "features.zarr", reference)


@contextmanager
def folders(crew: Any, *places: Path) -> Iterator[None]:
    """Workers see the file system from elsewhere."""
    with distributed.Client(crew, set_as_default=False) as client:
        workers = sorted(client.scheduler_info(n_workers=-1)["workers"])
        before = client.run(os.getcwd)
        try:
            for worker, place in zip(workers, places, strict=True):
                client.run(os.chdir, str(place), workers=[worker])
            yield
        finally:
            for worker in workers:
                client.run(os.chdir, before[worker], workers=[worker])


@sees_folders
@pytest.mark.parametrize("other", ["other", "none"])
def test_a_worker_with_other_weights_refuses_and_nothing_is_computed(
    on_crew: Runtime, many: Path, crew: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    card = find_card(TINY[1])
    for place, seed in (("mine", 0), ("other", 1)):
        (tmp_path / place / "weights").mkdir(parents=True)
        network = build_network(card, Weights("random", seed=seed))
        state = {key: value.contiguous() for key, value in network.net.state_dict().items()}
        save_file(state, tmp_path / place / "weights" / f"{card.name}.safetensors")
    (tmp_path / "none").mkdir()
    monkeypatch.chdir(tmp_path / "mine")
    config = replace(
        config_of(many, tmp_path / "features.zarr"),
        weights=WeightsPolicy(Path(HERE, "weights")),
        tensors=(TensorSpec("whole", "concat", (TINY[1],)),),
    )
    with folders(crew, tmp_path / "mine", tmp_path / other), pytest.raises(WeightsError) as error:
        extract(config, runtime=on_crew)
    assert str(error.value).startswith("worker ")
    assert f"{TINY[1]!r}" in str(error.value)
    assert {"other": "weights: ", "none": "no weights for"}[other] in str(error.value)
    assert not len(open_store(config.store).images)
    assert not open_store(config.store).tensors
    with folders(crew, tmp_path / "mine", tmp_path / "mine"):
        assert extract(config, runtime=on_crew).n_computed == N_PHOTOS


def test_a_worker_of_another_version_refuses(on_crew: Runtime, config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "version", lambda: "0.0.1")
    with pytest.raises(
        ClusterError, match=r"worker .*: it has featstore .*, the command that uses it 0\.0\.1; install"
    ):
        extract(config, runtime=on_crew)


def test_a_worker_without_the_device_refuses(on_crew: Runtime, config: Config) -> None:
    with pytest.raises(ConfigError, match=r"worker .*: device 'cuda:7' was asked for"):
        cluster_of(config, replace(on_crew, device="cuda:7")).__enter__()


def test_a_worker_whose_device_is_lost_is_named(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost:
        asynchronous, batch = False, 1

        def frames(self, wanted: object) -> list[View]:
            return []

        def start(self, *args: object) -> None:
            raise DeviceLostError("cuda:0 computes no more: CUDA error: unspecified launch failure")

    assert config.photos is not None
    setup = cluster_of(config, Runtime("cpu", workers=1))._setup
    state = worker._WorkerState(setup, Lost(), {}, {}, [])
    (photo, *_) = find_photos(config.photos)
    (digest,) = digest_photos(config.photos, [photo.path])
    monkeypatch.setattr(distributed, "get_worker", lambda: SimpleNamespace(name="gpu-1"))
    monkeypatch.setattr(worker, "_state_of", lambda *args: state)
    with pytest.raises(DeviceLostError, match=r"^worker gpu-1, which has to be started anew: cuda:0 computes no more"):
        worker.compute(setup, [PhotoJob(0, photo.path, digest, frozenset("a"))])


def cluster_of(config: Config, runtime: Runtime) -> cluster.Cluster:
    from featstore.extraction.timing import Stages

    _, networks = extraction.plan_extraction(config)
    assert config.photos is not None
    needed = set(networks.by_hash())
    return cluster.Cluster(
        config.photos, networks, runtime, needed, block_rows=4, stages=Stages(), report=lambda stage, done, total: None
    )


# ---- the command, and schedulers that others have started


def command(*words: object) -> list[str]:
    """The command as a process of its own, whose blocks are small and which listens to Ctrl-C."""
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from functools import partial; from featstore.extraction import extract as extraction;"
        f"extraction.Writer = partial(extraction.Writer, block_rows={BLOCK_ROWS});"
        "from featstore.cli import main; main()"
    )
    return [sys.executable, "-c", code, "extract", *map(str, words)]


def environment(folder: Path) -> dict[str, str]:
    """One thread, and what a killed command leaves in the folder for temporary files is the test's own."""
    temporary = folder.with_name("temporary")
    temporary.mkdir(exist_ok=True)
    return {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(temporary)}


def words_of(config: Config) -> list[object]:
    tensors = [f"grid=stack:{','.join(TINY)}", f"whole=concat:{','.join((*TINY, TINY[0] + ':max'))}"]
    return [
        *(config.photos, "--store", config.store, "--weights", "random:0", "--engine", "eager", "--device", "cpu"),
        *(word for tensor in tensors for word in ("--tensor", tensor)),
    ]


def toml(folder: Path, photos: Path) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "featstore.toml").write_text(
        f'photos = "{photos}"\n[views.grid]\nsize = [128, 96]\ngrid = [2, 2]\n[views.whole]\nsize = [128, 96]\n',
        encoding="utf-8",
    )
    return folder


@contextmanager
def at_work(config: Config, folder: Path, *words: object) -> Iterator[subprocess.Popen[str]]:
    """The command, once it has committed something."""
    assert config.photos is not None
    with subprocess.Popen(
        command(*words_of(config), *words),
        cwd=toml(folder, config.photos),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
        start_new_session=True,
    ) as process:
        try:
            deadline = time.monotonic() + 60
            while len(list(Path(config.store).glob("tensors/whole/c*"))) < 2:  # then the first is on record
                assert process.poll() is None, process.communicate()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def await_end(processes: list[Any]) -> float:
    """How long processes take to go away by themselves."""
    started = time.perf_counter()
    _, alive = psutil.wait_procs(processes, timeout=GONE_S)
    assert not alive
    return time.perf_counter() - started


@pytest.mark.slow
def test_workers_of_a_command_that_is_killed_go_away_and_the_next_one_goes_on(
    config: Config, reference: Path, tmp_path: Path
) -> None:
    with at_work(config, tmp_path / "work", "--workers", 2) as process:
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 2
        process.kill()
        gone_s = await_end(children)
    kept = assert_part(tmp_path / "features.zarr", reference)
    assert BLOCK_ROWS <= len(kept) < N_PHOTOS
    summary = extract(config, runtime=Runtime("cpu", "eager"))
    assert summary.n_computed == N_PHOTOS - len(kept)
    assert_same(tmp_path / "features.zarr", reference)
    print(f"workers were gone {gone_s:.1f} s after their command")  # noqa: T201


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["starting", "at work"])
def test_ctrl_c_ends_a_command_with_workers_as_one_without(
    config: Config, reference: Path, tmp_path: Path, moment: str
) -> None:
    """A terminal sends it to every process."""
    if moment == "starting":
        process = begin(config, tmp_path / "work")
    with at_work(config, tmp_path / "work", "--workers", 2) if moment == "at work" else process as running:
        children = psutil.Process(running.pid).children(recursive=True)
        os.killpg(running.pid, signal.SIGINT)
        started = time.perf_counter()
        output, errors = running.communicate(timeout=30)
        elapsed_s = time.perf_counter() - started
    assert running.returncode == 130
    said = [line for line in errors.splitlines() if line and not line.startswith(("load: ", "extract: ", "list: "))]
    assert said == ["stopped; what was computed is kept, and the same command goes on from there"]
    assert output == ""
    await_end(children)
    assert elapsed_s < GONE_S
    kept = assert_part(tmp_path / "features.zarr", reference)
    assert bool(kept) == (moment == "at work")
    assert {each.name for each in (tmp_path / "work").iterdir()} == {"featstore.toml"}
    assert not list((tmp_path / "temporary").iterdir())
    print(f"{moment}: gone {elapsed_s:.1f} s after Ctrl-C")  # noqa: T201


def begin(config: Config, folder: Path) -> subprocess.Popen[str]:
    """The command, once its worker processes are being started."""
    assert config.photos is not None
    process = subprocess.Popen(
        command(*words_of(config), "--workers", 2),
        cwd=toml(folder, config.photos),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(folder),
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not any("spawn_main" in str(each.cmdline()) for each in children_of(process.pid)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def children_of(pid: int) -> list[Any]:
    return [child for child in psutil.Process(pid).children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "is not of the form tcp://HOST:PORT"),
        ("tcp://host:port", "is not of the form"),
        ("localhost:99999", "is not of the form"),
        ("ftp://localhost:1", "is not of the form"),
        ("tls://localhost:8786", "takes certificates"),
        ("tcp://127.0.0.1:{free}", "no Dask scheduler answers at .*refused"),
        ("tcp://127.0.0.1:{mute}", "no Dask scheduler answers at .* in 1 s"),
    ],
)
def test_an_address_without_a_scheduler_is_told_at_once(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str, says: str
) -> None:
    monkeypatch.setattr(support, "CONNECT_S", 1.0)
    with socket.socket() as free, socket.socket() as mute:
        for each in (free, mute):
            each.bind(("127.0.0.1", 0))
        mute.listen()
        named = address.format(free=free.getsockname()[1], mute=mute.getsockname()[1])
        before, started = set(threading.enumerate()), time.perf_counter()
        with pytest.raises(ClusterError, match=says):
            cluster_of(config, Runtime("cpu", "eager", scheduler=named)).__enter__()
        assert time.perf_counter() - started < 10
        assert set(threading.enumerate()) == before


def test_the_command_says_in_one_line_that_no_scheduler_answers(config: Config) -> None:
    words = map(str, [*words_of(config), "--scheduler", "tcp://127.0.0.1:9"])
    result = CliRunner().invoke(app, ["extract", *words])
    assert result.exit_code == 1
    assert result.stderr.startswith("error: no Dask scheduler answers at tcp://127.0.0.1:9")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.slow
def test_a_scheduler_and_workers_from_the_command_line(
    many: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without workers; with two; and killed in the middle."""
    file = tmp_path / "scheduler.json"
    listen = ["--host", "127.0.0.1", "--port", 0, "--dashboard-address", "127.0.0.1:0", "--no-show"]
    config = config_of(many, tmp_path / "features.zarr")
    with program("scheduler", *listen, "--scheduler-file", file, folder=tmp_path) as scheduler:
        await_file(file)
        address = json.loads(file.read_text())["address"]
        runtime = Runtime("cpu", "eager", scheduler=address)
        with pytest.raises(ClusterError, match=f"the scheduler {address} has no workers; start some: dask worker"):
            extract(config, runtime=runtime)
        local = ["--no-dashboard", "--local-directory", tmp_path, "--nthreads", 1]
        with (
            program("worker", address, *local, "--name", "one", folder=tmp_path),
            program("worker", address, *local, "--name", "two", "--no-nanny", folder=tmp_path),
        ):
            with distributed.Client(address, set_as_default=False) as client:
                client.wait_for_workers(2, timeout=60)
            summary = extract(config, runtime=runtime)
            assert summary.n_computed == N_PHOTOS
            assert_same(tmp_path / "features.zarr", reference)
            names = [each["name"] for each in open_store(config.store)["grid"].provenance[-1]["workers"]]
            assert sorted(names) == ["one", "two"]
            other = replace(config, store=tmp_path / "other.zarr")
            with pytest.raises(
                ClusterError, match="the connection to the scheduler was lost; what was computed is kept"
            ):
                extract(other, runtime=runtime, on_progress=once("extract", 8, scheduler.kill))
            assert assert_part(tmp_path / "other.zarr", reference)


@contextmanager
def program(*words: object, folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (
        (folder / f"{words[0]}.log").open("ab") as log,
        subprocess.Popen(
            [sys.executable, "-m", "dask", *map(str, words)], cwd=folder, stdout=log, stderr=log, start_new_session=True
        ) as process,
    ):
        try:
            yield process
        finally:
            for child in [*psutil.Process(process.pid).children(recursive=True)] if process.poll() is None else []:
                child.kill()
            process.kill()


def await_file(file: Path) -> None:
    deadline = time.monotonic() + 60
    while not file.exists() or not file.read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
