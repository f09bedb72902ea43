"""Features come once each, with the right values, whether they are in memory or stream through it."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

import featstore
from heads.batches import Features

ROW_BYTES = 3 * 16 * 24 * 2
BLOCK_BYTES = 8 * ROW_BYTES
STREAMING = [1, BLOCK_BYTES, 5 * BLOCK_BYTES, 60 * ROW_BYTES - 1]


def gather(
    features: Features, rows: NDArray[np.int64], size: int, seed: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.float32], list[int]]:
    """The rows in the order in which they came, their values, and the sizes of the batches."""
    rng = None if seed is None else np.random.default_rng(seed)
    batches = [(found, values.numpy()) for found, values in features.batches(rows, size, rng=rng)]
    found, values = zip(*batches, strict=True)
    return np.concatenate(found), np.concatenate(values), [len(each) for each in found]


def test_an_epoch_over_everything(world, features_of) -> None:
    features = features_of(world.store, "grid")
    assert (len(features), features.shape, features.n_bytes) == (60, (3, 16, 24), 60 * ROW_BYTES)
    found, values, sizes = gather(features, np.arange(60), 32)
    assert (found == np.arange(60)).all()
    assert (values == world.grid).all()
    assert values.dtype == np.float32
    assert sizes == [32, 28]


@settings(max_examples=25, deadline=None)
@given(
    subset=st.sets(st.integers(0, 59), min_size=1),
    size=st.integers(1, 70),
    memory_bytes=st.sampled_from([10**9, *STREAMING]),
    seed=st.none() | st.integers(0, 5),
)
def test_every_row_comes_once_with_its_values(world, features_of, subset, size, memory_bytes, seed) -> None:
    features = features_of(world.store, "grid", memory_bytes=memory_bytes)
    rows = np.random.default_rng(0).permutation(sorted(subset))
    found, values, sizes = gather(features, rows, size, seed)
    assert sorted(found) == sorted(subset)
    assert (values == world.grid[found]).all()
    assert sizes == [size] * (len(rows) // size) + [len(rows) % size] * (len(rows) % size > 0)
    if seed is None:
        assert (found == np.sort(rows)).all()


@settings(max_examples=15, deadline=None)
@given(stored=st.sets(st.integers(0, 59), min_size=1), memory_bytes=st.sampled_from([10**9, *STREAMING]))
def test_features_are_numbered_from_0_whatever_their_rows_in_the_store(
    world, stored, memory_bytes, features_of
) -> None:
    store_rows = np.array(sorted(stored))
    features = features_of(world.store, "whole", store_rows, memory_bytes=memory_bytes)
    found, values, _ = gather(features, np.arange(len(stored)), 7, seed=1)
    assert (values == world.whole[store_rows][found]).all()


@pytest.mark.parametrize("memory_bytes", [10**9, 9 * BLOCK_BYTES, 1])
def test_shuffled_anew_each_epoch_and_the_same_again_for_the_same_seed(world, features_of, memory_bytes: int) -> None:
    features = features_of(world.store, "grid", memory_bytes=memory_bytes)
    rng = np.random.default_rng(7)
    epochs = [[int(row) for found, _ in features.batches(np.arange(60), 16, rng=rng) for row in found] for _ in "ab"]
    assert epochs[0] != epochs[1] != sorted(epochs[0])
    again, _, _ = gather(features, np.arange(60), 16, seed=7)
    assert again.tolist() == epochs[0]
    other, _, _ = gather(features, np.arange(60), 16, seed=8)
    assert other.tolist() != epochs[0]


def test_streaming_mixes_row_blocks(as_features: Callable[..., Features]) -> None:
    features = as_features(np.zeros((64, 4), np.float16), memory_bytes=64 * 8 - 1, block_rows=2)
    found, _, _ = gather(features, np.arange(64), 8, seed=0)
    assert np.mean([len(set(part // 2)) for part in np.split(found, 8)]) > 4.5  # unmixed, 8 rows are of 4 blocks


def test_what_fits_is_read_once_and_progress_is_told(world) -> None:
    stored = featstore.open(world.store)["grid"]
    features, told = Features(stored, stored.rows, memory_bytes=60 * ROW_BYTES), []
    assert features.fits
    features.load(lambda done, total: told.append((done, total)))
    features.load(lambda done, total: told.append((done, total)))
    assert told == [(i + 1, 8) for i in range(8)]


def test_what_does_not_fit_is_not_read_ahead(world) -> None:
    stored = featstore.open(world.store)["grid"]
    features = Features(stored, stored.rows, memory_bytes=60 * ROW_BYTES - 1)
    assert not features.fits
    features.load(lambda done, total: pytest.fail("nothing is to be loaded"))


def test_no_rows_give_no_batches(world, features_of) -> None:
    for memory_bytes in (10**9, 1):
        features = features_of(world.store, "grid", memory_bytes=memory_bytes)
        assert list(features.batches(np.arange(0), 8)) == []


def test_the_reader_may_stop_in_the_middle(world, features_of) -> None:
    features = features_of(world.store, "grid", memory_bytes=1)
    found, _ = next(iter(features.batches(np.arange(60), 4)))
    assert found.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("seed", [None, 0])
def test_streaming_keeps_to_the_memory_it_is_given(as_features: Callable[..., Features], seed: int | None) -> None:
    values = np.ones((32, 2, 4, 8192), np.float16)  # 4 MiB in 32 row blocks
    allowed = 2 * 2**20
    features = as_features(values, memory_bytes=allowed, block_rows=1)
    n_rows, rng = 0, None if seed is None else np.random.default_rng(seed)
    tracemalloc.start()
    for found, _ in features.batches(np.arange(32), 2, rng=rng):
        n_rows += len(found)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert n_rows == 32
    assert peak < allowed


def test_a_damaged_store_is_named_not_learned_from(tmp_path: Path, write_store, features_of) -> None:
    write_store(tmp_path / "s.zarr", [f"{i}.jpg" for i in range(16)], {"only": np.ones((16, 4), np.float16)})
    (tmp_path / "s.zarr" / "tensors" / "only" / "c.1.0").unlink()
    with pytest.raises(featstore.FeatstoreError, match="rows 8 to 15"):
        features_of(tmp_path / "s.zarr", "only")
