"""Stores whose maker lies: what cannot be is an error in words, and takes no memory."""

import ast
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from featstore.errors import DamagedError
from featstore.sharing.push_pull import merge
from featstore.store import NewImages, Writer, open_store, repair, verify
from featstore.store.format.images import COLUMNS
from featstore.store.format.metadata import TABLE_CHUNK
from featstore.store.lock import Holder

from .forging import Forger, strings
from .small_store import BLOCK_ROWS, CONCAT, commit, open_writer

Forge = Callable[[Forger], object]
ROOT = Path(__file__).parents[3]
LIMITED = """
import resource, sys
from featstore.errors import FeatstoreError
from featstore.store import open_store, repair, verify
from featstore.store.describe import describe
resource.setrlimit(resource.RLIMIT_AS, (3 << 30, 3 << 30))
def look(path):
    store = open_store(path)
    describe(store)
    for tensor in store.tensors.values():
        tensor.read(tensor.rows)
for path in sys.argv[1:]:
    for attempt in (look, verify, repair):
        try:
            found = getattr(attempt(path), "sound", "fine")
        except FeatstoreError as error:
            found = f"{type(error).__name__}: {error}"
        except Exception as error:
            found = f"not ours: {error!r}"
        print(path, attempt.__name__, ascii(str(found)), sep="\\t", flush=True)
"""


def shape(key: str, found: Any) -> Forge:
    return lambda forger: forger.document(f"{key}/zarr.json", lambda document: document.update(shape=found))


def codecs(key: str, found: list[dict[str, Any]]) -> Forge:
    return lambda forger: forger.document(f"{key}/zarr.json", lambda document: document.update(codecs=found))


def root(**changes: Any) -> Forge:
    return lambda forger: forger.attributes("zarr.json", **changes)


def about(block_rows: Any) -> Forge:
    return root(featstore={"format": 2, "block_rows": block_rows})


def tensor(**changes: Any) -> Forge:
    return lambda forger: forger.attributes("tensors/grid/zarr.json", **changes)


def segment(**changes: Any) -> Forge:
    def change(document: dict[str, Any]) -> None:
        document["attributes"]["segments"][0].update(changes)

    return lambda forger: forger.document("tensors/grid/zarr.json", change)


def wide_rows(document: dict[str, Any]) -> None:
    """Inner chunks of 10^9 rows, squeezed to nothing."""
    document["attributes"]["compress"] = "zstd"
    sharding = document["codecs"][0]["configuration"]
    document["chunk_grid"]["configuration"]["chunk_shape"][0] = sharding["chunk_shape"][0] = 10**9
    sharding["codecs"].insert(1, {"name": "zstd", "configuration": {"level": 1, "checksum": False}})


def bomb(forger: Forger) -> None:
    """Kilobytes of Zstandard that are gigabytes of texts."""
    from numcodecs import Zstd  # type: ignore[import-untyped]

    codecs("images/error", [{"name": "vlen-utf8"}, {"name": "zstd", "configuration": {"level": 1}}])(forger)
    forger.write("images/error/c.0", Zstd(level=1).encode(bytes(1 << 28)))


def sparse(key: str, n_bytes: int) -> Forge:
    def make(forger: Forger) -> None:
        with (forger.path / key).open("r+b") as file:
            file.truncate(n_bytes)

    return make


def utf32(forger: Forger) -> None:
    def change(document: dict[str, Any]) -> None:
        document.update(
            data_type={"name": "fixed_length_utf32", "configuration": {"length_bytes": 4 * 10**6}},
            codecs=[{"name": "bytes", "configuration": {"endian": "little"}}],
        )

    forger.document("images/path/zarr.json", change)


def consolidated(forger: Forger) -> None:
    """Arrays that are described in the root, where no door would look at them."""
    array = json.loads((forger.path / "images/path/zarr.json").read_bytes())
    metadata = {"kind": "inline", "must_understand": False, "metadata": {"images/path": array}}
    forger.document("zarr.json", lambda document: document.update(consolidated_metadata=metadata))


def deep(forger: Forger) -> None:
    value: Any = 1
    for _ in range(500):
        value = [value]
    forger.attributes("tensors/grid/zarr.json", deep=value)


def column(name: str, value: Any) -> Forge:
    dtype, row_shape = COLUMNS[name]
    return lambda forger: forger.column(name, np.full((10, *row_shape), value, dtype))


def drop(key: str) -> Forge:
    return lambda forger: forger.drop(key)


