"""Models that learn side by side learn what each would have learnt alone."""

import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from heads.errors import TrainingError
from heads.training import joint
from heads.training.features import IN_FLIGHT, Features, Group
from heads.training.joint import Work, model_bytes, train_together
from heads.training.learner import Job, Learner, Trained
from heads.training.solving import solving_bytes

from ..conftest import MemoryCheckpoints

SMALL = ["attention=4", "hidden=4", "epochs=3", "lr=0.01", "batch=8"]
STREAM = 100_000
"""Bytes of memory: too few for the features, which stream."""
BLOCK_BYTES = 8 * 3 * 16 * 24 * 2


@pytest.fixture(autouse=True)
def two_blocks_in_a_group(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a store of some size would have it; here what reading holds by itself is more than all features."""
    share = 1 - joint.SHARE_OF_MODELS
    monkeypatch.setattr(Features, "stream_bytes", property(lambda self: int(2 * IN_FLIGHT * BLOCK_BYTES / share)))


def jobs_of(setting: Any, n: int, *, n_tasks: int | None = None) -> list[Job]:
    """Models whose rows overlap, with different numbers of epochs before they stop."""
    found = []
    for i in range(n):
        rows = np.random.default_rng(i).permutation(60)
        about = {"fit": np.sort(rows[:35]), "inner": np.sort(rows[35:48]), "test": np.sort(rows[48:]), "seed": 10 + i}
        found += [setting.job(part=i, task=task, **about) for task in ([None] if n_tasks is None else range(n_tasks))]
    return found


def assert_same(ours: Trained, theirs: Trained, *, within: float = 0.0) -> None:
    assert ours.history == theirs.history if not within else len(ours.history) == len(theirs.history)
    assert ours.weights.keys() == theirs.weights.keys()
    for name, value in ours.weights.items():
        assert torch.allclose(value, theirs.weights[name], rtol=0, atol=within), name
    np.testing.assert_allclose(ours.predicted, theirs.predicted, rtol=0, atol=within)
    assert ours.attention.keys() == theirs.attention.keys()
    for name, values in ours.attention.items():
        np.testing.assert_allclose(values, theirs.attention[name], rtol=0, atol=within)


@pytest.fixture
def waves(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models began to learn together, each time."""
    found: list[int] = []
    epochs = joint._epochs

    def spy(works: Any, *rest: Any) -> Any:
        found.append(len(works))
        return epochs(works, *rest)

    monkeypatch.setattr(joint, "_epochs", spy)
    return found


@pytest.mark.parametrize(
    ("system", "n_tasks"), [("amtl", None), ("amtl-single", 2)], ids=["all tasks at once", "a model for each task"]
)
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize(("memory_bytes", "room"), [(10**9, None), (STREAM, 10), (STREAM, 2)])
def test_models_trained_together_are_those_trained_alone(
    setting_of: Callable[..., Any],
    waves: list[int],
    monkeypatch: pytest.MonkeyPatch,
    system: str,
    n_tasks: int | None,
    threads: int,
    memory_bytes: int,
    room: int | None,
) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    assert setting.features.resident == (room is None)
    problem = setting.problem(system, *SMALL)
    jobs = jobs_of(setting, 4 if n_tasks is None else 2, n_tasks=n_tasks)
    if room is not None:
        size = int(joint.SHARE_OF_MODELS * setting.features.stream_bytes) // room
        monkeypatch.setattr(joint, "most_bytes", lambda works: size)
    found = setting.train(problem, *jobs, threads=threads)
    assert waves == {None: [1, 1, 1, 1], 10: [4], 2: [2, 2]}[room]
    assert [each.job.name for each in found] == [job.name for job in jobs]
    for each, job in zip(found, jobs, strict=True):
        (alone,) = setting.train(problem, job)
        assert_same(each, alone)


def test_models_of_a_sweep_learn_what_they_would_alone(setting_of: Callable[..., Any]) -> None:
    """Of several sizes and rates, some standardised and some not, from one stream."""
    setting = setting_of("grid", memory_bytes=STREAM)
    changes = (["lr=0.03"], ["hidden=8"], ["standardise=false", "epochs=5"], ["batch=20"])
    problems = [setting.problem("amtl", *SMALL, *some) for some in changes]
    every = [MemoryCheckpoints() for _ in problems]
    job = setting.job()
    works = [Work(problem, job, kept) for problem, kept in zip(problems, every, strict=True)]
    train_together(works, setting.features, on_progress=lambda *_: None, threads=1)
    for problem, kept in zip(problems, every, strict=True):
        assert_same(kept.trained[job.name], setting.train(problem, job)[0])


def test_the_largest_model_of_a_sweep_says_how_many_fit(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    small, large = (setting.problem("amtl", *SMALL, change) for change in ("hidden=4", "hidden=64"))
    works = [Work(problem, setting.job(), MemoryCheckpoints()) for problem in (small, large, small)]
    assert joint.most_bytes(works) == model_bytes(large, setting.job()) > model_bytes(small, setting.job())


def test_the_last_model_may_have_all_threads_to_itself(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    jobs = jobs_of(setting, 3)
    problem = setting.problem("amtl", *SMALL)
    for each, job in zip(setting.train(problem, *jobs, threads=2), jobs, strict=True):
        assert_same(each, setting.train(problem, job)[0], within=1e-5)
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
def test_models_that_are_finished_are_not_trained_again_and_change_nothing_for_the_others(
    setting_of: Callable[..., Any], waves: list[int], memory_bytes: int
) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    problem, jobs = setting.problem("amtl", *SMALL), jobs_of(setting, 5)
    whole, part = MemoryCheckpoints(), MemoryCheckpoints()
    setting.train(problem, *jobs, threads=2, kept=whole)
    part.trained = {name: whole.trained[name] for name in (jobs[0].name, jobs[3].name)}
    waves.clear()
    again = setting.train(problem, *jobs, threads=2, kept=part)  # `MemoryCheckpoints.finish` refuses to be told twice
    assert sum(waves) == 3
    for each in again:
        assert_same(each, whole.trained[each.job.name])
    waves.clear()
    setting.train(problem, *jobs, kept=part)
    assert waves == []


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
@pytest.mark.parametrize("system", ["amtl", "ridge"])
def test_no_model_sees_a_row_outside_its_own_until_it_is_tested(
    setting_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, system: str, memory_bytes: int
) -> None:
    setting = setting_of("grid", memory_bytes=10 * memory_bytes if system == "ridge" else memory_bytes)
    taken: dict[int, set[int]] = {}
    asking = threading.local()
    take = Group.batch

    def spy(self: Group, rows: NDArray[np.int64], *rest: Any, **kept: Any) -> Any:
        taken.setdefault(getattr(asking, "who", 0), set()).update(rows.tolist())
        return take(self, rows, *rest, **kept)

    def named(method: Callable[..., Any]) -> Callable[..., Any]:
        def call(self: Learner, *args: Any) -> Any:
            asking.who = self.job.part
            return method(self, *args)

        return call

    monkeypatch.setattr(Group, "batch", spy)
    for name in ("learn_moments", "learn", "validate"):
        monkeypatch.setattr(Learner, name, named(getattr(Learner, name)))
    jobs = [replace(job, test=np.arange(0)) for job in jobs_of(setting, 3 if system == "amtl" else 1)]
    setting.train(setting.problem(system, *(SMALL if system == "amtl" else [])), *jobs, threads=2)
    assert taken == {job.part: {*job.fit.tolist(), *job.inner.tolist()} for job in jobs}


@pytest.mark.parametrize("system", ["amtl", "ridge", "linear"])
def test_neither_labels_nor_features_of_the_test_rows_change_a_weight(
    setting_of: Callable[..., Any], as_features: Callable[..., Features], world, system: str
) -> None:
    honest = setting_of("grid")
    job = jobs_of(honest, 1)[0]
    values, labels = world.grid.astype(np.float32), honest.labels.copy()
    values[job.test], labels[job.test] = 99, -0.5
    false = replace(honest, features=as_features(values, block_rows=8), labels=labels)
    (left,), (right,) = (
        each.train(each.problem(system, *([] if system == "ridge" else ["epochs=2"])), job) for each in (honest, false)
    )
    assert all(torch.equal(left.weights[name], right.weights[name]) for name in left.weights)
    assert not np.allclose(left.predicted, right.predicted)


# ------------------------------------------------------------------------------------------ errors and progress


def assert_at_rest(kept: MemoryCheckpoints) -> None:
    """Nobody trains any more, epochs of a few milliseconds."""
    n_checkpoints = kept.n_checkpoints
    time.sleep(0.3)
    assert kept.n_checkpoints == n_checkpoints


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
def test_an_error_in_one_model_stops_all_soon(
    setting_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, memory_bytes: int
) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    endless = setting.problem("amtl", *SMALL, "epochs=1000000", "patience=0")
    other = setting.problem("linear", "epochs=10")
    jobs = jobs_of(setting, 2)
    kept, began = MemoryCheckpoints(), time.monotonic()
    works = [Work(endless, jobs[0], kept), Work(other, jobs[1], kept)]
    end_epoch = Learner.end_epoch

    def fail(self: Learner) -> None:
        if self.problem is other and len(self.history) == 3:
            raise TrainingError("the disk is full")
        end_epoch(self)

    monkeypatch.setattr(Learner, "end_epoch", fail)
    with pytest.raises(TrainingError, match="the disk is full"):
        train_together(works, setting.features, on_progress=lambda *_: None, threads=2)
    assert time.monotonic() - began < 20
    assert_at_rest(kept)


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
def test_ctrl_c_while_an_epoch_is_told_stops_all_soon(setting_of: Callable[..., Any], memory_bytes: int) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    problem = setting.problem("amtl", *SMALL, "epochs=1000000", "patience=0")
    kept = MemoryCheckpoints()
    works = [Work(problem, job, kept) for job in jobs_of(setting, 3)]

    def interrupt(stage: str, done: int, total: int) -> None:
        if done > 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_together(works, setting.features, on_progress=interrupt, threads=2)
    assert_at_rest(kept)


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
@pytest.mark.parametrize("system", ["amtl", "ridge"])
def test_progress_rises_to_the_whole_and_counts_what_was_finished_before(
    setting_of: Callable[..., Any], memory_bytes: int, system: str
) -> None:
    setting = setting_of("grid", memory_bytes=10 * memory_bytes if system == "ridge" else memory_bytes)
    changes = [*SMALL, "epochs=6", "patience=1"] if system == "amtl" else []
    each = 6 if system == "amtl" else 1
    problem, jobs, kept = setting.problem(system, *changes), jobs_of(setting, 3), MemoryCheckpoints()
    setting.train(problem, jobs[1], kept=kept)
    told: list[tuple[str, int, int]] = []
    works = [Work(problem, job, kept) for job in jobs]
    train_together(works, setting.features, on_progress=lambda *one: told.append(one), threads=2)
    assert told[0] == ("train", each, 3 * each)
    assert told[-1] == ("train", 3 * each, 3 * each)
    done = [n for _, n, _ in told]
    assert done == sorted(done)


@pytest.mark.parametrize(("system", "tensors"), [("ridge", "grid"), ("svr", "grid"), ("amtl-plus", "grid whole")])
def test_heads_that_are_solved_side_by_side_are_as_each_would_be_alone(
    setting_of: Callable[..., Any], system: str, tensors: str
) -> None:
    setting = setting_of(*tensors.split())
    problem, jobs = setting.problem(system), jobs_of(setting, 5)
    for ours, job in zip(setting.train(problem, *jobs, threads=3), jobs, strict=True):
        assert_same(ours, *setting.train(problem, job))


@pytest.mark.parametrize(("room", "at_once"), [(1, 1), (2, 2), (9, 3)])
def test_as_many_are_solved_side_by_side_as_memory_has_room_for(
    setting_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, room: int, at_once: int
) -> None:
    plenty = setting_of("grid")
    problem, jobs = plenty.problem("ridge"), jobs_of(plenty, 6)
    memory_bytes = plenty.features.n_bytes + room * solving_bytes(problem, jobs[0])
    setting = setting_of("grid", memory_bytes=2 * memory_bytes)
    setting.features.load()
    setting.features.memory_bytes = memory_bytes
    here, most, lock = [0], [0], threading.Lock()
    solve = joint.solve

    def noticed(*args: Any) -> Trained:
        with lock:
            here[0] += 1
            most[0] = max(most[0], here[0])
        time.sleep(0.05)
        trained = solve(*args)
        with lock:
            here[0] -= 1
        return trained

    monkeypatch.setattr(joint, "solve", noticed)
    setting.train(problem, *jobs, threads=3)
    assert most[0] == at_once


def test_ctrl_c_does_not_wait_for_a_solution(setting_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    setting, solve, go_on = setting_of("grid"), joint.solve, threading.Event()
    problem, jobs, kept = setting.problem("ridge"), jobs_of(setting, 4), MemoryCheckpoints()

    def slow(problem: Any, job: Job, features: Features) -> Trained:
        if job is not jobs[0]:
            go_on.wait(60)
        return solve(problem, job, features)

    def interrupt(stage: str, done: int, total: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(joint, "solve", slow)
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        train_together([Work(problem, job, kept) for job in jobs], setting.features, on_progress=interrupt, threads=2)
    assert time.monotonic() - began < 20
    go_on.set()
    time.sleep(0.5)
    assert set(kept.trained) <= {jobs[0].name}  # what comes too late is dropped


def test_estimators_that_do_not_fit_in_memory_say_how_much_they_need(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid", memory_bytes=STREAM)
    with pytest.raises(TrainingError, match=r"'ridge' is solved in memory and needs 691\.2 kB for 50 images of 1152"):
        setting.train(setting.problem("ridge"), setting.job())


@pytest.mark.parametrize(("system", "tensors"), [("svr", ("grid",)), ("amtl-plus", ("grid", "whole"))])
def test_what_compares_every_image_with_every_other_counts_it(
    setting_of: Callable[..., Any], system: str, tensors: tuple[str, ...]
) -> None:
    """Features that just fit leave no room for the comparisons."""
    plenty = setting_of(*tensors)
    problem, job = plenty.problem(system), plenty.job()
    beside = problem.system.fit_bytes(50, plenty.features.shapes)
    assert beside >= 2 * 4 * 50**2
    width = sum(int(np.prod(shape)) for shape in plenty.features.shapes)
    for memory_bytes, fits in ((12 * 50 * width + beside, True), (12 * 50 * width + beside - 1, False)):
        plenty.features._resident = None  # streaming: only what solving needs counts
        plenty.features.memory_bytes = memory_bytes
        if fits:
            assert len(plenty.train(problem, job)) == 1
        else:
            with pytest.raises(TrainingError, match=f"'{system}' is solved in memory and needs"):
                plenty.train(problem, job)


@pytest.mark.parametrize("memory_bytes", [10**9, STREAM], ids=["in memory", "streamed"])
def test_options_that_diverge_do_not_end_the_others(setting_of: Callable[..., Any], memory_bytes: int) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    good = setting.problem("amtl", *SMALL)
    bad = setting.problem("linear", "lr=1e30", "epochs=3", "patience=0")
    jobs, kept, told = jobs_of(setting, 2), MemoryCheckpoints(), []
    works = [Work(bad, replace(job, repeat=1), kept) for job in jobs] + [Work(good, job, kept) for job in jobs]
    lost = train_together(works, setting.features, on_progress=lambda *one: told.append(one), threads=2)
    assert set(lost) == {bad}
    assert "the loss of repeat1-fold" in str(lost[bad])
    assert set(kept.trained) == {job.name for job in jobs}
    for job in jobs:
        assert_same(kept.trained[job.name], *setting.train(good, job))
    assert set(train_together(works[:2], setting.features, on_progress=lambda *_: None, threads=2)) == {bad}


# ------------------------------------------------------------------------------------------ how they are spread


@given(n_epochs=st.lists(st.integers(0, 6), max_size=7), threads=st.integers(1, 3), at_once=st.integers(1, 5))
def test_models_take_turns_and_whoever_is_behind_goes_first(n_epochs, threads, at_once) -> None:
    begun, ended, most, lock = [0], [0], [0], threading.Lock()
    log: list[tuple[int, int]] = []

    def learn(number: int) -> Any:
        with lock:
            begun[0] += 1
            most[0] = max(most[0], begun[0] - ended[0])
        for epoch in range(n_epochs[number]):
            log.append((number, epoch))
            yield epoch + 1
        ended[0] += 1

    relay = joint._RoundRobin(range(len(n_epochs)), learn)  # type: ignore[arg-type]
    with joint.ThreadPoolExecutor(threads) as pool:
        for future in [pool.submit(relay.run, at_once) for _ in range(threads)]:
            future.result()
    assert sorted(log) == [(number, epoch) for number, n in enumerate(n_epochs) for epoch in range(n)]
    assert most[0] <= at_once
    if threads == 1 and at_once >= len(n_epochs):
        assert [epoch for _, epoch in log] == sorted(epoch for _, epoch in log)


class Slow(Learner):
    """Notes who visited which group when, and takes its time."""

    def __init__(self, number: int, log: list[tuple[str, int, int]]) -> None:
        self.number, self.log = number, log

    def visit(self, group: int) -> None:
        self.log.append(("in", self.number, group))
        time.sleep(0.001 * ((self.number * 7 + group * 3) % 5))
        self.log.append(("out", self.number, group))


@given(n_learners=st.integers(1, 5), n_groups=st.integers(0, 6), threads=st.integers(1, 3))
def test_every_learner_visits_every_group_in_order_and_few_groups_are_open(n_learners, n_groups, threads) -> None:
    log: list[tuple[str, int, int]] = []
    let_in: list[tuple[int, int]] = []

    def groups() -> Any:
        for group in range(n_groups):
            let_in.append((group, len([1 for what, _, left in log if what == "out" and left == group - 2])))
            yield group

    learners = [Slow(number, log) for number in range(n_learners)]
    with joint.ThreadPoolExecutor(threads) as pool:
        joint._side_by_side(pool, learners, groups(), Slow.visit)
    for number in range(n_learners):
        mine = [(what, group) for what, who, group in log if who == number]
        assert mine == [(what, group) for group in range(n_groups) for what in ("in", "out")]
    assert all(n_left == n_learners for group, n_left in let_in if group >= 2)
