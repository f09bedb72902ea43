"""What holds for every system that trains from pixels, each as a miniature of itself.

A new system adds a line to MINIATURES: the options that make it small, the side of the photos that it gets, and the
kind of labels; the path through the code is that of the whole network.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from heads.errors import FeaturesError
from heads.labels.target import JointTarget, Target, parts_of
from heads.systems.aenet import STREAMS
from heads.systems.registry import find_system, load_systems
from heads.training.features import Features
from heads.training.learner import Job, Learner, Problem
from heads.training.prediction import arithmetic

from ..conftest import Setting

N = 24


RATINGS = Target("regression", ("a", "b"))


@dataclass(frozen=True)
class Miniature:
    """A small network of the same code."""

    options: tuple[str, ...]
    target: Target
    side: int = 56
    tensors: int = 1
    blocks: tuple[int, ...] = ()
    """Rows and columns of a grid of photos; none of whole ones."""


SMALL = ("layers=1,1,1,1", "width=0.05", "init_trunk=random", "crop=48", "batch=6", "epochs=2", "lr=0.01")
COLUMN = ("filters=8", "hidden=32", "units=32", "n_crops=3", "crop=24", "batch=6", "epochs=2", "lr=0.01")
CAFFE = ("width=0.125", "hidden=32", "feature=16", "init_trunk=random", "crop=67", "batch=6", "epochs=2")
INCEPTION = ("width=0.125", "hidden=64", "init_trunk=random", "crop=48", "batch=6", "epochs=2")
TWO = tuple(option for option in SMALL if not option.startswith("init"))
ONE = Target("regression", ("a",))
FOUR = ("trunks=resnet18,resnet18", "layers=1,1,1,1", "width=0.1", "batch=6", "epochs=2", "lr=0.01", "micro=3")
RAM = ("size=32", "glimpse=8", "patches=2", "hidden=16", "joined=16", "batch=6", "epochs=2", "lr=0.01")
CLASSES = Target("multiclass", ("emotion",), ("x", "y", "z"))
BOTH = JointTarget.of([Target("binary", ("aesthetics",)), CLASSES])
CONTENT = JointTarget.of([RATINGS, CLASSES])
VGG = ("plan=8,M,8,M,16,M,16,16,M,16,16,16,M", "fc=16", "init_trunk=random")
FEW = ("crop=48", "batch=6", "epochs=2", "lr=0.01")
MINIATURES = {
    "resnet50-single": Miniature(SMALL, target=ONE),
    "wide-resnet-single": Miniature(SMALL, target=ONE),
    "share-split": Miniature(SMALL, target=BOTH),
    "cross-stitch": Miniature((*TWO, "init_aesthetics=random", "init_emotion=random"), target=BOTH),
    "aenet": Miniature((*TWO, *(f"init_{name}=random" for name in STREAMS)), target=BOTH),
    "amtl-scratch": Miniature(FOUR, target=RATINGS, side=32, blocks=(2, 2)),
    "stl-scratch": Miniature(FOUR, target=ONE),
    "aenet-nofusion": Miniature((*TWO, *(f"init_{name}=random" for name in STREAMS)), target=BOTH),
    "personality": Miniature((*SMALL, "trunk=resnet50", "hidden1=8", "hidden2=4", "last_epochs=2"), target=RATINGS),
    "ram": Miniature(RAM, target=Target("binary", ("a", "b"))),
    "ram-lstm": Miniature(RAM, target=Target("multiclass", ("class",), ("x", "y", "z"))),
    "vgg16-finetune": Miniature((*VGG, *FEW), target=Target("binary", ("a", "b"))),
    "resnet50-finetune": Miniature((*SMALL, "tune=last"), target=CLASSES),
    "multi-residual": Miniature(SMALL, target=ONE),
    "emotion-vgg": Miniature(("width=4", "fc=16", *FEW), target=CLASSES),
    "rapid-scnn": Miniature(COLUMN, RATINGS),
    "rapid-dcnn": Miniature(COLUMN, CLASSES, tensors=2),
    "rapid-rdcnn": Miniature((*COLUMN, "init_style=random"), Target("binary", ("a", "b")), tensors=2),
    "dma-net": Miniature((*COLUMN, "patches=2"), RATINGS),
    "aadb-reg": Miniature(CAFFE, RATINGS, side=72),
    "aadb-rank": Miniature(CAFFE, RATINGS, side=72),
    "aadb-att": Miniature((*CAFFE, "branch=8", "joined=8", "branch_epochs=1"), RATINGS, side=72),
    "aadb-cont": Miniature((*CAFFE, "branch=8", "joined=8", "branch_epochs=1"), CONTENT, side=72),
    "ilgnet": Miniature(INCEPTION, Target("multilabel", ("a", "b"))),
}


def test_every_system_that_reads_pixels_has_a_miniature() -> None:
    systems = {name for name, system in load_systems().items() if system.from_pixels and system.plugin is None}
    assert systems == {*MINIATURES}


@pytest.fixture(params=MINIATURES)
def case(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    write_store: Callable[..., None],
    features_of: Callable[..., Features],
) -> tuple[Setting, Problem]:
    """Random photos and labels, and the miniature of a system."""
    name, small = str(request.param), MINIATURES[str(request.param)]
    rng = np.random.default_rng(0)
    shape = (N, *small.blocks, small.side, small.side, 3)
    pixels = {f"px{i}": rng.integers(256, size=shape, dtype=np.uint8) for i in range(small.tensors)}
    pixels["px0"][0] = 0  # a black photo
    write_store(tmp_path / "px.zarr", [f"{i}.jpg" for i in range(N)], pixels, block_rows=N)
    labels = np.hstack([labels_of(part, rng) for part in parts_of(small.target)])
    setting = Setting(features_of(tmp_path / "px.zarr", *pixels), labels, small.target, np.arange(N) % 2)
    return setting, setting.problem(name, *small.options)


def labels_of(target: Target, rng: np.random.Generator) -> NDArray[np.float32]:
    if target.kind == "multiclass":
        return rng.integers(len(target.classes), size=(N, 1)).astype(np.float32)
    if target.kind == "regression":
        return (rng.random((N, len(target.tasks))) - 0.5).astype(np.float32)
    return rng.integers(2, size=(N, len(target.tasks))).astype(np.float32)


def job_of(setting: Setting, **others: object) -> Job:
    images = np.arange(N)
    return setting.job(**{"fit": images[:14], "inner": images[14:18], "test": images[18:], **others})


def test_it_trains_in_no_time_and_a_step_moves_what_its_stage_names(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    clock = time.perf_counter()
    learner = Learner(problem, job_of(setting))
    (group,) = setting.features.groups()
    stages = problem.system.stages(problem.options) if problem.system.stages else None
    before = {name: value.clone() for name, value in learner.inside.state_dict().items()}
    learner.begin_epoch()
    learner.learn(group)
    moving = ("",) if stages is None else stages[0].parameters
    after, parameters = learner.inside.state_dict(), dict(learner.inside.named_parameters())
    for name in parameters:
        if not name.startswith(moving):
            assert torch.equal(before[name], after[name]), name
    moved = [name for name in parameters if not torch.equal(before[name], after[name])]
    assert len(moved) > len([name for name in parameters if name.startswith(moving)]) / 2, moved
    for part, module in learner.inside.named_modules():
        own = [name for name, _ in module.named_parameters(part)]
        if own and not any(name.startswith(moving) for name in own):
            assert not module.training, part
    assert time.perf_counter() - clock < 20


def test_training_ends_with_numbers_and_predicts_every_photo(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    (trained,) = setting.train(problem, job_of(setting))
    assert trained.predicted.shape == (6, problem.target.n_outputs)
    assert np.isfinite(trained.predicted).all()
    for name, value in trained.learned.items():
        assert np.isfinite(value).all(), name


def test_it_goes_on_where_it_was_and_ends_as_if_undisturbed(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    (group,) = setting.features.groups()
    job = job_of(setting)

    def epoch(learner: Learner) -> None:
        learner.begin_epoch()
        learner.learn(group)
        learner.validate(group)
        learner.end_epoch()

    undisturbed = Learner(problem, job)
    epoch(undisturbed)
    tensors, facts = undisturbed.state()
    tensors = {name: value.clone() for name, value in tensors.items()}
    epoch(undisturbed)
    resumed = Learner(problem, job)
    assert resumed.restore(tensors, facts)
    epoch(resumed)
    for name, value in undisturbed.module.state_dict().items():
        assert torch.equal(value, resumed.module.state_dict()[name]), name


def test_a_prediction_depends_on_the_photo_alone(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    learner = Learner(problem, job_of(setting))
    (group,) = setting.features.groups()
    learner.begin_epoch()
    learner.learn(group)
    module = learner.module.eval()
    _, features = group.batch(np.arange(8))
    with torch.inference_mode(), arithmetic("fp32", torch.device("cpu")):
        together = module(*features)
        assert torch.equal(together, module(*features)), "it is not the same twice"
        alone = torch.cat([module(*(each[i : i + 1] for each in features)) for i in range(8)])
    assert torch.allclose(together, alone, atol=1e-4, rtol=1e-3)
    assert together.isfinite().all(), "a black photo is among them"


def test_parts_of_a_batch_learn_nearly_what_the_batch_learns(case: tuple[Setting, Problem]) -> None:
    """Batch norm sees fewer photos at a time; all else is the same."""
    setting, problem = case
    small = replace(problem, options={**problem.options, "micro": 3})
    (trained,) = setting.train(small, job_of(setting))
    assert np.isfinite(trained.predicted).all()


def test_photos_smaller_than_the_crop_are_refused(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    if "crop" not in problem.options:
        pytest.skip("it sees whole photos")
    large, side = replace(problem, options={**problem.options, "crop": 1000}), problem.shapes[0][0]
    with pytest.raises(FeaturesError, match=rf"{side} x {side} pixels.*1000 x 1000.*--set crop={side}"):
        Learner(large, job_of(setting))


def test_one_class_alone_does_not_end_training(case: tuple[Setting, Problem]) -> None:
    setting, problem = case
    if all(part.kind != "multiclass" for part in parts_of(problem.target)):
        pytest.skip("it has no classes here")
    same = replace(problem, labels=np.zeros_like(problem.labels))
    (trained,) = setting.train(same, job_of(setting))
    assert np.isfinite(trained.predicted).all()


def test_its_options_say_where_they_come_from() -> None:
    for name in MINIATURES:
        system = find_system(name)
        assert "standardise" not in system.options
        for part in system.init:
            assert f"init_{part}" in system.options
        assert all(option.source for option in system.options.values())
