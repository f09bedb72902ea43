"""Distributed extraction: the workers of a Dask cluster compute, this process commits.

A task is some photos of one shard of rows: two full batches on a GPU, a few photos on a CPU, so that progress is seen
and few photos are left over for the last worker. A worker loads each network once and refuses weights that are not
those of the plan; only this process holds the store's lock and writes. A worker that dies loses its tasks, which others
get.

Dask pickles what it sends from one process of a cluster to another, but no file is pickled: only the plain values and
arrays of the dataclasses here and in `pipeline` travel, and functions of `worker` by their name.
"""

import asyncio
import logging
import signal
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict
from itertools import groupby
from multiprocessing import resource_tracker
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from featstore.backbones.sources import PYTHON
from featstore.backbones.weights import OWN_CODE
from featstore.engines import Runtime
from featstore.errors import ClusterError, FeatstoreError
from featstore.extraction.networks import Networks
from featstore.extraction.pipeline import PhotoJob, PhotoResult, most_decoders
from featstore.extraction.timing import DECODE, FORWARD, Stages
from featstore.extraction.worker import Computed, WorkerSetup, compute, forget, prepare
from featstore.photos.decoding import MAX_MEGAPIXELS
from featstore.support import Progress, connect_scheduler, n_cores, version

MOST_TEXT = 10_000  # letters of a reason why a photo cannot be read
AHEAD = 2  # tasks that a worker has at a time: it decodes the photos of one while the device works on the other
PHOTOS = 8  # in a task, at least; a GPU gets two full batches
ATTEMPTS = 4  # how many workers may die at a task before it is thought to kill them
LOOK_S = 2.0  # how often the workers are counted
PATIENCE_S = 60.0  # how long a run goes on without any worker: one that died may come back
CLOSE_S = 1.0  # what a worker gets to end by itself; it has nothing to lose
RESTART_S = 120.0  # what a worker that died has to come back
MANY = 8  # processes that any machine may be asked for, however few cores it has

Shapes = Mapping[str, tuple[tuple[int, int], np.dtype[Any]]]
"""By segment hash, the shape (C x T, F) and the dtype of the features of a photo."""
KEPT = "what was computed is kept, and the same command goes on from there"


