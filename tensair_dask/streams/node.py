"""What all nodes share: two event loops, and references held to the end."""

from __future__ import annotations

import asyncio
import concurrent.futures
import functools
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import numpy as np
import streamz.core
from streamz import Stream

from tensair_dask import config
from tensair_dask._common.checks import allow, shown
from tensair_dask._common.held import Held
from tensair_dask._common.loops import is_running_here
from tensair_dask._common.other_libraries import no_such_argument
from tensair_dask.batches.batch import READY, RECORDS
from tensair_dask.batches.copies import as_values
from tensair_dask.coordinator.dead_letters import Letters
from tensair_dask.coordinator.intake import Intake
from tensair_dask.coordinator.on_error import check_on_error, is_raised
from tensair_dask.coordinator.replica_group import closed_error
from tensair_dask.errors import (
    BatchError,
    EventLoopError,
    RecordError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.reports import Report
from tensair_dask.streams.holding import (
    are_groups,
    count_held,
    pass_on_held,
    take_values,
    why_kept,
)
from tensair_dask.streams.overload import Overload
from tensair_dask.streams.routes import check_route, nodes_around
from tensair_dask.streams.sources.positions import Tracker
from tensair_dask.streams.streamz_patches import nodes_before, raise_upstream
from tensair_dask.trainer import Trainer

__all__ = [
    "REFUSALS",
    "OrderedNode",
    "TrainerNode",
    "form_of",
    "has_array",
    "is_nothing",
    "resolve_after",
]

logger = logging.getLogger(__name__)


# What nodes of streamz take besides.
_OF_STREAMZ = frozenset(inspect.signature(Stream.__init__).parameters)


# What an item itself is refused for.
REFUSALS = (BatchError, RecordError)


class TrainerNode(Stream):
    """What all nodes share: two event loops, and references held to the end.

    The trainer lives on its client's event loop, the stream on its own; most often
    they are one and the same, and nothing is handed over.
    """

    # As a `Receiver` of reports.
    is_stream = True

    # Whether checkpoints have to tell from where its sources are to be read again.
    learns = True

    # What was given to read items by, in place of the default.
    read_by: Callable[[Any], Any] | None = None

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        on_error: str = "dead-letter",
        **kwargs: Any,
    ) -> None:
        allow(
            isinstance(trainer, Trainer),
            f"trainer={shown(trainer)}",
            "give an open tensair_dask.Trainer, such as stream.train(trainer)",
        )
        if trainer.status == "closed":
            raise closed_error()
        intake = trainer.session.intake
        for name in kwargs:
            if name not in _OF_STREAMZ:
                call = f"Stream.{type(self).__name__}"
                known = inspect.signature(type(self).__init__).parameters
                raise no_such_argument(call, name, known)
        self._on_error = check_on_error(on_error)
        # Whether its items are copies that the node before it has made.
        self._are_values = take_values(upstream)
        # What is raised at the next emit, or drain; further ones are only counted.
        self._failure: Exception | None = None
        self._further = 0
        self._overload: Overload | None = None
        if self.learns:
            others = [each for each in list(intake.nodes) if each.learns]
            if text := check_route(upstream, self.read_by, others):
                intake.say_once_soon(f"routes {upstream} {id(upstream)}", text)
            _note_sources(upstream, intake)
        client = trainer.client
        if kwargs.get("loop") is None and upstream.loop is None:
            kwargs["loop"] = client.loop
        if kwargs.get("asynchronous") is None and upstream.asynchronous is None:
            kwargs["asynchronous"] = client.asynchronous or None
        super().__init__(upstream, **kwargs)
        _prepare(self)
        self._trainer = Held(trainer)
        # Streams hold what is downstream of them only weakly: without this, a node
        # whose reports nobody reads would vanish, and nothing be learned.
        intake.nodes.add(self)
        intake.holders.add(self._trainer)
        self._taking = Held(intake)
        intake.holders.add(self._taking)
        self._client_loop = client.loop.asyncio_loop
        # The loop of a stream is set once.
        self._on_client_loop = self.loop.asyncio_loop is self._client_loop
        _take_out_dead(self)

    @property
    def _is_dead(self) -> bool:
        """Whether its trainer is closed, so that it raises for each item."""
        intake = self._taking.value
        return intake is None or intake.is_closed

    @property
    def trainer(self) -> Trainer:
        """The trainer; once it is closed, for as long as others hold it.

        Raises
        ------
        TrainerClosedError
            If it was closed, and nobody holds it.
        """
        trainer = self._trainer()
        if trainer is None:
            raise closed_error()
        return trainer

    @property
    def intake(self) -> Intake:
        """What takes the items; errors as those of `trainer`."""
        intake = self._taking.value or self._taking()
        if intake is None:
            raise closed_error()
        return intake

    @property
    def hearer(self) -> Intake | None:
        """Who hears of the end of a source before it; None if nobody is left."""
        return self._taking()

    def destroy(self, streams: Any = None) -> None:
        """Take the node out of its stream."""
        super().destroy(streams)
        if (intake := self._taking()) is not None:
            intake.nodes.discard(self)

    def _value(self, item: Any) -> Any:
        """Take the values of an item that waits here before it is a mini-batch."""
        return item if self._are_values else as_values(item)

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Take an item; the result is awaited where no replica has room."""
        metadata = metadata or ()
        if not is_running_here(self.loop.asyncio_loop):
            return self._taken_from_outside(x, metadata)
        if metadata:
            self._retain_refs(metadata)
        if self._passes_over(x):
            return self._pass_over(metadata)
        if self._on_client_loop:
            rest = self._accept(x, metadata)
            # As a task: some sources, such as from_tcp, await nothing, and a coroutine
            # would never begin.
            return None if rest is None else asyncio.ensure_future(rest)
        work = asyncio.run_coroutine_threadsafe(
            self._accept_from_elsewhere(self._value(x), metadata), self._client_loop
        )
        return asyncio.wrap_future(work, loop=self.loop.asyncio_loop)

    def _taken_from_outside(self, x: Any, metadata: Sequence[Any]) -> Any:
        """Take an item that does not come on the event loop of the stream.

        It comes from an emit into a stream that was connected later, from
        ``collect.flush()`` in another thread, or from one whose loop does not run.
        """
        loop = self.loop.asyncio_loop
        if not loop.is_running():
            raise EventLoopError(
                f"The stream of {self} has an event loop that does not run, and so its "
                "items would be taken by nobody. Stream(asynchronous=True) is for "
                "coroutines: emit there, with await source.emit(item), under the loop "
                "in which the stream was made. In a plain script make it with Stream()."
            )
        work = asyncio.run_coroutine_threadsafe(
            self._take_here(self._value(x), metadata), loop
        )
        try:
            here = asyncio.get_running_loop()
        except RuntimeError:
            return self._wait_for(work)
        return asyncio.wrap_future(work, loop=here)

    async def _take_here(self, x: Any, metadata: Sequence[Any]) -> None:
        rest = self.update(x, metadata=metadata)
        if rest is not None:
            await rest

    def _wait_for(self, work: concurrent.futures.Future[None]) -> None:
        """Hold the thread up that emits, as an emit into a stream with a loop does."""
        seconds = config.get_seconds("timeouts.room")
        try:
            work.result(seconds)
        except concurrent.futures.TimeoutError:
            if work.done():  # it is the item's own error
                raise
            raise TensairTimeoutError(
                f"{self} did not take an item within {seconds:g} s "
                "(tensair.timeouts.room): no replica has room, or its event loop is "
                "held up. The item is taken when there is."
            ) from None

    def _passes_over(self, item: Any) -> bool:
        """Whether there is nothing to do for an item."""
        return is_nothing(item)

    def _pass_over(self, metadata: Sequence[Any]) -> None:
        """Be done with an item in which there is nothing."""
        if not metadata:
            return
        settle = functools.partial(self.let_go, metadata)
        if not self.learns:
            settle()
        elif self._on_client_loop:
            self.intake.pass_over(settle, metadata)
        else:
            self._client_loop.call_soon_threadsafe(
                self.intake.pass_over, settle, metadata
            )

    async def _accept_from_elsewhere(self, x: Any, metadata: Sequence[Any]) -> None:
        rest = self._accept(x, metadata)
        if rest is not None:
            await rest

    def _accept(self, x: Any, metadata: Sequence[Any]) -> Awaitable[Any] | None:
        """Take an item, unless there is an error to raise; then it is not taken."""
        if self._failure is not None:
            self._raise_failure()
        if self._is_dead:
            raise TrainerClosedError(
                f"{closed_error()} {self} is still a node of its stream, and raises "
                "for each item: take it out with node.destroy(). A node of a new "
                "trainer, put into the same stream, does so by itself."
            )
        rest = self._take(x, metadata)
        if self._failure is None:
            return rest
        if rest is not None:
            return self._raise_after(rest)
        self._raise_failure()  # of the item itself
        return None

    async def _raise_after(self, rest: Awaitable[Any]) -> None:
        await rest
        self._raise_failure()

    def _fail(self, error: Exception) -> None:
        if self._failure is None:
            self._failure = error
        else:
            self._further += 1

    def _raise_failure(self) -> None:
        error, self._failure = self._failure, None
        if error is None:
            return
        if self._further:
            logger.warning(
                "%s raises one error; its reports tell of %d further ones",
                self,
                self._further,
            )
            self._further = 0
        raise error

    def check(self) -> None:
        """Raise what could not be raised to an emit yet, or what ended the stream.

        Raises
        ------
        BatchError
            Of a mini-batch that was refused, where ``on_error="raise"``.
        StreamError
            If a node has ended from which this one gets its items.
        """
        self._raise_failure()
        raise_upstream(self)

    def _take(self, x: Any, metadata: Sequence[Any]) -> Awaitable[Any] | None:
        raise NotImplementedError

    def _feed(
        self,
        item: Any,
        collate: Callable[[Any], tuple[Any, Any]],
        metadata: Sequence[Any],
        look: Callable[[Report], None] | None = None,
        is_value: bool = False,
    ) -> Awaitable[None] | None:
        """Give an item to the trainer; emit its report; let go when it is learned."""
        return self.intake.feed(
            item,
            collate,
            self if look is None else _Looking(self, look),
            metadata,
            self._on_error,
            is_value or self._are_values or not self._on_client_loop,
        )

    def deliver(
        self,
        report: Report,
        metadata: Sequence[Any],
        look: Callable[[Report], None] | None = None,
    ) -> Awaitable[Any] | None:
        """Emit a report; from the client's event loop, as `let_go`."""
        if report.error is not None and is_raised(report.error, self._on_error):
            self._fail(report.error)
        if look is not None:
            look(report)
        return self._pass_on(report, metadata, release=False)

    def let_go(self, metadata: Sequence[Any]) -> None:
        """Release references."""
        if not metadata:
            return
        if self._on_client_loop:
            self._release_refs(metadata)
        else:
            self.loop.add_callback(self._release_refs, metadata)

    # ---- what waits here, where the policy of overload lets it -----------------------

    @property
    def queued(self) -> int:
        """Mini-batches that wait in the node, since no replica had room."""
        return self._overload.waiting if self._overload else 0

    @property
    def dropped(self) -> int:
        """Mini-batches that were dropped, since too many waited."""
        return self._overload.dropped if self._overload else 0

    def lag(self) -> float:
        """Seconds that the oldest one in the node has waited; 0 if none waits."""
        return self._overload.lag() if self._overload else 0.0

    async def emptied(self, timeout: float) -> None:
        """Wait until nothing waits in the node; see `Overload.emptied`."""
        if self._overload is not None:
            await self._overload.emptied(timeout)

    def rested(self) -> None:
        """Take note that all has been learned: an overload is over."""
        if self._overload is not None:
            self._overload.end()

    @property
    def holds(self) -> bool:
        """Whether nodes before this one hold items that they will pass on."""
        return count_held([self]) > 0

    async def pass_on_held(self, timeout: float) -> None:
        """Have nodes before this one pass on what they hold, as groups not full, too.

        Raises
        ------
        TensairTimeoutError
            If that takes more than ``timeout`` seconds.
        """
        await pass_on_held([self], timeout)

    def report_waiting(self, at_the_end: bool) -> None:
        """Say what waits, here or before, for something else than a replica.

        Once, and once more at the end.
        """
        end = "was" if at_the_end else "is"
        for node in nodes_before(self):
            if why := why_kept(node):
                self.intake.say_once(
                    f"kept {id(node)} {at_the_end}",
                    f"Not all that the stream node {node} was given {end} "
                    f"{'learned' if self.learns else 'predicted'} by {self}. It has "
                    f"not passed on {why}.",
                )

    def paired(self, pairs: Stream) -> None:
        """Say that a zip pairs reports of this node with items that it has got."""
        if self._is_dead:
            return
        self.intake.say_once_soon(
            f"paired {id(self)}",
            f"{pairs} pairs the reports of {self} with items of the same stream, one "
            "after the other. Reports come in the order in which replicas are done: "
            "beside a report stands another item. report.index is the number of its "
            "mini-batch, from 0 on, in the order in which they were given: keep the "
            "items by that, and take items.pop(report.index) where the report comes.",
        )

    def closed(self) -> None:
        """Give up what waits in the node."""
        if self._overload is not None:
            self._overload.close()

    # ---- downstream ------------------------------------------------------------------

    def _pass_on(
        self, result: Any, metadata: Sequence[Any], release: bool = True
    ) -> Awaitable[Any] | None:
        """Emit downstream, on the stream's loop, then let go of the references."""
        held = metadata if release else ()
        if not self._on_client_loop:
            work = asyncio.run_coroutine_threadsafe(
                self._emit_all(result, metadata, held), self.loop.asyncio_loop
            )
            return asyncio.wrap_future(work, loop=self._client_loop)
        try:
            rest = self._emit(result, metadata=metadata or [])
        except BaseException:
            self._release_refs(held)
            raise
        if rest:
            return self._finish(rest, held)
        if held:
            self._release_refs(held)
        return None

    async def _emit_all(
        self, result: Any, metadata: Sequence[Any], held: Sequence[Any]
    ) -> None:
        try:
            await _all(self._emit(result, metadata=metadata or []))
        finally:
            self._release_refs(held)

    async def _finish(self, rest: list[Any], held: Sequence[Any]) -> None:
        try:
            await _all(rest)
        finally:
            self._release_refs(held)


