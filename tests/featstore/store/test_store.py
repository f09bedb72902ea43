"""The store on a real disk, held against plain numpy arrays; then damaged, filled up, killed and forged."""

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from featstore.errors import (
    AbsentRowsError,
    ConfigError,
    DamagedError,
    FormatError,
    LayoutError,
    LockedError,
    StoreError,
    StoreWriteError,
)
from featstore.store import ImageState, NewImages, RowState, SeenImages, StoredSegment, TensorLayout, Writer, open_store
from featstore.store.format.integrity import SealedStore, digest_of, write_document
from featstore.store.format.limits import check_space
from featstore.store.places import local

BLOCK_ROWS = 4
PRESENT = RowState.PRESENT


def segment(name: str, *, n_blocks: int, width: int, weights: str = "ab") -> StoredSegment:
    return StoredSegment(name, {"architecture": name, "weights": {"sha256": weights}}, n_blocks, width)


STACK = TensorLayout("grid", "stack", (segment("a", n_blocks=2, width=3), segment("b", n_blocks=2, width=5)), width=6)
CONCAT = TensorLayout("whole", "concat", (segment("a", n_blocks=1, width=3), segment("b", n_blocks=2, width=5)))
LAYOUTS = (STACK, CONCAT)


def features_of(row: int, layout: TensorLayout) -> NDArray[np.float16]:
    """What the oracle says is in this row."""
    out = np.empty(layout.row_shape, np.float16)
    rng = np.random.default_rng([row, len(layout.name)])
    layout.assemble(out, {s.hash: rng.normal(size=(s.n_blocks, s.width)) for s in layout.segments})
    return out


def list_images(writer: Writer, n_images: int) -> None:
    """List images until there are `n_images` of them."""
    new = range(len(writer.store.images), n_images)
    writer.add_images(
        NewImages(
            [f"photo {row}.jpg" for row in new],
            np.array([[row] * 32 for row in new], np.uint8),
            [1000 + row for row in new],
            list(new),
        )
    )


