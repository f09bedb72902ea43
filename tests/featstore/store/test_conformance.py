"""The locations that are promised to work, each through the whole of `conformance.py`."""

import os
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import icechunk
import numpy as np
import pytest
import zarr
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

from featstore.errors import FormatError, StoreError
from featstore.store import open_store, verify
from featstore.store.format.metadata import Compression
from featstore.store.places.locate import locate
from featstore.store.places.place import Place
from featstore.store.places.repository import Repository, Transaction

pytest.register_assert_rewrite(f"{__package__}.conformance")

from .conformance import (  # noqa: E402
    ORACLE,
    Keys,
    MakePlace,
    PlaceWith,
    ReadingConformance,
    StoreConformance,
    Written,
    contents,
    open_writer,
    put,
    write,
)


class TestFolder(StoreConformance):
    HELD_BY_THE_SYSTEM = True

    @pytest.fixture(scope="class")
    @classmethod
    def make_place(cls, tmp_path_factory: pytest.TempPathFactory) -> MakePlace:
        return lambda: tmp_path_factory.mktemp("place") / "features.zarr"

    @classmethod
    def zarr_store(cls, place: Place) -> ZarrStore:
        return LocalStore(Path(str(place)))

    @classmethod
    def kvstore(cls, place: Place, folder: str) -> dict[str, Any]:
        return {"driver": "file", "path": f"{place}/{folder}"}

    @classmethod
    def put_writer_record(cls, place: Place, record: bytes) -> None:
        Path(f"{place}.lock.json").write_bytes(record)


class TestMemory(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def make_place(cls) -> MakePlace:
        return MemoryStore

    def test_one_that_is_opened_for_reading_only_cannot_be_written(self) -> None:
        with pytest.raises(StoreError):
            open_writer(MemoryStore(read_only=True))


class TestBucket(StoreConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def make_place(cls, bucket: str) -> MakePlace:
        return lambda: f"s3://{bucket}/{uuid.uuid4().hex}/features.zarr"

    @classmethod
    def zarr_store(cls, place: Place) -> ZarrStore:
        from obstore.store import from_url

        return ObjectStore(from_url(str(place)))

    @classmethod
    def kvstore(cls, place: Place, folder: str) -> dict[str, Any]:
        bucket, _, path = str(place).removeprefix("s3://").partition("/")
        return {
            "driver": "s3",
            "bucket": bucket,
            "path": f"{path}/{folder}",
            "endpoint": os.environ["AWS_ENDPOINT_URL"],
            "aws_region": os.environ["AWS_REGION"],
            "aws_credentials": {"type": "environment"},
        }

    def test_a_bucket_that_is_not_there_is_said(self, bucket: str) -> None:
        with pytest.raises(StoreError, match=r"s3://no-such-bucket/features\.zarr"):
            open_writer("s3://no-such-bucket/features.zarr")


class TestRepository(ReadingConformance):
    """What was committed to a shared repository."""

    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def no_kept_blocks(cls) -> Iterator[None]:
        """Blocks that are kept on this machine would hide the damage."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FEATSTORE_BLOCKS_GB", "0")
            yield

    @pytest.fixture(scope="class")
    @classmethod
    def place_with(cls, tmp_path_factory: pytest.TempPathFactory) -> PlaceWith:
        def commit(keys: Keys) -> Place:
            transaction = begin(tmp_path_factory)
            store = transaction.location.zarr_store
            try:
                for key in sorted(keys, key=lambda key: (not key.endswith("zarr.json"), key.count("/"))):
                    put(store, key, keys[key])
                transaction.commit("a store", {})
            except (StoreError, ValueError, KeyError) as error:
                pytest.skip(f"Icechunk takes no such thing: {error}")
            return transaction.location.name

        return commit

    @classmethod
    def zarr_store(cls, place: Place) -> ZarrStore:
        return locate(place).zarr_store

    def test_it_cannot_be_written(self, written: Written) -> None:
        with pytest.raises(StoreError, match="is a shared repository: it changes only by `featstore push"):
            open_writer(written.place)

    def test_plain_zarr_reads_the_session_of_icechunk_itself(self, written: Written) -> None:
        session = icechunk.Repository.open(icechunk.local_filesystem_storage(str(written.place))).readonly_session(
            "main"
        )
        found: Any = zarr.open_group(session.store, mode="r", zarr_format=3)["tensors/grid"]
        assert np.array_equal(found[:], ORACLE["grid"], equal_nan=True)

    @pytest.mark.parametrize("compress", [None, "zstd"], ids=["uncompressed", "zstd"])
    def test_a_transaction_is_written_as_any_store_and_holds_the_same_bytes(
        self, tmp_path_factory: pytest.TempPathFactory, compress: Compression | None
    ) -> None:
        transaction = begin(tmp_path_factory)
        here = write(transaction.location, transaction.location.zarr_store, compress)
        memory = MemoryStore()
        assert here.after == write(memory, memory, compress).after
        transaction.commit("written", {})
        committed = locate(transaction.location.name)
        assert contents(committed.zarr_store) == here.after
        assert verify(committed).sound


def begin(tmp_path_factory: pytest.TempPathFactory) -> Transaction:
    repository = Repository(tmp_path_factory.mktemp("shared") / "team")
    repository.create()
    return repository.begin()


@pytest.mark.parametrize("how", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED], ids=["stored", "deflated"], scope="class")
class TestZipFile(ReadingConformance):
    @pytest.fixture(scope="class")
    @classmethod
    def place_with(cls, tmp_path_factory: pytest.TempPathFactory, how: int) -> PlaceWith:
        def pack(keys: Keys) -> Path:
            path = tmp_path_factory.mktemp("zip") / "features.zip"
            with zipfile.ZipFile(path, "w", how) as file:
                for key, data in keys.items():
                    file.writestr(key, data)
            return path

        return pack

    @classmethod
    def zarr_store(cls, place: Place) -> ZarrStore:
        return ZipStore(Path(str(place)), mode="r")

    @classmethod
    def kvstore(cls, place: Place, folder: str) -> dict[str, Any]:
        return {"driver": "zip", "base": {"driver": "file", "path": str(place)}, "path": folder}

    def test_it_cannot_be_written(self, written: Written) -> None:
        before = Path(str(written.place)).read_bytes()
        with pytest.raises(StoreError, match="is a zip file, which can only be read; unpack it to go on writing"):
            open_writer(written.place)
        assert Path(str(written.place)).read_bytes() == before

    def test_a_file_that_is_called_zip_and_is_none(self, tmp_path: Path, how: int) -> None:
        file = tmp_path / "features.zip"
        file.write_text("my thesis")
        with pytest.raises(FormatError, match=r"features\.zip"):
            open_store(file)
