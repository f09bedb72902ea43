"""Rows read by byte ranges: of shards that other tools wrote, that strangers made, and that are replaced meanwhile."""

import os
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import google_crc32c
import numcodecs.blosc
import numcodecs.zstd
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner
from zarr.core.sync import sync
from zarr.storage import MemoryStore

from featstore.cli import app
from featstore.errors import DamagedError, FormatError
from featstore.store import ImageState, NewImages, SeenImages, StoredSegment, TensorLayout, Writer, open_store, verify
from featstore.store.format.integrity import prototype_buffer
from featstore.store.format.metadata import Compression

ROOT = Path(__file__).parents[4]
N_ROWS, BLOCK_ROWS, WIDTH = 6, 4, 3000
LAYOUT = TensorLayout("flat", "concat", (StoredSegment("a", {"architecture": "a"}, 1, WIDTH),))
SHARD = "tensors/flat/c.0.0"
VALUES = np.random.default_rng(0).integers(0, 50, (N_ROWS, WIDTH)).astype(np.float16)
Codec = Callable[[NDArray[Any]], bytes]
BOTH: pytest.MarkDecorator = pytest.mark.parametrize("compress", ["zstd", "blosc"])


def make(place: Any, compress: Compression | None) -> None:
    n = N_ROWS
    with Writer(place, block_rows=BLOCK_ROWS) as writer:
        writer.add_images(NewImages([f"{i}.jpg" for i in range(n)], np.ones((n, 32), np.uint8), [1] * n, [1] * n))
        writer.ensure_tensor(LAYOUT, "float16", compress=compress)
        for block, rows in enumerate((range(4), range(4, 6))):
            seen = SeenImages(list(rows), [(4, 6)] * len(rows), [ImageState.READABLE] * len(rows), [""] * len(rows))
            writer.commit(block, {"flat": (VALUES[list(rows)], np.ones(len(rows), np.uint8))}, seen)


@pytest.fixture
def place(tmp_path: Path, compress: Compression | None) -> Path:
    make(tmp_path / "features.zarr", compress)
    return tmp_path / "features.zarr"


def shard(chunks: list[bytes], change: Callable[[NDArray[np.uint64]], object] = lambda index: None) -> bytes:
    """A shard of these rows, each with its checksum; its index is changed and has a checksum that is right."""
    rows = [chunk + google_crc32c.value(chunk).to_bytes(4, "little") for chunk in chunks]
    ends = np.cumsum([len(row) for row in rows])
    index = np.array([[end - len(row), len(row)] for end, row in zip(ends, rows, strict=True)], "<u8")
    change(index)
    return b"".join(rows) + index.tobytes() + google_crc32c.value(index.tobytes()).to_bytes(4, "little")


def zstd(level: int) -> Codec:
    return lambda row: bytes(numcodecs.zstd.compress(row, level))


def blosc(name: str, level: int, shuffle: int, block: int = 0) -> Codec:
    return lambda row: bytes(numcodecs.blosc.compress(row, name.encode(), level, shuffle, block))


