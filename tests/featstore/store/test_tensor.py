"""Reading a tensor: each way of reading, and rows that are not there."""

from pathlib import Path

import numpy as np
import pytest

from featstore.errors import AbsentRowsError
from featstore.store import ImageState, RowState, SeenImages, Writer, open_store

from .small_store import CONCAT, PRESENT, STACK, features_of, fill, list_images


def test_a_stack_is_labelled_with_its_backbones(path: Path) -> None:
    grid = open_store(path)["grid"].xarray()
    assert grid.dims == ("image", "backbone", "block", "feature")
    assert np.array_equal(grid.sel(image="photo 7.jpg", backbone="b").values, features_of(7, STACK)[1])


def test_dask_takes_given_rows_in_ascending_order(path: Path) -> None:
    tensor = open_store(path)["whole"]
    found = tensor.dask(np.array([8, 1, 5]))
    assert found.chunks[0] == (1, 1, 1)
    assert np.array_equal(found.compute(scheduler="synchronous"), tensor.read([1, 5, 8]))
    with pytest.raises(AbsentRowsError):
        tensor.dask(np.array([8, 11]))


def test_torch_loads_shuffled_minibatches(path: Path) -> None:
    from torch.utils.data import DataLoader

    seen = {}
    for rows, features in DataLoader(open_store(path)["grid"].torch(), batch_size=3, shuffle=True):
        seen |= dict(zip(rows.tolist(), features.numpy(), strict=True))
    assert sorted(seen) == list(range(10))
    assert all(np.array_equal(values, features_of(row, STACK)) for row, values in seen.items())


def test_a_few_rows_of_a_large_block_come_in_the_order_asked_for(tmp_path: Path) -> None:
    with Writer(tmp_path / "features.zarr", block_rows=64) as writer:
        writer.ensure_tensor(CONCAT, "float32")
        list_images(writer, 64)
        values = np.random.default_rng(0).normal(size=(64, *CONCAT.row_shape)).astype(np.float32)
        writer.commit(0, {"whole": (values, np.full(64, PRESENT, np.uint8))}, SeenImages([], [], [], []))
    tensor = open_store(tmp_path / "features.zarr")["whole"]
    assert tensor.dtype == np.float32
    for rows in ([60, 3, 60, 17], [5], [63, 0], list(range(63, -1, -1)), []):
        assert np.array_equal(tensor.read(rows), values[rows].reshape(-1, *CONCAT.row_shape)), rows


def test_the_features_of_a_file_that_changed_are_no_longer_handed_out_with_the_rest(path: Path) -> None:
    with Writer(path) as writer:
        writer.set_image_states([2, 9], ImageState.GONE)
    tensor = open_store(path)["grid"]
    assert tensor.rows.tolist() == [0, 1, 3, 4, 5, 6, 7, 8]
    assert "photo 2.jpg" not in tensor.paths
    assert len(tensor.dask()) == len(tensor.xarray()) == 8


def test_absent_rows_are_named_and_never_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "features.zarr"
    fill(path, n_images=4)
    with Writer(path) as writer:
        list_images(writer, 9)
    tensor = open_store(path)["grid"]
    with pytest.raises(
        AbsentRowsError, match=r"no features in 2 of the rows asked for: rows 8, 4 \(photo 8.jpg, photo"
    ):
        tensor.read([0, 8, 1, 4])
    with pytest.raises(AbsentRowsError, match="has rows 0 to 8; asked for 9, -1"):
        tensor.read([9, -1, 0])
    assert tensor.rows.tolist() == [0, 1, 2, 3]


def test_numpy_takes_all_rows_in_the_order_of_the_images(path: Path) -> None:
    store = open_store(path)
    for layout in (STACK, CONCAT):
        tensor, whole = store[layout.name], np.stack([features_of(row, layout) for row in range(10)])
        assert len(tensor) == len(store.images) == len(np.asarray(tensor))
        assert np.asarray(tensor).dtype == tensor.dtype
        assert tensor.shape == np.shape(tensor) == np.asarray(tensor).shape
        assert np.array_equal(np.asarray(tensor), whole)
        assert np.array_equal(np.asarray(tensor, np.float64), whole.astype(np.float64))
        for key in (3, -1, slice(2, 7, 2), [4, 0], np.arange(10) % 2 == 0, (5, 0), (slice(3), ..., 1), slice(20, 30)):
            assert np.array_equal(tensor[key], whole[key]), key
        assert np.array_equal(np.stack(list(tensor)), whole)
        with pytest.raises(IndexError):
            tensor[10]
        with pytest.raises(ValueError, match="makes a copy"):
            np.asarray(tensor, copy=False)


def test_an_array_with_rows_missing_is_none_and_says_what_to_do(path: Path) -> None:
    with Writer(path) as writer:
        writer.amend({"rows/whole": ([2, 9], np.full(2, RowState.ABSENT, np.uint8))})
    tensor = open_store(path)["whole"]
    with pytest.raises(AbsentRowsError, match=r"no features of 2 of 10 images \(photo 2.jpg, photo 9.jpg\).*pandas"):
        np.asarray(tensor)
    with pytest.raises(AbsentRowsError):
        tensor[2]
    assert len(tensor[[0, 1, 3]]) == 3
    assert list(tensor.pandas().index) == [f"photo {row}.jpg" for row in (0, 1, 3, 4, 5, 6, 7, 8)]
    assert "8 of 10 rows present" in repr(tensor)


def test_a_table_has_paths_before_and_segments_above_its_features(path: Path) -> None:
    store = open_store(path)
    whole = store["whole"].pandas()
    assert whole.index.name == "path"
    assert list(whole) == ["a[0]", "a[1]", "a[2]", *(f"b[{block},{i}]" for block in range(2) for i in range(5))]
    assert np.array_equal(whole.loc["photo 4.jpg"], features_of(4, CONCAT).astype(np.float32))
    grid = store["grid"].pandas([7, 1])  # without what fills it up
    assert list(grid) == [f"{name}[{t},{i}]" for name, n in (("a", 3), ("b", 5)) for t in range(2) for i in range(n)]
    assert grid.loc["photo 7.jpg", "b[1,4]"] == np.float32(features_of(7, STACK)[1, 1, 4])
    assert list(grid.index) == ["photo 7.jpg", "photo 1.jpg"]
    assert store["grid"].pandas([]).shape == (0, 16)


def test_a_tensor_says_what_it_is(path: Path) -> None:
    grid = open_store(path)["grid"]
    said = "stack (image 10, backbone 2, block 2, feature 6), float16, 10 of 10 rows present"
    assert repr(grid) == f"<tensor 'grid' in {path}: {said}>"
    assert said in grid._repr_html_()
    assert "<td>b</td><td>2</td><td>5</td>" in grid._repr_html_()
