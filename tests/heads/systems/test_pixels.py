"""Crops of stored photos, against slices of arrays; and what a store without pixels is answered."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from heads.errors import FeaturesError
from heads.labels.target import JointTarget, Target
from heads.systems.pixels import IMAGENET_MEAN, IMAGENET_STD, FromPixels, Photos

from ..conftest import World, heads, refused

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(256, size=(6, 10, 12, 3), dtype=np.uint8)


def normal(crops: NDArray[np.uint8]) -> NDArray[np.float64]:
    """(N, h, w, 3) bytes as the papers feed them."""
    return ((crops / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(0, 3, 1, 2)


def test_the_centre_is_what_is_seen_when_nothing_learns() -> None:
    seen = Photos((10, 12, 3), 6).eval()(torch.from_numpy(PIXELS))
    np.testing.assert_allclose(seen, normal(PIXELS[:, 2:8, 3:9]), atol=1e-5)


def test_training_sees_every_crop_and_both_ways_round() -> None:
    photos = Photos((10, 12, 3), 8)
    photos.generator = torch.Generator().manual_seed(0)
    crops = {
        (top, left, flip): normal(PIXELS[:1, top : top + 8, left : left + 8][:, :, :: -1 if flip else 1])
        for top in range(3)
        for left in range(5)
        for flip in (False, True)
    }
    found = set()
    for _ in range(60):
        for seen in photos(torch.from_numpy(PIXELS[:1].repeat(6, 0))):
            (which,) = [key for key, crop in crops.items() if np.allclose(seen, crop[0], atol=1e-5)]
            found.add(which)
    assert found == {*crops}


def test_a_seed_decides_the_crops() -> None:
    photos = Photos((10, 12, 3), 6)
    pixels = torch.from_numpy(PIXELS)
    seen = []
    for seed in (1, 1, 2):
        photos.generator = torch.Generator().manual_seed(seed)
        seen.append(photos(pixels))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0], seen[2])


def test_nothing_is_drawn_where_the_paper_draws_nothing() -> None:
    photos = Photos((10, 12, 3), 6, random=False, flip=False)
    pixels = torch.from_numpy(PIXELS)
    assert torch.equal(photos(pixels), photos.eval()(pixels))
    mirrored = Photos((10, 12, 3), 6, random=False)
    centre = photos(pixels)
    for seen, plain in zip(mirrored(pixels), centre, strict=True):
        assert torch.equal(seen, plain) or torch.equal(seen, plain.flip(-1))


def test_ten_crops_are_corners_and_centre_and_their_mirror_images() -> None:
    ten = Photos((10, 12, 3), 6).eval().ten(torch.from_numpy(PIXELS))
    places = [(0, 0), (0, 6), (4, 0), (4, 6), (2, 3)]
    five = [normal(PIXELS[:, top : top + 6, left : left + 6]) for top, left in places]
    np.testing.assert_allclose(ten, np.stack([*five, *(crop[..., ::-1] for crop in five)], 1), atol=1e-5)


class Red(FromPixels):
    """Says how red a crop is, of each output another multiple."""

    def outputs(self, pictures: Tensor) -> Tensor:
        red = pictures[:, 0].mean((1, 2))
        return torch.stack([red, -3 * red, red.square()], 1)


@pytest.mark.parametrize("kind", ["regression", "multiclass", "multilabel"])
def test_ten_crops_are_averaged_as_probabilities(kind: str) -> None:
    target = Target(kind, ("k",), ("a", "b", "c")) if kind == "multiclass" else Target(kind, ("a", "b", "c"))  # type: ignore[arg-type]
    model = Red(Photos((10, 12, 3), 6), target, ten_crops=True).eval()
    crops = model.photos.ten(torch.from_numpy(PIXELS)).double()
    each = np.stack([model.outputs(crops[:, i]).numpy() for i in range(10)])
    if kind == "regression":
        expected = each.mean(0)
        found = model(torch.from_numpy(PIXELS)).double().numpy()
    elif kind == "multilabel":
        expected = (1 / (1 + np.exp(-each))).mean(0)
        found = model(torch.from_numpy(PIXELS)).double().sigmoid().numpy()
    else:
        powers = np.exp(each)
        expected = (powers / powers.sum(2, keepdims=True)).mean(0)
        found = model(torch.from_numpy(PIXELS)).double().softmax(1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_of_several_kinds_ten_crops_are_averaged_as_each_of_them_is() -> None:
    parts = [Target("regression", ("r",)), Target("multiclass", ("k",), ("a", "b"))]
    pixels = torch.from_numpy(PIXELS)
    both = Red(Photos((10, 12, 3), 6), JointTarget.of(parts), ten_crops=True).eval()
    crops = both.photos.ten(pixels).double()
    each = torch.stack([both.outputs(crops[:, i]) for i in range(10)])
    assert torch.allclose(both(pixels)[:, :1].double(), each[:, :, :1].mean(0), atol=1e-5)
    assert torch.allclose(both(pixels)[:, 1:].double().softmax(1), each[:, :, 1:].softmax(2).mean(0), atol=1e-5)


def test_a_photo_smaller_than_the_crop_is_refused_with_what_would_do() -> None:
    with pytest.raises(FeaturesError, match=r"12 x 10 pixels.*224 x 224.*--set crop=10"):
        Photos((10, 12, 3), 224)


# ---- the command


def test_a_store_without_pixels_is_answered_with_the_command_that_makes_them(world: World, tmp_path: Path) -> None:
    said = refused("train", "resnet50-single", world.store, "--labels", world.labels, "--out", tmp_path / "run")
    assert f"featstore extract PHOTOS --store {world.store} --tensor pixels=pixels:pixels@square" in said
    said = refused(
        "train", "resnet50-single", world.store, "--labels", world.labels, "--out", tmp_path / "run", "--tensor", "grid"
    )
    assert "reads pixels, tensor 'grid' is a stack" in said
    assert "pixels@square" in said


def test_a_network_learns_from_stored_pixels_and_its_run_predicts_again(
    tmp_path: Path, write_store: Callable[..., None]
) -> None:
    """Photos are as bright as they are rated: the whole road, from a store to a prediction."""
    rng = np.random.default_rng(0)
    bright = rng.permutation(np.linspace(0, 200, 60))
    pixels = (bright[:, None, None, None] + rng.integers(50, size=(60, 40, 40, 3))).astype(np.uint8)
    names = [f"{i}.jpg" for i in range(60)]
    write_store(tmp_path / "px.zarr", names, {"px": pixels})
    rows = "\n".join(f"{name},{1 + 6 * value / 200:.2f}" for name, value in zip(names, bright, strict=True))
    (tmp_path / "labels.csv").write_text(f"path,bright\n{rows}\n")
    small = ["layers=1,1,1,1", "width=0.1", "init_trunk=random", "crop=32", "batch=8", "epochs=10", "lr=0.05"]
    words = [word for option in small for word in ("--set", option)]
    run = tmp_path / "run"
    done = heads(
        "train", "resnet50-single", tmp_path / "px.zarr", "--labels", tmp_path / "labels.csv", "--scale", "1:7",
        "--hold-out", 0.25, "--out", run, "--json", *words,
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["metrics"]["bright"]["pearson"]["mean"] > 0.8
    again = heads("predict", run, tmp_path / "px.zarr", "--out", tmp_path / "said.csv")
    assert again.exit_code == 0, again.output
    assert len((tmp_path / "said.csv").read_text().splitlines()) == 61
