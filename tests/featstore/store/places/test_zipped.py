"""Stores in zip files, as honest people and strangers make them."""

import os
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from featstore.cli import app
from featstore.errors import FormatError, StoreError
from featstore.store import open_store, verify
from featstore.store.places import zipped

from ..real_size import SHARDS, large_keys, values

ROOT = Path(__file__).parents[4]
STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
BOTH = pytest.mark.parametrize("how", [STORED, DEFLATED], ids=["stored", "deflated"])
FLAGS, METHOD, PACKED, UNPACKED, HEADER_AT = (8, "<H"), (10, "<H"), (20, "<I"), (24, "<I"), (42, "<I")
"""Where fields of an entry of the directory are."""


def pack(path: Path, how: int = STORED, **changes: bytes) -> Path:
    """The store of real size in a zip file, some of its files exchanged."""
    with zipfile.ZipFile(path, "w", how, compresslevel=1) as file:
        for key, data in {**large_keys(), **changes}.items():
            file.writestr(key, data)
    return path


def forge(path: Path, name: str, field: tuple[int, str], value: int) -> None:
    """Let the directory say something else of a file."""
    data = bytearray(path.read_bytes())
    (end,) = struct.unpack("<I", data[-6:-2])
    entry = data.index(b"PK\1\2", end)
    while data[entry + 46 : entry + 46 + data[entry + 28]] != name.encode():
        entry = data.index(b"PK\1\2", entry + 1)
    struct.pack_into(field[1], data, entry + field[0], value)
    path.write_bytes(data)


def bomb(n_megabytes: int) -> bytes:
    """A deflated stream of so many megabytes of zeros, in a thousandth of that."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * n_megabytes + packer.flush()


def pack_bomb(path: Path, key: str, n_megabytes: int, *, said: int) -> Path:
    """The store in a zip file, one of its files being a bomb that is said to have so many bytes."""
    packed = bomb(n_megabytes)
    pack(path, **{key: packed})
    forge(path, key, METHOD, DEFLATED)
    forge(path, key, UNPACKED, said)
    return path


def seen(work: str, path: Path) -> tuple[str, float]:
    """What Python code prints about `place`, and the gigabytes that it took at most."""
    code = (
        "import sys\nimport featstore.cli\nfrom featstore.errors import StoreError\n"
        "from featstore.store import open_store, verify\nplace = sys.argv[1]\n"
        'before = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])\n'
        f"try:\n    print({work})\nexcept StoreError as error:\n    print(type(error).__name__, error)\n"
        'print(int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) - before)\n'
    )
    limits = 'ulimit -v 12000000; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", limits, "-", sys.executable, "-c", code, str(path)],
        capture_output=True, text=True, timeout=60, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    said, kilobytes = done.stdout.rsplit("\n", 2)[0], done.stdout.split()[-1]
    return said, int(kilobytes) / 1e6


# ---- honest ones


@BOTH
def test_a_zip_file_with_64_bit_sizes_is_read(tmp_path: Path, how: int) -> None:
    path = tmp_path / "features.zip"
    with zipfile.ZipFile(path, "w", how) as file:
        for key, data in large_keys().items():
            with file.open(key, "w", force_zip64=True) as member:
                member.write(data)
    assert np.array_equal(np.asarray(open_store(path)["big"]), values())
    assert verify(path).sound


def test_more_files_than_fit_into_16_bits_are_read(tmp_path: Path) -> None:
    path = pack(tmp_path / "features.zip")
    with zipfile.ZipFile(path, "a") as file:
        for i in range(1 << 16):
            file.writestr(f"notes/{i}", b"")
    assert np.array_equal(open_store(path)["big"].read([9]), values()[[9]])


def test_a_comment_and_what_stands_before_the_zip_file_are_no_harm(tmp_path: Path) -> None:
    path = pack(tmp_path / "features.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.comment = b"with love" * 100
    path.write_bytes(b"#!/bin/sh\n" + path.read_bytes())
    assert verify(path).sound


def test_folders_are_no_files(tmp_path: Path) -> None:
    path = pack(tmp_path / "features.zip")
    with zipfile.ZipFile(path, "a") as file:
        file.mkdir("tensors")
    assert verify(path).findings == []


WORKING = """
import sys
import numpy as np
import torch
from featstore.store import open_store

def by_workers(tensor, how):
    loader = torch.utils.data.DataLoader(
        tensor.torch(), batch_size=3, num_workers=2, multiprocessing_context=how, collate_fn=list, timeout=60
    )
    rows = {int(row): value for batch in loader for row, value in batch}
    assert sorted(rows) == list(range(len(tensor)))
    return np.stack([rows[row] for row in sorted(rows)])

