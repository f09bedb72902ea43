"""Asking a shared repository: how long an answer may take, and how often it is asked for.

Icechunk asks again where the answer is an error. It waits for ever for a server that takes a request and says nothing,
and whoever asks for the same thing waits with it; and it gives up where an answer breaks off in the middle. Those two
are left to us.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from featstore.errors import BrokenOffError
from featstore.store.places.trouble import reaching

T = TypeVar("T")
PATIENCE_S = 30.0
"""For an answer that is small."""
LONG_PATIENCE_S = 300.0
"""For a whole row block over a slow line, a commit, a long history."""
TRIES = 5
PAUSE_S = 0.1
"""After the first try; twice as long after each."""


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
