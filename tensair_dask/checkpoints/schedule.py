"""Checkpointer: writes checkpoints when they are due, while training goes on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Any

from dask.utils import parse_timedelta

from tensair_dask import config
from tensair_dask.checkpoints.checkpoint import Checkpoint
from tensair_dask.checkpoints.store import Store
from tensair_dask.checkpoints.timed_io import FileCall
from tensair_dask.errors import (
    CheckpointError,
    ConfigurationError,
    TrainerClosedError,
)

__all__ = ["Checkpointer"]

logger = logging.getLogger(__name__)

_NEVER = 1 << 62


class Checkpointer:
    """Takes a checkpoint every so often, and writes it on a thread of its own.

    Belongs to an event loop, that of the client, which it never holds up. One
    checkpoint is added to the store at a time; if the next is due meanwhile, it follows
    when that is done.

    Parameters
    ----------
    store
        Where they are added; None if nothing is ever due.
    every
        A whole number of mini-batches; or a time: ``"10s"``, a timedelta, or seconds
        as a float. None for never: `write_now` only.
    take
        Gives the checkpoint; awaited on the event loop. What it gives must not change
        afterwards.
    done
        Called on the event loop with a checkpoint that was added to the store, the path
        of its file, and the seconds that it took in all.
    failed
        Called on the event loop with the error of the first in a row that was not.

    Attributes
    ----------
    written, failures
        Checkpoints that were due and were written, or could not be.
    last_path
        The newest one that was written; empty before the first.
    last_error
        Why the last one could not be written; None if it was.

    Notes
    -----
    One that fails is tried again when the next is due: the stream goes on without it.
    The first failure in a row is logged. Nothing is added while an earlier one is still
    being written, which may hang: so there is never more than one that does.
    """

    def __init__(
        self,
        store: Store | None,
        every: int | float | str | timedelta | None,
        take: Callable[[], Awaitable[Checkpoint]],
        done: Callable[[Checkpoint, str, float], Any] | None = None,
        failed: Callable[[Exception], Any] | None = None,
    ) -> None:
        self._batches, self._seconds = parse_every(every)
        if store is None and every is not None:
            raise ConfigurationError(
                f"every={every!r} was given and no path; give the path of a folder."
            )
        self._store = store
        self._take = take
        self._done = done
        self._failed = failed
        self._next = _NEVER if self._batches is None else -1
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._again = False
        self._closed = False
        self._begun = 0.0  # set when the first mini-batch is noticed
        # Adding to the store, in turns; and what was begun last.
        self._turn = asyncio.Lock()
        self._adding: FileCall | None = None
        self.written = 0
        self.failures = 0
        self.last_path = ""
        self.last_error: Exception | None = None

    # ---- when -----------------------------------------------------------------------

    def noticed(self, index: int) -> None:
        """Take note that mini-batch ``index`` has been reported; cheap."""
        if index >= self._next:
            self._count(index)
        elif self._seconds is not None and self._timer is None:
            self._wind()

    def _count(self, index: int) -> None:
        assert self._batches is not None
        first = self._next < 0
        done = index + 1
        # At whole multiples, also after a restart in between.
        self._next = (done // self._batches + 1) * self._batches - 1
        if not first or done % self._batches == 0:
            self._begin()

    def _wind(self) -> None:
        """Have the next one come when it is due, now that there is something new."""
        assert self._seconds is not None
        if self._closed:
            return
        loop = asyncio.get_running_loop()
        self._begun = self._begun or loop.time()
        due = max(loop.time(), self._begun + self._seconds)
        self._timer = loop.call_at(due, self._ring)

    def _ring(self) -> None:
        self._timer = None
        self._begun = asyncio.get_running_loop().time()
        self._begin()

    def _begin(self) -> None:
        if self._closed:
            return
        if self._task is not None and not self._task.done():
            self._again = True
            return
        self._task = asyncio.ensure_future(self._run())

    # ---- writing --------------------------------------------------------------------

    async def _run(self) -> None:
        assert self._store is not None
        self._again = True
        while self._again and not self._closed:
            self._again = False
            start = time.perf_counter()
            try:
                checkpoint, path = await self._add(self._store)
            except TrainerClosedError:
                return
            except Exception as error:
                self._note_failure(error)
                continue
            self.written += 1
            self._note_success(checkpoint, path, time.perf_counter() - start)

    def _note_success(self, checkpoint: Checkpoint, path: str, seconds: float) -> None:
        self.last_path = path
        self.last_error = None
        _call(self._done, checkpoint, path, seconds)

    def _note_failure(self, error: Exception) -> None:
        first = self.last_error is None
        self.failures += 1
        self.last_error = error
        if first:
            logger.warning(
                "A checkpoint could not be written; it is tried again when the next "
                "is due. %s: %s",
                type(error).__name__,
                error,
            )
            _call(self._failed, error)

    async def _add(self, store: Store) -> tuple[Checkpoint, str]:
        async with self._turn:
            if self._adding is not None:
                # Nobody waits for it any longer; its file may come yet.
                await self._adding.ended()
            checkpoint = await self._take()
            self._adding = FileCall("write", store.path, store.add, checkpoint)
            return checkpoint, await self._adding.result()

    async def write_now(self, to: Store | None = None) -> str:
        """Take a checkpoint now and write it.

        Parameters
        ----------
        to
            Where it is saved as one file; None to add it to those that are written
            every so often, after one that is being added.

        Returns
        -------
        path
            Of the file.

        Raises
        ------
        CheckpointError
            If it cannot be written, or is not in ``tensair.checkpoints.write``.
        TrainerClosedError
            If the checkpointer is closed.
        """
        if self._closed:
            raise TrainerClosedError("The trainer is closed; save before closing it.")
        if to is not None:
            checkpoint = await self._take()
            path: str = await FileCall("write", to.path, to.save, checkpoint).result()
            return path
        if self._store is None:
            raise CheckpointError(
                "No path was given, and the trainer has no folder for checkpoints; "
                "give one, for example trainer.save('model.tensair')."
            )
        start = time.perf_counter()
        checkpoint, path = await self._add(self._store)
        self._note_success(checkpoint, path, time.perf_counter() - start)
        return path

    async def settled(self) -> None:
        """Wait until what is due is written, or has failed."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def close(self, timeout: float | None = None) -> None:
        """End it: what is being written may be finished, and nothing else begins.

        Parameters
        ----------
        timeout
            Seconds that this may take; ``tensair.checkpoints.close`` by default. Then
            nobody waits for it any longer; its file appears whole, or not at all.
        """
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._task is None or self._task.done():
            return
        limit = config.get_seconds("checkpoints.close", timeout)
        _, late = await asyncio.wait({self._task}, timeout=limit)
        if late:
            logger.warning(
                "A checkpoint was not written within %g s of closing, and is given "
                "up; raise tensair.checkpoints.close if that should wait longer",
                limit,
            )
            self._task.cancel()
            await asyncio.wait({self._task})


def parse_every(every: Any) -> tuple[int | None, float | None]:
    """Read how often: mini-batches, or seconds.

    Raises
    ------
    ConfigurationError
        If it is neither, or not above 0.
    """
    batches: int | None = None
    seconds: float | None = None
    if isinstance(every, int) and not isinstance(every, bool):
        batches = every
    elif isinstance(every, (float, str, timedelta)):
        # A number in a string would be read as a time.
        if not isinstance(every, str) or not _is_number(every):
            with contextlib.suppress(ValueError, KeyError):
                seconds = float(parse_timedelta(every, default="s"))
    elif every is None:
        return None, None
    amount = batches if seconds is None else seconds
    if amount is None or not 0 < amount < float("inf"):
        raise ConfigurationError(
            f"checkpoint_every={every!r} was given; allowed are a whole number of "
            "mini-batches (1000), or a time as text with its unit ('10s'), as a "
            "timedelta, or as a float in seconds (10.0), above 0."
        )
    return batches, seconds


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return not any(map(str.isalpha, text))
    return True


def _call(function: Callable[..., Any] | None, *arguments: Any) -> None:
    if function is None:
        return
    try:
        function(*arguments)
    except Exception:
        logger.exception("What was to be called about a checkpoint failed")
