"""Training by the workers of a Dask cluster; this process keeps what comes back.

A task is one model: a worker with several threads trains as many side by side, and reads the features once for all of
them. Workers have to reach the store under the same name. A worker that dies loses its models, which others train.

Dask pickles what it sends from one process of a cluster to another, but no file is pickled: only the plain values and
arrays of the dataclasses here travel, and functions of this module by their name.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

import featstore
from featstore.support import LISTED, Progress, connect_scheduler, few, no_progress, version
from heads.errors import DivergedError, TrainingError, UnknownSystemError
from heads.labels.target import Target
from heads.systems.registry import system_like
from heads.systems.system import Origin, System
from heads.training.cost import cost_of
from heads.training.features import Features
from heads.training.initial import Initial, find_initial
from heads.training.joint import Work, train_together
from heads.training.learner import Job, Learner, Problem, Trained, blank_model
from heads.training.prediction import Precision

Named = tuple[str, tuple[str, ...]]
"""A tensor, and the hashes of the segments that it has to hold."""
KEPT = "models that are finished are kept, and `heads resume`, with the same --scheduler, trains the others"


@dataclass(frozen=True)
class TrainingSetup:
    """What a worker has to know to train any of the models."""

    store: str
    tensors: tuple["Named", ...]
    copies: tuple["Named", ...]
    """Of augmented copies, for each tensor."""
    rows: NDArray[np.int64]
    memory_bytes: int
    system: str
    plugin: Origin | None
    """What the system is registered by, of one that is not heads' own."""
    options: Mapping[str, Any]
    target: Target
    labels: NDArray[np.float32]
    sets: NDArray[np.int64]
    seed: int
    device: str
    """auto, cpu, cuda, ...: auto is what the worker has."""
    precision: Precision
    swept: bool
    initial: Mapping[str, str]
    """By part of the model, the SHA-256 of the weights that it begins with."""
    version: str


def train_on(
    address: str,
    works: Sequence[Work],
    store: Path | str,
    tensors: Sequence[featstore.StoredTensor],
    copies: Sequence[featstore.StoredTensor],
    rows: NDArray[np.int64],
    memory_bytes: int,
    device: str,
    on_progress: Progress,
) -> dict[Problem, DivergedError]:
    """Have the workers of a scheduler train every model that is not finished.

    Args:
        device: auto, cpu, cuda, ...: each worker takes what it has of that.

    Returns:
        The problems of which a model diverged, and how: they are given up, and do not end the others.

    Raises:
        TrainingError: the scheduler is of another version or has no workers; or a worker cannot train.
        featstore.FeatstoreError: Dask is not installed, or there can be no scheduler at the address, or none answers.
    """
    for system in {work.problem.system.name: work.problem.system for work in works}.values():
        if system.plugin is not None and system.plugin.module == "__main__":
            raise TrainingError(
                f"workers cannot load head {system.name!r}, which {system.plugin.where} registers itself; "
                "put it in a file of its own, and load that with --plugin or import it"
            )
    lost: dict[Problem, DivergedError] = {}
    client = _connect(address)
    try:
        place = store if "://" in str(store) else str(Path(store).absolute())
        held = _named(tensors), _named(copies)
        waiting = {
            client.submit(
                train_one, _setup(work.problem, str(place), *held, rows, memory_bytes, device), work.job, pure=False
            ): work
            for work in works
            if work.draft.finished(work.job) is None
        }
        done = len(works) - len(waiting)
        on_progress("train", done, len(works))
        for future, work in _as_they_come(client, waiting):
            done += 1
            if work.problem not in lost:
                try:
                    work.draft.finish(_result(future, work.job))
                except DivergedError as error:
                    lost[work.problem] = error
                    client.cancel([each for each, other in waiting.items() if other.problem is work.problem])
            on_progress("train", done, len(works))
        return lost
    finally:
        client.close()


def train_one(setup: TrainingSetup, job: Job) -> Trained:
    """On a worker: one model from beginning to end; its weights come back as numpy arrays.

    Raises:
        DivergedError: the model diverged.
        TrainingError: this worker has another version of heads, or another store, than the plan, or not the device.
    """
    if version() != setup.version:
        raise TrainingError(f"a worker has featstore {version()}, the plan was made with {setup.version}")
    with _LOADING:
        system = _system(setup)
        device = _device(setup)
        features = _features(
            setup.store,
            setup.tensors,
            setup.copies,
            setup.rows.tobytes(),
            setup.memory_bytes,
        )
    problem = Problem(
        system,
        setup.options,
        setup.target,
        features.shapes,
        features.layouts,
        setup.labels,
        setup.sets,
        setup.seed,
        device,
        setup.precision,
        setup.swept,
        **_of_pixels(setup, system, features),
    )
    kept = _MemoryCheckpoints()
    for error in train_together([Work(problem, job, kept)], features, on_progress=no_progress, threads=1).values():
        raise error
    assert kept.trained is not None
    weights = {name: value.numpy() for name, value in kept.trained.weights.items()}
    return replace(kept.trained, weights=weights)  # type: ignore[arg-type]


