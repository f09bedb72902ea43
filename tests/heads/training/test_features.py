"""Features come in groups, each row once with the right values, whether they are in memory or stream through it."""

import math
import time
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

import featstore
from heads.errors import FeaturesError
from heads.training import features as batches
from heads.training.features import IN_FLIGHT, LARGE_BYTES, SHARE_IN_MEMORY, Features, Group

ROW_BYTES = 3 * 16 * 24 * 2
BLOCK_BYTES = 8 * ROW_BYTES
ENOUGH = math.ceil(60 * ROW_BYTES / SHARE_IN_MEMORY)
STREAMING = [1, 2 * IN_FLIGHT * BLOCK_BYTES, 60 * ROW_BYTES - 1]  # one row block in a group, two, two

Some = st.sets(st.integers(0, 59), min_size=1)


def walk(features: Features, rows: NDArray[np.int64] | None = None, *, seed: int | None = None) -> list[Group]:
    return list(features.groups(rows, rng=None if seed is None else np.random.default_rng(seed)))


def order(groups: list[Group], rows: NDArray[np.int64]) -> list[int]:
    """The rows in the order in which a model comes by them."""
    return [int(row) for group in groups for row in group.holds(rows)]


@given(subset=Some, memory_bytes=st.sampled_from([10**9, *STREAMING]), seed=st.none() | st.integers(0, 5))
def test_every_row_comes_once_with_its_values(world, features_of, subset, memory_bytes, seed) -> None:
    features = features_of(world.store, "grid", "whole", memory_bytes=memory_bytes)
    assert features.resident == (memory_bytes == 10**9)
    rows = np.random.default_rng(0).permutation(sorted(subset))
    came: list[int] = []
    for group in walk(features, rows, seed=seed):
        found, (grid, whole) = group.batch(group.holds(rows))
        assert (grid.dtype, whole.dtype) == (torch.float32, torch.float32)
        assert (grid.numpy() == world.grid[found]).all()
        assert (whole.numpy() == world.whole[found]).all()
        came += found.tolist()
    assert sorted(came) == sorted(subset)


@given(stored=Some, memory_bytes=st.sampled_from([10**9, *STREAMING]))
def test_features_are_numbered_from_0_whatever_their_rows_in_the_store(
    world, stored, memory_bytes, features_of
) -> None:
    rows = np.array(sorted(stored))
    features = features_of(world.store, "grid", rows=rows, memory_bytes=memory_bytes)
    assert len(features) == len(rows)
    for group in walk(features, seed=1):
        found, (values,) = group.batch(group.rows)
        assert (values.numpy() == world.grid[rows][found]).all()


@given(mine=Some, others=Some, memory_bytes=st.sampled_from(STREAMING), seed=st.none() | st.integers(0, 5))
def test_a_model_sees_its_rows_in_the_same_order_whichever_others_are_asked_for(
    world, features_of, mine, others, memory_bytes, seed
) -> None:
    features = features_of(world.store, "grid", memory_bytes=memory_bytes)
    rows = np.array(sorted(mine))
    alone = walk(features, rows, seed=seed)
    together = walk(features, np.array(sorted(mine | others)), seed=seed)
    assert order(alone, rows) == order(together, rows)
    parts = [held.tolist() for group in together if len(held := group.holds(rows))]
    assert parts == [group.rows.tolist() for group in alone]  # and in the same groups


def test_groups_are_shuffled_anew_and_come_again_for_the_same_seed(world, features_of) -> None:
    features = features_of(world.store, "grid", memory_bytes=1)
    rng, rows = np.random.default_rng(7), np.arange(60)
    first, second = (order(list(features.groups(rows, rng=rng)), rows) for _ in "ab")
    assert first != second != sorted(first)
    assert order(walk(features, rows, seed=7), rows) == first
    assert order(walk(features, rows), rows) == rows.tolist()


