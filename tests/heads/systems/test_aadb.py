"""AADB's networks: CaffeNet, the order of two photos, attributes; and a planted order that regression does not find."""

from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import nn
from torch.nn.functional import margin_ranking_loss

from heads.errors import LabelsError, UnknownSystemError
from heads.labels.target import JointTarget, Target
from heads.systems import find_system
from heads.systems.aadb import Aadb, Adapted, CaffeNet, Ranking, aadb_loss, half_squared_error
from heads.systems.caffe import CaffePhotos
from heads.systems.pixels import Photos
from heads.training.optimiser import Optimiser

SMALL = ("width=0.125", "hidden=32", "feature=16", "crop=67")
RNG = np.random.default_rng(0)


def build(name: str, n_tasks: int, *changes: str) -> Aadb:
    system, target = find_system(name), Target("regression", tuple(f"t{i}" for i in range(n_tasks)))
    torch.manual_seed(0)
    model = system.build(((72, 72, 3),), target, system.settle([*SMALL, *changes]))
    assert isinstance(model, Aadb)
    return model


# ---- the trunk


def test_caffenet_has_the_layers_of_caffe() -> None:
    """Pool before norm, second, fourth and fifth convolution in two groups: torchvision's AlexNet has neither."""
    net = CaffeNet(227, width=1 / 48, hidden=5)
    pictures, sides = torch.zeros(1, 3, 227, 227), {}
    for name, layer in net.named_children():
        pictures = layer(pictures)
        sides[name] = tuple(pictures.shape[2:])
    known = {"conv1": 55, "pool1": 27, "conv2": 27, "pool2": 13, "conv3": 13, "conv4": 13, "conv5": 13, "pool5": 6}
    assert {name: sides[name] for name in known} == {name: (side, side) for name, side in known.items()}
    order = " ".join(name for name in sides if name.startswith(("conv", "pool", "norm", "fc")))
    assert order == "conv1 pool1 norm1 conv2 pool2 norm2 conv3 conv4 conv5 pool5 fc6 fc7"
    assert [getattr(net, f"conv{i}").groups for i in range(1, 6)] == [1, 2, 1, 2, 2]


def test_the_widths_are_those_of_the_authors_model() -> None:
    net = CaffeNet(227, hidden=1)
    widths = [
        (each.out_channels, *each.kernel_size, each.stride[0]) for each in net.children() if isinstance(each, nn.Conv2d)
    ]
    assert widths == [(96, 11, 11, 4), (256, 5, 5, 1), (384, 3, 3, 1), (384, 3, 3, 1), (256, 3, 3, 1)]
    assert net.fc6.in_features == 256 * 6 * 6
    options = find_system("aadb-att").settle([])
    released = {"hidden": 4096, "feature": 512, "branch": 256, "joined": 128, "crop": 227, "dropout": 0.5}
    assert released.items() <= options.items()
    score = Adapted(4, 512, 11, branch=256, joined=128)
    assert (score.fc10.in_features, score.fc8.out_features, score.fc11.in_features) == (3328, 11 * 256, 128)


def test_a_crop_may_be_as_small_as_its_maps_allow() -> None:
    assert build("aadb-reg", 2).eval()(torch.zeros(3, 72, 72, 3, dtype=torch.uint8)).shape == (3, 2)
    with pytest.raises(UnknownSystemError, match="'crop' is 67 or more; found '66'"):
        build("aadb-reg", 1, "crop=66")


def test_caffe_saw_blue_first_and_no_spread() -> None:
    pixels = torch.from_numpy(RNG.integers(256, size=(2, 8, 9, 3), dtype=np.uint8))
    seen = CaffePhotos((8, 9, 3), 6).eval()
    expected = pixels[:, 1:7, 1:7].numpy()[..., ::-1].astype(float) - np.array([104, 117, 123])
    np.testing.assert_allclose(seen(pixels), expected.transpose(0, 3, 1, 2), atol=1e-3)
    np.testing.assert_allclose(seen.ten(pixels)[:, 4], expected.transpose(0, 3, 1, 2), atol=1e-3)
    assert type(build("aadb-reg", 1, "pixels=caffe").photos) is CaffePhotos
    assert type(build("aadb-reg", 1).photos) is Photos


def test_at_its_rates_a_wide_network_does_not_explode() -> None:
    """Fully connected layers that begin as the convolutions do lose 1e4 after one step, and then no number."""
    system, target = find_system("aadb-reg"), Target("regression", ("score",))
    options = system.settle(["width=0.125", "crop=67", "hidden=2048"])
    torch.manual_seed(0)
    model = system.build(((72, 72, 3),), target, options)
    (stage,) = system.stages(options)
    factors = {n: stage.factor(name) for n, (name, _) in enumerate(model.named_parameters())}
    optimiser = Optimiser([*model.parameters()], options, factors=factors)
    pixels, labels = torch.from_numpy(RNG.integers(256, size=(8, 72, 72, 3), dtype=np.uint8)), torch.rand(8, 1) - 0.5
    for _ in range(6):
        optimiser.clear_gradients()
        loss = model.training_loss(labels, pixels)
        loss.backward()
        optimiser.step(stage.lr)
    assert loss.item() < 1


