"""Mutations on the disk: of a file's bytes, of what kind of file it is, and of what the root of a store says of it."""

import json
import os
import shutil
import socket
from dataclasses import dataclass
from pathlib import Path
from random import Random

import google_crc32c

from featstore.store.format.integrity import digest_of, write_document

from .values import STRUCTURED, mutate_bytes

SPARSE_BYTES = 50 << 30
BOMB_BYTES = 3 << 30


@dataclass(frozen=True)
class Mutation:
    """What was done to a file."""

    said: str
    forged: bool = False
    """Whether seals and sums were made right again: then a store may say whatever it likes, in good order."""
    changed: bool = True
    """Whether the file says something else now; white space in a document does not."""


def mutate_file(rng: Random, desk: Path, file: str, outside: Path) -> Mutation:
    """Mutate a file below `desk`; some mutations put a link beside it, or move its folder `outside`.

    Args:
        file: its path from `desk`.
    """
    path = desk / file
    if rng.random() < 0.15:
        return Mutation(f"{file}: {_mutate_kind(rng, desk, path, outside)}")
    store, key = _in_store(file)
    before = path.read_bytes()
    forges = store != "" and rng.random() < 0.7
    if key.endswith("zarr.json") or not store:
        structured = STRUCTURED.get(path.suffix)
        after, said = (structured if structured and rng.random() < 0.7 else mutate_bytes)(rng, before)
    else:
        after, said = _mutate_chunk(rng, key, before)
    path.write_bytes(after)
    changed = after != before and not (path.suffix == ".json" and _same_json(before, after))
    if forges:
        forges = _forge(desk / store, key)
    return Mutation(f"{file}: {said}{', sealed and listed' if forges else ''}", forges, changed)


def swap_files(rng: Random, desk: Path, files: list[str]) -> Mutation:
    """Two files take each other's place."""
    one, other = rng.sample(files, 2)
    first, second = (desk / one).read_bytes(), (desk / other).read_bytes()
    (desk / one).write_bytes(second)
    (desk / other).write_bytes(first)
    return Mutation(f"{one} and {other} take each other's place", changed=first != second)


# ------------------------------------------------------------------------------------------ chunks


def _mutate_chunk(rng: Random, key: str, data: bytes) -> tuple[bytes, str]:
    """A chunk of a small array under a CRC that is right, or a shard under an index that is."""
    if rng.random() < 0.4 or len(data) < 40:
        return mutate_bytes(rng, data)
    if not key.startswith("tensors/"):
        payload, said = data[:-4], "zstd of 3 GiB"
        if rng.random() < 0.15:
            payload = zstd_zeros(BOMB_BYTES)
        elif rng.random() < 0.5 and key.startswith(("images/path", "images/error")):
            texts = [rng.choice(("", "a" * 70_000, "../x.jpg", "\x1b[2J", "x\nerror: planted by a stranger"))] * 12
            payload, said = _vlen_utf8([text.encode() for text in texts]), f"every text is {texts[0][:20]!r}"
        else:
            payload, said = mutate_bytes(rng, payload)
        return payload + _crc(payload), f"{said}, its CRC right"
    index_bytes = 64 * 16
    body, index = data[: -index_bytes - 4], bytearray(data[-index_bytes - 4 : -4])
    row = rng.randrange(12) * 16
    if rng.random() < 0.4:
        body += (bomb := zstd_zeros(BOMB_BYTES) + _crc(zstd_zeros(BOMB_BYTES)))
        index[row : row + 16] = (len(body) - len(bomb)).to_bytes(8, "little") + len(bomb).to_bytes(8, "little")
        said = f"row {row // 16} is zstd of 3 GiB"
    else:
        number = rng.choice((0, 1, len(body), 2**31, 2**32, 2**63 - 1, 2**64 - 2, 10**12))
        index[row + (at := rng.choice((0, 8))) :][:8] = number.to_bytes(8, "little")
        index[row + at : row + at + 8] = number.to_bytes(8, "little")
        said = f"the index says {number} of row {row // 16}"
    return body + bytes(index) + _crc(bytes(index)), said


