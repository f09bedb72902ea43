"""AMTL against the formulas of the paper, written out a second time in numpy, and what it can learn."""

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heads.batches import Features
from heads.prediction import attend_rows, predict_rows
from heads.systems import find_system
from heads.systems.amtl import AMTL
from heads.training import Standardise, Task, fit_by_gradient

CPU = torch.device("cpu")


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(scores) / np.exp(scores).sum()


def by_the_formulas(p: dict[str, NDArray[np.float64]], f: NDArray[np.float64]) -> SimpleNamespace:
    """One image f (B, T, F) through the model, one sum at a time."""
    n_backbones, n_blocks, _ = f.shape
    n_tasks, width = p["secondary_vector"].shape
    blocks, backbones, y = [], [], []
    attended = []
    for i in range(n_backbones):
        u = [np.tanh(p["primary.weight"] @ f[i, j] + p["primary.bias"]) for j in range(n_blocks)]
        a = softmax(np.array([u[j] @ p["primary_vector"] for j in range(n_blocks)]))
        attended.append(sum(a[j] * f[i, j] for j in range(n_blocks)))
        blocks.append(a)
    for k in range(n_tasks):
        own = slice(k * width, (k + 1) * width)
        ws, bs = p["secondary.weight"][own], p["secondary.bias"][own]
        a = softmax(np.array([np.tanh(ws @ each + bs) @ p["secondary_vector"][k] for each in attended]))
        g = sum(a[i] * attended[i] for i in range(n_backbones))
        hidden = np.maximum(0, g @ p["hidden_weight"][k] + p["hidden_bias"][k, 0])
        y.append(np.tanh(hidden @ p["out_weight"][k, :, 0] + p["out_bias"][k, 0, 0]))
        backbones.append(a)
    return SimpleNamespace(y=np.array(y), blocks=np.array(blocks), backbones=np.array(backbones))


def model_of(n_features: int, n_tasks: int, *, attention: int = 3, hidden: int = 5, seed: int = 0) -> AMTL:
    torch.manual_seed(seed)
    return AMTL(n_features, n_tasks, attention=attention, hidden=hidden, dropout=0.5).double().eval()


def parameters_of(model: AMTL) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


sizes = st.integers(1, 5)