if __name__ == "__main__":
    tensor = open_store(sys.argv[1])["big"]
    first = by_workers(tensor, sys.argv[2])
    tensor.read([3, 9])  # now there are threads, and something in memory
    assert np.array_equal(by_workers(tensor, sys.argv[2]), first)
    assert np.array_equal(tensor.read(tensor.rows), first)
"""


@pytest.mark.parametrize("start", ["fork", "spawn"])
@BOTH
def test_workers_of_a_torch_loader_read_it(tmp_path: Path, how: int, start: str) -> None:
    """In a process of its own: torch changes how signals are handled where it starts workers."""
    place, script = pack(tmp_path / "features.zip", how), tmp_path / "working.py"
    script.write_text(WORKING)
    command = [sys.executable, "-W", "ignore", str(script), str(place), start]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr


FORKING = """
import multiprocessing, os, sys
from featstore.store import open_store

tensor = open_store(sys.argv[1])["big"]
source, archive = tensor._source, tensor._source._ranges
tensor.read([0])
archive._unpacked.clear()
locks = [archive._turn, archive._giant, *archive._turns, source._lock]
for lock in locks:
    lock.acquire()
child = multiprocessing.get_context("fork").Process(target=lambda: os._exit(int(len(tensor.read([0, 9])) != 2)))
child.start()
for lock in locks:
    lock.release()
