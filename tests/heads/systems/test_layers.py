"""Dropout against its definition; linear maps side by side against one at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.systems.layers import Dropout, LinearMap, Linears, joined


@pytest.mark.parametrize("p", [0.1, 0.4, 0.5, 0.9])
def test_dropout_drops_with_probability_p_and_scales_the_rest(p: float) -> None:
    dropped = Dropout(p)(torch.full((1000, 100), 3.0))
    assert torch.isclose(dropped[dropped != 0], torch.tensor(3 / (1 - p))).all()
    assert (dropped == 0).float().mean().item() == pytest.approx(p, abs=0.01)


def test_dropout_does_nothing_when_it_is_not_training_or_never_drops() -> None:
    values = torch.randn(5, 4)
    assert torch.equal(Dropout(0.5).eval()(values), values)
    assert torch.equal(Dropout(0.0)(values), values)


def test_dropout_draws_from_its_own_generator_alone() -> None:
    def drawn(seed: int) -> torch.Tensor:
        layer = Dropout(0.5)
        layer.generator = torch.Generator().manual_seed(seed)
        return layer(torch.ones(100))

    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))
    assert torch.equal(torch.get_rng_state(), before)


def test_dropout_draws_from_torchs_generator_without_one() -> None:
    torch.manual_seed(0)
    first = Dropout(0.5)(torch.ones(100))
    torch.manual_seed(0)
    assert torch.equal(Dropout(0.5)(torch.ones(100)), first)
    assert not torch.equal(Dropout(0.5)(torch.ones(100)), first)


def test_gradients_flow_through_what_is_kept() -> None:
    values = torch.ones(100, requires_grad=True)
    dropped = Dropout(0.5)(values)
    dropped.sum().backward()
    assert torch.equal(values.grad, dropped.detach())


sizes = st.integers(1, 6)


@settings(max_examples=30, deadline=None)
@given(maps=sizes, n=sizes, inputs=sizes, outputs=sizes)
def test_linears_are_linear_maps_of_their_own(maps, n, inputs, outputs) -> None:
    layer = Linears(maps, inputs, outputs)
    values = torch.randn(maps, n, inputs)
    weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
    expected = [values[g].numpy() @ weight[g] + bias[g, 0] for g in range(maps)]
    assert layer(values).detach().numpy() == pytest.approx(np.array(expected), abs=1e-5)
    assert max(np.abs(weight).max(), np.abs(bias).max()) <= inputs**-0.5  # as nn.Linear


def test_features_of_several_tensors_are_joined_in_their_order() -> None:
    stack, concat = torch.randn(3, 2, 4, 5), torch.randn(3, 6)
    flat = np.concatenate([stack.numpy().reshape(3, -1), concat.numpy()], 1)
    assert (joined(stack, concat).numpy() == flat).all()
    model = LinearMap(46, 2)
    expected = flat @ model.linear.weight.detach().numpy().T + model.linear.bias.detach().numpy()
    assert model(stack, concat).detach().numpy() == pytest.approx(expected, abs=1e-5)
