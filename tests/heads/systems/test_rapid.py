"""RAPID: what its columns see, against Pillow and slices; what they learn by; and a planted signal of two scales."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from heads.errors import LabelsError, TrainingError, UnknownSystemError
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.pixels import Photos
from heads.systems.rapid import Column, View, rapid_loss, resized
from heads.training.initial import begin_with, find_initial

SMALL = ("filters=4", "hidden=8", "units=8", "crop=24", "n_crops=5")
RNG = np.random.default_rng(0)
PIXELS = torch.from_numpy(RNG.integers(256, size=(3, 40, 60, 3), dtype=np.uint8))


def smooth(height: int, width: int) -> NDArray[np.uint8]:
    """A photo in which neighbours are alike, (1, height, width, 3)."""
    small = Image.fromarray(RNG.integers(256, size=(5, 7, 3), dtype=np.uint8))
    return np.array(small.resize((width, height), Image.Resampling.BICUBIC))[None]


def build(name: str, target: Target, *changes: str, side: int = 64) -> torch.nn.Module:
    system = find_system(name)
    torch.manual_seed(0)
    return system.build(((side, side, 3),) * len(system.reads), target, system.settle([*SMALL, *changes]))


# ---- the column


def test_a_column_has_the_papers_layers() -> None:
    column = Column(224, filters=2, hidden=5, units=4)
    maps, sides = torch.zeros(1, 3, 224, 224), []
    for layer in column.layers:
        maps = layer(maps)
        sides += [maps.shape[2]] if maps.ndim == 4 and not isinstance(layer, torch.nn.ReLU) else []
    assert sides == [107, 107, 53, 53, 53, 26, 26, 26]  # conv, norm, pool; conv, norm, pool; conv; conv
    assert maps.shape == (1, 4)
    kernels = [layer.kernel_size for layer in column.layers if isinstance(layer, torch.nn.Conv2d)]
    connected = [layer.in_features for layer in column.layers if isinstance(layer, torch.nn.Linear)]
    assert kernels == [(11, 11), (5, 5), (3, 3), (3, 3)]
    assert connected == [2 * 26**2, 5]
    paper = {"crop": 224, "filters": 64, "hidden": 1000, "units": 256}
    assert paper.items() <= find_system("rapid-scnn").settle([]).items()


def test_the_norm_is_that_of_caffe() -> None:
    """x / (1 + alpha / n sum of x^2 over n channels)^beta, the window cut at the ends."""
    (norm, _) = (layer for layer in Column(24, filters=7).layers if isinstance(layer, torch.nn.LocalResponseNorm))
    maps = 100 * torch.randn(2, 7, 3, 3).double()
    x = maps.numpy()
    expected = np.empty_like(x)
    for c in range(7):
        near = (x[:, max(0, c - 2) : c + 3] ** 2).sum(1)
        expected[:, c] = x[:, c] / (1 + 1e-4 / 5 * near) ** 0.75
    np.testing.assert_allclose(norm(maps), expected, rtol=1e-12)


def test_a_crop_may_be_as_small_as_its_maps_allow() -> None:
    assert Column(23, filters=2, hidden=3, units=4)(torch.zeros(1, 3, 23, 23)).shape == (1, 4)
    with pytest.raises(UnknownSystemError, match="'crop' is 23 or more; found '22'"):
        find_system("rapid-scnn").settle(["crop=22"])


# ---- the views


@pytest.mark.parametrize(("height", "width"), [(27, 27), (20, 90), (53, 31)])
def test_photos_are_resized_as_pillow_does(height: int, width: int) -> None:
    photo = smooth(40, 60)
    expected = np.asarray(Image.fromarray(photo[0]).resize((width, height), Image.Resampling.BILINEAR))
    np.testing.assert_allclose(resized(torch.from_numpy(photo), height, width)[0].int(), expected.astype(int), atol=1)


def test_a_random_view_cuts_at_the_photos_own_scale_at_places_that_stay() -> None:
    view = View("random", (40, 60, 3), 24, n_crops=50).eval()
    seen = list(view.pictures(PIXELS))
    assert len(seen) == len(view.places) > 40
    exact = Photos((24, 24, 3), 24)
    for crop, (top, left) in zip(seen, view.places, strict=True):
        assert torch.equal(crop, exact.eval()(PIXELS[:, top : top + 24, left : left + 24]))
    tops, lefts = {top for top, _ in view.places}, {left for _, left in view.places}
    assert (min(tops), max(tops), min(lefts) < 3, max(lefts) > 33) == (0, 16, True, True)
    assert View("random", (40, 60, 3), 24, n_crops=50).places == view.places
    view.train()
    assert [each.shape for each in view.pictures(PIXELS)] == [(3, 3, 24, 24)]  # training draws one


def test_a_warped_view_is_the_whole_photo_without_its_shape() -> None:
    view = View("warp", (40, 60, 3), 24).eval()
    assert view.framed(PIXELS).shape == (3, 27, 27, 3)  # 256 / 224 of the crop
    assert torch.equal(view.framed(PIXELS), resized(PIXELS, 27, 27))
    square = PIXELS[:, :27, :27]
    assert torch.equal(View("warp", (27, 27, 3), 24).framed(square), square)  # stored so: nothing is resized twice


def test_a_central_view_is_the_middle_square() -> None:
    framed = View("center", (40, 60, 3), 24).framed(torch.from_numpy(photo := smooth(40, 60)))
    middle = np.asarray(Image.fromarray(photo[0]).resize((40, 27), Image.Resampling.BILINEAR))[:, 6:33]
    np.testing.assert_allclose(framed[0].int(), middle.astype(int), atol=1)


@pytest.mark.parametrize(("height", "width"), [(40, 60), (60, 40), (50, 50), (24, 90)])
def test_a_padded_view_keeps_the_shape_of_the_photo(height: int, width: int) -> None:
    white = torch.full((1, height, width, 3), 255, dtype=torch.uint8)
    framed = View("pad", (height, width, 3), 24).framed(white)[0, :, :, 0]
    assert framed.shape == (24, 24)
    photo = framed.nonzero()
    (top, left), (bottom, right) = photo.min(0).values.tolist(), (photo.max(0).values + 1).tolist()
    assert (bottom - top, right - left) == (
        round(24 * height / max(height, width)),
        round(24 * width / max(height, width)),
    )
    assert (framed == 255).sum() == (bottom - top) * (right - left)  # black around it, the photo in the middle
    assert abs(top - (24 - bottom)) <= 1
    assert abs(left - (24 - right)) <= 1


def test_ten_crops_are_for_views_that_do_not_cut_at_random() -> None:
    target = Target("multiclass", ("c",), ("x", "y", "z"))
    model = build("rapid-scnn", target, "view=warp", "ten_crops=true").eval()
    pixels = torch.from_numpy(smooth(64, 64))
    crops = model.view.photos.ten(model.view.framed(pixels))[0]
    expected = model.classifier(model.trunk(crops)).softmax(1).mean(0)
    assert torch.allclose(model(pixels).softmax(1)[0], expected, atol=1e-6)


# ---- what is said, and what is learnt by


@pytest.mark.parametrize("kind", ["binary", "multilabel", "multiclass", "regression"])
def test_a_prediction_is_the_mean_probability_over_crops_beside_the_whole_photo(kind) -> None:
    target = Target(kind, ("c",), ("x", "y", "z")) if kind == "multiclass" else Target(kind, ("a", "b", "c"))
    model = build("rapid-dcnn", target).eval()
    whole, local = torch.from_numpy(smooth(64, 64)), torch.from_numpy(smooth(64, 64))
    overview = model.global_column(model.global_view(whole))
    squash = partial(torch.softmax, dim=1) if kind == "multiclass" else torch.sigmoid
    said = []
    for crop in model.local_view.pictures(local):
        said.append(squash(model.classifier(torch.cat([overview, model.local_column(crop)], 1))))
    expected = torch.stack(said).mean(0)
    found = model(whole, local)
    found = found + 0.5 if kind == "regression" else squash(found)
    assert len(said) == 5
    assert torch.allclose(found, expected, atol=1e-5)


def test_of_ratings_it_learns_which_are_high_and_leaves_out_those_near_the_middle() -> None:
    target = Target("regression", ("a",))
    model = build("rapid-scnn", target, "delta=0.1", side=24)
    pixels = torch.from_numpy(RNG.integers(256, size=(5, 24, 24, 3), dtype=np.uint8))
    labels = torch.tensor([[0.3], [-0.3], [0.05], [torch.nan], [0.1]])
    torch.manual_seed(1)
    loss = model.training_loss(labels, pixels)
    torch.manual_seed(1)
    (logits,) = model.logits(pixels)
    z, counts = logits[:, 0].detach().numpy(), [0, 1, 4]
    entropies = [np.log1p(np.exp(-z[0])), np.log1p(np.exp(z[1])), np.log1p(np.exp(-z[4]))]
    assert loss.item() == pytest.approx(np.mean(entropies), rel=1e-5)
    judged = rapid_loss(target)(logits.sigmoid() - 0.5, labels)  # the test rows all count
    assert judged.item() == pytest.approx(np.mean([*entropies, np.log1p(np.exp(-z[2]))]), rel=1e-4)
    assert len(counts) == len(entropies)


def test_classes_have_no_middle_to_be_near_to() -> None:
    with pytest.raises(LabelsError, match=r"delta=0.1 leaves out ratings .* the labels are binary"):
        build("rapid-dcnn", Target("binary", ("a",)), "delta=0.1")


# ---- the column for styles


def test_the_style_column_is_that_of_another_run_and_stays(tmp_path, target) -> None:
    style = build("rapid-scnn", target("multiclass", 14))
    save_file(style.state_dict(), tmp_path / "style.safetensors")
    system, said = find_system("rapid-rdcnn"), target("binary", 1)
    options = system.settle([*SMALL, f"init_style={tmp_path / 'style.safetensors'}"])
    model = system.build(((64, 64, 3),) * 2, said, options)
    begin_with(model, find_initial(system, options, model))
    assert torch.equal(model.style.layers[0].weight, style.trunk.layers[0].weight)
    (stage,) = system.stages(options)
    still = {name for name, _ in model.named_parameters() if not name.startswith(stage.parameters)}
    assert still == {f"style.{name}" for name, _ in model.style.named_parameters()}
    assert model.classifier.in_features == 3 * 8


def test_without_a_run_on_styles_there_is_no_style_column(target) -> None:
    system = find_system("rapid-rdcnn")
    options = system.settle(SMALL)
    model = system.build(((64, 64, 3),) * 2, target("binary", 1), options)
    with pytest.raises(TrainingError, match=r"init_style=imagenet.*say random, a weights file, or a run"):
        find_initial(system, options, model)


# ---- a planted signal


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Photos (n, 64, 64, 3) of four classes (a, b).

    a: is the left border brighter than the right? They are too far apart for a crop of 24, and what is between them
    says nothing. b: is there a chessboard of single pixels? It is averaged away where the photo is warped.
    """
    draw = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(2, (n, 1, 1, 1), generator=draw) for _ in range(2))
    both, between = (160 * torch.rand(n, 1, 1, 1, generator=draw) - 80 for _ in range(2))
    brightness = (0.75 * both).expand(n, 1, 64, 1).clone()
    brightness[:, :, :16] += 40 * a - 20
    brightness[:, :, -16:] -= 40 * a - 20
    brightness[:, :, 16:-16] = between
    place = torch.arange(64)
    board = (2 * ((place[:, None] + place) % 2) - 1).view(1, 64, 64, 1)
    photos = 128 + brightness + 20 * b * board + 5 * torch.randn(n, 64, 64, 3, generator=draw)
    return photos.clamp(0, 255).round().to(torch.uint8), (2 * a + b).view(n, 1).float()


