"""No byte of a store changes unnoticed: damage at 200 places, each named, never handed out, and mended.

The store is one that `extract` made; what it should hold is kept in memory, as plain zarr reads it.
"""

import json
import os
import shutil
import tempfile
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from typer.testing import CliRunner, Result
from zarr.storage import LocalStore

from featstore.backbones import WeightsPolicy
from featstore.cli import app
from featstore.config import Config, TensorSpec
from featstore.errors import FormatError, LayoutError, StoreError
from featstore.extraction import recompute as recomputing
from featstore.extraction.changes import last_photos
from featstore.extraction.extract import extract
from featstore.extraction.recompute import recompute
from featstore.store import (
    Finding,
    ImageState,
    ImageTable,
    NewImages,
    RowState,
    SeenImages,
    StoredSegment,
    StoredTensor,
    TensorLayout,
    Writer,
    open_store,
    repair,
    verify,
)
from featstore.store.care import repair as repairing
from featstore.store.places import local as store_files
from featstore.store.places.place import Place

from ...conftest import TINY, VIEWS, draw_photo

N_PLACES = 200
N_ELSEWHERE = 30  # of them also read from a zip file and through zarr
EVERY_FINISHED = 20  # of them one is extracted to the end
BLOCK_ROWS = 64
CRC_BYTES = 4
TAIL_BYTES = BLOCK_ROWS * 16 + CRC_BYTES
CHANGED = "photo 070.jpg"
PRESENT = RowState.PRESENT

Files = dict[str, bytes | None]
"""By key, the new bytes of a file; None if it is deleted."""


@dataclass
class World:
    """A store, what it should hold, and what its files were before each of its last commits."""

    config: Config
    files: dict[str, bytes]
    older: list[dict[str, bytes]]
    features: dict[str, dict[int, NDArray[np.float16]]]
    """By tensor and row, what is present."""
    images: ImageTable

    @property
    def path(self) -> Path:
        return Path(str(self.config.store))

    @property
    def gone(self) -> set[int]:
        return set(np.flatnonzero(self.images.states == ImageState.GONE).tolist())

    def put(self, files: Mapping[str, bytes | None]) -> None:
        for key, data in files.items():
            if data is None:
                (self.path / key).unlink()
            else:
                (self.path / key).parent.mkdir(parents=True, exist_ok=True)
                (self.path / key).write_bytes(data)

    def restore(self) -> None:
        now = read_files(self.path)
        self.put({key: None for key in now if key not in self.files})
        self.put({key: data for key, data in self.files.items() if now.get(key) != data})

    def rows(self, key: str) -> range:
        """The rows of a shard."""
        block = int(key.rpartition("/")[2].split(".")[1])
        return range(block * BLOCK_ROWS, min((block + 1) * BLOCK_ROWS, len(self.images)))

    def row_bytes(self, key: str) -> int:
        return self.features[key.split("/")[1]][0].nbytes

    def span(self, key: str, within: int) -> slice:
        """Where a row and its CRC lie in a shard."""
        size = self.row_bytes(key) + CRC_BYTES
        return slice(within * size, (within + 1) * size)

    def present(self, key: str) -> list[int]:
        return [row for row in self.rows(key) if row in self.features[key.split("/")[1]]]

    def concerned(self, key: str, data: bytes | None) -> set[int]:
        """The rows of a shard that are not to be trusted once it holds these bytes."""
        before = self.files[key]
        if data is None or len(data) != len(before) or data[-TAIL_BYTES:] != before[-TAIL_BYTES:]:
            return set(self.present(key))
        first, found = self.rows(key).start, set()
        for within in range(BLOCK_ROWS):
            row = data[self.span(key, within)]
            whole = google_crc32c.value(row[:-CRC_BYTES]) == int.from_bytes(row[-CRC_BYTES:], "little")
            if row != before[self.span(key, within)] and (first + within in self.present(key) or not whole):
                found.add(first + within)
        return found

    def lost(self, key: str, data: bytes | None) -> set[int]:
        """The rows of a shard whose values are not in their place any more."""
        first, n_bytes = self.rows(key).start, self.row_bytes(key)
        starts = {row: self.span(key, row - first).start for row in self.present(key)}
        before, after = self.files[key], data or b""
        return {row for row, at in starts.items() if before[at : at + n_bytes] != after[at : at + n_bytes]}


