"""Nodes of streamz that hold items: what they hold is a value, and is not lost."""

from __future__ import annotations

import functools
from typing import Any

import streamz.core
from streamz import Stream

from tensair_dask.mended import nodes_before
from tensair_dask.values import as_values

__all__ = ["take_values"]

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


def _mend_holder(kind: Any) -> None:
    take = kind.update

    @functools.wraps(take)
    def update(self: Any, x: Any, who: Any = None, metadata: Any = None) -> Any:
        if self._tensair_takes_values:
            x = as_values(x)
        return take(self, x, who=who, metadata=metadata)

    kind.update = update
    kind._tensair_takes_values = False


def _mend_all() -> None:
    for kind in HOLDERS:
        if not hasattr(kind, "_tensair_takes_values"):
            _mend_holder(kind)


_mend_all()
