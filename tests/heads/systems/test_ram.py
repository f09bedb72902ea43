"""RAM: the retina against slices, the model against numpy, the places' gradient against its formula, a planted cue."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor, nn

from heads.errors import FeaturesError, UnknownSystemError
from heads.labels.target import Target
from heads.runs.run import Run
from heads.runs.weights import load
from heads.systems.ram import RAM, Pooled, Retina
from heads.systems.registry import find_system

from ..conftest import heads, refused

YES = Target("binary", ("liked",))
Array = NDArray[np.float64]


def ram(target: Target = YES, *, see: nn.Module | None = None, seed: int = 0, **changes: Any) -> RAM:
    """Of pictures instead of pixels."""
    torch.manual_seed(seed)
    retina = changes.pop("retina", Retina(4, 2, 2))
    known = {
        "n_seen": 5, "n_where": 4, "n_joined": 6, "hidden": 7, "locator_hidden": 3, "lstm": False, "n_glimpses": 3,
        "sd": 0.3, "into_core": True, "policy": 1.0, "uniform": 0.5,
    }  # fmt: skip
    known |= changes
    n_pixels = 3 * len(retina.factors) * retina.side**2
    see = see or nn.Sequential(nn.Flatten(), nn.Linear(n_pixels, known["n_seen"]))
    return RAM(nn.Identity(), target, retina, see, **known)


def drawn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# ---- the retina


def patch(picture: Array, place: tuple[float, float], across: int, side: int) -> Array:
    """(3, H, W) -> (3, side, side), pixel by pixel."""
    _, height, width = picture.shape
    left = int(np.floor((place[0] + 1) / 2 * width - across / 2 + 0.5))
    top = int(np.floor((place[1] + 1) / 2 * height - across / 2 + 0.5))
    window = np.zeros((3, across, across))
    for y in range(across):
        for x in range(across):
            if 0 <= top + y < height and 0 <= left + x < width:
                window[:, y, x] = picture[:, top + y, left + x]
    factor = across // side
    return window.reshape(3, side, factor, side, factor).mean((2, 4))


def glimpse(retina: Retina, picture: Array, place: Any) -> Array:
    return np.concatenate([patch(picture, place, retina.side * factor, retina.side) for factor in retina.factors])


@settings(max_examples=100, deadline=None)
@given(
    size=st.tuples(st.integers(1, 13), st.integers(1, 13)),
    side=st.integers(1, 4),
    scale=st.integers(1, 3),
    n_patches=st.integers(1, 3),
    places=st.lists(st.tuples(*[st.integers(-16, 16).map(lambda n: n / 16)] * 2), min_size=2, max_size=4),
)
def test_the_retina_sees_what_slices_hold_at_every_place_corners_too(size, side, scale, n_patches, places) -> None:
    pictures = drawn(len(places), 3, *size)
    retina = Retina(side, scale, n_patches)
    seen = retina(retina.pad(pictures), torch.tensor(places, dtype=torch.float64)).numpy()
    expected = [glimpse(retina, *each) for each in zip(pictures.numpy(), places, strict=True)]
    np.testing.assert_allclose(seen, np.stack(expected), atol=1e-12)


def test_a_place_is_x_to_the_right_and_then_y_downwards() -> None:
    picture = torch.zeros(1, 3, 8, 12)
    picture[:, :, :4, 8:] = 1  # the upper right corner
    retina = Retina(4, 2, 1)
    where = {
        place: float(retina(retina.pad(picture), torch.tensor([place])).mean()) for place in ((0.7, -0.5), (-0.5, 0.7))
    }
    assert where == {(0.7, -0.5): 1, (-0.5, 0.7): 0}
    assert float(retina(retina.pad(picture), torch.tensor([[1.0, -1.0]])).mean()) == 0.25  # the rest is beyond it


# ---- the model, in numpy


def linear(model: nn.Module, name: str, x: Array) -> Array:
    layer = model.get_submodule(name)
    return x @ layer.weight.detach().numpy().T + layer.bias.detach().numpy()


def relu(x: Array) -> Array:
    return np.maximum(0, x)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


def unrolled(model: RAM, pictures: Array, noise: Array) -> tuple[Array, Array, Array]:
    """Logits, means and places as they were drawn, as the formulas of `RAM` say."""
    n, hidden = len(pictures), model.out.in_features
    core = {name: value.detach().numpy() for name, value in model.core.named_parameters()}
    h, c, means, places = np.zeros((n, hidden)), np.zeros((n, hidden)), [], []
    for t in range(model.n_glimpses):
        mu = np.clip(linear(model, "locator.2", relu(linear(model, "locator.0", h))), -1, 1)
        z = mu + model.sd * noise[:, t]
        place = np.clip(z, -1, 1)
        x = np.stack([glimpse(model.retina, *each) for each in zip(pictures, place, strict=True)])
        both = np.concatenate([relu(linear(model, "see.1", x.reshape(n, -1))), relu(linear(model, "where", place))], 1)
        g = relu(linear(model, "joined", both))
        gates = g @ core["weight_ih"].T + core["bias_ih"] + h @ core["weight_hh"].T + core["bias_hh"]
        if isinstance(model.core, nn.LSTMCell):
            i, f, new, o = np.split(gates, 4, 1)
            c = sigmoid(f) * c + sigmoid(i) * np.tanh(new)
            h = sigmoid(o) * np.tanh(c)
        else:
            h = relu(gates)
        means.append(mu)
        places.append(z)
    return linear(model, "out", h), np.stack(means, 1), np.stack(places, 1)


@pytest.mark.parametrize("lstm", [False, True])
def test_without_noise_it_looks_where_the_locator_says(lstm: bool) -> None:
    model = ram(lstm=lstm, n_glimpses=4).double().eval()
    pictures = drawn(5, 3, 9, 11)
    with torch.no_grad():
        out, means, places = model.look(pictures)
        assert torch.equal(model(pictures), out)
    expected = unrolled(model, pictures.numpy(), np.zeros((5, 4, 2)))
    for found, known in zip((out, means, places), expected, strict=True):
        np.testing.assert_allclose(found, known, atol=1e-12)
    assert torch.equal(means, places)
    first = model.learned()["first_glimpse"].numpy()
    np.testing.assert_allclose(np.tile(first, (5, 1)), means[:, 0], atol=1e-12)
    assert means[:, 1:].std(0).min() > 0, "later places depend on the photo"


def log_normal(z: Array, mu: Array, sd: float) -> Array:
    return np.log(np.exp(-(((z - mu) / sd) ** 2) / 2) / (sd * np.sqrt(2 * np.pi)))


CASES = [
    (YES, [[1.0], [0.0], [1.0], [0.0]]),
    (Target("multiclass", ("class",), ("a", "b", "c")), [[2.0], [0.0], [1.0], [1.0]]),
    (Target("multilabel", ("joy", "awe")), [[1.0, 0.0], [np.nan, 1.0], [1.0, np.nan], [0.0, 1.0]]),
]


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize(("target", "labels"), CASES)
def test_the_loss_is_the_usual_one_the_baselines_and_that_of_the_places(target, labels, lstm) -> None:
    model = ram(target, lstm=lstm, policy=0.7, sd=0.9).double().train()
    model.generator = torch.Generator().manual_seed(3)
    pictures, y = drawn(4, 3, 9, 11), np.array(labels)
    losses = model.losses(torch.from_numpy(y), pictures)
    model.generator.manual_seed(3)
    counted = model.training_loss(torch.from_numpy(y), pictures)
    model.generator.manual_seed(3)
    noise = np.stack([torch.randn(4, 2, generator=model.generator).numpy() for _ in range(3)], 1)
    out, mu, z = unrolled(model, pictures.numpy(), noise)
    known = np.isfinite(y)
    if target.kind == "multiclass":
        usual = np.mean(np.log(np.exp(out).sum(1)) - out[np.arange(4), y[:, 0].astype(int)])
        right = (out.argmax(1) == y[:, 0]).astype(float)
    else:
        p = sigmoid(out)
        entropy = np.where(known, -np.log(np.where(y == 1, p, 1 - p)), 0)
        usual = (entropy.sum(0) / known.sum(0)).sum()
        right = (((out > 0) == y) & known).sum(1) / known.sum(1)
    b = 1 / max(2, len(target.classes))
    assert np.abs(z).max() > 1, "some places are clipped"
    places = log_normal(z, mu, 0.9).sum((1, 2)) * (right - b)
    assert float(losses[0].detach()) == pytest.approx(usual, abs=1e-6)
    assert float(losses[1].detach()) == pytest.approx(np.mean((b - right) ** 2) - 0.7 * np.mean(places), abs=1e-6)
    assert torch.equal(counted, losses[0]), "the history has what inner rows are judged by"


# ---- the gradient of the places


def rewarded_beyond(c: float, mu: float, sd: float) -> RAM:
    """One glimpse, at x = mu on average; it says yes, and is right, if x > c."""
    model = ram(
        retina=Retina(1, 1, 1), see=nn.Sequential(nn.Flatten(), nn.Linear(3, 1)),
        n_seen=1, n_where=1, n_joined=1, hidden=1, locator_hidden=0, n_glimpses=1, sd=sd,
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
        model.locator.bias[0] = mu
        model.where.weight[0, 0], model.where.bias[0] = 1, -c  # ReLU(x - c)
        model.joined.weight[0, 1] = model.core.weight_ih[0, 0] = model.out.weight[0, 0] = 1
        model.out.bias[0] = -1e-6
        model.baseline.fill_(0.4)
    return model


@pytest.mark.parametrize(("c", "mu", "sd"), [(0.4, 0.0, 0.25), (0.1, 0.0, 0.22), (0.9, 0.8, 0.3), (-0.5, -0.9, 0.5)])
def test_the_gradient_of_a_place_is_that_of_the_reward_that_is_expected(c: float, mu: float, sd: float) -> None:
    """From a place that follows its mean it would be 0, from a clipped one too small, through `where` too large."""
    model, n = rewarded_beyond(c, mu, sd).train(), 200_000
    model.generator = torch.Generator().manual_seed(0)
    model.training_loss(torch.ones(n, 1), torch.zeros(n, 3, 1, 1)).backward()
    right = 0.5 * (1 - torch.erf(torch.tensor((c - mu) / sd / 2**0.5))).item()  # P(x > c)
    expected = np.exp(-(((c - mu) / sd) ** 2) / 2) / (sd * np.sqrt(2 * np.pi))
    error = 4 * np.sqrt(0.5 / n) / sd
    np.testing.assert_allclose(model.locator.bias.grad, [-expected, 0], atol=error)
    assert float(model.baseline.grad) == pytest.approx(2 * (0.4 - right), abs=0.01)


@pytest.mark.parametrize("lstm", [False, True])
@pytest.mark.parametrize("into_core", [True, False])
def test_what_the_places_learn_from(into_core: bool, lstm: bool) -> None:
    def gradients(policy: float) -> dict[str, Tensor]:
        model = ram(into_core=into_core, policy=policy, lstm=lstm).double().train()
        model.generator = torch.Generator().manual_seed(0)
        model.training_loss(torch.tensor([[1.0], [0.0]] * 4), drawn(8, 3, 9, 11)).backward()
        return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in model.named_parameters()}

    without, with_it = gradients(0), gradients(1)
    moved = {name.partition(".")[0] for name in with_it if not torch.equal(with_it[name], without[name])}
    assert moved == ({"locator", "core", "joined", "see", "where"} if into_core else {"locator"})
    assert not any(value.any() for name, value in without.items() if name.startswith("locator")), "by reward alone"


# ---- noise


def test_places_have_noise_in_training_only_and_from_the_models_own_generator() -> None:
    model, pictures = ram().double(), drawn(5, 3, 9, 11)
    assert torch.equal(model.eval().look(pictures)[2], model.look(pictures)[2])
    model.train().generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        _, means, places = model.look(pictures)
    assert torch.equal(torch.get_rng_state(), before)
    assert (places - means).std() == pytest.approx(0.3, rel=0.4)
    assert not torch.equal(model.look(pictures)[2], places)
    model.generator.manual_seed(0)
    assert torch.equal(model.look(pictures)[2], places)


# ---- a planted cue


def with_cue(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Pictures (n, 3, 32, 32): the brighter half of the centre says on which side stripes have the class (n, 1).

    The stripes on the other side have any, so that who always looks to one side is right in three of four.
    """
    draw = np.random.default_rng(seed)
    grey = draw.normal(0, 0.3, (n, 32, 32)).astype(np.float32)
    side, classes, other = draw.integers(0, 2, (3, n))
    bars = np.where(np.arange(8) % 4 < 2, 1.5, -1.5)
    stripes = np.stack([np.tile(bars, (8, 1)), np.tile(bars[:, None], (1, 8))])
    grey[:, 12:20, 4:12] += stripes[np.where(side == 0, classes, other)]
    grey[:, 12:20, 20:28] += stripes[np.where(side == 1, classes, other)]
    grey[:, 12:20, 12:16] += np.where(side == 0, 1.5, -1.5)[:, None, None]
    grey[:, 12:20, 16:20] += np.where(side == 1, 1.5, -1.5)[:, None, None]
    return torch.from_numpy(grey[:, None]).repeat(1, 3, 1, 1), torch.from_numpy(classes[:, None]).float()


