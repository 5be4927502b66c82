"""streamz, where streams that are learned from need it to do more.

Nodes with a loop of their own: what ends the loop is noticed, and raised.

Such a node (`buffer`, `delay`, `latest`, `map_async` and the timed windows) passes
items on in a coroutine that nobody waits for. What is raised behind the node ends that
coroutine, and streamz leaves it at a line in the log: whoever emits into the node then
waits for ever, or is taken items from that go nowhere. Importing this module mends
these classes: the error is kept with the node, and raised to those who emit into it.
Streams that have no such node are left as they are.

`zip`: an emit that waits for a partner does so for ``tensair.timeouts.room`` at most;
and nodes of trainers know where what they give is paired with what they get.

`flatten`: all that an item is made of counts as that item, for its source.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import logging
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import streamz.core
import streamz.sources
from streamz import Stream
from tornado.gen import convert_yielded, is_coroutine_function

from tensair_dask import config
from tensair_dask._common.loops import is_running_here
from tensair_dask._wording import in_words
from tensair_dask.errors import (
    ConfigurationError,
    RaisedError,
    StreamError,
    TensairError,
    TensairTimeoutError,
)
from tensair_dask.streams.downstream import trainers_after

__all__ = ["mend", "nodes_before", "raise_upstream"]

logger = logging.getLogger(__name__)

Kind = TypeVar("Kind", bound=type[Stream])

_LOOPS = (
    streamz.core.buffer,
    streamz.core.delay,
    streamz.core.latest,
    streamz.core.map_async,
    streamz.core.timed_window,
    streamz.core.timed_window_unique,
)

_ADVICE = (
    "Mend what raised, or put .try_map(function, trainer) where .map(function) is: "
    "then a record that cannot be used becomes a dead letter"
)


def mend(kind: Kind) -> Kind:
    """Let nodes of a class raise what has ended their loop to those who emit.

    Parameters
    ----------
    kind
        A class of nodes that pass items on with ``self._emit`` in a coroutine of their
        own. Nodes that exist already are mended as well.

    Returns
    -------
    kind
        The same class, so that this can decorate it.

    Notes
    -----
    An emit that waits for room in such a node when its loop ends is woken with the
    same error.
    """
    if "_tensair_ended" in vars(kind):
        return kind
    pass_on, take = kind._emit, kind.update

    @functools.wraps(pass_on)
    def _emit(self: Any, x: Any, metadata: Any = None) -> list[Any]:
        try:
            results = pass_on(self, x, metadata=metadata)
        except BaseException as error:
            failure = RaisedError.caught(error)
            _end(self, failure)
            raise failure from error.__cause__
        # As futures: a timed window lets those who emit await them as well.
        return [_watched(self, convert_yielded(each)) for each in results]

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        _raise(self)
        result = take(self, x, who=who, metadata=metadata)
        if asyncio.isfuture(result) and not result.done():
            return _unless_ended(self, result)
        return result

    kind._emit, kind.update = _emit, update
    kind._tensair_ended = None
    return kind


def raise_upstream(node: Stream) -> None:
    """Raise what has ended a node, or one that it gets its items from.

    Raises
    ------
    StreamError
        With the error that ended it as its cause.
    """
    for each in nodes_before(node):
        _raise(each)


def nodes_before(node: Stream) -> Iterator[Stream]:
    """Give a node, and all from which it gets its items."""
    seen: set[Stream] = set()
    found = [node]
    while found:
        each = found.pop()
        if each is None or each in seen:
            continue
        seen.add(each)
        yield each
        found.extend(each.upstreams)


def _raise(node: Any) -> None:
    ended: StreamError | None = getattr(node, "_tensair_ended", None)
    if ended is not None:
        raise _again(ended)
    missed: StreamError | None = getattr(node, "_tensair_missed", None)
    if missed is not None:
        node._tensair_missed = None
        raise missed


def _failure(text: str, error: BaseException) -> StreamError:
    """Make an error of a text that has a place for what was raised, and log it."""
    if isinstance(error, StreamError):  # of a node behind it
        error = error.__cause__ or error
    words = in_words(error).removesuffix(".").removesuffix(": ")
    failure = StreamError(text.replace("RAISED", words))
    failure.__cause__ = RaisedError.unless_fit(error)
    # What says what to do needs no traceback.
    typed = isinstance(error, TensairError)
    logger.error("%s", failure, exc_info=None if typed else failure.__cause__)
    return failure


def _again(ended: StreamError) -> StreamError:
    # A new one each time: an error that is raised again grows a longer traceback.
    error = StreamError(*ended.args)
    error.__cause__ = ended.__cause__
    return error


# ---- loops that end ------------------------------------------------------------------


def _end(node: Any, error: BaseException) -> None:
    if node._tensair_ended is not None:
        return
    ended = _failure(
        f"The stream node {node} has ended and takes nothing more: behind it was "
        f"raised RAISED. {_ADVICE}. Then build the stream anew.",
        error,
    )
    node._tensair_ended = ended
    for result, taken in node.__dict__.pop("_tensair_waiting", {}).items():
        if not result.done():
            result.set_exception(_again(ended))
        taken.cancel()


def _watched(node: Any, result: asyncio.Future[Any]) -> asyncio.Future[Any]:
    def look(done: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            _end(node, error)

    result.add_done_callback(look)
    return result


def _unless_ended(node: Any, taken: asyncio.Future[Any]) -> asyncio.Future[Any]:
    """Give what resolves as ``taken`` does, and fails where the node ends before."""
    waiting = node.__dict__.setdefault("_tensair_waiting", {})
    result: asyncio.Future[Any] = taken.get_loop().create_future()
    waiting[result] = taken

    def copy(done: asyncio.Future[Any]) -> None:
        waiting.pop(result, None)
        if result.done():
            return
        if done.cancelled():
            result.cancel()
        elif (error := done.exception()) is not None:
            result.set_exception(error)
        else:
            result.set_result(done.result())

    taken.add_done_callback(copy)
    result.add_done_callback(lambda _: taken.cancel())
    return result


# ---- sources that end ----------------------------------------------------------------


def _mend_source(kind: Any, name: str) -> None:
    run = vars(kind)[name]

    @functools.wraps(run)
    async def watched(self: Any) -> Any:
        try:
            return await run(self)
        except Exception as error:
            self._tensair_ended = _failure(
                f"The source {self} has ended and gives nothing more: it, or what is "
                f"behind it, raised RAISED. {_ADVICE}. Then start a new one.",
                error,
            )
            for trainer in trainers_after(self):
                trainer.note_soon(str(self._tensair_ended))
            raise

    setattr(kind, name, watched)


def _loops_of_sources() -> Iterator[tuple[Any, str]]:
    for kind in vars(streamz.sources).values():
        if not (isinstance(kind, type) and issubclass(kind, streamz.sources.Source)):
            continue
        for name in ("run", "poll_kafka"):
            run = vars(kind).get(name)
            if inspect.iscoroutinefunction(run) or is_coroutine_function(run):
                yield kind, name


# ---- a partition whose time is over --------------------------------------------------


def _mend_partition(kind: Any) -> None:
    flush: Callable[[Any, Any], Any] = kind._flush
    take = kind.update

    @functools.wraps(flush)
    def _flush(self: Any, key: Any) -> Any:
        whole = len(self._buffer[key]) >= self.n
        done = flush(self, key)
        # Nobody waits for one that is not: what it raises is kept, for who can see it.
        return done if whole else asyncio.ensure_future(kept(self, done))

    async def kept(node: Any, done: Any) -> None:
        try:
            await done
        except Exception as error:
            node._tensair_missed = _failure(
                f"What the stream node {node} held when its timeout was over is lost "
                f"to the stream: behind it was raised RAISED. {_ADVICE}. The "
                "node goes on.",
                error,
            )

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        _raise(self)
        return take(self, x, who=who, metadata=metadata)

    kind._flush, kind.update = _flush, update


# ---- one item that becomes many ------------------------------------------------------


def _mend_flatten(kind: Any) -> None:
    """Let every element of an item carry its metadata, not only the last one.

    Elements may end up in several mini-batches, which are learned in any order: that
    the last one is done says nothing of the others.
    """

    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        rest = []
        for element in x:
            rest += self._emit(element, metadata=metadata)
        return rest

    kind.update = update


# ---- a pair of which one half does not come ------------------------------------------


def _mend_zip(kind: Any) -> None:
    """Let no emit into a stream that is learned from wait for a partner for ever."""
    take = kind.update

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        rest = take(self, x, who=who, metadata=metadata)
        # Only then has streamz given what resolves when the other streams have come.
        waits = self._tensair_bounded and len(self.buffers[who]) > self.maxsize
        return _until_partners(self, rest, who) if waits else rest

    kind.update = update
    kind._tensair_bounded = False
    make, add = kind.__init__, kind._add_upstream

    @functools.wraps(make)
    def init(self: Any, *upstreams: Any, **kwargs: Any) -> None:
        make(self, *upstreams, **kwargs)
        _announce_pairs(self)

    @functools.wraps(add)
    def _add_upstream(self: Any, upstream: Stream) -> None:
        add(self, upstream)
        _announce_pairs(self)

    kind.__init__, kind._add_upstream = init, _add_upstream


def _announce_pairs(node: Stream) -> None:
    """Let nodes of trainers know that what they give is paired with what they get.

    A zip pairs by order; they may give in another order, or less than they get.
    """
    before = [{*nodes_before(each)} for each in node.upstreams if each is not None]
    for at, one in enumerate(before):
        for each in one:
            if not hasattr(each, "paired"):
                continue
            own = {*nodes_before(each)} - {each}
            others = (other for place, other in enumerate(before) if place != at)
            if any(own & other and each not in other for other in others):
                each.paired(node)


async def _until_partners(node: Any, rest: Any, who: Stream) -> Any:
    seconds = config.get_seconds("timeouts.room")
    try:
        async with asyncio.timeout(seconds):
            return await convert_yielded(rest)
    except TimeoutError:
        lacking = [str(each) for each, held in node.buffers.items() if not held]
        raise TensairTimeoutError(
            f"The stream node {node} holds {len(node.buffers[who])} items of {who}, "
            f"and for {seconds:g} s (tensair.timeouts.room) nothing came from "
            f"{', '.join(lacking) or 'its other streams'}: each item waits for its "
            f"partner, and no more than {node.maxsize} may. Emit the halves of a pair "
            "in turn, or give zip(..., maxsize=) as many as one stream may be ahead. "
            "The item is held, and not to be emitted again."
        ) from None


# ---- emits from many threads ---------------------------------------------------------


def _mend_emit(kind: Any) -> None:
    """Let items be taken on the loop of their stream, whatever thread emits them.

    streamz notes in its loop's thread that an emit is under way, and takes that back
    when it is done; of two at a time the second one then fails, though its item was
    taken. And an emit into a stream with ``asynchronous=True`` ran in any thread.
    """

    def emit(
        self: Any, x: Any, asynchronous: bool = False, metadata: Any = None
    ) -> Any:
        if asynchronous is not None and not isinstance(asynchronous, bool):
            raise ConfigurationError(
                f"emit was given two things, the second a {type(asynchronous).__name__}"
                "; it takes one item: emit((x, y)), with the parentheses of a pair."
            )
        loop = self.loop and self.loop.asyncio_loop
        if loop is not None and is_running_here(loop):
            results = passed_on(self, x, metadata)
            if results:
                return convert_yielded(results)
            taken_all = loop.create_future()
            taken_all.set_result(results)
            return taken_all
        nested = getattr(streamz.core.thread_state, "asynchronous", False)
        waits = not (asynchronous or self.asynchronous or nested)
        if loop is None or not (waits or loop.is_running()):
            results = passed_on(self, x, metadata)
            return convert_yielded(results) if self.loop else None

        async def taken() -> None:
            await asyncio.gather(*map(convert_yielded, passed_on(self, x, metadata)))

        if not waits and (asynchronous or _runs_a_loop()):
            work = asyncio.run_coroutine_threadsafe(taken(), loop)
            return asyncio.wrap_future(work) if _runs_a_loop() else work
        streamz.core.sync(self.loop, taken)
        return None

    def passed_on(node: Any, x: Any, metadata: Any) -> list[Any]:
        state = streamz.core.thread_state
        before = getattr(state, "asynchronous", False)
        state.asynchronous = True  # for emits within, into other streams
        try:
            return node._emit(x, metadata=metadata)
        finally:
            state.asynchronous = before

    kind.emit = functools.wraps(kind.emit)(emit)


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _mend_all() -> None:
    if hasattr(streamz.core.partition, "_tensair_missed"):
        return
    for kind in _LOOPS:
        mend(kind)
    for kind, name in list(_loops_of_sources()):
        _mend_source(kind, name)
    _mend_partition(streamz.core.partition)
    _mend_flatten(streamz.core.flatten)
    _mend_zip(streamz.core.zip)
    streamz.core.partition._tensair_missed = None
    _mend_emit(Stream)


_mend_all()