def _of_pixels(setup: TrainingSetup, system: System, features: Features) -> dict[str, Any]:
    """What a problem has besides, of a system that is trained from pixels or begins with given weights."""
    if not (system.init or system.from_pixels):
        return {}
    model = blank_model(system, features.shapes, features.layouts, setup.target, setup.options)
    return {
        "initial": _initial(setup, system, model),
        "cost": cost_of(model, features.shapes) if system.from_pixels else None,
    }


def _initial(setup: TrainingSetup, system: System, model: nn.Module) -> dict[str, Initial]:
    """
    Raises:
        TrainingError: the weights that a part begins with are not here, or are others.
    """
    found = find_initial(system, setup.options, model)
    if other := [part for part, begun in found.items() if begun.sha256 != setup.initial.get(part)]:
        raise TrainingError(f"a worker has other initial weights of {few(other)} than the plan; give it the same files")
    return found


class _MemoryCheckpoints:
    """Checkpoints of one model that are kept nowhere: it is held until it is sent."""

    def __init__(self) -> None:
        self.trained: Trained | None = None

    def finished(self, job: Job) -> Trained | None:
        return None

    def finish(self, trained: Trained) -> None:
        self.trained = trained

    def restore(self, learner: Learner) -> bool:
        return False

    def checkpoint(self, learner: Learner, *, in_step: int) -> None:
        return


def _setup(
    problem: Problem,
    store: str,
    tensors: tuple[Named, ...],
    copies: tuple[Named, ...],
    rows: NDArray[np.int64],
    memory_bytes: int,
    device: str,
) -> TrainingSetup:
    return TrainingSetup(
        store,
        tensors,
        copies,
        rows,
        memory_bytes,
        problem.system.name,
        problem.system.plugin,
        problem.options,
        problem.target,
        problem.labels,
        problem.sets,
        problem.seed,
        device,
        problem.precision,
        problem.swept,
        {part: begun.sha256 for part, begun in problem.initial.items()},
        version(),
    )


_LOADING = Lock()
"""So that threads that begin at the same time do not each load the head and read the features."""


def _device(setup: TrainingSetup) -> torch.device:
    from distributed import get_worker

    name = str(get_worker().name)
    try:
        return featstore.choose_device(setup.device, worker=name)
    except featstore.FeatstoreError as error:
        raise TrainingError(f"worker {name}: {error}") from error


def _system(setup: TrainingSetup) -> System:
    try:
        return system_like(setup.system, setup.plugin)
    except UnknownSystemError as error:
        raise TrainingError(f"a worker cannot train {setup.system!r}: {error}") from error


@lru_cache(maxsize=1)
def _features(
    place: str, tensors: tuple[Named, ...], copies: tuple[Named, ...], rows: bytes, memory_bytes: int
) -> Features:
    """The features of this worker, read once for all its models if they fit."""
    try:
        store = featstore.open(place, keep_mapped=False)
        found = [store[name] for name, _ in (*tensors, *copies)]
    except featstore.FeatstoreError as error:
        raise TrainingError(f"a worker cannot read the store {place}: {error}") from error
    if _named(found) != (*tensors, *copies):
        names = few((name for name, _ in (*tensors, *copies)), LISTED)
        raise TrainingError(f"{place} as a worker sees it has other features in {names} than the plan")
    n = len(tensors)
    features = Features(found[:n], np.frombuffer(rows, np.int64), memory_bytes=memory_bytes, copies=found[n:])
    features.load()
    return features


def _named(tensors: Sequence[featstore.StoredTensor]) -> tuple[Named, ...]:
    return tuple((each.name, tuple(segment.hash for segment in each.layout.segments)) for each in tensors)


def _connect(address: str) -> Any:
    client = connect_scheduler(address)
    if not client.scheduler_info(n_workers=-1)["workers"]:
        client.close()
        raise TrainingError(f"the scheduler {address} has no workers; start some: dask worker {address}")
    return client


def _as_they_come(client: Any, waiting: Mapping[Any, Work]) -> Any:
    from distributed import as_completed

    for future in as_completed(list(waiting), raise_errors=False, loop=client.loop):  # type: ignore[no-untyped-call]
        yield future, waiting[future]


def _result(future: Any, job: Job) -> Trained:
    from distributed.scheduler import KilledWorker

    try:
        trained: Trained = future.result()
    except TrainingError:
        raise
    except KilledWorker as error:
        raise TrainingError(
            f"{error.allowed_failures + 1} workers, one after another, died training {job.name} "
            f"(out of memory?); {KEPT}"
        ) from error
    except Exception as error:  # whatever a foreign machine may say
        said = str(error).splitlines()
        raise TrainingError(
            f"a worker failed at {job.name}: {said[0] if said else type(error).__name__}; {KEPT}"
        ) from error
    weights = {name: torch.from_numpy(np.array(value)) for name, value in trained.weights.items()}
    return replace(trained, weights=weights)
