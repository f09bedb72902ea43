"""ILGNet: its maps, pools and taps; its rates; and a planted signal that the two local taps alone find."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from heads.errors import UnknownSystemError
from heads.labels.target import Target
from heads.systems import find_system
from heads.systems.ilgnet import ILGNet, Inception, Inceptions

SMALL = ("width=0.125", "hidden=64", "dropout=0", "crop=56")
BINARY = Target("binary", ("high",))


def build(*changes: str, seed: int = 0, side: int = 56) -> ILGNet:
    system = find_system("ilgnet")
    torch.manual_seed(seed)
    model = system.build(((side, side, 3),), BINARY, system.settle([*SMALL, *changes]))
    assert isinstance(model, ILGNet)
    return model


def test_the_maps_are_those_of_the_authors_prototxt() -> None:
    """conv 7/2, pool, norm, conv 1, conv 3, norm, pool, 3a, 3b, pool, 4a; widths of GoogLeNet, maps at 227."""
    trunk = Inceptions()
    channels = [(each.one[0].out_channels, each.three[0][0].out_channels, each.three[1][0].out_channels,
                 each.five[0][0].out_channels, each.five[1][0].out_channels, each.pooled[1][0].out_channels)
                for each in (trunk.a3, trunk.b3, trunk.a4)]  # fmt: skip
    assert channels == [(64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), (192, 96, 208, 16, 48, 64)]
    kinds = [nn.Conv2d, nn.ReLU, nn.MaxPool2d, nn.LocalResponseNorm]
    kinds += [nn.Conv2d, nn.ReLU, nn.Conv2d, nn.ReLU, nn.LocalResponseNorm, nn.MaxPool2d]
    assert [type(layer) for layer in trunk.stem.modules() if not isinstance(layer, nn.Sequential)] == kinds
    with torch.inference_mode():
        maps = Inceptions(width=0.125)(torch.zeros(1, 3, 227, 227))
    assert [tuple(each.shape) for each in maps] == [(1, 32, 28, 28), (1, 60, 28, 28), (1, 64, 14, 14)]


def test_the_taps_have_the_papers_widths() -> None:
    model = build("crop=227", "hidden=1024", side=227)
    assert model.local_a[2].weight.shape == (256, 32 * 28 * 28)
    assert model.local_b[2].weight.shape == (256, 60 * 28 * 28)
    assert model.overall[2].weight.shape == (512, 16 * 4 * 4)  # a mean over 5x5 cells, every third
    assert model.joined[0].weight.shape == (1024, 1024)
    trunk = sum(each.numel() for each in Inceptions().parameters())
    taps = 256 * (256 * 28**2 + 1) + 256 * (480 * 28**2 + 1) + 128 * 513 + 512 * (128 * 4**2 + 1)
    assert trunk + taps + 1024 * 1025 + 2 * 1025 == pytest.approx(150.9e6, abs=5e4)  # four bytes each: "above 500 MB"
    assert build("taps=pool").local_b[2].weight.shape == (16, 60)


def test_the_pool_beside_the_convolutions_is_a_mean() -> None:
    """Of the 3x3 places around, those beyond the border as zeros, as Caffe's."""
    module = Inception(1, 1, (1, 1), (1, 1), 1).double()
    with torch.no_grad():
        module.pooled[1][0].weight.fill_(1)
        module.pooled[1][0].bias.fill_(0)
    maps = torch.rand(1, 1, 4, 5).double()
    padded = np.pad(maps[0, 0].numpy(), 1)
    expected = sum(padded[y : y + 4, x : x + 5] for y in range(3) for x in range(3)) / 9
    np.testing.assert_allclose(module(maps)[0, 3].detach().numpy(), expected, atol=1e-12)