# ---- the order of two photos


def pairs_of(labels: NDArray[np.float64], gap: float) -> list[tuple[int, int]]:
    """Known labels at least so far apart, and not the same."""
    return [
        (i, j)
        for i, j in combinations(range(len(labels)), 2)
        if abs(labels[i] - labels[j]) >= gap and labels[i] != labels[j]
    ]


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 8), k=st.integers(1, 3), seed=st.integers(0, 99),
    gap=st.sampled_from([0.0, 0.1, 0.3]), margin=st.sampled_from([0.0, 0.02, 0.5]),
)  # fmt: skip
def test_the_rank_loss_is_half_of_torchs_over_the_pairs_of_a_minibatch(n, k, seed, gap, margin) -> None:
    rng = np.random.default_rng(seed)
    labels = rng.choice([*np.linspace(-0.5, 0.5, 6), np.nan], size=(n, k))
    outputs = rng.normal(size=(n, k)) / 4
    expected = 0.0
    for task in range(k):
        if pairs := pairs_of(labels[:, task], gap):
            first, second = (torch.tensor([pair[side] for pair in pairs]) for side in (0, 1))
            said, true = torch.from_numpy(outputs[:, task]), torch.from_numpy(labels[:, task])
            order = (true[first] - true[second]).sign()
            expected += margin_ranking_loss(said[first], said[second], order, margin=margin).item() / 2
    found = Ranking(3.0, margin, gap).loss(torch.from_numpy(outputs), torch.from_numpy(labels))
    assert found.item() == pytest.approx(3 * expected, abs=1e-12)


def test_without_two_photos_to_compare_the_rank_loss_is_zero_and_so_is_its_gradient() -> None:
    outputs = torch.randn(3, 2, requires_grad=True)
    labels = torch.tensor([[0.1, torch.nan], [0.1, 0.4], [torch.nan, torch.nan]])
    loss = Ranking(1.0, 0.02, 0.25).loss(outputs, labels)
    loss.backward()
    assert loss.item() == 0
    assert (outputs.grad == 0).all()


def test_both_losses_are_learnt_by_and_regression_alone_is_judged_by() -> None:
    pixels = torch.from_numpy(RNG.integers(256, size=(6, 72, 72, 3), dtype=np.uint8))
    labels = torch.tensor([[0.4, -0.2], [-0.4, torch.nan], [0.0, 0.1], [0.3, 0.5], [-0.1, -0.5], [0.2, 0.0]])
    model = build("aadb-rank", 2, "rank_weight=2", "dropout=0", "flip=false", "crop=72")
    said = model(pixels)
    errors = [((said[:, k] - labels[:, k])[labels[:, k].isfinite()] ** 2).mean().item() / 2 for k in range(2)]
    ranks = Ranking(2.0, 0.02, 0.25).loss(said, labels).item()
    assert ranks > 0
    assert [each.item() for each in model.losses(labels, pixels)] == pytest.approx([sum(errors), ranks], rel=1e-5)
    loss = model.training_loss(labels, pixels)
    assert loss.item() == pytest.approx(sum(errors), rel=1e-5)
    weights = list(model.score.parameters())
    both = torch.autograd.grad(sum(model.losses(labels, pixels)), weights)
    for found, expected in zip(torch.autograd.grad(loss, weights), both, strict=True):
        assert torch.allclose(found, expected, atol=1e-6)
    alone = build("aadb-reg", 2, "dropout=0", "flip=false", "crop=72")
    assert [each.item() for each in alone.losses(labels, pixels)] == pytest.approx([sum(errors), 0], rel=1e-5)
    for name in ("aadb-reg", "aadb-rank", "aadb-att"):
        judges = find_system(name).loss(Target("regression", ("a", "b")))
        assert judges(said, labels).item() == pytest.approx(sum(errors), rel=1e-5)


def ranked(weight: float, seed: int) -> float:
    """The rank correlation that a linear map reaches on 200 ratings that hardly differ."""
    draw = torch.Generator().manual_seed(seed)
    x, w = torch.randn(200, 20, generator=draw), torch.randn(20, 1, generator=draw)
    labels = 0.01 * torch.tanh(x @ w / 2)
    torch.manual_seed(seed)
    model, ranking = nn.Linear(20, 1), Ranking(weight, margin=0.02, gap=0.0)
    parameters = list(model.parameters())
    for _ in range(6):
        for rows in torch.randperm(200, generator=draw).split(10):
            said = model(x[rows])
            loss = half_squared_error(said, labels[rows]) + ranking.loss(said, labels[rows])
            for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
                parameter.data -= 0.01 * gradient
    return float(spearmanr(model(x).detach()[:, 0], labels[:, 0])[0])