def accuracy_with_cue(policy: float) -> float:
    """Of new pictures, after 400 steps."""
    model = ram(
        retina=Retina(8, 2, 1), n_seen=64, n_where=64, n_joined=64, hidden=64, locator_hidden=0, n_glimpses=2,
        policy=policy, uniform=0,
    ).train()  # fmt: skip
    model.generator = torch.Generator().manual_seed(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=2e-3)
    pictures, labels = with_cue(8000, seed=0)
    for rows in torch.randint(len(labels), (400, 128), generator=torch.Generator().manual_seed(0)):
        optimiser.zero_grad()
        model.training_loss(labels[rows], pictures[rows]).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1)
        optimiser.step()
    pictures, labels = with_cue(500, seed=1)
    with torch.no_grad():
        said = model.eval()(pictures) > 0
    return float((said == labels).float().mean())


def test_it_learns_where_to_look() -> None:
    """Measured: 1.00 with each of three seeds, and half of them right if the reward counts against the place."""
    assert accuracy_with_cue(policy=1) > 0.95


def test_without_a_reward_it_does_not_learn_where_to_look() -> None:
    assert accuracy_with_cue(policy=0) < 0.8


# ---- what it looked at


def test_edges_of_a_glimpse_are_shares_of_the_stored_photo() -> None:
    photos = Pooled((100, 200, 3), 50)  # its centre, 100 x 100, of which each cell is 2 x 2 pixels
    edges = photos.edges(torch.tensor([[0.0, 0.0], [-1.0, 1.0]]), 10)
    assert edges.tolist() == pytest.approx(np.array([[0.45, 0.4, 0.55, 0.6], [0.2, 0.9, 0.3, 1.1]]), abs=1e-6)


