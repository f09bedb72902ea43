"""A bucket whose server answers wrongly: an error in words, in little memory and time."""

import os
import resource
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import pytest

from featstore.errors import BrokenOffError, StoreError
from featstore.store import open_store, verify
from featstore.store.places import bucket, bucket_store

from ..real_size import SHARDS, large_keys, values

URL = "s3://features/store.zarr"
Answer = Callable[["_Handler", bytes], None]
"""Answers a request for a file, given its bytes, in a way of its own."""


class Server(ThreadingHTTPServer):
    """Enough of S3 to read a store, and to answer for some files as `answers` says."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.keys = {f"store.zarr/{key}": data for key, data in large_keys().items()}
        self.answers: dict[str, Answer] = {}
        self.n_listed = 0
        self.endless_list = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hung up is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        key = url.path.removeprefix("/features").lstrip("/")
        if "list-type" in parse_qs(url.query):
            query = parse_qs(url.query)
            self._list(query.get("prefix", [""])[0], "delimiter" in query)
        elif key not in self.server.keys:
            self.send(404, b"<Error><Code>NoSuchKey</Code></Error>")
        elif key.removeprefix("store.zarr/") in self.server.answers and self.command == "GET":
            self.server.answers[key.removeprefix("store.zarr/")](self, self.server.keys[key])
        else:
            self.part(self.server.keys[key])

    def asked(self, n_bytes: int) -> tuple[int, int] | None:
        text = self.headers.get("Range")
        if text is None:
            return None
        start, _, stop = text.removeprefix("bytes=").partition("-")
        if not start:
            return max(0, n_bytes - int(stop)), n_bytes
        return int(start), min(n_bytes, int(stop) + 1)

    def part(
        self, data: bytes, *, shift: int = 0, size: int | None = None, body: Callable[[bytes], bytes] = bytes
    ) -> None:
        """What was asked for, as S3 gives it; or something else."""
        span = self.asked(len(data))
        if span is None:
            self.send(200, body(data))
            return
        start, stop = span
        headers = {"Content-Range": f"bytes {start + shift}-{stop + shift - 1}/{size or len(data)}"}
        self.send(206, body(data[start:stop]), headers)

    def send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"ETag": '"a"', "Last-Modified": "Mon, 05 Jan 2026 00:00:00 GMT", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _list(self, prefix: str, of_folder: bool) -> None:
        self.server.n_listed += 1
        found = [key for key in sorted(self.server.keys) if key.startswith(prefix)]
        folders = {prefix + key[len(prefix) :].partition("/")[0] for key in found if "/" in key[len(prefix) :]}
        if of_folder:
            found = [key for key in found if "/" not in key[len(prefix) :]]
        items = "".join(
            f"<Contents><Key>{key}</Key><Size>{len(self.server.keys[key])}</Size><ETag>a</ETag>"
            "<LastModified>2026-01-05T00:00:00.000Z</LastModified></Contents>"
            for key in found
        )
        if of_folder:
            items += "".join(f"<CommonPrefixes><Prefix>{each}/</Prefix></CommonPrefixes>" for each in sorted(folders))
        more = "<NextContinuationToken>x</NextContinuationToken>" if self.server.endless_list else ""
        body = f"<ListBucketResult><IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}{items}</ListBucketResult>"
        self.send(200, body.encode(), {"Content-Type": "application/xml"})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.setenv("AWS_REGION", "us-east-1")
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
        monkeypatch.setattr(bucket, "RETRIES", {"max_retries": 1, "retry_timeout": timedelta(seconds=5)})
        monkeypatch.setattr(bucket_store, "LONG_PATIENCE_S", 2.0)
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def fails(handler: _Handler, data: bytes) -> None:
    handler.send(500, b"<Error><Code>InternalError</Code></Error>")


def says_nothing(handler: _Handler, data: bytes) -> None:
    time.sleep(8)


def drips(handler: _Handler, data: bytes) -> None:
    """A byte every tenth of a second, so that it never looks dead."""
    start, stop = handler.asked(len(data)) or (0, len(data))
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    for i in range(start, min(stop, start + 80)):
        handler.wfile.write(data[i : i + 1])
        handler.wfile.flush()
        time.sleep(0.1)


def never_ends(handler: _Handler, data: bytes) -> None:
    """In chunks, without saying how many: two gigabytes, if somebody takes them."""
    start, stop = handler.asked(len(data)) or (0, len(data))
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
    for _ in range(2000):
        handler.wfile.write(piece)


def breaks_off(handler: _Handler, data: bytes) -> None:
    start, stop = handler.asked(len(data)) or (0, len(data))
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {start}-{stop - 1}/{len(data)}")
    handler.send_header("Last-Modified", "Mon, 05 Jan 2026 00:00:00 GMT")
    handler.send_header("Content-Length", str(stop - start))
    handler.end_headers()
    handler.wfile.write(data[start : (start + stop) // 2])
    handler.close_connection = True
    handler.connection.close()


WRONG: dict[str, Answer] = {
    "an error": fails,
    "nothing": says_nothing,
    "drops": drips,
    "no end": never_ends,
    "half": breaks_off,
    "the whole file": lambda handler, data: handler.send(200, data),
    "other bytes than it says": lambda handler, data: handler.part(data, body=lambda part: bytes(len(part))),
    "other bytes, and says so": lambda handler, data: handler.part(data, shift=8),
    "more than it says": lambda handler, data: handler.part(data, body=lambda part: part + bytes(100)),
    "fewer than it says": lambda handler, data: handler.part(data, body=lambda part: part[:-8]),
    "an empty file": lambda handler, data: handler.send(206, b"", {"Content-Range": "bytes 0-0/0"}),
    "no answer at all": lambda handler, data: handler.connection.close(),
    "to ask elsewhere, for ever": lambda handler, data: handler.send(307, b"", {"Location": handler.path}),
}


@pytest.mark.parametrize("key", [SHARDS[0], "images/path/c.0", "tensors/big/zarr.json"])
@pytest.mark.parametrize("answer", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_answer_is_an_error_in_words_in_little_time_and_memory(
    server: Server, answer: Answer, key: str
) -> None:
    server.answers[key] = answer
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    words = ""
    try:
        found = open_store(URL)["big"].read([0, 1, 7])
    except StoreError as error:
        words = str(error)
    else:
        assert np.array_equal(found, values()[[0, 1, 7]])  # whatever it said, that is what is there
    assert not words or "features" in words
    assert time.perf_counter() - started < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_right_answer_is_none_of_these(server: Server) -> None:
    assert np.array_equal(np.asarray(open_store(URL)["big"]), values())
    assert verify(URL).sound


def test_a_document_of_gigabytes_is_not_fetched(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_store, "DOCUMENT_BYTES", 1000)
    with pytest.raises(StoreError, match=r"has .* kB, and at most 1\.0 kB are read at once"):
        open_store(URL)


def test_a_size_that_is_wrong_is_said(server: Server) -> None:
    server.answers[SHARDS[0]] = lambda handler, data: handler.part(data, size=50 << 30)
    with pytest.raises(StoreError, match=r"cannot be reached: .*Requested 5\d*\.\.5\d*, got 6\d*\.\.6\d*"):
        verify(URL)


def test_a_shard_of_50_gigabytes_is_told_as_damage_and_not_fetched(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.keys[f"store.zarr/{SHARDS[1]}"] = bytes(20 << 20)
    (finding,) = verify(URL).damage
    assert finding.what == "is damaged: it has 21.0 MB where 6.4 MB are the most that it can have"


def test_bytes_beyond_the_end_of_a_file_are_not_taken_for_fewer(server: Server) -> None:
    """As of a shard that was replaced by a shorter one after its index was read."""
    with bucket_store.BucketStore(URL).ranges.open(SHARDS[0], 1 << 30) as file:
        n_bytes = file.size()
        assert len(file.read(n_bytes - 4, n_bytes)) == 4
        with pytest.raises(BrokenOffError, match=rf"to {n_bytes} came where {n_bytes - 4} to {n_bytes + 4} were asked"):
            file.read(n_bytes - 4, n_bytes + 4)


def test_a_list_without_end_is_cut_off(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_store, "MAX_KEYS", 1000)
    server.endless_list = True
    with pytest.raises(StoreError, match="lists more than 1000 files"):
        verify(URL)
    assert server.n_listed < 200


def test_a_server_that_is_gone_is_said(server: Server) -> None:
    server.shutdown()
    server.server_close()
    with pytest.raises(StoreError, match=r"store\.zarr.* cannot be reached: nobody answers at that address"):
        open_store(URL)