def test_it_joins_two_local_taps_and_a_global_one() -> None:
    model = build().eval()
    pictures = torch.randn(2, 3, 56, 56)
    a3, b3, a4 = model.trunk(pictures)

    def fc(layer: nn.Linear, x: Tensor) -> Tensor:
        return torch.relu(x.flatten(1) @ layer.weight.T + layer.bias)

    (squeeze,) = (layer for layer in model.overall[0].modules() if isinstance(layer, nn.Conv2d))
    assert a4.shape[2:] == (3, 3)  # smaller than the 5x5 cell: its mean is that of all places
    squeezed = torch.relu(a4.mean((2, 3)) @ squeeze.weight[:, :, 0, 0].T + squeeze.bias)
    features = [fc(model.local_a[2], a3), fc(model.local_b[2], b3), fc(model.overall[2], squeezed)]
    assert [each.shape[1] for each in features] == [16, 16, 32]
    joined = fc(model.joined[0], torch.cat(features, 1))
    expected = joined @ model.classifier.weight.T + model.classifier.bias
    assert torch.allclose(model.outputs(pictures), expected, atol=1e-5)


def test_new_layers_learn_ten_times_as_fast_and_their_biases_twenty_times() -> None:
    system = find_system("ilgnet")
    options = system.settle([*SMALL, "lr=0.001", "trunk_lr=0.0001"])
    (stage,) = system.stages(options)
    model = build()
    rates = {name: stage.lr * stage.factor(name) for name, _ in model.named_parameters()}
    for name, rate in rates.items():
        new = 0.002 if name.endswith("bias") else 0.001
        assert rate == pytest.approx(0.0001 if name.startswith("trunk.") else new), name
        assert stage.leaves(name) == name.endswith("bias")
    assert all((parameter == 0.2).all() for name, parameter in model.named_parameters() if name.endswith("bias"))


def test_a_crop_may_be_as_small_as_its_maps_allow() -> None:
    assert build("crop=47").eval()(torch.zeros(1, 56, 56, 3, dtype=torch.uint8)).shape == (1, 1)
    with pytest.raises(UnknownSystemError, match="'crop' is 47 or more; found '46'"):
        build("crop=46")


# ---- a planted signal


def planted(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noise with a bright square: is it at the upper left or the lower right, and not in the other two corners?"""
    draw = torch.Generator().manual_seed(seed)
    photos = 128 + 30 * torch.randn(n, 56, 56, 3, generator=draw)
    corners = torch.randint(2, (n, 2), generator=draw)
    places = 26 * corners + torch.randint(2, 14, (n, 2), generator=draw)
    for photo, (top, left) in zip(photos, places.tolist(), strict=True):
        photo[top : top + 12, left : left + 12] += 90
    return photos.clamp(0, 255).round().to(torch.uint8), (corners[:, :1] == corners[:, 1:]).float()


def local_taps_cut(model: ILGNet) -> None:
    of_trunk = model.trunk.forward

    def only_4a(pictures: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a3, b3, a4 = of_trunk(pictures)
        return torch.zeros_like(a3), torch.zeros_like(b3), a4

    model.trunk.forward = only_4a  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("changes", "cut", "finds"),
    [((), None, True), ((), local_taps_cut, False), (("taps=pool",), None, False)],
    ids=["as it is", "without 3a and 3b", "means of 3a and 3b"],
)
def test_the_local_taps_see_where_things_are(
    changes: tuple[str, ...], cut: Callable[[ILGNet], None] | None, finds: bool
) -> None:
    """In 40 steps; the tap of 4a, which is a mean over all places here, takes a hundred."""
    model = build("flip=false", *changes)
    if cut is not None:
        cut(model)
    photos, labels = planted(1000, seed=1)
    optimiser, draw = torch.optim.Adam(model.parameters(), lr=2e-3), torch.Generator().manual_seed(3)
    for _ in range(40):
        rows = torch.randint(len(photos), (32,), generator=draw)
        optimiser.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(model(photos[rows]), labels[rows]).backward()
        optimiser.step()
    unseen, truth = planted(200, seed=2)
    with torch.inference_mode():
        share = ((model.eval()(unseen) > 0) == truth.bool()).float().mean().item()
    assert share > 0.95 if finds else share < 0.7
