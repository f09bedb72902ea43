"""One mutation in a process of its own: a copy of the desk, what is tried on it, and what came of it."""

import faulthandler
import hashlib
import json
import os
import resource
import shutil
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, NoReturn

import featstore
import heads

from .commands import FoundError, RefusedError, check_text
from .doors import Case, Door
from .files import Mutation, mutate_file, swap_files
from .material import LARGE

HANG_S = 20.0
GIB = 1 << 30
MEMORY_BYTES = 2 * GIB
ADDRESS_BYTES = 64 * GIB
SHOW_PLACE = signal.SIGUSR1
"""Asks a process to write into its log where it is."""


@dataclass
class Outcome:
    """What came of a mutation: findings, in words; or it was refused, or did no harm."""

    door: str
    seed: int
    mutation: str = ""
    findings: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    groups: list[str] = field(default_factory=list)
    """For each finding, what it has in common with others of its kind."""
    seconds: float = 0.0
    peak_bytes: int = 0

    def find(self, group: str, said: str) -> None:
        self.groups.append(group)
        self.findings.append(said)


def carry_out(door: Door, seed: int, material: Path, folder: Path) -> NoReturn:
    """Mutate a copy of the desk and try the door; the outcome is in `folder/outcome.json`. Ends this process.

    Seed 0 mutates nothing and tries everything: whatever is refused then would hide what comes of mutations.
    """
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    sys.stdout, sys.stderr = os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w")
    faulthandler.enable(all_threads=False)
    faulthandler.register(SHOW_PLACE, all_threads=False)
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_BYTES, ADDRESS_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    outcome = Outcome(door.name, seed)
    try:
        _carry_out(door, seed, material, folder, outcome)
    except BaseException:
        outcome.find("the fuzzer", traceback.format_exc())
    _write(folder, outcome)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _carry_out(door: Door, seed: int, material: Path, folder: Path, outcome: Outcome) -> None:
    rng = Random(f"{door.name} {seed}")
    desk, outside = folder / "desk", folder / "outside"
    shutil.copytree(material / "desk", desk, symlinks=True)
    outside.mkdir()
    (outside / "canary.txt").write_text("a canary\n" * 100)
    os.chdir(desk)
    _settle(material / "desk", desk)
    if door.name == "zip":
        shutil.copy(material / LARGE, desk)
    mutation = Mutation("nothing", changed=False) if seed == 0 else mutate(rng, door, desk, outside)
    outcome.mutation = mutation.said
    _write(folder, outcome)
    before, watch = _contents(outside), Watch(folder)
    case = Case(json.loads((material / "honest.json").read_text()), mutation)
    for attempt in [*door.always, *door.others] if seed == 0 else door.attempts(rng):
        print(f"\n--- {attempt.__name__}", flush=True)  # if it dies here, this says where
        began = time.monotonic()
        faulthandler.dump_traceback_later(HANG_S, exit=True)
        watch.clear()
        try:
            attempt(case)
        except RefusedError as error:
            outcome.refused.append(f"{attempt.__name__}: {error}")
        except (featstore.FeatstoreError, heads.HeadsError) as error:
            try:
                check_text(str(error).replace("\n", " "))
                outcome.refused.append(f"{attempt.__name__}: {error}")
            except FoundError as finding:
                outcome.find(f"{finding.kind} in an error", f"{attempt.__name__}: {finding}")
        except FoundError as finding:
            outcome.find(finding.kind, f"{attempt.__name__}: {finding}")
        except BaseException as error:  # panics of libraries are no exceptions
            outcome.find(_where(error), f"{attempt.__name__}: {error!r}\n{traceback.format_exc()}")
        faulthandler.cancel_dump_traceback_later()
        outcome.seconds = max(outcome.seconds, time.monotonic() - began)
        for kind in watch.seen if door.name != "config" or seed == 0 else ():
            outcome.find(f"{kind.split(' ')[0]} outside", f"{attempt.__name__}: {kind}")
        if _contents(outside) != before:
            outcome.find("changed outside", f"{attempt.__name__}: {_difference(before, _contents(outside))}")
            before = _contents(outside)
        if outcome.findings:
            return


