"""Mutations in memory: of bytes, and of JSON, TOML, tables, safetensors and zip files as what they are."""

import csv
import hashlib
import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from random import Random
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

Mutated = tuple[bytes, str]
"""The new bytes, and what was done in words."""

PLANTED = "error: planted by a stranger"
"""If a line of output begins so, text of a file has become a message."""
EVIL = "from pathlib import Path\nPath('../outside/evil').write_text('ran')\n"
"""Code that nobody asked to run, in `evil.py` on the desk: texts may lead there."""
EVIL_SHA256 = hashlib.sha256(EVIL.encode()).hexdigest()
TEXTS = (
    "",
    "x" * 100_000,
    f"x\n{PLANTED}",
    f"x\r{PLANTED}",
    "\x1b[2J\x1b]0;owned\x07",
    "\u202egpj.exe",
    "\x00",
    "\ud7ff\uffff",
    "../outside/canary.txt",
    "/dev/zero",
    "evil.py",
    "evil",
    "evil:make",
    "python:evil.py:make",
    "hf:evil/evil",
    "tcp://127.0.0.1:1",
    "s3://evil/evil",
    "file:///dev/zero",
    "=cmd|'/c calc'!A1",
    "<script>alert(1)</script>",
    "%s%n{0}{x.__class__}",
    "zzz",
    "NaN",
    "1_0",
    "١٢",
)
NUMBERS = (0, 1, -1, 2, 2**31 - 1, 2**31, 2**53 + 1, 2**63, 2**64, 10**30, 10**9, -(2**63), 0.5, -0.0, 1e308, 5e-324)
POINTERS = (
    "tcp://127.0.0.1:1", "s3://evil/evil", "http://127.0.0.1:1/x", "../outside/canary.txt", "../outside", "/dev/zero",
    "evil.py", "evil", "hf:evil/evil", "python:evil.py:make", {"name": "evil.py", "sha256": EVIL_SHA256},
)  # fmt: skip
"""What leads out of a document."""
POINTING = {
    "scheduler", "out", "store", "photos", "photos_folder", "plugin", "plugins", "folder", "directory", "labels",
    "files", "split", "hub", "weights", "command", "system", "path", "reuse", "architecture", "name",
}  # fmt: skip
"""Keys under which it may be taken for a place."""
NOT_NUMBERS = (float("nan"), float("inf"), float("-inf"))
CELLS = (
    *TEXTS,
    *map(str, (*NUMBERS, *NOT_NUMBERS)), "9" * 5000,
    "1e400", "1e-400", "+3", "0x10", "1,5", "1 000", " 4 ", "4\t", "\ufeff4", "yes", "no", "true", "NA", "-",
)  # fmt: skip


# ------------------------------------------------------------------------------------------ bytes


