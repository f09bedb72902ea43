"""What every place that a store can be in has to pass, after the fashion of `zarr.testing.store.StoreTests`.

A new location is put to the test in five lines:

    class TestMyPlace(StoreConformance):
        @pytest.fixture(scope="class")
        @classmethod
        def make_place(cls) -> MakePlace:
            return lambda: MyZarrStore()  # a new, empty place each time

Where a place is a path or a URL, `zarr_store` says how plain Zarr opens it, and `kvstore` how TensorStore does. A
location that can only be read passes `ReadingConformance` and says in `place_with` how a store gets there.
"""

import json
import os
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.core.buffer import default_buffer_prototype
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featstore.errors import AbsentRowsError, FormatError, LayoutError, LockedError, StoreError
from featstore.store import (
    ImageState,
    NewImages,
    RowState,
    SeenImages,
    Store,
    StoredSegment,
    StoredTensor,
    TensorLayout,
    Writer,
    lock,
    open_store,
    verify,
)
from featstore.store.format.integrity import write_document
from featstore.store.format.making import skeleton
from featstore.store.format.metadata import PARTS, Compression
from featstore.store.places.place import Place

from . import real_size

Keys = dict[str, bytes]
"""All that a Zarr store holds."""
Changes = dict[str, bytes | None]
"""What becomes of some of its keys; None: the key is gone."""
MakePlace = Callable[[], Place]
PlaceWith = Callable[[Keys], Place]
Floats = NDArray[np.float16]

PRESENT, FAILED, ABSENT = RowState.PRESENT, RowState.FAILED, RowState.ABSENT
BLOCK_ROWS = 4
N_BEFORE, N_IMAGES = 6, 10  # the second block is begun before the store grows, and completed after
STATES = np.array([PRESENT, PRESENT, PRESENT, PRESENT, PRESENT, FAILED, PRESENT, PRESENT, PRESENT, ABSENT], np.uint8)
ROWS = np.flatnonzero(STATES == PRESENT)


def segment(name: str, *, width: int, weights: str = "ab") -> StoredSegment:
    return StoredSegment(name, {"architecture": name, "weights": {"sha256": weights}}, 2, width)


SEGMENTS = (segment("a", width=3), segment("b", width=5))
GRID = TensorLayout("grid", "stack", SEGMENTS, width=6)
WHOLE = TensorLayout("whole", "concat", SEGMENTS)
LAYOUTS = (GRID, WHOLE)


def features_of(row: int, layout: TensorLayout) -> Floats:
    out = np.empty(layout.row_shape, np.float16)
    rng = np.random.default_rng([row, len(layout.name)])
    layout.assemble(out, {s.hash: rng.normal(size=(s.n_blocks, s.width)) for s in layout.segments})
    return out


def oracle(layout: TensorLayout) -> Floats:
    """What a tensor holds in the end: NaN in the rows that are not present."""
    values = np.stack([features_of(row, layout) for row in range(N_IMAGES)])
    values[STATES != PRESENT] = np.nan
    return values


ORACLE = {layout.name: oracle(layout) for layout in LAYOUTS}


# ---- writing


def list_images(writer: Writer, n_images: int) -> None:
    """List images until there are `n_images` of them."""
    new = range(len(writer.store.images), n_images)
    digests = np.array([[row] * 32 for row in new], np.uint8)
    writer.add_images(NewImages([f"été {row}.jpg" for row in new], digests, [1000 + row for row in new], list(new)))


def commit(writer: Writer, block: int, *, layouts: tuple[TensorLayout, ...] = LAYOUTS) -> None:
    rows = list(range(len(writer.store.images)))[block * BLOCK_ROWS : (block + 1) * BLOCK_ROWS]
    states = STATES[rows]
    put = {}
    for layout in layouts:
        values = np.stack([features_of(row, layout) for row in rows])
        values[states != PRESENT] = np.nan
        put[layout.name] = (values, states)
    seen = [row for row in rows if STATES[row] != ABSENT]
    readable = [ImageState.READABLE if STATES[row] == PRESENT else ImageState.UNREADABLE for row in seen]
    errors = ["" if state == ImageState.READABLE else "truncated" for state in readable]
    writer.commit(block, put, SeenImages(seen, [(40, 60)] * len(seen), readable, errors))