def zstd_zeros(n_bytes: int) -> bytes:
    """A frame of zstd that unpacks to zeros, in blocks that repeat one byte."""
    block, rest = 1 << 17, n_bytes
    out = bytearray(b"\x28\xb5\x2f\xfd\xe0" + n_bytes.to_bytes(8, "little"))
    while rest:
        now = min(block, rest)
        rest -= now
        out += ((rest == 0) | 1 << 1 | now << 3).to_bytes(3, "little") + b"\0"
    return bytes(out)


def _vlen_utf8(texts: list[bytes]) -> bytes:
    return len(texts).to_bytes(4, "little") + b"".join(len(text).to_bytes(4, "little") + text for text in texts)


def _crc(data: bytes) -> bytes:
    return int(google_crc32c.value(data)).to_bytes(4, "little")


# ------------------------------------------------------------------------------------------ seals


def _in_store(file: str) -> tuple[str, str]:
    """The store that a file is of, and its key there; "" if it is of none."""
    store, _, key = file.partition(".zarr/")
    return (f"{store}.zarr", key) if key and "attention" not in store and "elsewhere" not in store else ("", file)


def _forge(store: Path, key: str) -> bool:
    """Seal a document anew and put it on the list of the root, as its maker could; False if that cannot be done."""
    try:
        if key.endswith("zarr.json"):
            (store / key).write_bytes(write_document(key, json.loads((store / key).read_bytes())))
        if key == "zarr.json" or (key.startswith("tensors/") and not key.endswith("zarr.json")):
            return True
        root = json.loads((store / "zarr.json").read_bytes())
        root["attributes"]["sums"][key] = [digest_of((store / key).read_bytes())]
        (store / "zarr.json").write_bytes(write_document("zarr.json", root))
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):  # of what was mutated
        return False
    return True


def _same_json(one: bytes, other: bytes) -> bool:
    try:
        return bool(json.loads(one) == json.loads(other))
    except (ValueError, RecursionError):
        return False


# ------------------------------------------------------------------------------------------ kinds of files


def _mutate_kind(rng: Random, desk: Path, path: Path, outside: Path) -> str:
    """The file becomes a pipe, a device, a giant, or a link; or a link lies where something is to be written."""
    ways = ("pipe", "zero", "random", "socket", "folder", "giant", "grown", "link", "loop", "gone", "beside", "moved")
    way = rng.choice(ways)
    if way == "beside":
        suffix = rng.choice((".part", ".partial", ".tmp", ".lock", ".lock.json"))
        link = path.with_name(rng.choice((f".{path.name}{suffix}", f"{path.name}{suffix}", f"{path.stem}{suffix}")))
        link.unlink(missing_ok=True)
        link.symlink_to(outside / "canary.txt")
        return f"{link.name} beside it is a link"
    if way == "moved":
        # What a user names may be a link of the user's own: a run, a store.
        if path.parent == desk or any((path.parent / name).exists() for name in ("config.json", "images")):
            return _mutate_kind(rng, desk, path, outside)
        shutil.move(path.parent, outside / "moved")
        path.parent.symlink_to(outside / "moved")
        return "its folder is a link to one elsewhere"
    if way == "grown":
        with path.open("ab") as file:
            file.truncate(SPARSE_BYTES)
        return "grown to 50 GiB of holes"
    path.unlink()
    if way == "pipe":
        os.mkfifo(path)
    elif way in ("zero", "random"):
        path.symlink_to(f"/dev/{'zero' if way == 'zero' else 'urandom'}")
    elif way == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(os.path.relpath(path))
    elif way == "folder":
        path.mkdir()
    elif way == "giant":
        with path.open("wb") as file:
            file.truncate(SPARSE_BYTES)
    elif way == "link":
        path.symlink_to(outside / "canary.txt")
    elif way == "loop":
        path.symlink_to(path.name)
    return f"{way} in its place"
