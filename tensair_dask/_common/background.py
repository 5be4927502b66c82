"""Tasks in the background, which go on until they are closed together."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from typing import Any

__all__ = ["Background"]

logger = logging.getLogger(__name__)


class Background:
    """Goes on with work, whether or not anybody waits for it.

    Belongs to the event loop that gives the work.

    Attributes
    ----------
    closed
        Whether all shall end. Dask makes a broken connection of a cancelled call, so
        work that tries again after an error must look here first.
    """

    def __init__(self) -> None:
        self.closed = False
        self._tasks: set[asyncio.Task[None]] = set()

    def go_on_with(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin work; its error is for whoever waits for it."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.debug("Nobody waits for it any more: %s", error)

    async def close(self) -> None:
        """Give up what is under way."""
        self.closed = True
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