class _Looking:
    """Receives for a node, and lets a function see each report before it is emitted."""

    __slots__ = ("_look", "_node")

    is_stream = True

    def __init__(self, node: TrainerNode, look: Callable[[Report], None]) -> None:
        self._node = node
        self._look: Callable[[Report], None] | None = look

    def deliver(self, report: Report, metadata: Sequence[Any]) -> Any:
        look, self._look = self._look, None  # with what it holds
        return self._node.deliver(report, metadata, look)

    def let_go(self, metadata: Sequence[Any]) -> None:
        self._node.let_go(metadata)


def _prepare(node: Stream) -> None:
    """Let every stream before a node run on one event loop, and wait no longer than it.

    streamz tells a new node of the loop of one stream before it, and so of several
    side by side (union, zip) some would pass items on in whatever thread emits.
    """
    for each in nodes_before(node):
        if each.loop is None:
            each.loop = node.loop
        if each.asynchronous is None:
            each.asynchronous = node.asynchronous
        if isinstance(each, streamz.core.zip):
            each._tensair_bounded = True


def _take_out_dead(node: TrainerNode) -> None:
    """Take the nodes of closed trainers out of a stream that has a new one.

    They would raise for each item, and so keep it from the new one.
    """
    for each in list(nodes_around(node)):
        if isinstance(each, TrainerNode) and each is not node and each._is_dead:
            each.destroy()
            node.intake.say_once_soon(
                f"dead node {id(each)}",
                f"{each}, the node of a trainer that is closed, was taken out of its "
                "stream, which this trainer has got a node of.",
            )