@pytest.mark.parametrize("seed", range(3))
def test_ranking_finds_an_order_that_regression_does_not(seed: int) -> None:
    """With its sign the other way round it would find the opposite order."""
    regression, ranking, flipped = (ranked(weight, seed) for weight in (0.0, 1.0, -1.0))
    assert ranking > 0.75
    assert abs(regression) < 0.45
    assert flipped < -0.4


# ---- attributes


def test_attributes_are_branches_and_help_the_score() -> None:
    model = Adapted(5, 4, 3, branch=6, joined=7).double()
    fc7, feature = torch.randn(8, 5).double(), torch.randn(8, 4).double()
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    inside = np.maximum(
        0, np.einsum("ni,kji->nkj", fc7.numpy(), p["fc8.weight"].reshape(3, 6, 5)) + p["fc8.bias"].reshape(3, 6)
    )
    attributes = np.einsum("nkj,kj->nk", inside, p["fc9.weight"][:, :, 0]) + p["fc9.bias"][:, 0, 0]
    joined = np.maximum(0, np.hstack([feature.numpy(), inside.reshape(8, 18)]) @ p["fc10.weight"].T + p["fc10.bias"])
    score = joined @ p["fc11.weight"].T + p["fc11.bias"]
    np.testing.assert_allclose(model(fc7, feature).detach(), np.hstack([score, attributes]), atol=1e-12)


def test_the_branches_learn_first_then_everything_with_the_trunk_slower() -> None:
    system = find_system("aadb-att")
    options = system.settle([*SMALL, "branch_epochs=2", "epochs=3", "lr=0.01", "trunk_lr=0.001"])
    first, last = system.stages(options)
    names = [name for name, _ in build("aadb-att", 3).named_parameters()]
    assert (first.epochs, last.epochs) == (2, 3)
    assert {name.split(".")[0] for name in names if not name.startswith(first.parameters)} == {"trunk", "feature"}
    assert all(name.startswith(last.parameters) for name in names)
    for name in names:
        assert last.lr * last.factor(name) == pytest.approx(0.001 if name.startswith("trunk.") else 0.01)
        assert last.leaves(name) == name.endswith("bias")


def test_a_score_without_attributes_is_refused() -> None:
    with pytest.raises(
        LabelsError, match="its first task, and attributes, the others; there is only t0; add attributes"
    ):
        build("aadb-att", 1)


# ---- content


CONTENT = JointTarget.of([Target("regression", ("score", "light")), Target("multiclass", ("shows",), ("x", "y", "z"))])


def test_what_a_photo_shows_weighs_the_features_of_each_content() -> None:
    model = Adapted(5, 4, 1, 3, branch=6, joined=7).double()
    fc7, feature = torch.randn(8, 5).double(), torch.randn(8, 4).double()
    p = {name: value.detach().numpy() for name, value in model.named_parameters()}
    x = fc7.numpy()
    logits = x @ p["classes.weight"].T + p["classes.bias"]
    likely = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    of_class = np.maximum(0, np.einsum("ni,cfi->ncf", x, p["content.weight"].reshape(3, 4, 5)))
    content = np.einsum("nc,ncf->nf", likely, of_class)  # biases begin at 0
    inside = np.maximum(0, x @ p["fc8.weight"].T)
    attribute = inside @ p["fc9.weight"][0] + p["fc9.bias"][0]
    joined = np.maximum(0, np.hstack([feature.numpy(), inside, content]) @ p["fc10.weight"].T)
    expected = np.hstack([joined @ p["fc11.weight"].T, attribute, logits])
    np.testing.assert_allclose(model(fc7, feature).detach(), expected, atol=1e-12)


def test_content_is_learnt_beside_the_ratings_and_only_the_score_is_ranked() -> None:
    system = find_system("aadb-cont")
    torch.manual_seed(0)
    options = system.settle([*SMALL, "dropout=0", "flip=false", "crop=72", "rank_weight=2", "branch=8", "joined=8"])
    model = system.build(((72, 72, 3),), CONTENT, options)
    pixels = torch.from_numpy(RNG.integers(256, size=(4, 72, 72, 3), dtype=np.uint8))
    labels = torch.tensor([[0.4, 0.1, 2], [-0.4, torch.nan, 0], [0.0, 0.5, torch.nan], [torch.nan, -0.5, 1]])
    said = model(pixels)
    assert said.shape == (4, 5)
    errors = ((said[:3, 0] - labels[:3, 0]) ** 2).mean() / 2 + (
        (said[[0, 2, 3], 1] - labels[[0, 2, 3], 1]) ** 2
    ).mean() / 2
    entropy = -said[:, 2:].log_softmax(1)[[0, 1, 3], [2, 0, 1]].mean()
    judged = (errors + entropy).item()
    assert aadb_loss(CONTENT)(said, labels).item() == pytest.approx(judged, rel=1e-5)
    ranks = Ranking(2.0, 0.02, 0.25).loss(said[:, :1], labels[:, :1]).item()
    assert [each.item() for each in model.losses(labels, pixels)] == pytest.approx([judged, ranks], rel=1e-5)