TEXTS = [b"photo.jpg"] * TABLE_CHUNK
FORGERIES: dict[str, Forge] = {
    "chunk rows of 10^9": lambda forger: forger.document("tensors/grid/zarr.json", wide_rows),
    "a bomb of texts": bomb,
    "columns of wide characters": utf32,
    "consolidated metadata": consolidated,
    "codecs from elsewhere": codecs("rows/grid", [{"name": "bytes"}, {"name": "gzip", "configuration": {"level": 1}}]),
    "a group where an array is": lambda forger: forger.document(
        "rows/grid/zarr.json", lambda document: (document.clear(), document.update(node_type="group", zarr_format=3))
    ),
    "a column that no store has": lambda forger: forger.write(
        "images/extra/zarr.json", (forger.path / "images/path/zarr.json").read_bytes()
    ),
    "a sparse chunk of 50 GB": sparse("images/path/c.0", 50 << 30),
    "a sparse chunk of numbers": sparse("images/state/c.0", 1 << 28),
    "a sparse document": sparse("images/zarr.json", 50 << 30),
    "2^32 texts": lambda forger: forger.chunk("images/path/c.0", strings(TEXTS, n_items=(1 << 32) - 1)),
    "texts longer than the chunk": lambda forger: forger.chunk(
        "images/path/c.0", strings(TEXTS, lengths={TABLE_CHUNK - 1: (1 << 32) - 1})
    ),
    "texts that end too early": lambda forger: forger.chunk("images/path/c.0", strings(TEXTS)[:-20]),
    "texts of no characters": lambda forger: forger.chunk("images/path/c.0", strings([b"\xff\xfe"] * TABLE_CHUNK)),
    "a short chunk of numbers": lambda forger: forger.chunk("images/size/c.0.0", b"1234"),
    "a shape of 0": shape("tensors/grid", [10, 2, 2, 0]),
    "a negative shape": shape("images/state", [-1]),
    "a shape that is no number": shape("images/state", [10.0]),
    "a shape that is true": shape("images/state", [True]),
    "no shape": shape("images/state", []),
    "a shape of another tensor": shape("tensors/grid", [10, 2, 2, 7]),
    "10^30 rows": shape("images/state", [10**30]),
    "block_rows true": about(True),
    "block_rows 0": about(0),
    "block_rows negative": about(-4),
    "block_rows 10^9": about(10**9),
    "block_rows a text": about("4"),
    "block_rows of another store": about(8),
    "no block_rows": root(featstore={"format": 2}),
    "sums a list": root(sums=[1, 2]),
    "sums of numbers": root(sums={"images/path/c.0": 3}),
    "sums that are no digests": root(sums={"images/path/c.0": ["../../etc/passwd"]}),
    "sums of files elsewhere": root(sums={"images/../../../../etc/passwd": ["0123456789abcdef"]}),
    "sums of a parent": root(sums={"images/../c.0": ["0123456789abcdef"]}),
    "compress a document": tensor(compress={"zstd": 1}),
    "compress another": tensor(compress="lzma"),
    "no segments": tensor(segments=[]),
    "segments a number": tensor(segments=3),
    "another layout": tensor(layout="heap"),
    "dtype an object": tensor(dtype="object"),
    "another dtype": tensor(dtype="float64"),
    "provenance a text": tensor(provenance="yesterday"),
    "photos a number": tensor(provenance=[{"photos": 3}]),
    "replaced by a number": tensor(replaced_by=3),
    "missing a number": tensor(missing=[3]),
    "10^12 blocks": segment(blocks=10**12),
    "blocks true": segment(blocks=True),
    "a width of 0": segment(width=0),
    "10^9 copies": segment(copies=10**9),
    "a name that begins a line": segment(name="a\nerror: all is lost"),
    "weights a text": segment(identity={"weights": "x"}),
    "weights of nothing": segment(identity={"weights": {}}),
    "a view of nothing": segment(identity={"view": {"size": 3}}),
    "identity a list": segment(identity=[1]),
    "deep JSON": deep,
    "fewer paths than images": shape("images/path", [7]),
    "fewer digests than images": shape("images/digest", [7, 32]),
    "more images than all columns": shape("images/state", [12]),
    "a million images": shape("images/state", [10**6]),
    "states that no image has": column("state", 9),
    "photos of negative sizes": column("size", -5),
    "files of negative sizes": column("bytes", -5),
    "states that no row has": lambda forger: forger.chunk("rows/grid/c.0", bytes([9] * TABLE_CHUNK)),
    "paths off the list": drop("images/path/zarr.json"),
    "a group off the list": drop("rows/zarr.json"),
    "an array off the list": drop("tensors/grid/zarr.json"),
    "checksums off the list": drop("checksums/grid/c.0"),
}