def mutate_bytes(rng: Random, data: bytes) -> Mutated:
    """Bits flipped, bytes cut, inserted, zeroed or repeated, integers of binary formats exchanged."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    n_bytes = rng.choice((1, 2, 4, 8, 64, 1000))
    way = rng.choice(("flip", "flips", "cut", "drop", "insert", "zero", "ones", "repeat", "integer", "empty", "grow"))
    if way == "flip" and out:
        out[at % len(out)] ^= 1 << rng.randrange(8)
    elif way == "flips" and out:
        for _ in range(n_bytes):
            out[rng.randrange(len(out))] = rng.randrange(256)
    elif way == "cut":
        del out[at:]
    elif way == "drop":
        del out[at : at + n_bytes]
    elif way == "insert":
        out[at:at] = rng.randbytes(n_bytes)
    elif way in ("zero", "ones"):
        end = min(at + n_bytes, len(out))
        out[at:end] = (b"\0" if way == "zero" else b"\xff") * (end - at)
    elif way == "repeat":
        out[at:at] = out[at : at + n_bytes] * rng.choice((1, 2, 1000))
    elif way == "integer":
        form = rng.choice(("<I", "<Q", "<H", ">I"))
        size = struct.calcsize(form)
        start = rng.choice((at, rng.randrange(64), max(len(out) - rng.randrange(1, 64), 0)))
        top = 256**size - 1
        number = rng.choice((0, 1, top, top // 2, top // 2 + 1, 10**9 % top, top - 1))
        out[start : start + size] = struct.pack(form, number)[: max(len(out) - start, 0)]
        at = start
    elif way == "empty":
        out.clear()
    elif way == "grow":
        out += rng.randbytes(n_bytes)
    return bytes(out), f"{way} at {at} of {len(data)} bytes"


# ------------------------------------------------------------------------------------------ JSON


def hostile(rng: Random) -> Any:
    """A value that nobody expects."""
    kind = rng.randrange(8)
    if kind <= 2:
        return rng.choice(TEXTS)
    if kind <= 4:
        return rng.choice(NUMBERS)
    if kind == 5:
        return rng.choice((None, True, False, [], {}, [[]], [None], {"": None}, [1] * 1000, {"a": {"b": []}}))
    if kind == 6:
        return rng.choice(NOT_NUMBERS)
    return nested(rng.choice((70, 5000)), rng.choice(("list", "dict")))


def nested(depth: int, kind: str) -> Any:
    """`[[[...]]]`, or the same of dicts."""
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind == "list" else {"a": value}
    return value


def mutate_value(rng: Random, value: Any) -> str:
    """Change something within a JSON value, in place; says what."""
    places: list[tuple[Any, Any, str]] = []
    todo: list[tuple[Any, str]] = [(value, "")]
    while todo:
        node, at = todo.pop()
        for key in list(node) if isinstance(node, dict) else range(len(node)):
            places.append((node, key, f"{at}/{key}"))
            if isinstance(node[key], (dict, list)):
                todo.append((node[key], f"{at}/{key}"))
    if not places:
        return "nothing to change"
    pointing = [place for place in places if place[1] in POINTING]
    if pointing and rng.random() < 0.15:
        node, key, at = rng.choice(pointing)
        node[key] = pointer = rng.choice(POINTERS)
        if isinstance(node, dict) and rng.random() < 0.2:  # a list of them, as options that may be repeated
            node[key] = [pointer]
        return f"{at} = {_short(node[key])}"
    shallow = [place for place in places if place[2].count("/") <= 4]  # lists of sums are long, and all alike
    node, key, at = rng.choice(shallow if shallow and rng.random() < 0.6 else places)
    way = rng.choice(("replace", "replace", "replace", "replace", "near", "near", "remove", "add", "rename", "repeat"))
    if way == "remove":
        del node[key]
        return f"{at} removed"
    if way == "add" and isinstance(node, dict):
        name = rng.choice(("extra", *TEXTS, *node))
        node[name] = new = hostile(rng)
        return f"{at}: beside it {_short(name)} = {_short(new)}"
    if way == "rename" and isinstance(node, dict):
        name = rng.choice((*TEXTS, f"{key}x"))
        node[name] = node.pop(key)
        return f"{at} is now called {_short(name)}"
    if way == "repeat" and isinstance(node, list):
        node[key:key] = [node[key]] * rng.choice((1, 2, 1000))
        return f"{at} repeated"
    new = near(rng, node[key]) if way == "near" else hostile(rng)
    node[key] = new
    return f"{at} = {_short(new)}"


def near(rng: Random, value: Any) -> Any:
    """A value of the same type that is only a little wrong: it passes where types are looked at."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return rng.choice(
            (value + 1, value - 1, -value, value * 2, value * 1000, 10 ** rng.randrange(3, 13), float(value))
        )
    if isinstance(value, float):
        return rng.choice((-value, value * 1e300, 0.0, *NOT_NUMBERS))
    if isinstance(value, str):
        return rng.choice((value + "x", value[:-1], value.upper(), *TEXTS))
    if isinstance(value, list):
        return rng.choice((value * 2, value[1:], [value], value[::-1], dict.fromkeys(map(str, value))))
    if isinstance(value, dict):
        return rng.choice((list(value), [value], {**value, "": 1}))
    return hostile(rng)