CHANGES = ("size=12", "glimpse=4", "patches=2", "hidden=8", "joined=8", "epochs=1", "glimpses=3", "uniform=0.6")
PIXELS = np.random.default_rng(0).integers(256, size=(20, 12, 12, 3), dtype=np.uint8)


def words_to_train(folder: Path, write_store: Callable[..., None], *changes: str) -> list[Any]:
    """A command that trains ram on twenty small photos."""
    names = [f"{i}.jpg" for i in range(20)]
    write_store(folder / "px.zarr", names, {"px": PIXELS})
    pd.DataFrame({"path": names, "liked": [0, 1] * 10}).to_csv(folder / "labels.csv", index=False)
    given = [word for change in (*CHANGES, *changes) for word in ("--set", change)]
    where = ["--labels", folder / "labels.csv", "--out", folder / "run", "--folds", 2]
    return ["train", "ram", folder / "px.zarr", *where, *given]


def test_a_run_keeps_where_the_model_of_the_first_repeat_looked_and_draws_it(
    tmp_path: Path, write_store: Callable[..., None]
) -> None:
    done = heads(*words_to_train(tmp_path, write_store), "--repeats", 2)
    assert done.exit_code == 0, done.output
    run = Run(tmp_path / "run")
    assert run.attention is not None
    glimpses = run.attention.arrays["glimpses"]
    system, fold = find_system("ram"), run.folds["fold"][5]
    model = system.build(((12, 12, 3),), YES, system.settle(CHANGES)).eval()
    model.load_state_dict(load(tmp_path / "run" / "weights" / f"repeat0-fold{fold}.safetensors"))
    with torch.no_grad():
        _, seen = model.attend(torch.from_numpy(PIXELS))
    assert glimpses.shape == (20, 3, 4)
    np.testing.assert_allclose(glimpses[5], seen["glimpses"][5], atol=1e-5)
    assert run.learned is not None
    assert {*run.learned["name"]} == {"first_glimpse", "baseline"}
    done = heads("attention", tmp_path / "run", "5.jpg", "--out", tmp_path / "drawn")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "drawn" / "5.png").stat().st_size > 1000


