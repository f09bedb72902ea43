"""One model in training: the loss, early stopping, stages, optimisers, seeds, and going on from a checkpoint."""

import json
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.special import logsumexp
from torch import Tensor, nn

from heads.errors import TrainingError
from heads.labels.target import KINDS, Kind, Target
from heads.systems import find_system
from heads.systems.system import Stage, System
from heads.training.features import Group
from heads.training.learner import Epoch, Job, Learner, Problem, Trained, assemble
from heads.training.losses import masked_loss, predictions
from heads.training.prediction import cut

SMALL = ["attention=4", "hidden=4", "epochs=4", "lr=0.01"]
NONE = np.arange(0)


@pytest.fixture
def setting(setting_of: Callable[..., Any]) -> Any:
    return setting_of("whole")


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows of every batch that anybody takes from a group."""
    batches: list[list[int]] = []
    take = Group.batch

    def spy(self: Group, rows: NDArray[np.int64], *rest: Any, **kept: Any) -> Any:
        batches.append(rows.tolist())
        return take(self, rows, *rest, **kept)

    monkeypatch.setattr(Group, "batch", spy)
    return batches


# ------------------------------------------------------------------------------------------ the loss


def loss_in_numpy(kind: Kind, outputs: NDArray[np.float64], labels: NDArray[np.float64]) -> float:
    """Row by row, as a book would write it."""
    total = 0.0
    for k in range(labels.shape[1]):
        errors = []
        for output, label in zip(outputs, labels[:, k], strict=True):
            if np.isnan(label):
                continue
            if kind == "multiclass":
                errors.append(logsumexp(output) - output[int(label)])
            elif kind == "regression":
                errors.append((output[k] - label) ** 2)
            else:
                said = 1 / (1 + np.exp(-output[k]))
                errors.append(-np.log(said) if label else -np.log(1 - said))
        total += float(np.mean(errors)) if errors else 0.0
    return total


def target_of(kind: Kind, n: int) -> Target:
    names = tuple(f"t{i}" for i in range(n))
    return Target(kind, ("mood",), names) if kind == "multiclass" else Target(kind, names)


@st.composite
def said_and_labelled(draw: st.DrawFn) -> tuple[Target, NDArray[np.float64], NDArray[np.float64]]:
    kind, n, k = draw(st.sampled_from(KINDS)), draw(st.integers(1, 6)), draw(st.integers(1, 4))
    known = {
        "regression": st.floats(-1, 1),
        "binary": st.sampled_from([0.0, 1.0]),
        "multilabel": st.sampled_from([0.0, 1.0]),
        "multiclass": st.integers(0, k - 1).map(float),
    }[kind]
    shape = (n, 1) if kind == "multiclass" else (n, k)
    outputs = draw(arrays(np.float64, (n, k), elements=st.floats(-5, 5)))
    return target_of(kind, k), outputs, draw(arrays(np.float64, shape, elements=known | st.just(np.nan)))


@given(said_and_labelled())
def test_the_loss_is_the_sum_over_tasks_of_the_mean_over_known_labels(example) -> None:
    target, outputs, labels = example
    loss = masked_loss(target)(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert loss.item() == pytest.approx(loss_in_numpy(target.kind, outputs, labels), abs=1e-9)


@given(said_and_labelled())
def test_missing_labels_give_no_gradient_and_known_ones_do(example) -> None:
    target, values, labels = example
    outputs = torch.from_numpy(values).requires_grad_()
    masked_loss(target)(outputs, torch.from_numpy(labels)).backward()
    assert outputs.grad is not None
    missing = np.isnan(labels) if target.kind != "multiclass" else np.isnan(labels).repeat(target.n_outputs, 1)
    assert (outputs.grad.numpy()[missing] == 0).all()
    if target.kind in ("binary", "multilabel"):
        assert (outputs.grad.numpy()[~missing] != 0).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_outputs_mean(kind: Kind) -> None:
    outputs = torch.tensor([[0.0, 2.0], [-1.0, 1.0]])
    said = predictions(target_of(kind, 2), outputs).numpy()
    exps = np.exp(outputs.numpy())
    expected = {"regression": outputs.numpy(), "multiclass": exps / exps.sum(1, keepdims=True)}
    assert said == pytest.approx(expected.get(kind, exps / (1 + exps)))


# ------------------------------------------------------------------------------------------ early stopping


OVERFITS = ["epochs=30", "lr=0.05", "batch=8"]


def train(setting: Any, *changes: str, system: System | str = "linear", **job: Any) -> Trained:
    """One model; what it says is of the rows that stop it."""
    some = setting.job(**{"test": np.arange(40, 50), **job})
    return setting.train(setting.problem(system, *changes), some)[0]


def test_the_training_loss_falls(setting: Any) -> None:
    history = train(setting, "epochs=40", "patience=0", "lr=0.01").history
    assert [(epoch.stage, epoch.epoch) for epoch in history] == [(0, i) for i in range(40)]
    assert history[-1].train_loss < history[0].train_loss / 4


def test_the_weights_of_the_best_epoch_are_kept(setting: Any) -> None:
    trained = train(setting, *OVERFITS, "patience=5")
    losses = [epoch.val_loss for epoch in trained.history]
    best = int(np.argmin(losses))
    assert [epoch.epoch for epoch in trained.history if epoch.best] == [best]
    assert best < len(losses) - 1  # it went on for a while, and came back
    assert loss_in_numpy("regression", trained.predicted, setting.labels[40:50]) == pytest.approx(losses[best])
    stopped = train(setting, *OVERFITS[1:], f"epochs={best + 1}", "patience=0")
    for name, value in stopped.weights.items():
        assert torch.equal(value, trained.weights[name]), name


@pytest.mark.parametrize("patience", [1, 3])
def test_stops_after_as_many_epochs_without_a_better_one(setting: Any, patience: int) -> None:
    history = train(setting, "epochs=100", *OVERFITS[1:], f"patience={patience}").history
    best = next(epoch.epoch for epoch in history if epoch.best)
    assert len(history) == best + patience + 1 < 100


def test_without_patience_the_last_weights_are_kept(setting: Any) -> None:
    trained = train(setting, *OVERFITS, "patience=0")
    assert [epoch.epoch for epoch in trained.history if epoch.best] == [29]
    losses = [epoch.val_loss for epoch in trained.history]
    assert losses[-1] > min(losses)
    assert loss_in_numpy("regression", trained.predicted, setting.labels[40:50]) == pytest.approx(losses[-1])


def test_without_inner_rows_it_trains_to_the_end(setting: Any) -> None:
    history = train(setting, "epochs=5", "patience=1", inner=NONE).history
    assert [(epoch.val_loss, epoch.best) for epoch in history] == [(None, False)] * 4 + [(None, True)]


def test_the_history_has_the_losses_of_the_rows_it_says(setting: Any) -> None:
    """With a rate of 0 the model stays as it was, so both losses can be computed by hand."""
    changes = ["lr=0", "epochs=1", "batch=40"]
    (epoch,) = train(setting, *changes).history
    for rows, loss in ((np.arange(40), epoch.train_loss), (np.arange(40, 50), epoch.val_loss)):
        said = train(setting, *changes, test=rows).predicted
        assert loss_in_numpy("regression", said, setting.labels[rows]) == pytest.approx(loss)


# ------------------------------------------------------------------------------------------ stages and label sets


class Two(nn.Module):
    """A linear map for each of two tasks."""

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(n_features, 1), nn.Linear(n_features, 1)

    def forward(self, features: Tensor) -> Tensor:
        return torch.cat([self.first(features), self.second(features)], 1)


def in_stages(*stages: Stage) -> System:
    return replace(
        find_system("linear"), build=lambda shapes, target, options: Two(shapes[0][0]), stages=lambda options: stages
    )


FIRST, SECOND = Stage(3, 0.01, ("first",), (0,)), Stage(2, 0.02, ("second.weight", "first.bias"), (1,))


def test_stages_follow_each_other_and_move_only_their_parameters(setting: Any) -> None:
    weights = [
        train(setting, "patience=0", system=in_stages(*stages)).weights
        for stages in ((replace(FIRST, lr=0.0),), (FIRST,), (FIRST, SECOND))
    ]
    moved = [{n for n in after if not torch.equal(after[n], before[n])} for before, after in pairwise(weights)]
    assert moved[0] == {"model.first.weight", "model.first.bias"}
    assert moved[1] == {"model.second.weight"}  # the bias of the first has no part in the second task
    history = train(setting, "patience=0", system=in_stages(FIRST, SECOND)).history
    assert [(each.stage, each.epoch, each.best) for each in history] == [
        (0, 0, False), (0, 1, False), (0, 2, True), (1, 0, False), (1, 1, True)
    ]  # fmt: skip


def test_only_the_tasks_of_a_stage_count_and_images_without_a_label_in_them_are_left_out(
    setting: Any, seen: list[list[int]]
) -> None:
    labels = setting.labels.copy()
    labels[10:30, 0], labels[:5, 1] = np.nan, np.nan
    setting = replace(setting, labels=labels)
    job = setting.job(inner=NONE, test=NONE)
    changes = ["standardise=false", "batch=64", "patience=0"]
    (trained,) = setting.train(setting.problem(in_stages(FIRST, SECOND), *changes), job)
    assert [sorted(rows) for rows in seen] == [[*range(10), *range(30, 40)]] * 3 + [list(range(5, 40))] * 2
    first = [epoch.train_loss for epoch in trained.history if epoch.stage == 0]
    other = replace(setting, labels=labels * np.float32([1, -1]))  # the second task means the opposite
    (turned,) = other.train(other.problem(in_stages(FIRST, SECOND), *changes), job)
    assert [epoch.train_loss for epoch in turned.history if epoch.stage == 0] == first
    assert torch.equal(turned.weights["first.weight"], trained.weights["first.weight"])
    assert not torch.equal(turned.weights["second.weight"], trained.weights["second.weight"])


def test_each_stage_stops_early_and_keeps_its_own_best(setting: Any) -> None:
    stages = [replace(FIRST, epochs=60, lr=0.05), replace(SECOND, epochs=60, lr=0.05)]
    history = train(setting, "patience=2", "batch=8", system=in_stages(*stages)).history
    for stage in (0, 1):
        here = [epoch for epoch in history if epoch.stage == stage]
        assert int(np.argmin([epoch.val_loss for epoch in here])) == next(e.epoch for e in here if e.best)
        assert len(here) < 60


def test_minibatches_come_in_turn_from_each_label_set(setting_of: Callable[..., Any], seen: list[list[int]]) -> None:
    sets = np.repeat([0, 1], [15, 45])
    setting = setting_of("whole", sets=sets)
    linear = replace(find_system("linear"), alternate=True)
    changes = ["standardise=false", "batch=6", "epochs=2"]
    setting.train(setting.problem(linear, *changes), setting.job(inner=NONE, test=NONE))
    of_batch = [set(sets[rows].tolist()) for rows in seen]
    assert of_batch == [{0}, {1}, {0}, {1}, {1}, {1}] * 2  # 15 rows and 25 of the 40
    assert sorted(row for rows in seen[:6] for row in rows) == list(range(40))
    assert [len(rows) for rows in seen] == [8, 7, 7, 6, 6, 6] * 2
    assert seen[:6] != seen[6:]


@pytest.mark.parametrize(("n_first", "n_other"), [(12, 28), (28, 12)])
def test_an_epoch_may_be_that_of_one_label_set(
    setting_of: Callable[..., Any], seen: list[list[int]], n_first: int, n_other: int
) -> None:
    """As many minibatches of the other set come in turn, of photos drawn anew once all were seen."""
    first = np.arange(60) < n_first
    labels = np.where(np.stack([first, ~first], 1), np.float32(0.1), np.float32(np.nan))
    setting = setting_of("whole", labels=labels, sets=np.where(first, 0, 1))
    linear = replace(find_system("linear"), alternate=True, epoch_of=0)
    setting.train(
        setting.problem(linear, "standardise=false", "batch=4", "epochs=2"), setting.job(inner=NONE, test=NONE)
    )
    epoch = len(seen) // 2
    assert epoch == 2 * n_first // 4
    assert sorted(row for rows in seen[:epoch:2] for row in rows) == list(range(n_first))
    other = [row for rows in seen[1:epoch:2] for row in rows]
    assert {*other} <= {*range(n_first, 40)}
    assert len({*other}) == min(len(other), n_other)
    assert seen[:epoch] != seen[epoch:]


@given(n=st.integers(0, 300), size=st.integers(1, 70))
def test_minibatches_are_of_even_size_and_no_other_number_of_them_comes_nearer_to_what_was_asked(
    n: int, size: int
) -> None:
    parts = cut(np.arange(n), size)
    assert [int(row) for part in parts for row in part] == list(range(n))
    assert not parts or max(map(len, parts)) - min(map(len, parts)) <= 1
    assert abs(len(parts) - n / size) <= 0.5 or len(parts) == 1
    assert bool(parts) == bool(n)


# ------------------------------------------------------------------------------------------ steps


class Level(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor) -> Tensor:
        return self.level + torch.zeros(len(features), 2)


def test_the_rate_falls_as_the_options_say(setting: Any) -> None:
    """The gradient is 1 whatever happens, so a step is as long as the rate."""
    downhill = replace(
        find_system("linear"),
        build=lambda shapes, target, options: Level(),
        loss=lambda target: lambda outputs, labels: outputs.mean(),
    )
    changes = ["optimiser=sgd", "momentum=0", "lr=1", "lr_factor=0.5", "lr_every=2", "batch=40", "standardise=false"]
    levels = [0.0]
    for n in range(1, 7):
        (trained,) = setting.train(setting.problem(downhill, *changes, f"epochs={n}"), setting.job(inner=NONE))
        levels.append(float(trained.weights["level"]))
    assert np.diff(levels) == pytest.approx([-1, -1, -0.5, -0.5, -0.25, -0.25])


@pytest.mark.parametrize(
    ("changes", "make"),
    [
        ("optimiser=adam", torch.optim.Adam),
        ("optimiser=adam weight_decay=0.1", lambda p, lr: torch.optim.Adam(p, lr=lr, weight_decay=0.1)),
        ("optimiser=adamw weight_decay=0.5", lambda p, lr: torch.optim.AdamW(p, lr=lr, weight_decay=0.5)),
        ("optimiser=sgd momentum=0", torch.optim.SGD),
        (
            "optimiser=sgd momentum=0.8 weight_decay=0.2",
            lambda p, lr: torch.optim.SGD(p, lr=lr, momentum=0.8, weight_decay=0.2),
        ),
    ],
)
def test_steps_are_those_of_torch_by_hand(setting: Any, world, changes: str, make: Callable[..., Any]) -> None:
    options = [*changes.split(), "lr=0.01", "epochs=5", "batch=40", "standardise=false"]
    problem, job = setting.problem("linear", *options), setting.job(inner=NONE)
    (trained,) = setting.train(problem, job)
    torch.manual_seed(job.seed)
    model = assemble(problem.system, problem.shapes, problem.layouts, problem.target, problem.options)
    optimiser = make(model.parameters(), lr=0.01)
    for _ in range(5):
        optimiser.zero_grad()
        said = model(torch.from_numpy(world.whole[:40]).float())
        (said - torch.from_numpy(setting.labels[:40])).square().mean(0).sum().backward()
        optimiser.step()
    for name, value in model.state_dict().items():
        assert torch.allclose(trained.weights[name], value, atol=1e-5), name


def test_divergence_is_an_error_that_says_what_to_try(setting: Any) -> None:
    with pytest.raises(
        TrainingError, match=r"loss of repeat0-fold0 is not a number after epoch \d; try .* --set lr=1e\+29"
    ):
        train(setting, "lr=1e30", "standardise=false")


def test_a_loss_that_is_a_number_but_huge_is_divergence_in_a_sweep(setting: Any) -> None:
    huge = ("lr=10", "epochs=5", "patience=0")
    problem = setting.problem("linear", *huge)
    with pytest.raises(TrainingError, match=r"lost .* times what saying the mean of .* loses; .* --set lr=1$"):
        setting.train(replace(problem, swept=True), setting.job(inner=NONE))
    assert len(train(setting, *huge, inner=NONE).history) == 5  # alone, it is a run that says that it learnt nothing
    # A model that was cut short, whose outputs are still far off, has not got worse.
    assert len(train(setting, "lr=1e-9", "epochs=1", "patience=0", inner=NONE).history) == 1


@pytest.mark.parametrize("inner", [NONE, None], ids=["no inner photos", "inner photos"])
def test_history_says_what_the_mean_of_the_training_photos_would_lose(setting: Any, inner: Any) -> None:
    job = setting.job() if inner is None else setting.job(inner=inner)
    (trained,) = setting.train(setting.problem("linear", "epochs=2"), job)
    judged = job.inner if len(job.inner) else job.fit
    away = setting.labels[judged] - setting.labels[job.fit].mean(0)
    expected = np.square(away).mean(0).sum()
    assert [epoch.baseline_loss for epoch in trained.history] == pytest.approx([expected] * 2)


# ------------------------------------------------------------------------------------------ what a model says


@pytest.mark.parametrize("memory_bytes", [10**9, 1], ids=["in memory", "streamed"])
def test_predictions_and_attention_are_in_the_order_of_the_rows_that_are_tested(
    setting_of: Callable[..., Any], memory_bytes: int
) -> None:
    setting = setting_of("grid", memory_bytes=memory_bytes)
    problem, ascending = setting.problem("amtl", *SMALL), np.arange(45, 60)
    other = np.random.default_rng(0).permutation(ascending)
    first, second = (setting.train(problem, setting.job(test=test))[0] for test in (ascending, other))
    assert second.predicted == pytest.approx(first.predicted[other - 45], abs=1e-6)
    assert {name: values.shape for name, values in first.attention.items()} == {
        "blocks": (15, 3, 16),
        "backbones": (15, 2, 3),
    }
    for name, values in first.attention.items():
        assert values.sum(-1) == pytest.approx(1, abs=1e-5)
        assert second.attention[name] == pytest.approx(values[other - 45], abs=1e-6)


def test_half_precision_says_nearly_the_same(setting: Any) -> None:
    exact = train(setting, "epochs=5").predicted
    rough = setting.train(setting.problem("linear", "epochs=5", precision="bf16"), setting.job(test=np.arange(40, 50)))
    assert rough[0].predicted.dtype == np.float32
    assert 0 < np.abs(rough[0].predicted - exact).max() < 0.05


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    problem = setting.problem("amtl", *SMALL)
    first, again, other = (setting.train(problem, setting.job(seed=seed))[0] for seed in (3, 3, 4))
    assert all(torch.equal(first.weights[name], again.weights[name]) for name in first.weights)
    assert not np.array_equal(first.predicted, other.predicted)


def test_training_leaves_the_callers_random_numbers_alone(setting: Any) -> None:
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    train(setting, "epochs=1")
    assert torch.equal(torch.rand(1), expected)


# ------------------------------------------------------------------------------------------ going on


def epochs(learner: Learner, group: Group, n: int) -> None:
    for _ in range(n):
        learner.begin_epoch()
        learner.learn(group)
        learner.validate(group)
        learner.end_epoch()


def begun(problem: Problem, job: Job, group: Group) -> Learner:
    learner = Learner(problem, job)
    learner.learn_moments(group)
    learner.take_moments()
    return learner


@pytest.mark.parametrize("optimiser", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("n_before", [1, 3, 5])
def test_a_model_that_goes_on_from_a_checkpoint_learns_what_it_would_have_learnt(
    setting_of: Callable[..., Any], optimiser: str, n_before: int
) -> None:
    """With dropout, momentum, a rate that falls, and a stage that ends before some of the checkpoints."""
    setting = setting_of("grid")
    stages = (Stage(4, 0.01, ("primary",)), Stage(4, 0.01))
    system = replace(find_system("amtl"), stages=lambda options: stages)
    changes = [*SMALL, f"optimiser={optimiser}", "lr_factor=0.5", "batch=16", "patience=3"]
    problem, job = setting.problem(system, *changes), setting.job()
    (group,) = setting.features.groups()
    whole, part, other = begun(problem, job, group), begun(problem, job, group), Learner(problem, job)
    epochs(whole, group, 7)
    epochs(part, group, n_before)
    tensors, facts = part.state()
    assert other.restore({name: value.clone() for name, value in tensors.items()}, facts)
    assert not other.needs_moments
    epochs(other, group, 7 - n_before)
    assert other.history == whole.history
    assert all(isinstance(epoch, Epoch) for epoch in other.history)
    left, right = (learner.state()[0] for learner in (other, whole))
    assert left.keys() == right.keys()
    for name, value in left.items():
        assert torch.equal(value, right[name]), name


def test_a_checkpoint_that_is_of_no_such_model_is_not_gone_on_with(setting_of: Callable[..., Any]) -> None:
    """It may be of a draft that a stranger has forged."""
    setting = setting_of("grid")
    problem, job = setting.problem("amtl", *SMALL), setting.job()
    (group,) = setting.features.groups()
    part, other = begun(problem, job, group), Learner(problem, job)
    epochs(part, group, 2)
    tensors, facts = part.state()
    name = next(each for each in tensors if each.startswith("module."))
    moment = next(each for each in tensors if each.endswith(".exp_avg"))
    known = json.loads(facts)
    forged_tensors = [
        {each: value for each, value in tensors.items() if each != name},
        {**tensors, "module.more": torch.zeros(1)},
        {**tensors, name: torch.zeros(1)},
        {**tensors, name: tensors[name].double()},
        {**tensors, name: tensors[name] * torch.nan},
        {**tensors, moment: torch.zeros(1)},
        {**tensors, "optimiser.-1.exp_avg": torch.zeros(1)},
        {**tensors, "optimiser.999.exp_avg": torch.zeros(1)},
        {**tensors, "optimiser.\u00b2.exp_avg": torch.zeros(1)},
    ]
    changes: list[dict[str, Any]] = [
        {"stage": 1},
        {"stage": -1},
        {"epoch": 3},
        {"epoch": 10**9},
        {"best_epoch": 0},
        {"best_epoch": 9},
        {"history": []},
        {"history": [{}, {}]},
        {"history": known["history"] * 1000},
    ]
    forged_facts = ["", "[]", "[" * 100_000, "null", *(json.dumps({**known, **change}) for change in changes)]
    before = {each: value.clone() for each, value in other.state()[0].items()}, other.state()[1]
    for these, said in [*((each, facts) for each in forged_tensors), *((tensors, each) for each in forged_facts)]:
        assert not other.restore(these, said)
        assert other.needs_moments
        assert other.state()[1] == before[1]
        assert all(torch.equal(value, before[0][each]) for each, value in other.state()[0].items())
    assert other.restore(tensors, facts)


def test_a_model_that_has_learnt_holds_nothing_but_its_weights(setting_of: Callable[..., Any]) -> None:
    setting = setting_of("grid")
    problem, job = setting.problem("amtl", *SMALL, "patience=0"), setting.job()
    (group,) = setting.features.groups()
    learner = begun(problem, job, group)
    epochs(learner, group, 1)
    assert any(name.startswith("optimiser.") for name in learner.state()[0])
    epochs(learner, group, learner.n_epochs - 1)
    assert learner.done
    assert all(name.startswith("module.") for name in learner.state()[0])
    assert all(parameter.grad is None for parameter in learner.module.parameters())