def dump_json(value: Any) -> bytes:
    """JSON of any depth: Python's own writer gives up at some hundred levels."""
    try:
        return json.dumps(value, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass")
    except RecursionError:
        return _dump_deep(value).encode("utf-8", "surrogatepass")


def _dump_deep(value: Any) -> str:
    """The same without recursion into what is nested as `nested` does."""
    if isinstance(value, dict) and len(value) != 1:
        return "{" + ",".join(f"{json.dumps(key)}:{_dump_deep(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list) and len(value) != 1:
        return "[" + ",".join(map(_dump_deep, value)) + "]"
    before, after = [], []
    while isinstance(value, (list, dict)) and len(value) == 1:
        key = next(iter(value)) if isinstance(value, dict) else None
        before.append("[" if key is None else f"{{{json.dumps(key)}:")
        after.append("]" if key is None else "}")
        value = value[0 if key is None else key]
    inner = _dump_deep(value) if isinstance(value, (list, dict)) and value else json.dumps(value)
    return "".join(before) + inner + "".join(reversed(after))


def mutate_json(rng: Random, data: bytes) -> Mutated:
    value = json.loads(data)
    if rng.random() < 0.05:
        return _mutate_text_of_json(rng, data)
    if not isinstance(value, (dict, list)) or rng.random() < 0.03:
        return dump_json(new := hostile(rng)), f"the whole is {_short(new)}"
    said = mutate_value(rng, value)
    return dump_json(value), said


def _mutate_text_of_json(rng: Random, data: bytes) -> Mutated:
    """What no value can be made to say."""
    numbers = [match.span() for match in re.finditer(rb"(?<=[\s:\[,])-?\d+(\.\d+)?(?=[\s,\]}])", data)]
    if numbers and rng.random() < 0.6:
        start, end = rng.choice(numbers)
        new = rng.choice((b"9" * 5000, b"1E400", b"-1E400", b"00", b"1_0", b"0x1", b"Infinity", b"1" + b"0" * 400))
        return data[:start] + new + data[end:], f"a number at {start} is {new[:20]!r}"
    new = rng.choice(
        (data + data, data + b"x", b"\xef\xbb\xbf" + data, data.decode().encode("utf-16"), b"{" + data[1:-1])
    )
    return new, "no single JSON text"


# ------------------------------------------------------------------------------------------ TOML


def mutate_toml(rng: Random, data: bytes) -> Mutated:
    """One line of `key = value` or `[table]` becomes something else."""
    lines = data.decode().splitlines()
    at = rng.choice([i for i, line in enumerate(lines) if line.strip() and not line.startswith("#")])
    key, equals, _ = lines[at].partition(" = ")
    way = rng.choice(("value", "value", "value", "value", "raw", "remove", "twice", "key", "table"))
    if way == "remove":
        del lines[at]
    elif way == "twice":
        lines.insert(at, lines[at])
    elif way == "table" or not equals:
        table = rng.choice(("[]", "[a.b", "[[tensors]]", '["\\u001b"]', "[tensors.'../x']", "[" + "a." * 5000 + "a]"))
        lines[at] = table
    elif way == "key":
        lines[at] = f"{rng.choice(('extra', 'store', '__class__', json.dumps(rng.choice(TEXTS))))} = 1"
    elif way == "raw":
        lines[at] = f"{key} = {rng.choice(('', '1979-05-27', '0x10', '1_0', '[' * 5000, '{a=' * 5000, chr(34) * 3))}"
    else:
        lines[at] = f"{key} = {_toml(hostile(rng))}"
    return "\n".join([*lines, ""]).encode("utf-8", "surrogatepass"), f"line {at + 1}: {_short(lines[at : at + 1])}"


def _toml(value: Any) -> str:
    if _depth(value) > 60:
        return "{a = " * 5000 + "1" + "}" * 5000 if isinstance(value, dict) else "[" * 5000 + "]" * 5000
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(str(key))} = {_toml(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, float):
        return repr(value)
    return "[]" if value is None else json.dumps(value)


def _depth(value: Any) -> int:
    depth = 0
    while isinstance(value, (list, dict)) and value:
        value = value[0] if isinstance(value, list) else next(iter(value.values()))
        depth += 1
    return depth


# ------------------------------------------------------------------------------------------ tables


def mutate_table(rng: Random, data: bytes) -> Mutated:
    """A cell, a header, a row or a column of a CSV or TSV file."""
    text = data.decode()
    dialect = "excel-tab" if text.partition("\n")[0].count("\t") else "excel"
    rows = list(csv.reader(io.StringIO(text), dialect))
    row, column = rng.randrange(1, max(len(rows), 2)), rng.randrange(len(rows[0]))
    way = rng.choice(("cell", "cell", "cell", "cell", "header", "column", "short", "long", "rows", "same", "raw"))
    cell = rng.choice(CELLS)
    said = f"{way} of row {row}, column {column}: {_short(cell)}"
    if way == "cell":
        rows[row][column] = cell
    elif way == "header":
        rows[0][column] = rng.choice((cell, rows[0][0], rows[0][-1], "path", "digest", "repeat"))
    elif way == "column":
        for each in rows[1:]:
            each[column] = cell
    elif way == "short":
        del rows[row][column:]
    elif way == "long":
        rows[row] += [cell] * rng.choice((1, 1000))
    elif way == "rows":
        rows = [rows[0], *rng.choice(([], rows[1:2], rows[1:] * 2, rows[:0:-1]))]
    elif way == "same":
        rows[row] = list(rows[rng.randrange(1, len(rows))])
    written = io.StringIO()
    csv.writer(written, dialect, lineterminator="\n").writerows(rows)
    out = written.getvalue().encode("utf-8", "surrogatepass")
    if way == "raw":
        out, said = rng.choice(
            (
                (out.decode(errors="replace").encode("utf-16"), "in UTF-16"),
                (b"\xef\xbb\xbf" + out, "with a byte order mark"),
                (out.replace(b"\n", b"\r"), "with carriage returns"),
                (out.replace(b"\n", b"\n\0", 1), "with a zero byte"),
                (out + b'"', "with an open quote"),
                (b"\xff\xfe" + out, "not in UTF-8"),
                (out.partition(b"\n")[0] + b"\n" + b"," * 300_000, "with a row of 300,000 cells"),
            )
        )
    return out, said


# ------------------------------------------------------------------------------------------ safetensors


def mutate_safetensors(rng: Random, data: bytes) -> Mutated:
    """The header: shapes, offsets and types; and the JSON within its metadata."""
    size = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + size]), data[8 + size :]
    inner = [key for key, value in header.get("__metadata__", {}).items() if value.startswith(("{", "["))]
    if inner and rng.random() < 0.6:
        key = rng.choice(inner)
        new, said = mutate_json(rng, header["__metadata__"][key].encode())
        header["__metadata__"][key] = new.decode("utf-8", "replace")
        said = f"{key}: {said}"
    else:
        said = mutate_value(rng, header)
    text = dump_json(header)
    return len(text).to_bytes(8, "little") + text + rest, f"header {said}"


