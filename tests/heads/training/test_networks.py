"""Training of whole networks: what is frozen, parts of a batch, a GPU that is too small, a loss of a model's own."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heads.labels.target import Target
from heads.systems.layers import Dropout
from heads.systems.system import KINDS, Option, Options, Shape, Stage, System, from_pixels
from heads.training.features import Features
from heads.training.learner import Learner, Problem

from ..conftest import Setting

N = 30
TARGET = Target("regression", ("a",))


class Net(nn.Module):
    """A convolution with batch norm and dropout, then a linear map."""

    def __init__(self, *, norm: bool = True) -> None:
        super().__init__()
        self.trunk = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4) if norm else nn.Identity(), nn.ReLU(), Dropout(0.5 if norm else 0.0)
        )
        self.out = nn.Linear(4, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.out(self.trunk(pixels.permute(0, 3, 1, 2).float() / 255).mean((2, 3)))  # type: ignore[no-any-return]


def system(build: Callable[..., nn.Module], **more: Any) -> System:
    def made(shapes: tuple[Shape, ...], target: Target, options: Options) -> nn.Module:
        return build()

    own = {"epochs": Option(2, "ours", low=1), "batch": Option(6, "ours", low=1), "inner": Option(0.0, "ours")}
    options = from_pixels("ours", **own)
    return System(name="net", title="", source="", reads=("pixels",), kinds=KINDS, options=options, build=made, **more)


@pytest.fixture
def setting(as_features: Callable[..., Features]) -> Setting:
    rng = np.random.default_rng(0)
    features = as_features(rng.integers(256, size=(N, 8, 8, 3), dtype=np.uint8))
    return Setting(features, rng.normal(size=(N, 1)).astype(np.float32), TARGET, np.zeros(N, np.int64))


def learnt(setting: Setting, problem: Problem, n_epochs: int = 1) -> Learner:
    images = np.arange(N)
    learner = Learner(problem, setting.job(fit=images[:24], inner=images[:0], test=images[24:]))
    (group,) = setting.features.groups()
    for _ in range(n_epochs):
        learner.begin_epoch()
        learner.learn(group)
        learner.end_epoch()
    return learner


def test_a_frozen_part_is_the_same_in_every_parameter_and_buffer(setting: Setting) -> None:
    def stages(options: Options) -> tuple[Stage, ...]:
        return Stage(1, 0.01, parameters=("out.",)), Stage(1, 0.01)

    problem = setting.problem(system(Net, stages=stages))
    before = {name: value.clone() for name, value in learnt(setting, problem, 0).module.state_dict().items()}
    after = learnt(setting, problem).module.state_dict()
    for name, value in before.items():
        assert torch.equal(value, after[name]) == name.startswith("trunk."), name
    later = learnt(setting, problem, 2).module.state_dict()
    assert not torch.equal(before["trunk.1.running_mean"], later["trunk.1.running_mean"]), "it moves in the next stage"


def test_parts_of_a_batch_sum_to_its_gradients(setting: Setting) -> None:
    # By SGD: Adam steps as far whatever the gradients are multiplied by.
    problem = setting.problem(system(lambda: Net(norm=False)), "optimiser=sgd")
    whole = learnt(setting, problem).module.state_dict()
    for micro in (1, 2, 4):
        parts = learnt(setting, replace(problem, options={**problem.options, "micro": micro})).module.state_dict()
        for name, value in whole.items():
            assert torch.allclose(value, parts[name], atol=1e-6), (micro, name)


class TooLarge(Net):
    """A network of which a GPU holds so many photos at a time."""

    room = 2
    seen: list[int] = []  # noqa: RUF012

    def forward(self, pixels: Tensor) -> Tensor:
        self.seen.append(len(pixels))
        if len(pixels) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return super().forward(pixels)


def test_a_batch_that_is_too_large_for_a_gpu_goes_through_in_parts_from_then_on(setting: Setting) -> None:
    TooLarge.seen.clear()
    problem = setting.problem(system(lambda: TooLarge(norm=False)))
    found = learnt(setting, problem).module.state_dict()
    assert TooLarge.seen[:2] == [6, 3], "the batch, then half of it"
    assert max(TooLarge.seen[2:]) == 1, "then no more than fits"
    same = learnt(setting, setting.problem(system(lambda: Net(norm=False)))).module.state_dict()
    for name, value in same.items():
        assert torch.allclose(value, found[name], atol=1e-6), name


def test_a_single_photo_that_is_too_large_is_an_error(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TooLarge, "room", 0)
    with pytest.raises(torch.OutOfMemoryError):
        learnt(setting, setting.problem(system(TooLarge)))


class Own(Net):
    """It learns to say the opposite."""

    def training_loss(self, labels: Tensor, *features: Tensor) -> Tensor:
        return (self(features[0]) + labels).square().mean()


def test_a_model_may_learn_by_a_loss_of_its_own(setting: Setting) -> None:
    own = learnt(setting, setting.problem(system(lambda: Own(norm=False))))
    usual = learnt(setting, replace(setting.problem(system(lambda: Net(norm=False))), labels=-setting.labels))
    assert own.history[0].train_loss == pytest.approx(usual.history[0].train_loss, rel=1e-5)
    for name, value in usual.module.state_dict().items():
        assert torch.allclose(value, own.module.state_dict()[name], atol=1e-6), name


def test_the_longest_beginning_of_a_name_decides_its_rate() -> None:
    stage = Stage(1, 0.01, rates={"trunk": 0.001, "trunk.out": 0.1})
    assert stage.factor("trunk.0.weight") == pytest.approx(0.1)
    assert stage.factor("trunk.out.bias") == pytest.approx(10)
    assert stage.factor("out.weight") == 1
