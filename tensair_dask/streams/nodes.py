"""streamz nodes: `train`, `predict`, `predict_then_train`, and `try_map` beside them.

Importing this module adds the methods to `streamz.Stream`.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import inspect
import logging
import math
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import streamz.core
from streamz import Stream

from tensair_dask import config
from tensair_dask._common.checks import allow, shown, whole
from tensair_dask._common.held import Held
from tensair_dask._common.loops import is_running_here
from tensair_dask._common.other_libraries import no_such_argument
from tensair_dask.batches.batch import READY, RECORDS, refusing
from tensair_dask.batches.copies import as_values
from tensair_dask.batches.outputs import contents
from tensair_dask.batches.predictions import why_no_inputs
from tensair_dask.coordinator.calls import closed_error
from tensair_dask.coordinator.dead_letters import Letters
from tensair_dask.coordinator.on_error import check_on_error, is_raised
from tensair_dask.errors import (
    BatchError,
    ConfigurationError,
    EventLoopError,
    KilledReplicasError,
    NonFiniteError,
    RaisedError,
    RecordError,
    TensairError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.prequential import Prequential
from tensair_dask.prequential.common_label import CommonLabel
from tensair_dask.prequential.delayed_labels import Delay, UntilDue
from tensair_dask.prequential.inputs import as_seconds
from tensair_dask.reports import Report
from tensair_dask.streams.holding import (
    are_groups,
    count_held,
    pass_on_held,
    take_values,
    why_kept,
)
from tensair_dask.streams.overload import Overload, check_overload
from tensair_dask.streams.record_form import Inputs, Pairs
from tensair_dask.streams.routes import check_route, nodes_around
from tensair_dask.streams.sources.positions import Tracker
from tensair_dask.streams.streamz_patches import nodes_before, raise_upstream
from tensair_dask.streams.try_map import try_map
from tensair_dask.trainer import Trainer

__all__ = ["predict", "predict_then_train", "train", "try_map"]

logger = logging.getLogger(__name__)

# What nodes of streamz take besides.
_OF_STREAMZ = frozenset(inspect.signature(Stream.__init__).parameters)

# What an item itself is refused for.
_REFUSALS = (BatchError, RecordError)


class _TrainerNode(Stream):
    """What all nodes share: two event loops, and references held to the end.

    The trainer lives on its client's event loop, the stream on its own; most often
    they are one and the same, and nothing is handed over.
    """

    # Whether checkpoints have to tell from where its sources are to be read again.
    _learns = True

    # What was given to read items by, in place of the default.
    _read_by: Callable[[Any], Any] | None = None

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
        if trainer.is_closed:
            raise closed_error()
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
        if self._learns:
            others = [each for each in list(trainer.nodes) if each._learns]
            if text := check_route(upstream, self._read_by, others):
                trainer.tell(f"routes {upstream} {id(upstream)}", text)
            _note_sources(upstream, trainer)
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
        trainer.nodes.add(self)
        trainer.holders.add(self._trainer)
        self._client_loop = client.loop.asyncio_loop
        _take_out_dead(self)

    @property
    def _is_dead(self) -> bool:
        """Whether its trainer is closed, so that it raises for each item."""
        trainer = self._trainer()
        return trainer is None or trainer.is_closed

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
    def hearer(self) -> Trainer | None:
        """Who is told what ends a source before it; None if nobody is left."""
        return self._trainer()

    def destroy(self, streams: Any = None) -> None:
        """Take the node out of its stream."""
        super().destroy(streams)
        trainer = self._trainer()
        if trainer is not None:
            trainer.nodes.discard(self)

    @property
    def _on_client_loop(self) -> bool:
        return self.loop.asyncio_loop is self._client_loop

    def _value(self, item: Any) -> Any:
        """Take the values of an item that waits here before it is a mini-batch."""
        return item if self._are_values else as_values(item)

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Take an item; the result is awaited where no replica has room."""
        metadata = metadata or []
        if not is_running_here(self.loop.asyncio_loop):
            return self._taken_from_outside(x, metadata)
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

    def _taken_from_outside(self, x: Any, metadata: list[Any]) -> Any:
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

    async def _take_here(self, x: Any, metadata: list[Any]) -> None:
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
        return _is_nothing(item)

    def _pass_over(self, metadata: list[Any]) -> None:
        """Be done with an item in which there is nothing."""
        if not metadata:
            return
        settle = functools.partial(self._let_go, metadata)
        if not self._learns:
            settle()
        elif self._on_client_loop:
            self.trainer.pass_over(settle, metadata)
        else:
            self._client_loop.call_soon_threadsafe(
                self.trainer.pass_over, settle, metadata
            )

    async def _accept_from_elsewhere(self, x: Any, metadata: list[Any]) -> None:
        rest = self._accept(x, metadata)
        if rest is not None:
            await rest

    def _accept(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        """Take an item, unless there is an error to raise; then it is not taken."""
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

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        raise NotImplementedError

    def _feed(
        self,
        item: Any,
        collate: Callable[[Any], tuple[Any, Any]],
        metadata: list[Any],
        deliver: Callable[[Report], None] | None = None,
        is_value: bool = False,
    ) -> Awaitable[None] | None:
        """Give an item to the trainer; emit its report; let go when it is learned."""

        def emit(report: Report) -> Awaitable[Any] | None:
            if report.error is not None and is_raised(report.error, self._on_error):
                self._fail(report.error)
            if deliver is not None:
                deliver(report)
            return self._pass_on(report, metadata, release=False)

        return self.trainer.feed(
            item,
            collate,
            emit,
            functools.partial(self._let_go, metadata),
            metadata,
            self._on_error,
            is_value or self._are_values or not self._on_client_loop,
        )

    def _let_go(self, metadata: list[Any]) -> None:
        """Release references, from the client's event loop."""
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

    def tell_waiting(self, at_the_end: bool) -> None:
        """Say what waits, here or before, for something else than a replica.

        Once, and once more at the end.
        """
        end = "was" if at_the_end else "is"
        for node in nodes_before(self):
            if why := why_kept(node):
                self.trainer.say_once(
                    f"kept {id(node)} {at_the_end}",
                    f"Not all that the stream node {node} was given {end} "
                    f"{'learned' if self._learns else 'predicted'} by {self}. It has "
                    f"not passed on {why}.",
                )

    def paired(self, pairs: Stream) -> None:
        """Say that a zip pairs reports of this node with items that it has got."""
        if self._is_dead:
            return
        self.trainer.tell(
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
        self, result: Any, metadata: list[Any], release: bool = True
    ) -> Awaitable[Any] | None:
        """Emit downstream, on the stream's loop, then let go of the references."""
        held = metadata if release else []
        if not self._on_client_loop:
            work = asyncio.run_coroutine_threadsafe(
                self._emit_all(result, metadata, held), self.loop.asyncio_loop
            )
            return asyncio.wrap_future(work, loop=self._client_loop)
        try:
            rest = self._emit(result, metadata=metadata)
        except BaseException:
            self._release_refs(held)
            raise
        if rest:
            return self._finish(rest, held)
        self._release_refs(held)
        return None

    async def _emit_all(
        self, result: Any, metadata: list[Any], held: list[Any]
    ) -> None:
        try:
            await _all(self._emit(result, metadata=metadata))
        finally:
            self._release_refs(held)

    async def _finish(self, rest: list[Any], held: list[Any]) -> None:
        try:
            await _all(rest)
        finally:
            self._release_refs(held)


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


def _take_out_dead(node: _TrainerNode) -> None:
    """Take the nodes of closed trainers out of a stream that has a new one.

    They would raise for each item, and so keep it from the new one.
    """
    for each in list(nodes_around(node)):
        if isinstance(each, _TrainerNode) and each is not node and each._is_dead:
            each.destroy()
            node.trainer.tell(
                f"dead node {id(each)}",
                f"{each}, the node of a trainer that is closed, was taken out of its "
                "stream, which this trainer has got a node of.",
            )


def _note_sources(upstream: Stream, trainer: Trainer) -> None:
    for node in nodes_before(upstream):
        tracker = getattr(node, "tracker", None)
        if isinstance(tracker, Tracker):
            trainer.reads(tracker)
        letters = getattr(node, "dead_letters", None)
        if isinstance(letters, Letters):
            trainer.hears(letters)


class _OrderedNode(_TrainerNode):
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
        most = self.trainer._most_predictions
        room = passing[-most] if len(passing) >= most else None
        passing.append(asyncio.get_running_loop().create_future())
        return before, room


async def _all(awaitables: list[Any]) -> None:
    for awaitable in awaitables:
        await awaitable


@Stream.register_api()
class train(_TrainerNode):
    """Learn every item of a stream; emit one report for each.

    Parameters
    ----------
    upstream
        Gives ready arrays ``(x, y)``, or tuples of records ``(x, y)`` as
        ``Stream.partition(n)`` makes them: one of the two, which is decided once, by
        the node before, or by the first item that fits one of them only. What fits
        both until then is refused. Where there is no row in an item, such as in a
        window in which nothing came, it is passed over.
    trainer
        An open `Trainer`, which gets the items of the stream by this node only: a
        second one beside it is refused, and one that gets them by another route is
        said. Nodes of trainers that are closed are taken out of the stream.
    collate
        ``collate(item) -> (x, y)``, in place of telling the two forms apart.
    on_error
        What is done with a mini-batch that the model cannot take, besides the report
        with its ``error``. ``"dead-letter"``: it is kept in ``trainer.dead_letters``.
        ``"skip"``: it is only counted there. ``"raise"``: its error is raised to who
        feeds the stream.
    overload
        What is done when no replica has room. ``"block"``: the awaited ``emit`` waits,
        which slows the source down. For a source that cannot be slowed down, such as a
        live socket, ``emit`` waits for nothing, and mini-batches wait in the node.
        When they are too many, ``"drop-oldest"`` drops the one that has waited longest,
        and ``"sample"`` any of them: what is learned is a uniform sample of what came.
    waiting
        Mini-batches that may wait in the node, by default ``tensair.overload.waiting``;
        not with ``"block"``, where none do.

    Attributes
    ----------
    queued, dropped
        Mini-batches that wait in the node, and that were dropped there. All are
        counted in ``trainer.dropped``.

    Notes
    -----
    Emits a `Report` for each mini-batch in the order of completion, which differs
    between replicas; ``report.index`` is the order of submission.

    Back-pressure: the awaited ``emit`` returns when a replica has room. References in
    streamz ``metadata`` are held until the report has passed through the stream and all
    replicas have applied the gradient, so that a source commits its position only for
    what has been learned. They stay held where all replicas were lost. Those of what is
    dropped, or refused and not raised, are released: it is done with.

    An error is raised at an awaited ``emit``, or by ``trainer.drain``, once. A replica
    may refuse a mini-batch after its ``emit`` has returned; then the next one raises
    the error, and its own item is not taken. So is what a replica answers to one that
    waited in the node. References of what was refused, and of the item that was not
    taken, stay held: a source that commits by them reads both again.

    What is dropped gives no report and has no index. An overload is one of the
    ``trainer.events`` where it begins and where it ends. See `WaitingRoom` for how it
    is sampled.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], tuple[Any, Any]] | None = None,
        on_error: str = "dead-letter",
        overload: str = "block",
        waiting: int | None = None,
        **kwargs: Any,
    ) -> None:
        check_overload(overload, waiting)
        if overload != "block":
            waiting = config.get("overload.waiting", waiting)
            check_overload(overload, waiting)
        self._read_by = collate
        super().__init__(upstream, trainer, on_error, **kwargs)
        self._collate = collate or Pairs(_form_of(upstream))
        if overload != "block":
            self._overload = Overload(
                overload,
                int(waiting or 0),
                self._feed_one,
                self._drop,
                self._fail,
                lambda text: self.trainer._note("note", text),
                config.get_seconds("overload.calm"),
            )

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        if self._overload is None:
            return self._feed(x, self._collate, metadata)
        self._overload.offer((self._value(x), metadata))
        return None

    def _feed_one(self, held: tuple[Any, list[Any]]) -> Awaitable[Any] | None:
        item, metadata = held
        return self._feed(item, self._collate, metadata, is_value=True)

    def _drop(self, held: tuple[Any, list[Any]]) -> None:
        _, metadata = held
        self.trainer.dropped += 1
        settle = functools.partial(self._let_go, metadata)
        self.trainer.pass_over(settle, metadata)


@Stream.register_api()
class predict(_OrderedNode):
    """Predict for every item of a stream with the model as it is at that time.

    Parameters
    ----------
    upstream
        Gives ready inputs ``x`` (an array, or a tuple or dict of arrays), or tuples of
        single samples as ``Stream.partition(n)`` makes them: one of the two, as in
        `train`.
    trainer
        An open `Trainer`.
    collate
        ``collate(item) -> x``, in place of telling the two forms apart.
    details
        Whether to emit `Prediction` objects: besides the value, which version of the
        model it is from, how old that was, and which replica answered.
    on_error
        What is done with an item that the model cannot take. ``"raise"``: its typed
        error is raised at the awaited ``emit``, which ends most sources.
        ``"dead-letter"``: it is kept in ``trainer.dead_letters``. ``"skip"``: it is
        only counted there.

    Notes
    -----
    Emits what ``trainer.predict`` returns, in the order of the items. An item that the
    model cannot take is left out, whatever becomes of its error; those before and
    behind it are emitted in their order. An array without rows is answered by one, if
    the model can take it; a window in which nothing came (an empty tuple or list) is
    passed over. What the cluster cannot answer is raised in
    any case.

    Back-pressure: the awaited ``emit`` returns when the prediction has passed through
    the stream. Items that are emitted side by side are predicted side by side:
    ``tensair.predictions.max-in-flight`` for each replica, the others wait. A source
    that awaits each ``emit`` has one item under way: put ``partition`` before to
    predict many records at once.
    """

    _learns = False

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        collate: Callable[[Any], Any] | None = None,
        details: bool = False,
        on_error: str = "raise",
        **kwargs: Any,
    ) -> None:
        super().__init__(upstream, trainer, on_error=on_error, **kwargs)
        self._collate = collate or Inputs(_form_of(upstream))
        self._details = details
        # Which zip puts what it gives beside what it gets.
        self._pairs: Stream | None = None

    def paired(self, pairs: Stream) -> None:
        """Say it where an item may have no prediction; else when one has none."""
        self._pairs = pairs
        if self._on_error != "raise" and not self._is_dead:
            self._tell_of_pairs(f"with on_error={self._on_error!r} it leaves out")

    def _tell_of_pairs(self, what: str) -> None:
        self.trainer.tell(
            f"paired {id(self)}",
            f"{self._pairs} pairs the predictions of {self} with items of the same "
            f"stream, one after the other; {what} items that the model cannot take, "
            "and all predictions behind one stand beside another item. Let such items "
            "out before the stream parts, for example with .try_map(check, trainer); "
            "or predict in one place, .map_async(ask) with a coroutine ask(x) that "
            "returns (x, await trainer.predict(x)).",
        )

    def _passes_over(self, item: Any) -> bool:
        # An array without rows has an answer without rows; a window in which nothing
        # came holds no array.
        return _is_nothing(item) and not _has_array(item)

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        return self._predict(self._value(x), metadata)

    async def _predict(self, item: Any, metadata: list[Any]) -> None:
        before, room = self._queue_up()
        passed = self._passing[-1]
        try:
            try:
                if room is not None:
                    await asyncio.wait([room])
                prediction = await self._answer(item)
                if before is not None:  # replicas answer in any order
                    await asyncio.wait([before])
            except BaseException as error:
                self._let_go(metadata)
                if self._pairs is not None and isinstance(error, _REFUSALS):
                    self._tell_of_pairs("it has just left out one of the")
                if self._on_error == "raise" or not isinstance(error, _REFUSALS):
                    raise
                self.trainer.refuse_question(item, error, metadata, self._on_error)
                return
            rest = self._pass_on(prediction, metadata)
            if rest is not None:
                await rest
        finally:
            _resolve_after(before, passed)

    async def _answer(self, item: Any) -> Any:
        with refusing():
            x = self._collate(item)
        if isinstance(self._collate, Inputs):
            self._check_inputs(x)
        return await self.trainer._predict(x, self._details)

    def _check_inputs(self, x: Any) -> None:
        """Refuse pairs (x, y), of which y would be taken for an input of the model."""
        learned = self.trainer._structures
        advice = (
            "If the items are pairs (x, y), put .pluck(0) before predict, and "
            ".map(lambda pair: pair[0]) before partition(n); if all of it is for the "
            "model, such as a mask, say so: predict(trainer, collate=lambda item: "
            "item), or collate=tensair_dask.batches.stack behind partition(n)"
        )
        if why := why_no_inputs(x, learned):
            raise BatchError(f"The item cannot be predicted: {why}. {advice}.")
        if isinstance(x, tuple) and not learned:
            self.trainer.say_once(
                f"inputs {id(self)}",
                f"{self} takes the {len(x)} arrays of an item for arguments of the "
                f"model, in their order. {advice}.",
            )


def _resolve_after(
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


@dataclass(slots=True)
class _Asked:
    """A mini-batch that was predicted, and waits for its labels to be learned.

    Attributes
    ----------
    item, pair
        What the stream gave, and ``(x, y)`` of it.
    samples
        Rows.
    metadata
        References that are held until its report has passed.
    key
        Of its predictions in the scores; None where these have none.
    moments
        When each of its records came, on the clock of the delay.
    prediction
        What the model returned; None where it could not.
    deadly
        Why it is not learned: replicas were lost with its prediction.
    """

    item: Any = field(repr=False)
    pair: tuple[Any, Any] = field(repr=False)
    samples: int
    metadata: list[Any]
    key: Hashable | None
    moments: list[float]
    prediction: Any = field(default=None, repr=False)

    @property
    def moment(self) -> float:
        """When the last of its records came."""
        return max(self.moments)

    deadly: KilledReplicasError | None = None


@Stream.register_api()
class predict_then_train(_OrderedNode):
    """Predict every mini-batch when it comes; learn it when its labels have come.

    Parameters
    ----------
    upstream
        As in `train`.
    trainer
        An open `Trainer`.
    scores
        A `Prequential` without a delay of its own, which scores the predictions; its
        baselines guess for one record after the other, each knowing the labels that
        had come before that record. None for none.
    delay
        How much later than the records their labels come: records as a whole number,
        or a time (``"2h"``, a timedelta, seconds as a float), which needs ``moment``.
        A mini-batch is learned as a whole, when the label of its last record has come.
        None for at once.
    collate
        As in `train`.
    decide
        ``decide(output) -> y_pred``, which makes of the model's output what ``scores``
        takes: labels, numbers or probabilities. By default the arg max over the classes
        where the output is two-dimensional, else its values.
    moment
        ``moment(item)``, when the records of an item came: seconds or a date, one for
        all of them or one for each.
    pending
        Records that may wait for their labels. Mini-batches beyond are refused, with a
        `BatchError` in their report; ``on_error`` says what is done with them.
    on_error
        As in `train`.

    Attributes
    ----------
    unscored
        Records whose prediction could not be scored; the first reason is logged.

    Notes
    -----
    Emits a `Report` for each mini-batch that was learned, as `train` does; its
    ``prediction`` is what was predicted when the mini-batch came. ``flush`` learns
    what still waits at the end of a stream; `Trainer.drain` does not, and says how many
    records wait.

    Each mini-batch is asked for at a replica and, later, sent to be learned: two
    messages. Without a delay, and with a trainer that has ``keep_predictions=True``,
    one is enough: the mini-batch is scored by the forward pass that training makes (in
    training mode, so with dropout).

    Back-pressure: the awaited ``emit`` returns when the mini-batch was predicted, and
    replicas had room for all whose labels came with it. References in streamz
    ``metadata`` are held until the report has passed through the stream, so also while
    the labels are waited for.

    What `train` would refuse is refused here: a report with its ``error`` comes when
    its labels come, or at once if the item is no mini-batch.
    """

    def __init__(
        self,
        upstream: Stream,
        trainer: Trainer,
        scores: Prequential | None = None,
        delay: Any = None,
        collate: Callable[[Any], tuple[Any, Any]] | None = None,
        decide: Callable[[Any], Any] | None = None,
        moment: Callable[[Any], Any] | None = None,
        pending: int = 100_000,
        on_error: str = "dead-letter",
        **kwargs: Any,
    ) -> None:
        _check_kinds(trainer, scores, collate=collate, decide=decide, moment=moment)
        pending = whole("pending", pending, 1, 100_000)
        later = Delay.of(0 if delay is None else delay)
        _check_delay(later, delay, scores, moment, pending)
        self._read_by = collate
        super().__init__(upstream, trainer, on_error=on_error, **kwargs)
        self._scores = scores
        self._delay, self._later = later, delay
        self._collate = collate or Pairs(_form_of(upstream))
        self._decide = _decided if decide is None else functools.partial(_told, decide)
        self._labels = CommonLabel() if scores is not None else None
        if scores is not None:
            trainer.scored_by(scores)
        self._moment = moment
        self._pending = pending
        self._one_pass = delay is None and trainer._recipe.keep_predictions
        self._held: UntilDue[_Asked] = UntilDue()
        self._records = 0
        self._now = -math.inf
        # In one pass: what there is to score, by number, until all before has come.
        self._number = 0
        self._settled = 0
        self._outcomes: dict[int, tuple[Any, Any, int] | None] = {}
        self.unscored = 0

    @property
    def waiting(self) -> int:
        """Records that wait for their labels."""
        return self._held.waiting

    def tell_waiting(self, at_the_end: bool) -> None:
        """Say also how many records wait for their labels."""
        super().tell_waiting(at_the_end)
        if not self.waiting:
            return
        count = f"{self.waiting} records of predict_then_train(delay={self._later!r})"
        if at_the_end:
            text = f"{count} still waited for their labels, and were not learned."
        else:
            text = f"{count} wait for their labels, and are not learned yet."
        self.trainer.say_once(
            f"labels awaited {id(self)} {at_the_end}",
            f"{text} Where no more items come, call flush() of that node before "
            "drain(), and before the end of `with`: it lets their labels come.",
        )

    def flush(self) -> Any:
        """Let all labels come that the delay holds back, as at the end of a stream.

        Awaitable where the trainer's methods are. Returns when replicas had room for
        all of it; `Trainer.drain` waits until it is learned.
        """
        return self.trainer._sync_with_streams(self._flush)

    async def _flush(self) -> None:
        if self._passing:
            await asyncio.wait([self._passing[-1]])
        await self._answer(math.inf)

    def _take(self, x: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        if self._one_pass:
            return self._train_at_once(x, metadata)
        number, self._number = self._number, self._number + 1
        x = self._value(x)
        try:
            pair = self._collate(x)
            if not isinstance(self._collate, Pairs):  # it may use its arrays again
                pair = as_values(pair)
            names = self.trainer._column_names
            samples = names.batch(*pair, owned=True).samples
            pair = names.ordered(*pair)  # y is scored here
            moments = self._moments_of(x, samples)
        except BaseException as error:
            return self._refuse(x, RaisedError.caught(error), metadata)
        asked = _Asked(x, pair, samples, metadata, (id(self), number), moments)
        self._records += samples
        return self._pass_through(asked)

    def _moments_of(self, item: Any, samples: int) -> list[float]:
        """When each record of an item came, on the clock of the delay."""
        if not self._delay.in_time:
            return [float(self._records + at) for at in range(samples)]
        assert self._moment is not None
        return as_seconds(self._moment(item), samples)

    def _refuse(
        self, item: Any, error: Exception, metadata: list[Any]
    ) -> Awaitable[Any] | None:
        """Let the trainer report what is no mini-batch, or must not wait."""

        def refuse(_: Any) -> tuple[Any, Any]:
            raise error

        return self._feed(item, refuse, metadata)

    # ---- a question now, the answer later ------------------------------------------

    async def _pass_through(self, asked: _Asked) -> None:
        before, room = self._queue_up()
        passed = self._passing[-1]
        try:
            if room is not None:
                await asyncio.wait([room])
            if before is None or before.done():
                # The labels that come with it, before it is predicted.
                await self._arrive(asked)
            await self._predict(asked)
            if before is not None:  # replicas answer in any order
                await asyncio.wait([before])
            await self._arrive(asked)
            await self._hold(asked)
        finally:
            _resolve_after(before, passed)

    async def _arrive(self, asked: _Asked) -> None:
        self._now = max(self._now, asked.moment)
        await self._answer(self._now)

    async def _predict(self, asked: _Asked) -> None:
        try:
            asked.prediction = await self.trainer._predict(asked.pair[0])
        except BatchError as error:
            # Learning refuses it as well, and reports it.
            if isinstance(error, KilledReplicasError):
                asked.deadly = error  # to learn it would end further ones
            self._not_scored(asked.samples, error)

    async def _hold(self, asked: _Asked) -> None:
        if self._delay.amount and self._held.waiting + asked.samples > self._pending:
            error = BatchError(
                f"{self._held.waiting} records wait for their labels, and pending="
                f"{self._pending} may. Give predict_then_train a shorter delay=, or a "
                "larger pending=."
            )
            rest = self._refuse(asked.item, error, asked.metadata)
            if rest is not None:
                await rest
            return
        self._foresee(asked)
        self._held.put(asked.moment + self._delay.amount, asked.samples, asked)
        await self._answer(self._now)

    def _foresee(self, asked: _Asked) -> None:
        """Let the baselines guess for one record after the other; keep all guesses."""
        scores, prediction, key = self._scores, asked.prediction, asked.key
        asked.key = None
        if scores is None:
            return
        labels, later = asked.pair[1], self._delay.amount
        if prediction is None:
            # Nothing is scored, but its labels come, if they are any.
            with contextlib.suppress(TensairError):
                scores.foreseen(labels, None, key, asked.moments, later)
            return
        try:
            guess = self._decide(prediction)
            self._compare(labels, guess)
            scores.foreseen(labels, guess, key, asked.moments, later)
        except BaseException as error:
            self._not_scored(asked.samples, RaisedError.caught(error))
        else:
            asked.key = key

    async def _answer(self, now: float) -> None:
        """Score and learn what has its labels by now."""
        while self._held.waiting and self._held.next_due <= now:
            _, asked = self._held.take_first()
            self._score(asked)
            rest = self._learn(asked)
            if rest is not None:
                await rest

    def _score(self, asked: _Asked) -> None:
        if self._scores is None or asked.key is None:
            return
        try:
            self._scores.labelled(asked.key, asked.pair[1])
        except BaseException as error:
            self._not_scored(asked.samples, RaisedError.caught(error))

    def _learn(self, asked: _Asked) -> Awaitable[Any] | None:
        if asked.deadly is not None:
            return self._refuse(asked.item, asked.deadly, asked.metadata)

        def add_prediction(report: Report) -> None:
            report.prediction = asked.prediction

        return self._feed(
            asked.item, lambda _: asked.pair, asked.metadata, add_prediction, True
        )

    def _not_scored(self, records: int, error: Exception) -> None:
        if not self.unscored:
            self.trainer.say_once(
                f"unscored {id(self)}",
                f"Predictions are not scored; the stream goes on: {error}",
            )
        self.unscored += records

    def _compare(self, labels: Any, guess: Any) -> None:
        """Say where labels and what is taken for the model's have none in common."""
        if self._labels is None:
            return
        if text := self._labels.compare(labels, guess):
            self.trainer.say_once(f"no common label {id(self)}", text)
        if self._labels.is_settled:
            self._labels = None

    # ---- both in one pass ----------------------------------------------------------

    def _train_at_once(self, item: Any, metadata: list[Any]) -> Awaitable[Any] | None:
        number, self._number = self._number, self._number + 1
        targets: list[Any] = []

        def collate(given: Any) -> tuple[Any, Any]:
            x, y = self._collate(given)
            pair = self.trainer._column_names.ordered(x, y)
            targets.append(as_values(pair[1]))  # scored when it has been learned
            return pair

        def score(report: Report) -> None:
            outcome = None
            if targets and report.error is None:
                outcome = targets[0], report.prediction, report.samples
            self._settle(number, outcome)

        rest = self._feed(item, collate, metadata, score)
        return None if rest is None else self._when_fed(rest, number)

    async def _when_fed(self, rest: Awaitable[Any], number: int) -> None:
        try:
            await rest
        except BaseException:
            self._settle(number, None)  # nobody will report it
            raise

    def _settle(self, number: int, outcome: tuple[Any, Any, int] | None) -> None:
        """Score in the order of the stream, whichever replica was faster."""
        if number < self._settled:
            return
        self._outcomes.setdefault(number, outcome)
        while self._settled in self._outcomes:
            ready = self._outcomes.pop(self._settled)
            self._settled += 1
            if ready is not None and self._scores is not None:
                y, prediction, samples = ready
                try:
                    guess = self._decide(prediction)
                    self._compare(y, guess)
                    self._scores.add(y, guess)
                except BaseException as error:
                    self._not_scored(samples, RaisedError.caught(error))


def _check_kinds(trainer: Any, scores: Any, **functions: Any) -> None:
    allow(
        isinstance(trainer, Trainer),
        f"trainer={shown(trainer)}",
        "give an open Trainer, for example tensair_dask.Trainer(client, ...)",
    )
    allow(
        scores is None or isinstance(scores, Prequential),
        f"scores={shown(scores)}",
        "give a Prequential, for example Prequential(river.metrics.Accuracy()), or "
        "None for no scores",
    )
    for name, function in functions.items():
        allow(
            function is None or callable(function),
            f"{name}={shown(function)}",
            "give a function, or leave it out",
        )


def _check_delay(
    later: Delay, delay: Any, scores: Any, moment: Any, pending: int
) -> None:
    if scores is not None and scores.delay is not None:
        raise ConfigurationError(
            "scores has a delay of its own; give the delay to predict_then_train, and "
            "Prequential(...) without one."
        )
    if later.in_time and moment is None:
        raise ConfigurationError(
            f"delay={delay!r} is a time, so the time of each item is needed: give "
            "moment=, a function of the item, or the delay in records (delay=500)."
        )
    if moment is not None and not later.in_time:
        raise ConfigurationError(
            f"moment= was given, and delay={delay!r} is no time, so that it would "
            'never be called: give the delay as a time, such as delay="2h", or leave '
            "moment= out."
        )
    if not later.in_time and later.amount > pending:
        raise ConfigurationError(
            f"delay={delay!r} records was given, and pending={pending} may wait; give "
            "a pending= that is larger by a mini-batch or more."
        )


def _told(decide: Callable[[Any], Any], output: Any) -> Any:
    """Call a function of the user's that says what is scored."""
    made = decide(output)
    if made is None:
        raise BatchError(
            f"decide ({getattr(decide, '__name__', shown(decide))}) returned None, and "
            "so there is nothing to score: let it return the labels, numbers or "
            "probabilities that it makes of the model's output."
        )
    return made


def _decided(output: Any) -> Any:
    """Arg max over the classes of two-dimensional outputs, else the values."""
    if contents(output) is not None and not isinstance(output, list):
        raise BatchError(
            f"The model returns several outputs, in a {type(output).__name__}; say "
            "which of them is scored with decide=, for example decide=lambda output: "
            f"output{_way_to_first(output)}.argmax(1)."
        )
    if hasattr(output, "detach"):
        output = output.detach().cpu().numpy()
    array = np.asarray(output)
    if array.ndim == 2 and array.shape[1] > 1:
        if not np.isfinite(array).all():  # the arg max would be the NaN
            raise NonFiniteError("The model's output is NaN or infinite.")
        return array.argmax(1)
    return array


def _way_to_first(output: Any) -> str:
    """Say how the first of several outputs is had."""
    name, _ = next(iter(contents(output) or [(0, None)]))
    if isinstance(output, tuple):
        fields = getattr(output, "_fields", ())
        return f".{fields[0]}" if fields else "[0]"
    return f"[{name!r}]" if isinstance(output, Mapping) else f".{name}"


def _form_of(upstream: Stream) -> str | None:
    """Tell by the node before how items are to be read; None where it cannot be seen.

    Two streams side by side give x and y.
    """
    return {True: RECORDS, False: READY, None: None}[are_groups(upstream)]


def _is_nothing(item: Any) -> bool:
    """Whether there is no row in an item, as in a window in which nothing came."""
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


def _has_array(item: Any) -> bool:
    if isinstance(item, (tuple, list)):
        return any(map(_has_array, item))
    if isinstance(item, Mapping):
        return any(map(_has_array, item.values()))
    return hasattr(item, "shape")
