"""The same run on several devices or machines: the workers of a Dask cluster compute, this process commits.

A task is the rows of one row block. A worker loads each network once, refuses weights that are not those of the plan,
and sends features back; only the coordinator holds the store's lock and writes. A worker that dies loses its block,
which another one gets.
"""

import asyncio
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from types import TracebackType
from typing import Any

from featstore.backbones import WeightsPolicy
from featstore.errors import ClusterError, FeatstoreError, WeightsError
from featstore.identity import PIXELS, differences
from featstore.listing import Progress
from featstore.pipeline import Job, Result
from featstore.requests import Networks, TensorRequest, segment_of
from featstore.runtime import Runtime
from featstore.stages import DECODE, FORWARD, Stages
from featstore.store import StoredSegment

AHEAD = 2  # tasks that each worker has: one to compute, and one to begin when it is done
ATTEMPTS = 5  # how many workers may die at one block before the block is thought to kill them


@dataclass(frozen=True)
class Assignment:
    """Everything that a worker has to know, in plain values."""

    root: str
    segments: tuple[dict[str, Any], ...]
    """Name, identity, blocks, width and copies of each."""
    weights: dict[str, Any]
    device: str
    engine: str
    batch: int | None
    threads: int | None
    """For each worker; what it has by itself, if None."""
    version: str


