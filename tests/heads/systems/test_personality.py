"""Branches, and what the traits add to the score: the formulas, the stages, and planted weights found again."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.errors import LabelsError
from heads.systems import find_system
from heads.systems.personality import Aesthetics, Personality
from heads.training.losses import masked_loss

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
