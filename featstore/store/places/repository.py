"""A team's shared store: a feature store inside an Icechunk repository, with its whole history.

Icechunk adds what a bucket lacks: commits that are seen whole or not at all, that never overwrite each other, and that
stay readable for ever, by tag or by the snapshot's own name.
"""

import asyncio
import getpass
import os
import re
import socket
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from filelock import FileLock
from zarr.core.sync import sync
from zarr.storage import ObjectStore

from featstore.errors import FormatError, LockedError, StoreError, suggest
from featstore.files import refuse_what_is_no_file
from featstore.store.places.bucket import open_bucket
from featstore.store.places.cache import BlockCache
from featstore.store.places.icechunk_store import SessionStore, import_icechunk, retrying, storage_of
from featstore.store.places.network import ask, reaching
from featstore.store.places.place import Location
from featstore.support import size

if TYPE_CHECKING:
    import icechunk

T = TypeVar("T")
MARKS = ("refs/branch.main/ref.json", "repo")
"""The files by one of which a repository is known: of Icechunk's format 1, of its format 2."""
BRANCH = "main"
LOCK = ".lock"
"""Of a repository in a folder."""
TAG = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,99}")
SNAPSHOT = re.compile(r"[0-9A-Z]{20}")
POLLS, POLL_S = 10, 0.2
"""How long a repository may take that somebody else is just making."""
REFERENCE, REFERENCE_BYTES = "ref.json", 1 << 20
SHORTEST = 6
"""Characters of a snapshot's name that have to be given at least."""


@dataclass(frozen=True)
class Version:
    """One commit of a repository."""

    snapshot: str
    when: datetime
    message: str
    facts: Mapping[str, Any]
    """What the pusher noted: `who`, `rows`, `bytes`, `tensors`."""
    tags: tuple[str, ...]

    @property
    def who(self) -> str:
        return str(self.facts.get("who", "unknown"))


def is_repository(place: str) -> bool:
    """Whether a folder or a URL is an Icechunk repository.

    Raises:
        StoreError: the bucket cannot be reached.
    """
    if "://" not in place:
        return any((Path(place) / mark).is_file() for mark in MARKS)
    bucket = ObjectStore(open_bucket(place), read_only=True)
    with reaching(place):
        return any(sync(bucket.exists(mark)) for mark in MARKS)


def split_version(text: str) -> tuple[str, str | None]:
    """PLACE@VERSION in its parts; the version is None if it has none."""
    folder, slash, last = text.rpartition("/")
    name, at, version = last.rpartition("@")
    return (f"{folder}{slash}{name}", version) if at and name and version else (text, None)