class Cluster:
    """Workers of their own on this machine, or those of a scheduler that is there.

    Raises:
        ClusterError: the scheduler cannot be reached, has no workers, or they cannot compute this.
        WeightsError: a worker has other weights.
    """

    def __init__(
        self,
        root: Path,
        networks: Networks,
        runtime: Runtime,
        needed: set[str],
        *,
        block_rows: int,
        stages: Stages,
        report: Progress,
    ) -> None:
        self._runtime, self._stages, self._report, self._block_rows = runtime, stages, report, block_rows
        policy = networks.policy
        self._assignment = Assignment(
            root=str(root.absolute()),
            segments=tuple(asdict(segment) for key, segment in networks.stored().items() if key in needed),
            weights={"folder": str(policy.folder.absolute()), "named": _absolute(policy.named), "hub": policy.hub},
            device=runtime.device,
            engine=runtime.engine,
            batch=runtime.batch,
            threads=max(1, (os.cpu_count() or 1) // runtime.workers) if runtime.workers else None,
            version=version("featstore"),
        )
        self._open = ExitStack()

    def __enter__(self) -> "Cluster":
        try:
            self._client = self._connect()
            n_workers = len(self._client.scheduler_info(n_workers=-1)["workers"])
            if not n_workers:
                raise ClusterError(f"the scheduler {self._runtime.scheduler} has no workers; start some")
            self._report("load", 0, n_workers)
            try:
                self._facts: dict[str, dict[str, Any]] = self._client.run(prepare, self._assignment)
            except FeatstoreError:
                raise
            except Exception as error:  # whatever a foreign machine may say: no such module, no such folder, ...
                raise ClusterError(f"the workers cannot compute this: {error}") from error
            self._report("load", n_workers, n_workers)
        except BaseException:
            self._open.close()
            raise
        self._n_workers = n_workers
        self._stages.workers |= {FORWARD: n_workers, DECODE: sum(each["threads"] for each in self._facts.values())}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    def run(self, jobs: Iterable[Job]) -> Iterator[Result]:
        """Results of a row block come together, in the order in which blocks are done.

        Raises:
            ClusterError: a block has killed several workers, or all workers are gone.
        """
        from distributed import as_completed
        from distributed.client import FutureCancelledError
        from distributed.scheduler import KilledWorker

        blocks = iter(_by_block(jobs, self._block_rows))
        done = as_completed(loop=self._client.loop)  # type: ignore[no-untyped-call]
        n_waiting = 0
        try:
            while True:
                while n_waiting < AHEAD * self._n_workers and (block := next(blocks, None)) is not None:
                    done.add(self._client.submit(compute, self._assignment, block, pure=False))  # type: ignore[no-untyped-call]
                    n_waiting += 1
                if not n_waiting:
                    return
                future = next(done)
                n_waiting -= 1
                computed: Computed = future.result()
                future.release()
                self._stages.count(computed.busy_s)
                yield from computed.results
        except KilledWorker as error:
            raise ClusterError(
                f"{ATTEMPTS} workers died at one row block (out of memory?); what was computed is kept: {error}"
            ) from error
        except FutureCancelledError as error:
            raise ClusterError(f"the scheduler is gone; what was computed is kept: {error}") from error

    def facts(self) -> dict[str, Any]:
        return {"scheduler": self._runtime.scheduler or "local", "workers": list(self._facts.values())}

    def engines(self) -> dict[str, str]:
        return {name: engine for each in self._facts.values() for name, engine in each["engines"].items()}

    def _connect(self) -> Any:
        try:
            import dask
            from distributed import Client, LocalCluster
        except ImportError as error:
            raise ClusterError(
                "--workers and --scheduler need one more package: pip install 'featstore[cluster]'"
            ) from error
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # deaths of workers are ours to tell
        self._open.enter_context(dask.config.set({"distributed.scheduler.allowed-failures": ATTEMPTS}))
        if self._runtime.scheduler is not None:
            try:
                client = Client(self._runtime.scheduler, timeout=10, set_as_default=False)  # type: ignore[no-untyped-call]
                return self._open.enter_context(client)
            except (OSError, ValueError, asyncio.TimeoutError) as error:
                raise ClusterError(
                    f"the Dask scheduler {self._runtime.scheduler} cannot be reached: {str(error) or 'no answer'}"
                ) from error
        local = LocalCluster(  # type: ignore[no-untyped-call]
            n_workers=self._runtime.workers,
            threads_per_worker=1,
            processes=True,
            dashboard_address=None,
            memory_limit=0,  # one model of a process's memory is enough: ours
            silence_logs=logging.CRITICAL,
        )
        self._open.enter_context(local)
        return self._open.enter_context(Client(local, set_as_default=False))  # type: ignore[no-untyped-call]


@dataclass(frozen=True)
class Computed:
    """What a worker sends back of a row block."""

    results: list[Result]
    busy_s: dict[str, float]


def prepare(assignment: Assignment, dask_worker: Any) -> dict[str, Any]:
    """On a worker, which Dask hands in: load the networks, unless they are; returns what it computes with."""
    return _station(assignment, dask_worker).facts


def compute(assignment: Assignment, jobs: list[Job]) -> Computed:
    """On a worker: do the jobs of one row block."""
    from distributed import get_worker

    from featstore.pipeline import Pipeline

    station = _station(assignment, get_worker())
    stages = Stages()
    pipeline = Pipeline(Path(assignment.root), station.backbones, station.dtypes, stages)
    return Computed(list(pipeline.run(jobs)), stages.busy_s)


@dataclass(frozen=True)
class _Station:
    """What a worker keeps from one row block to the next."""

    assignment: Assignment
    backbones: Any
    dtypes: dict[str, str]
    facts: dict[str, Any]


def _station(assignment: Assignment, worker: Any) -> _Station:
    kept: _Station | None = getattr(worker, "featstore_station", None)
    if kept is None or kept.assignment != assignment:
        kept = worker.featstore_station = _set_up(assignment, str(worker.name))
    return kept


def _set_up(assignment: Assignment, name: str) -> _Station:
    if version("featstore") != assignment.version:
        raise ClusterError(
            f"worker {name} has featstore {version('featstore')}, this process {assignment.version}; install the same"
        )
    import torch

    from featstore.engines import Hardware, describe_device
    from featstore.forward import Backbones

    if assignment.threads:
        torch.set_num_threads(assignment.threads)
    device = assignment.device
    if device in ("auto", "cuda") and torch.cuda.is_available():  # a GPU for each worker of this machine
        device = f"cuda:{int(name) % torch.cuda.device_count() if name.isdigit() else 0}"
    hardware = Hardware.choose(Runtime(device, assignment.engine, assignment.batch))
    stored = [StoredSegment(**each) for each in assignment.segments]
    networks = _networks(stored, assignment)
    notes: list[str] = []
    backbones = Backbones(networks, hardware, lambda stage, done, total: None, note=notes.append)
    facts = {
        "name": name,
        "device": describe_device(hardware.device),
        "threads": torch.get_num_threads(),
        "batch": backbones.batch,
        "engines": backbones.engines,
        "notes": notes,
    }
    return _Station(assignment, backbones, networks.dtypes(), facts)


def _networks(stored: list[StoredSegment], assignment: Assignment) -> Networks:
    """The networks of the plan, from this machine's weights.

    Raises:
        WeightsError: they are others.
    """
    weights = assignment.weights
    requests = [
        TensorRequest(
            name=f"segment_{i}",
            kind="pixels" if each.name == PIXELS else "concat",
            segments=(segment_of(each, each.name),),
            dtype=each.identity["dtype"],
        )
        for i, each in enumerate(stored)
    ]
    networks = Networks(requests, WeightsPolicy(Path(weights["folder"]), weights["named"], weights["hub"]))
    for layout, wanted in zip(networks.layouts(), stored, strict=True):
        if differing := differences(layout.segments[0].identity, wanted.identity):
            raise WeightsError(f"a worker would compute another {wanted.name}: {'; '.join(differing)}")
    return networks


def _by_block(jobs: Iterable[Job], block_rows: int) -> Iterator[list[Job]]:
    block: list[Job] = []
    for job in jobs:
        if block and job.row // block_rows != block[0].row // block_rows:
            yield block
            block = []
        block.append(job)
    if block:
        yield block


def _absolute(named: Mapping[str, str]) -> dict[str, str]:
    return {
        name: value if value.startswith("random:") else str(Path(value).expanduser().absolute())
        for name, value in named.items()
    }
