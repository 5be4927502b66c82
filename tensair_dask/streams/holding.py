"""Nodes of streamz that hold items: what they hold is a value, and is not lost."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import Coroutine, Iterable
from typing import Any

import streamz.core
from streamz import Stream
from tornado.gen import convert_yielded

from tensair_dask.batches.copies import as_values
from tensair_dask.errors import TensairTimeoutError
from tensair_dask.streams.streamz_patches import nodes_before

__all__ = ["are_groups", "count_held", "pass_on_held", "take_values", "why_kept"]

# These keep items for a while, alone or with others, before they pass them on.
HOLDERS: tuple[Any, ...] = (
    streamz.core.buffer,
    streamz.core.collect,
    streamz.core.combine_latest,
    streamz.core.delay,
    streamz.core.latest,
    streamz.core.map_async,
    streamz.core.partition,
    streamz.core.partition_unique,
    streamz.core.rate_limit,
    streamz.core.sliding_window,
    streamz.core.timed_window,
    streamz.core.timed_window_unique,
    streamz.core.zip,
    streamz.core.zip_latest,
)

# Groups that are passed on at certain times.
_WINDOWS = (
    streamz.core.partition_unique,
    streamz.core.timed_window,
    streamz.core.timed_window_unique,
)

# Each item is passed on by itself, in its turn.
_QUEUES: tuple[Any, ...] = (
    streamz.core.buffer,
    streamz.core.delay,
    streamz.core.rate_limit,
)

# What these were given, and what has passed through them, is counted.
_COUNTED: tuple[Any, ...] = (*_QUEUES, streamz.core.map_async)

# Seconds between two looks at a queue.
_LOOK = 0.002

# What one of these passes on is not what it was given.
_MAKERS = (streamz.core.map_async,)


def take_values(node: Stream) -> bool:
    """Let nodes that hold items take copies of them: a node, and all before it.

    A source may write each record into one and the same array. What a node such as
    ``partition`` then holds, and passes on, would be the newest record many times.

    Parameters
    ----------
    node
        Before a node that learns, or predicts.

    Returns
    -------
    are_values
        Whether what the node passes on are such copies.
    """
    for each in nodes_before(node):
        if isinstance(each, HOLDERS) and not _are_values(each.upstreams):
            each._tensair_takes_values = True
    return _passes_values(node)


def _are_values(upstreams: list[Any]) -> bool:
    return bool(upstreams) and all(each and _passes_values(each) for each in upstreams)


def _passes_values(node: Stream) -> bool:
    return isinstance(node, HOLDERS) and not isinstance(node, _MAKERS)


# ---- what they pass on ---------------------------------------------------------------

# What these pass on are groups of items; and one item of each of several streams.
_GROUPS: tuple[Any, ...] = (
    streamz.core.collect,
    streamz.core.partition,
    streamz.core.partition_unique,
    streamz.core.sliding_window,
    streamz.core.timed_window,
    streamz.core.timed_window_unique,
)
_TUPLES: tuple[Any, ...] = (
    streamz.core.combine_latest,
    streamz.core.zip,
    streamz.core.zip_latest,
)

# And these pass on what they are given.
_PASSAGES: tuple[Any, ...] = (
    streamz.core.buffer,
    streamz.core.delay,
    streamz.core.filter,
    streamz.core.latest,
    streamz.core.rate_limit,
    streamz.core.slice,
    streamz.core.union,
    streamz.core.unique,
)


def are_groups(node: Stream) -> bool | None:
    """Find whether a node passes on groups of items, as ``partition`` does.

    Returns
    -------
    are_groups
        False for tuples of what several streams give; None if it cannot be seen.
    """
    if isinstance(node, _GROUPS):
        return True
    if isinstance(node, _TUPLES):
        return False
    if not isinstance(node, _PASSAGES):
        return None
    found = {are_groups(each) for each in node.upstreams if each is not None}
    return found.pop() if len(found) == 1 else None


# ---- nothing is left in them ---------------------------------------------------------


def count_held(nodes: Iterable[Stream]) -> int:
    """Count the items that nodes hold, or those before them, and will pass on.

    Not exact where they have another event loop: they may be passing some on.
    """
    return sum(map(_holds, _from_the_sources(nodes)))


async def pass_on_held(nodes: Iterable[Stream], timeout: float) -> None:
    """Pass on what nodes hold that learn, or are before some.

    Groups that are not full are passed on as they are. Queues pass on what they hold in
    their own time.

    Parameters
    ----------
    nodes
        That learn.
    timeout
        Seconds.

    Raises
    ------
    TensairTimeoutError
        If they take longer. What is raised behind a node is kept there; see
        `tensair_dask.streams.streamz_patches.raise_upstream`.
    """
    end = time.monotonic() + timeout
    for node in _from_the_sources(nodes):
        if not _holds(node):
            continue
        left = max(0.01, end - time.monotonic())
        try:
            async with asyncio.timeout(left):
                await _on_its_loop(node, _pass_on(node))
        except TimeoutError:
            raise TensairTimeoutError(
                f"{_holds(node)} items were still in the stream node {node} after "
                f"{timeout:g} s. Raise tensair.timeouts.drain if it passes them on "
                "slowly; look at what is behind it if it does not."
            ) from None


def _from_the_sources(nodes: Iterable[Stream]) -> list[Any]:
    """Give nodes, and all before them, each behind those that it gets items from."""
    found: dict[Any, None] = {}

    def visit(node: Any) -> None:
        if node is None or node in found or node in entered:
            return
        entered.add(node)
        for before in node.upstreams:
            visit(before)
        found[node] = None

    entered: set[Any] = set()
    for node in nodes:
        visit(node)
    return list(found)


def _holds(node: Any) -> int:
    """How many items a node holds that it would pass on, sooner or later."""
    if not isinstance(node, HOLDERS) or getattr(node, "_tensair_ended", None):
        return 0
    if isinstance(node, streamz.core.partition):
        return sum(map(len, list(node._buffer.values())))
    if isinstance(node, _WINDOWS):
        return len(node._buffer)
    if isinstance(node, streamz.core.map_async) and node.work_task is None:
        return 0  # it has stopped
    if isinstance(node, _COUNTED):
        held: int = node._tensair_given - node._tensair_passed
        return held
    if isinstance(node, streamz.core.latest):
        return _has_next(node) + node._tensair_passing
    return 0


def _has_next(node: Any) -> bool:
    """Whether a ``latest`` holds an item that it has not passed on."""
    return bool(node.next) and node.next is not node._tensair_taken


async def _pass_on(node: Any) -> None:
    if isinstance(node, streamz.core.partition):
        for key in [key for key, items in node._buffer.items() if items]:
            if node._timeout is not None and key in node._callbacks:
                node._callbacks[key].cancel()
            # What is raised behind it is kept with the node, as at its own time.
            with contextlib.suppress(Exception):
                await node._flush(key)
    elif isinstance(node, _WINDOWS):
        with contextlib.suppress(Exception):
            await _pass_on_window(node)
    elif isinstance(node, streamz.core.latest):
        await _pass_on_latest(node)
    else:
        given = node._tensair_given
        while node._tensair_passed < given and _holds(node):
            await asyncio.sleep(_LOOK)


async def _pass_on_latest(node: Any) -> None:
    """Wake a node that heard of its newest item while it passed on another one."""
    while _holds(node):
        await asyncio.sleep(_LOOK)  # it may be awake already
        if _has_next(node) and not node._tensair_passing:
            node.condition.notify()


async def _pass_on_window(node: Any) -> None:
    of_keys = isinstance(node._buffer, dict)
    name = "_metadata_buffer" if of_keys else "metadata_buffer"
    items, metadata = node._buffer, getattr(node, name)
    node._buffer = type(items)()
    setattr(node, name, type(metadata)())
    lists = metadata.values() if of_keys else metadata
    flat = [each for some in lists for each in some or ()]
    rest = node._emit(tuple(items.values()) if of_keys else items, flat)
    node._release_refs(flat)
    await asyncio.gather(*map(convert_yielded, rest))


async def _on_its_loop(node: Any, work: Coroutine[Any, Any, None]) -> None:
    loop = node.loop and node.loop.asyncio_loop
    if loop is None or loop is asyncio.get_running_loop() or not loop.is_running():
        await work
    else:
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, loop))


# ---- what they keep ------------------------------------------------------------------


def why_kept(node: Any) -> str:
    """Say what a node was given, and does not pass on, and why; nothing if it does.

    Not what `pass_on_held` sees to.
    """
    for kind, tell in _KEEPERS:
        if isinstance(node, kind):
            return tell(node)
    return ""


def _of_collect(node: Any) -> str:
    count = len(node.cache)
    return (
        f"{count} items, which it holds until its flush() is called: call it, before "
        "drain() and the end of `with`"
    ) * bool(count)


def _of_zip(node: Any) -> str:
    held = {each: len(buffer) for each, buffer in node.buffers.items()}
    if not any(held.values()):
        return ""
    lacking = ", ".join(str(each) for each, count in held.items() if not count)
    return (
        f"{sum(held.values())} items, whose partners from {lacking} have not come: "
        "each stream is to give as many items as the others"
    )


def _of_combined(node: Any) -> str:
    if not node.missing or not node._tensair_given:
        return ""
    lacking = ", ".join(map(str, node.missing))
    return (
        f"{node._tensair_given} items, since none has come from {lacking}: let that "
        "give its first one before the others begin"
    )


def _of_sliding_window(node: Any) -> str:
    count = len(node._buffer)
    if node.partial or not 0 < count < node.n:
        return ""
    return (
        f"{count} items, since a window has {node.n}: return_partial=True passes on "
        "those that have fewer"
    )


def _of_latest(node: Any) -> str:
    dropped = node._tensair_given - node._tensair_emitted - _has_next(node)
    if dropped <= 0:
        return ""
    return (
        f"{dropped} of {node._tensair_given} items, for which newer ones came while "
        "what is behind it had no room: buffer(n) in its place would keep them"
    )


def _of_map(node: Any) -> str:
    parts = []
    if count := node._tensair_failed:
        parts.append(
            f"{count} items for which its function has raised; the log of streamz "
            "tells what"
        )
    if node.work_task is None:
        count = node._tensair_given - node._tensair_passed
        parts += [f"{count} items that came when it had stopped"] * bool(count)
    return ", and ".join(parts)


_KEEPERS: tuple[tuple[Any, Any], ...] = (
    (streamz.core.collect, _of_collect),
    (streamz.core.zip, _of_zip),
    ((streamz.core.combine_latest, streamz.core.zip_latest), _of_combined),
    (streamz.core.sliding_window, _of_sliding_window),
    (streamz.core.latest, _of_latest),
    (streamz.core.map_async, _of_map),
)


# ---- how the classes are mended ------------------------------------------------------


def _mend_holder(kind: Any) -> None:
    take = kind.update

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        if self._tensair_takes_values:
            x = as_values(x)
        result = take(self, x, who=who, metadata=metadata)
        self._tensair_given += 1
        return result

    kind.update = update
    kind._tensair_takes_values = False
    kind._tensair_given = 0


def _mend_queue(kind: Any) -> None:
    """Count what has passed through all that is behind a node."""

    def count(node: Any) -> None:
        node._tensair_passed += 1

    _watch_passing(kind, lambda node: None, count)
    kind._tensair_passed = 0


def _mend_latest(kind: Any) -> None:
    """Take note of which item a node has passed on, and when it has passed."""

    def begin(node: Any) -> None:
        node._tensair_taken = node.next
        node._tensair_emitted += 1
        node._tensair_passing += 1

    def end(node: Any) -> None:
        node._tensair_passing -= 1

    _watch_passing(kind, begin, end)
    kind._tensair_taken = None
    kind._tensair_emitted = kind._tensair_passing = 0


def _watch_passing(kind: Any, begin: Any, end: Any) -> None:
    """Call functions of a node where it emits, and when all behind it is done."""
    pass_on = kind._emit

    @functools.wraps(pass_on)
    def _emit(self: Any, x: Any, metadata: Any = None) -> list[Any]:
        def done(_: object = None) -> None:
            end(self)

        begin(self)
        try:
            results = [convert_yielded(each) for each in pass_on(self, x, metadata)]
        except BaseException:
            done()
            raise
        if len(results) > 1:
            asyncio.gather(*results, return_exceptions=True).add_done_callback(done)
        elif results:
            results[0].add_done_callback(done)
        else:
            done()
        return results

    kind._emit = _emit


def _mend_map(kind: Any) -> None:
    """Count the items that a node is done with, and those whose function raised.

    It lets go of the references of each item when it is done with it, be there some.
    """
    take, pass_on, release = kind.update, kind._emit, kind._release_refs

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        def look(done: Any) -> None:
            if done.cancelled() or done.exception() is not None:
                self._tensair_passed += 1
                self._tensair_failed += 1

        result = take(self, x, who=who, metadata=metadata)
        result.add_done_callback(look)
        return result

    @functools.wraps(pass_on)
    def _emit(self: Any, x: Any, metadata: Any = None) -> list[Any]:
        self._tensair_made = self._tensair_emits = True
        try:
            emitted: list[Any] = pass_on(self, x, metadata)
        finally:
            self._tensair_emits = False
        return emitted

    @functools.wraps(release)
    def _release_refs(self: Any, metadata: Any, n: int = 1) -> None:
        if not self._tensair_emits:  # which lets go of them for each node behind
            self._tensair_passed += 1
            self._tensair_failed += not self._tensair_made
            self._tensair_made = False
        release(self, metadata, n)

    kind.update, kind._emit, kind._release_refs = update, _emit, _release_refs
    kind._tensair_passed = kind._tensair_failed = 0
    kind._tensair_made = kind._tensair_emits = False


def _mend_all() -> None:
    if hasattr(Stream, "_tensair_takes_values"):
        return
    Stream._tensair_takes_values = False
    for kind in HOLDERS:
        _mend_holder(kind)
    for kind in _QUEUES:
        _mend_queue(kind)
    _mend_latest(streamz.core.latest)
    _mend_map(streamz.core.map_async)


_mend_all()
