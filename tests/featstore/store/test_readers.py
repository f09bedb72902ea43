"""A store is only Zarr: read here by zarr, xarray and TensorStore, without this package."""

import json
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numpy.typing import NDArray

from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer

N_IMAGES, BLOCK_ROWS = 10, 4
Written = dict[str, NDArray[np.float16]]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("readers") / "features.zarr"


@pytest.fixture(scope="module")
def written(path: Path) -> Written:
    """Two tensors of different widths; the values that went in."""
    segments = tuple(StoredSegment(name, {"architecture": name}, 2, width) for name, width in (("a", 3), ("b", 5)))
    layouts = [TensorLayout("grid", "stack", segments, width=8), TensorLayout("whole", "concat", segments)]
    rng = np.random.default_rng(0)
    values = {each.name: rng.normal(size=(N_IMAGES, *each.row_shape)).astype(np.float16) for each in layouts}
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        for layout in layouts:
            writer.ensure_tensor(layout, "float16")
        paths = [f"été {row}.jpg" for row in range(N_IMAGES)]
        writer.add_images(NewImages(paths, np.zeros((N_IMAGES, 32), np.uint8), [1] * N_IMAGES, [1] * N_IMAGES))
        for block, start in enumerate(range(0, N_IMAGES, BLOCK_ROWS)):
            rows = list(range(N_IMAGES))[start : start + BLOCK_ROWS]
            states = np.full(len(rows), RowState.PRESENT, np.uint8)
            n = len(rows)
            seen = SeenImages(rows, [(40, 60)] * n, [ImageState.READABLE] * n, [""] * n)
            writer.commit(block, {name: (each[rows], states) for name, each in values.items()}, seen)
    return values


@pytest.mark.parametrize("name", ["grid", "whole"])
def test_zarr_reads_a_tensor(path: Path, written: Written, name: str) -> None:
    array = zarr.open(path, mode="r")[f"tensors/{name}"]
    assert isinstance(array, zarr.Array)
    assert array.shape == written[name].shape
    assert array.chunks[0] == 1
    assert array.shards is not None
    assert array.shards[0] == BLOCK_ROWS
    assert np.array_equal(np.asarray(array[:]), written[name])


def test_zarr_reads_the_images_and_the_records(path: Path, written: Written) -> None:
    group = zarr.open_group(path, mode="r")
    assert [str(each) for each in group["images/path"][:3]] == ["été 0.jpg", "été 1.jpg", "été 2.jpg"]
    assert group["images/size"][9].tolist() == [40, 60]
    assert group["rows/grid"][:].tolist() == [1] * N_IMAGES


def test_xarray_opens_all_tensors_as_one_dataset(path: Path, written: Written) -> None:
    with xarray.open_zarr(path, group="tensors", consolidated=False) as dataset:
        assert dict(dataset.sizes) == {
            "image": 10, "grid_backbone": 2, "grid_block": 2, "grid_feature": 8, "whole_feature": 16,
        }  # fmt: skip
        for name, values in written.items():
            assert dataset[name].dims[0] == "image"
            assert np.array_equal(dataset[name].values, values)


@pytest.mark.parametrize("name", ["grid", "whole"])
def test_tensorstore_reads_a_tensor(path: Path, written: Written, name: str) -> None:
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(path / "tensors" / name)}}
    array = tensorstore.open(spec, read=True).result()
    assert array.domain.labels[0] == "image"
    assert np.array_equal(array.read().result(), written[name])
    assert np.array_equal(array[7].read().result(), written[name][7])


@pytest.mark.parametrize("name", ["grid", "whole"])
def test_every_chunk_carries_a_checksum(path: Path, written: Written, name: str) -> None:
    metadata = json.loads((path / "tensors" / name / "zarr.json").read_text())
    (sharding,) = metadata["codecs"]
    assert sharding["name"] == "sharding_indexed"
    assert sharding["configuration"]["chunk_shape"][0] == 1
    assert [codec["name"] for codec in sharding["configuration"]["codecs"]] == ["bytes", "crc32c"]
    assert [codec["name"] for codec in sharding["configuration"]["index_codecs"]] == ["bytes", "crc32c"]
    assert metadata["fill_value"] == "NaN"


def test_there_is_nothing_but_json_and_chunks_and_nothing_pickled(path: Path, written: Written) -> None:
    for file in (each for each in path.rglob("*") if each.is_file()):
        if file.name == "zarr.json":
            metadata = json.loads(file.read_text())
            assert "pickle" not in json.dumps(metadata)
            assert metadata["zarr_format"] == 3
        else:
            assert file.name.startswith("c.")
            assert not file.read_bytes().startswith(b"\x80\x04"), "the beginning of a pickle"
    for file in path.glob("*/*/zarr.json"):
        assert json.loads(file.read_text())["dimension_names"][0] == "image"
