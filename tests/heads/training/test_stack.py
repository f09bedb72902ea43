"""Models that learn in a stack learn what each would have learnt alone: batches, dropout, rates, stops are its own."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems import find_system
from heads.training import joint, stack
from heads.training.joint import Work, train_together
from heads.training.learner import Job, Learner, Trained
from heads.training.stack import Stack, Stacks

from ..conftest import MemoryCheckpoints

WITHIN = 2e-5
"""Of a weight after some twenty steps in float32."""
SMALL = ["epochs=4", "lr=0.01", "batch=8"]


def jobs_of(setting: Any, *sizes: int, task: int | None = None) -> list[Job]:
    """Models that learn from so many rows each, all others than their neighbours'."""
    found = []
    for i, size in enumerate(sizes):
        rows = np.random.default_rng(i).permutation(60)
        parts = {"fit": rows[:size], "inner": rows[size : size + 10], "test": rows[size + 10 :]}
        about = {name: np.sort(part) for name, part in parts.items()}
        found.append(setting.job(part=i, task=task, seed=10 + i, **about))
    return found


def assert_alike(ours: Trained, theirs: Trained, *, within: float = WITHIN) -> None:
    assert [(epoch.stage, epoch.epoch, epoch.best) for epoch in ours.history] == [
        (epoch.stage, epoch.epoch, epoch.best) for epoch in theirs.history
    ]
    for mine, other in zip(ours.history, theirs.history, strict=True):
        assert mine.train_loss == pytest.approx(other.train_loss, rel=1e-5, abs=1e-6)
        assert mine.val_loss == pytest.approx(other.val_loss, rel=1e-5, abs=1e-6)
    assert ours.weights.keys() == theirs.weights.keys()
    for name, value in ours.weights.items():
        assert torch.allclose(value, theirs.weights[name], rtol=1e-5, atol=within), name
    np.testing.assert_allclose(ours.predicted, theirs.predicted, rtol=1e-5, atol=10 * within)
    for name, values in ours.attention.items():
        np.testing.assert_allclose(values, theirs.attention[name], rtol=1e-5, atol=10 * within)


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many models were in each stack that was made and found to work."""
    found: list[int] = []
    works = Stack.works

    def spy(self: Stack) -> bool:
        if said := works(self):
            found.append(len(self.learners))
        return said

    monkeypatch.setattr(Stack, "works", spy)
    return found


@pytest.mark.parametrize(
    ("system", "tensor", "changes"),
    [
        ("amtl", "grid", ["attention=4", "hidden=4"]),
        ("amtl-separate", "grid", ["attention=4", "hidden=4"]),
        ("amtl-swapped", "grid", ["attention=4", "hidden=4", "optimiser=adamw", "weight_decay=0.1"]),
        ("mtl", "whole", ["width=16"]),
        ("linear", "whole", []),
        ("mlp", "whole", ["hidden1=8", "hidden2=6", "inner=0.1", "patience=2", "lr_every=2"]),
        ("personality-frozen", "whole", ["hidden1=8", "hidden2=6", "last_epochs=2", "inner=0.1", "patience=2"]),
    ],
)
def test_a_stack_learns_what_its_models_learn_alone(
    setting_of: Callable[..., Any], stacks: list[int], system: str, tensor: str, changes: list[str]
) -> None:
    setting = setting_of(tensor)
    problem = setting.problem(system, *SMALL, *changes)
    jobs = jobs_of(setting, 40, 33, 40, 17)
    found = setting.train(problem, *jobs, stacked=True)
    assert stacks[0] == 4
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0])


@pytest.mark.parametrize("kind", ["multiclass", "binary"])
def test_classes_and_missing_labels_too(setting_of: Callable[..., Any], stacks: list[int], kind: Any) -> None:
    rng = np.random.default_rng(0)
    if kind == "multiclass":
        target = Target(kind, ("mood",), ("sad", "calm", "glad"))
        labels = rng.integers(3, size=(60, 1)).astype(np.float32)
    else:
        target = Target(kind, ("sharp", "old"))
        labels = rng.integers(2, size=(60, 2)).astype(np.float32)
    labels[rng.random(labels.shape) < 0.1] = np.nan
    setting = setting_of("whole", labels=labels, target=target)
    # Adam would make steps of gradients that are rounding errors, as of features that do not vary.
    problem = setting.problem("moe" if kind == "multiclass" else "mlp", *SMALL, "optimiser=sgd")
    jobs = jobs_of(setting, 40, 30, 40)
    for each, job in zip(setting.train(problem, *jobs, stacked=True), jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0])
    assert stacks[0] == 3


def test_models_that_end_leave_the_stack(setting_of: Callable[..., Any], stacks: list[int]) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", "batch=8", "lr=0.05", "epochs=12", "patience=1")
    jobs = jobs_of(setting, 40, 40, 40, 33, 20)
    found = setting.train(problem, *jobs, stacked=True)
    assert len({len(each.history) for each in found}) > 1
    assert stacks[0] == 5
    assert len(stacks) > 1
    assert stacks == sorted(stacks, reverse=True)
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0], within=5e-5)


def test_the_models_of_a_sweep_share_a_stack_where_only_numbers_of_training_differ(
    setting_of: Callable[..., Any], stacks: list[int]
) -> None:
    setting = setting_of("grid")
    small = ["attention=4", "hidden=4", *SMALL]
    problems = [setting.problem("amtl", *small, *some) for some in (["lr=0.03"], ["batch=20"], ["hidden=8"], [])]
    every = [MemoryCheckpoints() for _ in problems]
    (job,) = jobs_of(setting, 40)
    works = [Work(problem, job, kept) for problem, kept in zip(problems, every, strict=True)]
    train_together(works, setting.features, on_progress=lambda *_: None, threads=1, stacked=True)
    assert stacks == [3]
    for problem, kept in zip(problems, every, strict=True):
        assert_alike(kept.trained[job.name], setting.train(problem, job)[0])


def test_one_model_for_each_task_is_one_stack(setting_of: Callable[..., Any], stacks: list[int]) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl-single", "attention=4", "hidden=4", *SMALL)
    jobs = [replace(job, task=task) for job in jobs_of(setting, 40, 33) for task in (0, 1)]
    found = setting.train(problem, *jobs, stacked=True)
    assert stacks == [4]
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0])


def test_features_that_stream(
    setting_of: Callable[..., Any], stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of("grid", memory_bytes=100_000)
    monkeypatch.setattr(joint, "_free_bytes", lambda device, features: 10**9)  # of a GPU beside a small --memory
    assert not setting.features.resident
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    jobs = jobs_of(setting, 40, 33)
    found = setting.train(problem, *jobs, stacked=True)
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job, stacked=True)[0])
    assert stacks[0] == 2


def test_a_stack_takes_as_many_models_as_there_is_memory_for(
    setting_of: Callable[..., Any], stacks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    monkeypatch.setattr(joint, "_free_bytes", lambda device, features: features.n_bytes + 4 * 10**6)
    monkeypatch.setattr(joint, "most_bytes", lambda works: 5 * 10**5)
    jobs = jobs_of(setting, 40, 33, 40, 17)
    found = setting.train(problem, *jobs, stacked=True)
    assert max(stacks) == 2
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0])


def room_for(n_models: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device whose memory holds so many models that learn, which no estimate has foreseen."""
    learn = Stack._learn

    def full(self: Stack, group: Any, some: slice, batches: Any) -> None:
        if len(self.learners) > n_models:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
        learn(self, group, some, batches)

    monkeypatch.setattr(Stack, "_learn", full)


