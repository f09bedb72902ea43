"""AMTL's networks from scratch: what they see, against the same networks called by hand, and where they look."""

from collections.abc import Callable

import numpy as np
import pytest
import torch

from heads.errors import UnknownSystemError
from heads.labels.target import Target
from heads.systems.amtl import AMTL
from heads.systems.pixels import IMAGENET_MEAN, IMAGENET_STD
from heads.systems.registry import find_system
from heads.training.features import Features

from ..conftest import Setting

SMALL = ["layers=1,1,1,1", "width=0.1"]
RATING = Target("regression", ("a", "b"))


def build(name: str, shape: tuple[int, ...], *more: str) -> torch.nn.Module:
    torch.manual_seed(0)
    system = find_system(name)
    return system.build((shape,), RATING, system.settle([*SMALL, *more])).eval()


def test_the_stack_is_the_maximum_of_each_network_s_map_padded_to_the_widest() -> None:
    model = build("amtl-scratch", (4, 32, 48, 3), "trunks=resnet18,resnet50")
    pixels = torch.randint(256, (2, 4, 32, 48, 3), dtype=torch.uint8)
    pictures = (pixels / 255 - torch.tensor(IMAGENET_MEAN)) / torch.tensor(IMAGENET_STD)
    with torch.inference_mode():
        stack = model.stack(pixels)  # type: ignore[operator]
        widths = model.trunks.widths  # type: ignore[union-attr]
        assert stack.shape == (2, 2, 4, max(widths))
        for number, (network, width) in enumerate(zip(model.trunks.networks, widths, strict=True)):  # type: ignore[union-attr, arg-type]
            for photo in range(2):
                for block in range(4):
                    last = network(pictures[photo, block].permute(2, 0, 1)[None])
                    expected = last[0].flatten(1).max(1).values
                    assert torch.allclose(stack[photo, number, block, :width], expected, atol=1e-4)
            assert (stack[:, number, :, width:] == 0).all()
        out, seen = model.attend(pixels)  # type: ignore[operator]
        alone, same = model.head.attend(stack)  # type: ignore[operator, union-attr]
    assert torch.equal(out, alone)
    assert torch.equal(seen["blocks"], same["blocks"])
    assert isinstance(model.head, AMTL)


def test_without_attention_the_networks_see_the_whole_photo() -> None:
    model = build("stl-scratch", (40, 60, 3), "trunks=resnet18,resnet18")
    pixels = torch.randint(256, (2, 40, 60, 3), dtype=torch.uint8)
    with torch.inference_mode():
        features = torch.cat(model.trunks(pixels), 1)  # type: ignore[operator]
        assert features.shape == (2, sum(model.trunks.widths))  # type: ignore[union-attr, arg-type]
        assert not torch.allclose(model(pixels), model(pixels.flip(1)))
    assert "crop" not in find_system("stl-scratch").options


def test_the_paper_s_networks_join_to_8064_features() -> None:
    system = find_system("stl-scratch")
    with torch.device("meta"):
        model = system.build(((400, 600, 3),), Target("regression", ("a",)), system.settle([]))
    assert model.hidden1.in_features == 8064  # type: ignore[union-attr]


def test_no_network_is_refused() -> None:
    with pytest.raises(UnknownSystemError, match="name one network or more"):
        build("amtl-scratch", (4, 32, 32, 3), "trunks=,")


def test_attention_learns_to_look_at_the_block_that_counts(as_features: Callable[..., Features]) -> None:
    """Of four blocks, one is tinted red: the direction of its stripes is the rating. A mean over blocks cannot tell."""
    rng = np.random.default_rng(0)
    n = 240
    y, x = np.mgrid[:16, :16]
    stripes = np.stack([x % 4 < 2, y % 4 < 2]) * 140
    directions, red = rng.integers(2, size=(n, 4)), rng.integers(4, size=n)
    pixels = stripes[directions][..., None] + rng.integers(40, size=(n, 4, 16, 16, 3))
    pixels[np.arange(n), red, ..., 0] += 110
    labels = (directions[np.arange(n), red] - 0.5).astype(np.float32)[:, None]
    target = Target("regression", ("a",))
    setting = Setting(
        as_features(pixels.clip(0, 255).astype(np.uint8).reshape(n, 2, 2, 16, 16, 3)),
        labels,
        target,
        np.zeros(n, np.int64),
    )
    options = ["trunks=resnet18", "layers=1,1,1,1", "width=0.2", "micro=0", "batch=24", "epochs=12", "lr=0.001"]
    options += ["inner=0", "dropout=0", "hidden=32"]
    rows = np.arange(n)
    job = setting.job(fit=rows[:200], inner=rows[:0], test=rows[200:])
    (trained,) = setting.train(setting.problem("amtl-scratch", *options), job)
    looked = trained.attention["blocks"][:, 0].argmax(1)
    assert (looked == red[200:]).mean() > 0.8, "chance is 0.25"
