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

from tensair_dask.errors import TensairTimeoutError
from tensair_dask.mended import nodes_before
from tensair_dask.values import as_values
from tensair_dask.waiting import within

__all__ = ["are_groups", "count_held", "pass_on_held", "take_values"]

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
    """Tell whether a node passes on groups of items, as ``partition`` does.

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
    told = {are_groups(each) for each in node.upstreams if each is not None}
    return told.pop() if len(told) == 1 else None


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
        `tensair_dask.mended.raise_upstream`.
    """
    end = time.monotonic() + timeout
    for node in _from_the_sources(nodes):
        if not _holds(node):
            continue
        left = max(0.01, end - time.monotonic())
        try:
            await within(_on_its_loop(node, _pass_on(node)), left)
        except asyncio.TimeoutError:
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
    if isinstance(node, _QUEUES):
        return node._tensair_given - node._tensair_passed
    return 0


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
    else:
        given = node._tensair_given
        while node._tensair_passed < given and not node._tensair_ended:
            await asyncio.sleep(_LOOK)


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


# ---- how the classes are mended ------------------------------------------------------


def _mend_holder(kind: Any) -> None:
    take = kind.update

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        if self._tensair_takes_values:
            x = as_values(x)
        return take(self, x, who=who, metadata=metadata)

    kind.update = update
    kind._tensair_takes_values = False


def _mend_queue(kind: Any) -> None:
    """Count what a node is given, and what has passed through all behind it."""
    take, pass_on = kind.update, kind._emit

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        result = take(self, x, who=who, metadata=metadata)
        self._tensair_given += 1
        return result

    @functools.wraps(pass_on)
    def _emit(self: Any, x: Any, metadata: Any = None) -> list[Any]:
        def count(_: object = None) -> None:
            self._tensair_passed += 1

        try:
            results = [convert_yielded(each) for each in pass_on(self, x, metadata)]
        except BaseException:
            count()
            raise
        if len(results) > 1:
            asyncio.gather(*results, return_exceptions=True).add_done_callback(count)
        elif results:
            results[0].add_done_callback(count)
        else:
            count()
        return results

    kind.update, kind._emit = update, _emit
    kind._tensair_given = kind._tensair_passed = 0


def _mend_all() -> None:
    if hasattr(Stream, "_tensair_takes_values"):
        return
    Stream._tensair_takes_values = False
    for kind in HOLDERS:
        _mend_holder(kind)
    for kind in _QUEUES:
        _mend_queue(kind)


_mend_all()