@pytest.mark.parametrize(("room", "tried"), [(3, [5, 3]), (2, [5, 3, 2])])
def test_where_a_stack_does_not_fit_fewer_models_learn_at_a_time_and_it_is_said(
    setting_of: Callable[..., Any], stacks: list[int], monkeypatch: pytest.MonkeyPatch, room: int, tried: list[int]
) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    jobs, kept, notes = jobs_of(setting, 40, 33, 40, 17, 40), MemoryCheckpoints(), []
    with monkeypatch.context() as patch:
        room_for(room, patch)
        works = [Work(problem, job, kept) for job in jobs]
        about: dict[str, Any] = {"on_progress": lambda *_: None, "threads": 1, "stacked": True, "note": notes.append}
        train_together(works, setting.features, **about)
    assert notes == [
        f"the memory of cpu was too small for {more} models at a time: {fewer} from here on"
        for more, fewer in pairwise(tried)
    ]
    assert stacks[: len(tried)] == tried
    assert max(stacks[len(tried) :]) <= room, "what was too many is not tried again"
    for job in jobs:
        assert_alike(kept.trained[job.name], setting.train(problem, job)[0])


def test_a_model_that_does_not_fit_by_itself_ends_it(
    setting_of: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)

    def full(self: Learner, group: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    room_for(1, monkeypatch)
    monkeypatch.setattr(Learner, "learn", full)
    monkeypatch.setitem(stack._TOGETHER, full, Stack.learn)
    with pytest.raises(torch.OutOfMemoryError):
        setting.train(problem, *jobs_of(setting, 40, 33), stacked=True)


class Looking(nn.Module):
    """It looks at values to decide, which `vmap` cannot do for several models at once."""

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(features)
        return out if out.sum() > 0 else 2 * out


def test_what_vmap_refuses_trains_one_after_another(setting_of: Callable[..., Any], stacks: list[int]) -> None:
    setting = setting_of("whole")
    linear = find_system("linear")
    system = replace(linear, build=lambda shapes, target, options: Looking(shapes[0][0], target.n_outputs))
    problem = setting.problem(system, *SMALL)
    jobs = jobs_of(setting, 40, 33)
    found = setting.train(problem, *jobs, stacked=True)
    assert stacks == []
    for each, job in zip(found, jobs, strict=True):
        assert_alike(each, setting.train(problem, job)[0])


class Normalised(nn.Module):
    """Statistics of its batches are buffers that training changes."""

    def __init__(self, n_features: int, n_outputs: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(n_features, momentum=0.1)
        self.linear = nn.Linear(n_features, n_outputs)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.linear(self.norm(features))
        return out


def test_buffers_are_each_models_own(setting_of: Callable[..., Any]) -> None:
    """Whether `vmap` takes it or not: what is learnt is right."""
    setting = setting_of("whole")
    linear = find_system("linear")
    system = replace(linear, build=lambda shapes, target, options: Normalised(shapes[0][0], target.n_outputs))
    problem = setting.problem(system, *SMALL)
    jobs = jobs_of(setting, 40, 33)
    for each, job in zip(setting.train(problem, *jobs, stacked=True), jobs, strict=True):
        alone = setting.train(problem, job)[0]
        assert not torch.equal(alone.weights["model.norm.running_mean"], torch.zeros(1))
        assert_alike(each, alone)


def test_a_model_goes_on_within_a_stack_from_its_checkpoint(setting_of: Callable[..., Any]) -> None:
    """Its state between two epochs is its own, and not a part of the stack's."""
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    jobs = jobs_of(setting, 40, 33)
    states: dict[tuple[str, int], tuple[dict[str, Tensor], str]] = {}

    class Keeping(MemoryCheckpoints):
        def checkpoint(self, learner: Learner, *, in_step: int) -> None:
            tensors, facts = learner.state()
            states[learner.job.name, len(learner.history)] = ({n: v.clone() for n, v in tensors.items()}, facts)

    class GoingOn(MemoryCheckpoints):
        def restore(self, learner: Learner) -> bool:
            learner.restore(*states[learner.job.name, 2])
            return True

    undisturbed = setting.train(problem, *jobs, stacked=True, kept=Keeping())
    for each, other in zip(setting.train(problem, *jobs, stacked=True, kept=GoingOn()), undisturbed, strict=True):
        assert_alike(each, other, within=0)


def test_models_own_their_weights_when_the_stack_is_gone(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    learners = [Learner(problem, job) for job in jobs_of(setting, 40, 33)]
    stacks = Stacks()
    (group,) = setting.features.groups()
    for learner in learners:
        learner.begin_epoch()
    stacks.spread(learners, [group], Learner.learn)
    first = next(learners[0].inside.parameters())
    assert first.untyped_storage().nbytes() == 2 * first.nbytes
    stacks.spread(learners[:1], [group], Learner.validate)
    assert first.untyped_storage().nbytes() == first.nbytes


def test_batches_of_one_size_lie_side_by_side() -> None:
    def rows(n: int) -> NDArray[np.int64]:
        return np.arange(n)

    runs = [(each.start, each.stop) for each, _ in stack._runs([rows(3), rows(3), None, rows(2), rows(3)])]
    assert runs == [(0, 2), (3, 4), (4, 5)]


def test_models_with_as_many_rows_lie_side_by_side(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL)
    ((*alike,),) = stack._alike([Learner(problem, job) for job in jobs_of(setting, 40, 33, 40, 33)])
    assert [len(learner.fit) for learner in alike] == [33, 33, 40, 40]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_on_a_gpu_too(setting_of: Callable[..., Any], stacks: list[int], precision: Any) -> None:
    """What the GPU draws and rounds is not what the CPU does, so that alone is alone on the GPU."""
    setting = setting_of("grid")
    cuda = {"device": torch.device("cuda", 0), "precision": precision}
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL, "optimiser=sgd", **cuda)
    jobs = jobs_of(setting, 40, 33, 40, 17)
    found = setting.train(problem, *jobs, stacked=True)
    assert stacks[0] == 4
    within = 1e-4 if precision == "fp32" else 0.02
    for each, job in zip(found, jobs, strict=True):
        alone = setting.train(problem, job)[0]
        assert len(alone.history) == len(each.history)
        for name, value in each.weights.items():
            assert torch.allclose(value, alone.weights[name], atol=within), name
        np.testing.assert_allclose(each.predicted, alone.predicted, atol=10 * within)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_nobody_waits_for_the_gpu_between_two_steps(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    device = torch.device("cuda", 0)
    problem = setting.problem("amtl", "attention=4", "hidden=4", *SMALL, device=device)
    learners = [Learner(problem, job) for job in jobs_of(setting, 40, 33)]
    (group,) = setting.features.groups()
    there = group.on(device)
    for learner in learners:
        learner.begin_epoch()
    side_by_side = Stack(learners)
    side_by_side.learn(there)  # what is made once, is
    for learner in learners:
        learner.begin_epoch()
    torch.cuda.set_sync_debug_mode("error")
    try:
        side_by_side.learn(there)
    finally:
        torch.cuda.set_sync_debug_mode("default")