def write_first(place: Place, compress: Compression | None) -> None:
    """A run over six images."""
    with Writer(place, block_rows=BLOCK_ROWS) as writer:
        list_images(writer, N_BEFORE)
        for layout in LAYOUTS:
            writer.ensure_tensor(layout, "float16", compress=compress)
        for block in (0, 1):
            commit(writer, block)


def write_more(place: Place) -> None:
    """The run after it, over four more: the second block is completed."""
    with Writer(place) as writer:
        list_images(writer, N_IMAGES)
        for block in (1, 2):
            commit(writer, block)


def open_writer(place: Place) -> None:
    with Writer(place):
        pass


def contents(store: ZarrStore) -> Keys:
    async def collect() -> Keys:
        found = {key: await store.get(key, default_buffer_prototype()) async for key in store.list()}
        return {key: data.to_bytes() for key, data in found.items() if data is not None}

    return sync(collect())


def put(store: ZarrStore, key: str, data: bytes) -> None:
    sync(store.set(key, default_buffer_prototype().buffer.from_bytes(data)))


@dataclass(frozen=True)
class Written:
    """A store where it was written, and its keys after the first run and after the second."""

    place: Place
    before: Keys
    after: Keys


def write(place: Place, store: ZarrStore, compress: Compression | None) -> Written:
    write_first(place, compress)
    before = contents(store)
    write_more(place)
    return Written(place, before, contents(store))


# ---- every way of reading: the numbers of the rows that are present, and their values

Read = Callable[[StoredTensor], tuple[Iterable[int], Any]]


