"""The writer's lock: one process writes at a time, and a dead one does not keep the lock.

In a local folder the operating system holds the lock, and lets go when the process dies. Where there is no such lock
(a bucket, memory), and for other hosts that share a disk, a record says who writes. It is renewed every few seconds: a
record that has stopped changing belongs to a dead process.
"""

import json
import os
import socket
import threading
import time
import uuid
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Protocol

from filelock import FileLock, Timeout
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints
from zarr.core.sync import sync

from featstore.errors import LockedError
from featstore.files import parse_json, read_file, refuse_what_is_no_file, replacing
from featstore.store.format.integrity import prototype_buffer
from featstore.store.places.local import cannot_write
from featstore.store.places.place import Location

BEAT_S = 5.0
PATIENCE_S = 4 * BEAT_S  # a record that did not change for so long is that of a dead process
RECORD = "writer.json"
RECORD_BYTES = 1 << 16


@dataclass(frozen=True)
class Holder:
    """Who writes."""

    host: str
    pid: int
    since: str
    token: str
    beat: float
    """Seconds since 1970 when this record was last renewed, by the holder's clock."""

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host}, since {self.since}"

    @classmethod
    def read(cls, text: bytes | None) -> "Holder | None":
        try:
            facts = _Record.model_validate(parse_json(text or b""))
        except ValueError:  # it was cut off, or somebody else wrote it
            return None
        return cls(facts.host, facts.pid, facts.since, facts.token, facts.beat)


def _plain(text: str) -> str:
    if not text.isprintable():
        raise ValueError("it has control characters")
    return text


Word = Annotated[str, StringConstraints(max_length=255), AfterValidator(_plain)]
"""Of a record: it is shown in messages, and begins no line of its own."""


class _Record(BaseModel):
    """What a holder writes of itself."""

    model_config = ConfigDict(strict=True)
    host: Word
    pid: Annotated[int, Field(ge=0, lt=1 << 63)]
    since: Word
    token: Word
    beat: Annotated[float, Field(allow_inf_nan=False)]


class Record(Protocol):
    """Where the holder's name is kept."""

    def read(self) -> bytes | None: ...
    def create(self, text: bytes) -> bool: ...
    def replace(self, text: bytes) -> None: ...
    def remove(self) -> None: ...


class WriterLock:
    """The lock of one store.

    Raises:
        LockedError: another process is writing; says which, where and since when.
        StoreWriteError: the disk refuses.
    """

    def __init__(self, location: Location) -> None:
        self._name = location.name
        self._record = _record_of(location)
        self._system_lock = None if location.folder is None else FileLock(f"{location.folder}.lock")
        self._me = Holder(
            socket.gethostname(), os.getpid(), datetime.now(UTC).isoformat(timespec="seconds"), uuid.uuid4().hex, 0.0
        )
        self._stop = threading.Event()
        self._beating: threading.Thread | None = None

    def acquire(self) -> str:
        """Take the lock; says what became of a writer that died with it, or nothing."""
        if self._system_lock is not None:
            try:
                refuse_what_is_no_file(self._system_lock.lock_file)
                self._system_lock.acquire(timeout=0)
            except Timeout:
                raise LockedError(self._refusal(Holder.read(self._record.read()))) from None
            except OSError as error:
                raise cannot_write(self._system_lock.lock_file, error) from error
        try:
            notice = self._take_over()
        except BaseException:
            self._let_go()
            raise
        self._beating = threading.Thread(target=self._beat, daemon=True)
        self._beating.start()
        return notice

    def release(self) -> None:
        self._stop.set()
        if self._beating is not None:
            self._beating.join()
        with suppress(OSError):  # the disk may have become read-only; the lock itself is the system's
            if self.is_mine():
                self._record.remove()
        self._let_go()

    def is_mine(self) -> bool:
        """Whether the record still names this process: where the system holds no lock, another may have taken over."""
        holder = Holder.read(self._record.read())
        return holder is not None and holder.token == self._me.token

    def check(self) -> None:
        """Before a commit, where nothing but the record says who may write.

        Raises:
            LockedError: somebody else has taken the lock, as after this machine slept for long.
        """
        if self._system_lock is None and not self.is_mine():
            other = Holder.read(self._record.read())
            raise LockedError(f"store {self._name} was taken over by {other or 'another process'}; run this again")

    def _take_over(self) -> str:
        if self._record.create(self._text()):
            return ""
        other = Holder.read(self._record.read())
        same_host = self._system_lock is not None and (other is None or other.host == self._me.host)
        if other is not None and not same_host and self._is_alive(other):
            raise LockedError(self._refusal(other))
        self._record.replace(self._text())
        return f"the last writer of {self._name} ({other or 'unknown'}) died at work; what it committed is kept"

    def _is_alive(self, other: Holder) -> bool:
        if abs(time.time() - other.beat) < PATIENCE_S:
            return True
        before = self._record.read()  # its clock may be wrong: see whether the record still changes
        time.sleep(2 * BEAT_S)
        return self._record.read() != before

    def _beat(self) -> None:
        while not self._stop.wait(BEAT_S):
            with suppress(Exception):  # one beat missed; what ails the disk or the network, the writer will say
                if self.is_mine():
                    self._record.replace(self._text())

    def _text(self) -> bytes:
        return json.dumps({**asdict(self._me), "beat": time.time()}).encode()

    def _refusal(self, holder: Holder | None) -> str:
        return (
            f"store {self._name} is being written by {holder or 'another process'}; "
            "wait for it to end, or stop it and run this again"
        )

    def _let_go(self) -> None:
        if self._system_lock is not None:
            self._system_lock.release()