class Repository:
    """A repository at a folder or a URL.

    Raises:
        StoreError: Icechunk is not installed, or the URL is of an unknown kind or has a password in it.
    """

    def __init__(self, place: str | Path) -> None:
        self.name = str(place).rstrip("/")
        self._is_folder = "://" not in self.name
        self._storage = storage_of(self.name)
        self._opened: icechunk.Repository | None = None

    @property
    def exists(self) -> bool:
        return is_repository(self.name)

    def create(self) -> None:
        """Make an empty one; one that somebody else is just making is as good.

        Raises:
            StoreError: something else is there, or it may not be written to.
        """
        with _beginning(Path(self.name)) if self._is_folder else nullcontext():
            try:
                if not self.exists:
                    self._create()
            except StoreError:
                for _ in range(0 if self._is_folder else POLLS):
                    time.sleep(POLL_S)
                    if self.exists:
                        return
                raise

    def at(self, version: str | None = None, *, blocks: BlockCache | None = None) -> Location:
        """The feature store as it is at a tag or a snapshot, or now; for reading.

        Args:
            blocks: where shards are kept that were fetched.

        Raises:
            StoreError: there is no such version.
        """
        if version is None:
            session, name = self._ask(lambda it: it.readonly_session_async(BRANCH)), self.name
        else:
            snapshot, name = self.find(version), f"{self.name}@{version}"
            session = self._ask(lambda it: it.readonly_session_async(snapshot_id=snapshot))
        again = partial(_open_at, self.name, session.snapshot_id)
        return Location(name, SessionStore.of(session, name, again), repository=self.name, blocks=blocks)

    def begin(self) -> "Transaction":
        """A transaction on the newest version."""
        return Transaction(self.name, self._ask(lambda it: it.writable_session_async(BRANCH)), self._turn())

    def find(self, version: str) -> str:
        """The snapshot that a tag, or the beginning of a snapshot's name, means.

        Raises:
            StoreError: none, or several.
        """
        tags = self.tags
        if version in tags:
            return tags[version]
        known = [each.snapshot for each in self.history()] if len(version) >= SHORTEST else []
        found = [snapshot for snapshot in known if snapshot.startswith(version.upper())]
        if len(found) != 1:
            what = f"{len(found)} versions that begin with" if found else "no version"
            raise StoreError(
                f"{self.name} has {what} {version!r}; {suggest(version, tags)} (`featstore log {self.name}`)"
            )
        return found[0]

    def history(self, version: str | None = None, *, limit: int | None = None) -> Iterator[Version]:
        """The commits up to a version, the newest first; in a bucket each of them is a request.

        Args:
            limit: how many at most.
        """
        tags: dict[str, list[str]] = {}
        for tag, snapshot in self.tags.items():
            tags.setdefault(snapshot, []).append(tag)
        at = {"branch": BRANCH} if version is None else {"snapshot_id": self.find(version)}

        async def listed(opened: Any) -> list[Any]:
            found: list[Any] = []
            async for each in opened.async_ancestry(**at):
                found += [each] if each.parent_id is not None else []  # the first one is the empty repository
                if len(found) == limit:
                    break
            return found

        for each in self._ask(listed, long=True):
            named = tuple(sorted(tags.get(each.id, ())))
            yield Version(each.id, each.written_at, each.message, each.metadata, named)

    @property
    def tags(self) -> dict[str, str]:
        """By tag, its snapshot."""

        async def looked_up(opened: Any) -> dict[str, str]:
            return {name: await opened.lookup_tag_async(name) for name in sorted(await opened.list_tags_async())}

        return self._ask(looked_up, long=True)

    def tag(self, name: str, version: str | None = None) -> str:
        """Give a version a name for ever; returns its snapshot.

        Raises:
            StoreError: the name is taken, or cannot be one.
        """
        if SNAPSHOT.fullmatch(name):
            raise StoreError(f"tag {name!r} looks like the name of a snapshot, and would stand for another version")
        if not TAG.fullmatch(name):
            raise StoreError(f"tag {name!r} should be letters, digits and any of . _ + - behind the first")
        snapshot = self._ask(lambda it: it.lookup_branch_async(BRANCH)) if version is None else self.find(version)
        if name in (tags := self.tags):
            if tags[name] == snapshot:
                return snapshot
            raise StoreError(f"{self.name} has a tag {name!r} of another version already; a tag never moves")
        self._ask(lambda it: it.create_tag_async(name, snapshot), tries=1)
        return snapshot

    def _ask(self, question: Callable[["icechunk.Repository"], Awaitable[T]], **options: Any) -> T:
        """Ask the repository for something, on a new connection if nothing is said."""
        if self._opened is None and not self.exists:
            raise StoreError(
                f"{self.name} is not a shared repository; `featstore push STORE {self.name}` makes one where nothing "
                f"is, and a plain store is copied by `featstore merge {self.name} --into STORE`"
            )

        async def asked() -> T:
            return await question(await self._open())

        async def forget() -> None:
            self._opened = None

        return sync(ask(self.name, asked, afresh=forget, **options))

    async def _open(self) -> "icechunk.Repository":
        if self._opened is None:
            if self._is_folder:
                await asyncio.to_thread(_refuse_what_hangs, Path(self.name))
            self._opened = await import_icechunk().Repository.open_async(self._storage, retrying())
        return self._opened

    def _create(self) -> None:
        if not self._is_empty():
            raise StoreError(f"{self.name} holds something that is no shared repository; name an empty place")
        create = import_icechunk().Repository.create_async
        sync(ask(self.name, lambda: create(self._storage, retrying()), tries=1))

    def _is_empty(self) -> bool:
        if self._is_folder:
            folder = Path(self.name)
            return not folder.exists() or (folder.is_dir() and not any(folder.iterdir()))
        from obstore import list as list_objects

        with reaching(self.name):
            return not any(len(page) for page in list_objects(open_bucket(self.name), chunk_size=1))

    def _turn(self) -> AbstractContextManager[object]:
        """What holds off other commits where the place itself does not: Icechunk promises nothing of a folder."""
        return _lock(Path(self.name) / LOCK) if self._is_folder else nullcontext()


