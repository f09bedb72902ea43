"""A store that was extracted from photos, read by whoever does not have this package."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import xarray
import zarr
from numpy.typing import NDArray

import featstore
from featstore.config import Config
from featstore.extraction import extract


@pytest.fixture
def features(tiny_config: Config) -> tuple[Path, NDArray[np.float16]]:
    """A store with two tensors of unequal widths and one unreadable photo, and what its first tensor holds."""
    assert tiny_config.photos is not None
    (tiny_config.photos / "broken.jpg").touch()  # sorts first: row 0
    extract(tiny_config)
    expected = featstore.open(tiny_config.store)["grid"].read(np.arange(1, 11))
    assert np.isfinite(expected).all()
    return tiny_config.store, expected


def test_zarr_reads_it(features: tuple[Path, NDArray[np.float16]]) -> None:
    store, expected = features
    array = zarr.open(store, mode="r")["tensors/grid"]
    np.testing.assert_array_equal(array[1:], expected)
    assert np.isnan(array[0]).all(), "a failed row never looks like a feature"
    assert array.shards == (64, *expected.shape[1:])
    assert array.chunks == (1, *expected.shape[1:])
    sharding = array.metadata.to_dict()["codecs"][0]["configuration"]
    assert [codec["name"] for codec in sharding["codecs"]] == ["bytes", "crc32c"]
    assert zarr.open(store, mode="r")["images/path"][0] == "broken.jpg"


def test_xarray_opens_all_tensors_at_once(features: tuple[Path, NDArray[np.float16]]) -> None:
    store, expected = features
    tensors = xarray.open_zarr(store, group="tensors", consolidated=False)
    assert tensors["grid"].dims == ("image", "grid_backbone", "grid_block", "grid_feature")
    assert tensors["whole"].dims == ("image", "whole_feature")
    np.testing.assert_array_equal(tensors["grid"].values[1:], expected)
    images = xarray.open_zarr(store, group="images", consolidated=False)
    assert images["path"].values[0] == "broken.jpg"


def test_tensorstore_reads_it(features: tuple[Path, NDArray[np.float16]]) -> None:
    store, expected = features
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store / "tensors" / "grid")}}
    array = tensorstore.open(spec, open=True, read=True).result()
    np.testing.assert_array_equal(array[1:].read().result(), expected)


def test_none_of_them_needs_featstore(features: tuple[Path, NDArray[np.float16]]) -> None:
    store, _ = features
    code = (
        "import sys; sys.modules['featstore'] = None\n"
        "import zarr; group = zarr.open(sys.argv[1], mode='r')\n"
        "print(group['tensors/grid'].attrs['segments'][0]['identity']['architecture'])"
    )
    done = subprocess.run([sys.executable, "-c", code, store], capture_output=True, text=True, check=True)
    assert done.stdout == "timm/test_efficientnet\n"


def test_our_own_readers_agree_and_refuse_what_is_not_there(
    features: tuple[Path, NDArray[np.float16]], tiny_config: Config
) -> None:
    store, expected = features
    tensor = featstore.open(store)["grid"]
    np.testing.assert_array_equal(tensor.dask().compute(), expected)
    labelled = tensor.xarray()
    assert list(labelled.coords["backbone"].values) == ["test_efficientnet", "test_resnet"]
    np.testing.assert_array_equal(labelled.sel(image="photo 3.jpg"), expected[tensor.paths.index("photo 3.jpg")])
    dataset = tensor.torch()
    assert len(dataset) == 10  # type: ignore[arg-type]
    row, values = dataset[2]
    assert row == 3
    np.testing.assert_array_equal(values, expected[2])
    with pytest.raises(featstore.FeatstoreError, match=r"rows 0 \(broken\.jpg\)"):
        tensor.read([0, 1])
    wider = replace(tiny_config, store=store)
    assert extract(wider).n_computed == 0


def test_damage_is_never_read_as_data(features: tuple[Path, NDArray[np.float16]]) -> None:
    store, _ = features
    shard = store / "tensors" / "grid" / "c.0.0.0.0"
    whole = bytearray(shard.read_bytes())
    flipped = whole.copy()
    flipped[2500] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(featstore.FeatstoreError, match=r"rows 1 to 10 of tensor 'grid' .*cannot be read"):
        featstore.open(store)["grid"].read(np.arange(1, 11))
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(featstore.FeatstoreError, match="of tensor 'grid'"):
        featstore.open(store)["grid"].read([4])
    shard.unlink()
    with pytest.raises(featstore.FeatstoreError, match="missing on the disk"):
        featstore.open(store)["grid"].read([4])
