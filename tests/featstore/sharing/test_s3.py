"""Sharing through an S3 server on this machine, over a connection that fails in every way that connections do."""

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from featstore.errors import StoreError
from featstore.sharing import push_pull
from featstore.sharing.push_pull import pull, push
from featstore.sharing.remote import list_remote
from featstore.sharing.selection import Selection
from featstore.store import open_store
from featstore.store.places import network
from featstore.store.places.repository import Repository

from .sharing_stores import check_sound, expected, held, make_store, photos

Trouble = Callable[["Proxy", int], bool]
"""What becomes of the n-th request; True if nothing more is to be done about it."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FEATSTORE_BLOCKS", str(tmp_path / "blocks"))


@pytest.fixture
def team(bucket: str) -> str:
    return f"s3://{bucket}/{uuid.uuid4().hex}"


@pytest.fixture
def anna(tmp_path: Path) -> Path:
    make_store(tmp_path / "anna.zarr", photos(0, 10))
    return tmp_path / "anna.zarr"


# ---- a bucket is a repository like a folder


def test_what_one_pushes_to_a_bucket_another_pulls(anna: Path, tmp_path: Path, team: str) -> None:
    with pytest.raises(StoreError, match="is not a shared repository"):
        list_remote(team)
    pushed = push(anna, team, message="all of it")
    assert pull(team, tmp_path / "ben.zarr").n_bytes == pushed.n_bytes
    assert held(tmp_path / "ben.zarr") == held(team) == expected(photos(0, 10))
    Repository(team).tag("v1")
    make_store(tmp_path / "ben.zarr", photos(10, 12))
    push(tmp_path / "ben.zarr", team, message="two more")
    assert len(open_store(f"{team}@v1").images) == 10
    assert len(open_store(team).images) == 12
    check_sound(tmp_path / "ben.zarr")
    check_sound(team)


def test_no_secret_is_kept_in_the_repository(anna: Path, team: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-very-secret-key")
    push(anna, team, message="all of it")
    for data in objects(team).values():
        assert b"a-very-secret-key" not in data
        assert os.environ["AWS_ENDPOINT_URL"].encode() not in data
    with pytest.raises(StoreError, match="a URL holds no user name or password") as caught:
        push(anna, "s3://anna:hunter2@features/team", message="oops")
    assert "hunter2" not in str(caught.value)


def test_a_plain_store_in_a_bucket_is_still_one(tmp_path: Path, team: str) -> None:
    make_store(team, photos(0, 3))
    assert sorted(held(team)) == photos(0, 3)
    with pytest.raises(StoreError, match="holds something that is no shared repository"):
        push(make_store(tmp_path / "x.zarr", photos(0, 3)), team, message="oops")


@pytest.mark.usefixtures("bucket")
def test_what_cannot_be_reached_is_said_in_words(anna: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StoreError, match="s3://no-such-bucket/team cannot be reached: there is no such bucket"):
        push(anna, "s3://no-such-bucket/team", message="all of it")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(StoreError, match="s3://features/team cannot be reached: nobody answers at that address"):
        open_store("s3://features/team")
    monkeypatch.delenv("AWS_ENDPOINT_URL")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:1/169.254.169.254")  # of a machine in the cloud
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
        with pytest.raises(StoreError, match=r"s3://features/team cannot be (opened|reached): no credentials are set"):
            open_store("s3://features/team")


# ---- races


PUSHER = """
import sys, json
from pathlib import Path
from featstore.sharing import push_pull
from featstore.sharing.push_pull import push
from featstore.sharing.selection import Selection
push_pull.COMMIT_BYTES = 1
store, team, go = sys.argv[1:]
while not Path(go).exists():
    pass
