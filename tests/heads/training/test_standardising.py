"""Features with zero mean and equal spread, by statistics of the rows that a model fits and of no others."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import nn

from heads.training.standardising import Standardised

WIDTHS = {0: 24, 1: 16, 2: 20}  # of the backbones of the fixture's grid, padded to 24


class Join(nn.Module):
    """Everything side by side, so that a test sees what the model would."""

    def forward(self, *features: torch.Tensor) -> torch.Tensor:
        return torch.cat([each.flatten(1) for each in features], 1)


def standardised(
    *tensors: NDArray[Any], n_at_once: int = 7, gain: float = 1.0, layouts: tuple[str, ...] | None = None
) -> Standardised:
    """With the statistics of all rows, which come a few at a time."""
    shapes = tuple(each.shape[1:] for each in tensors)
    layouts = layouts or tuple("stack" if len(shape) == 3 else "concat" for shape in shapes)
    module = Standardised(shapes, Join(), layouts=layouts, gain=gain)
    for number, (values, moments) in enumerate(zip(tensors, module.moments(), strict=True)):
        for start in range(0, len(values), n_at_once):
            moments.add(torch.from_numpy(values[start : start + n_at_once]).float())
        module.learn(number, moments)
    return module


def ready(module: Standardised, *tensors: NDArray[Any]) -> list[NDArray[np.float32]]:
    said = module(*(torch.from_numpy(each).float() for each in tensors)).detach().numpy()
    cuts = np.cumsum([int(np.prod(each.shape[1:])) for each in tensors])[:-1]
    return [part.reshape(each.shape) for part, each in zip(np.split(said, cuts, axis=1), tensors, strict=True)]


@given(n=st.integers(2, 20), n_at_once=st.integers(1, 25), gain=st.sampled_from([1.0, 0.3]), seed=st.integers(0, 99))
def test_every_feature_has_zero_mean_and_the_spread_that_is_asked_for(n, n_at_once, gain, seed) -> None:
    rng = np.random.default_rng(seed)
    stack = rng.normal(rng.normal(0, 5, (1, 2, 1, 3)), 0.5, (n, 2, 4, 3)).astype(np.float32)
    concat = rng.normal(3, 2, (n, 5)).astype(np.float32)
    grid, whole = ready(standardised(stack, concat, n_at_once=n_at_once, gain=gain), stack, concat)
    oracle = (stack - stack.mean((0, 2), keepdims=True, dtype=float)) / stack.std((0, 2), keepdims=True, dtype=float)
    assert grid == pytest.approx(gain * oracle, abs=1e-3)
    assert whole == pytest.approx(gain * (concat - concat.mean(0, dtype=float)) / concat.std(0, dtype=float), abs=1e-3)


def test_three_axes_are_a_stack_only_if_the_layout_says_so() -> None:
    """Pixels (y, x, channel) have no blocks: each value has a statistic of its own."""
    rng = np.random.default_rng(0)
    pixels = (rng.normal(size=(50, 4, 5, 3)) + rng.normal(0, 9, (1, 4, 5, 3))).astype(np.float32)
    (found,) = ready(standardised(pixels, layouts=("pixels",)), pixels)
    assert found == pytest.approx((pixels - pixels.mean(0, dtype=float)) / pixels.std(0, dtype=float), abs=1e-3)
    assert standardised(pixels, layouts=("pixels",)).scale0.shape == (4, 5, 3)
    assert standardised(pixels, layouts=("stack",)).scale0.shape == (4, 1, 3)


def test_padding_stays_padding(world) -> None:
    (grid,) = ready(standardised(world.grid), world.grid)
    for backbone, width in WIDTHS.items():
        here = world.grid[:, backbone, :, :width].astype(np.float64)
        assert grid[:, backbone, :, :width] == pytest.approx((here - here.mean((0, 1))) / here.std((0, 1)), abs=1e-4)
        assert (grid[:, backbone, :, width:] == 0).all()


def test_rows_prepared_in_place_are_what_the_whole_module_would_make_of_them(world) -> None:
    module = standardised(world.grid, world.whole, gain=0.3)
    for number, (values, expected) in enumerate(
        zip((world.grid, world.whole), ready(module, world.grid, world.whole), strict=True)
    ):
        batch, row = torch.from_numpy(values).float(), torch.from_numpy(values[4]).float()
        module.prepare(number, batch)
        module.prepare(number, row)
        assert (batch.numpy() == expected).all()
        assert (row.numpy() == expected[4]).all()


@pytest.mark.parametrize("value", [0.1, 1 / 3, 17.3, 3000.7, 1e-5])
def test_features_that_do_not_vary_become_0_whatever_their_value(value: float) -> None:
    values = np.full((300, 2, 16, 3), value, np.float32)
    values[..., 1] = np.random.default_rng(0).normal(size=(300, 2, 16)) * value
    module = standardised(values, n_at_once=32)
    (found,) = ready(module, values)
    assert (found[..., [0, 2]] == 0).all()
    assert found[..., 1].std() == pytest.approx(1, abs=1e-3)
    # and one that did not vary in training counts for nothing when it does
    assert (ready(module, values * 2)[0][..., [0, 2]] == 0).all()


def test_a_small_change_on_a_large_value_is_not_lost_to_rounding() -> None:
    values = (1000 + np.random.default_rng(0).normal(size=(300, 4))).astype(np.float32)
    (found,) = ready(standardised(values, n_at_once=32), values)
    assert found.std(0) == pytest.approx(np.ones(4), abs=1e-3)
    assert found.mean(0) == pytest.approx(np.zeros(4), abs=1e-3)


@pytest.mark.parametrize("memory_bytes", [10**9, 1], ids=["in memory", "streamed"])
def test_a_head_is_standardised_on_the_rows_it_fits_and_no_others(
    setting_of: Callable[..., Any], world, memory_bytes: int
) -> None:
    setting = setting_of("whole", memory_bytes=memory_bytes)
    job = setting.job(fit=np.arange(3, 59, 4), inner=np.arange(0, 5), test=np.arange(5, 20))
    (trained,) = setting.train(setting.problem("linear", "epochs=1", "gain=2"), job)
    fitted = world.whole[job.fit].astype(np.float64)
    scale = 2 / fitted.std(0)
    assert trained.weights["scale0"].numpy() == pytest.approx(scale, rel=1e-4)
    assert trained.weights["offset0"].numpy() == pytest.approx(-fitted.mean(0) * scale, rel=1e-3, abs=1e-4)
    (raw,) = setting.train(setting.problem("linear", "epochs=1", "standardise=false"), job)
    assert set(raw.weights) == {name.removeprefix("model.") for name in trained.weights if "0" not in name}


def test_statistics_travel_with_the_weights(world) -> None:
    module, other = standardised(world.whole, gain=0.3), Standardised(((60,),), Join(), layouts=("concat",), gain=0.3)
    other.load_state_dict(module.state_dict())
    assert (ready(other, world.whole)[0] == ready(module, world.whole)[0]).all()