def _refuse_what_hangs(folder: Path) -> None:
    """Refuse a repository whose files Icechunk would wait for without end, or that would fill the memory.

    Raises:
        FormatError: one of them is a pipe or a device, or cannot be looked at; or a reference is a giant.
    """
    waiting = [folder]
    try:
        while waiting:
            with os.scandir(waiting.pop()) as entries:
                for entry in entries:
                    if entry.is_dir():
                        waiting.append(Path(entry.path))
                    else:
                        _check_file(entry)
    except OSError as error:  # a link that leads to itself, say
        raise FormatError(f"{error.filename or folder} cannot be read: {error.strerror or error}") from error


def _check_file(entry: "os.DirEntry[str]") -> None:
    if not entry.is_file() and os.path.exists(entry.path):  # noqa: PTH110 (a path for each would be slow)
        raise FormatError(f"{entry.path} is a named pipe, a device or a socket, and not a file; remove it")
    if entry.name == REFERENCE and entry.stat().st_size > REFERENCE_BYTES:
        raise FormatError(
            f"{entry.path} has {size(entry.stat().st_size)}, and no reference to a version has more than "
            f"{size(REFERENCE_BYTES)}"
        )


async def _open_at(name: str, snapshot: str) -> "icechunk.Session":
    """A session like another one, on a new connection; named, so that a store goes to other processes with it."""
    return await (await Repository(name)._open()).readonly_session_async(snapshot_id=snapshot)


@contextmanager
def _lock(file: Path) -> Iterator[None]:
    """A lock that whoever may write to its folder may take."""
    lock = FileLock(file, mode=0o666)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        refuse_what_is_no_file(file)
        lock.acquire()
    except OSError as error:
        raise StoreError(f"{file.parent} may not be written: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _beginning(folder: Path) -> Iterator[None]:
    """The turn of the one who makes a repository: beside it, as Icechunk wants its folder empty."""
    file = folder.absolute().with_name(f".{folder.name}.lock")
    with _lock(file):
        try:
            yield
        finally:
            file.unlink(missing_ok=True)  # those who wait for it find the repository there


class Transaction:
    """Changes that nobody else sees until they are committed."""

    def __init__(self, name: str, session: "icechunk.Session", turn: AbstractContextManager[object]) -> None:
        self._session, self._turn = session, turn
        self._store = SessionStore.of(session, name)
        self.location = Location(name, self._store, repository=name)

    def commit(self, message: str, facts: Mapping[str, Any]) -> str:
        """Let everybody see them; returns the snapshot.

        Raises:
            LockedError: another commit came first; nothing was changed: begin again on top of it.
            BrokenOffError: nobody said whether it was committed; the one who begins again sees.
        """
        icechunk = import_icechunk()
        name = self.location.name
        self._store.flush()

        async def commit() -> str:
            try:
                return str(await self._session.commit_async(message, dict(facts)))
            except icechunk.ConflictError as error:
                raise LockedError(f"somebody else has just pushed to {name}; run this again") from error

        with self._turn:
            return sync(ask(name, commit, long=True, tries=1))


def who() -> str:
    """Who makes a commit: FEATSTORE_WHO of the environment, or user and machine; asked when a push or repair begins."""
    return os.environ.get("FEATSTORE_WHO") or f"{getpass.getuser()}@{socket.gethostname()}"
