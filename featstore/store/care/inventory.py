"""The files that a store should have, worked out from those that are whole.

Verifying and repairing start here. Nothing here trusts the store to open: files are looked at one by one, as bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import google_crc32c
from zarr.core.sync import sync

from featstore.errors import FormatError
from featstore.store.format.images import COLUMNS
from featstore.store.format.integrity import (
    DOCUMENT,
    FORMAT,
    MISSING,
    committed_tensors,
    digest_of,
    excess,
    is_chunk,
    is_listed,
    read_document,
    write_document,
)
from featstore.store.format.limits import TABLE_CHUNK, check_block, check_length
from featstore.store.format.making import skeleton
from featstore.store.format.metadata import BLOCK_ROWS, PARTS, TensorFacts, check_chunk, check_strings
from featstore.store.places.place import Location

OUTDATED = 3  # files that are newer than the list: a commit writes at least so many


@dataclass
class Inventory:
    """The parts of a store: which are there, which are whole, which there should be.

    Raises:
        FormatError: nothing of it looks like a store of this format.
    """

    location: Location
    keys: frozenset[str] = field(init=False)
    """Every file that is there."""
    documents: dict[str, dict[str, Any]] = field(init=False, default_factory=dict)
    """The `zarr.json` files that are whole."""
    broken_documents: dict[str, str] = field(init=False, default_factory=dict)
    """What is wrong with the others."""

    def __post_init__(self) -> None:
        self.keys = frozenset(self.location.keys())
        self._read_documents()
        if self._is_outdated:
            del self.documents[DOCUMENT]
            why = "it is an older one: what it lists is older than what is there"
            self.broken_documents = {DOCUMENT: why, **self._read_documents(without_root=True)}
        about = self.documents.get(DOCUMENT, {}).get("attributes", {}).get("featstore", {"format": FORMAT})
        if "images/path/zarr.json" not in self.keys and "images/state/zarr.json" not in self.keys:
            raise FormatError(f"{self.location.name} is not a feature store")
        if not isinstance(about, Mapping) or about.get("format") != FORMAT:
            raise FormatError(f"{self.location.name} is not a store of format version {FORMAT}")
        self._compare_twins()
        for name, facts in self.tensors.items():
            where = f"{self.location.name}: tensor {name!r}"
            check_block(self.block_rows, facts.layout.row_bytes(facts.dtype), where)

    def _compare_twins(self) -> None:
        """Sort out columns that have fewer rows than the table, and records that describe another tensor.

        A tensor may have fewer: it grows when rows are written to it.
        """
        for key in [key for key in self.documents if key.count("/") == 2]:
            kind, name, _ = key.split("/")
            document = self.documents[key]
            why = ""
            if kind == "images" and (n_rows := document["shape"][0]) < self.n_rows:
                why = f"it has {n_rows} rows, and the store {self.n_rows}"
            elif kind == "rows":
                array = self.documents.get(f"tensors/{name}/{DOCUMENT}", document)
                try:
                    if TensorFacts.of(name, document["attributes"]) != TensorFacts.of(name, array["attributes"]):
                        why = f"it describes another tensor than tensors/{name}"
                except FormatError as error:
                    why = str(error)
            if why:
                del self.documents[key]
                self.broken_documents[key] = why

    def _read_documents(self, *, without_root: bool = False) -> dict[str, str]:
        """Sort the documents into those that are whole and those that are not, the root first: it lists the others."""
        keys = {key for key in self.keys if key.endswith(DOCUMENT) and not _is_hidden(key)}
        self.broken_documents = {}
        for key in sorted(keys, key=lambda key: (key != DOCUMENT, key)):
            listed = self._listed
            if key == DOCUMENT and without_root:
                continue
            if key != DOCUMENT and listed and key not in listed:
                continue  # a killed writer had begun to make or to remove this
            data = self._read(key) or b""
            try:
                document = read_document(key, data, None if key == DOCUMENT else self._root_block_rows)
                if write_document(key, document) != data:
                    raise ValueError("it is written otherwise than featstore writes")
                if key != DOCUMENT and listed and digest_of(data) not in listed[key]:
                    raise ValueError("it is whole, but not the one that was written last")
            except (ValueError, FormatError) as error:
                self.broken_documents[key] = str(error)
            else:
                self.documents[key] = document
        return self.broken_documents

    @property
    def _is_outdated(self) -> bool:
        """Whether the root is older than the rest: several files are whole, and the list has never heard of them.

        A file that was put back from an older copy, or two that changed places, are fewer, or on the list elsewhere.
        """
        listed = self._listed
        known = {digest for digests in listed.values() for digest in digests}
        news = 0
        for key in self.keys if listed else ():
            if is_listed(key) and not _is_hidden(key):
                data = self._read(key) or b""
                news += digest_of(data) not in known and _looks_whole(key, data)
        return news >= OUTDATED

    def _read(self, key: str) -> bytes | None:
        """A document or a chunk; nothing if it is larger than one can be."""
        return b"" if sync(excess(self.location.zarr_store, key)) else self.location.read(key)

    @cached_property
    def n_rows(self) -> int:
        """How many images the store lists: the length of `state`, or else of the shortest column."""
        lengths = {name: self.documents[f"images/{name}/{DOCUMENT}"]["shape"][0] for name in COLUMNS if self._has(name)}
        n_rows = int(lengths.get("state", min(lengths.values(), default=0)))
        # Of a column that is lost there may be fewer: one that is there has them all.
        n_chunks = max(sum(key.startswith(f"images/{name}/c.") for key in self.keys) for name in COLUMNS)
        check_length(n_rows, n_chunks, TABLE_CHUNK, self.location.name)
        return n_rows

    @cached_property
    def tensors(self) -> dict[str, TensorFacts]:
        """What describes each tensor, from its array or from its record, which repeats it."""
        found = {}
        for key in sorted(self.documents):
            kind, _, rest = key.partition("/")
            name, _, last = rest.partition("/")
            if kind not in ("tensors", "rows") or last != DOCUMENT or name in found or not self._is_whole(name):
                continue
            twin = self.documents.get(f"rows/{name}/{DOCUMENT}", self.documents[key])
            document = self.documents.get(f"tensors/{name}/{DOCUMENT}", twin)
            found[name] = TensorFacts.of(name, document["attributes"])
        return found

    @cached_property
    def block_rows(self) -> int:
        if (n_rows := self._root_block_rows) is not None:
            return n_rows
        for name in self.tensors:
            if document := self.documents.get(f"tensors/{name}/{DOCUMENT}"):
                return int(document["chunk_grid"]["configuration"]["chunk_shape"][0])
        return BLOCK_ROWS

    @property
    def _root_block_rows(self) -> int | None:
        about = self.documents.get(DOCUMENT, {}).get("attributes", {}).get("featstore", {})
        return about.get("block_rows") if isinstance(about, dict) and about.get("format") == FORMAT else None

    @cached_property
    def expected_documents(self) -> dict[str, bytes]:
        """By key, what each `zarr.json` would be in a new store like this one; the root comes last."""
        return skeleton(block_rows=self.block_rows, n_rows=self.n_rows, tensors=list(self.tensors.values()))

    @property
    def _listed(self) -> dict[str, list[str]]:
        """The root's list of digests; nothing if the root is lost."""
        return dict(self.documents.get(DOCUMENT, {}).get("attributes", {}).get("sums", {}))

    @cached_property
    def sums(self) -> dict[str, list[str]]:
        """The list of digests; if the root is lost, that of the files that look whole."""
        if DOCUMENT in self.documents:
            return self._listed
        found = {key: [digest_of(write_document(key, document))] for key, document in self.documents.items()}
        for key in sorted(key for key in self.keys if is_chunk(key) and not _is_hidden(key)):
            data = self._read(key) or b""
            if _looks_whole(key, data):
                found[key] = [digest_of(data)]
        return found

    @cached_property
    def broken_chunks(self) -> dict[str, str]:
        """Chunks of the small arrays that are not what the list says, and what is wrong with them."""
        broken = {}
        for key, known in self.sums.items():
            if not is_chunk(key):
                continue
            data = self._read(key)
            half_repaired = known == [MISSING]  # a repair was killed
            if half_repaired or digest_of(data) not in known or not _fits(key, data):
                broken[key] = "is missing" if data is None else "is not what was written last"
        unlisted = self._expected_chunks - set(self.sums)
        return broken | {key: "is damaged" if key in self.keys else "is missing" for key in sorted(unlisted)}

    @property
    def _expected_chunks(self) -> set[str]:
        """Chunks that have to be there.

        A record is listed before it is written, its checksums with it. So what is there and not listed was taken off
        the list. What is neither there nor listed may never have been written.
        """
        n_chunks = -(-self.n_rows // TABLE_CHUNK)
        expected = {
            f"images/{name}/c.{i}" + ".0" * len(shape) for name, (_, shape) in COLUMNS.items() for i in range(n_chunks)
        }
        for name, facts in self.tensors.items():
            for i in range(n_chunks):
                record, checksums = pair = f"rows/{name}/c.{i}", f"checksums/{name}/c.{i}"
                if record in self.sums or record in self.keys:
                    expected |= {*pair}
                elif checksums in self.keys:
                    expected.add(checksums)
                elif DOCUMENT not in self.documents:  # the list is lost, and what is damaged is not on ours
                    rows = rows_of_chunk(record, self.n_rows)
                    blocks = range(rows.start // self.block_rows, -(-rows.stop // self.block_rows))
                    if any(facts.layout.shard_key(block) in self.keys for block in blocks):
                        expected |= {*pair}
        return expected

    @cached_property
    def unrecorded(self) -> list[str]:
        """Chunks of checksums whose rows no record says anything of."""
        return sorted(
            key
            for key in self.sums
            if key.startswith("checksums/") and is_chunk(key) and key.split("/")[1] in self.tensors
            if key.replace("checksums/", "rows/", 1) not in {*self.sums, *self._expected_chunks}
        )

    @cached_property
    def leftovers(self) -> list[str]:
        """Files that nothing in the store refers to."""
        kept = {*self.expected_documents, *(key for key in self.sums if not self._is_half_made(key))}
        for facts in self.tensors.values():
            kept |= {facts.layout.shard_key(block) for block in range(self.n_blocks)}
        return sorted(self.keys - kept)

    @property
    def n_blocks(self) -> int:
        return -(-self.n_rows // self.block_rows)

    @cached_property
    def half_made(self) -> set[str]:
        """Tensors that a killed writer had begun to make."""
        named = {key.split("/")[1] for key in self.keys if key.partition("/")[0] in PARTS and key.count("/") > 1}
        return named - set(self.tensors) - committed_tensors(self.sums)

    def _is_half_made(self, key: str) -> bool:
        return key.partition("/")[0] in PARTS and key.count("/") > 1 and key.split("/")[1] in self.half_made

    def _is_whole(self, name: str) -> bool:
        """Whether a tensor was ever finished being made: all its parts are there, or something was committed."""
        return name in committed_tensors(self.sums) or all(
            f"{part}/{name}/{DOCUMENT}" in self.documents for part in PARTS
        )

    def _has(self, column: str) -> bool:
        return f"images/{column}/{DOCUMENT}" in self.documents


def rows_of_chunk(key: str, n_rows: int) -> range:
    """The rows that a chunk of a small array is about."""
    first = int(key.rpartition("/")[2].split(".")[1]) * TABLE_CHUNK
    return range(first, min(first + TABLE_CHUNK, n_rows))


def _looks_whole(key: str, data: bytes) -> bool:
    """Whether a file's own checksum is right, whatever the list says."""
    if is_chunk(key):
        return bool(google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little"))
    try:
        read_document(key, data)
    except ValueError:
        return False
    return True


def _fits(key: str, data: bytes | None) -> bool:
    try:
        check_chunk(key, data or b"")
        check_strings(key, data or b"")
    except ValueError:
        return data is None  # announced, and not written yet
    return True


def _is_hidden(key: str) -> bool:
    return key.rpartition("/")[2].startswith(".")
