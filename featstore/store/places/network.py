"""The network: how long an answer may take, how often a shared repository is asked, and its errors in our own words.

Icechunk asks again where the answer is an error. It waits for ever for a server that takes a request and says nothing,
and whoever asks for the same thing waits with it; and it gives up where an answer breaks off in the middle. Those two
are left to us.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from featstore.errors import BrokenOffError, DamagedError, LostError, StoreError

T = TypeVar("T")
PATIENCE_S = 30.0
"""For an answer that is small."""
LONG_PATIENCE_S = 300.0
"""For a whole row block over a slow line, a commit, a long history."""
TRIES = 5
PAUSE_S = 0.1
"""After the first try; twice as long after each."""

_PLACE_IN_SOURCE = re.compile(r"context:|at |with |\d+: ")
_OBJECT = re.compile(r"\b(chunks|manifests|snapshots|transactions)/[0-9A-Z]{20}\b")
_GONE = re.compile(r"not found|NoSuchKey|BlobNotFound")
_UNREADABLE = re.compile(
    r"deserialization|cannot serialize ref|early eof|incomplete frame|invalid magic|Invalid Icechunk metadata",
    re.IGNORECASE,
)
_BROKEN_OFF = re.compile(r"streaming|connection (closed|reset)", re.IGNORECASE)
"""Icechunk asks again where an answer is an error, and leaves one that broke off, or listing that did, to us."""
_NO_KEYS = "no credentials are set, as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or a profile"
_KNOWN = {
    "169.254.169.254": _NO_KEYS,  # what a machine in the cloud would ask
    "Missing AccessKeyId": _NO_KEYS,
    "Missing SecretAccessKey": _NO_KEYS,
    "NoSuchBucket": "there is no such bucket",
    "tcp connect error": "nobody answers at that address",
    "dns error": "its host has no address",
    "AccessDenied": "access is denied",
    "Permission denied": "permission is denied",
}
"""What stands somewhere in a long message, and what it means."""
_WAY_OUT = "put it back from a copy, or read a version that is whole (`featstore log`, REMOTE@VERSION)"


async def ask(
    name: str,
    question: Callable[[], Awaitable[T]],
    *,
    long: bool = False,
    tries: int | None = None,
    afresh: Callable[[], Awaitable[object]] | None = None,
) -> T:
    """The answer to a question that changes nothing if it is asked twice.

    Args:
        name: what messages call the one that is asked.
        long: the answer may take long by right.
        tries: TRIES if not said.
        afresh: connects anew; without it nobody who says nothing is asked again.

    Raises:
        BrokenOffError: there was none, or it broke off, every time.
        StoreError: it was no.
    """
    seconds = LONG_PATIENCE_S if long else PATIENCE_S
    tries, attempt = tries or TRIES, 0
    while True:
        attempt += 1
        try:
            with reaching(name):
                return await asyncio.wait_for(question(), seconds)
        except TimeoutError as error:
            if attempt == tries or afresh is None:
                raise BrokenOffError(f"{name} cannot be reached: no answer came within {seconds:g} s") from error
            await afresh()
        except BrokenOffError:
            if attempt == tries:
                raise
        await asyncio.sleep(PAUSE_S * 2 ** (attempt - 1))


@contextmanager
def reaching(name: str) -> Iterator[None]:
    """Turn what a library says of the network, a bucket or a repository into our own error.

    Raises:
        LostError: a chunk in a repository is not there.
        DamagedError: nor is another file of it, or one is not what was written.
        BrokenOffError: an answer broke off in the middle.
        StoreError: anything else.
    """
    try:
        yield
    except Exception as error:
        # Their exceptions have roots of their own, and some of obstore's inherit from Python's.
        library = type(error).__module__.partition(".")[0]
        if library in ("obstore", "icechunk") or (type(error) is FileNotFoundError and "://" in name):
            raise _in_words(name, str(error)) from error
        raise


def _in_words(name: str, text: str) -> StoreError:
    lost = _OBJECT.search(text)
    if lost and _GONE.search(text):
        kind = LostError if lost[1] == "chunks" else DamagedError
        return kind(f"{name}: {lost[0]}, a file of the repository, is lost; {_WAY_OUT}")
    if _UNREADABLE.search(text):
        return DamagedError(f"{name}: the repository is damaged ({reason(text)}); {_WAY_OUT}")
    if _BROKEN_OFF.search(text):
        return BrokenOffError(f"{name} cannot be reached: {reason(text)}")
    return StoreError(f"{name} cannot be reached: {reason(text)}")


def reason(text: str) -> str:
    """A long message in a few words: what is known of it, or its first line without drawings and details."""
    told = next((meaning for sign, meaning in _KNOWN.items() if sign in text), "")
    if told:
        return told
    lines = [line.strip(" |x`->") for line in text.partition("\n\nDebug source")[0].splitlines()]
    lines = [line for line in lines if line and not _PLACE_IN_SOURCE.match(line)]
    return lines[0] if len(lines) < 2 or lines[0] == lines[-1] else f"{lines[0]} ({lines[-1]})"
