"""Training many models jointly: side by side in threads, from one stream of features.

On a CPU each model has one thread, and as many learn side by side as there are cores: while one waits for memory (the
optimiser reads and writes every weight), another one multiplies. Features in memory are shared by all, and models take
turns after each epoch, so that all cores are busy to the end. Features that stream are read once for as many models as
memory has room for; each sees only its own rows, in the order in which it would see them alone. On a GPU models learn
in stacks (`stack.py`), from features that lie in its memory if they fit.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heappop, heappush
from queue import SimpleQueue
from threading import Event, Lock, Thread
from typing import Any, Protocol

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from featstore.support import Progress, device_full, n_cores
from heads.errors import DivergedError
from heads.training.features import Features, Group
from heads.training.learner import Job, Learner, Problem, Trained
from heads.training.matmul import whole_width
from heads.training.solving import solve, solving_bytes
from heads.training.stack import Stacks

COPIES = 5
"""Of a model's weights in memory: themselves, their gradients, two of Adam's, and the best so far."""
MOST_THREADS = 64
SHARE_OF_MODELS = 0.75
"""Of the memory allowed, when features stream."""
SHARE_OF_DEVICE = 0.5
"""Of the free memory of a GPU: features that take no more lie there, and of what is then left models take so much."""
BATCHES = 4
"""Minibatches of float32 features that a model in a stack needs room for: itself, and what the way back remembers."""


class Checkpoints(Protocol):
    """Where models are kept while they are trained, and afterwards: `checkpoints.Draft`, or the memory of a worker."""

    def finished(self, job: Job) -> Trained | None: ...
    def finish(self, trained: Trained) -> None: ...
    def restore(self, learner: Learner) -> bool: ...
    def checkpoint(self, learner: Learner, *, in_step: int) -> None: ...


@dataclass(frozen=True)
class Work:
    """A model to be trained, and where it is kept."""

    problem: Problem
    job: Job
    draft: Checkpoints


class TrainingStatus:
    """Counts epochs, knows which models are finished, and stops what is under way.

    Where several problems are trained at once, as in a sweep, one that diverges does not end the others.
    """

    def __init__(self, on_progress: Progress, works: Sequence[Work]) -> None:
        self._report, self._epochs = on_progress, dict.fromkeys((id(work) for work in works), 0)
        self._most = max((most_epochs(work.problem) for work in works), default=1)
        self._finished: set[int] = set()
        self.lost: dict[Problem, DivergedError] = {}
        self._turn = Lock()
        self.stop = Event()

    def epoch(self, work: Work, n_epochs: int) -> None:
        with self._turn:  # models learn side by side, and what is told never goes back
            if n_epochs > self._epochs[id(work)]:
                self._epochs[id(work)] = n_epochs
                self._report("train", sum(self._epochs.values()), self._most * len(self._epochs))

    def done(self, work: Work) -> None:
        self._finished.add(id(work))
        self.epoch(work, self._most)

    def give_up(self, problem: Problem, error: DivergedError) -> None:
        """Train no model of a problem any more."""
        with self._turn:
            self.lost.setdefault(problem, error)

    def left(self, works: Iterable[Work]) -> list[Work]:
        return [work for work in works if id(work) not in self._finished and work.problem not in self.lost]


def n_threads() -> int:
    """Models that learn side by side on a CPU."""
    return min(n_cores(), MOST_THREADS)


@whole_width()
def train_together(
    works: Sequence[Work],
    features: Features,
    *,
    on_progress: Progress,
    threads: int,
    stacked: bool = False,
    note: Callable[[str], object] = lambda text: None,
) -> dict[Problem, DivergedError]:
    """Train every model and leave it in its draft; those that are finished there already are passed over.

    Args:
        threads: models that learn side by side, each with a thread.
        stacked: whether models learn in stacks instead, if they learn by gradient.
        note: is told what is good to know, such as that fewer models learn at a time than were meant to.

    Returns:
        The problems of which a model diverged, and how: they are given up, and do not end the others.

    Raises:
        TrainingError: a model has nothing to learn from, or is solved and needs more memory than is allowed.
    """
    status = TrainingStatus(on_progress, works)
    for work in works:
        if work.draft.finished(work.job) is not None:
            status.done(work)
    if not status.left(works):
        return {}
    if works[0].problem.system.fit is not None:
        _at_once(works, features, status, threads)
    elif stacked:
        _in_stacks(works, features, status, note)
    elif features.resident:
        _from_memory(works, features, status, threads)
    else:
        _from_stream(works, features, status, threads)
    return status.lost


def model_bytes(problem: Problem, job: Job) -> int:
    """What training one model takes beside the features."""
    weights = Learner(problem, job).module.state_dict().values()
    held = 0
    if problem.cost is not None:
        held = problem.cost.activation_bytes * (problem.micro or int(problem.options["batch"]))
    return held + COPIES * int(sum(value.numel() * value.element_size() for value in weights))


def most_bytes(works: Sequence[Work]) -> int:
    """What the largest model takes: those of a sweep differ, those of one problem do not."""
    one_of_each = {id(work.problem): work for work in works}.values()
    return max(model_bytes(work.problem, work.job) for work in one_of_each)


def _at_once(works: Sequence[Work], features: Features, status: TrainingStatus, threads: int) -> None:
    """Solve each by itself, as many side by side as there are threads and memory has room for.

    Decompositions of some hundred rows gain little by a second core; a second model gains all of it. Nobody waits for a
    solution that an error or Ctrl-C has made worthless: it ends with the program, or is dropped.
    """
    each = max(solving_bytes(work.problem, work.job) for work in works)
    held = features.n_bytes if features.resident else 0
    side_by_side = max(1, min(threads, len(works), (features.memory_bytes - held) // max(each, 1)))
    left, ended = iter(status.left(works)), SimpleQueue[BaseException | None]()

    def solve_what_is_left() -> None:
        torch.set_num_threads(1)
        try:
            for work in left:
                trained = solve(work.problem, work.job, features)
                if status.stop.is_set():
                    return
                work.draft.finish(trained)
                status.done(work)
        except BaseException as error:
            ended.put(error)
        else:
            ended.put(None)

    before = torch.get_num_threads()
    _choose_kernels()
    # scikit-learn and NumPy multiply with libraries that have threads of their own.
    with threadpool_limits(max(1, threads // side_by_side)):
        try:
            for _ in range(side_by_side):
                Thread(target=solve_what_is_left, daemon=True).start()
            for _ in range(side_by_side):
                if (error := ended.get()) is not None:
                    raise error
        finally:
            status.stop.set()
            torch.set_num_threads(before)


def _from_memory(works: Sequence[Work], features: Features, status: TrainingStatus, threads: int) -> None:
    """Each model by itself, as many side by side as there are threads, and an epoch at a time.

    How many threads a model has depends on the number of models, the cores and the memory allowed, and not on which are
    finished already, so that a run that goes on where it was begun ends with the same digits.
    """
    (group,) = features.groups()
    room = max(1, (features.memory_bytes - features.n_bytes) // most_bytes(works))
    side_by_side = min(threads, len(works), room)
    turns = _RoundRobin(
        status.left(works), lambda work: _epochs([work], lambda *_: [group], status, _one_after_the_other)
    )
    at_once = min(2 * side_by_side - 1, room)
    with _pool(side_by_side, threads // side_by_side, status) as pool:
        _results([pool.submit(turns.run, at_once) for _ in range(side_by_side)])


def _in_stacks(
    works: Sequence[Work], features: Features, status: TrainingStatus, note: Callable[[str], object]
) -> None:
    """All models in stacks, as many at a time as the device has memory for.

    What a head needs beside its weights is an estimate. Where it was too low, half as many learn at a time; those that
    were at it begin anew, or go on from their checkpoints.
    """
    device, on_device = works[0].problem.device, 0
    free = _free_bytes(device, features)
    resident: list[Group] = []
    if features.resident:
        resident = [
            group.on(device) if features.n_bytes <= SHARE_OF_DEVICE * free else group for group in features.groups()
        ]
        on_device = features.n_bytes if resident[0].device == device else 0
    each = most_bytes(works) + BATCHES * features.learnt_bytes * max(
        int(work.problem.options["batch"]) for work in works
    )
    at_once = max(1, int(SHARE_OF_DEVICE * (free - on_device)) // each)

    def groups(rows: Any, rng: np.random.Generator | None) -> Iterable[Group]:
        return resident or features.groups(rows, rng=rng, copies=rng is not None)

    waves = _waves(works, at_once)
    while waves:
        left = status.left(waves[0])
        if not left or _fits(left, groups, status):
            waves.popleft()
            continue
        at_once = math.ceil(len(left) / 2)
        note(f"the memory of {device} was too small for {len(left)} models at a time: {at_once} from here on")
        waves = _waves([work for wave in waves for work in wave], at_once)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def _waves(works: Sequence[Work], at_once: int) -> deque[list[Work]]:
    """Parts of even size, whichever of the models are finished already."""
    parts = np.array_split(np.arange(len(works)), math.ceil(len(works) / at_once))
    return deque([works[i] for i in part] for part in parts)


def _fits(
    works: Sequence[Work],
    groups: Callable[[Any, np.random.Generator | None], Iterable[Group]],
    status: TrainingStatus,
) -> bool:
    """Train models in stacks; False if the device has no memory for so many."""
    try:
        for _ in _epochs(works, groups, status, Stacks().spread):
            pass
    except RuntimeError as error:
        if len(works) == 1 or not device_full(error):
            raise
        return False
    return True


def _free_bytes(device: torch.device, features: Features) -> int:
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return features.memory_bytes


class _RoundRobin:
    """Models that take turns, whichever is furthest behind: all end at about the same time, and no core waits long.

    With five models on two cores, the last of them would otherwise learn while one core has nothing to do.
    """

    def __init__(self, works: Iterable[Work], begin: Callable[[Work], Iterator[int]]) -> None:
        self._waiting, self._begin = deque(enumerate(works)), begin
        self._idle: list[tuple[int, int, Iterator[int]]] = []
        self._n_begun = 0
        self._lock = Lock()

    def run(self, at_once: int) -> None:
        """Train whatever is next until nothing is left, on each of several threads.

        Args:
            at_once: models that are begun and not finished, at most.
        """
        while (turn := self._next(at_once)) is not None:
            _, number, epochs = turn
            epoch = next(epochs, None)
            with self._lock:
                if epoch is None:
                    self._n_begun -= 1
                else:
                    heappush(self._idle, (epoch, number, epochs))

    def _next(self, at_once: int) -> tuple[int, int, Iterator[int]] | None:
        with self._lock:
            if self._waiting and self._n_begun < at_once:
                number, work = self._waiting.popleft()
                self._n_begun += 1
                return 0, number, self._begin(work)
            return heappop(self._idle) if self._idle else None


def _from_stream(works: Sequence[Work], features: Features, status: TrainingStatus, threads: int) -> None:
    """As many models at a time as their share of the memory holds, all from the same stream.

    What is left for groups of rows is the same whatever the number of models, and so is what each learns.
    """
    each = most_bytes(works)
    at_once = max(1, int(SHARE_OF_MODELS * features.stream_bytes) // each)
    budget = int((1 - SHARE_OF_MODELS) * features.stream_bytes)
    for wave in np.array_split(np.arange(len(works)), math.ceil(len(works) / at_once)):

        def groups(rows: Any, rng: np.random.Generator | None) -> Iterable[Group]:
            # Rows that are shuffled are learnt from; of the others no copy is looked at.
            return features.groups(rows, rng=rng, budget_bytes=budget, copies=rng is not None)

        side_by_side = min(threads, len(wave))
        if left := status.left(works[i] for i in wave):
            with _pool(side_by_side, threads // side_by_side, status) as pool:
                for _ in _epochs(left, groups, status, lambda *args: _side_by_side(pool, *args)):
                    pass


Visit = Callable[[Learner, Group], None]


def _epochs(
    works: Sequence[Work],
    groups: Callable[[Any, np.random.Generator | None], Iterable[Group]],
    status: TrainingStatus,
    spread: Callable[[Sequence[Learner], Iterable[Group], Visit], None],
) -> Iterator[int]:
    """Train models in step with each other: an epoch of one is an epoch of all that are not done.

    Yields:
        How many epochs they have learnt, after each.
    """
    learners = [Learner(work.problem, work.job, status.stop) for work in works]
    new = [learner for learner, work in zip(learners, works, strict=True) if not work.draft.restore(learner)]
    new = [learner for learner in new if learner.needs_moments]
    if new:
        spread(new, groups(_union(learner.job.fit for learner in new), None), Learner.learn_moments)
    for learner in new:
        learner.take_moments()
    while active := [learner for learner in learners if not learner.done and learner.problem not in status.lost]:
        # After an interruption some may be an epoch behind the others.
        epoch = min(len(learner.history) for learner in active)
        active = [learner for learner in active if len(learner.history) == epoch]
        order = np.random.default_rng([active[0].problem.seed, epoch])
        for learner in active:
            learner.begin_epoch()
        spread(active, groups(_union(learner.fit for learner in active), order), Learner.learn)
        inner = _union(learner.inner for learner in active)
        if len(inner):
            spread(active, groups(inner, None), Learner.validate)
        for learner in active:
            work = works[learners.index(learner)]
            try:
                learner.end_epoch()
            except DivergedError as error:
                status.give_up(work.problem, error)
                continue
            work.draft.checkpoint(learner, in_step=len(learners))
            status.epoch(work, len(learner.history))
        yield epoch + 1
    learnt = [(work, learner) for work, learner in zip(works, learners, strict=True) if learner.done]
    said: dict[int, list[Any]] = {id(learner): [] for _, learner in learnt}
    tested = _union(learner.job.test for _, learner in learnt)
    if len(tested):
        spread(
            [learner for _, learner in learnt],
            groups(tested, None),
            lambda learner, group: said[id(learner)].extend(learner.predict(group)),
        )
    for work, learner in learnt:
        trained: Trained = learner.trained(said[id(learner)])
        work.draft.finish(trained)
        status.done(work)


def _one_after_the_other(learners: Sequence[Learner], groups: Iterable[Group], visit: Visit) -> None:
    for group in groups:
        for learner in learners:
            visit(learner, group)


def _side_by_side(pool: ThreadPoolExecutor, learners: Sequence[Learner], groups: Iterable[Group], visit: Visit) -> None:
    """Every learner visits every group, in order; no group is let in before the last but one has been left."""

    def after(before: "Future[None] | None", learner: Learner, group: Group) -> None:
        if before is not None:
            before.result()  # begun earlier, as the pool takes tasks in turn
        visit(learner, group)

    last: list[Future[None] | None] = [None] * len(learners)
    for group in groups:
        here = [pool.submit(after, before, learner, group) for before, learner in zip(last, learners, strict=True)]
        _results(last)
        last = list(here)
        del group, here
    _results(last)


def _results(futures: Iterable["Future[None] | None"]) -> None:
    """Wait for all, or for the first error."""
    done, _ = wait([future for future in futures if future is not None], return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()


@contextmanager
def _pool(n_workers: int, cores: int, status: TrainingStatus) -> Iterator[ThreadPoolExecutor]:
    """Threads that have so many cores each; an error or Ctrl-C stops all of them at the next minibatch."""
    before = torch.get_num_threads()
    _choose_kernels()
    with ThreadPoolExecutor(max(1, n_workers), initializer=torch.set_num_threads, initargs=(cores,)) as pool:
        try:
            yield pool
        except BaseException:
            status.stop.set()
            pool.shutdown(cancel_futures=True)
            raise
        finally:
            torch.set_num_threads(before)


def _choose_kernels() -> None:
    """Do once, in one thread, whatever chooses its kernels when it is first called.

    MKL and its vector functions look at the processor then. Where two threads are the first, one may get other kernels
    for a moment, which round otherwise: of a hundred runs in processes of their own, a few differed in the last digit.
    """
    square = torch.ones(32, 32, requires_grad=True)
    product = torch.bmm(square[None], square[None])[0]
    score = torch.addmm(square[0], product.tanh(), square.exp()) @ square[0]
    score.softmax(0).sum().backward()  # type: ignore[no-untyped-call]


def _union(parts: Iterable[Any]) -> Any:
    return np.unique(np.concatenate([np.empty(0, np.int64), *parts]))


def most_epochs(problem: Problem) -> int:
    """How many epochs a model may take at most; of one that is solved, its solution counts as one."""
    system, options = problem.system, problem.options
    if system.fit is not None:
        return 1
    return sum(stage.epochs for stage in system.stages(options)) if system.stages else int(options["epochs"])