@settings(max_examples=60, deadline=None)
@given(n=sizes, b=sizes, t=sizes, f=sizes, k=sizes, attention=sizes, hidden=sizes, seed=st.integers(0, 99))
def test_the_model_is_the_formulas(n, b, t, f, k, attention, hidden, seed) -> None:
    model = model_of(f, k, attention=attention, hidden=hidden, seed=seed)
    features = random_features(n, b, t, f, seed=seed)
    expected = [by_the_formulas(parameters_of(model), each) for each in features.numpy()]
    with torch.inference_mode():
        blocks, backbones = model.attention(features)
        assert model(features).numpy() == pytest.approx(np.array([each.y for each in expected]), abs=1e-12)
    assert blocks.numpy() == pytest.approx(np.array([each.blocks for each in expected]), abs=1e-12)
    assert backbones.numpy() == pytest.approx(np.array([each.backbones for each in expected]), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(n=sizes, b=sizes, t=sizes, k=sizes)
def test_attention_weights_sum_to_1_over_blocks_and_over_backbones(n, b, t, k) -> None:
    blocks, backbones = model_of(4, k).attention(random_features(n, b, t, 4) * 50)
    assert (blocks.shape, backbones.shape) == ((n, b, t), (n, k, b))
    for weights in (blocks, backbones):
        assert (weights >= 0).all()
        assert weights.sum(-1).detach().numpy() == pytest.approx(1)


def test_gradients_are_those_of_finite_differences() -> None:
    model = model_of(3, 2, attention=2, hidden=3)
    features = random_features(2, 2, 3, 3).requires_grad_()
    names = [name for name, _ in model.named_parameters()]

    def run(features: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(model, dict(zip(names, parameters, strict=True)), (features,))

    assert torch.autograd.gradcheck(run, (features, *model.parameters()))


def test_every_parameter_gets_a_gradient() -> None:
    model = model_of(6, 3)
    model(random_features(8, 2, 4, 6)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_padding_is_as_if_it_were_not_there() -> None:
    """Zeros at the end of the features do nothing, whatever the parameters that belong to them."""
    wide = model_of(9, 2)
    narrow = model_of(6, 2, seed=1)
    cut = {
        "primary.weight": (..., slice(6)),
        "secondary.weight": (..., slice(6)),
        "hidden_weight": (..., slice(6), slice(None)),
    }
    state = wide.state_dict()
    narrow.load_state_dict({name: value[cut[name]] if name in cut else value for name, value in state.items()})
    features = random_features(4, 2, 3, 6)
    padded = torch.nn.functional.pad(features, (0, 3))
    assert torch.allclose(wide(padded), narrow(features), atol=1e-12)
    for one, other in zip(wide.attention(padded), narrow.attention(features), strict=True):
        assert torch.allclose(one, other, atol=1e-12)


def test_the_order_of_blocks_does_not_matter() -> None:
    model, features = model_of(6, 2), random_features(4, 2, 5, 6)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(model(features), model(features[:, :, order]))
    assert torch.allclose(model.attention(features)[0][..., order], model.attention(features[:, :, order])[0])


def test_tasks_have_nothing_in_common_but_the_primary_attention() -> None:
    both = model_of(6, 2)
    before = both(random_features(4, 2, 5, 6))
    with torch.no_grad():
        both.out_bias[1] += 1
        both.hidden_weight[1] += 1
        both.secondary.weight[3:] += 1  # of task 1: the attention is 3 wide
        both.secondary_vector[1] += 1
    after = both(random_features(4, 2, 5, 6))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_dropout_acts_in_training_only() -> None:
    model, features = model_of(6, 2, hidden=64), random_features(4, 2, 5, 6)
    assert torch.equal(model(features), model(features))
    model.train()
    assert not torch.equal(model(features), model(features))


def test_the_defaults_are_the_papers() -> None:
    options = find_system("amtl").settle([])
    model = find_system("amtl").build((4, 16, 2048), 12, options)
    assert isinstance(model, Standardise)
    assert {name: options[name] for name in ("hidden", "dropout", "lr", "batch", "epochs", "patience")} == {
        "hidden": 256, "dropout": 0.5, "lr": 1e-3, "batch": 32, "epochs": 60, "patience": 10,
    }  # fmt: skip
    assert find_system("amtl").repeats == 5
    assert tuple(model.model.primary.weight.shape) == (128, 2048)
    assert tuple(model.model.hidden_weight.shape) == (12, 2048, 256)


def train_on(features: Features, labels: NDArray[np.float64]) -> torch.nn.Module:
    """A small AMTL trained on the first three quarters."""
    system = find_system("amtl")
    changes = ["attention=16", "hidden=32", "dropout=0.1", "lr=0.01", "epochs=40", "patience=40", "standardise=false"]
    options = system.settle(changes)
    torch.manual_seed(0)
    model = system.build(features.shape, labels.shape[1], options)
    n = len(features)
    fit, inner = np.arange(n // 2), np.arange(n // 2, 3 * n // 4)
    fit_by_gradient(model, Task(features, labels.astype(np.float32), fit, inner, seed=0), options)
    return model


def test_learns_what_one_block_says_wherever_it_is_and_looks_at_that_block(
    as_features: Callable[..., Features],
) -> None:
    """Feature 0 marks the informative block; feature 1 is the label there, and noise elsewhere."""
    n, rng = 640, np.random.default_rng(0)
    values = rng.normal(size=(n, 2, 16, 6)).astype(np.float32)
    labels, place = rng.uniform(-0.5, 0.5, (n, 1)), rng.integers(0, 16, n)
    values[..., 0] = 0
    values[np.arange(n), :, place, 0] = 2
    values[np.arange(n), :, place, 1] = 2 * labels
    features = as_features(values)
    model = train_on(features, labels)
    unseen = np.arange(3 * n // 4, n)
    predicted = predict_rows(model, features, unseen, CPU)
    assert np.corrcoef(predicted[:, 0], labels[unseen, 0])[0, 1] > 0.9
    blocks, _ = attend_rows(model, features, unseen, CPU)
    assert blocks[np.arange(len(unseen)), :, place[unseen]].mean() > 0.6  # evenly spread it would be 1/16


def test_each_task_learns_from_the_backbone_that_knows_it_and_looks_at_it(as_features: Callable[..., Features]) -> None:
    """Features 0 to 2 say which backbone it is, feature 3 is all it says; 1 knows task 0 and 2 knows task 1."""
    n, rng = 320, np.random.default_rng(1)
    says = rng.normal(size=(n, 3)).astype(np.float32)
    values = np.zeros((n, 3, 4, 6), np.float32)
    values[:, [0, 1, 2], :, [0, 1, 2]] = 1
    values[..., 3] = says[:, :, None]
    labels = np.clip(0.15 * says[:, 1:], -0.5, 0.5)
    features = as_features(values)
    model = train_on(features, labels)
    unseen = np.arange(3 * n // 4, n)
    predicted = predict_rows(model, features, unseen, CPU)
    _, backbones = attend_rows(model, features, unseen, CPU)
    for task, knows in enumerate((1, 2)):
        assert np.corrcoef(predicted[:, task], labels[unseen, task])[0, 1] > 0.9
        assert backbones[:, task, knows].mean() > 0.6  # evenly spread it would be 1/3