moved = push(store, team, message=f"by {Path(store).name}")
print(json.dumps([moved.n_rows, len(moved.snapshots), moved.n_overtaken]))
"""


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_two_pushers_in_a_race_of_twenty_commits_both_succeed(tmp_path: Path, team: str, where: str) -> None:
    remote = team if where == "bucket" else str(tmp_path / "team")
    stores = [make_store(tmp_path / "anna.zarr", photos(0, 43)), make_store(tmp_path / "ben.zarr", photos(37, 80))]
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), remote, message="the first")
    command = [sys.executable, "-W", "error", "-c", PUSHER]
    racers = [
        subprocess.Popen([*command, str(store), remote, str(tmp_path / "go")], stdout=subprocess.PIPE, text=True)
        for store in stores
    ]
    time.sleep(2)
    (tmp_path / "go").touch()
    results = [json.loads(racer.communicate(timeout=120)[0]) for racer in racers]
    assert [racer.returncode for racer in racers] == [0, 0]
    rows, commits, overtaken = map(list, zip(*results, strict=True))
    assert sum(rows) == 2 * 80
    assert sum(commits) >= 20
    assert sum(overtaken) > 0
    assert held(remote) == expected([*photos(0, 80), *photos(100, 101)])
    assert len(list(Repository(remote).history())) == 1 + sum(commits)
    check_sound(remote)


@pytest.mark.parametrize("where", ["bucket", "folder"])
def test_two_who_make_a_repository_at_once_both_succeed(tmp_path: Path, team: str, where: str) -> None:
    remote = team if where == "bucket" else str(tmp_path / "team")
    stores = [make_store(tmp_path / f"{i}.zarr", photos(5 * i, 5 * i + 5)) for i in range(3)]
    errors: list[BaseException] = []

    def run(store: object) -> None:
        try:
            push(store, remote, message="me first")  # type: ignore[arg-type]
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(store,)) for store in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert held(remote) == expected(photos(0, 15))
    check_sound(remote)


# ---- a process that dies

KILLED = """
import sys
from featstore.sharing import push_pull, transfer
from featstore.sharing.push_pull import pull, push
push_pull.COMMIT_BYTES = transfer.RECORD_BYTES = 1
def count(stage, done, total):
    print(done, flush=True)
if sys.argv[1] == "pull":
    pull(sys.argv[2], sys.argv[3], on_progress=count)
else:
    push(sys.argv[2], sys.argv[3], message="killed", on_progress=count)
"""


@pytest.mark.parametrize("after", [1, 3, 5])
@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_transfer_that_is_killed_goes_on(tmp_path: Path, way: str, after: int) -> None:
    team, ben = str(tmp_path / "team"), tmp_path / "ben.zarr"
    anna = make_store(tmp_path / "anna.zarr", photos(0, 40))
    push(anna, team, message="one", selection=Selection(rows=["photo 0.jpg"]))
    if way == "pull":
        push(anna, team, message="forty")
    there = (team, str(ben)) if way == "pull" else (str(anna), team)
    command = [sys.executable, "-c", KILLED, way, *there]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        process.kill()
    target = ben if way == "pull" else team
    store = open_store(target)
    n_before = len(store["grid"].rows)
    assert n_before >= 2 * (after - 1)
    store["grid"].read(store["grid"].rows)
    assert verify_sound(target)
    moved = pull(team, ben) if way == "pull" else push(anna, team, message="the rest")
    assert moved.n_rows == 2 * (40 - n_before)
    assert held(target) == expected(photos(0, 40))
    check_sound(target)


def verify_sound(place: object) -> bool:
    from featstore.store import verify

    return verify(place).sound  # type: ignore[arg-type]


# ---- a server that fails


class Proxy(BaseHTTPRequestHandler):
    """Hands requests on to the real server, unless there is trouble."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: "ProxyServer"

    def handle_one(self) -> None:
        self.body = body = self.read_body()
        with self.server.lock:
            self.server.n_requests += 1
            number = self.server.n_requests
        if self.server.trouble(self, number):
            return
        status, headers, data = self.ask(body)
        self.answer(status, headers, data)

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815

    def read_body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def ask(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = HTTPConnection("127.0.0.1", self.server.behind, timeout=30)
        connection.request(self.command, self.path, body, dict(self.headers))
        response = connection.getresponse()
        data = response.read()
        headers = dict(response.getheaders())
        connection.close()
        return response.status, headers, data

    def answer(self, status: int, headers: dict[str, str], data: bytes, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "server", "date"):
                self.send_header(name, value)
        length = (
            headers.get("content-length", headers.get("Content-Length", "0")) if self.command == "HEAD" else len(data)
        )
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        self.wfile.flush()
        if cut:
            self.close_connection = True

    def log_message(self, *_: object) -> None:
        return


class ProxyServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, behind: int) -> None:
        super().__init__(("127.0.0.1", 0), Proxy)
        self.behind, self.n_requests, self.lock = behind, 0, threading.Lock()
        self.released = threading.Event()
        self.trouble: Trouble = lambda proxy, number: False

    def handle_error(self, request: object, client_address: object) -> None:
        return


