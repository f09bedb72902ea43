"""AMTL and its variants against the formulas of the paper, written out a second time in numpy, and what they learn."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heads.labels.target import KINDS
from heads.systems import find_system
from heads.systems.amtl import AMTL, MTL, Swapped

SMALL = ["attention=16", "hidden=32", "dropout=0.1"]
FAMILY = ["amtl", "amtl-single", "amtl-separate", "amtl-swapped"]


def softmax(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.exp(scores) / np.exp(scores).sum()


def by_the_formulas(p: dict[str, NDArray[np.float64]], f: NDArray[np.float64], *, squash: bool) -> SimpleNamespace:
    """One image f (B, T, F) through the model, one sum at a time."""
    n_backbones, n_blocks, _ = f.shape
    n_tasks, width = p["secondary_vector"].shape
    blocks, backbones, y = [], [], []
    attended = []
    for i in range(n_backbones):
        own_of_backbone = p["primary.weight"].ndim == 3
        wp = (p["primary.weight"][i] if own_of_backbone else p["primary.weight"]).T
        bp = p["primary.bias"][i, 0] if own_of_backbone else p["primary.bias"]
        vp = p["primary_vector"][i, :, 0] if own_of_backbone else p["primary_vector"]
        u = [np.tanh(wp @ f[i, j] + bp) for j in range(n_blocks)]
        a = softmax(np.array([u[j] @ vp for j in range(n_blocks)]))
        attended.append(sum(a[j] * f[i, j] for j in range(n_blocks)))
        blocks.append(a)
    for k in range(n_tasks):
        own = slice(k * width, (k + 1) * width)
        ws, bs = p["secondary.weight"][:, own].T, p["secondary.bias"][own]
        a = softmax(np.array([np.tanh(ws @ each + bs) @ p["secondary_vector"][k] for each in attended]))
        g = sum(a[i] * attended[i] for i in range(n_backbones))
        hidden = np.maximum(0, g @ p["hidden_weight"][k] + p["hidden_bias"][k, 0])
        out = hidden @ p["out_weight"][k] + p["out_bias"][k, 0]
        y += list(np.tanh(out) if squash else out)
        backbones.append(a)
    return SimpleNamespace(y=np.array(y), blocks=np.array(blocks), backbones=np.array(backbones))


def model_of(n_features: int, n_tasks: int, *, attention: int = 3, hidden: int = 5, seed: int = 0, **more) -> AMTL:
    torch.manual_seed(seed)
    return AMTL(n_features, n_tasks, attention=attention, hidden=hidden, dropout=0.5, **more).double().eval()


def parameters_of(model: torch.nn.Module) -> dict[str, NDArray[np.float64]]:
    return {name: value.detach().numpy() for name, value in model.named_parameters()}


def random_features(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).normal(size=shape))


sizes = st.integers(1, 5)


@settings(max_examples=80, deadline=None)
@given(
    n=sizes, b=sizes, t=sizes, f=sizes, k=sizes, attention=sizes, hidden=sizes, outputs=st.integers(1, 3),
    squash=st.booleans(), separate=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_model_is_the_formulas(n, b, t, f, k, attention, hidden, outputs, squash, separate, seed) -> None:
    own = {"n_separate": b if separate else None}
    model = model_of(f, k, attention=attention, hidden=hidden, n_outputs=outputs, squash=squash, seed=seed, **own)
    features = random_features(n, b, t, f, seed=seed)
    expected = [by_the_formulas(parameters_of(model), each, squash=squash) for each in features.numpy()]
    with torch.inference_mode():
        seen = model.attention(features)
        assert model(features).numpy() == pytest.approx(np.array([each.y for each in expected]), abs=1e-12)
    assert seen["blocks"].numpy() == pytest.approx(np.array([each.blocks for each in expected]), abs=1e-12)
    assert seen["backbones"].numpy() == pytest.approx(np.array([each.backbones for each in expected]), abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(n=sizes, b=sizes, t=sizes, k=sizes, seed=st.integers(0, 99))
def test_swapped_attends_to_backbones_of_a_block_and_then_to_blocks(n, b, t, k, seed) -> None:
    inside = model_of(4, k, seed=seed)
    model, features = Swapped(inside), random_features(n, b, t, 4, seed=seed)
    with torch.inference_mode():
        out, seen = model(features).numpy(), model.attention(features)
    for i, image in enumerate(features.numpy()):
        expected = by_the_formulas(parameters_of(inside), image.transpose(1, 0, 2), squash=True)
        assert out[i] == pytest.approx(expected.y, abs=1e-12)
        assert seen["backbones_of_blocks"][i].numpy() == pytest.approx(expected.blocks, abs=1e-12)  # (T, B)
        assert seen["blocks_of_tasks"][i].numpy() == pytest.approx(expected.backbones, abs=1e-12)  # (K, T)


@settings(max_examples=30, deadline=None)
@given(
    n=sizes, f=sizes, k=sizes, quarter=st.integers(2, 4), outputs=st.integers(1, 3), squash=st.booleans(),
    seed=st.integers(0, 99),
)  # fmt: skip
def test_mtl_is_layers_in_common_and_then_layers_of_their_own(n, f, k, quarter, outputs, squash, seed) -> None:
    torch.manual_seed(seed)
    model = MTL(f, k, width=8 * quarter, dropout=0.5, n_outputs=outputs, squash=squash).double().eval()
    features, p = random_features(n, f, seed=seed), parameters_of(model)
    y = np.zeros((n, k * outputs))
    for i, x in enumerate(features.numpy()):
        shared = np.maximum(0, p["shared1.weight"] @ x + p["shared1.bias"])
        shared = np.maximum(0, p["shared2.weight"] @ shared + p["shared2.bias"])
        for task in range(k):
            own = np.maximum(0, shared @ p["own1.weight"][task] + p["own1.bias"][task, 0])
            own = np.maximum(0, own @ p["own2.weight"][task] + p["own2.bias"][task, 0])
            out = own @ p["out.weight"][task] + p["out.bias"][task, 0]
            y[i, task * outputs : (task + 1) * outputs] = np.tanh(out) if squash else out
    assert model(features).detach().numpy() == pytest.approx(y, abs=1e-12)


@pytest.mark.parametrize(
    "model",
    [
        model_of(3, 2, attention=2, hidden=3),
        model_of(3, 2, attention=2, hidden=3, n_separate=2),
        model_of(3, 1, attention=2, hidden=3, n_outputs=3, squash=False),
        Swapped(model_of(3, 2, attention=2, hidden=3)),
    ],
    ids=["amtl", "separate", "classes", "swapped"],
)
def test_gradients_are_those_of_finite_differences(model, gradients_are_right) -> None:
    gradients_are_right(model, random_features(2, 2, 3, 3))


def test_gradients_of_mtl(gradients_are_right) -> None:
    torch.manual_seed(0)
    gradients_are_right(MTL(3, 2, width=8, dropout=0.5), random_features(2, 3))


@pytest.mark.parametrize("separate", [None, 2])
def test_every_parameter_gets_a_gradient(separate: int | None) -> None:
    model = model_of(6, 3, n_separate=separate)
    model(random_features(8, 2, 4, 6)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


def test_padding_is_as_if_it_were_not_there(padding_is_ignored) -> None:
    features = random_features(4, 2, 3, 6)
    padding_is_ignored(lambda width: model_of(width, 2), features, 3)
    padding_is_ignored(lambda width: model_of(width, 2, n_separate=2), features, 3)
    padding_is_ignored(lambda width: Swapped(model_of(width, 2)), features, 3)
    padding_is_ignored(lambda width: MTL(width, 2, width=16, dropout=0.5), random_features(4, 6), 3)


def test_attention_is_as_if_padding_were_not_there() -> None:
    wide, narrow = model_of(9, 2), model_of(6, 2)
    cut = {name: tuple(slice(n) for n in value.shape) for name, value in narrow.state_dict().items()}
    narrow.load_state_dict({name: value[cut[name]] for name, value in wide.state_dict().items()})
    features = random_features(4, 2, 3, 6)
    seen, padded = narrow.attention(features), wide.attention(torch.nn.functional.pad(features, (0, 3)))
    for name, weights in seen.items():
        assert torch.allclose(weights, padded[name], atol=1e-12)


def test_the_order_of_blocks_does_not_matter() -> None:
    model, features = model_of(6, 2), random_features(4, 2, 5, 6)
    order = torch.tensor([3, 0, 4, 1, 2])
    assert torch.allclose(model(features), model(features[:, :, order]))
    assert torch.allclose(
        model.attention(features)["blocks"][..., order], model.attention(features[:, :, order])["blocks"]
    )


def test_separate_backbones_have_nothing_in_common_in_their_primary_attention() -> None:
    model, features = model_of(6, 2, n_separate=3), random_features(4, 3, 5, 6)
    before = model.attention(features)["blocks"]
    with torch.no_grad():
        model.primary.weight[1] += 1
        model.primary_vector[1] += 1
    after = model.attention(features)["blocks"]
    assert torch.equal(before[:, [0, 2]], after[:, [0, 2]])
    assert not torch.allclose(before[:, 1], after[:, 1])


def test_tasks_have_nothing_in_common_but_the_primary_attention() -> None:
    both = model_of(6, 2)
    before = both(random_features(4, 2, 5, 6))
    with torch.no_grad():
        both.out_bias[1] += 1
        both.hidden_weight[1] += 1
        both.secondary.weight[:, 3:] += 1  # of task 1: the attention is 3 wide
        both.secondary_vector[1] += 1
    after = both(random_features(4, 2, 5, 6))
    assert torch.equal(before[:, 0], after[:, 0])
    assert not torch.equal(before[:, 1], after[:, 1])


def test_dropout_acts_in_training_only() -> None:
    model, features = model_of(6, 2, hidden=64), random_features(4, 2, 5, 6)
    assert torch.equal(model(features), model(features))
    model.train()
    assert not torch.equal(model(features), model(features))


@pytest.mark.parametrize("name", FAMILY)
def test_the_defaults_are_the_papers(name: str, target) -> None:
    system = find_system(name)
    options = system.settle([])
    paper = {
        "hidden": 256, "dropout": 0.5, "optimiser": "adam", "lr": 1e-3, "batch": 32, "epochs": 60, "patience": 10,
    }  # fmt: skip
    assert {name: options[name] for name in paper} == paper
    assert (system.repeats, system.per_task) == (5, name == "amtl-single")
    model = system.build(((4, 16, 2048),), target("regression", 12), options)
    shapes = {name.removeprefix("amtl."): tuple(value.shape) for name, value in model.named_parameters()}
    assert shapes["primary.weight"] == ((4, 2048, 128) if name == "amtl-separate" else (2048, 128))
    assert shapes["hidden_weight"] == (12, 2048, 256)


def test_the_widths_of_mtl(target) -> None:
    system = find_system("mtl")
    model = system.build(((8064,),), target("regression", 12), system.settle([]))
    layers = (model.shared1, model.shared2)
    assert [(each.in_features, each.out_features) for each in layers] == [(8064, 512), (512, 256)]
    assert [tuple(each.weight.shape) for each in (model.own1, model.own2, model.out)] == [
        (12, 256, 128), (12, 128, 64), (12, 64, 1),
    ]  # fmt: skip
    assert system.repeats == 5


@pytest.mark.parametrize("name", [*FAMILY, "mtl"])
@pytest.mark.parametrize("kind", KINDS)
def test_ratings_are_bounded_and_logits_are_not(name: str, kind, target) -> None:
    system = find_system(name)
    shape = (6,) if name == "mtl" else (2, 3, 6)
    torch.manual_seed(0)
    model = system.build((shape,), target(kind, 3), system.settle([]))
    out = model.eval()(1e4 * torch.randn(5, *shape))
    assert out.shape == (5, 3)
    assert (out.abs().max() <= 1) == (kind == "regression")


def test_learns_what_one_block_says_wherever_it_is_and_looks_at_that_block(learn, target) -> None:
    """Feature 0 marks the informative block; feature 1 is the label there, and noise elsewhere."""
    n, rng = 640, np.random.default_rng(0)
    values = rng.normal(size=(n, 2, 16, 6)).astype(np.float32)
    labels, place = rng.uniform(-0.5, 0.5, (n, 1)).astype(np.float32), rng.integers(0, 16, n)
    values[..., 0] = 0
    values[np.arange(n), :, place, 0] = 2
    values[np.arange(n), :, place, 1] = 2 * labels
    features, unseen = torch.from_numpy(values), slice(480, n)
    for name in ("amtl", "amtl-separate"):
        system = find_system(name)
        torch.manual_seed(0)
        model = system.build(((2, 16, 6),), target("regression", 1), system.settle(SMALL))
        learn(model, target("regression", 1), features[:480], torch.from_numpy(labels[:480]), steps=400)
        with torch.inference_mode():
            out, blocks = model(features[unseen]).numpy(), model.attention(features[unseen])["blocks"].numpy()
        assert np.corrcoef(out[:, 0], labels[unseen, 0])[0, 1] > 0.9
        assert blocks[np.arange(160), :, place[unseen]].mean() > 0.6  # evenly spread it would be 1/16


def test_each_task_learns_from_the_backbone_that_knows_it_and_looks_at_it(learn, target) -> None:
    """Features 0 to 2 say which backbone it is, feature 3 is all it says; 1 knows task 0 and 2 knows task 1."""
    n, rng = 320, np.random.default_rng(1)
    says = rng.normal(size=(n, 3)).astype(np.float32)
    values = np.zeros((n, 3, 4, 6), np.float32)
    values[:, [0, 1, 2], :, [0, 1, 2]] = 1
    values[..., 3] = says[:, :, None]
    labels = np.clip(0.15 * says[:, 1:], -0.5, 0.5)
    features, unseen = torch.from_numpy(values), slice(240, n)
    system = find_system("amtl")
    torch.manual_seed(0)
    model = system.build(((3, 4, 6),), target("regression", 2), system.settle(SMALL))
    learn(model, target("regression", 2), features[:240], torch.from_numpy(labels[:240]), steps=400)
    with torch.inference_mode():
        out, backbones = model(features[unseen]).numpy(), model.attention(features[unseen])["backbones"].numpy()
    for task, knows in enumerate((1, 2)):
        assert np.corrcoef(out[:, task], labels[unseen, task])[0, 1] > 0.9
        assert backbones[:, task, knows].mean() > 0.6  # evenly spread it would be 1/3


def test_swapped_looks_at_the_block_that_knows_a_task_and_there_at_the_backbone(learn, target) -> None:
    """Backbone 1 of block t says the label of task t, and is marked; everything else is noise."""
    n, rng = 640, np.random.default_rng(2)
    labels = rng.uniform(-0.5, 0.5, (n, 2)).astype(np.float32)
    values = rng.normal(size=(n, 3, 4, 7)).astype(np.float32)
    values[..., :5] = 0
    values[:, 1, :, 0] = 2  # the backbone
    for block in range(4):
        values[:, :, block, 1 + block] = 2
    values[:, 1, :2, 5] = 2 * labels
    features, unseen = torch.from_numpy(values), slice(480, n)
    system = find_system("amtl-swapped")
    torch.manual_seed(0)
    model = system.build(((3, 4, 7),), target("regression", 2), system.settle(SMALL))
    learn(model, target("regression", 2), features[:480], torch.from_numpy(labels[:480]), steps=500)
    with torch.inference_mode():
        out, seen = model(features[unseen]).numpy(), model.attention(features[unseen])
    for task in (0, 1):
        assert np.corrcoef(out[:, task], labels[unseen, task])[0, 1] > 0.9
        assert seen["blocks_of_tasks"][:, task, task].mean() > 0.5  # evenly spread it would be 1/4
    assert seen["backbones_of_blocks"][:, :2, 1].mean() > 0.6  # evenly spread it would be 1/3


def test_classes_are_learnt_from_the_block_that_shows_them(learn, target) -> None:
    """One of sixteen blocks shows the class in features 1 to 3; feature 0 marks it."""
    n, rng = 480, np.random.default_rng(3)
    classes, place = rng.integers(0, 3, n), rng.integers(0, 16, n)
    values = rng.normal(size=(n, 1, 16, 5)).astype(np.float32)
    values[..., 0] = 0
    values[np.arange(n), :, place, 0] = 2
    values[np.arange(n), :, place, 1:4] = 2 * np.eye(3)[classes][:, None]
    features, labels = torch.from_numpy(values), torch.from_numpy(classes[:, None].astype(np.float32))
    system = find_system("amtl")
    torch.manual_seed(0)
    model = system.build(((1, 16, 5),), target("multiclass", 3), system.settle(SMALL))
    learn(model, target("multiclass", 3), features[:360], labels[:360], steps=300)
    with torch.inference_mode():
        assert (model(features[360:]).argmax(1).numpy() == classes[360:]).mean() > 0.9
