"""The mixture of experts and the perceptron against their formulas, and what an expert can do that a line cannot."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from heads.systems import find_system
from heads.systems.probes import fit_logistic
from heads.systems.sentiment import MLP, MoE
from heads.systems.system import NO_FOLD, Sample
from heads.training.losses import predictions

sizes = st.integers(1, 5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def parameters_of(model: torch.nn.Module) -> dict:
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


@settings(max_examples=60, deadline=None)
@given(n=sizes, f=sizes, c=sizes, hidden=sizes, experts=sizes, seed=st.integers(0, 99))
def test_moe_scores_a_class_by_what_its_experts_say_and_how_much_they_count(n, f, c, hidden, experts, seed) -> None:
    torch.manual_seed(seed)
    model = MoE(f, c, hidden=hidden, experts=experts, dropout=0.5).double().eval()
    features, p = torch.randn(n, f).double(), parameters_of(model)
    scores = np.zeros((n, c))
    for image, x in enumerate(features.numpy()):
        h = np.maximum(0, p["hidden.weight"] @ x + p["hidden.bias"])
        for k in range(c):
            gate = p["gates.weight"] @ h + p["gates.bias"]
            gate = np.exp(gate[k * (experts + 1) : (k + 1) * (experts + 1)])
            gate /= gate.sum()
            says = sigmoid(p["experts.weight"] @ h + p["experts.bias"])[k * experts : (k + 1) * experts]
            scores[image, k] = sum(says[i] * gate[i] for i in range(experts))  # the dummy says nothing
    assert model(features).exp().detach().numpy() == pytest.approx(scores, abs=1e-12)
    assert (scores > 0).all()
    assert (scores < 1).all()


def test_probabilities_are_shares_of_the_scores(target) -> None:
    torch.manual_seed(0)
    model = MoE(4, 3, hidden=8, experts=2, dropout=0.5).eval()
    logits = model(torch.randn(10, 4))
    scores = logits.exp().detach().numpy()
    shares = predictions(target("multiclass", 3), logits).detach().numpy()
    assert shares == pytest.approx(scores / scores.sum(1, keepdims=True), abs=1e-6)


def test_a_score_too_small_for_a_float_has_a_finite_logit_and_a_gradient() -> None:
    model = MoE(2, 2, hidden=2, experts=2, dropout=0.0)
    with torch.no_grad():
        model.experts.bias.fill_(-500)
    logits = model(torch.ones(1, 2))
    assert (logits.exp() == 0).all()
    assert logits.isfinite().all()
    logits.sum().backward()
    assert model.experts.bias.grad.view(2, 2).sum(1).tolist() == pytest.approx([1, 1], abs=1e-4)


@settings(max_examples=40, deadline=None)
@given(n=sizes, f=sizes, outputs=sizes, hidden1=sizes, hidden2=sizes, seed=st.integers(0, 99))
def test_mlp_is_three_layers(n, f, outputs, hidden1, hidden2, seed) -> None:
    torch.manual_seed(seed)
    model = MLP(f, outputs, hidden1=hidden1, hidden2=hidden2, dropout=0.4).double().eval()
    features, p = torch.randn(n, f).double(), parameters_of(model)
    h = np.maximum(0, features.numpy() @ p["hidden1.weight"].T + p["hidden1.bias"])
    h = np.maximum(0, h @ p["hidden2.weight"].T + p["hidden2.bias"])
    assert model(features).detach().numpy() == pytest.approx(h @ p["out.weight"].T + p["out.bias"], abs=1e-12)


def moe_of(width: int) -> MoE:
    torch.manual_seed(0)
    return MoE(width, 3, hidden=6, experts=2, dropout=0.5)


def mlp_of(width: int) -> MLP:
    torch.manual_seed(0)
    return MLP(width, 3, hidden1=7, hidden2=6, dropout=0.5)


@pytest.mark.parametrize("make", [moe_of, mlp_of])
def test_gradients_are_those_of_finite_differences(make, gradients_are_right) -> None:
    gradients_are_right(make(4), torch.randn(3, 4, generator=torch.Generator().manual_seed(1)))


@pytest.mark.parametrize("make", [moe_of, mlp_of])
def test_padding_is_as_if_it_were_not_there(make, padding_is_ignored) -> None:
    padding_is_ignored(make, torch.randn(5, 4, generator=torch.Generator().manual_seed(1)).double(), 3)


def test_the_widths_and_rates_are_the_papers(target) -> None:
    moe, mlp = find_system("moe"), find_system("mlp")
    model = moe.build(((11414,),), target("multiclass", 3), moe.settle([]))
    layers = (model.hidden, model.experts, model.gates)
    assert [(each.in_features, each.out_features) for each in layers] == [(11414, 200), (200, 6), (200, 9)]
    model = mlp.build(((11414,),), target("multilabel", 7), mlp.settle([]))
    layers = (model.hidden1, model.hidden2, model.out)
    assert [(each.in_features, each.out_features) for each in layers] == [(11414, 1000), (1000, 200), (200, 7)]
    assert model.dropout.p == 0.4
    for system, rate in ((moe, 1e-5), (mlp, 3e-6)):
        options = system.settle([])
        paper = {
            "optimiser": "adam", "lr": rate, "lr_factor": 0.5, "lr_every": 70, "batch": 64, "epochs": 300,
            "patience": 0, "inner": 0,
        }  # fmt: skip
        assert {name: options[name] for name in paper} == paper


def test_experts_of_a_class_share_it_between_them_where_a_line_cannot_separate_it(learn, target) -> None:
    """Class `t0` is the union of two half-spaces, |feature 0| > 0.7; feature 1 parts the other two."""
    draw = torch.Generator().manual_seed(0)
    features = torch.randn(900, 5, generator=draw)
    labels = torch.where(features[:, :1].abs() > 0.7, 0.0, 1.0 + (features[:, 1:2] > 0))
    classes = target("multiclass", 3)
    moe, logistic = find_system("moe"), find_system("logistic")
    torch.manual_seed(0)
    model = moe.build(((5,),), classes, moe.settle(["hidden=32", "dropout=0"]))
    learn(model, classes, features[:600], labels[:600], steps=400)
    line = logistic.build(((5,),), classes, {})
    fit_logistic(
        line, Sample(features[:600].numpy(), labels[:600].numpy(), np.full(600, NO_FOLD), classes, 0), {"C": 1.0}
    )
    right = [(each(features[600:]).argmax(1) == labels[600:, 0]).float().mean().item() for each in (model.eval(), line)]
    assert right[0] > 0.9
    assert right[1] < 0.75


@pytest.mark.parametrize("kind", ["regression", "binary", "multilabel"])
def test_mlp_learns_what_is_not_linear(kind, learn, target) -> None:
    """The product of features 0 and 1, which no linear map of them says anything about."""
    features = torch.randn(900, 4, generator=torch.Generator().manual_seed(0))
    says = features[:, :1] * features[:, 1:2]
    labels = (0.2 * says).clamp(-0.5, 0.5) if kind == "regression" else (says > 0).float()
    mlp = find_system("mlp")
    torch.manual_seed(0)
    model = mlp.build(((4,),), target(kind, 1), mlp.settle(["hidden1=64", "hidden2=16", "dropout=0"]))
    learn(model, target(kind, 1), features[:600], labels[:600], steps=400)
    out = model(features[600:]).detach()
    if kind == "regression":
        assert np.corrcoef(out[:, 0], labels[600:, 0])[0, 1] > 0.9
    else:
        assert ((out > 0) == labels[600:]).float().mean() > 0.9