def _note_sources(upstream: Stream, intake: Intake) -> None:
    for node in nodes_before(upstream):
        tracker = getattr(node, "tracker", None)
        if isinstance(tracker, Tracker):
            intake.reads(tracker)
        letters = getattr(node, "dead_letters", None)
        if isinstance(letters, Letters):
            intake.hears(letters)


class OrderedNode(TrainerNode):
    """A node that asks for many predictions at once and passes them on in order."""

    def __init__(self, upstream: Stream, trainer: Trainer, **kwargs: Any) -> None:
        super().__init__(upstream, trainer, **kwargs)
        # One for each item under way, in their order; resolved when it has passed.
        self._passing: deque[asyncio.Future[None]] = deque()

    def _queue_up(
        self,
    ) -> tuple[asyncio.Future[None] | None, asyncio.Future[None] | None]:
        """Take a place behind all items under way.

        Returns
        -------
        before, room
            What resolves when the item before has passed, and when there is room for
            this one; None where there is nothing to wait for.
        """
        passing = self._passing
        while passing and passing[0].done():
            passing.popleft()
        before = passing[-1] if passing else None
        most = self.trainer.session.inference.most
        room = passing[-most] if len(passing) >= most else None
        passing.append(asyncio.get_running_loop().create_future())
        return before, room


