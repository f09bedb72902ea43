"""Branches, and what the traits add to the score: the formulas, the stages, and planted weights found again."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.personality import Aesthetics, Personality, PersonalityFromPixels
from heads.training.features import Features
from heads.training.learner import Learner, Problem
from heads.training.losses import masked_loss

from ..conftest import Setting

sizes = st.integers(1, 5)


def branch(model: torch.nn.Module, name: str, x: np.ndarray) -> np.ndarray:
    p = {key: value.detach().numpy() for key, value in model.get_submodule(name).named_parameters()}
    for layer in ("0", "2"):
        x = np.maximum(0, x @ p[f"{layer}.weight"].T + p[f"{layer}.bias"])
    return x @ p["4.weight"].T + p["4.bias"]


def personality_of(width: int, n_traits: int = 2, hidden1: int = 6, hidden2: int = 5, seed: int = 0) -> Personality:
    torch.manual_seed(seed)
    model = Personality(width, n_traits, hidden1=hidden1, hidden2=hidden2).double()
    with torch.no_grad():
        model.trait_weights.uniform_(-1, 1)
    return model.eval()


@settings(max_examples=50, deadline=None)
@given(n=sizes, f=sizes, traits=sizes, hidden1=sizes, hidden2=sizes, seed=st.integers(0, 99))
def test_the_score_is_aesthetics_and_weighted_traits_on_the_papers_scales(n, f, traits, hidden1, hidden2, seed) -> None:
    model = personality_of(f, traits, hidden1, hidden2, seed)
    features = torch.randn(n, f).double()
    aesthetics = 1 / (1 + np.exp(-branch(model, "aesthetics", features.numpy())[:, 0]))  # 0 .. 1
    trait = np.tanh(branch(model, "personality", features.numpy()))  # -1 .. 1
    score = aesthetics + sum(model.trait_weights[j].item() * trait[:, j] for j in range(traits))
    expected = np.column_stack([score - 0.5, trait / 2])  # a scale of any ends becomes -0.5 .. +0.5
    assert model(features).detach().numpy() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(model.learned()["trait_weights"], model.trait_weights)


@settings(max_examples=20, deadline=None)
@given(n=sizes, f=sizes, k=sizes, seed=st.integers(0, 99))
def test_aesthetics_alone_is_a_branch_for_each_score(n, f, k, seed) -> None:
    torch.manual_seed(seed)
    model = Aesthetics(f, k, hidden1=4, hidden2=3).double()
    features = torch.randn(n, f).double()
    expected = [1 / (1 + np.exp(-branch(model, f"aesthetics.{i}", features.numpy())[:, 0])) - 0.5 for i in range(k)]
    assert model(features).detach().numpy() == pytest.approx(np.stack(expected, 1), abs=1e-12)


def aesthetics_of(width: int) -> Aesthetics:
    torch.manual_seed(0)
    return Aesthetics(width, 2, hidden1=5, hidden2=4)


@pytest.mark.parametrize("make", [personality_of, aesthetics_of])
def test_gradients_are_those_of_finite_differences(make, gradients_are_right) -> None:
    gradients_are_right(make(4), torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("make", [personality_of, aesthetics_of])
def test_padding_is_as_if_it_were_not_there(make, padding_is_ignored) -> None:
    padding_is_ignored(make, torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double(), 3)


def test_the_widths_and_rates_are_the_papers(target) -> None:
    for name in ("personality-frozen", "aesthetics-only"):
        system = find_system(name)
        options = system.settle([])
        paper = {
            "hidden1": 1024, "hidden2": 512, "optimiser": "sgd", "momentum": 0.9, "lr": 1e-4, "lr_factor": 0.9,
            "lr_every": 1, "weight_decay": 1e-5, "epochs": 20, "patience": 0, "inner": 0,
        }  # fmt: skip
        assert {name: options[name] for name in paper} == paper
    model = find_system("personality-frozen").build(((1024,),), target("regression", 6), {"hidden1": 8, "hidden2": 4})
    assert torch.equal(model.trait_weights, torch.zeros(5))  # until the last stage, the score is the first branch's


def test_the_first_stage_trains_the_branches_and_the_last_one_only_the_weights(target) -> None:
    system = find_system("personality-frozen")
    options = system.settle(["hidden1=8", "hidden2=4", "lr=0.01", "last_lr=0.02", "epochs=3", "last_epochs=4"])
    first, last = system.stages(options)
    assert (first.epochs, first.lr, first.tasks) == (3, 0.01, None)
    assert (last.epochs, last.lr, last.tasks) == (4, 0.02, (0,))
    names = {name for name, _ in system.build(((6,),), target("regression", 6), options).named_parameters()}
    moving = [{name for name in names if name.startswith(stage.parameters)} for stage in (first, last)]
    assert moving[0] | moving[1] == names
    assert moving[1] == {"trait_weights"}
    assert not moving[0] & moving[1]
    assert system.alternate


def test_traits_learn_nothing_from_scores_nor_the_score_from_traits(target) -> None:
    """In the first stage, with labels of one set only, as minibatches alternate."""
    system = find_system("personality-frozen")
    model = system.build(((4,),), target("regression", 3), {"hidden1": 8, "hidden2": 4})
    loss = masked_loss(target("regression", 3))
    labels = torch.zeros(5, 3)
    labels[:, 1:] = torch.nan
    loss(model(torch.randn(5, 4)), labels).backward()
    assert all(value.grad.abs().sum() > 0 for value in model.aesthetics.parameters())
    assert all(value.grad is None or (value.grad == 0).all() for value in model.personality.parameters())
    model.zero_grad()
    loss(model(torch.randn(5, 4)), torch.tensor([[torch.nan, 0.1, 0.2]] * 5)).backward()
    assert all(value.grad is None or (value.grad == 0).all() for value in model.aesthetics.parameters())
    assert all(value.grad.abs().sum() > 0 for value in model.personality.parameters())


def test_the_last_stage_finds_planted_weights(target) -> None:
    truth = personality_of(6, n_traits=5, hidden1=16, hidden2=16)
    with torch.no_grad():
        truth.personality[4].weight.mul_(8)  # traits that differ between images
        truth.trait_weights.copy_(torch.tensor([0.3, -0.2, 0.0, 0.1, -0.4]))
    features = torch.randn(400, 6, generator=torch.Generator().manual_seed(0)).double()
    labels = truth(features).detach()
    labels[:, 1:] = torch.nan
    model = personality_of(6, n_traits=5, hidden1=16, hidden2=16)
    model.load_state_dict(truth.state_dict() | {"trait_weights": torch.zeros(5).double()})
    (_, last) = find_system("personality-frozen").stages(find_system("personality-frozen").settle([]))
    moving = [value for name, value in model.named_parameters() if name.startswith(last.parameters)]
    optimiser = torch.optim.Adam(moving, lr=0.02)
    loss = masked_loss(target("regression", 6))
    for _ in range(600):
        optimiser.zero_grad()
        loss(model(features), labels).backward()
        optimiser.step()
    learned = model.learned()["trait_weights"].detach().numpy()
    assert learned == pytest.approx([0.3, -0.2, 0.0, 0.1, -0.4], abs=0.02)


def test_personality_without_traits_is_refused(target) -> None:
    system = find_system("personality-frozen")
    with pytest.raises(LabelsError, match="its first task, and traits, the others; there is only t0; add traits"):
        system.build(((6,),), target("regression", 1), system.settle([]))


# ---- from pixels

SMALL = (
    "trunk=resnet50", "layers=1,1,1,1", "width=0.1", "init_trunk=random", "crop=32", "hidden1=16", "hidden2=8",
    "batch=8",
)  # fmt: skip
NONE = np.zeros(0, np.int64)


@pytest.fixture
def striped(tmp_path: Path, write_store: Callable[..., None], features_of: Callable[..., Features]) -> Setting:
    """48 photos with a score, by their hue, .2 the first trait and -.2 the second; 192 others with the two traits.

    The traits are how strong the horizontal and the vertical stripes of a photo are.
    """
    rng = np.random.default_rng(0)
    n_scores, n = 48, 240
    hue, traits = rng.random(n), rng.uniform(-1, 1, (n, 2))
    wave = np.where(np.arange(32) % 8 < 4, 15.0, -15.0)
    pixels = 110 + 60 * np.stack([hue, 1 - hue, np.full(n, 0.5)], 1)[:, None, None] + rng.normal(0, 5, (n, 32, 32, 3))
    pixels += (1 + traits[:, 0])[:, None, None, None] * wave[None, :, None, None]
    pixels += (1 + traits[:, 1])[:, None, None, None] * wave[None, None, :, None]
    labels = np.column_stack([0.5 * hue - 0.25 + traits @ [0.2, -0.2], traits / 2]).astype(np.float32)
    labels[:n_scores, 1:] = labels[n_scores:, 0] = np.nan
    names = [f"{i}.jpg" for i in range(n)]
    write_store(tmp_path / "px.zarr", names, {"px": pixels.clip(0, 255).astype(np.uint8)}, block_rows=64)
    sets = (np.arange(n) >= n_scores).astype(np.int64)
    target = Target("regression", ("score", "first", "second"))
    return Setting(features_of(tmp_path / "px.zarr", "px"), labels, target, sets)


def trained(setting: Setting, problem: Problem) -> tuple[PersonalityFromPixels, list[dict[str, Any]]]:
    """The model on all photos; and its state at the start of each stage, and at the end."""
    learner = Learner(problem, setting.job(fit=np.arange(240), inner=NONE, test=NONE))
    (group,) = setting.features.groups()
    states: list[dict[str, Any]] = []
    while not learner.done:
        if learner.stage == len(states):
            states.append({name: value.clone() for name, value in learner.inside.state_dict().items()})
        learner.begin_epoch()
        learner.learn(group)
        learner.end_epoch()
    return learner.inside, [*states, learner.inside.state_dict()]


def test_from_pixels_the_signs_of_the_traits_are_found_and_the_last_stage_leaves_the_network(striped: Setting) -> None:
    changes = ("lr=0.03", "trunk_lr=0.03", "lr_factor=1", "epochs=8", "last_lr=0.1", "last_epochs=10")
    model, (start, between, end) = trained(striped, striped.problem("personality", *SMALL, *changes))
    first, second = model.learned()["trait_weights"].tolist()
    assert first > 0.03
    assert second < -0.03
    moved = {name for name in start if not torch.equal(start[name], between[name])}
    assert moved == {name for name in start if name.startswith(("trunk.", "branches.aes", "branches.pers"))}
    moved = {name for name in start if not torch.equal(between[name], end[name])}
    assert moved == {"branches.trait_weights", "products", "residuals"}


@pytest.mark.parametrize("rate", [1e-4, 0.3])
def test_the_least_squares_beside_the_weights_are_where_the_last_stage_would_end(striped: Setting, rate: float) -> None:
    changes = ("epochs=1", "last_epochs=2", f"last_lr={rate}", "lr=0.1")
    model, _ = trained(striped, striped.problem("personality", *SMALL, *changes))
    learned = {name: value.clone().numpy() for name, value in model.learned().items()}
    (group,) = striped.features.groups()
    _, (pixels,) = group.batch(np.arange(48))
    labels = torch.from_numpy(striped.labels[:48])
    with torch.no_grad():
        model.eval().branches.trait_weights.zero_()
        said = model(pixels).numpy()
    expected, *_ = np.linalg.lstsq(2 * said[:, 1:].astype(np.float64), labels[:, 0].numpy() - said[:, 0], rcond=None)
    assert learned["least_squares"] == pytest.approx(expected, rel=1e-2)
    assert learned["length"] == pytest.approx([np.linalg.norm(learned["trait_weights"])], rel=1e-5)
    assert (learned["length"][0] < np.linalg.norm(expected) / 10) == (rate == 1e-4)  # the paper's, which is slow
    with torch.no_grad():
        model.branches.trait_weights.copy_(torch.from_numpy(expected))
    masked_loss(striped.target)(model(pixels), labels).backward()
    assert model.branches.trait_weights.grad.abs().max() < 1e-6


def test_batch_norm_may_keep_the_statistics_that_it_begins_with(striped: Setting) -> None:
    def moved(choice: str) -> bool:
        problem = striped.problem("personality", *SMALL, "epochs=1", "last_epochs=1", f"batch_norm={choice}")
        _, (start, between, _) = trained(striped, problem)
        statistics = [name for name in start if "running" in name]
        assert statistics
        return any(not torch.equal(start[name], between[name]) for name in statistics)

    assert moved("true")
    assert not moved("false")


def test_from_pixels_the_trunk_has_a_rate_of_its_own_and_an_epoch_is_that_of_the_scores() -> None:
    system = find_system("personality")
    first, last = system.stages(system.settle([]))
    assert (first.lr, first.rates, first.epochs) == (1e-4, {"trunk.": 1e-5}, 20)
    assert (last.lr, last.parameters, last.tasks) == (1e-4, ("branches.trait_weights",), (0,))
    assert (system.alternate, system.epoch_of, system.init) == (True, 0, ("trunk",))
    options = system.settle([])
    paper = {
        "trunk": "densenet121", "init_trunk": "imagenet", "crop": 224, "flip": False, "hidden1": 1024, "hidden2": 512,
        "optimiser": "sgd", "momentum": 0.9, "lr_factor": 0.9, "weight_decay": 1e-5,
    }  # fmt: skip
    assert {name: options[name] for name in paper} == paper


def test_from_pixels_without_traits_is_refused(target) -> None:
    system = find_system("personality")
    with pytest.raises(LabelsError, match=r"'personality' learns an aesthetic score.*or train 'resnet50-single'"):
        system.build(((56, 56, 3),), target("regression", 1), system.settle(list(SMALL)))
