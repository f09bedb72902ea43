"""Writing a store, held against plain numpy arrays: rows, tensors, and several changes at once."""

import json
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from featstore.errors import (
    AbsentRowsError,
    LayoutError,
    StoreWriteError,
)
from featstore.store import ImageState, RowState, SeenImages, TensorLayout, Writer, open_store
from featstore.store.format.integrity import SealedStore

from .small_store import (
    BLOCK_ROWS,
    LAYOUTS,
    PRESENT,
    STACK,
    assert_sound,
    commit,
    contents,
    features_of,
    fill,
    list_images,
    segment,
)


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
