"""The locations that are promised to work, each through the whole of `conformance.py`."""

import os
import socket
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from zarr.abc.store import Store as ZarrStore
from zarr.storage import LocalStore, MemoryStore, ObjectStore, ZipStore

from featstore.errors import FormatError, StoreError
from featstore.store import open_store
from featstore.store.location import Place

pytest.register_assert_rewrite(f"{__package__}.conformance")

from .conformance import (  # noqa: E402
    Keys,
    MakePlace,
    PlaceWith,
    ReadingConformance,
    StoreConformance,
    Written,
    open_writer,
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


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """A bucket of a real S3 server on this machine, which the environment says how to reach."""
    import boto3

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        patch.setenv("AWS_ACCESS_KEY_ID", "key")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_REGION", "us-east-1")
        patch.setenv("AWS_ENDPOINT_URL", url)
        patch.setenv("AWS_ALLOW_HTTP", "true")
        command = [sys.executable, "-m", "moto.server", "-p", str(port)]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            try:
                wait_for(port)
                boto3.client("s3", endpoint_url=url, region_name="us-east-1").create_bucket(Bucket="features")
                yield "features"
            finally:
                server.terminate()


def wait_for(port: int) -> None:
    for _ in range(200):
        try:
            socket.create_connection(("127.0.0.1", port)).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError(f"no server came up on port {port}")


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
