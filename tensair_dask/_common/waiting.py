"""Waits that end: when what is waited for does, in time, or when they are cancelled."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

__all__ = ["within"]

T = TypeVar("T")


async def within(awaitable: Awaitable[T], seconds: float | None) -> T:
    """Await something for so many seconds at most.

    In place of `asyncio.wait_for`, which before Python 3.12 forgets that it was
    cancelled if what it waits for comes in the same turn of the event loop (CPython
    issue 86296): a task that feeds a stream would then go on for ever.

    Parameters
    ----------
    awaitable
        Cancelled where it does not come in time, or the wait is cancelled.
    seconds
        None for as long as it takes.

    Raises
    ------
    asyncio.TimeoutError
        If it does not come in time.
    """
    future = asyncio.ensure_future(awaitable)
    try:
        await asyncio.wait({future}, timeout=seconds)
    except asyncio.CancelledError:
        await _cancel(future)
        raise
    if future.done():
        return future.result()
    await _cancel(future)
    try:
        return future.result()
    except asyncio.CancelledError:
        raise asyncio.TimeoutError from None


async def _cancel(future: asyncio.Future[T]) -> None:
    """Cancel, and wait until that is done: it may take its time, and may fail."""
    future.cancel()
    await asyncio.wait({future})
    if not future.cancelled():
        future.exception()  # seen: it is not to be logged as forgotten
