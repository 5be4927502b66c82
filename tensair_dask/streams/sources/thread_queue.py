"""A bounded way from a thread to an event loop."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque

from tensair_dask.streams.sources.kafka_records import Parcel

__all__ = ["Handover"]


class Handover:
    """Parcels go from one thread to one event loop; the thread sees when it is full.

    Parameters
    ----------
    most
        Records that may wait; a parcel that is put all the same is taken.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._parcels: deque[Parcel] = deque()
        self._records = 0
        self._lock = threading.Lock()
        self._room = threading.Event()
        self._room.set()
        self._error: Exception | None = None
        self._over = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._moved: asyncio.Event | None = None

    def open(self) -> None:
        """Connect it to the event loop that runs here, before anything is put."""
        self._loop = asyncio.get_running_loop()
        self._moved = asyncio.Event()

    # ---- on the thread --------------------------------------------------------------

    def put(self, parcels: list[Parcel]) -> None:
        """Hand over; never waits."""
        if not parcels:
            return
        with self._lock:
            self._parcels.extend(parcels)
            self._records += sum(len(each.records) for each in parcels)
            if self._records >= self._most:
                self._room.clear()
        self._wake_soon()

    def finish(self, error: Exception | None = None) -> None:
        """Say that nothing more comes, and why. The first time counts."""
        if not self._over:
            self._error = error
            self._over = True
            self._wake_soon()

    def has_room(self, patience: float = 0.0) -> bool:
        """Whether more may be put; wait so many seconds if not."""
        return self._room.wait(patience) if patience else self._room.is_set()

    def _wake_soon(self) -> None:
        assert self._loop is not None
        # It may be closed: nobody waits there any more.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self.wake)

    # ---- on the event loop ----------------------------------------------------------

    def wake(self) -> None:
        """Let `moved` return."""
        if self._moved is not None:
            self._moved.set()

    async def moved(self) -> None:
        """Wait until there is something to take, or to know."""
        assert self._moved is not None
        await self._moved.wait()
        self._moved.clear()

    def take(self) -> Parcel | None:
        """Take the next parcel; None if there is none now."""
        with self._lock:
            if not self._parcels:
                return None
            parcel = self._parcels.popleft()
            self._records -= len(parcel.records)
            if self._records <= self._most // 2:
                self._room.set()
        return parcel

    @property
    def over(self) -> bool:
        """Whether all was taken, and nothing more comes.

        Raises
        ------
        Exception
            What the thread has ended with.
        """
        if not self._over or self._parcels:
            return False
        if self._error is not None:
            raise self._error
        return True
