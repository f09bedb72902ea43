"""What featstore uses of Google Cloud Storage, in memory: its XML API, of which no emulator can be installed with pip.

python -m tests.featstore.sharing.gcs_server PORT BUCKET
"""

import hashlib
import sys
import threading
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape


class Bucket(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Server"

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers.get("content-length", 0)))
        with self.server.lock:
            now = self.server.objects.get(self.key, (0, b""))[0]
            wanted = self.headers.get("x-goog-if-generation-match")
            if wanted is not None and int(wanted) != now:
                return self.say(412)
            self.server.generation += 1
            self.server.objects[self.key] = self.server.generation, data
            return self.say(200, about=self.server.objects[self.key])

    def do_GET(self) -> None:
        if not self.key:
            return self.list_objects()
        found = self.server.objects.get(self.key)
        if found is None:
            return self.say(404)
        start, _, end = self.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")
        size = len(found[1])
        if not start:  # the last so many bytes
            start, end = str(max(0, size - int(end))), ""
        first, last = int(start), min(int(end or size), size - 1)
        if "range" not in self.headers:
            return self.say(200, found[1], about=found)
        return self.say(206, found[1][first : last + 1], about=found, span=f"bytes {first}-{last}/{size}")

    do_HEAD = do_GET  # noqa: N815

    def do_DELETE(self) -> None:
        with self.server.lock:
            self.say(404 if self.server.objects.pop(self.key, None) is None else 204)

    def list_objects(self) -> None:
        asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        prefix, delimiter = asked.get("prefix", ""), asked.get("delimiter", "")
        entries: set[str] = set()
        for key, (generation, data) in sorted(self.server.objects.items()):
            if key.startswith(prefix) and key > asked.get("start-after", ""):
                folder, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
                about = f"<Size>{len(data)}</Size><LastModified>2026-01-01T00:00:00.000Z</LastModified>"
                entries.add(
                    f"<CommonPrefixes><Prefix>{escape(prefix + folder + cut)}</Prefix></CommonPrefixes>"
                    if cut
                    else f'<Contents><Key>{escape(key)}</Key>{about}<ETag>"{generation}"</ETag></Contents>'
                )
        text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{''.join(sorted(entries))}</ListBucketResult>"
        self.say(200, text.encode())

    @property
    def key(self) -> str:
        bucket, _, key = unquote(urlsplit(self.path).path).lstrip("/").partition("/")
        return key if bucket == self.server.bucket else f"{bucket}/{key}"

    def say(self, status: int, data: bytes = b"", *, about: tuple[int, bytes] | None = None, span: str = "") -> None:
        self.send_response(status)
        if about is not None:
            self.send_header("ETag", f'"{hashlib.md5(about[1]).hexdigest()}"')
            self.send_header("x-goog-generation", str(about[0]))
            self.send_header("Last-Modified", formatdate(usegmt=True))
        if span:
            self.send_header("Content-Range", span)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        return


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int, bucket: str) -> None:
        super().__init__(("127.0.0.1", port), Bucket)
        self.bucket, self.generation, self.lock = bucket, 0, threading.Lock()
        self.objects: dict[str, tuple[int, bytes]] = {}
        """By key, its generation and contents."""


if __name__ == "__main__":
    Server(int(sys.argv[1]), sys.argv[2]).serve_forever()