child.join(30)
ended = child.exitcode
child.kill()
sys.exit(0 if ended == 0 else f"the child ended with {ended}")
"""


def test_a_fork_goes_on_while_another_thread_is_unpacking(tmp_path: Path) -> None:
    """In a process of its own: whatever else has run in this one is not to be forked."""
    place = pack(tmp_path / "features.zip", DEFLATED)
    command = [sys.executable, "-W", "ignore", "-c", FORKING, str(place)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stderr


def test_one_that_is_replaced_while_it_is_open_stays_what_it_was(tmp_path: Path) -> None:
    path = pack(tmp_path / "features.zip")
    tensor = open_store(path)["big"]
    other = tmp_path / "other.zip"
    other.write_bytes(b"something else")
    other.replace(path)
    assert np.array_equal(np.asarray(tensor), values())


# ---- damaged ones


@BOTH
def test_a_flipped_byte_of_a_shard_is_told_as_damage(tmp_path: Path, how: int) -> None:
    path = pack(tmp_path / "features.zip", how)
    data = bytearray(path.read_bytes())
    start = data.index(SHARDS[0].encode()) + len(SHARDS[0])
    data[start + 3_000_000] ^= 4
    path.write_bytes(data)
    done = CliRunner().invoke(app, ["verify", str(path)])
    assert done.exit_code != 0
    assert done.exception is None or isinstance(done.exception, SystemExit)
    assert (
        f"DAMAGED tensor 'big', rows 0 to 7, {SHARDS[0]}" in done.output or "DAMAGED tensor 'big', row" in done.output
    )
    with pytest.raises(StoreError, match="big"):
        open_store(path)["big"].read(list(range(8)))
    assert np.array_equal(open_store(path)["big"].read([8, 9]), values()[[8, 9]])


@BOTH
def test_no_flipped_bit_anywhere_gives_wrong_values_or_anything_but_words(tmp_path: Path, how: int) -> None:
    path = pack(tmp_path / "features.zip", how)
    whole = path.read_bytes()
    rng = np.random.default_rng(1)
    headers = [place for place in range(len(whole) - 3000, len(whole)) if rng.random() < 0.01]
    small = rng.integers(0, 3000, 25).tolist()
    n_told = 0
    for place in [*headers, *small]:
        data = bytearray(whole)
        data[place] ^= 1 << int(rng.integers(8))
        path.write_bytes(data)
        try:
            assert np.array_equal(np.asarray(open_store(path)["big"]), values())
            n_told += not verify(path).sound
        except StoreError:
            n_told += 1
    assert n_told > 10


@pytest.mark.parametrize("share", [0.2, 0.9, 0.9999])
def test_one_that_was_cut_off_is_refused(tmp_path: Path, share: float) -> None:
    path = pack(tmp_path / "features.zip")
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(FormatError, match=r"features\.zip"):
        open_store(path)


# ---- those of strangers

REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "encrypted": (lambda path: forge(path, SHARDS[0], FLAGS, 1), "is encrypted; unpack it with its password"),
    "an unknown method": (lambda path: forge(path, SHARDS[0], METHOD, 77), r"is compressed by method 77 \(unknown\)"),
    "zstd, of newer tools": (lambda path: forge(path, SHARDS[0], METHOD, 93), "is compressed by method 93"),
    "overlapping files": (lambda path: forge(path, SHARDS[0], HEADER_AT, 0), "overlaps with another file"),
    "a file in the directory": (lambda path: forge(path, SHARDS[1], PACKED, 1 << 30), "overlaps with another file"),
    "a file behind the end": (lambda path: forge(path, SHARDS[1], HEADER_AT, 1 << 30), "overlaps with another file"),
    "two sizes of one file": (lambda path: forge(path, SHARDS[1], UNPACKED, 1 << 31), "is stored in"),
}


@pytest.mark.parametrize(("change", "words"), REFUSED.values(), ids=REFUSED.keys())
def test_what_contradicts_itself_or_cannot_be_read_is_refused_in_words(
    tmp_path: Path, change: Callable[[Path], object], words: str
) -> None:
    path = pack(tmp_path / "features.zip")
    change(path)
    for attempt in (open_store, verify):
        with pytest.raises(FormatError, match=words):
            attempt(path)


@pytest.mark.parametrize("how", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_only_python_unpacks_are_refused_in_words(tmp_path: Path, how: int) -> None:
    path = tmp_path / "features.zip"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("zarr.json", large_keys()["zarr.json"], how)
    with pytest.raises(FormatError, match=f"is compressed by method {how} .*: unpack it, and open the folder"):
        open_store(path)


def test_a_name_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    path = pack(tmp_path / "features.zip")
    with zipfile.ZipFile(path, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        file.writestr("zarr.json", b"{}")
    with pytest.raises(FormatError, match=r"lists .zarr\.json. twice"):
        open_store(path)


@pytest.mark.parametrize("said", [1000, (1 << 32) - 2], ids=["little", "4 GiB"])
@pytest.mark.parametrize(
    ("key", "work"),
    [
        ("zarr.json", "verify(place).damage"),
        ("images/path/c.0", "verify(place).damage"),
        (SHARDS[0], "verify(place).damage"),
        (SHARDS[0], "open_store(place)['big'].read([0])"),
    ],
)
def test_a_file_that_unpacks_to_far_too_much_takes_no_memory(tmp_path: Path, work: str, key: str, said: int) -> None:
    path = pack_bomb(tmp_path / "features.zip", key, 3500, said=said)
    told, gigabytes = seen(work, path)
    assert "Error" in told or "Finding" in told
    assert gigabytes < 0.4


def test_a_directory_that_is_said_to_be_huge_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "features.zip"
    huge = 3 << 30
    with path.open("wb") as file:  # a file with a hole in it: it takes nothing on the disk
        file.truncate(huge)
        file.seek(0, os.SEEK_END)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, huge, 0, 0))
    told, gigabytes = seen("open_store(place)", path)
    assert "FormatError" in told
    assert "directory cannot be read: it says that it takes 3.2 GB" in told
    assert gigabytes < 0.4


def test_as_many_files_as_its_directory_may_list_are_little_memory(tmp_path: Path) -> None:
    path = tmp_path / "features.zip"
    entry = struct.pack("<4s6H3L5H2L", b"PK\1\2", 20, 20, 0, 0, 0, 33, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0) + b"x"
    n = zipped.DIRECTORY_BYTES // len(entry)
    with path.open("wb") as file:
        file.write(entry * n)
        file.write(struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 1, 1, n * len(entry), 0, 0))
    told, gigabytes = seen("open_store(place)", path)
    assert "FormatError" in told
    assert gigabytes < 0.8


def test_a_pipe_that_is_called_zip_is_no_store(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "features.zip")
    told, _ = seen("open_store(place)", tmp_path / "features.zip")
    assert "FormatError" in told


def test_shards_of_gigabytes_are_unpacked_one_by_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensor = open_store(pack(tmp_path / "features.zip", DEFLATED))["big"]
    archive: Any = tensor._source._ranges  # type: ignore[union-attr]
    monkeypatch.setattr(zipped, "UNPACKED_BYTES", 1 << 20)
    under_way, most = 0, 0
    inflate = zipped._inflate

    def counted(part: Any, n_bytes: int) -> bytearray:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way + len(archive._unpacked))
        data = inflate(part, n_bytes)
        under_way -= 1
        return data

    monkeypatch.setattr(zipped, "_inflate", counted)
    assert np.array_equal(tensor.read([0, 8, 1, 9]), values()[[0, 8, 1, 9]])
    assert most == 1
