"""Sharing through Google Cloud Storage and Azure, as far as a machine without an account can tell.

Google is `gcs_server`, its XML API in memory. Azure is Azurite, Microsoft's emulator (npm install azurite): these tests
run where its `azurite-blob` is on the PATH or where FEATSTORE_AZURITE says.
"""

import base64
import hashlib
import hmac
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from featstore.errors import StoreError
from featstore.sharing.push_pull import pull, push
from featstore.sharing.remote import list_remote
from featstore.store import open_store
from featstore.store.places.repository import Repository

from ..conftest import free_port, wait_for
from .sharing_stores import check_sound, expected, held, make_store, photos

AZURITE = os.environ.get("FEATSTORE_AZURITE") or shutil.which("azurite-blob")
ACCOUNT = "devstoreaccount1"
KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="  # in its manual


@pytest.fixture(scope="module")
def google(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port, account = free_port(), tmp_path_factory.mktemp("google") / "account.json"
    facts = {"gcs_base_url": f"http://127.0.0.1:{port}", "disable_oauth": True, "client_email": "", "private_key": ""}
    account.write_text(json.dumps({**facts, "private_key_id": ""}))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GOOGLE_SERVICE_ACCOUNT", str(account))
        command = [sys.executable, "-m", "tests.featstore.sharing.gcs_server", str(port), "features"]
        with subprocess.Popen(command, cwd=Path(__file__).parents[3]) as server:
            try:
                wait_for(port)
                yield "gs://features"
            finally:
                server.terminate()


@pytest.fixture(scope="module")
def azure() -> Iterator[str]:
    if AZURITE is None:
        pytest.skip("Azurite is not here (npm install azurite; FEATSTORE_AZURITE=node_modules/.bin/azurite-blob)")
    port = free_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AZURE_STORAGE_ACCOUNT_NAME", ACCOUNT)
        patch.setenv("AZURE_STORAGE_ACCOUNT_KEY", KEY)
        patch.setenv("AZURE_STORAGE_ENDPOINT", f"http://127.0.0.1:{port}/{ACCOUNT}")
        patch.setenv("AZURE_ALLOW_HTTP", "true")
        command = [AZURITE, "--inMemoryPersistence", "--blobPort", str(port), "--skipApiVersionCheck", "--silent"]
        with subprocess.Popen([*command, "--disableTelemetry"], stdout=subprocess.DEVNULL) as server:
            try:
                wait_for(port)
                make_container(f"http://127.0.0.1:{port}/{ACCOUNT}/features")
                yield "az://features"
            finally:
                server.terminate()


def make_container(url: str) -> None:
    date, version = datetime.now(UTC).strftime("%a, %d %b %Y %H:%M:%S GMT"), "2021-08-06"
    head = f"x-ms-date:{date}\nx-ms-version:{version}\n/{ACCOUNT}/{ACCOUNT}/features\nrestype:container"
    signed = hmac.new(base64.b64decode(KEY), f"PUT{12 * chr(10)}{head}".encode(), hashlib.sha256).digest()
    headers = {"x-ms-date": date, "x-ms-version": version, "Content-Length": "0"}
    headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signed).decode()}"
    urlopen(Request(f"{url}?restype=container", method="PUT", headers=headers)).close()


@pytest.fixture(params=["google", "azure"])
def cloud(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "blocks"))
    return f"{request.getfixturevalue(request.param)}/{uuid.uuid4().hex}"


def test_what_one_pushes_another_pulls(cloud: str, tmp_path: Path) -> None:
    anna, ben = make_store(tmp_path / "anna.zarr", photos(0, 10)), tmp_path / "ben.zarr"
    with pytest.raises(StoreError, match="is not a shared repository"):
        list_remote(cloud)
    pushed = push(anna, cloud, message="all of it")
    assert pull(cloud, ben).n_bytes == pushed.n_bytes
    assert held(ben) == held(cloud) == expected(photos(0, 10))
    Repository(cloud).tag("v1")
    make_store(ben, photos(10, 12))
    push(ben, cloud, message="two more")
    assert len(open_store(f"{cloud}@v1").images) == 10
    assert len(open_store(cloud).images) == 12
    check_sound(ben)
    check_sound(cloud)


def test_two_transactions_on_one_version_do_not_both_become_the_next(cloud: str, tmp_path: Path) -> None:
    push(make_store(tmp_path / "anna.zarr", photos(0, 3)), cloud, message="the first")
    slow = Repository(cloud).begin()
    push(make_store(tmp_path / "ben.zarr", photos(3, 6)), cloud, message="the second")
    make_store(slow.location, photos(6, 9))
    with pytest.raises(StoreError, match="somebody else has just pushed"):
        slow.commit("too late", {})
    assert held(cloud) == expected(photos(0, 6))
    check_sound(cloud)


def test_a_plain_store_is_made_and_read(cloud: str, tmp_path: Path) -> None:
    make_store(cloud, photos(0, 3))
    assert held(cloud) == expected(photos(0, 3))
    with pytest.raises(StoreError, match="holds something that is no shared repository"):
        push(make_store(tmp_path / "x.zarr", photos(0, 3)), cloud, message="oops")


def test_azure_wants_to_know_the_account(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AZURE_STORAGE_ACCOUNT_NAME", "AZURE_STORAGE_ACCOUNT"):
        monkeypatch.delenv(name, raising=False)
    for ask in (open_store, Repository):
        with pytest.raises(StoreError, match="az://features/team: set AZURE_STORAGE_ACCOUNT_NAME to the account"):
            ask("az://features/team")
