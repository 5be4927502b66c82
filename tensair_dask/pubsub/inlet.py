"""The receiving end of a subscription: each delivery is handled once, in order."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from tensair_dask.pubsub.link import GONE, OK
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.view import Member

__all__ = ["Inlet"]

logger = logging.getLogger(__name__)

# Publishers that have left and whose last number is still known, so that a delivery
# which the network held back is not handled again.
_REMEMBERED = 1000


class Inlet:
    """Take deliveries, refuse duplicates, acknowledge what has been handled.

    A publisher has one delivery in flight, and repeats it with the same number when
    it does not know whether it arrived.

    Parameters
    ----------
    accept
        ``accept(message, sender)``: takes one message. If it returns an awaitable,
        what follows from this publisher, and the acknowledgement, wait for it.
    spawn
        Starts a task that its owner cancels when the process goes.
    sealed
        Whether ``accept`` gets parcels, and opens them itself. It uses no memory of
        theirs any more when they are handled.
    """

    def __init__(
        self,
        accept: Callable[[Any, Member], Awaitable[Any] | None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        sealed: bool = False,
    ) -> None:
        self._accept = accept
        self.sealed = sealed
        self._spawn = spawn
        self._closed = False
        # Last number of each publisher, and its handling while that goes on.
        self._last: OrderedDict[str, tuple[int, asyncio.Task[None] | None]]
        self._last = OrderedDict()
        self._present: frozenset[str] = frozenset()
        self.messages = 0
        self.duplicates = 0
        self.errors = 0

    async def receive(self, sender: Member, number: int, parcels: list[Parcel]) -> str:
        """Handle one delivery.

        Returns
        -------
        str
            `OK` when it has been handled, now or before; `GONE` if the subscription
            is closed.
        """
        if self._closed:
            return GONE
        last, task = self._last.get(sender.id, (0, None))
        if number <= last:
            self.duplicates += 1
        else:
            task = self._handle(sender, number, parcels)
        if task is not None and not task.done():
            # Not awaited itself: who hangs up must not end the handling.
            await asyncio.wait([task])
        if task is not None and task.cancelled():
            return GONE
        return OK

    def _handle(
        self, sender: Member, number: int, parcels: list[Parcel]
    ) -> asyncio.Task[None] | None:
        remaining = iter(parcels)
        waiting = self._advance(remaining, sender)
        task = None
        if waiting is not None:
            task = self._spawn(self._finish(waiting, remaining, sender))
        self._last[sender.id] = (number, task)
        self._last.move_to_end(sender.id)
        return task

    def _advance(
        self, parcels: Iterable[Parcel], sender: Member
    ) -> Awaitable[Any] | None:
        """Handle parcels until one makes us wait."""
        for parcel in parcels:
            self.messages += 1
            try:
                message = parcel if self.sealed else parcel.open()
                waiting = self._accept(message, sender)
            except Exception:
                self._failed(sender)
                continue
            if waiting is not None:
                return waiting
        return None

    async def _finish(
        self, waiting: Awaitable[Any] | None, parcels: Iterable[Parcel], sender: Member
    ) -> None:
        while waiting is not None:
            try:
                await waiting
            except Exception:
                self._failed(sender)
            waiting = self._advance(parcels, sender)

    def _failed(self, sender: Member) -> None:
        self.errors += 1
        logger.exception("A message from %s could not be handled", sender)

    def see(self, publishers: Iterable[str]) -> None:
        """Take note of who publishes; forget the longest gone."""
        self._present = frozenset(publishers)
        gone = [known for known in self._last if known not in self._present]
        for known in gone[: max(0, len(gone) - _REMEMBERED)]:
            del self._last[known]

    def close(self) -> None:
        """Refuse everything from now on, and end what is being handled."""
        self._closed = True
        for _, task in self._last.values():
            if task is not None:
                task.cancel()
