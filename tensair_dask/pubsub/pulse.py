"""Wake-ups for coroutines that wait until something holds."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from tensair_dask.errors import TensairTimeoutError

__all__ = ["Pulse"]


class Pulse:
    """Let coroutines of one event loop wait for a predicate, looked at on each beat."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def beat(self) -> None:
        """Let everyone who waits look again; call it on the event loop."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(
        self, predicate: Callable[[], bool], timeout: float | None, what: str
    ) -> None:
        """Return when the predicate holds.

        Parameters
        ----------
        predicate
            May raise; the error ends the wait.
        timeout
            Seconds; None waits as long as it takes.
        what
            Waited for; for the message of the error.

        Raises
        ------
        TensairTimeoutError
            If it does not hold in time.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while not predicate():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TensairTimeoutError(f"{what}: not within {timeout:g} s")
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.add(waiter)
            try:
                await asyncio.wait({waiter}, timeout=left)
            finally:
                self._waiters.discard(waiter)