@pytest.fixture
def proxy(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProxyServer]:
    server = ProxyServer(int(os.environ["AWS_ENDPOINT_URL"].rpartition(":")[2]))
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield server
    server.released.set()
    server.shutdown()
    server.server_close()
    thread.join()


def failing(status: int) -> Trouble:
    def answer(proxy: Proxy, number: int) -> bool:
        if number % 4:
            return False
        proxy.answer(status, {}, b"")
        return True

    return answer


def hanging_up(proxy: Proxy, number: int) -> bool:
    if number % 4:
        return False
    proxy.close_connection = True
    proxy.connection.close()
    return True


def half_bodies(proxy: Proxy, number: int) -> bool:
    if number % 4 or proxy.command != "GET":
        return False
    status, headers, data = proxy.ask(b"")
    proxy.answer(status, headers, data, cut=True)
    return True


TROUBLES = {"500": failing(500), "503": failing(503), "hanging up": hanging_up, "half bodies": half_bodies}


@pytest.mark.parametrize("trouble", TROUBLES.values(), ids=TROUBLES.keys())
def test_a_server_that_fails_now_and_then_is_asked_again(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer, trouble: Trouble
) -> None:
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), team, message="in good weather")
    proxy.trouble = trouble
    push(anna, team, message="all of it")
    pull(team, tmp_path / "ben.zarr")
    proxy.trouble = lambda *_: False
    assert held(tmp_path / "ben.zarr") == held(team) == expected([*photos(0, 10), *photos(100, 101)])
    check_sound(tmp_path / "ben.zarr")
    check_sound(team)
    assert proxy.n_requests > 20


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "PATIENCE_S", 1.0)
    monkeypatch.setattr(network, "LONG_PATIENCE_S", 1.0)
    monkeypatch.setenv("AWS_TIMEOUT", "1s")  # obstore's


