"""A forecast of an experiment: what it will compute, read and keep in memory, and about how long it will take."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from featstore.support import size
from heads.errors import TrainingError
from heads.experiment import prepare
from heads.plan import Plan
from heads.training.features import Features
from heads.training.joint import COPIES, most_epochs
from heads.training.learner import Job, Learner, Problem

LONG_S = 86_400
"""A run of more than a day is asked about."""
QUICK_FLOP = 10**13
"""Arithmetic that nobody waits long for: it is not timed beforehand, unless a forecast is asked for."""
TIMED = 4
"""Photos of the step that is timed."""


@dataclass(frozen=True)
class Forecast:
    """What an experiment takes, as far as it can be known before."""

    models: int
    """To be trained: folds x repeats, and x tasks of a head that learns each alone; and x values of a sweep."""
    epochs: int
    """Of each at most; early stopping may end it before. 0 of a head that is solved at once."""
    photos: int
    """That go through a network in training: models x epochs x photos that each learns from."""
    store_bytes: int
    """Of the tensors that are read."""
    memory_bytes: int
    """Of one model in training, beside what is read."""
    parameters: int | None = None
    """Of one model; this and what follows is known of networks that learn from pixels."""
    gflop_per_photo: float | None = None
    """Of a pass forward; training is three times that."""
    seconds: float | None = None
    """About, by the time that a step takes here now."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def forecast(plan: Plan, *, only_if_long: bool = False) -> Forecast:
    """Work out what a plan takes; a network that learns from pixels is timed with a step of a few photos.

    Args:
        only_if_long: time nothing where the arithmetic shows that it will be quick.

    Raises:
        HeadsError: as `train`.
    """
    data, problems = prepare(plan)
    models = [(problem, job) for problem, jobs in problems for job in jobs]
    solved = models[0][0].system.fit is not None
    photos = 0 if solved else sum(most_epochs(problem) * len(job.fit) for problem, job in models)
    features = Features(data.tensors, data.rows, memory_bytes=plan.memory_bytes, copies=data.copies)
    first, job = models[0]
    cost = first.cost
    seconds = None
    if first.system.from_pixels and not (
        only_if_long and cost is not None and cost.training_flop * photos < QUICK_FLOP
    ):
        seconds = _seconds_of_a_photo(first, job, features) * photos
    held = 0 if cost is None else cost.activation_bytes * (first.micro or int(first.options["batch"]))
    return Forecast(
        models=len(models),
        epochs=0 if solved else max(most_epochs(problem) for problem, _ in models),
        photos=photos,
        store_bytes=features.n_bytes,
        memory_bytes=held + (0 if cost is None else COPIES * 4 * cost.n_parameters),
        parameters=None if cost is None else cost.n_parameters,
        gflop_per_photo=None if cost is None else round(cost.flop / 1e9, 3),
        seconds=seconds,
    )


def _seconds_of_a_photo(problem: Problem, job: Job, features: Features) -> float:
    """By the second of two steps of a few photos: the first one also sets things up."""
    learner = Learner(problem, job)
    rows = learner.fit[:TIMED]
    if not len(rows):
        return 0.0
    learner.begin_epoch()
    learner.ready_to_learn()
    clock = time.perf_counter()
    for group in features.groups(rows):
        for _ in range(2):
            clock = time.perf_counter()
            learner.gradients(group, group.holds(rows), None)
            if problem.device.type == "cuda":
                torch.cuda.synchronize()
            clock = time.perf_counter() - clock
        return clock / len(rows)
    return 0.0


def lines(told: Forecast, clock: Callable[[float], str]) -> Sequence[str]:
    """The forecast in words, a line each.

    Args:
        clock: spells seconds.
    """
    said = [f"{told.models} models, at most {told.epochs} epochs each" if told.epochs else f"{told.models} models"]
    said.append(f"{told.photos} photos go through a network" if told.epochs else "solved at once, without epochs")
    if told.gflop_per_photo is not None and told.parameters is not None:
        total = 3 * told.gflop_per_photo * told.photos
        said.append(
            f"{told.parameters / 1e6:.2f} million parameters; {told.gflop_per_photo:g} GFLOP a photo forward, "
            f"{total / 1000:.3g} TFLOP in all to train"
        )
    memory = f"; a model takes {size(told.memory_bytes)}" if told.memory_bytes else ""
    said.append(f"reads {size(told.store_bytes)}{memory}")
    if told.seconds is not None:
        said.append(f"about {_spelt(told.seconds, clock)} on this machine, by a step of {TIMED} photos")
    return said


def refuse_what_takes_days(told: Forecast, clock: Callable[[float], str]) -> None:
    """
    Raises:
        TrainingError: it takes more than a day.
    """
    if told.seconds is not None and told.seconds > LONG_S:
        raise TrainingError(
            f"this would take about {_spelt(told.seconds, clock)} here ({told.models} models of {told.epochs} epochs, "
            f"{told.photos} photos through a network); say --yes to begin all the same, or --set epochs=, --folds, "
            "--repeats or a smaller --set trunk="
        )


def _spelt(seconds: float, clock: Callable[[float], str]) -> str:
    return f"{seconds / LONG_S:.1f} days" if seconds > 2 * LONG_S else clock(seconds)