@pytest.fixture(scope="module")
def looked_at(template: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """What opening, verifying and repairing say of each forgery, in a process with 3 GB."""
    folder = tmp_path_factory.mktemp("forged")
    for number, forge in enumerate(FORGERIES.values()):
        forge(Forger(shutil.copytree(template, folder / str(number))))
    command = [sys.executable, "-c", LIMITED, *map(str, folder.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    found: dict[str, dict[str, str]] = {}
    for line in done.stdout.splitlines():
        place, attempt, said = line.split("\t")
        found.setdefault(list(FORGERIES)[int(Path(place).name)], {})[attempt] = ast.literal_eval(said)
    return found


@pytest.mark.parametrize("name", FORGERIES)
def test_what_cannot_be_is_an_error_in_words(looked_at: dict[str, dict[str, str]], name: str) -> None:
    found = looked_at[name]
    assert not [said for said in found.values() if said.startswith("not ours")], found
    assert found["look"] != "fine", found
    assert found["verify"] != "True", found
    assert "repair" in found  # it ended


@pytest.mark.parametrize(
    "forge",
    [
        drop("rows/grid/c.0"),
        drop("images/path/c.0"),
        lambda forger: forger.document(
            "rows/grid/zarr.json", lambda document: document["attributes"]["segments"].reverse()
        ),
    ],
    ids=["record", "paths", "record of another tensor"],
)
def test_what_was_taken_out_or_does_not_agree_is_found_and_mended(path: Path, forge: Forge) -> None:
    """Such stores open: what they do not list is absent. Verifying sees that it cannot be."""
    before = {name: each.read(each.rows) for name, each in open_store(path).tensors.items()}
    forge(Forger(path))
    assert not verify(path).sound
    done = repair(path)
    assert done.changed
    assert verify(path).sound
    if not done.gone:
        assert all(
            np.array_equal(each.read(each.rows), before[name]) for name, each in open_store(path).tensors.items()
        )


def test_a_chunk_is_measured_before_it_is_decoded(path: Path) -> None:
    Forger(path).chunk("images/size/c.0.0", b"1234")
    with pytest.raises(
        DamagedError, match=r"size/c\.0\.0 is no chunk of a feature store \(it has 8 bytes, and \d+ are"
    ):
        len(open_store(path).images)


def test_a_record_that_is_gone_without_a_trace_is_told_of(path: Path) -> None:
    """It looks as if a writer had been killed before it wrote it; nothing in the store can say more."""
    Forger(path).drop("rows/grid/c.0")
    (path / "rows/grid/c.0").unlink()
    found = verify(path)
    assert found.sound
    assert ["no record vouches" in str(each) for each in found.findings] == [True]


def test_images_beyond_the_first_chunk_that_nothing_was_committed_for_are_no_damage(tmp_path: Path) -> None:
    path = tmp_path / "features.zarr"
    with Writer(path, block_rows=BLOCK_ROWS) as writer:
        n_images = TABLE_CHUNK + 1
        digests = np.arange(n_images * 32, dtype=np.uint8).reshape(-1, 32)
        writer.add_images(NewImages([f"{row}.jpg" for row in range(n_images)], digests, [1] * n_images, [1] * n_images))
        writer.ensure_tensor(CONCAT, "float16")
        commit(writer, 0, layouts=(CONCAT,))
    found = verify(path)
    assert found.sound, list(map(str, found.findings))


def test_a_store_that_lists_a_path_twice_is_not_merged(path: Path, tmp_path: Path) -> None:
    Forger(path).column("path", [f"photo {1 + row % 8}.jpg" for row in range(10)])
    assert not verify(path).sound
    with pytest.raises(DamagedError, match=r"lists 'photo 2\.jpg' twice"):
        merge([path], tmp_path / "mine.zarr")


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"[1]",
        b"[" * 5000,
        b'{"host": "h", "pid": 1, "since": "2026", "token": "t", "beat": null}',
        b'{"host": "h", "pid": 1, "since": "2026", "token": "t", "beat": NaN}',
        b'{"host": "h", "pid": 1, "since": "x\\nerror: all is lost", "token": "t", "beat": 1.0}',
        b'{"host": "h\\u001b[2J", "pid": 1, "since": "2026", "token": "t", "beat": 1.0}',
        b'{"host": "h", "pid": "1", "since": "2026", "token": "t", "beat": 1.0}',
    ],
)
def test_a_lock_record_that_cannot_be_says_nothing(path: Path, record: bytes) -> None:
    assert Holder.read(record) is None
    Path(f"{path}.lock.json").write_bytes(record)
    assert open_store(path).unfinished
    open_writer(path)
    assert not open_store(path).unfinished


def test_what_versions_of_zarr_write_in_several_ways_is_the_same(path: Path) -> None:
    """What is empty may be left out or not, and a codec without settings may be a name."""

    def change(document: dict[str, Any]) -> None:
        del document["storage_transformers"]
        document["codecs"] = [{"name": "vlen-utf8"}, {"name": "crc32c", "configuration": {}}]

    Forger(path).document("images/path/zarr.json", change)
    Forger(path).document("images/zarr.json", lambda document: document.update(consolidated_metadata=None))
    assert len(open_store(path).images) == 10
    assert verify(path).sound