def test_a_group_is_as_many_shuffled_row_blocks_as_the_budget_allows(world, features_of) -> None:
    features = features_of(world.store, "grid", memory_bytes=1)
    for n_blocks, sizes in ((1, [8] * 7 + [4]), (3, [24, 24, 12])):
        budget = (n_blocks + 1) * IN_FLIGHT * BLOCK_BYTES - 1
        assert [len(group.rows) for group in features.groups(budget_bytes=budget)] == sizes
    mixed = list(features.groups(rng=np.random.default_rng(0), budget_bytes=3 * IN_FLIGHT * BLOCK_BYTES))
    assert [len({int(row) // 8 for row in group.rows}) for group in mixed] == [3, 3, 2]
    assert max(np.ptp(group.rows) for group in mixed) > 32  # from all over the store


def test_a_batch_comes_in_the_order_in_which_rows_lie(world, features_of) -> None:
    (group,) = walk(features_of(world.store, "grid"))
    asked = np.array([40, 3, 59, 17])
    found, (values,) = group.batch(asked)
    assert sorted(found) == sorted(asked)
    assert (values.numpy() == world.grid[found]).all()


@pytest.mark.parametrize("width", [LARGE_BYTES // 4 - 1, LARGE_BYTES // 4], ids=["small", "large"])
def test_rows_are_prepared_each_once_however_large_they_are(as_features: Callable[..., Features], width: int) -> None:
    values = np.arange(10, dtype=np.float16)[:, None] * np.ones(width, np.float16)
    (group,) = walk(as_features(values, block_rows=4))
    parts: list[int] = []

    def prepare(number: int, rows: torch.Tensor) -> None:
        rows.mul_(10).add_(number + 1)
        parts.append(rows.ndim)

    found, (ready,) = group.batch(np.array([9, 2, 3, 5, 0]), prepare)
    assert (ready.numpy() == 10.0 * values[found] + 1).all()
    assert parts == ([1] * 5 if 4 * width >= LARGE_BYTES else [2] * 3)  # row by row, or block by block
    assert (group.batch(np.array([9]))[1][0].numpy() == 9).all()  # what is stored stays as it is


def test_each_tensor_is_prepared_by_its_number(world, features_of) -> None:
    (group,) = walk(features_of(world.store, "grid", "whole"))

    def prepare(number: int, rows: torch.Tensor) -> None:
        rows.fill_(number)

    _, (grid, whole) = group.batch(np.arange(5), prepare)
    assert ((grid == 0).all(), (whole == 1).all()) == (True, True)


def test_what_fits_is_read_once_and_progress_is_told(world) -> None:
    stored = featstore.open(world.store)["grid"]
    features, told = Features([stored], stored.rows, memory_bytes=ENOUGH), []
    assert (features.fits, features.shapes, features.n_bytes) == (True, ((3, 16, 24),), 60 * ROW_BYTES)
    features.load(lambda stage, done, total: told.append((done, total)))
    features.load(lambda stage, done, total: told.append((done, total)))
    assert told == [(done, 60) for done in (8, 16, 24, 32, 40, 48, 56, 60)]
    assert walk(features)[0] is walk(features, np.array([3]))[0]


def test_what_does_not_fit_is_not_read_ahead(world) -> None:
    stored = featstore.open(world.store)["grid"]
    features = Features([stored], stored.rows, memory_bytes=ENOUGH - 2)
    features.load(lambda stage, done, total: pytest.fail("nothing is to be loaded"))
    assert (features.fits, features.resident) == (False, False)


def test_no_rows_have_no_batches(world, features_of) -> None:
    nothing = np.arange(0)
    assert walk(features_of(world.store, "grid", memory_bytes=1), nothing) == []
    assert order(walk(features_of(world.store, "grid"), nothing), nothing) == []


def test_the_reader_may_stop_in_the_middle(world, features_of) -> None:
    groups = features_of(world.store, "grid", memory_bytes=1).groups()
    assert next(groups).rows.tolist() == list(range(8))
    groups.close()


@pytest.mark.parametrize("seed", [None, 0])
def test_streaming_keeps_to_its_budget(
    as_features: Callable[..., Features], seed: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = np.ones((48, 2, 4, 32768), np.float16)  # 24 MiB in 48 row blocks
    allowed = 12 * 2**20
    features = as_features(values, memory_bytes=1, block_rows=1)
    alive: weakref.WeakSet[Group] = weakref.WeakSet()
    most = [0]

    class Counted(Group):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            alive.add(self)
            most.append(sum(block.nbytes for group in alive for tensor in group.blocks for block in tensor))

    monkeypatch.setattr(batches, "Group", Counted)
    n_rows = 0
    held: Group | None = None
    tracemalloc.start()
    rng = None if seed is None else np.random.default_rng(seed)
    for group in features.groups(rng=rng, budget_bytes=allowed):
        n_rows += len(group.rows)
        time.sleep(0.05)  # the next one is there before this one is let go
        held = group  # as by a model that is behind the others
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert held is not None
    assert n_rows == 48
    assert allowed * 2 / 3 <= max(most) <= allowed
    assert peak < 1.1 * allowed  # what numpy allocates, all else of a Python process included


def test_a_damaged_store_is_named_not_learned_from(tmp_path: Path, write_store, features_of) -> None:
    write_store(tmp_path / "s.zarr", [f"{i}.jpg" for i in range(16)], {"only": np.ones((16, 4), np.float16)})
    (tmp_path / "s.zarr" / "tensors" / "only" / "c.1.0").unlink()
    with pytest.raises(featstore.FeatstoreError, match="rows 8 to 15"):
        features_of(tmp_path / "s.zarr", "only")
    with pytest.raises(featstore.FeatstoreError, match="rows 8 to 15"):
        walk(features_of(tmp_path / "s.zarr", "only", memory_bytes=1))


def test_features_that_are_no_floats_are_refused(as_features: Callable[..., Features]) -> None:
    with pytest.raises(FeaturesError, match="holds uint8; heads learn from floats"):
        as_features(np.ones((4, 3), np.uint8))


def test_a_group_that_was_moved_holds_the_same_in_one_piece() -> None:
    rng = np.random.default_rng(0)
    rows = np.array([8, 1, 5, 3, 9])
    blocks = [rng.normal(size=(n, 2, 3)).astype(np.float16) for n in (2, 3)]
    copies = [rng.normal(size=(n, 4, 2, 3)).astype(np.float16) for n in (2, 3)]
    group = Group(rows, [blocks], [(copies, 1)])
    moved = group.on(torch.device("cpu"))
    assert [len(view) for view in moved._views[0]] == [1] * 5
    for views in (None, np.array([0, 4, 2])):
        for here, there in zip(
            group.batch(np.array([9, 8, 3]), views=views), moved.batch(np.array([9, 8, 3]), views=views), strict=True
        ):
            np.testing.assert_array_equal(np.asarray(here), np.asarray(there))