def by_read(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    return tensor.rows, tensor.read(tensor.rows)


def by_blocks(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    rows, values = zip(*tensor.iter_blocks(), strict=True)
    return np.concatenate(rows), np.concatenate(values)


def by_shuffled_blocks(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    rows, values = zip(*tensor.iter_blocks(shuffle=np.random.default_rng(0)), strict=True)
    return np.concatenate(rows), np.concatenate(values)


def by_dask(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    return tensor.rows, tensor.dask().compute(scheduler="synchronous")


def by_xarray(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    labelled = tensor.xarray().compute(scheduler="synchronous")
    return [tensor.images.rows_by_path[path] for path in labelled.image.values], labelled.values


def by_torch(tensor: StoredTensor) -> tuple[Iterable[int], Any]:
    dataset: Any = tensor.torch()
    rows, values = zip(*dataset.__getitems__(list(range(len(dataset)))), strict=True)
    return rows, np.stack(values)


READERS: tuple[Read, ...] = (by_read, by_blocks, by_shuffled_blocks, by_dask, by_xarray, by_torch)


# ---- damage, told as changes of a store's keys

SHARDS = ("tensors/grid/c.0.0.0.0", "tensors/grid/c.1.0.0.0")
CHUNKS = ("rows/grid/c.0", "checksums/grid/c.0", "images/path/c.0", "images/state/c.0", "images/digest/c.0.0")
DOCUMENTS = (
    "images/zarr.json",
    "images/size/zarr.json",
    "rows/zarr.json",
    *(f"{kind}/grid/zarr.json" for kind in PARTS),
)
Damage = Callable[[Written], Changes]


def flipped(key: str, place: int) -> Damage:
    """One bit of the byte at `place`, counted from the end if it is negative."""

    def flip(written: Written) -> Changes:
        data = bytearray(written.after[key])
        data[place] ^= 1
        return {key: bytes(data)}

    return flip


def cut(key: str, share: float) -> Damage:
    return lambda written: {key: written.after[key][: int(len(written.after[key]) * share)]}


def deleted(key: str) -> Damage:
    return lambda _: {key: None}


def swapped(one: str, other: str) -> Damage:
    return lambda written: {one: written.after[other], other: written.after[one]}


def put_back(key: str) -> Damage:
    """From a copy made before the second run."""
    return lambda written: {key: written.before[key]}


DAMAGE_TO_SHARDS = {
    "a bit of a row": flipped(SHARDS[0], 10),
    "a bit of the index": flipped(SHARDS[0], -10),
    "half of it is gone": cut(SHARDS[0], 0.5),
    "nothing in it": cut(SHARDS[0], 0),
    "deleted": deleted(SHARDS[0]),
    "swapped": swapped(*SHARDS),
    "an old one put back": put_back(SHARDS[1]),
}
DAMAGE_TO_RECORDS = (
    {f"a bit of {key}": flipped(key, 9) for key in CHUNKS}
    | {f"{key} deleted": deleted(key) for key in CHUNKS}
    | {f"an old {key} put back": put_back(key) for key in CHUNKS}
    | {
        "columns swapped": swapped("images/bytes/c.0", "images/modified/c.0"),
        "records swapped": swapped("checksums/grid/c.0", "checksums/whole/c.0"),
    }
)
DAMAGE_TO_DOCUMENTS = (
    {f"a bit of {key}": flipped(key, 40) for key in (*DOCUMENTS, "zarr.json")}
    | {f"{key} deleted": deleted(key) for key in (*DOCUMENTS, "zarr.json")}
    | {
        "documents swapped": swapped("rows/grid/zarr.json", "checksums/grid/zarr.json"),
        "an old root put back": put_back("zarr.json"),
    }
)


def cases(damage: dict[str, Damage]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("damage", damage.values(), ids=damage.keys())


def forged_root(keys: Keys, *, format_version: int) -> Keys:
    """The same store under another format version, with a seal that is right."""
    root = json.loads(keys["zarr.json"])
    root["attributes"]["featstore"]["format"] = format_version
    return {**keys, "zarr.json": write_document("zarr.json", root)}


def a_plain_zarr_group() -> Keys:
    store = MemoryStore()
    zarr.create_group(store, zarr_format=3).create_array("x", shape=(3,), dtype="f4")
    return contents(store)


class ReadingConformance:
    """A location that can be read."""

    @pytest.fixture(scope="class")
    @classmethod
    def place_with(cls) -> PlaceWith:
        """How a store gets to a new place of this kind, key by key."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def damaged_place(cls, place_with: PlaceWith) -> PlaceWith:
        """The same for stores that are only looked at, until the next one is made."""
        return place_with

    @classmethod
    def zarr_store(cls, place: Place) -> ZarrStore:
        """The place as plain Zarr opens it."""
        assert isinstance(place, ZarrStore)
        return place

    @classmethod
    def kvstore(cls, place: Place, folder: str) -> dict[str, Any] | None:
        """How TensorStore opens a folder of it, if it can."""
        return None

    @pytest.fixture(scope="class", params=[None, "zstd", "blosc"], ids=["uncompressed", "zstd", "blosc"])
    @classmethod
    def compress(cls, request: pytest.FixtureRequest) -> Compression | None:
        found: Compression | None = request.param
        return found

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, place_with: PlaceWith, compress: Compression | None) -> Written:
        store = MemoryStore()
        elsewhere = write(store, store, compress)
        return Written(place_with(elsewhere.after), elsewhere.before, elsewhere.after)

    @pytest.fixture(scope="class")
    @classmethod
    def store(cls, written: Written) -> Store:
        return open_store(written.place)

    @pytest.fixture(scope="class")
    @classmethod
    def uncompressed(cls) -> Written:
        """For tests in which compression makes no difference."""
        store = MemoryStore()
        return write(store, store, None)

    # ---- what was written is read

    @pytest.mark.parametrize("layout", LAYOUTS, ids=lambda layout: layout.kind)
    @pytest.mark.parametrize("read", READERS, ids=lambda read: read.__name__)
    def test_every_reader_gives_what_was_written(self, store: Store, read: Read, layout: TensorLayout) -> None:
        rows, values = read(store[layout.name])
        assert sorted(rows) == ROWS.tolist()
        assert np.array_equal(values, ORACLE[layout.name][list(rows)])

    def test_rows_come_in_the_order_asked_for_and_as_often(self, store: Store) -> None:
        tensor = store["grid"]
        for rows in ([8, 0, 3, 3, 0, 7], [6], ROWS[::-1], []):
            assert np.array_equal(tensor.read(rows), ORACLE["grid"][np.asarray(rows, int)])

    def test_blocks_come_one_by_one_and_shuffled_ones_in_another_order(self, store: Store) -> None:
        tensor = store["grid"]
        assert [rows.tolist() for rows, _ in tensor.iter_blocks()] == [[0, 1, 2, 3], [4, 6, 7], [8]]
        orders = []
        for seed in range(6):
            orders.append([sorted(rows) for rows, _ in tensor.iter_blocks(shuffle=np.random.default_rng(seed))])
            assert sorted(orders[-1]) == [[0, 1, 2, 3], [4, 6, 7], [8]]
        assert any(order != orders[0] for order in orders)

    @pytest.mark.parametrize("row", [5, 9], ids=["failed", "absent"])
    def test_a_row_that_is_not_present_is_never_handed_out(self, store: Store, row: int) -> None:
        tensor = store["grid"]
        assert row not in tensor.rows
        for ask in (tensor.read, tensor.dask, lambda rows: list(tensor.iter_blocks(rows))):
            with pytest.raises(AbsentRowsError, match=f"rows {row} "):
                ask(np.array([0, row]))

    def test_images_come_back(self, store: Store) -> None:
        images = store.images
        assert images.paths == [f"été {row}.jpg" for row in range(N_IMAGES)]
        assert images.digests.tolist() == [[row] * 32 for row in range(N_IMAGES)]
        assert images.states.tolist() == [1, 1, 1, 1, 1, ImageState.UNREADABLE, 1, 1, 1, ImageState.UNREAD]
        assert images.errors == ["truncated" if row == 5 else "" for row in range(N_IMAGES)]
        assert images.sizes.tolist() == [[40, 60]] * 9 + [[0, 0]]
        assert images.n_bytes.tolist() == [1000 + row for row in range(N_IMAGES)]
        assert store["grid"].states.tolist() == store["whole"].states.tolist() == STATES.tolist()
        assert store["grid"].paths == [f"été {row}.jpg" for row in ROWS]

    def test_its_size_is_that_of_its_keys(self, store: Store, written: Written) -> None:
        assert store.n_bytes == sum(map(len, written.after.values()))

    def test_a_dataset_that_was_read_from_goes_to_another_process(self, store: Store) -> None:
        by_torch(store["grid"])
        dataset = ForkingPickler.loads(ForkingPickler.dumps(store["grid"].torch()))
        rows, values = by_torch(dataset.tensor)
        assert np.array_equal(values, ORACLE["grid"][list(rows)])

    @pytest.mark.parametrize("row", [0, 11])
    def test_shards_of_real_size_are_read_and_verified(
        self, place_with: PlaceWith, compress: Compression | None, row: int
    ) -> None:
        keys = real_size.large_keys(compress)
        assert len(real_size.large_keys()[real_size.SHARDS[0]]) > 5 << 20
        place = place_with(keys)
        tensor = open_store(place)["big"]
        rows = [row, 7, 3, 7, 8]
        assert np.array_equal(tensor.read(rows), real_size.values()[rows])
        assert np.array_equal(np.asarray(tensor), real_size.values())
        found = verify(place)
        assert found.sound
        assert found.n_rows == real_size.N_ROWS

    # ---- it is only Zarr

    @pytest.mark.parametrize("name", ORACLE)
    def test_plain_zarr_reads_the_same_and_nan_where_nothing_is(self, written: Written, name: str) -> None:
        group = zarr.open_group(self.zarr_store(written.place), mode="r", zarr_format=3)
        found: Any = group[f"tensors/{name}"]
        assert np.array_equal(found[:], ORACLE[name], equal_nan=True)
        record: Any = group[f"rows/{name}"]
        assert record[:].tolist() == STATES.tolist()

    @pytest.mark.parametrize("name", ORACLE)
    def test_tensorstore_reads_the_same_and_nan_where_nothing_is(self, written: Written, name: str) -> None:
        kvstore = self.kvstore(written.place, f"tensors/{name}/")
        if kvstore is None:
            pytest.skip("TensorStore has no driver for it")
        array = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True).result()
        assert np.array_equal(array.read().result(), ORACLE[name], equal_nan=True)

    # ---- damage

    @cases(DAMAGE_TO_SHARDS)
    def test_a_damaged_shard_is_noticed_by_every_reader(
        self, damaged_place: PlaceWith, written: Written, damage: Damage
    ) -> None:
        store = open_store(damaged_place(damaged(written, damage)))
        for read in READERS:
            with pytest.raises(StoreError, match="grid"):
                read(store["grid"])
        assert np.array_equal(store["grid"].read([8]), ORACLE["grid"][[8]])
        assert np.array_equal(store["whole"].read(ROWS), ORACLE["whole"][ROWS])

    def test_no_flipped_bit_of_a_shard_gives_wrong_values(self, damaged_place: PlaceWith, written: Written) -> None:
        n_noticed = 0
        n_bytes = len(written.after[SHARDS[0]])
        for place in range(3, n_bytes, n_bytes // 6):
            tensor = open_store(damaged_place(damaged(written, flipped(SHARDS[0], place))))["grid"]
            try:
                values = tensor.read([0, 1, 2, 3])
            except StoreError:
                n_noticed += 1
            else:  # the bit is in a row's own checksum, which only others look at
                assert np.array_equal(values, ORACLE["grid"][:4])
        assert n_noticed > 3

    @cases(DAMAGE_TO_RECORDS | DAMAGE_TO_DOCUMENTS)
    def test_a_damaged_record_or_document_is_noticed(
        self, damaged_place: PlaceWith, uncompressed: Written, damage: Damage
    ) -> None:
        place = damaged_place(damaged(uncompressed, damage))
        with pytest.raises(StoreError):
            by_read(open_store(place)["grid"])

    @pytest.mark.parametrize("key", ["rows/grid/zarr.json", "images/state/zarr.json"])
    def test_an_old_document_put_back_is_noticed(
        self, damaged_place: PlaceWith, uncompressed: Written, key: str
    ) -> None:
        place = damaged_place(damaged(uncompressed, put_back(key)))
        with pytest.raises(StoreError):
            by_read(open_store(place)["grid"])

    # ---- what is no store

    def test_an_empty_place_is_no_store(self, place_with: PlaceWith) -> None:
        with pytest.raises(FormatError, match="is not a feature store; `featstore extract"):
            open_store(place_with({}))

    def test_another_zarr_group_is_no_store(self, place_with: PlaceWith) -> None:
        with pytest.raises(FormatError, match="is a Zarr group but not a feature store"):
            open_store(place_with(a_plain_zarr_group()))

    def test_something_else_is_no_store(self, place_with: PlaceWith) -> None:
        with pytest.raises(FormatError, match="is not a feature store"):
            open_store(place_with({"thesis.txt": b"my thesis"}))

    def test_another_format_version_is_said(self, place_with: PlaceWith, uncompressed: Written) -> None:
        with pytest.raises(FormatError, match="has format version 3; this featstore reads version 2: install"):
            open_store(place_with(forged_root(uncompressed.after, format_version=3)))


def damaged(written: Written, damage: Damage) -> Keys:
    changed: Changes = {**written.after, **damage(written)}
    assert changed != written.after
    return {key: data for key, data in changed.items() if data is not None}


class StoreConformance(ReadingConformance):
    """A location that can be read and written."""

    HELD_BY_THE_SYSTEM = False
    """Whether the operating system holds the writer's lock, so that nobody can take it from a process that lives."""

    @pytest.fixture(scope="class")
    @classmethod
    def make_place(cls) -> MakePlace:
        """A new, empty place at each call."""
        raise NotImplementedError

    @pytest.fixture(scope="class")
    @classmethod
    def place_with(cls, make_place: MakePlace) -> PlaceWith:
        def fill(keys: Keys) -> Place:
            place = make_place()
            store = cls.zarr_store(place)
            for key, data in keys.items():
                put(store, key, data)
            return place

        return fill

    @pytest.fixture(scope="class")
    @classmethod
    def damaged_place(cls, make_place: MakePlace) -> PlaceWith:
        place = make_place()
        store = cls.zarr_store(place)
        holds: Keys = {}

        def bring(keys: Keys) -> Place:
            for key in holds.keys() - keys.keys():
                sync(store.delete(key))
            for key, data in keys.items() - holds.items():
                put(store, key, data)
            holds.clear()
            holds.update(keys)
            return place

        return bring

    @pytest.fixture(scope="class")
    @classmethod
    def written(cls, make_place: MakePlace, compress: Compression | None) -> Written:
        place = make_place()
        return write(place, cls.zarr_store(place), compress)

    @classmethod
    def skip_if_held_by_the_system(cls, why: str) -> None:
        if cls.HELD_BY_THE_SYSTEM:
            pytest.skip(why)

    @classmethod
    def put_writer_record(cls, place: Place, record: bytes) -> None:
        """Say in the place of the writer's record who writes."""
        put(cls.zarr_store(place), lock.RECORD, record)

    # ---- growing

    def test_the_same_features_give_the_same_bytes_everywhere(
        self, written: Written, compress: Compression | None
    ) -> None:
        store = MemoryStore()
        elsewhere = write(store, store, compress)
        assert written.before == elsewhere.before
        assert written.after == elsewhere.after

    def test_a_store_that_was_copied_here_goes_on(self, place_with: PlaceWith, uncompressed: Written) -> None:
        place = place_with(uncompressed.before)
        assert open_store(place)["grid"].rows.tolist() == [0, 1, 2, 3, 4]
        write_more(place)
        assert contents(self.zarr_store(place)) == uncompressed.after

    def test_images_added_later_grow_every_tensor(self, place_with: PlaceWith, written: Written) -> None:
        place = place_with(written.before)
        with Writer(place) as writer:
            list_images(writer, N_IMAGES)
        store = open_store(place)
        for name, values in ORACLE.items():
            assert store[name].shape == values.shape
            assert store[name].rows.tolist() == [0, 1, 2, 3, 4]
            assert np.array_equal(store[name].read([4]), values[[4]])
            plain: Any = zarr.open_group(self.zarr_store(place), mode="r", zarr_format=3)[f"tensors/{name}"]
            assert np.isnan(plain[5:]).all()

    def test_a_tensor_is_removed_and_its_name_used_again(self, place_with: PlaceWith, uncompressed: Written) -> None:
        place = place_with(uncompressed.after)
        other = TensorLayout("grid", "concat", (segment("c", width=4),))
        with Writer(place) as writer:
            with pytest.raises(LayoutError, match="holds other features"):
                writer.ensure_tensor(other, "float16")
            freed = writer.remove("grid")
            assert sorted(writer.store) == ["whole"]
            left = contents(self.zarr_store(place))
            gone = {key: data for key, data in uncompressed.after.items() if "/grid/" in key}
            assert freed == sum(map(len, gone.values()))
            assert not gone.keys() & left.keys()
            writer.ensure_tensor(other, "float16")
            commit(writer, 0, layouts=(other,))
        store = open_store(place)
        assert np.array_equal(store["grid"].read([3, 0]), [features_of(3, other), features_of(0, other)])
        assert store["grid"].rows.tolist() == [0, 1, 2, 3]
        assert np.array_equal(store["whole"].read(ROWS), ORACLE["whole"][ROWS])

    # ---- what is no store is not written to

    def test_an_empty_place_becomes_a_store(self, make_place: MakePlace) -> None:
        place = make_place()
        open_writer(place)
        assert len(open_store(place).images) == len(open_store(place)) == 0

    def test_a_store_that_a_killed_writer_had_begun_to_make_is_made(self, place_with: PlaceWith) -> None:
        self.skip_if_held_by_the_system("a folder appears whole")
        *begun, _ = skeleton(block_rows=BLOCK_ROWS, n_rows=0).items()
        place = place_with(dict(begun))
        open_writer(place)
        assert len(open_store(place)) == 0

    @pytest.mark.parametrize("keys", [{"thesis.txt": b"my thesis"}, a_plain_zarr_group()], ids=["text", "zarr"])
    def test_what_is_no_store_is_left_alone(self, place_with: PlaceWith, keys: Keys) -> None:
        place = place_with(keys)
        with pytest.raises(FormatError, match="not a feature store"):
            open_writer(place)
        assert contents(self.zarr_store(place)) == keys

    def test_another_format_version_is_left_alone(self, place_with: PlaceWith, uncompressed: Written) -> None:
        keys = forged_root(uncompressed.after, format_version=3)
        place = place_with(keys)
        with pytest.raises(FormatError, match="has format version 3"):
            open_writer(place)
        assert contents(self.zarr_store(place)) == keys

    # ---- one writer

    def test_a_second_writer_is_told_who_the_first_is(self, make_place: MakePlace) -> None:
        place = make_place()
        first = f"is being written by process {os.getpid()} on {socket.gethostname()}, since 20"
        with Writer(place) as writer:
            with pytest.raises(LockedError, match=first):
                open_writer(place)
            assert writer.notice == ""
            list_images(writer, 1)  # the first one goes on
        with Writer(place) as writer:
            assert writer.notice == ""
        assert lock.RECORD not in contents(self.zarr_store(place))

    def test_the_record_of_a_dead_writer_is_taken_over(self, make_place: MakePlace, short_patience: None) -> None:
        place = make_place()
        self.put_writer_record(place, a_record(beat=time.time() - 60))
        with Writer(place) as writer:
            assert "process 7 on elsewhere, since then) died at work; what it committed is kept" in writer.notice
            list_images(writer, 1)
        with Writer(place) as writer:
            assert writer.notice == ""

    def test_a_writer_elsewhere_that_lives_is_not_taken_over(self, make_place: MakePlace, short_patience: None) -> None:
        place = make_place()
        self.put_writer_record(place, a_record(beat=time.time()))
        with pytest.raises(LockedError, match="is being written by process 7 on elsewhere, since then"):
            open_writer(place)

    def test_a_writer_whose_lock_was_taken_over_refuses_to_write(
        self, place_with: PlaceWith, uncompressed: Written
    ) -> None:
        self.skip_if_held_by_the_system("nobody can take it")
        place = place_with(uncompressed.before)
        with Writer(place) as writer:
            self.put_writer_record(place, a_record(beat=time.time()))
            before = contents(self.zarr_store(place))
            for attempt in (
                lambda: commit(writer, 1),
                lambda: list_images(writer, N_IMAGES),
                lambda: writer.set_row_states("grid", [0], ABSENT),
                lambda: writer.remove("grid"),
                lambda: writer.ensure_tensor(TensorLayout("new", "concat", SEGMENTS), "float16"),
            ):
                with pytest.raises(LockedError, match="was taken over by process 7 on elsewhere"):
                    attempt()
        assert contents(self.zarr_store(place)) == before

    def test_a_writer_whose_lock_was_taken_over_records_no_run(
        self, place_with: PlaceWith, uncompressed: Written
    ) -> None:
        self.skip_if_held_by_the_system("nobody can take it")
        place = place_with(uncompressed.before)
        with Writer(place) as writer:
            self.put_writer_record(place, a_record(beat=time.time()))
            with pytest.raises(LockedError, match="was taken over"):
                writer.record_run(["grid"], {"device": "cpu"})

    def test_a_writer_whose_lock_was_taken_over_leaves_the_work_of_the_other_alone(
        self, place_with: PlaceWith, uncompressed: Written
    ) -> None:
        self.skip_if_held_by_the_system("nobody can take it")
        place = place_with(uncompressed.before)
        with Writer(place) as asleep:
            asleep.set_row_states("grid", [0], ABSENT)
            sync(self.zarr_store(place).delete(lock.RECORD))
            write_more(place)
            after = contents(self.zarr_store(place))
        assert contents(self.zarr_store(place)) == after

    @pytest.fixture
    def short_patience(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(lock, "BEAT_S", 0.05)
        monkeypatch.setattr(lock, "PATIENCE_S", 5.0)


def a_record(*, beat: float) -> bytes:
    return json.dumps({"host": "elsewhere", "pid": 7, "since": "then", "token": "x", "beat": beat}).encode()