# ------------------------------------------------------------------------------------------ zip

_CENTRAL = (
    ("needed", 6, "<H"), ("flags", 8, "<H"), ("method", 10, "<H"), ("CRC", 16, "<I"), ("packed", 20, "<I"),
    ("size", 24, "<I"), ("name length", 28, "<H"), ("extra length", 30, "<H"), ("offset", 42, "<I"),
)  # fmt: skip
_LOCAL = (("flags", 6, "<H"), ("method", 8, "<H"), ("CRC", 14, "<I"), ("packed", 18, "<I"), ("size", 22, "<I"),
          ("name length", 26, "<H"), ("extra length", 28, "<H"))  # fmt: skip
_END = (("disk", 4, "<H"), ("entries here", 8, "<H"), ("entries", 10, "<H"), ("directory size", 12, "<I"),
        ("directory offset", 16, "<I"), ("comment length", 20, "<H"))  # fmt: skip


def mutate_zip(rng: Random, data: bytes) -> Mutated:
    """A field of the directory, of a member's own header or of the end; or a name."""
    out = bytearray(data)
    signature, fields = rng.choice(
        ((b"PK\1\2", _CENTRAL), (b"PK\1\2", _CENTRAL), (b"PK\3\4", _LOCAL), (b"PK\5\6", _END))
    )
    places = [match.start() for match in re.finditer(re.escape(signature), data)]
    if not places:
        return mutate_bytes(rng, data)
    at = rng.choice(places)
    if signature == b"PK\1\2" and rng.random() < 0.2:
        length = int.from_bytes(out[at + 28 : at + 30], "little")
        called = rng.choice((b"../../outside/canary.txt", b"/etc/passwd", b"\x1b[2J", b"zarr.json", b"\xff\xfe"))
        out[at + 46 : at + 46 + length] = called.ljust(length, b"x")[:length]
        return bytes(out), f"member at {at} is called {called!r}"
    name, offset, form = rng.choice(fields)
    top = 256 ** struct.calcsize(form) - 1
    number = rng.choice((0, 1, 8, 9, 12, 93, 99, 2048, top, top // 2, top - 1, rng.randrange(top)))
    struct.pack_into(form, out, min(at + offset, len(out) - 4), number)
    return bytes(out), f"{name} at {at} = {number}"


def zip_bomb(rng: Random, data: bytes, n_bytes: int) -> Mutated:
    """A member begins as it did, and goes on with zeros that are packed well."""
    out = io.BytesIO()
    with ZipFile(io.BytesIO(data)) as packed, ZipFile(out, "w") as bomb:
        chosen = rng.choice(packed.namelist())
        for name in packed.namelist():
            if name != chosen:
                bomb.writestr(name, packed.read(name))
        head = packed.read(chosen)
        bomb.writestr(chosen, raw := _deflated(head, n_bytes))
        info = bomb.getinfo(chosen)
        info.compress_type, info.file_size, info.CRC = ZIP_DEFLATED, len(head) + n_bytes, _crc_of_zeros(head, n_bytes)
        local = struct.pack("<HHIII", ZIP_DEFLATED, 0, info.CRC, 0, len(raw))
        at = info.header_offset
    text = bytearray(out.getvalue())
    size = min(len(head) + n_bytes, 2**32 - 1)
    text[at + 8 : at + 10], text[at + 14 : at + 18], text[at + 22 : at + 26] = (
        local[:2], local[4:8], size.to_bytes(4, "little"),
    )  # fmt: skip
    return bytes(text), f"{chosen} unpacks to {n_bytes / 2**30:.0f} GiB"


def _deflated(head: bytes, n_bytes: int) -> bytes:
    """The same block of packed zeros again and again: each forgets what was before."""
    step = 1 << 24
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    start = packer.compress(head) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(step)) + packer.flush(zlib.Z_FULL_FLUSH)
    return start + block * (n_bytes // step) + packer.flush()


def _crc_of_zeros(head: bytes, n_bytes: int) -> int:
    step, crc = bytes(1 << 24), zlib.crc32(head)
    for _ in range(n_bytes >> 24):
        crc = zlib.crc32(step, crc)
    return crc


STRUCTURED: dict[str, Callable[[Random, bytes], Mutated]] = {
    ".json": mutate_json,
    ".toml": mutate_toml,
    ".csv": mutate_table,
    ".tsv": mutate_table,
    ".safetensors": mutate_safetensors,
    ".zip": mutate_zip,
    ".npz": mutate_zip,
    ".pth": mutate_zip,
}
"""By suffix, what knows the format."""


def _short(value: object) -> str:
    text = repr(value) if _depth(value) < 60 else f"nested {_depth(value)} deep"
    return text if len(text) <= 60 else f"{text[:50]}... of {len(text)}"
