"""Damage: no flipped bit, and no deleted, swapped or stale file goes unnoticed when it is read."""

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from featstore.errors import DamagedError, StoreError
from featstore.store import RowState, Writer, open_store

from ..small_store import STACK, assert_sound, features_of, list_images

SHARD = "tensors/grid/c.1.0.0.0"  # rows 4 to 7


def test_no_flipped_byte_and_no_missing_end_of_a_shard_gives_wrong_features(path: Path) -> None:
    file = path / SHARD
    good = file.read_bytes()
    right = np.stack([features_of(row, STACK) for row in (4, 5, 6, 7)])
    refused = 0
    for place in range(0, len(good), 11):
        bad = bytearray(good)
        bad[place] ^= 1
        for data in (bytes(bad), good[:place]):
            file.write_bytes(data)
            try:
                assert np.array_equal(open_store(path)["grid"].read([4, 5, 6, 7]), right)
            except DamagedError as error:
                assert re.search(r"rows? \d (\(photo \d.jpg\)|to 7) of tensor 'grid' in .*features.zarr", str(error))  # noqa: PT017
                refused += 1
            else:  # the flipped bit is in a chunk's own checksum, which others look at; ours are recorded elsewhere
                row_bytes = right[0].nbytes + 4
                assert len(data) == len(good)
                assert place % row_bytes >= right[0].nbytes
    assert refused > 20
    tensor = open_store(path)["grid"]
    assert np.array_equal(tensor.read([3, 8]), np.stack([features_of(row, STACK) for row in (3, 8)]))


def test_rows_that_were_read_twice_do_not_vouch_for_their_neighbours(path: Path) -> None:
    data = bytearray((path / SHARD).read_bytes())
    data[features_of(4, STACK).nbytes + 4] ^= 1  # the first byte of row 5
    (path / SHARD).write_bytes(data)
    tensor = open_store(path)["grid"]
    for _ in range(2):
        assert np.array_equal(tensor.read([4])[0], features_of(4, STACK))
    with pytest.raises(DamagedError, match=r"row 5 \(photo 5.jpg\)"):
        tensor.read([5])


@pytest.mark.parametrize("rows", [[4], [7, 4], [4, 5, 6, 7]], ids=str)
def test_a_deleted_shard_is_an_error_and_not_zeros(path: Path, rows: list[int]) -> None:
    (path / SHARD).unlink()
    with pytest.raises(
        DamagedError, match=r"to \d of tensor 'grid' in .*: .*c\.1\.0\.0\.0 cannot be read: No such file"
    ):
        open_store(path)["grid"].read(rows)
    with pytest.raises(DamagedError):
        open_store(path)["grid"].dask().compute(scheduler="synchronous")


RECORDS = ["rows/grid/c.0", "checksums/grid/c.0", "images/path/c.0", "images/state/c.0", "images/digest/c.0.0"]


@pytest.mark.parametrize("name", RECORDS)
def test_a_deleted_record_is_an_error_that_names_it(path: Path, name: str) -> None:
    (path / name).unlink()
    with pytest.raises(DamagedError, match=f"features.zarr: {name} is missing"):
        _ = open_store(path).tensors


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_an_error_that_names_it(path: Path, name: str) -> None:
    data = bytearray((path / name).read_bytes())
    data[len(data) // 2] ^= 1
    (path / name).write_bytes(data)
    with pytest.raises(DamagedError, match=f"features.zarr: {name} is damaged"):
        _ = open_store(path).tensors


@pytest.mark.parametrize(
    ("one", "other"), [("images/bytes/c.0", "images/modified/c.0"), (SHARD, "tensors/grid/c.0.0.0.0")]
)
def test_files_that_changed_places_are_noticed(path: Path, one: str, other: str) -> None:
    """Each is whole, and its own checksum right."""
    (path / one).rename(path / "aside")
    (path / other).rename(path / one)
    (path / "aside").rename(path / other)
    with pytest.raises(DamagedError, match="damaged"):
        open_store(path)["grid"].read([0])


def test_a_record_that_was_put_back_from_an_older_copy_is_noticed(path: Path) -> None:
    old = (path / "rows/grid/c.0").read_bytes()
    with Writer(path) as writer:
        writer.set_row_states("grid", [5], RowState.ABSENT)
    (path / "rows/grid/c.0").write_bytes(old)
    with pytest.raises(DamagedError, match=r"rows/grid/c\.0 is damaged, or is not the one that was written last"):
        open_store(path)["grid"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("images/state", "no column state"),
        ("rows/grid", "rows/grid/zarr.json is missing"),
        ("tensors/grid", "tensors/grid/zarr.json is missing"),
        ("checksums/grid", "checksums/grid/zarr.json is missing"),
        ("rows", "rows/zarr.json is missing"),
    ],
)
def test_a_missing_piece_is_named(path: Path, name: str, says: str) -> None:
    shutil.rmtree(path / name)
    with pytest.raises(StoreError, match=says):
        _ = open_store(path).tensors


@pytest.mark.parametrize("name", ["tensors/grid/zarr.json", "images/zarr.json", "images/size/zarr.json", "zarr.json"])
def test_a_damaged_document_is_named(path: Path, name: str) -> None:
    good = (path / name).read_bytes()
    for bad in (b"{", b"", b"\xff" + good, good.replace(b'"zarr_format": 3', b'"zarr_format": 2'), good[:-2] + b",}"):
        (path / name).write_bytes(bad)
        with pytest.raises(DamagedError, match=f"features.zarr: {name} is damaged"):
            _ = open_store(path).tensors


def test_what_an_interrupted_writer_or_a_file_manager_left_is_passed_over(path: Path) -> None:
    (path / "tensors" / "begun").mkdir()
    (path / "tensors" / "begun" / ".zarr.json.part").write_bytes(b"{")
    (path / "tensors" / ".DS_Store").write_bytes(b"x")
    assert sorted(open_store(path)) == ["grid", "whole"]
    with Writer(path) as writer:
        list_images(writer, 12)
    assert_sound(path)
