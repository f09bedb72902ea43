"""A small Hugging Face hub on this machine, and a person at a terminal: a pseudo-terminal whose answers are given."""

import errno
import fcntl
import hashlib
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread


@dataclass
class Hub:
    """What the server has and was asked for; set as HF_ENDPOINT."""

    files: dict[str, bytes]
    """By `OWNER/REPOSITORY/FILE`."""
    url: str = ""
    asked: list[str] = field(default_factory=list)
    breaks_at: str = ""
    """The file whose download breaks off in the middle."""


@contextmanager
def serve_hub(files: Mapping[str, bytes]) -> Iterator[Hub]:
    hub = Hub(dict(files))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            name = self.path.lstrip("/").replace("/resolve/main/", "/").partition("?")[0]
            hub.asked.append(f"{self.command} {name}")
            body = hub.files.get(name)
            if body is None:
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(200)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.send_header("X-Repo-Commit", "0" * 40)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body and name == hub.breaks_at:
                self.wfile.write(body[: len(body) // 2])
                self.close_connection = True
            elif with_body:
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def run_at_terminal(
    arguments: list[str],
    answer: str | None,
    *,
    cwd: Path,
    env: Mapping[str, str],
    program: str = "featstore.cli",
    columns: int = 80,
    until: str = "[y/N]",
) -> tuple[int, str]:
    """Run a command at a pseudo-terminal; the exit code and all that the person saw.

    Args:
        answer: typed when the question appears; `^C` is Ctrl-C and `^D` the end of the input. None: nothing is typed.
    """
    take_terminal = "import fcntl, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)"  # whose Ctrl-C then reaches it
    code = f"{take_terminal}; from {program} import main; sys.argv = ['command', *sys.argv[1:]]; main()"
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd=cwd,
        env={**env, "COLUMNS": str(columns)},
        start_new_session=True,
    )
    os.close(slave)
    seen, told = b"", answer is None
    deadline = time.monotonic() + 120
    try:
        while time.monotonic() < deadline:
            ready, _, _ = select.select([master], [], [], 0.2)
            if ready:
                try:
                    chunk = os.read(master, 65536)
                except OSError as error:
                    if error.errno != errno.EIO:  # the other side is closed
                        raise
                    break
                if not chunk:
                    break
                seen += chunk
            if not told and until.encode() in seen:
                assert answer is not None
                os.write(master, {"^C": b"\x03", "^D": b"\x04"}.get(answer, answer.encode() + b"\n"))
                told = True
        return process.wait(timeout=10), seen.decode("utf-8", "surrogateescape").replace("\r\n", "\n")
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait()
        os.close(master)
