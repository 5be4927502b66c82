"""The beginning of a stream that knows its position."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future
from types import TracebackType
from typing import Any, TypedDict, TypeVar, Unpack

from streamz import Stream
from streamz.core import RefCounter, get_io_loop, thread_state
from tornado.gen import convert_yielded

from tensair_dask import config
from tensair_dask._wording import in_words
from tensair_dask.errors import RaisedError, SourceError, TensairTimeoutError
from tensair_dask.streams.downstream import Takers, takers_of, trainers_after
from tensair_dask.streams.sources.positions import (
    Mark,
    Positions,
    Tracker,
    check_positions,
    named,
)

__all__ = ["Reference", "Source", "SourceOptions", "StreamOptions"]

logger = logging.getLogger(__name__)

AnySource = TypeVar("AnySource", bound="Source")

# Others on the event loop get their turn at least this often, in seconds, although
# nothing downstream ever makes the source wait.
TURN = 0.005

# How often a source that nobody takes items of looks for somebody, in seconds.
LOOK = 0.01


class Reference(RefCounter):
    """Counts who still needs an item; releases its mark when nobody does.

    Parameters
    ----------
    mark
        What is released. The reference begins with one holder, the source itself:
        a node that holds an item only while its ``update`` is awaited keeps it by that.
    """

    def __init__(self, mark: Mark) -> None:
        self.mark = mark
        self.count = 1
        self.cb = mark.released

    def release(self, n: int = 1) -> None:
        """Let go; the last one releases the mark, at once and on this thread."""
        self.count -= n
        if self.count <= 0:
            self.mark.released()


class StreamOptions(TypedDict, total=False):
    """Options of `streamz.Stream` that a source takes."""

    asynchronous: bool
    loop: Any
    ensure_io_loop: bool


class SourceOptions(StreamOptions, total=False):
    """Options that every source takes: see `Source`."""

    positions: Positions | None
    start: bool


class Source(Stream):
    """Base of the sources: start, stop, end, and marks for all that is emitted.

    Parameters
    ----------
    name
        In checkpoints; keep it the same from run to run. Of two that are open, and of
        which one trainer learns, each needs a name of its own.
    positions
        Where to continue: what a checkpoint keeps, ``{name: {partition: offset}}``.
    start
        Whether to start at once.
    **kwargs
        Of `streamz.Stream`: ``asynchronous=True`` for the event loop that runs here,
        else a loop in a thread (that of Dask's client where there is one).

    Attributes
    ----------
    tracker
        Its watermarks.

    Notes
    -----
    Emits on the stream's event loop, one item after the other. Back-pressure is the
    awaited emit. It begins when something is behind it that takes its items, and fails
    where nothing is within ``tensair.timeouts.source``: they would go nowhere.

    Each item carries streamz metadata ``{"ref": Reference, "mark": Mark}``, one for
    each partition that it has records of. When nobody holds the reference any more, the
    mark is released; so what a ``filter`` drops counts as done. Not every node of
    streamz 0.6.6 keeps references:

    - ``map``, ``starmap``, ``pluck``, ``filter``, ``unique``, ``accumulate``,
      ``union``, ``zip``, ``partition`` (also with ``timeout``), ``timed_window``,
      ``buffer``, ``delay`` and ``collect`` do, and ``flatten`` (see
      `tensair_dask.streams.streamz_patches`). ``sliding_window`` does, and holds the
      newest n - 1 items for ever.
    - ``rate_limit`` and ``map_async`` keep them only while their ``update`` is awaited:
      right behind a source, behind ``partition`` and behind ``buffer``, but not behind
      ``timed_window``, where items are released too early.
    - ``map_async`` releases an item whose function has raised, which it only logs.
    - ``latest``, ``combine_latest`` and ``zip_latest`` hold the newest item for ever;
      ``partition_unique`` all it emits, and ``timed_window_unique`` the doubles that it
      drops. The watermark stays below, and all from there on is read again after a
      restart.
    - What waits in a ``partition`` that is not full when the source ends is read again
      after a restart; ``timeout=`` lets it through.
    """

    def __init__(
        self,
        name: str,
        positions: Positions | None = None,
        start: bool = False,
        **kwargs: Unpack[StreamOptions],
    ) -> None:
        self._positions = check_positions(positions, name)
        asynchronous = bool(kwargs.pop("asynchronous", False))
        # Not by ensure_io_loop: that takes a loop in a thread, asynchronous or not.
        loop = kwargs.pop("loop", None) or get_io_loop(asynchronous)
        super().__init__(
            stream_name=name, loop=loop, asynchronous=asynchronous, **kwargs
        )
        self.tracker = Tracker(name)
        if positions and name not in positions:
            self._note(
                f"positions= of {name} has some for {named(positions)}, and none for "
                f"{name!r}: it is read as a source without positions. To go on at one "
                "of those, give the source its name=."
            )
        self._finished: Future[None] = Future()
        self._task: asyncio.Task[None] | None = None
        self._started = False
        self._stopping = False
        self._woken: asyncio.Event | None = None
        self._turn = 0.0
        # Whether the run that began last has had an item, and others said of one that
        # had none.
        self._gave = False
        self._said_empty = False
        if start:
            self.start()

    # ---- for users ------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether it was started and has not ended."""
        return self._started and not self._finished.done()

    def start(self) -> None:
        """Begin to emit; after `stop`, go on where it was stopped.

        Nothing is emitted before there is a node behind it that takes the items: it
        waits ``tensair.timeouts.source`` for one, and fails where none comes.

        Behind its end a source does not begin again: where nothing more has come by
        then, it ends at once, and a warning and an event say so.
        """
        if self.running:
            return
        if self._finished.done():
            self._finished = Future()
        self._started, self._stopping = True, False
        self.tracker.closed = False
        self.loop.add_callback(self._launch)

    def stop(self) -> None:
        """Emit no more when the item that is being emitted has passed."""
        self._stopping = True
        self.loop.add_callback(self._wake)

    async def ended(self) -> None:
        """Wait until everything was emitted, or the source was stopped or has failed.

        What was emitted may still be on its way: drain the trainer, then `close`.

        Raises
        ------
        SourceError
            If the source has failed, or was never started.
        Exception
            What a node downstream has raised, as it was raised.
        """
        self._check_started()
        await asyncio.shield(asyncio.wrap_future(self._finished))

    def join(self, timeout: float | None = None) -> None:
        """Wait like `ended`, on a thread without an event loop.

        Parameters
        ----------
        timeout
            Seconds; None waits as long as it takes.

        Raises
        ------
        TensairTimeoutError
            If it has not ended by then.
        SourceError
            As `ended`.
        """
        if self._on_the_loop():
            raise SourceError(
                f"join() of {self.name} was called on the event loop that it would "
                "wait for. Use await source.ended()."
            )
        self._check_started()
        try:
            self._finished.result(timeout)
        except TimeoutError as error:
            if self._finished.done():
                raise
            raise TensairTimeoutError(
                f"{self.name} has not ended within {timeout:g} s. Give join() more "
                "time, or call stop() first."
            ) from error

    def close(self, timeout: float | None = None) -> Any:
        """Stop, and let go of what the source holds. More than once is allowed.

        Awaitable on the stream's event loop. Close it when what it has emitted is
        learned, after ``trainer.drain()``, so that this is committed.

        Parameters
        ----------
        timeout
            Seconds for an emit that is under way, and for goodbyes; by default
            ``tensair.timeouts.close``. An emit that takes longer is cut short; what it
            emitted is not released.
        """
        closing = self._close(config.get_seconds("timeouts.close", timeout))
        if self._on_the_loop():
            return closing
        loop = self.loop.asyncio_loop
        return asyncio.run_coroutine_threadsafe(closing, loop).result()

    def __enter__(self: AnySource) -> AnySource:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    async def __aenter__(self: AnySource) -> AnySource:
        self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._close(config.get_seconds("timeouts.close"))

    # ---- for those who write sources ------------------------------------------------

    async def _run(self) -> None:
        """Emit everything; look at `_stopping` between two items."""
        raise NotImplementedError

    async def _let_go(self, timeout: float) -> None:
        """Close what was opened."""

    async def _taken(self) -> bool:
        """Wait until somebody takes what it emits; False where it is stopped before.

        Nodes are put behind it one after the other, perhaps in another thread or in
        the next cell of a notebook: what was emitted meanwhile would be lost.

        Raises
        ------
        SourceError
            If nobody does within ``tensair.timeouts.source``.
        """
        # A node may be taken out later, and another one be put in its place.
        if self._gave and self.downstreams:
            return True
        return await self._until_taken()

    async def _pass_on(self, item: Any, marks: Iterable[Mark]) -> None:
        """Emit an item; return when the stream has taken it."""
        await self._taken()
        self._gave = True
        references = [Reference(mark) for mark in marks]
        metadata = [{"ref": each, "mark": each.mark} for each in references]
        before = getattr(thread_state, "asynchronous", False)
        # Nodes that emit by themselves must know that this is an event loop.
        thread_state.asynchronous = True
        try:
            rest = self._emit(item, metadata=metadata)
        except BaseException as error:  # a CancelledError would end it unnoticed
            raise RaisedError.caught(error) from error.__cause__
        finally:
            thread_state.asynchronous = before
        if len(rest) == 1:
            await convert_yielded(rest[0])
        elif rest:
            await convert_yielded(rest)
        for reference in references:
            reference.release()
        now = time.monotonic()
        if now - self._turn > TURN:
            await asyncio.sleep(0)
            self._turn = time.monotonic()

    def _why_nothing(self) -> str:
        """Say why a run had no item, and what to do, in one sentence or two."""
        return "There is nothing to read"

    def _note(self, text: str) -> None:
        """Say something once: as a warning, and to the trainers that learn of it."""
        if self.tracker.note(text):
            logger.warning("%s", text)

    async def _pause(self, seconds: float) -> None:
        """Wait so long, or until the source is to stop."""
        assert self._woken is not None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._woken.wait()

    # ---- the inside -----------------------------------------------------------------

    def _launch(self) -> None:
        self._woken = asyncio.Event()
        if self._stopping:
            self._woken.set()
        self._turn = time.monotonic()
        self._gave = False
        self._task = asyncio.ensure_future(self._work(self._finished))

    def _check_started(self) -> None:
        if not self._started:
            raise SourceError(
                f"{self.name} was not started, and so never ends: call start() first, "
                "when all nodes are behind it."
            )

    async def _until_taken(self) -> bool:
        seconds = config.get_seconds("timeouts.source")
        until = time.monotonic() + seconds
        while (takers := takers_of(self)) is not Takers.SOMEBODY:
            if self._stopping:
                return False
            if time.monotonic() >= until:
                break
            await self._pause(LOOK)
        if takers is Takers.FUNCTIONS:
            self._note(
                f"What {self.name} emits ends at a function (map, filter, ...), and "
                "what that returns goes nowhere: no trainer and no sink is behind it. "
                "If it is to be learned, put .train(trainer) behind it before start(); "
                "if the function is all, give it to sink."
            )
        elif takers is Takers.NOBODY:
            raise SourceError(
                f"{self.name} has emitted nothing: its items would go nowhere. It was "
                f"started, and within {seconds:g} s (tensair.timeouts.source) nothing "
                "was put behind it that takes them. Put the nodes behind it, for "
                "example source.train(trainer), and call source.start() then."
                if not self._gave
                else f"{self.name} emits nothing more: nothing is behind it any more "
                f"that takes its items, and within {seconds:g} s "
                "(tensair.timeouts.source) nothing was put there. Put another node "
                "behind it, and call source.start()."
            )
        return True

    def _wake(self) -> None:
        if self._woken is not None:
            self._woken.set()

    async def _work(self, finished: Future[None]) -> None:
        try:
            await self._run()
        except asyncio.CancelledError:
            finished.set_result(None)
            raise
        except Exception as error:
            # Logged here, too: perhaps nobody awaits the end.
            logger.error("%s has failed: %s", self.name, error)
            self._report_failure(error)
            finished.set_exception(error)
        else:
            self._say_if_empty()
            finished.set_result(None)

    def _say_if_empty(self) -> None:
        """Say, once, that the source has ended and has given no item."""
        if self._gave or self._stopping or self._said_empty:
            return
        self._said_empty = True
        self._note(f"{self.name} has ended without an item: {self._why_nothing()}")

    def _report_failure(self, error: Exception) -> None:
        """Let the trainers behind it know, also those that were connected later."""
        for trainer in trainers_after(self):
            self.tracker.add_hearer(trainer)
        self.tracker.note(
            f"The source {self.name} has failed and gives nothing more: "
            f"{in_words(error)}",
            again=True,
        )

    async def _close(self, timeout: float) -> None:
        self.stop()
        await asyncio.sleep(0)  # a launch that was asked for comes before
        if self._task is not None and not self._task.done():
            await asyncio.wait({self._task}, timeout=timeout)
            if not self._task.done():
                self._task.cancel()
                await asyncio.wait({self._task})
        try:
            await self._let_go(timeout)
        finally:
            self.tracker.closed = True

    def _on_the_loop(self) -> bool:
        try:
            return asyncio.get_running_loop() is self.loop.asyncio_loop
        except RuntimeError:
            return False