def unsized(data: bytes) -> bytes:
    """A frame of zstd that does not say how long it is when unpacked, as tools write that stream: of raw blocks."""
    blocks = [data[start : start + 1000] for start in range(0, len(data), 1000)]
    heads = [(len(block) << 3 | (i == len(blocks) - 1)).to_bytes(3, "little") for i, block in enumerate(blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(head + block for head, block in zip(heads, blocks, strict=True))


def endless(n_bytes: int) -> bytes:
    """The same of zeros, as many as one likes, in four bytes for 128 kB."""
    n_blocks = n_bytes >> 17
    blocks = [((1 << 17) << 3 | 1 << 1 | (i == n_blocks - 1)).to_bytes(3, "little") + b"\0" for i in range(n_blocks)]
    return b"\x28\xb5\x2f\xfd\x00\x58" + b"".join(blocks)


# ---- shards that other tools wrote

OTHERS: dict[str, tuple[Compression, Codec]] = {
    "zstd, the highest level": ("zstd", zstd(19)),
    "zstd, without its length": ("zstd", lambda row: unsized(row.tobytes())),
    "blosc of lz4": ("blosc", blosc("lz4", 9, 1)),
    "blosc of zlib, bits shuffled": ("blosc", blosc("zlib", 5, 2)),
    "blosc, small blocks": ("blosc", blosc("zstd", 3, 1, 512)),
    "blosc, not compressed": ("blosc", blosc("zstd", 0, 0)),
}


@pytest.mark.parametrize(("compress", "codec"), OTHERS.values(), ids=OTHERS.keys())
def test_what_another_tool_compressed_anew_is_read_and_sound(place: Path, codec: Codec) -> None:
    (place / SHARD).write_bytes(shard([codec(row) for row in VALUES[:4]]))
    assert np.array_equal(np.asarray(open_store(place)["flat"]), VALUES)
    assert verify(place).sound


@pytest.mark.parametrize("compress", [None, "zstd"])
def test_rows_in_another_order_with_gaps_between_them_are_read(place: Path, compress: Compression | None) -> None:
    whole = (place / SHARD).read_bytes()
    index = np.frombuffer(whole[-(BLOCK_ROWS * 16 + 4) : -4], "<u8").reshape(-1, 2)
    data, moved = b"", []
    for row in (2, 0, 3, 1):
        start, n_bytes = index[row].tolist()
        data += b"a gap"
        moved.append((row, len(data), n_bytes))
        data += whole[start : start + n_bytes]
    packed = np.array([[start, n_bytes] for _, start, n_bytes in sorted(moved)], "<u8").tobytes()
    (place / SHARD).write_bytes(data + packed + google_crc32c.value(packed).to_bytes(4, "little"))
    assert np.array_equal(open_store(place)["flat"].read([3, 0, 1, 2, 1]), VALUES[[3, 0, 1, 2, 1]])


def test_a_shard_that_is_replaced_after_its_index_was_read_is_read_anew() -> None:
    store = MemoryStore()
    make(store, "zstd")
    tensor = open_store(store)["flat"]
    assert np.array_equal(tensor.read([3]), VALUES[[3]])
    sync(store.set(SHARD, prototype_buffer(shard([unsized(row.tobytes()) for row in VALUES[:4]]))))
    assert np.array_equal(tensor.read([3, 1]), VALUES[[3, 1]])
    sync(store.set(SHARD, prototype_buffer(b"nothing that is a shard")))
    with pytest.raises(DamagedError, match=r"rows 1 to 3 of tensor 'flat'.*c\.0\.0.*"):
        tensor.read([3, 1])


@pytest.mark.parametrize("compress", ["zstd"])
def test_a_shard_of_a_folder_that_is_replaced_is_noticed(place: Path) -> None:
    tensor = open_store(place)["flat"]
    tensor.read([3])
    part = place / "part"
    part.write_bytes(shard([zstd(19)(row) for row in VALUES[:4]]))
    part.replace(place / SHARD)
    assert np.array_equal(tensor.read([0, 3]), VALUES[[0, 3]])


# ---- shards that strangers made

QUARTER_OF_A_GIGABYTE = bytes(numcodecs.zstd.compress(np.zeros(1 << 28, np.uint8), 1))
BLOSC = bytes(numcodecs.blosc.compress(VALUES[0], b"zstd", 1, 1, 0))


def with_header(place: int, value: int) -> bytes:
    """A frame of blosc whose header says something else."""
    return BLOSC[:place] + struct.pack("<I", value) + BLOSC[place + 4 :]


CHUNKS: dict[str, tuple[Compression, bytes, str]] = {
    "a quarter of a gigabyte": (
        "zstd",
        QUARTER_OF_A_GIGABYTE,
        "it says that it unpacks to 268435456 bytes, and a row has 6000",
    ),
    "a quarter of a gigabyte that says nothing": ("zstd", endless(1 << 28), "it does not unpack to a row"),
    "too little": ("zstd", zstd(1)(VALUES[0, 1:]), "it says that it unpacks to 5998 bytes"),
    "too little, said to be enough": (
        "zstd",
        b"\x28\xb5\x2f\xfd\x60\x70\x16\x01\x00\x00",
        "it does not unpack to a row",
    ),
    "too little, unsaid": ("zstd", unsized(VALUES[0, 1:].tobytes()), "it does not unpack to a row"),
    "two frames": ("zstd", zstd(1)(VALUES[0]) * 2, "it does not unpack to a row"),
    "no frame": ("zstd", b"my thesis", "it is no frame of zstd"),
    "half a header": ("zstd", b"\x28\xb5\x2f\xfd\xc0\x00", "it is no whole frame of zstd"),
    "blosc that is called zstd": ("zstd", BLOSC, "it is no frame of zstd"),
    "zstd that is called blosc": ("blosc", zstd(1)(VALUES[0]), "it says that"),
    "a gigabyte of blosc": ("blosc", with_header(4, 1 << 30), "it says that it unpacks to 1073741824 bytes in blocks"),
    "blocks of a gigabyte": ("blosc", with_header(8, 1 << 30), "in blocks of 1073741824; a row has 6000"),
    "longer than it is": ("blosc", with_header(12, 1 << 30), "it says that it has 1073741824 bytes, and has"),
    "a header of blosc only": ("blosc", BLOSC[:16], "it says that it has"),
    "less than a header": ("blosc", BLOSC[:9], "its 9 bytes are no frame of blosc"),
    "blosc cut off": ("blosc", with_header(12, 100)[:100], "it does not unpack to a row"),
    "nothing": ("blosc", b"", "has no whole row 1"),
}


@pytest.mark.parametrize(("compress", "chunk", "words"), CHUNKS.values(), ids=CHUNKS.keys())
def test_a_row_that_does_not_unpack_to_a_row_is_refused_before_it_is_unpacked(
    place: Path, compress: Compression, chunk: bytes, words: str
) -> None:
    codec = zstd(1) if compress == "zstd" else blosc("zstd", 1, 1)
    (place / SHARD).write_bytes(shard([codec(VALUES[0]), chunk, codec(VALUES[2]), codec(VALUES[3])]))
    tensor = open_store(place)["flat"]
    with pytest.raises(DamagedError, match=rf"rows \d to \d of tensor 'flat'.*row 1.*{words}|{words}"):
        tensor.read([0, 1, 2, 3])
    assert np.array_equal(tensor.read([0, 2, 3, 4]), VALUES[[0, 2, 3, 4]])
    done = CliRunner().invoke(app, ["verify", str(place)])
    assert done.exit_code != 0
    assert "DAMAGED tensor 'flat'" in done.output


def entry(row: int, start: int, n_bytes: int) -> Callable[[NDArray[np.uint64]], object]:
    def change(index: NDArray[np.uint64]) -> None:
        index[row] = start, n_bytes

    return change


INDICES = {
    "behind the end": entry(1, 1 << 40, 100),
    "far behind the end": entry(1, (1 << 64) - 100, 200),
    "longer than a row can be": entry(1, 0, 1 << 40),
    "no bytes": entry(1, 0, 0),
    "the bytes of another": entry(1, 0, 6004),
    "nothing": entry(1, (1 << 64) - 1, (1 << 64) - 1),
    "the index itself": entry(1, 24_000, 68),
}


@pytest.mark.parametrize("change", INDICES.values(), ids=INDICES.keys())
@pytest.mark.parametrize("compress", [None, "zstd", "blosc"])
def test_an_index_that_lies_is_noticed(
    place: Path, compress: Compression | None, change: Callable[[NDArray[np.uint64]], object]
) -> None:
    codec = {None: lambda row: row.tobytes(), "zstd": zstd(1), "blosc": blosc("zstd", 1, 1)}[compress]
    (place / SHARD).write_bytes(shard([codec(row) for row in VALUES[:4]], change))
    with pytest.raises(DamagedError, match="flat"):
        open_store(place)["flat"].read([0, 1, 2, 3])
    assert not verify(place).sound
    assert np.array_equal(open_store(place)["flat"].read([4, 5]), VALUES[4:])


def a_pipe(file: Path) -> None:
    os.mkfifo(file)


def a_device(file: Path) -> None:
    file.symlink_to("/dev/zero")


def a_folder(file: Path) -> None:
    file.mkdir()


def a_file_of_50_gigabytes(file: Path) -> None:
    """It has a hole in it, and takes nothing on the disk."""
    whole = b"\0" * (BLOCK_ROWS * 16) + google_crc32c.value(b"\0" * (BLOCK_ROWS * 16)).to_bytes(4, "little")
    with file.open("wb") as stream:
        stream.truncate(50 << 30)
        stream.seek(0, os.SEEK_END)
        stream.write(whole)


LOOK = """
import sys
from featstore.errors import StoreError
from featstore.sharing.push_pull import merge
from featstore.store import open_store, verify
import featstore.cli
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
place, mine = sys.argv[1:]
for work in (
    lambda: open_store(place)["flat"].read([1]), lambda: open_store(place)["flat"].whole_shard(0),
    lambda: merge([place], mine), lambda: print(*verify(place).damage),
):
    try:
        work()
    except StoreError as error:
        print(type(error).__name__, error)
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before)
"""


@pytest.mark.parametrize("kind", [a_pipe, a_device, a_folder, a_file_of_50_gigabytes])
@pytest.mark.parametrize("compress", [None, "zstd"])
def test_a_shard_that_is_no_file_or_endless_neither_hangs_nor_fills_the_memory(
    tmp_path: Path, place: Path, kind: Callable[[Path], None]
) -> None:
    (place / SHARD).unlink()
    kind(place / SHARD)
    started = time.perf_counter()
    command = [sys.executable, "-c", LOOK, str(place), str(tmp_path / "mine.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - started < 30
    assert "DamagedError rows 1 to 1 of tensor 'flat'" in done.stdout
    assert f"{SHARD}: " in done.stdout  # a finding
    assert int(done.stdout.split()[-1]) < 200_000


BLOCK_IN_MEMORY = """
import sys
import featstore.cli
from featstore.sharing.push_pull import merge
from featstore.store import open_store, verify
before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
merge([sys.argv[1]], sys.argv[2])
assert verify(sys.argv[2]).sound
print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before)
"""


def test_a_row_of_a_gigabyte_in_a_few_kilobytes_is_in_memory_once_when_it_is_copied(tmp_path: Path) -> None:
    place, n_bytes = tmp_path / "features.zarr", 1 << 30
    layout = TensorLayout("flat", "concat", (StoredSegment("a", {"architecture": "a"}, 1, n_bytes // 2),))
    with Writer(place, block_rows=1) as writer:
        writer.add_images(NewImages(["a.jpg", "b.jpg"], np.array([[1] * 32, [2] * 32], np.uint8), [1] * 2, [1] * 2))
        writer.ensure_tensor(layout, "float16", compress="zstd")
        for row in range(2):
            values = np.zeros((1, n_bytes // 2), np.float16)
            seen = SeenImages([row], [(4, 6)], [ImageState.READABLE], [""])
            writer.commit(row, {"flat": (values, np.ones(1, np.uint8))}, seen)
    # Two blocks of a gigabyte may be under way together, up to 4 GiB in all.
    command = [sys.executable, "-c", BLOCK_IN_MEMORY, str(place), str(tmp_path / "mine.zarr")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) * 1000 < 2.4 * n_bytes


def test_a_compression_that_is_none_of_ours_is_refused() -> None:
    store = MemoryStore()
    make(store, "zstd")
    for said in ("gzip", {"a": 1}, ["zstd"], 3):
        tensor = open_store(store)["flat"]
        tensor._array = _Says(tensor._array, said)  # type: ignore[assignment]
        with pytest.raises(FormatError, match=r"is compressed with .*; rows of zstd and blosc are read"):
            tensor.read([0])


class _Says:
    """An array whose attributes say another compression."""

    def __init__(self, array: Any, compress: object) -> None:
        self.dtype, self.attrs = array.dtype, {**array.attrs.asdict(), "compress": compress}