def read_files(path: Path) -> dict[str, bytes]:
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """In memory, where there is such a folder: the store is written a thousand times."""
    memory = Path("/dev/shm")
    if not os.access(memory, os.W_OK):
        yield tmp_path_factory.mktemp("damage")
        return
    with tempfile.TemporaryDirectory(dir=memory, prefix="featstore-") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def made(scratch: Path) -> World:
    """Three runs: a hundred photos; fifty more, and a file that is none; and one of the hundred changed."""
    config = Config(
        photos=scratch / "photos",
        store=scratch / "features.zarr",
        weights=WeightsPolicy(scratch / "weights", {"*": "random:0"}),
        views=VIEWS,
        tensors=(TensorSpec("grid", "stack", TINY), TensorSpec("whole", "concat", (*TINY, f"{TINY[0]}:max"))),
    )
    path = Path(str(config.store))
    photos = scratch / "photos"
    photos.mkdir()
    older = []
    for i in range(100):
        draw_photo(photos / f"photo {i:03}.jpg", seed=i)
    extract(config)
    older.append(read_files(path))
    for i in range(100, 150):
        draw_photo(photos / f"photo {i:03}.jpg", seed=i)
    (photos / "no photo.jpg").write_bytes(b"hello")
    extract(config)
    older.append(read_files(path))
    draw_photo(photos / CHANGED, seed=1000)
    extract(config)

    features = {}
    for name in ("grid", "whole"):
        states = open_array(path / "rows" / name)
        values = open_array(path / "tensors" / name)
        features[name] = {row: values[row] for row in np.flatnonzero(states == PRESENT).tolist()}
    images = open_store(path).images
    assert verify(path).sound
    assert {len(rows) for rows in features.values()} == {151}
    assert Counter(images.states.tolist()) == {
        ImageState.READABLE: 150,
        ImageState.UNREADABLE: 1,
        ImageState.GONE: 1,
    }
    return World(config, read_files(path), older, features, images)


@pytest.fixture
def world(made: World) -> Iterator[World]:
    yield made
    made.restore()


def open_array(path: Path) -> NDArray[Any]:
    array = zarr.open_array(path, mode="r", zarr_format=3)
    return np.asarray(array[:])


# ---- what is done to files


@dataclass(frozen=True)
class Damage:
    kind: str
    key: str
    at: int
    files: Files = field(repr=False)


Do = Callable[[np.random.Generator, World, str, int], Files]


def class_of(key: str) -> str:
    if key.endswith("zarr.json"):
        return "document"
    return "shard" if key.startswith("tensors/") else key.split("/")[0]


def region_of(world: World, key: str, at: int) -> str:
    """What a byte of a file is."""
    if class_of(key) != "shard":
        return class_of(key)
    left = len(world.files[key]) - at
    if left <= TAIL_BYTES:
        return "index CRC" if left <= CRC_BYTES else "index"
    size = world.row_bytes(key) + CRC_BYTES
    return "row CRC" if at % size >= size - CRC_BYTES else "row"


