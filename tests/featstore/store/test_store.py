"""Opening a store: what it says of images and tensors, and what is no store, or a forged one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zarr

from featstore.errors import (
    FormatError,
    StoreError,
)
from featstore.store import ImageState, Writer, open_store, verify
from featstore.store.format.integrity import digest_of, write_document

from .small_store import (
    assert_sound,
    contents,
    fill,
    open_writer,
)


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


def test_a_store_and_its_images_say_what_they_are(path: Path) -> None:
    with Writer(path) as writer:
        writer.set_image_states([3], ImageState.GONE)
    store = open_store(path)
    assert repr(store) == f"<Store {path}: 10 images (1 gone); grid 10 x 2 x 2 x 6, whole 10 x 13>"
    assert "<td>grid</td><td>stack</td><td>10 x 2 x 2 x 6</td><td>float16</td><td>9</td><td>a, b</td>" in (
        store._repr_html_()
    )
    images = store.images.pandas()
    assert list(images) == ["path", "state", "height", "width", "error"]
    assert images.loc[3].to_list() == ["photo 3.jpg", "gone", 40, 60, ""]
    assert len(images) == len(store.images)


def test_an_open_store_stands_for_its_place(path: Path) -> None:
    store = open_store(path)
    assert os.fspath(store) == str(path)
    assert verify(store).store == str(path)
    assert open_store(store)["grid"].shape == store["grid"].shape
    with Writer(store) as writer:
        assert writer.path == str(path)


def test_what_a_notebook_shows_is_text_and_never_markup(tmp_path: Path) -> None:
    place = tmp_path / "<b>.zarr"
    fill(place)
    assert "<b>" not in open_store(place)._repr_html_()
    assert "&lt;b&gt;.zarr" in open_store(place)["grid"]._repr_html_()


def test_an_unknown_tensor_is_answered_with_the_nearest(path: Path) -> None:
    store = open_store(path)
    assert sorted(store) == ["grid", "whole"]
    assert len(store) == 2
    with pytest.raises(StoreError, match="has no tensor 'gird'; did you mean 'grid'"):
        store["gird"]


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
    with pytest.raises(FormatError, match=r"featstore\.block_rows: "):
        open_store(path)
