"""The layout of a tensor: where each segment lies in a row."""

from typing import Any

import numpy as np
import pytest

from featstore.errors import ConfigError
from featstore.store import TensorLayout

from ..small_store import CONCAT, LAYOUTS, STACK


def test_a_stack_pads_with_zeros_at_the_end_and_a_concatenation_joins() -> None:
    features = {s.hash: np.full((s.n_blocks, s.width), i + 1.0) for i, s in enumerate(STACK.segments)}
    row = np.full(STACK.row_shape, np.nan)
    STACK.assemble(row, features)
    assert STACK.row_shape == (2, 2, 6)
    assert row[:, 0].tolist() == [[1, 1, 1, 0, 0, 0], [2, 2, 2, 2, 2, 0]]
    features = {s.hash: np.arange(s.n_blocks * s.width).reshape(s.n_blocks, s.width) for s in CONCAT.segments}
    row = np.full(CONCAT.row_shape, np.nan)
    CONCAT.assemble(row, features)
    assert row.tolist() == [0, 1, 2, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9]


@pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
def test_the_part_of_a_segment_is_what_was_put_there(layout: TensorLayout) -> None:
    rng = np.random.default_rng(0)
    features = {s.hash: rng.normal(size=(s.n_blocks, s.width)) for s in layout.segments}
    row = np.empty(layout.row_shape)
    layout.assemble(row, features)
    for index, each in enumerate(layout.segments):
        assert np.array_equal(layout.part(row, index), features[each.hash])
        assert np.shares_memory(layout.part(row, index), row)


def test_a_stack_is_as_wide_as_its_widest_segment_unless_said() -> None:
    assert TensorLayout("t", "stack", STACK.segments).row_shape == (2, 2, 5)


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"segments": ()}, "has no segments"),
        ({"segments": CONCAT.segments}, "unequal numbers of blocks"),
        ({"segments": STACK.segments, "width": 4}, "b is 5 wide, more than the stack's 4"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(facts: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        TensorLayout("t", "stack", **facts)
