"""DMA-Net: its two layers against numpy, the bags that it predicts by, and a signal that no crop has by itself."""

import numpy as np
import pytest
import torch
from torch import Tensor

from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.dma import Patches, sorting, statistics

SMALL = ("filters=6", "hidden=24", "units=16", "joined=16", "crop=24", "flip=false", "n_crops=10")
BINARY = Target("binary", ("good",))


def build(*changes: str, height: int = 40, width: int = 60) -> Patches:
    system = find_system("dma-net")
    torch.manual_seed(0)
    model = system.build(((height, width, 3),), BINARY, system.settle([*SMALL, *changes]))
    assert isinstance(model, Patches)
    return model


@pytest.mark.parametrize("n_crops", [1, 4, 5])
def test_both_layers_are_those_of_numpy_whatever_the_order_of_the_crops(n_crops: int) -> None:
    crops = np.random.default_rng(0).normal(size=(3, n_crops, 7))
    expected = {
        statistics: np.concatenate([crops.min(1), crops.max(1), np.median(crops, 1), crops.mean(1)], 1),
        sorting: np.sort(crops, 1).reshape(3, -1),
    }
    for layer, values in expected.items():
        np.testing.assert_allclose(layer(torch.from_numpy(crops)), values, rtol=1e-12)
        np.testing.assert_allclose(layer(torch.from_numpy(crops[:, ::-1].copy())), values, rtol=1e-12)


@pytest.mark.parametrize("aggregation", ["statistics", "sorting"])
def test_a_prediction_is_the_mean_probability_over_bags_of_crops(aggregation: str) -> None:
    model = build(f"aggregation={aggregation}", "patches=4").eval()
    pixels = torch.from_numpy(np.random.default_rng(0).integers(256, size=(3, 40, 60, 3), dtype=np.uint8))
    seen = torch.stack([model.trunk(crop) for crop in model.view.pictures(pixels)], 1)
    assert seen.shape == (3, 10, 16)
    layer = {"statistics": statistics, "sorting": sorting}[aggregation]
    bags = [seen[:, :4], seen[:, 4:8], seen[:, [8, 9, 0, 1]]]  # the last is filled up from the first
    said = torch.stack([torch.sigmoid(model.classifier(model.joined(layer(bag)))) for bag in bags])
    assert torch.allclose(torch.sigmoid(model(pixels)), said.mean(0), atol=1e-6)


def test_a_photo_that_is_one_crop_is_seen_as_often_as_a_bag_needs() -> None:
    model = build("aggregation=sorting", height=24, width=24)
    pixels = torch.zeros(2, 24, 24, 3, dtype=torch.uint8)
    (evaluated,) = model.eval().logits(pixels)
    (trained,) = model.train().logits(pixels)
    assert torch.allclose(evaluated, trained)


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Photos (n, 32, 120, 3): have both sides the same tint? Between them is a band that no crop of 24 looks across."""
    draw = torch.Generator().manual_seed(seed)
    left, right = (2 * torch.randint(2, (n, 1, 1, 1), generator=draw) - 1 for _ in range(2))
    photos = 128 + 10 * torch.randn(n, 32, 120, 3, generator=draw)
    tint = torch.tensor([40.0, 0, -40])
    photos[:, :, :48] += left * tint
    photos[:, :, 72:] += right * tint
    return photos.clamp(0, 255).round().to(torch.uint8), (left == right).view(n, 1).float()


@pytest.mark.parametrize(
    ("aggregation", "patches", "finds"), [("statistics", 5, True), ("sorting", 5, True), ("statistics", 1, False)]
)
def test_crops_together_say_what_none_says_alone(aggregation: str, patches: int, finds: bool) -> None:
    model = build(f"aggregation={aggregation}", f"patches={patches}", height=32, width=120)
    photos, labels = planted(400, seed=1)
    optimiser, draw = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(0)
    for _ in range(70):
        rows = torch.randint(len(photos), (32,), generator=draw)
        optimiser.zero_grad()
        model.training_loss(labels[rows], photos[rows]).backward()
        optimiser.step()
    unseen, truth = planted(200, seed=2)
    with torch.inference_mode():
        right = ((model.eval()(unseen) > 0).float() == truth).float().mean().item()
    assert right > 0.95 if finds else right < 0.8  # of four kinds of photos, sums of what crops say separate three
