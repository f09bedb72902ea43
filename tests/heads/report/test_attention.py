"""What a head reads of each block and backbone is what the sums that it makes of the features say."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heads.report.attention import attention_maps
from heads.runs.run import Attention

N_TASKS, N_BACKBONES, N_BLOCKS = 2, 4, 16


def told(system: str, arrays: dict[str, Any], features: Any, task: int, image: int) -> Any:
    """What one image tells one task, step by step: features (B, T) of one feature each -> a number."""
    if system == "amtl-swapped":
        of_block = [arrays["backbones_of_blocks"][image, j] @ features[:, j] for j in range(N_BLOCKS)]
        return arrays["blocks_of_tasks"][image, task] @ of_block
    blocks = arrays["blocks_by_task"][image, task] if system == "amtl-single" else arrays["blocks"][image]
    of_backbone = [blocks[i] @ features[i] for i in range(N_BACKBONES)]
    return arrays["backbones"][image, task] @ of_backbone


@pytest.mark.parametrize("system", ["amtl", "amtl-single", "amtl-swapped"])
@given(seed=st.integers(0, 2**32 - 1))
def test_weights_are_how_much_a_feature_counts_in_what_a_task_is_told(system: str, attend: Any, seed: int) -> None:
    arrays = attend(system, n_images=2, seed=seed)
    found = attention_maps(Attention(["a", "b"], arrays))
    assert found.by_task == (system != "amtl")
    assert found.blocks is not None
    assert found.backbones is not None
    image, task, block, backbone = 1, seed % N_TASKS, seed % N_BLOCKS, seed % N_BACKBONES
    only = np.zeros((N_BACKBONES, N_BLOCKS))
    only[:, block] = 1
    assert found.blocks[image, task, block] == pytest.approx(told(system, arrays, only, task, image), abs=1e-6)
    only = np.zeros((N_BACKBONES, N_BLOCKS))
    only[backbone] = 1
    assert found.backbones[image, task, backbone] == pytest.approx(told(system, arrays, only, task, image), abs=1e-6)
    for weights in (found.blocks, found.backbones):
        np.testing.assert_allclose(weights.sum(-1), 1, atol=1e-5)


def test_images_that_were_never_tested_are_left_out(attend: Any) -> None:
    arrays = attend("amtl", n_images=3)
    for values in arrays.values():
        values[1] = np.nan
    found = attention_maps(Attention(["a", "b", "c"], arrays))
    assert found.paths == ["a", "c"]
    assert found.blocks is not None
    assert found.blocks.shape == (2, 2, 16)


def test_the_only_one_there_is_says_nothing(attend: Any) -> None:
    found = attention_maps(Attention(["a"], {"blocks": np.ones((1, 3, 1)), "backbones": np.full((1, 2, 3), 1 / 3)}))
    assert found.blocks is None
    assert found.backbones is not None
    found = attention_maps(Attention(["a"], {"blocks": np.full((1, 1, 4), 1 / 4), "backbones": np.ones((1, 2, 1))}))
    assert found.backbones is None
    assert found.blocks is not None
    assert found.blocks.shape == (1, 2, 4)
    nobody = attention_maps(Attention(["a"], {"blocks": np.full((1, 2, 4), np.nan)}))
    assert (nobody.paths, nobody.blocks, nobody.backbones) == ([], None, None)
