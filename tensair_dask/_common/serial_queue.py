"""Work that is done one by one, in the order in which it was given."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

from tensair_dask.errors import RaisedError, TensairTimeoutError, TrainerClosedError

__all__ = ["OneByOne"]

logger = logging.getLogger(__name__)


class OneByOne:
    """Awaits one piece of work after the other, on the event loop that gives them.

    What fails is logged, and the next one is done: nobody waits for the result.

    Parameters
    ----------
    what
        Names the work in the log.
    """

    def __init__(self, what: str) -> None:
        self._what = what
        self._queue: deque[Callable[[], Awaitable[Any]]] = deque()
        self._task: asyncio.Task[None] | None = None

    def do(self, work: Callable[[], Awaitable[Any]]) -> None:
        """Do this when all before it is done."""
        self._queue.append(work)
        if self._task is None or self._task.done():
            self._task = asyncio.ensure_future(self._run())

    async def _run(self) -> None:
        while self._queue:
            work = self._queue.popleft()
            try:
                await work()
            except TrainerClosedError:
                self._queue.clear()
            except Exception as error:
                logger.warning(
                    "%s failed", self._what, exc_info=RaisedError.unless_fit(error)
                )

    async def settled(self, timeout: float) -> None:
        """Wait until all is done.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        if self._task is None:
            return
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        if not done:
            raise TensairTimeoutError(
                f"{self._what} was not done within {timeout:g} s ({len(self._queue)} "
                "more wait behind it). Raise tensair.timeouts.drain if the steps are "
                "slow; look at the scheduler and the workers if they are not."
            )

    async def close(self) -> None:
        """Give up what is not done."""
        self._queue.clear()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
