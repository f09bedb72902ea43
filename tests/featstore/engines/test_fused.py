"""Networks whose convolutions do what follows them give the same features; what cannot be fused is left as it is."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from featstore.backbones import Card, WeightsPolicy, find_card, resolve_weights
from featstore.backbones.networks import Network, build_network
from featstore.engines.engine import HALVES, _pictures, arithmetic, placed
from featstore.engines.fused import fuse

CPU = torch.device("cpu")
SHAPE = (3, 96, 128, 3)


def calibrated(name: str) -> Network:
    """A network whose batch normalisation is as if trained, so that no feature is out of proportion."""
    card: Card = find_card(name)
    network = build_network(card, resolve_weights(card, WeightsPolicy(named={"*": "random:0"})))
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train()
            module.reset_running_stats()
            module.momentum = None  # the mean of what is seen
    with torch.inference_mode():
        network(_pictures((8, *SHAPE[1:]), CPU))
    return placed(network.eval(), CPU, "fp32")


@pytest.mark.parametrize(
    ("name", "n_fused"),
    [("resnet50", 48), ("inception_v3", 93), ("legacy_xception", 23), ("densenet201", 98), ("lite0", 0)],
)
def test_a_fused_network_gives_the_features_of_the_network(name: str, n_fused: int) -> None:
    network, blocks = calibrated(name), _pictures(SHAPE, CPU)
    if name == "inception_v3":
        network.double()  # in it, the last digits of float32 grow a thousandfold
    with arithmetic("fp32", CPU):
        fused, found = fuse(network, torch.zeros_like(blocks))  # other pixels: none may be kept
        assert found == n_fused
        (ours,), (theirs,) = fused(blocks), network(blocks)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 1e-5


class Block(nn.Module):
    """The ways in which a ReLU follows a convolution; `way` says which."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way = way
        groups, given = 8 if way == "groups" else 1, 6 if way == "six" else 8
        self.conv, self.norm = nn.Conv2d(given, 8, 3, padding=1, groups=groups), nn.BatchNorm2d(8)
        self.norm.running_mean, self.norm.running_var = torch.rand(8) - 0.5, torch.rand(8) + 0.5

    def forward(self, blocks: Tensor) -> tuple[Tensor, ...]:
        pixels = blocks.permute(0, 3, 1, 2).float().repeat(1, 3, 1, 1)[:, : self.conv.in_channels] / 255
        value = self.conv(pixels)
        if self.way == "seen":
            return value, F.relu(value)
        if self.way != "no norm":
            value = self.norm(value)
        if self.way == "add":
            value += pixels
        if self.way == "twice":
            value = torch.add(pixels, value, alpha=2)
        if self.way == "itself":
            value = value + value
        if self.way == "number":
            value = value + 1
        return (F.relu(value, inplace=True),)


@pytest.mark.parametrize(
    ("way", "n_fused"),
    [
        ("norm", 1),
        ("no norm", 1),
        ("add", 1),
        ("seen", 0),
        ("twice", 0),
        ("itself", 0),
        ("number", 0),
        ("groups", 0),
        ("six", 0),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_only_what_can_be_fused_is(way: str, n_fused: int, precision: str) -> None:
    torch.manual_seed(0)
    block, blocks = Block(way).eval().requires_grad_(False), _pictures(SHAPE, CPU)
    with arithmetic(precision, CPU):
        fused, found = fuse(block, torch.zeros_like(blocks))
        # Features in half precision are added to pixels in float32: two kinds, which cuDNN does not add.
        assert found == (0 if way == "add" and precision in HALVES else n_fused)
        for ours, theirs in zip(fused(blocks), block(blocks), strict=True):
            assert ours.dtype == theirs.dtype
            assert float((ours - theirs).abs().max()) < (0.03 if precision in HALVES else 1e-5)