def flip_a_bit(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    data = bytearray(world.files[key])
    data[at] ^= 1 << int(rng.integers(8))
    return {key: bytes(data)}


def write_zeros(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    data = world.files[key]
    run = data[at : at + int(rng.integers(1, 4096))]
    return {key: data[:at] + bytes(len(run)) + data[at + len(run) :]}


def write_noise(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    data = world.files[key]
    run = data[at : at + int(rng.integers(1, 4096))]
    return {key: data[:at] + rng.bytes(len(run)) + data[at + len(run) :]}


def truncate(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    return {key: world.files[key][:at]}


def append(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    return {key: world.files[key] + rng.bytes(int(rng.integers(1, 100)))}


def delete(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    return {key: None}


def swap_ranges(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    data = bytearray(world.files[key])
    first, second = sorted((at, int(rng.integers(len(data)))))
    size = min(int(rng.integers(1, 1024)), second - first, len(data) - second)
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )
    return {key: bytes(data)}


def swap_files_of_a_kind(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    return _swap(world, key, _pick(rng, [other for other in world.files if class_of(other) == class_of(key)]))


def swap_files_of_two_kinds(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    return _swap(world, key, _pick(rng, [other for other in world.files if class_of(other) != class_of(key)]))


def put_back_an_older_file(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    older = world.older[int(rng.integers(len(world.older)))]
    key = key if key in older else _pick(rng, sorted(older))
    return {key: older[key]}


def copy_a_shard_over_another(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    one, other = _pick(rng, _shards(world)), _pick(rng, _shards(world))
    return {one: world.files[other]}


def swap_rows(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    """Each with its CRC: every CRC stays right."""
    key = _pick(rng, _shards(world))
    data = bytearray(world.files[key])
    one, other = (world.span(key, int(within)) for within in rng.integers(BLOCK_ROWS, size=2))
    data[one], data[other] = data[other], data[one]
    return {key: bytes(data)}


def swap_rows_of_two_shards(rng: np.random.Generator, world: World, key: str, at: int) -> Files:
    one = _pick(rng, _shards(world))
    other = _pick(rng, [k for k in _shards(world) if k != one and k.split("/")[1] == one.split("/")[1]])
    here, there = (world.span(one, int(within)) for within in rng.integers(BLOCK_ROWS, size=2))
    data, others = bytearray(world.files[one]), bytearray(world.files[other])
    data[here], others[there] = others[there], data[here]
    return {one: bytes(data), other: bytes(others)}


KINDS: tuple[Do, ...] = (
    *(flip_a_bit, write_zeros, write_noise, truncate, append, delete, swap_ranges),
    *(swap_files_of_a_kind, swap_files_of_two_kinds, put_back_an_older_file),
    *(copy_a_shard_over_another, swap_rows, swap_rows_of_two_shards),
)


def draw_damage(world: World, number: int) -> Damage:
    """One of the places: every other one over all files, and over the parts of a shard; the rest over all bytes."""
    rng = np.random.default_rng([2, number])
    do = KINDS[number % len(KINDS)]
    keys = sorted(world.files)
    cycle = sorted([*keys, *_shards(world)])  # a shard has more parts than other files
    sizes = np.array([len(world.files[key]) for key in keys])
    for attempt in range(1000):
        if number % 2:
            key = keys[int(rng.choice(len(keys), p=sizes / sizes.sum()))]
        else:
            key = cycle[number // 2 % len(cycle)] if attempt < 20 else _pick(rng, keys)
        at = int(rng.integers(len(world.files[key])))
        if not number % 2 and class_of(key) == "shard":
            region = _pick(rng, ["row", "row CRC", "index", "index CRC"])
            while region_of(world, key, at) != region:
                at = int(rng.integers(len(world.files[key])))
        files = do(rng, world, key, at)
        if all(data != world.files[each] for each, data in files.items()):
            return Damage(do.__name__, key, at, files)
    raise AssertionError(f"place {number} does not change anything")


def _swap(world: World, one: str, other: str) -> Files:
    return {one: world.files[other], other: world.files[one]}


def _pick(rng: np.random.Generator, choices: list[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def _shards(world: World) -> list[str]:
    return [key for key in world.files if class_of(key) == "shard"]


# ---- what has to hold of a damaged store

Rows = Iterator[tuple[int, NDArray[Any]]]


def one_by_one(tensor: StoredTensor) -> Rows:
    for row in range(len(tensor.states)):
        with suppress(StoreError):
            yield row, tensor.read([row])[0]


def in_blocks(tensor: StoredTensor) -> Rows:
    for rows, values in tensor.iter_blocks():
        yield from zip(rows.tolist(), values, strict=True)


def by_dask(tensor: StoredTensor) -> Rows:
    yield from zip(tensor.rows.tolist(), tensor.dask().compute(), strict=True)


def by_torch(tensor: StoredTensor) -> Rows:
    dataset: Any = tensor.torch()
    for item in range(len(dataset)):
        row, values = dataset[item]
        yield row, values.numpy()


def assert_never_wrong(world: World, place: Place) -> dict[str, set[int]]:
    """Whatever a reader gives is right, and all there is unless it raises; by tensor, the rows that can be read."""
    readable: dict[str, set[int]] = {name: set() for name in world.features}
    for read in (one_by_one, in_blocks, by_dask, by_torch):
        with suppress(StoreError):
            store = open_store(place)
            assert_same_images(store.images, world.images)
            assert set(store) == set(world.features)
            for name, known in world.features.items():
                seen = set()
                with suppress(StoreError):
                    for row, values in read(store[name]):
                        assert row in known, f"row {row} of {name} is not there, and is given {read.__name__}"
                        assert np.array_equal(values, known[row]), f"row {row} of {name} is wrong {read.__name__}"
                        seen.add(row)
                    if read is one_by_one:
                        readable[name] = seen
                    else:
                        assert seen == set(known) - world.gone, f"rows of {name} are passed over {read.__name__}"
    return readable


def assert_same_images(images: ImageTable, known: ImageTable) -> None:
    assert (images.paths, images.errors) == (known.paths, known.errors)
    for column in ("digests", "sizes", "states", "n_bytes", "modified_ns"):
        assert np.array_equal(getattr(images, column), getattr(known, column)), column


def assert_named(world: World, damage: Damage, findings: list[Finding]) -> None:
    """Each damaged file is named, with its tensor, and in a shard exactly the rows concerned."""
    for key, data in damage.files.items():
        named = [finding for finding in findings if finding.file == key]
        kind, *rest = key.split("/")
        if kind in ("tensors", "rows", "checksums") and len(rest) > 1:
            assert {finding.tensor for finding in named} <= {rest[0]}
        if class_of(key) != "shard":
            assert named, f"{key} is not named, only {findings}"
            continue
        rows = {row for finding in named for row in finding.rows}
        if all(class_of(each) == "shard" for each in damage.files):
            assert rows == world.concerned(key, data)
        else:  # with the record gone as well, nothing says which rows are present
            assert world.concerned(key, data) <= rows <= set(world.rows(key))


def assert_mended(world: World, files: Files) -> dict[str, set[int]]:
    """`repair` keeps everything but values that are not on the disk any more; by tensor, the rows that it gave up."""
    given_up: dict[str, set[int]] = {name: set() for name in world.features}
    for key, data in files.items():
        if class_of(key) == "shard":
            given_up[key.split("/")[1]] |= world.lost(key, data)
    done = repair(world.path)
    assert done.remaining == []  # which is what `verify` finds afterwards
    store = open_store(world.path)
    for name, known in world.features.items():
        held = dict(one_by_one(store[name]))
        assert set(known) - set(held) == given_up[name]
        assert all(np.array_equal(values, known[row]) for row, values in held.items())
        assert set(done.absent.get(name, [])) <= given_up[name]
        if all(class_of(key) == "shard" for key in files):
            assert set(done.absent.get(name, [])) == given_up[name]
    return given_up


def assert_finished(world: World, given_up: dict[str, set[int]]) -> None:
    """`extract` computes what was given up and nothing else, and the store is as if nothing had been."""
    summary = extract(world.config)
    assert summary.n_computed == len(set.union(*given_up.values()) - world.gone)
    store = open_store(world.path)
    for name, known in world.features.items():
        values = {store.images.paths[row]: value for row, value in in_blocks(store[name])}
        wanted = {world.images.paths[row]: value for row, value in known.items() if row not in world.gone}
        assert set(values) == set(wanted)
        assert all(np.array_equal(value, wanted[path]) for path, value in values.items())
    assert verify(world.path).findings == []
    assert extract(world.config).n_bytes == 0


def pack(path: Path, file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as packed:
        for key, data in read_files(path).items():
            packed.writestr(key, data)
    return file


@pytest.mark.parametrize("number", range(N_PLACES))
def test_damage_is_found_never_handed_out_and_mended(world: World, scratch: Path, number: int) -> None:
    damage = draw_damage(world, number)
    world.put(damage.files)

    found = verify(world.path)
    assert not found.sound, damage
    assert_named(world, damage, found.damage)

    readable = assert_never_wrong(world, world.path)
    if all(class_of(key) == "shard" for key in damage.files):
        concerned = {key: world.concerned(key, data) for key, data in damage.files.items()}
        for name, known in world.features.items():
            hit = {row for key, rows in concerned.items() if key.split("/")[1] == name for row in rows}
            assert set(known) - readable[name] <= hit, "what is whole stays readable"
    if number < N_ELSEWHERE:
        for place in (pack(world.path, scratch / "packed.zip"), LocalStore(world.path, read_only=True)):
            assert_never_wrong(world, place)

    for name in world.features:
        if {f"tensors/{name}/zarr.json", f"rows/{name}/zarr.json"} <= set(damage.files):
            with pytest.raises(StoreError, match="both lost"):
                repair(world.path)
            return
    given_up = assert_mended(world, damage.files)
    if number % EVERY_FINISHED == 7:
        assert_finished(world, given_up)


def test_the_places_are_of_every_kind(world: World) -> None:
    places = [draw_damage(world, number) for number in range(N_PLACES)]
    assert len(places) == 200
    assert {damage.kind for damage in places} == {do.__name__ for do in KINDS}
    assert {key for damage in places for key in damage.files} == set(world.files)
    begun = ("flip_a_bit", "write_zeros", "write_noise", "truncate", "swap_ranges")
    regions = Counter(region_of(world, damage.key, damage.at) for damage in places if damage.kind in begun)
    assert set(regions) == {
        *("document", "images", "rows", "checksums"),
        *("row", "row CRC", "index", "index CRC"),
    }
    kinds = Counter(damage.kind for damage in places)
    print(f"\n{len(places)} places in {len(world.files)} files: {dict(kinds)}; where bytes change: {dict(regions)}")  # noqa: T201


def test_every_file_is_held_against_the_others(world: World) -> None:
    """An older version of any one file: its own seal or checksum is right, and it still is not what belongs there."""
    older = {key: data for key, data in world.older[-1].items() if data != world.files[key]}
    assert {class_of(key) for key in older} == {"document", "shard", "images", "rows", "checksums"}
    unnoticed = []
    for key, data in older.items():
        world.put({key: data})
        if key not in {finding.file for finding in verify(world.path).damage}:
            unnoticed.append(key)
        assert_never_wrong(world, world.path)
        world.restore()
    assert unnoticed == []


@pytest.mark.parametrize(("part", "instead"), [('"block_rows": 64', '"block_rows": 32'), ("images/error/c.0", "x")])
def test_a_root_that_reads_well_and_is_not_what_was_sealed(world: World, part: str, instead: str) -> None:
    root = world.files["zarr.json"].decode()
    assert part in root
    world.put({"zarr.json": root.replace(part, instead).encode()})
    assert [finding.file for finding in verify(world.path).damage] == ["zarr.json"]
    assert assert_never_wrong(world, world.path) == {name: set() for name in world.features}, "nothing can be read"
    assert_finished(world, assert_mended(world, {}))


def test_an_older_list_of_digests_costs_nothing(world: World) -> None:
    world.put({"zarr.json": world.older[-1]["zarr.json"]})
    given_up = assert_mended(world, {})
    assert_finished(world, given_up)


# ---- what is found in a store that is fine, or nearly


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Runs a command in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_a_store_that_is_fine(world: World) -> None:
    steps = []
    found = verify(world.path, on_progress=lambda *step: steps.append(step))
    assert (found.sound, found.findings) == (True, [])
    assert found.n_files == len(world.files)
    assert found.n_rows == sum(map(len, world.features.values()))
    assert found.n_bytes == sum(len(data) for key, data in world.files.items() if class_of(key) == "shard")
    assert steps == [("verify", i + 1, 6) for i in range(6)]
    readable = assert_never_wrong(world, world.path)
    assert readable == {name: set(rows) for name, rows in world.features.items()}
    assert_mended(world, {})
    assert read_files(world.path) == world.files, "and repairing it changes nothing"


def test_a_zip_file_is_checked_like_a_folder(world: World, scratch: Path) -> None:
    assert verify(pack(world.path, scratch / "packed.zip")).findings == []
    world.put({"tensors/grid/c.1.0.0.0": world.files["tensors/grid/c.0.0.0.0"], **chunk("rows/whole")})
    found = verify(pack(world.path, scratch / "packed.zip"))
    assert found.damage == verify(world.path).damage
    assert {finding.file for finding in found.damage} == {"rows/whole/c.0"}


def half_a_tensor(world: World, monkeypatch: pytest.MonkeyPatch) -> Files:
    """What a writer leaves behind that is killed before the last document of a new tensor is on the disk."""
    real, at_the_kill = store_files.write_durably, []

    def write(root: Path, key: str, data: Any) -> None:
        if key == "tensors/half/zarr.json":
            at_the_kill.append(read_files(world.path))
        real(root, key, data)

    with monkeypatch.context() as patch, Writer(world.path) as writer:
        patch.setattr(store_files, "write_durably", write)
        writer.ensure_tensor(replace(writer.store["whole"].layout, name="half"), "float16")
    world.restore()
    return {key: data for key, data in at_the_kill[0].items() if data != world.files.get(key)}


def test_leftovers_are_no_damage_and_repair_removes_only_ours(world: World) -> None:
    ours = {"tensors/grid/.c.0.0.0.0.part": b"a killed writer's", "images/path/c.7": b"beyond the last row"}
    theirs = {"notes.txt": b"mine", "tensors/grid/.DS_Store": b"Finder's", "images/thumbs.db": b""}
    world.put({**ours, **theirs})
    found = verify(world.path)
    assert found.damage == []
    assert {finding.file for finding in found.findings} == {*ours, *theirs}
    readable = assert_never_wrong(world, world.path)
    assert readable == {name: set(rows) for name, rows in world.features.items()}
    done = repair(world.path)
    assert (set(done.removed), done.remaining, done.absent) == (set(ours), [], {})
    assert read_files(world.path) == {**world.files, **theirs}


def test_a_tensor_half_made_is_no_damage_and_repair_removes_it(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    half = half_a_tensor(world, monkeypatch)
    assert {"rows/half/zarr.json", "checksums/half/zarr.json"} <= set(half)
    world.put(half)
    found = verify(world.path)
    assert found.damage == []
    assert {finding.file for finding in found.findings} == set(half) - set(world.files)
    readable = assert_never_wrong(world, world.path)
    assert readable == {name: set(rows) for name, rows in world.features.items()}
    done = repair(world.path)
    assert (set(done.removed), done.remaining, done.absent) == (set(half) - set(world.files), [], {})
    assert set(read_files(world.path)) == set(world.files)
    assert verify(world.path).findings == []


def test_a_path_with_two_current_rows(world: World) -> None:
    old, new = (row for row, path in enumerate(world.images.paths) if path == CHANGED)
    with Writer(world.path) as writer:
        writer.amend({"images/state": ([old], [ImageState.READABLE])})
    (finding,) = verify(world.path).damage
    assert (finding.file, finding.rows) == ("images/path", (old, new))
    assert str(finding) == f"rows {old}, {new}, images/path: {CHANGED} has two rows"


# ---- what is lost, and what that costs


def chunk(*keys: str) -> Files:
    """Chunks of small arrays, deleted."""
    return {f"{key}/c.0{'.0' if key in ('images/digest', 'images/size') else ''}": None for key in keys}


LOST: dict[str, Files] = {
    "root": {"zarr.json": None},
    **{
        column: chunk(f"images/{column}")
        for column in ("path", "digest", "state", "error", "size", "bytes", "modified")
    },
    "rows": chunk("rows/grid"),
    "checksums": chunk("checksums/whole"),
    "records": chunk("rows/grid", "checksums/grid"),
    "all records": chunk(*(f"{kind}/{name}" for kind in ("rows", "checksums") for name in ("grid", "whole"))),
    "root and records": {"zarr.json": None, **chunk("rows/grid", "checksums/grid")},
    "root and path": {"zarr.json": None, **chunk("images/path")},
    "documents": dict.fromkeys(("tensors/grid/zarr.json", "rows/whole/zarr.json", "images/state/zarr.json")),
}


@pytest.mark.parametrize("lost", LOST)
def test_documents_and_records_are_worked_out_again(world: World, lost: str) -> None:
    world.put(LOST[lost])
    found = verify(world.path)
    assert set(LOST[lost]) & {finding.file for finding in found.damage}
    assert_never_wrong(world, world.path)
    given_up = assert_mended(world, LOST[lost])
    assert not any(given_up.values())
    assert_finished(world, given_up)


def test_of_a_lost_table_everything_that_the_store_still_tells_is_kept(world: World) -> None:
    world.put({"zarr.json": None, **chunk("images/state", "images/error")})
    repair(world.path)
    images = open_store(world.path).images
    assert np.array_equal(images.states, world.images.states), "readable, unreadable and gone"
    (unreadable,) = np.flatnonzero(images.states == ImageState.UNREADABLE)
    assert "featstore retry" in images.errors[unreadable]
    assert open_array(world.path / "rows/grid")[unreadable] == RowState.FAILED


def test_a_row_and_a_record_at_once(world: World) -> None:
    key = "tensors/grid/c.1.0.0.0"
    at = world.span(key, 5).start
    flipped = bytearray(world.files[key])
    flipped[at] ^= 1
    files: Files = {key: bytes(flipped), **chunk("rows/grid")}
    world.put(files)
    found = {finding.file: finding for finding in verify(world.path).damage}
    assert set(found) == set(files)
    assert found[key].rows == (BLOCK_ROWS + 5,)
    assert_never_wrong(world, world.path)
    given_up = assert_mended(world, files)
    assert given_up == {"grid": {BLOCK_ROWS + 5}, "whole": set()}
    assert_finished(world, given_up)


def test_a_tensor_that_nothing_describes_any_more(world: World, run: Callable[..., Result]) -> None:
    world.put({"tensors/grid/zarr.json": None, "rows/grid/zarr.json": None})
    assert any(finding.tensor == "grid" and "nothing says" in finding.what for finding in verify(world.path).damage)
    assert_never_wrong(world, world.path)
    refused = run("repair", world.path)
    assert refused.exit_code == 1
    assert "both lost" in refused.stderr
    assert "featstore rm grid" in refused.stderr
    assert run("rm", "grid", "--store", world.path).exit_code == 0
    assert run("repair", world.path).exit_code == 0
    assert verify(world.path).findings == []
    held = dict(one_by_one(open_store(world.path)["whole"]))
    assert set(held) == set(world.features["whole"])


# ---- the commands


def test_the_commands_say_it_in_words_and_in_json(world: World, run: Callable[..., Result]) -> None:
    fine = run("verify", world.path)
    assert (fine.exit_code, fine.stderr) == (0, "")
    assert f"{len(world.files)} files, 302 rows" in fine.stdout
    assert fine.stdout.rstrip().endswith("sound")
    assert run("repair", world.path).stdout == "nothing to mend\n"

    key = "tensors/whole/c.0.0"
    flipped = bytearray(world.files[key])
    flipped[world.span(key, 3).start] ^= 1
    world.put({key: bytes(flipped), "images/zarr.json": None, "notes.txt": b"mine"})
    damaged = run("verify", world.path)
    assert damaged.exit_code == 1
    assert f"DAMAGED tensor 'whole', row 3, {key}: its checksum is wrong\n" in damaged.stdout
    assert "DAMAGED images/zarr.json: is missing\n" in damaged.stdout
    assert "leftover notes.txt" in damaged.stdout
    assert f"to mend it: featstore repair {world.path}\n" in damaged.stdout

    result = run("verify", world.path, "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, result.stderr, facts["sound"]) == (1, "", False)
    assert facts["leftovers"] == ["notes.txt"]
    assert {(each["file"], each["tensor"], *each["row_numbers"]) for each in facts["damage"]} == {
        ("images/zarr.json", None),
        (key, "whole", 3),
    }
    result = run("repair", world.path, "--json")
    facts = json.loads(result.stdout)
    assert (result.exit_code, facts["documents"], facts["absent"]) == (0, ["images/zarr.json"], {"whole": [3]})
    assert facts["remaining"] == []
    facts = json.loads(run("verify", world.path, "--json").stdout)
    assert (facts["sound"], facts["rows"]) == (True, 301)


def test_what_is_no_store_is_refused(tmp_path: Path, run: Callable[..., Result]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    for command in ("verify", "repair"):
        result = run(command, tmp_path)
        assert result.exit_code == 1
        assert "is not a feature store" in result.stderr
    with pytest.raises(FormatError, match="is not a feature store"):
        verify(tmp_path / "nothing.zarr")
    assert os.listdir(tmp_path) == ["notes.txt"]  # noqa: PTH208 (the names, whatever else there may be)


def test_damage_beyond_repair_is_said_and_exits_with_1(world: World, run: Callable[..., Result]) -> None:
    old = world.images.paths.index(CHANGED)
    with Writer(world.path) as writer:
        writer.amend({"images/state": ([old], [ImageState.READABLE])})
    result = run("repair", world.path)
    assert result.exit_code == 1
    assert f"NOT mended: rows {old}, 151, images/path: {CHANGED} has two rows" in result.stdout


# ---- computing rows again


def test_right_features_are_within_tolerance(world: World, run: Callable[..., Result]) -> None:
    again = recompute(world.path, 6, weights=world.config.weights, seed=0)
    assert again.within
    assert (len(again.rows), again.skipped) == (6, {})
    assert {(each.tensor, each.segment, each.n_rows) for each in again.comparisons} == {
        *(("grid", name, 6) for name in TINY),
        *(("whole", name, 6) for name in (*TINY, f"{TINY[0]}:max")),
    }
    result = run("verify", world.path, "--recompute", 2, "--seed", 0, "--json")
    facts = json.loads(result.stdout)["recomputed"]
    assert (result.exit_code, facts["within"], len(facts["row_numbers"])) == (0, True, 2)
    assert read_files(world.path) == world.files


def test_features_of_a_slightly_different_network_fail(world: World, run: Callable[..., Result]) -> None:
    with Writer(world.path) as writer:
        tensor = writer.store["whole"]
        for block in tensor.blocks(np.flatnonzero(tensor.states == PRESENT)):
            here = slice(block[0], min(block[0] + BLOCK_ROWS, len(tensor.states)))
            features = np.full((here.stop - here.start, *tensor.layout.row_shape), np.nan, np.float16)
            features[block - block[0]] = tensor.read(block)
            part = tensor.layout.segments[0].width
            features[:, part : part + tensor.layout.segments[1].width] *= np.float16(1.01)
            states = tensor.states[here]
            writer.commit(int(block[0]) // BLOCK_ROWS, {"whole": (features, states)}, SeenImages([], [], [], []))
    assert verify(world.path).sound, "every checksum is right"
    again = recompute(world.path, 3, weights=world.config.weights, seed=1)
    assert [(each.tensor, each.segment) for each in again.comparisons if not each.within] == [("whole", TINY[1])]
    result = run("verify", world.path, "--recompute", 3, "--seed", 1)
    assert result.exit_code == 1
    (line,) = (line for line in result.stdout.splitlines() if "FAIL" in line)
    assert line.split()[:2] == ["whole", TINY[1]]


def test_photos_that_are_gone_or_changed_are_skipped_and_named(
    world: World, tmp_path: Path, run: Callable[..., Result]
) -> None:
    assert world.config.photos is not None
    photos = shutil.copytree(world.config.photos, tmp_path / "photos")
    for i in range(150):
        if i not in (3, 140):
            (photos / f"photo {i:03}.jpg").unlink()
    draw_photo(photos / "photo 004.jpg", seed=7)
    result = run("verify", world.path, "--recompute", 1000, "--photos", photos)
    assert result.exit_code == 1
    assert "2 rows computed again" in result.stdout
    assert f"fewer rows were verified than asked for: 148 of 150 photos drawn are not in {photos} as they" in (
        result.stdout
    )
    assert "not computed again: photo 005.jpg: cannot be read: No such file or directory\n" in result.stdout
    assert "not computed again: photo 004.jpg: changed" in result.stdout
    again = recompute(world.path, 1000, photos=photos, weights=world.config.weights)
    assert set(world.images.paths) - set(again.skipped) == {"photo 003.jpg", "photo 140.jpg", "no photo.jpg"}


def test_a_verification_that_checked_nothing_is_none(world: World, tmp_path: Path, run: Callable[..., Result]) -> None:
    words = ("verify", world.path, "--recompute", 2, "--photos", tmp_path)
    result = run(*words)
    assert result.exit_code == 1
    assert f"nothing was verified: none of 2 photos drawn is in {tmp_path} as it was; name their folder" in (
        result.stdout
    )
    assert result.stdout.count("not checked\n") == 5
    assert " ok" not in result.stdout
    facts = json.loads(run(*words, "--json").stdout)["recomputed"]
    assert (facts["within"], facts["photos"], len(facts["skipped"])) == (False, str(tmp_path), 2)
    assert {(each["rows_asked"], each["rows"]) for each in facts["comparisons"]} == {(2, 0)}


def test_each_tensor_is_verified_by_rows_of_its_own(world: World) -> None:
    with Writer(world.path) as writer:
        states = writer.store["grid"].states.copy()
        few = np.flatnonzero(states == PRESENT)[:2]
        states[np.setdiff1d(np.arange(len(states)), few)] = RowState.ABSENT
        writer.amend({"rows/grid": (list(range(len(states))), states)})
    again = recompute(world.path, 3, weights=world.config.weights, seed=0)
    assert again.within, "a tensor that has fewer is checked as a whole"
    assert {(each.tensor, each.n_asked) for each in again.comparisons} == {("grid", 2), ("whole", 3)}
    assert min(each.n_rows for each in again.comparisons if each.tensor == "whole") >= 3


def test_features_that_are_no_numbers_fail(world: World) -> None:
    with Writer(world.path) as writer:
        tensor = writer.store["whole"]
        features = np.full((BLOCK_ROWS, *tensor.layout.row_shape), np.nan, np.float16)
        here = np.flatnonzero(tensor.states[:BLOCK_ROWS] == PRESENT)
        features[here] = tensor.read(here)
        features[here, 5] = np.nan
        writer.commit(0, {"whole": (features, tensor.states[:BLOCK_ROWS])}, SeenImages([], [], [], []))
    again = recompute(world.path, 1000, weights=world.config.weights)
    assert [each.largest_error for each in again.comparisons if not each.within] == [np.inf]


def test_other_weights_are_refused_in_words(world: World, run: Callable[..., Result]) -> None:
    with pytest.raises(LayoutError, match=r"weights: random:1 \w+ here, random:0 \w+ there"):
        recompute(world.path, 1, weights=WeightsPolicy(named={"*": "random:1", TINY[0]: "random:1"}))
    result = run("verify", world.path, "--recompute", 1, "--weights", f"{TINY[0]}=random:1")
    assert result.exit_code == 1
    assert "holds other features" in result.stderr
    assert "random:1" in result.stderr


def test_missing_weights_are_mended_by_options_that_verify_has(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Result]
) -> None:
    def refused() -> str:
        result = run("verify", world.path, "--recompute", 1, "--weights-folder", tmp_path)
        assert result.exit_code == 1
        assert "--weights" in result.stderr
        for other in ("--allow-missing", "--backbones", "featstore import"):
            assert other not in result.stderr
        return result.stderr

    monkeypatch.setattr(recomputing, "named_seeds", lambda tensors: {})
    assert "no weights for 2 backbones on this machine:" in refused()
    monkeypatch.setattr(recomputing, "named_seeds", lambda tensors: {TINY[0]: "random:0"})
    assert f"no weights for backbone {TINY[1]!r} on this machine; either" in refused()


def test_what_is_damaged_is_not_computed_again(world: World, run: Callable[..., Result]) -> None:
    world.put({"tensors/grid/c.0.0.0.0": None})
    result = run("verify", world.path, "--recompute", 1, "--json")
    assert (result.exit_code, "recomputed" in json.loads(result.stdout)) == (1, False)


def test_a_repair_that_is_killed_is_done_by_the_next_one(scratch: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is lost and noted as such; that its rows can be worked out again is not forgotten."""
    path = scratch / "features.zarr"
    layout = TensorLayout("t", "concat", (StoredSegment("a", {"weights": {"sha256": "ab"}}, 1, 3),))
    values = np.arange(12, dtype=np.float16).reshape(4, 3)
    with Writer(path, block_rows=4) as writer:
        writer.add_images(NewImages([f"{i}.jpg" for i in range(4)], np.ones((4, 32), np.uint8), [1] * 4, [1] * 4))
        writer.ensure_tensor(layout, "float16")
        writer.commit(0, {"t": (values, np.full(4, RowState.PRESENT, np.uint8))}, SeenImages([], [], [], []))
    (path / "rows/t/c.0").write_bytes(b"lost")

    def kill(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(repairing, "_rebuild_images", kill)
        with pytest.raises(KeyboardInterrupt):
            repair(path)
    assert not verify(path).sound
    assert repair(path).records == ["rows/t/c.0"]
    assert verify(path).sound
    assert np.array_equal(open_store(path)["t"].read([0, 1, 2, 3]), values)


def test_the_photos_of_the_last_extraction_go_before_those_of_the_configuration(world: World, tmp_path: Path) -> None:
    assert world.config.photos is not None
    assert last_photos(open_store(world.path), tmp_path) == world.config.photos.absolute()
