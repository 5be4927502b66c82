"""Downstream: who gets the items of a stream, and the trainers among them."""

from __future__ import annotations

from collections.abc import Iterator
from enum import Enum
from typing import Any

from streamz import Stream
from streamz.sinks import Sink

__all__ = ["Takers", "takers_of", "trainers_after"]

# What nodes of these packages do with an item is known; whoever writes a class of
# nodes may do anything with it.
_KNOWN = ("streamz", "tensair_dask")

# Attributes of nodes that hold a function of the user's.
_FUNCTIONS = ("func", "function", "predicate")


class Takers(Enum):
    """Whether anybody gets what a node passes on."""

    NOBODY = "nobody"
    # Items end at a node that calls a function and passes on what that returns.
    FUNCTIONS = "functions"
    SOMEBODY = "somebody"


def takers_of(source: Any) -> Takers:
    """Whether what a node of a stream passes on comes to anybody."""
    found = Takers.NOBODY
    for node in _nodes_after(source):
        if node is source:
            continue
        if _takes(node):
            return Takers.SOMEBODY
        if not len(node.downstreams) and _calls(node):
            found = Takers.FUNCTIONS
    return found


def trainers_after(source: Any) -> list[Any]:
    """Find the open trainers behind a node of a stream, each once, nearest first.

    Parameters
    ----------
    source
        A node of streamz. Those behind it that belong to a trainer tell which, in
        ``hearer``.
    """
    found: dict[int, Any] = {}
    for node in _nodes_after(source):
        hearer = getattr(node, "hearer", None)
        if hearer is not None:
            found[id(hearer)] = hearer
    return list(found.values())


def _nodes_after(source: Any) -> Iterator[Any]:
    """Give a node and all behind it, each once, nearest first."""
    seen = {id(source)}
    reached = [source]
    for node in reached:  # it grows meanwhile
        yield node
        for each in list(node.downstreams):
            if id(each) not in seen:
                seen.add(id(each))
                reached.append(each)


def _takes(node: Any) -> bool:
    """Whether a node does more with an item than to pass it on."""
    if isinstance(node, Sink) or hasattr(node, "hearer"):
        return True
    if not isinstance(node, Stream):
        return True
    kinds = type(node).__mro__[: -len(Stream.__mro__)]
    return any(kind.__module__.partition(".")[0] not in _KNOWN for kind in kinds)


def _calls(node: Any) -> bool:
    return any(callable(getattr(node, name, None)) for name in _FUNCTIONS)