class Cluster:
    """Workers of their own on this machine, or those of a scheduler that is there.

    Args:
        needed: hashes of the segments to be computed.
        max_megapixels: how large a photo may be.
        stages: the clocks of the stages.
        note: is told what is good to know, such as why an engine was not taken.

    Raises:
        ClusterError: on entering; the scheduler cannot be reached, has no workers, or they cannot compute this.
        WeightsError: on entering; a worker has other weights.
    """

    def __init__(
        self,
        root: Path,
        networks: Networks,
        runtime: Runtime,
        needed: Collection[str],
        *,
        block_rows: int,
        max_megapixels: float = MAX_MEGAPIXELS,
        stages: Stages,
        report: Progress,
        note: Callable[[str], object] = lambda text: None,
    ) -> None:
        self._runtime, self._block_rows = runtime, block_rows
        self._stages, self._report, self._note = stages, report, note
        policy, theirs = networks.policy, runtime.scheduler is not None
        self._setup = WorkerSetup(
            root=str(root.absolute()),
            segments=tuple(asdict(segment) for key, segment in networks.stored().items() if key in needed),
            weights={"folder": str(policy.folder.absolute()), "named": _named(networks), "hub": policy.hub},
            device=runtime.device,
            engine=runtime.engine,
            batch=runtime.batch,
            threads=None if theirs else _share(_threads(), runtime.workers),
            decoders=None if theirs else _share(most_decoders(), runtime.workers),
            max_megapixels=max_megapixels,
            version=version(),
        )
        dtypes = networks.dtypes()
        self._shapes: Shapes = {
            key: (((segment.n_copies or 1) * segment.n_blocks, segment.width), np.dtype(dtypes[key]))
            for key, segment in networks.stored().items()
            if key in needed
        }
        for card in {card for request in networks.requests for card in request.cards}:
            networks.forget(card)  # what was loaded to name its weights is not run here
        self._facts: dict[str, dict[str, Any]] = {}
        self._decoders: dict[str, int] = {}
        self._open = ExitStack()

    def __enter__(self) -> "Cluster":
        try:
            self._client = self._connect()
            self._looked = 0.0
            if not self._count():
                raise ClusterError(
                    f"the scheduler {self._runtime.scheduler} has no workers; "
                    f"start some: dask worker {self._runtime.scheduler}"
                )
            self._report("load", 0, self._n_workers)
            self._prepare()
            self._report("load", self._n_workers, self._n_workers)
        except BaseException:
            self._open.close()
            raise
        for text in dict.fromkeys(text for each in self._facts.values() for text in each.pop("notes")):
            self._note(text)
        self._photos = max(PHOTOS, 2 * max(each["batch"] for each in self._facts.values()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def run(self, jobs: Iterable[PhotoJob]) -> Iterator[PhotoResult]:
        """Results of a task come together, in the order in which tasks are done.

        Raises:
            ClusterError: a task has killed several workers, all workers are gone, or the scheduler is.
            FeatstoreError: whatever ends a run in one process.
        """
        tasks = _tasks(jobs, self._block_rows, self._photos)
        waiting: dict[Any, list[PhotoJob]] = {}
        try:
            while True:
                while len(waiting) < AHEAD * max(1, self._count()) and (task := next(tasks, None)) is not None:
                    known = [PhotoResult(job.row, job.size) for job in task if job.size is not None]
                    asked = [job for job in task if job.size is None]
                    if asked:
                        waiting[self._client.submit(compute, self._setup, asked, pure=False)] = asked
                    yield from known
                if not waiting:
                    return
                for future in self._wait(waiting):
                    computed = self._result(future, waiting.pop(future))
                    future.release()
                    yield from computed.results
        finally:
            for future in waiting:
                future.release()

    def facts(self) -> dict[str, Any]:
        return {"scheduler": self._runtime.scheduler or "local", "workers": list(self._facts.values())}

    def engines(self) -> dict[str, str]:
        return {name: engine for each in self._facts.values() for name, engine in each["engines"].items()}

    def _prepare(self) -> None:
        try:
            self._facts = self._client.run(prepare, self._setup)
        except FeatstoreError:
            raise
        except Exception as error:  # whatever a foreign machine may say: no such module, no such folder, ...
            raise ClusterError(f"the workers cannot compute this: {_say(error)}") from error
        if not self._facts:
            raise ClusterError("all workers are gone; start some, and run the command again")

    def _count(self) -> int:
        """How many workers there are, as of a moment ago."""
        if time.monotonic() > self._looked + LOOK_S:
            with suppress(OSError):  # the scheduler is gone: its tasks will say so
                self._n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
            self._looked = time.monotonic()
        return self._n_workers

    def _wait(self, waiting: Collection[Any]) -> list[Any]:
        """The tasks that are done, as soon as any is."""
        from distributed import CancelledError, wait

        alone_since = None
        while True:
            try:
                with self._client.as_current():
                    return list(wait(list(waiting), timeout=LOOK_S, return_when="FIRST_COMPLETED").done)  # type: ignore[no-untyped-call]
            except TimeoutError:
                now = time.monotonic()
                alone_since = None if self._count() else alone_since or now
                if alone_since is not None and now - alone_since > PATIENCE_S:
                    raise _alone() from None
            except CancelledError as error:
                raise ClusterError(f"the connection to the scheduler was lost; {KEPT}") from error

    def _result(self, future: Any, jobs: Sequence[PhotoJob]) -> Computed:
        from distributed import CancelledError
        from distributed.scheduler import KilledWorker

        photos = f"{jobs[0].path}" + (f" to {jobs[-1].path}" if len(jobs) > 1 else "")
        try:
            computed = self._fetch(future)
        except FeatstoreError:  # what ends a run in one process, or all workers are gone
            raise
        except KilledWorker as error:
            raise ClusterError(
                f"{error.allowed_failures + 1} workers, one after another, died at the photos {photos} "
                f"(out of memory?); {KEPT}"
            ) from error
        except (CancelledError, Exception) as error:
            if future.status != "error":
                raise ClusterError(f"the connection to the scheduler was lost; {KEPT}") from error
            raise ClusterError(f"a worker failed at the photos {photos}: {_say(error)}; {KEPT}") from error
        check_answer(computed, jobs, self._shapes)
        self._stages.count(computed.busy_s)
        self._decoders[computed.worker] = computed.decoders
        self._stages.workers |= {FORWARD: len(self._decoders), DECODE: sum(self._decoders.values())}
        return computed

    def _fetch(self, future: Any) -> Computed:
        """The result of a task; its worker may die before it is sent, and then another one has to do it again."""
        while True:
            try:
                computed: Computed = future.result(timeout=PATIENCE_S)
                return computed
            except TimeoutError:
                if future.status == "error":
                    raise
                if not self._count():
                    raise _alone() from None

    def _connect(self) -> Any:
        try:
            import dask
            import distributed
        except ImportError as error:
            raise ClusterError(
                "--workers and --scheduler need one more package: pip install 'featstore[cluster]'"
            ) from error
        for handler in logging.getLogger(distributed.__name__).handlers:  # deaths of workers are ours to tell
            self._open.callback(handler.setLevel, handler.level)
            handler.setLevel(logging.CRITICAL)
        if self._runtime.scheduler is not None:
            client = self._open.enter_context(connect_scheduler(self._runtime.scheduler))
            self._open.callback(_forget, client, self._setup)
            return client
        scratch = self._open.enter_context(tempfile.TemporaryDirectory(prefix="featstore-", ignore_cleanup_errors=True))
        settings = {
            "temporary-directory": scratch,
            "distributed.scheduler.allowed-failures": ATTEMPTS - 1,
            "distributed.deploy.lost-worker-timeout": RESTART_S,
            "distributed.nanny.pre-spawn-environ": {},  # would stay in the environment of this process
            "distributed.scheduler.http.routes": [],
            "distributed.worker.http.routes": [],
        }
        self._open.enter_context(dask.config.set(settings))
        return self._here(self._runtime.workers)

    def _here(self, n_workers: int) -> Any:
        """A client of workers of our own, which nothing outside this machine can reach."""
        from distributed import Client, LocalCluster

        most = max(MANY, n_cores())
        if n_workers > most:
            raise ClusterError(
                f"--workers {n_workers} is too many for this machine, which has {n_cores()} cores; say at most {most}"
            )
        with _deaf_to_ctrl_c():
            local: Any = LocalCluster(  # type: ignore[no-untyped-call]
                n_workers=0,
                threads_per_worker=AHEAD,
                processes=True,
                host="127.0.0.1",
                dashboard_address=None,
                scheduler_kwargs={"dashboard_address": "127.0.0.1:0"},
                memory_limit=0,  # one model of a process's memory is enough: ours
                silence_logs=logging.CRITICAL,
            )
        self._open.enter_context(local)
        self._open.callback(local.sync, _close, local)
        # The death of a worker at its start is told below; asyncio would tell it too, at length.
        local.loop.asyncio_loop.set_exception_handler(lambda loop, context: None)
        local.scale(n_workers)
        local.sync(_started, local)
        n_started = len(local.scheduler.workers)
        if n_started < n_workers:
            raise ClusterError(
                f"{n_started} of {n_workers} worker processes could be started; a script that calls `extract` has to "
                "do so below `if __name__ == '__main__':`, for each worker imports it"
            )
        return self._open.enter_context(Client(local, set_as_default=False, direct_to_workers=True))  # type: ignore[no-untyped-call]


def _tasks(jobs: Iterable[PhotoJob], block_rows: int, n_photos: int) -> Iterator[list[PhotoJob]]:
    """Jobs in the order of their rows, each task in one shard and with up to so many photos to look at."""
    for _, shard in groupby(jobs, key=lambda job: job.row // block_rows):
        task: list[PhotoJob] = []
        n_asked = 0
        for job in shard:
            if n_asked == n_photos:
                yield task
                task, n_asked = [], 0
            task.append(job)
            n_asked += job.size is None
        yield task


def check_answer(computed: Any, jobs: Sequence[PhotoJob], shapes: Shapes) -> None:
    """Hold what a worker sent back against what it was asked.

    Raises:
        ClusterError: it is about other photos, or its features are none of those that were asked for.
    """
    trouble = ""
    results = computed.results if isinstance(computed, Computed) else None
    if not isinstance(results, list) or not all(isinstance(each, PhotoResult) for each in results):
        trouble = "something that is no result"
    elif sorted(each.row for each in results) != [job.row for job in jobs]:
        trouble = "results of other photos than it was given"
    else:
        asked = {job.row: job for job in jobs}
        trouble = next(filter(None, (_trouble(each, asked[each.row], shapes) for each in results)), "")
    if trouble:
        raise ClusterError(
            f"a worker sent {trouble} for {jobs[0].path} and {len(jobs) - 1} more; stop it, and run this again; {KEPT}"
        )


def _trouble(result: PhotoResult, job: PhotoJob, shapes: Shapes) -> str:
    size: Any = result.size
    texts: tuple[Any, ...] = (result.error, result.note)
    if not (isinstance(size, tuple) and len(size) == 2 and all(isinstance(n, int) and 0 <= n < 1 << 31 for n in size)):
        return f"the size {size!r}"
    if not all(isinstance(text, str) and len(text) <= MOST_TEXT for text in texts):
        return "a reason that is no text, or a very long one"
    features: Any = result.features
    if not isinstance(features, dict):
        return "features that have no names"
    if not result.error and set(features) != set(job.wanted):
        return "other features than were asked for"
    for key, values in features.items():
        wanted = shapes.get(key)
        if wanted is None or not isinstance(values, np.ndarray) or (values.shape, values.dtype) != wanted:
            return f"features of shape {getattr(values, 'shape', None)} instead of {wanted and wanted[0]}"
    return ""


def _threads() -> int:
    """What the networks of one process would take."""
    import torch

    return torch.get_num_threads()


def _share(n: int, n_workers: int) -> int:
    return max(1, n // n_workers)


def _named(networks: Networks) -> dict[str, str]:
    """What is named here, for workers that run in other folders: the user's own code, too."""
    cards = [card for request in networks.requests for card in request.cards]
    named = {**{card.name: OWN_CODE for card in cards if card.source == PYTHON}, **networks.policy.named}
    return {
        name: value if value.startswith("random:") or value == OWN_CODE else str(Path(value).expanduser().absolute())
        for name, value in named.items()
    }


def _alone() -> ClusterError:
    return ClusterError(f"all workers are gone, and none came back in {PATIENCE_S:.0f} s; {KEPT}")


def _say(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Threads that are started meanwhile, and processes that those start, leave Ctrl-C to the main thread.

    A terminal sends it to all processes; workers would answer with tracebacks.
    """
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # which lets Ctrl-C through to the thread that starts it
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


async def _started(local: Any) -> None:
    """Once all workers are there; that they are being started is not undone by Ctrl-C, but by `close`."""

    async def all_of_them() -> None:
        await local

    await asyncio.shield(asyncio.ensure_future(all_of_them()))


async def _close(local: Any) -> None:
    """End the worker processes, whatever they are doing."""
    nannies = list(local.workers.values())
    await asyncio.gather(*(nanny.close(timeout=CLOSE_S) for nanny in nannies), return_exceptions=True)


def _forget(client: Any, setup: WorkerSetup) -> None:
    with suppress(Exception):  # workers or their scheduler may be gone, and the networks with them
        client.run(forget, setup, on_error="ignore")
