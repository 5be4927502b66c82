"""Routes by which the items of a stream come to the nodes of one trainer.

A cell of a notebook that is run twice puts a second node beside the first one: each
item would then be learned twice, and the run would look healthy.
"""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import streamz.core
from streamz import Stream

from tensair_dask.errors import ConfigurationError
from tensair_dask.streams.streamz_patches import nodes_before

__all__ = ["check_route", "nodes_around"]

# Attributes of nodes that say what they do with an item.
_SETTINGS = (
    "func",
    "function",
    "predicate",
    "key",
    "pick",
    "star",
    "end",
    "step",
    "args",
    "_args",
    "kwargs",
    "_kwargs",
    "literals",
)

# These leave items out: routes behind several of them may share none.
_PARTING: tuple[Any, ...] = (
    streamz.core.filter,
    streamz.core.latest,
    streamz.core.slice,
    streamz.core.unique,
    streamz.core.partition_unique,
    streamz.core.timed_window_unique,
)

# Whose nodes do no more than their settings say.
_KNOWN = ("streamz", "tensair_dask")

_ADVICE = (
    "To put another node in its place take it out first, node.destroy(); all nodes "
    "that learn for the trainer are in trainer.session.intake.nodes"
)


def check_route(upstream: Stream, collate: Any, others: Iterable[Any]) -> str:
    """See that a node would not learn what others of its trainer learn already.

    Parameters
    ----------
    upstream
        Before the new node.
    collate
        What the node reads items by; None for the default.
    others
        Nodes of the same trainer that learn.

    Returns
    -------
    text
        What is to be said of a node that gets its items from the same stream by
        another route; empty where there is none.

    Raises
    ------
    ConfigurationError
        If one of them gets the same items in the same way.
    """
    text = ""
    for other in others:
        for before in other.upstreams:
            if before is None or not (common := _common(upstream, before)):
                continue
            same = _same(collate, other.read_by) and _are_alike(upstream, before)
            if same:
                raise _twice(upstream, other)
            if not (_parts(upstream, common) and _parts(before, common)):
                text = text or _twice_text(upstream, before, other, common)
    return text


def nodes_around(node: Stream) -> Iterator[Stream]:
    """Give all nodes that get items from those that a node gets its items from."""
    seen: set[Stream] = set()
    found = list(nodes_before(node))
    while found:
        each = found.pop()
        if each in seen:
            continue
        seen.add(each)
        yield each
        found.extend(each.downstreams)


def _twice(upstream: Stream, other: Any) -> ConfigurationError:
    return ConfigurationError(
        f"The stream {upstream} has a node of this trainer already, {other}, which "
        "gets the same items: each would be learned twice, as where a cell of a "
        f"notebook is run again. Go on with that node. {_ADVICE}. If each item is to "
        "be learned twice, let one stream give it twice: .map(lambda item: [item, "
        "item]).flatten(), or branches that are joined by .union(...)."
    )


def _twice_text(
    upstream: Stream, before: Stream, other: Any, common: set[Stream]
) -> str:
    source = next(each for each in nodes_before(upstream) if each in common)
    return (
        f"The items of {source} come to this trainer twice: through {before} to the "
        f"node {other}, and now through {upstream} to another one. What both pass on "
        f"is learned twice. {_ADVICE}. If it is meant, nothing is to be done."
    )


def _common(one: Stream, other: Stream) -> set[Stream]:
    return {*nodes_before(one)} & {*nodes_before(other)}


def _parts(node: Stream, common: set[Stream]) -> bool:
    """Whether something may be left out on the way from what is common to a node."""
    return any(
        isinstance(each, _PARTING) for each in nodes_before(node) if each not in common
    )


def _are_alike(one: Any, other: Any, entered: frozenset[Any] = frozenset()) -> bool:
    """Whether two nodes do the same with the items of the same nodes before them."""
    if one is other or (one, other) in entered:
        return True
    if type(one) is not type(other) or not _is_known(type(one)):
        return False
    if not one.upstreams or len(one.upstreams) != len(other.upstreams):
        return False
    if not all(
        _same(getattr(one, name, None), getattr(other, name, None))
        for name in _SETTINGS
    ):
        return False
    entered |= {(one, other)}
    pairs = zip(one.upstreams, other.upstreams, strict=True)
    return all(_are_alike(*pair, entered) for pair in pairs)


def _is_known(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _KNOWN


def _same(one: Any, other: Any) -> bool:
    """Whether two settings are the same; functions, if they are written alike.

    A cell that is run again defines its functions anew.
    """
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, types.FunctionType):
        return _of_function(one, other)
    if isinstance(one, types.MethodType):
        return one.__func__ is other.__func__ and one.__self__ is other.__self__
    if isinstance(one, partial):
        return _same(
            (one.func, one.args, one.keywords), (other.func, other.args, other.keywords)
        )
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(
            _same(one[key], other[key]) for key in one
        )
    try:
        return bool(one == other)
    except Exception:  # arrays, for example: they are different objects
        return False


def _of_function(one: Any, other: Any) -> bool:
    held = [
        [cell.cell_contents for cell in each.__closure__ or () if not _is_empty(cell)]
        for each in (one, other)
    ]
    return (
        _same_code(one.__code__, other.__code__)
        and _same(one.__defaults__, other.__defaults__)
        and _same(one.__kwdefaults__, other.__kwdefaults__)
        and _same(*held)
    )


def _is_empty(cell: Any) -> bool:
    try:
        return cell.cell_contents is None
    except ValueError:
        return True


def _same_code(one: types.CodeType, other: types.CodeType) -> bool:
    """Whether two codes do the same, wherever they are written."""
    if one.co_code != other.co_code or one.co_names != other.co_names:
        return False
    if len(one.co_consts) != len(other.co_consts):
        return False
    return all(
        _same_code(mine, theirs)
        if isinstance(mine, types.CodeType) and isinstance(theirs, types.CodeType)
        else type(mine) is type(theirs) and mine == theirs
        for mine, theirs in zip(one.co_consts, other.co_consts, strict=True)
    )
