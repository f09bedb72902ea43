"""Optimisers against those of torch.optim."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from heads.training.optimiser import Optimiser

THEIRS: dict[str, Any] = {
    "adam": lambda parameters, decay: torch.optim.Adam(parameters, lr=0.1, weight_decay=decay),
    "adamw": lambda parameters, decay: torch.optim.AdamW(parameters, lr=0.1, weight_decay=decay),
    "sgd": lambda parameters, decay: torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=decay),
    "sgd without momentum": lambda parameters, decay: torch.optim.SGD(parameters, lr=0.1, weight_decay=decay),
}


def options_of(name: str, decay: float) -> dict[str, Any]:
    momentum = 0.0 if name.endswith("without momentum") else 0.9
    return {"optimiser": name.split()[0], "weight_decay": decay, "momentum": momentum}


def parameters(seed: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=draw)) for shape in ((3, 4), (5,), ())]


@pytest.mark.parametrize("decay", [0.0, 0.2])
@pytest.mark.parametrize("name", THEIRS)
def test_it_moves_as_torch_does_and_goes_on_from_its_state(name: str, decay: float) -> None:
    """At rates that change, and with parameters that have a gradient in some steps only."""
    ours, theirs = parameters(0), parameters(0)
    optimiser, other = Optimiser(ours, options_of(name, decay)), THEIRS[name](theirs, decay)
    draw = torch.Generator().manual_seed(1)
    for step in range(8):
        if step == 4:
            state = {key: value.clone() for key, value in optimiser.state().items()}
            optimiser = Optimiser(ours, options_of(name, decay))
            optimiser.restore(state)
        optimiser.clear_gradients()
        other.zero_grad()
        for number, (one, two) in enumerate(zip(ours, theirs, strict=True)):
            if (step + number) % 3:
                one.grad = torch.randn(one.shape, generator=draw)
                two.grad = one.grad.clone()
        lr = 0.1 / (1 + step)
        other.param_groups[0]["lr"] = lr
        optimiser.step(lr)
        other.step()
        for one, two in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


@pytest.mark.parametrize("clip", [0.0, 0.5, 1000.0])
def test_gradients_are_scaled_down_to_a_norm_of_all_together_if_the_options_say_so(clip: float) -> None:
    ours, theirs = parameters(0), parameters(0)
    optimiser = Optimiser(ours, options_of("sgd without momentum", 0.0) | {"clip": clip})
    draw = torch.Generator().manual_seed(1)
    gradients = [torch.randn(one.shape, generator=draw) for one in ours]
    for one, gradient in zip(ours, gradients, strict=True):
        one.grad = gradient.clone()
    optimiser.step(0.1)
    norm = float(sum(gradient.square().sum() for gradient in gradients)) ** 0.5
    assert 0.5 < norm < 1000
    scale = clip / norm if clip == 0.5 else 1
    for one, two, gradient in zip(ours, theirs, gradients, strict=True):
        torch.testing.assert_close(one, two - 0.1 * scale * gradient)


def test_it_can_let_go_of_all_that_it_holds() -> None:
    ours = parameters(0)
    optimiser = Optimiser(ours, options_of("adam", 0.0))
    for each in ours:
        each.grad = torch.ones_like(each)
    optimiser.step(0.1)
    assert set(optimiser.state()) == {f"{n}.{name}" for n in range(3) for name in ("step", "exp_avg", "exp_avg_sq")}
    optimiser.forget()
    assert optimiser.state() == {}
    assert all(each.grad is None for each in ours)


def test_it_does_without_the_compiler() -> None:
    code = """
import sys, torch
from heads.training.optimiser import Optimiser
for kind in ("adam", "adamw", "sgd"):
    weight = torch.nn.Parameter(torch.ones(3))
    optimiser = Optimiser([weight], {"optimiser": kind, "weight_decay": 0.1, "momentum": 0.9})
    weight.square().sum().backward()
    optimiser.step(0.1)
print("torch._dynamo" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
