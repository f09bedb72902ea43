"""The real command in a process of its own, and requests to it as any program of this machine can send them."""

import http.client
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

HEADS = [sys.executable, "-c", "from heads.cli import main; main()"]


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Served:
    """`heads explore` in a folder of its own; `address` ends with its secret word and a slash."""

    def __init__(self, folder: Path, *arguments: object) -> None:
        folder.mkdir(exist_ok=True)
        command = [*HEADS, "explore", *map(str, arguments), "--no-browser", "--json"]
        environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
        self.process = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read() if self.process.stderr else ""
            text += line
        self.said = json.loads(text)
        self.address = str(self.said["address"])
        place = urlsplit(self.address)
        self.port, self.path = int(place.port or 0), place.path

    def ask(
        self, path: str, *, method: str = "GET", body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> Answer:
        """Ask for a path, exactly as it is written: nothing of it is normalised."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=20)
        connection.putrequest(method, path, skip_host=True)
        for name, value in {"host": f"127.0.0.1:{self.port}", **(headers or {})}.items():
            connection.putheader(name, value)
        if body is not None:
            connection.putheader("content-length", str(len(body)))
        connection.endheaders(body)
        answer = connection.getresponse()
        found = Answer(answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read())
        connection.close()
        return found

    def get(self, path: str) -> Answer:
        """Ask for something below the secret word."""
        return self.ask(self.path + path)

    def rate(self, value: Any, content_type: str = "application/json") -> Answer:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        return self.ask(f"{self.path}ratings", method="POST", body=body, headers={"content-type": content_type})

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdout, self.process.stderr):
            if stream is not None:
                stream.close()
