"""Calls of a file system, for which nobody waits without a bound."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, Literal

from tensair_dask import config
from tensair_dask.errors import CheckpointError

__all__ = ["FileCall"]


class FileCall:
    """A call that reads or writes, on a thread that ends with it.

    A thread of a pool would be waited for when Python ends, for as long as a file
    server that does not answer lets it wait. The call cannot be interrupted: what it
    writes may still come when nobody waits for it any longer, whole or not at all.

    Make it on an event loop.

    Parameters
    ----------
    what
        ``"read"`` or ``"write"``: it may take ``tensair.checkpoints.read`` or
        ``.write``, from its beginning.
    path
        Of the file or the folder, for people.
    function
        Is called at once.
    arguments
        Of the function.
    """

    def __init__(
        self,
        what: Literal["read", "write"],
        path: str,
        function: Callable[..., Any],
        *arguments: Any,
    ) -> None:
        self._what = what
        self._path = path
        self._limit = config.get_seconds(f"checkpoints.{what}")
        self._loop = asyncio.get_running_loop()
        self._deadline = self._loop.time() + self._limit
        self._future: asyncio.Future[Any] = self._loop.create_future()
        self._future.add_done_callback(_seen)
        threading.Thread(
            target=self._run,
            args=(function, arguments),
            name="tensair-checkpoint",
            daemon=True,
        ).start()

    def _run(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        try:
            method, value = self._future.set_result, function(*arguments)
        except BaseException as error:
            method, value = self._future.set_exception, error
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(method, value)

    async def ended(self) -> None:
        """Wait until it has ended, in whatever way.

        Raises
        ------
        CheckpointError
            If it does not in time.
        """
        left = self._deadline - self._loop.time()
        await asyncio.wait({self._future}, timeout=max(0.0, left))
        if not self._future.done():
            done = "read" if self._what == "read" else "written"
            raise CheckpointError(
                f"{self._path} was not {done} within {self._limit:g} s: its server is "
                "slow, or does not answer. Look at it; raise "
                f"tensair.checkpoints.{self._what} if it needs longer."
            )

    async def result(self) -> Any:
        """Wait for what the function returns, or raise what it raises; see `ended`."""
        await self.ended()
        return self._future.result()


def _seen(future: asyncio.Future[Any]) -> None:
    """Let nothing be logged as forgotten if nobody waits any longer."""
    if not future.cancelled():
        future.exception()
