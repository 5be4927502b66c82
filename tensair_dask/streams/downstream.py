"""Downstream: the trainers that learn of a stream, or predict for it."""

from __future__ import annotations

from typing import Any

__all__ = ["trainers_after"]


def trainers_after(source: Any) -> list[Any]:
    """Find the open trainers behind a node of a stream, each once, nearest first.

    Parameters
    ----------
    source
        A node of streamz. Those behind it that belong to a trainer tell which, in
        ``hearer``.
    """
    found: dict[int, Any] = {}
    seen = {id(source)}
    reached = [source]
    for node in reached:  # it grows meanwhile
        hearer = getattr(node, "hearer", None)
        if hearer is not None:
            found[id(hearer)] = hearer
        for each in list(node.downstreams):
            if id(each) not in seen:
                seen.add(id(each))
                reached.append(each)
    return list(found.values())