def _settle(before: Path, desk: Path) -> None:
    """Let honest documents that name the folder where they were made name the one where they are."""
    for file in (*desk.glob("runs/*/plan.json"), *desk.glob("runs/*/config.json")):
        file.write_text(file.read_text().replace(str(before), str(desk)))
    (desk / "features.zarr.lock.json").write_text(json.dumps({**_LOCK, "host": socket.gethostname()}))


def mutate(rng: Random, door: Door, desk: Path, outside: Path) -> Mutation:
    """One of the door's files, as a stranger may have left it."""
    if door.own and rng.random() < 0.15:
        return door.own(rng, desk)
    files = sorted(
        {file.relative_to(desk).as_posix() for each in door.files for file in desk.glob(each) if file.is_file()}
    )
    documents = [file for file in files if file.endswith((".json", ".toml"))]
    parts = [file for file in files if not file.endswith(".zip")]  # one whole store in place of another is honest
    if len(parts) > 1 and rng.random() < 0.05:
        return swap_files(rng, desk, parts)
    return mutate_file(rng, desk, rng.choice(documents if documents and rng.random() < 0.4 else files), outside)


class Watch:
    """Notices what Python does outside of a folder: writing, connecting, other processes, code from the desk."""

    def __init__(self, folder: Path) -> None:
        self.seen: list[str] = []
        self._inside = os.path.realpath(folder)
        self._checks: dict[str, Callable[..., str | None]] = {
            "open": self._opened,
            "os.rename": lambda one, other, at, to: self._named(one, at) or self._named(other, to),
            "os.remove": lambda path, at: self._named(path, at),
            "os.mkdir": lambda path, _, at: self._named(path, at),
            "os.truncate": lambda path, _: self._written(path),
            "socket.connect": lambda _, address: None if isinstance(address, str) else f"connects to {address}",
            "socket.getaddrinfo": lambda host, *_: f"looks up {host}",
            "subprocess.Popen": lambda program, *_: f"starts {program}",
            "os.system": lambda line: f"starts {line}",
            "os.posix_spawn": lambda program, *_: f"starts {program}",
            "os.exec": lambda program, *_: f"starts {program}",
        }
        sys.addaudithook(self._hook)

    def clear(self) -> None:
        self.seen.clear()

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        check = self._checks.get(event)
        if check is not None and (said := check(*arguments)):
            self.seen.append(said)

    def _opened(self, path: object, mode: str | None, flags: int) -> str | None:
        return self._written(path) if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) else None

    def _written(self, path: object, at: int = -1) -> str | None:
        """Where writing into a file leads, through all links."""
        if not isinstance(path, (str, bytes, os.PathLike)):  # an open file
            return None
        real = os.path.realpath(Path(f"/proc/self/fd/{at}" if at >= 0 else "", os.fsdecode(path)))
        if real.startswith((self._inside, "/dev/null", "/proc/self")) or "/__pycache__/" in real:
            return None
        return f"writes {real}"

    def _named(self, path: str | bytes, at: int) -> str | None:
        """Where a name is made or taken away: a link itself, and not what it leads to."""
        parent, _, _ = os.fsdecode(path).rpartition("/")
        return self._written(f"{parent}/" if parent else ".", at)


def _where(error: BaseException) -> str:
    """The kind of a traceback: its error, and the last place of ours in it."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/featstore/" in frame.filename or "/heads/" in frame.filename]
    last = ours[-1] if ours else frames[-1]
    place = Path(last.filename)
    return f"{type(error).__name__} in {place.parent.name}/{place.name}:{last.name}"


def _contents(folder: Path) -> dict[str, str]:
    """Files and links below a folder, by digest."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_symlink():
            found[str(file.relative_to(folder))] = str(file.readlink())
        elif file.is_file():
            sparse = file.stat().st_size > GIB
            found[str(file.relative_to(folder))] = "" if sparse else hashlib.sha256(file.read_bytes()).hexdigest()
    return found


def _difference(before: dict[str, str], after: dict[str, str]) -> list[str]:
    return sorted(name for name in {*before, *after} if before.get(name) != after.get(name))


def _write(folder: Path, outcome: Outcome) -> None:
    text = json.dumps(asdict(outcome))
    (folder / "outcome.json").write_text(text, errors="backslashreplace")


_LOCK = {"host": "", "pid": 1, "since": "2026-01-01T00:00:00+00:00", "token": "t", "beat": 0.0}
"""Of a writer that died."""