def silent(proxy: Proxy, number: int) -> bool:
    """The request is taken, and nothing is ever said."""
    proxy.server.released.wait()
    proxy.close_connection = True
    return True


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("done", [False, True], ids=["before it did it", "after it did it"])
def test_a_server_that_once_says_nothing_to_each_kind_of_request_is_asked_again(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch, done: bool
) -> None:
    monkeypatch.setattr(network, "TRIES", 10)  # one question is requests of many kinds, and so is one commit
    monkeypatch.setattr(push_pull, "BROKEN_TRIES", 20)
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), team, message="in good weather")
    kinds: set[tuple[str, str]] = set()

    def once(proxy: Proxy, number: int) -> bool:
        kind = proxy.command, [*proxy.path.partition("?")[0].split("/"), "the bucket"][3]  # such as PUT manifests
        with proxy.server.lock:
            is_new = kind not in kinds
            kinds.add(kind)
        if is_new and done:
            proxy.ask(proxy.body)
        return is_new and silent(proxy, number)

    proxy.trouble = once
    moved = push(anna, team, message="all of it")
    assert (moved.n_rows, moved.n_images) == (20, 10)  # also of a commit that was made and not answered
    assert [each.snapshot for each in Repository(team).history() if each.message == "all of it"] == moved.snapshots[
        ::-1
    ]
    pushing = set(kinds)
    kinds.clear()  # the one who pulls meets each of them as well
    pull(team, tmp_path / "ben.zarr")
    proxy.trouble = lambda *_: False
    kinds |= pushing
    branch = "refs" if ("PUT", "refs") in kinds else "repo"  # of Icechunk's format 1, of its format 2
    for folder in ("chunks", "manifests", "snapshots", branch):
        assert {("PUT", folder), ("GET", folder)} < kinds
    assert held(tmp_path / "ben.zarr") == held(team) == expected([*photos(0, 10), *photos(100, 101)])
    check_sound(tmp_path / "ben.zarr")
    check_sound(team)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_says_nothing_any_more_is_an_error(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    push(anna, team, message="in good weather")
    repository = Repository(team)
    assert list(repository.history())
    proxy.trouble = silent
    with monkeypatch.context() as patch:
        patch.setattr(network, "TRIES", 2)
        with pytest.raises(StoreError, match=f"{team} cannot be reached: no answer came within 1 s"):
            repository.begin()
    proxy.trouble = lambda *_: False
    assert pull(team, tmp_path / "ben.zarr").n_rows == 20
    check_sound(tmp_path / "ben.zarr")


def test_a_bucket_that_may_not_be_written_is_said_and_nothing_is_changed(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer
) -> None:
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), team, message="with permission")
    before = objects(team)

    def forbid(proxy: Proxy, number: int) -> bool:
        if proxy.command in ("GET", "HEAD"):
            return False
        proxy.answer(403, {"content-type": "application/xml"}, b"<Error><Code>AccessDenied</Code></Error>")
        return True

    proxy.trouble = forbid
    with pytest.raises(StoreError, match=rf"{team} cannot be reached: .*(denied|Denied|403)"):
        push(anna, team, message="without")
    assert objects(team) == before
    pull(team, tmp_path / "ben.zarr")  # reading is allowed
    check_sound(tmp_path / "ben.zarr")


def test_a_connection_cut_in_the_middle_of_a_push_leaves_what_was_committed(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_pull, "COMMIT_BYTES", 1)
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), team, message="before")

    def cut(stage: str, done: int, total: int) -> None:
        if done >= 2:
            proxy.trouble = failing_always

    def failing_always(proxy: Proxy, number: int) -> bool:
        proxy.answer(503, {}, b"")
        return True

    with pytest.raises(StoreError, match="cannot be reached"):
        push(anna, team, message="cut off", on_progress=cut)
    proxy.trouble = lambda *_: False
    check_sound(team)
    n_there = len(open_store(team)["grid"].rows)
    moved = push(anna, team, message="the rest")
    assert moved.n_rows == 2 * (11 - n_there) > 0
    assert held(team) == expected([*photos(0, 10), *photos(100, 101)])
    check_sound(team)


def test_an_old_branch_that_the_server_says_again_loses_nothing(
    anna: Path, tmp_path: Path, team: str, proxy: ProxyServer
) -> None:
    """A stale read: the server answers with what the branch was before."""
    push(make_store(tmp_path / "zoe.zarr", photos(100, 101)), team, message="before")
    stale: list[tuple[int, dict[str, str], bytes]] = []

    def remember(proxy: Proxy, number: int) -> bool:
        if proxy.command == "GET" and proxy.path.partition("?")[0].endswith("ref.json"):
            if not stale:
                stale.append(proxy.ask(b""))
            elif len(stale) < 3:
                stale.append(stale[0])
                proxy.answer(*stale[0])
                return True
        return False

    proxy.trouble = remember
    assert len(open_store(team).images) == 1
    push(make_store(tmp_path / "ben.zarr", photos(20, 24)), team, message="ben's")
    moved = push(anna, team, message="anna's")
    assert moved.n_rows == 20
    proxy.trouble = lambda *_: False
    assert held(team) == expected([*photos(0, 10), *photos(20, 24), *photos(100, 101)])
    check_sound(team)


def objects(team: str) -> dict[str, bytes]:
    import obstore

    from featstore.store.places.bucket import open_bucket

    store = open_bucket(team)
    return {
        each["path"]: bytes(obstore.get(store, each["path"]).bytes()) for page in obstore.list(store) for each in page
    }