async def _all(awaitables: list[Any]) -> None:
    for awaitable in awaitables:
        await awaitable


def resolve_after(
    before: asyncio.Future[None] | None, passed: asyncio.Future[None]
) -> None:
    """Let the next item pass, but not before those in front of one that failed."""

    def resolve(_: object) -> None:
        if not passed.done():
            passed.set_result(None)

    if before is None:
        resolve(None)
    else:
        before.add_done_callback(resolve)


def form_of(upstream: Stream) -> str | None:
    """Find by the node before how items are to be read; None where it cannot be seen.

    Two streams side by side give x and y.
    """
    return {True: RECORDS, False: READY, None: None}[are_groups(upstream)]


def is_nothing(item: Any) -> bool:
    """Whether there is no row in an item, as in a window in which nothing came."""
    if type(item) is tuple and item and type(item[0]) is np.ndarray and item[0].size:
        return False  # most items, at the price of one look
    try:
        return _has_no_row(item)
    except Exception:  # of its own code: it is refused where it is collated
        return False


def _has_no_row(item: Any) -> bool:
    if isinstance(item, (tuple, list)):
        return all(map(_has_no_row, item))
    if isinstance(item, Mapping):
        return all(map(_has_no_row, item.values()))
    shape: Any = getattr(item, "shape", None)
    return bool(shape) and shape[0] == 0


def has_array(item: Any) -> bool:
    """Whether an item is an array or tensor, or holds one in tuples or lists."""
    if isinstance(item, (tuple, list)):
        return any(map(has_array, item))
    if isinstance(item, Mapping):
        return any(map(has_array, item.values()))
    return hasattr(item, "shape")
