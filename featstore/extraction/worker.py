"""A Dask worker of an extraction: its setup, the networks it keeps, what it sends back.

These are the functions that `cluster` calls by name on a worker; they run in its process, on its machine.
"""

import asyncio
import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from featstore.backbones import WeightsPolicy
from featstore.engines import Hardware, Runtime, describe_device
from featstore.errors import (
    BackboneError,
    ClusterError,
    DeviceLostError,
    FeatstoreError,
    UnfitBackboneError,
    WeightsError,
)
from featstore.extraction.networks import Networks, TensorRequest, segment_of
from featstore.extraction.pipeline import PhotoJob, PhotoResult
from featstore.extraction.timing import DECODE, Stages
from featstore.identity import PIXELS, differences
from featstore.store import StoredSegment
from featstore.support import no_progress, reuse_freed_memory, version

RUNS = 2  # runs whose networks a worker keeps at a time

_setting_up = threading.Lock()


@dataclass(frozen=True)
class WorkerSetup:
    """Everything that a worker has to know, in plain values."""

    root: str
    segments: tuple[dict[str, Any], ...]
    """Name, identity, blocks, width and copies of each."""
    weights: dict[str, Any]
    device: str
    engine: str | None
    batch: int | None
    threads: int | None
    """That a network takes in each worker; as many as Dask has allotted to it, if None."""
    decoders: int | None
    """Threads that decode in each worker; one for each core of its machine, if None."""
    max_megapixels: float
    """How large a photo may be."""
    version: str


@dataclass(frozen=True)
class Computed:
    """What a worker sends back."""

    worker: str
    results: list[PhotoResult]
    busy_s: dict[str, float]
    decoders: int
    """Threads that decoded."""


async def prepare(setup: WorkerSetup, dask_worker: Any) -> dict[str, Any]:
    """On a worker, which Dask hands in: load the networks, unless they are; returns what it computes with."""
    state = await asyncio.to_thread(_state_of, setup, dask_worker)  # meanwhile it shows that it is alive
    return {**state.facts, "notes": list(state.notes)}


def compute(setup: WorkerSetup, jobs: list[PhotoJob]) -> Computed:
    """On a worker: do the jobs of one task."""
    from distributed import get_worker

    from featstore.extraction.pipeline import Pipeline

    worker = get_worker()
    state = _state_of(setup, worker)
    stages = Stages()
    with OwnDevice(state.backbones, state.device) as backbones:
        pipeline = Pipeline(
            Path(setup.root),
            backbones,  # type: ignore[arg-type]
            state.dtypes,
            stages,
            n_threads=setup.decoders,
            max_megapixels=setup.max_megapixels,
            on_last=backbones.release,
        )
        try:
            results = list(pipeline.run(jobs))
        except DeviceLostError as error:
            raise DeviceLostError(f"worker {worker.name}, which has to be started anew: {error}") from error
    return Computed(str(worker.name), results, stages.busy_s, stages.workers[DECODE])


def forget(setup: WorkerSetup, dask_worker: Any) -> None:
    """On a worker: let go of the networks."""
    with _setting_up:
        kept = getattr(dask_worker, "featstore_states", [])
        dask_worker.featstore_states = [each for each in kept if each.setup != setup]


@dataclass(frozen=True)
class _WorkerState:
    """What a worker keeps from one task to the next."""

    setup: WorkerSetup
    backbones: Any
    dtypes: dict[str, str]
    facts: dict[str, Any]
    notes: list[str]
    device: threading.Lock = field(default_factory=threading.Lock)
    """Held by the task that gives batches to the device."""


class OwnDevice:
    """The backbones as one of the tasks of a worker sees them: from its first batch to its last the device is its own.

    Before that it decodes ahead and after that it looks at its results, so that the device goes from one task to the
    next without waiting for photos or for results.
    """

    def __init__(self, backbones: Any, device: threading.Lock) -> None:
        self._backbones, self._device, self._mine = backbones, device, False

    def __enter__(self) -> "OwnDevice":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backbones, name)

    def start(self, photos: Any, wanted: Collection[str], dtypes: Mapping[str, str] | None = None) -> Any:
        """As `Backbones.start`, once the device is free."""
        if not self._mine:
            self._mine = self._device.acquire()
        return self._backbones.start(photos, wanted, dtypes)

    def release(self) -> None:
        """Give the device to the next task.

        What it still computes for this one comes first: all that a device is given it does in turn.
        """
        if self._mine:
            self._mine = False
            self._device.release()


def _state_of(setup: WorkerSetup, worker: Any) -> _WorkerState:
    with _setting_up:  # two first tasks at a time
        kept: list[_WorkerState] = getattr(worker, "featstore_states", [])
        found = next((each for each in kept if each.setup == setup), None)
        if found is None:
            worker.featstore_states = kept[1 - RUNS :]
            try:
                found = _set_up(setup, worker)
            except UnfitBackboneError as error:
                raise BackboneError(f"worker {worker.name}: {error}") from error
            except FeatstoreError as error:
                raise type(error)(f"worker {worker.name}: {error}") from error
            worker.featstore_states.append(found)
        return found


def _set_up(setup: WorkerSetup, worker: Any) -> _WorkerState:
    if version() != setup.version:
        raise ClusterError(f"it has featstore {version()}, the command that uses it {setup.version}; install the same")
    import torch

    from featstore.extraction.forward import Backbones

    # Dask asks for the contrary; with that, a worker spent half of its time on page faults.
    reuse_freed_memory(mmap_bytes=32 << 20, trim_bytes=256 << 20, override=True)
    torch.set_num_threads(setup.threads or worker.state.nthreads)
    hardware = Hardware.choose(Runtime(setup.device, setup.engine, setup.batch), worker=str(worker.name))
    networks = _networks([StoredSegment(**each) for each in setup.segments], setup)
    notes: list[str] = []
    backbones = Backbones(networks, hardware, no_progress, note=notes.append)
    facts = {
        "name": str(worker.name),
        "device": describe_device(hardware.device),
        "threads": torch.get_num_threads(),
        "batch": backbones.batch,
        "engines": backbones.engines,
    }
    return _WorkerState(setup, backbones, networks.dtypes(), facts, notes)


def _networks(stored: list[StoredSegment], setup: WorkerSetup) -> Networks:
    """The networks of the plan, from this machine's weights.

    Raises:
        WeightsError: they are others, or not here.
    """
    weights = setup.weights
    policy = WeightsPolicy(Path(weights["folder"]), weights["named"], weights["hub"])
    requests = [
        TensorRequest(
            name=f"segment_{i}",
            kind="pixels" if each.name == PIXELS else "concat",
            segments=(segment_of(each, each.name, policy),),
            dtype=each.identity["dtype"],
        )
        for i, each in enumerate(stored)
    ]
    networks = Networks(requests, policy)
    for layout, wanted in zip(networks.layouts(), stored, strict=True):
        if differing := differences(layout.segments[0].identity, wanted.identity):
            raise WeightsError(
                f"it would compute another {wanted.name!r} ({'; '.join(differing)}); "
                f"give it the same files in {weights['folder']}, or stop that worker"
            )
    return networks
