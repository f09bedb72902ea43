"""The geometry of blocks, held against plain numpy slices."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featstore.errors import ConfigError
from featstore.photos.views import AUGMENTED, CENTRE, GRID, SQUARE, WHOLE, View, cut, frames_of, resize


def blocks_of(photo: Image.Image, view: View) -> NDArray[np.uint8]:
    blocks: NDArray[np.uint8] = cut(torch.from_numpy(resize(photo, view.frame, b"")), view).numpy()
    return blocks


@st.composite
def views(draw: st.DrawFn) -> View:
    rows, columns, height, width = (draw(st.integers(1, limit)) for limit in (5, 5, 7, 7))
    interpolation = draw(st.sampled_from(["bilinear", "bicubic", "lanczos"]))
    return View((columns * width, rows * height), rows=rows, columns=columns, interpolation=interpolation)


@given(view=views(), size=st.tuples(st.integers(8, 40), st.integers(8, 40)), seed=st.integers(0, 9))
def test_blocks_are_slices_of_the_resized_photo_row_by_row(view: View, size: tuple[int, int], seed: int) -> None:
    photo = Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8))
    small = np.asarray(photo.resize(view.size, Image.Resampling[view.interpolation.upper()]))
    width, height = view.block_size
    expected = [
        small[row * height : (row + 1) * height, column * width : (column + 1) * width]
        for row in range(view.rows)
        for column in range(view.columns)
    ]
    blocks = blocks_of(photo, view)
    assert blocks.shape == (view.n_blocks, height, width, 3)
    assert np.array_equal(blocks, np.stack(expected))


def test_the_papers_grid_is_16_blocks_of_150x100_at_native_size() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (400, 600, 3)).astype(np.uint8))
    blocks = blocks_of(photo, GRID)
    assert GRID.block_size == (150, 100)
    assert blocks.shape == (16, 100, 150, 3)
    assert np.array_equal(blocks[5], np.asarray(photo)[100:200, 150:300])  # second row, second column


def test_several_views_of_one_photo_are_each_what_they_are_alone() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))
    sharp = View(rows=4, columns=4, interpolation="lanczos")
    assert frames_of([GRID, WHOLE, sharp]) == frames_of([sharp, WHOLE]), "those of one size share a frame"
    frames = {frame: torch.from_numpy(resize(photo, frame, b"")) for frame in frames_of([GRID, WHOLE, sharp])}
    for view in (GRID, WHOLE, sharp):
        assert np.array_equal(cut(frames[view.frame], view), blocks_of(photo, view))
    assert not np.array_equal(blocks_of(photo, GRID), blocks_of(photo, sharp))


def test_blocks_may_be_resized_each_by_itself() -> None:
    photo = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 70, 3)).astype(np.uint8))
    tiles = View((60, 40), rows=2, columns=2, block=(32, 32))
    blocks = blocks_of(photo, tiles)
    small = photo.resize((60, 40), Image.Resampling.BILINEAR)
    fourth = small.crop((30, 20, 60, 40)).resize((32, 32), Image.Resampling.BILINEAR)
    assert blocks.shape == (4, 32, 32, 3)
    assert np.array_equal(blocks[3], np.asarray(fourth))
    assert not np.array_equal(blocks, blocks_of(photo, View((64, 64), rows=2, columns=2)))
    assert frames_of([tiles, View((60, 40))]) != frames_of([View((60, 40))]), "a frame of its own"


def test_the_centre_is_the_middle_of_the_square() -> None:
    pixels = np.random.default_rng(0).integers(255, size=(300, 401, 3), dtype=np.uint8)
    photo = Image.fromarray(pixels)
    square, centre = resize(photo, SQUARE, b""), resize(photo, CENTRE, b"")
    np.testing.assert_array_equal(centre, square[:, 16:240, 16:240])


@pytest.mark.parametrize(
    "view",
    [
        GRID,
        CENTRE,
        AUGMENTED,
        View((60, 40), rows=2, columns=2, block=(32, 32)),
        View((64, 64), interpolation="lanczos"),
    ],
    ids=["grid", "centre", "augmented", "resized blocks", "lanczos"],
)
def test_a_view_is_read_back_from_its_facts(view: View) -> None:
    assert View.from_facts(json.loads(json.dumps(view.facts()))) == view


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"rows": 3}, "600x400 pixels cannot be cut into 1 columns and 3 rows"),
        ({"columns": 7}, "choose a size that the grid divides"),
        ({"rows": 0}, "below 1"),
        ({"block": (0, 224)}, "below 1"),
        ({"size": (0, 400)}, "below 1"),
        ({"interpolation": "bilinar"}, "did you mean 'bilinear'"),
    ],
)
def test_a_view_that_cannot_be_is_refused(facts: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        View(**facts)  # type: ignore[arg-type]