# ---- what is refused


def test_a_model_that_diverges_says_so(tmp_path: Path, write_store: Callable[..., None]) -> None:
    said = refused(*words_to_train(tmp_path, write_store, "lr=1e30"))
    assert "is not a number after epoch 1" in said


def test_what_cannot_be_seen_is_refused() -> None:
    system = find_system("ram")
    with pytest.raises(FeaturesError, match=r"have 256 x 100 pixels.*pools them to 128 x 128.*--set size=100"):
        system.build(((100, 256, 3),), YES, system.settle([]))
    with pytest.raises(UnknownSystemError, match=r"has 512 pixels; 256 show all"):
        system.build(((256, 256, 3),), YES, system.settle(["patches=6"]))


@pytest.mark.parametrize(("shape", "top", "left", "factor"), [((6, 4), 1, 0, 2), ((7, 11), 0, 2, 3), ((2, 3), 0, 0, 1)])
def test_what_it_sees_of_a_photo_is_the_mean_colour_of_each_cell(shape, top, left, factor) -> None:
    pixels = torch.randint(256, (2, *shape, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    centre = pixels[:, top : top + 2 * factor, left : left + 2 * factor].numpy() / 255
    centre = (centre - (0.485, 0.456, 0.406)) / (0.229, 0.224, 0.225)
    expected = centre.reshape(2, 2, factor, 2, factor, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(Pooled((*shape, 3), 2)(pixels), expected, atol=1e-5)


def test_the_figures_are_those_of_the_paper_and_of_the_code_that_it_used() -> None:
    for name in ("ram", "ram-lstm"):
        options = find_system(name).settle([])
        known = {
            "glimpse": 16, "scale": 2, "glimpses": 7, "epochs": 50, "seen": 128, "where": 128, "joined": 256,
            "hidden": 256, "sd": 0.22, "into_core": True, "policy": 1.0, "uniform": 0.1, "clip": 1.0, "lr": 3e-4,
        }  # fmt: skip
        assert {name: options[name] for name in known} == known
    model = find_system("ram").build(((256, 256, 3),), YES, find_system("ram").settle([]))
    assert sum(value.numel() for value in model.parameters()) == pytest.approx(0.53e6, rel=0.01)