def commit(writer: Writer, block: int, *, layouts: tuple[TensorLayout, ...] = LAYOUTS) -> None:
    """Commit a row block, every row of it present."""
    rows = list(range(len(writer.store.images)))[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    values = {layout.name: np.stack([features_of(row, layout) for row in rows]) for layout in layouts}
    states = np.full(len(rows), PRESENT, np.uint8)
    seen = SeenImages(rows, [(40, 60)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
    writer.commit(block, {name: (each, states) for name, each in values.items()}, seen)


def fill(path: Path, *, n_images: int = 10) -> None:
    """Bring a store to `n_images` rows, all present, doing only what is not done: a run, or the run after it."""
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        if len(writer.store.images) < n_images:
            list_images(writer, n_images)
        for layout in LAYOUTS:
            writer.ensure_tensor(layout, "float16")
        for block in range(-(-n_images // BLOCK_ROWS)):
            rows = slice(block * BLOCK_ROWS, (block + 1) * BLOCK_ROWS)
            if any((writer.store[layout.name].states[rows] != PRESENT).any() for layout in LAYOUTS):
                commit(writer, block)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "features.zarr"
    fill(path)
    return path


@pytest.fixture
def path(template: Path, tmp_path: Path) -> Path:
    """A store of ten images in three row blocks, every row of both tensors present."""
    return shutil.copytree(template, tmp_path / "features.zarr")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, where there is one: for tests that write so often that syncing a disk takes a minute."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="featstore-") as folder:
        yield Path(folder)


def assert_sound(path: Path) -> None:
    """Everything marked present is right."""
    store = open_store(path)
    for layout in LAYOUTS:
        if layout.name in store.tensors:
            tensor = store[layout.name]
            for row, values in zip(tensor.rows, tensor.read(tensor.rows), strict=True):
                assert np.array_equal(values, features_of(int(row), layout))


# ---- layouts


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


# ---- writing and reading back


@dataclass
class Oracle:
    """What a store should hold: for each row of each tensor a state, and whether the image is gone."""

    states: dict[str, list[int]] = field(default_factory=lambda: {layout.name: [] for layout in LAYOUTS})
    gone: list[bool] = field(default_factory=list)

    def rows(self, name: str) -> list[int]:
        return [row for row, state in enumerate(self.states[name]) if state == PRESENT and not self.gone[row]]


steps = st.one_of(
    st.tuples(st.just("list"), st.integers(1, 6)),
    st.tuples(st.just("commit"), st.integers(0, 3), st.lists(st.sampled_from(RowState), min_size=4, max_size=4)),
    st.tuples(st.just("gone"), st.integers(0, 15)),
)


@settings(max_examples=12)
@given(script=st.lists(steps, min_size=1, max_size=8), seed=st.integers(0, 99))
def test_whatever_is_done_to_it_a_store_reads_back_what_was_put_in(
    scratch: Path, script: list[tuple[Any, ...]], seed: int
) -> None:
    path = scratch / "features.zarr"
    shutil.rmtree(path, ignore_errors=True)
    oracle = Oracle()
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        for layout in LAYOUTS:
            writer.ensure_tensor(layout, "float16")
        for step in [("list", 5), ("commit", 0, [PRESENT] * 4), *script]:
            take(step, writer, oracle)
    for layout in LAYOUTS:
        assert_reads_back(path, layout, oracle, np.random.default_rng(seed))


def take(step: tuple[Any, ...], writer: Writer, oracle: Oracle) -> None:
    n_rows = len(oracle.gone)
    match step:
        case "list", n_new:
            list_images(writer, n_rows + n_new)
            oracle.gone += [False] * n_new
            for states in oracle.states.values():
                states += [RowState.ABSENT] * n_new
        case "gone", number:
            row = number % n_rows
            writer.set_image_states([row], ImageState.GONE)
            oracle.gone[row] = True
        case "commit", number, wanted:
            block = number % -(-n_rows // BLOCK_ROWS)
            rows = range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, n_rows))
            put = {}
            for layout in LAYOUTS:
                known = oracle.states[layout.name]
                for row, state in zip(rows, wanted, strict=False):
                    known[row] = known[row] if known[row] == PRESENT else state  # what is present stays
                values = np.full((len(rows), *layout.row_shape), np.nan, np.float16)
                for i, row in enumerate(rows):
                    if known[row] == PRESENT:
                        values[i] = features_of(row, layout)
                put[layout.name] = (values, np.array(known)[rows].astype(np.uint8))
            writer.commit(block, put, SeenImages([], [], [], []))


def assert_reads_back(path: Path, layout: TensorLayout, oracle: Oracle, rng: np.random.Generator) -> None:
    tensor = open_store(path)[layout.name]
    rows = oracle.rows(layout.name)
    expected = np.array([features_of(row, layout) for row in rows], np.float16).reshape(-1, *layout.row_shape)
    assert tensor.shape == (len(oracle.gone), *layout.row_shape)
    assert tensor.states.tolist() == oracle.states[layout.name]
    assert tensor.rows.tolist() == rows
    assert np.array_equal(tensor.read(rows), expected)
    if rows:
        picks = rng.integers(0, len(rows), 9)  # any order, repeats too
        assert np.array_equal(tensor.read(np.array(rows)[picks]), expected[picks])
    blocks = list(tensor.iter_blocks())
    assert [int(row) for numbers, _ in blocks for row in numbers] == rows
    assert all(len(set(numbers // BLOCK_ROWS)) == 1 for numbers, _ in blocks)
    assert np.array_equal(np.concatenate([*(values for _, values in blocks), expected[:0]]), expected)
    assert np.array_equal(tensor.dask().compute(scheduler="synchronous"), expected)
    labelled = tensor.xarray()
    assert labelled.dims == layout.axes
    assert labelled.image.values.tolist() == [f"photo {row}.jpg" for row in rows]
    dataset: Any = tensor.torch()
    assert len(dataset) == len(rows)
    for (row, values), number, each in zip(dataset.__getitems__(list(range(len(rows)))), rows, expected, strict=True):
        assert row == number
        assert np.array_equal(values.numpy(), each)
    for row in set(range(len(oracle.gone))) - {r for r, s in enumerate(oracle.states[layout.name]) if s == PRESENT}:
        with pytest.raises(AbsentRowsError):
            tensor.read([row])


def test_what_is_known_of_images(path: Path) -> None:
    with Writer(path) as writer:
        writer.note_unchanged([3], [7], [8])
        writer.set_image_states([2], ImageState.GONE)
    images = open_store(path).images
    assert len(images) == 10
    assert images.paths[9] == "photo 9.jpg"
    assert images.digests[9].tolist() == [9] * 32
    assert images.sizes[9].tolist() == [40, 60]
    assert (images.n_bytes[3], images.modified_ns[3]) == (7, 8)
    assert images.states[:4].tolist() == [1, 1, ImageState.GONE, 1]
    assert "photo 2.jpg" not in images.rows_by_path
    assert images.rows_by_path["photo 3.jpg"] == 3


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


def test_runs_are_recorded_one_after_the_other(path: Path) -> None:
    for device in ("cpu", "cuda"):
        with Writer(path) as writer:
            writer.record_run(["grid"], {"device": device})
    store = open_store(path)
    assert [run["device"] for run in store["grid"].provenance] == ["cpu", "cuda"]
    assert store["whole"].provenance == []


def test_the_same_features_give_the_same_bytes_however_they_came(tmp_path: Path) -> None:
    fill(tmp_path / "at once.zarr", n_images=10)
    for n_images in (3, 4, 10):
        fill(tmp_path / "grown.zarr", n_images=n_images)
    assert contents(tmp_path / "at once.zarr") == contents(tmp_path / "grown.zarr")


def contents(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


# ---- rows that are not there


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


def test_an_unknown_tensor_is_answered_with_the_nearest(path: Path) -> None:
    store = open_store(path)
    assert sorted(store) == ["grid", "whole"]
    assert len(store) == 2
    with pytest.raises(StoreError, match="has no tensor 'gird'; did you mean 'grid'"):
        store["gird"]


# ---- damage


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


# ---- things that are not such a store


def test_a_store_of_another_format_version_is_refused_with_the_way_out(path: Path) -> None:
    with forged(path, "zarr.json") as metadata:
        metadata["attributes"]["featstore"]["format"] = 3
    for attempt in (open_store, open_writer):
        with pytest.raises(FormatError, match="has format version 3; this featstore reads version 2: install"):
            attempt(path)


def make_nothing(path: Path) -> None:
    pass


def make_a_file(path: Path) -> None:
    path.write_text("my thesis")


def make_a_folder_of_something(path: Path) -> None:
    path.mkdir()
    (path / "thesis.txt").write_text("my thesis")


def make_a_plain_zarr_group(path: Path) -> None:
    zarr.create_group(path).create_array("x", shape=(3,), dtype="f4")


@pytest.mark.parametrize("make", [make_nothing, make_a_file, make_a_folder_of_something, make_a_plain_zarr_group])
def test_what_is_no_store_is_refused_in_words_and_left_alone(tmp_path: Path, make: Callable[[Path], None]) -> None:
    path = tmp_path / "thing"
    make(path)
    before = contents(tmp_path)
    with pytest.raises(FormatError, match="not a feature store"):
        open_store(path)
    if make is not make_nothing:
        with pytest.raises(FormatError, match="not a feature store"):
            open_writer(path)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) <= {"thing.lock"}


def test_a_path_that_the_system_refuses_is_an_error_in_words(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be read: File name too long"):
        open_store(tmp_path / ("x" * 300))


def test_an_empty_folder_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "features.zarr").mkdir()
    fill(tmp_path / "features.zarr")
    assert_sound(tmp_path / "features.zarr")


def open_writer(path: Path) -> None:
    with Writer(path):
        pass


class forged:  # noqa: N801
    """A document of a store, to be changed and written back with a seal and a digest that are right."""

    def __init__(self, store: Path, key: str) -> None:
        self.root, self.file, self.key = store / "zarr.json", store / key, key

    def __enter__(self) -> dict[str, Any]:
        self.json: dict[str, Any] = json.loads(self.file.read_text())
        return self.json

    def __exit__(self, *_: object) -> None:
        data = write_document(self.key, self.json)
        if self.file != self.root:
            root = json.loads(self.root.read_text())
            root["attributes"]["sums"][self.key] = [digest_of(data)]
            self.root.write_bytes(write_document("zarr.json", root))
        self.file.write_bytes(data)


def forge_identity(attributes: dict[str, Any]) -> None:
    attributes["segments"][0]["identity"]["weights"]["sha256"] = "cd"


def forge_hash(attributes: dict[str, Any]) -> None:
    attributes["segments"][0]["hash"] = "0" * 16


def forge_width(attributes: dict[str, Any]) -> None:
    attributes["segments"][0]["width"] = 7


def forge_signs(attributes: dict[str, Any]) -> None:
    attributes["segments"][0] |= {"width": -3, "blocks": -1}


def forge_layout(attributes: dict[str, Any]) -> None:
    attributes["layout"] = "pile"


def forge_kind(attributes: dict[str, Any]) -> None:
    attributes["layout"] = "stack"


def forge_nothing_left(attributes: dict[str, Any]) -> None:
    attributes.clear()


def forge_types(attributes: dict[str, Any]) -> None:
    attributes["segments"] = "abc"


@pytest.mark.parametrize(
    "forge",
    [forge_identity, forge_hash, forge_width, forge_signs, forge_layout, forge_kind, forge_nothing_left, forge_types],
)
def test_forged_attributes_are_refused(path: Path, forge: Callable[[dict[str, Any]], None]) -> None:
    with forged(path, "tensors/whole/zarr.json") as metadata:
        forge(metadata["attributes"])
    with pytest.raises(FormatError, match="tensor 'whole'"):
        open_store(path)["whole"]


@pytest.mark.parametrize("block_rows", [0, -4, "4", None])
def test_a_forged_block_size_is_refused(path: Path, block_rows: object) -> None:
    with forged(path, "zarr.json") as metadata:
        metadata["attributes"]["featstore"]["block_rows"] = block_rows
    with pytest.raises(FormatError, match="where the rows of a block should be"):
        open_store(path)


# ---- other features under the same name


def test_the_same_layout_may_be_ensured_again(path: Path) -> None:
    with Writer(path) as writer:
        writer.ensure_tensor(STACK, "float16")
    assert_sound(path)


@pytest.mark.parametrize(
    ("other", "says"),
    [
        (
            TensorLayout(
                "grid", "stack", (segment("a", n_blocks=2, width=3, weights="cd"), STACK.segments[1]), width=6
            ),
            "a: weights: cd here, ab there",
        ),
        (TensorLayout("grid", "stack", STACK.segments[::-1], width=6), "segments: b, a here, a, b there"),
        (TensorLayout("grid", "concat", STACK.segments), "layout: concat here, stack there"),
        (TensorLayout("grid", "stack", STACK.segments, width=8), r"row shape: \(2, 2, 8\) here, \(2, 2, 6\) there"),
    ],
    ids=["weights", "order", "layout", "width"],
)
def test_other_features_never_go_under_a_name_that_is_taken(path: Path, other: TensorLayout, says: str) -> None:
    before = contents(path)
    with Writer(path) as writer, pytest.raises(LayoutError, match=f"holds other features:\n  - {says}"):
        writer.ensure_tensor(other, "float16")
    assert contents(path) == before


def test_a_tensor_that_could_not_be_opened_is_not_made(path: Path) -> None:
    before = contents(path)
    wide = replace(STACK.segments[0], n_blocks=64, width=1 << 23)
    with Writer(path) as writer, pytest.raises(LayoutError, match=r"'wide': a block of \d+ rows of .* takes .* GB; at"):
        writer.ensure_tensor(TensorLayout("wide", "stack", (wide,), width=1 << 23), "float64")
    assert contents(path) == before


# ---- several changes at once


def test_what_is_done_together_is_seen_at_once(path: Path) -> None:
    other = replace(STACK, name="other")
    with Writer(path) as writer:
        with writer.together():
            list_images(writer, 12)
            writer.ensure_tensor(other, "float16")
            writer.note_runs({"other": [{"engine": "one"}], "grid": [{"engine": "two"}]})
            writer.set_image_states([11], ImageState.GONE)
            assert (len(writer.store.images), "other" in writer.store) == (10, False)
            seen_by_others = open_store(path)
            assert (len(seen_by_others.images), "other" in seen_by_others) == (10, False)
        assert len(writer.store.images) == 12
        assert writer.store["other"].shape == (12, *STACK.row_shape)
        assert writer.store["other"].provenance == [{"engine": "one"}]
        assert writer.store["grid"].provenance[-1] == {"engine": "two"}
        assert writer.store.images.states[11] == ImageState.GONE
        commit(writer, 2, layouts=(*LAYOUTS, other))
    assert_sound(path)


def list_and_make(writer: Writer, n_images: int, layout: TensorLayout) -> None:
    with writer.together():
        list_images(writer, n_images)
        writer.ensure_tensor(layout, "float16")


def test_what_fails_together_leaves_all_as_it_was(path: Path) -> None:
    before = contents(path)
    with Writer(path) as writer:
        with pytest.raises(LayoutError):
            list_and_make(writer, 12, replace(STACK, width=8))
        assert len(writer.store.images) == 10
        assert contents(path) == before
        list_images(writer, 11)
        assert writer.store["grid"].shape[0] == 11
    assert_sound(path)


def test_a_listing_that_fails_leaves_no_trace_in_the_writer(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Writer(path) as writer:
        with monkeypatch.context() as patch:
            patch.setattr(SealedStore, "_announce", lambda self, values: _no_space())
            with pytest.raises(StoreWriteError):
                list_images(writer, 12)
        list_images(writer, 12)
        assert writer.store.images.paths[10:] == ["photo 10.jpg", "photo 11.jpg"]
    assert_sound(path)


async def _no_space() -> None:
    raise StoreWriteError("the disk is full")


def test_a_tensor_that_was_noted_before_grows_with_the_others(path: Path) -> None:
    with Writer(path) as writer:
        writer.record_run(["grid"], {"engine": "one"})
        with writer.together():
            list_images(writer, 14)
            writer.note_runs({"grid": [{"engine": "two"}]})
    for kind in ("tensors", "rows", "checksums"):
        assert json.loads((path / kind / "grid" / "zarr.json").read_text())["shape"][0] == 14
    assert_sound(path)


def test_an_empty_tensor_whose_folders_somebody_has_deleted_is_made_again(path: Path) -> None:
    other = replace(STACK, name="other")
    with Writer(path) as writer:
        writer.ensure_tensor(other, "float16")
    for kind in ("tensors", "rows", "checksums"):
        shutil.rmtree(path / kind / "other")
    with Writer(path) as writer:
        writer.ensure_tensor(other, "float16")
        assert len(writer.store["other"].rows) == 0
    assert_sound(path)


# ---- what is still being written when something fails


def test_when_one_file_of_several_cannot_be_written_the_others_are_waited_for(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise one of them would come after its digest was settled."""
    write = local.write_durably

    def fail(file: Path, data: Any) -> None:
        if file.parts[-3] == "checksums":
            raise StoreWriteError("the disk is full")
        if file.parts[-2:] == ("size", "c.0.0"):
            time.sleep(0.3)
        write(file, data)

    with Writer(path) as writer:
        list_images(writer, 12)
        monkeypatch.setattr(local, "write_durably", fail)
        with pytest.raises(StoreWriteError):
            commit(writer, 2)
    time.sleep(0.5)
    assert_sound(path)
    monkeypatch.undo()
    fill(path, n_images=12)
    assert_sound(path)


INTERRUPTED = """
import signal, sys, threading, time
import numpy as np
from featstore.store import NewImages, Writer
from featstore.store.places import local

write, main = local.write_durably, threading.main_thread().ident

def interrupted(file, data):
    if file.parts[-2:] == ("path", "c.0"):
        signal.pthread_kill(main, signal.SIGINT)
        time.sleep(0.3)
    write(file, data)

signal.signal(signal.SIGINT, signal.default_int_handler)
with Writer(sys.argv[1]) as writer:
    local.write_durably = interrupted
    digests = np.array([[10] * 32, [11] * 32], np.uint8)
    writer.add_images(NewImages(["photo 10.jpg", "photo 11.jpg"], digests, [1010, 1011], [10, 11]))
"""


def test_ctrl_c_waits_for_the_file_that_is_being_written(path: Path) -> None:
    command = [sys.executable, "-c", INTERRUPTED, str(path)]
    assert "KeyboardInterrupt" in subprocess.run(command, check=False, capture_output=True, text=True).stderr
    assert_sound(path)
    fill(path, n_images=12)
    assert_sound(path)


# ---- one writer


HOLD = """
import sys, time
from pathlib import Path
from featstore.store import Writer
with Writer(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_second_writer_is_told_who_the_first_is_and_a_dead_one_does_not_keep_the_lock(path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, path], stdout=subprocess.PIPE, text=True) as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "ready\n"
            with pytest.raises(LockedError, match=f"process {first.pid} on {socket.gethostname()}, since 20"):
                open_writer(path)
            assert_sound(path)  # reading goes on
        finally:
            first.send_signal(signal.SIGKILL)
    fill(path, n_images=12)
    assert_sound(path)


def test_a_second_writer_in_the_same_process_is_refused_too(path: Path) -> None:
    with Writer(path), pytest.raises(LockedError, match=f"process {os.getpid()} "):
        open_writer(path)
    open_writer(path)
    assert not Path(f"{path}.lock.json").exists()


# ---- a disk that refuses, and a power cut


def test_too_little_space_is_said_before_anything_is_written(tmp_path: Path) -> None:
    check_space(tmp_path / "not there yet" / "features.zarr", 1)
    with pytest.raises(StoreWriteError, match=r"will take 1000000.00 GB and .* GB free"):
        check_space(tmp_path / "not there yet" / "features.zarr", 10**15)


def test_a_shard_that_may_not_be_written_leaves_what_was_there(path: Path) -> None:
    wide = TensorLayout("wide", "concat", (segment("w", n_blocks=1, width=4000),))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Writer(path) as writer:
        writer.ensure_tensor(wide, "float16")
        commit(writer, 0, layouts=(wide,))
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # a whole block is 32 kB
            with pytest.raises(StoreWriteError, match=r": a file would grow over the size limit .* untouched"):
                commit(writer, 1, layouts=(wide,))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(path.rglob("*.part"))
    assert_sound(path)
    assert open_store(path)["wide"].rows.tolist() == [0, 1, 2, 3]
    with Writer(path) as writer:
        commit(writer, 1, layouts=(wide,))
    assert np.array_equal(open_store(path)["wide"].read([7])[0], features_of(7, wide))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of four megabytes; the table of up to 16384 images takes one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", disk]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a small disk takes root")
    try:
        yield disk
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_full_disk_stops_the_run_and_nothing_else(small_disk: Path) -> None:
    path = small_disk / "features.zarr"
    wide = TensorLayout("wide", "concat", (segment("w", n_blocks=1, width=100_000),))
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        list_images(writer, 40)
        writer.ensure_tensor(wide, "float16")
        commit(writer, 0, layouts=(wide,))
        commit(writer, 1, layouts=(wide,))
        fill_up(small_disk)
        with pytest.raises(StoreWriteError, match="the disk is full; what was stored before is untouched"):
            commit(writer, 2, layouts=(wide,))
    tensor = open_store(path)["wide"]
    assert tensor.rows.tolist() == list(range(8))
    assert np.array_equal(tensor.read(tensor.rows), np.stack([features_of(row, wide) for row in range(8)]))
    assert not list(path.rglob("*.part"))
    (small_disk / "something else").unlink()
    with Writer(path) as writer:
        commit(writer, 2, layouts=(wide,))
    assert open_store(path)["wide"].rows.tolist() == list(range(12))


def fill_up(disk: Path) -> None:
    (disk / "something else").write_bytes(bytes(shutil.disk_usage(disk).free - 400_000))


def test_a_disk_that_becomes_read_only_says_so_and_is_still_read(small_disk: Path) -> None:
    path = small_disk / "features.zarr"
    fill(path, n_images=6)
    with ExitStack() as undo:
        with Writer(path) as writer:
            list_images(writer, 10)
            undo.enter_context(read_only(small_disk))
            with pytest.raises(StoreWriteError, match="the file system is read-only; what was stored before is unt"):
                commit(writer, 2)
        for attempt in (path, small_disk / "another.zarr", small_disk / "folder" / "another.zarr"):
            with pytest.raises(StoreWriteError, match="the file system is read-only"):
                open_writer(attempt)
        assert open_store(path)["grid"].rows.tolist() == [0, 1, 2, 3, 4, 5]
        assert_sound(path)
    fill(path, n_images=10)
    assert_sound(path)


@contextmanager
def read_only(disk: Path) -> Iterator[None]:
    """While a file of it is open for writing, a disk is not remounted: it is covered by a read-only view of itself."""
    subprocess.run(["mount", "--bind", disk, disk], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", disk], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