@pytest.mark.parametrize(
    ("name", "view", "finds_a", "finds_b"),
    [("rapid-scnn", "warp", True, False), ("rapid-scnn", "random", False, True), ("rapid-dcnn", "", True, True)],
)
def test_two_columns_see_what_neither_sees_alone(name: str, view: str, finds_a: bool, finds_b: bool) -> None:
    changes = ["filters=8", "hidden=32", "units=32", "flip=false", *([f"view={view}"] if view else [])]
    model = build(name, Target("multiclass", ("ab",), ("00", "01", "10", "11")), *changes)
    n_tensors = len(find_system(name).reads)
    photos, labels = planted(800, seed=1)
    optimiser, draw = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(100):
        rows = torch.randint(len(photos), (32,), generator=draw)
        optimiser.zero_grad()
        model.training_loss(labels[rows], *[photos[rows]] * n_tensors).backward()
        optimiser.step()
    unseen, truth = planted(200, seed=2)
    with torch.inference_mode():
        said = model.eval()(*[unseen] * n_tensors).argmax(1)
    for finds, right in ((finds_a, said // 2 == truth[:, 0] // 2), (finds_b, said % 2 == truth[:, 0] % 2)):
        share = right.float().mean().item()
        assert share > 0.95 if finds else share < 0.75