def current_writer(location: Location) -> Holder | None:
    """Who writes to a store just now, as far as the record says."""
    holder = Holder.read(_record_of(location).read())
    return holder if holder is not None and abs(time.time() - holder.beat) < PATIENCE_S else None


def was_abandoned(location: Location) -> bool:
    """Whether a writer has died without cleaning up after itself, as far as the record says."""
    record = _record_of(location).read()
    if record is None:
        return False
    holder = Holder.read(record)  # None: it was cut off by a power failure, say
    if location.folder is not None and (holder is None or holder.host == socket.gethostname()):
        return not _is_held(FileLock(f"{location.folder}.lock"))
    return holder is None or abs(time.time() - holder.beat) >= PATIENCE_S


def _is_held(lock: FileLock) -> bool:
    try:
        refuse_what_is_no_file(lock.lock_file)
        lock.acquire(timeout=0)
    except (Timeout, OSError):
        return True
    lock.release()
    return False


def _record_of(location: Location) -> Record:
    if location.folder is not None:
        return _FileRecord(Path(f"{location.folder}.lock.json"))
    if location.remote:
        return _OwnRecord()
    return _KeyRecord(location)


class _FileRecord:
    """Beside the store's folder."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> bytes | None:
        try:
            return read_file(self._path, RECORD_BYTES)
        except OSError:
            return None

    def create(self, text: bytes) -> bool:
        try:
            with self._path.open("xb") as file:
                file.write(text)
        except FileExistsError:
            return False
        except OSError as error:
            raise cannot_write(self._path, error) from error
        return True

    def replace(self, text: bytes) -> None:
        try:
            with replacing(self._path) as file:
                file.write(text)
        except OSError as error:
            raise cannot_write(self._path, error) from error

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


class _OwnRecord:
    """Of a transaction, which nobody else can see: that two do not cross, its commit takes care of."""

    def __init__(self) -> None:
        self._text: bytes | None = None

    def read(self) -> bytes | None:
        return self._text

    def create(self, text: bytes) -> bool:
        self._text = text
        return True

    def replace(self, text: bytes) -> None:
        self._text = text

    def remove(self) -> None:
        self._text = None


class _KeyRecord:
    """A key of the Zarr store itself; created only if it is not there, which buckets promise to do atomically."""

    def __init__(self, location: Location) -> None:
        self._location = location

    def read(self) -> bytes | None:
        return self._location.read(RECORD)

    def create(self, text: bytes) -> bool:
        sync(self._location.zarr_store.set_if_not_exists(RECORD, prototype_buffer(text)))
        return self.read() == text

    def replace(self, text: bytes) -> None:
        self._location.write(RECORD, text)

    def remove(self) -> None:
        self._location.delete(RECORD)
