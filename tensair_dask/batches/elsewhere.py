"""What stands for values that are computed later, or lie on the cluster."""

from __future__ import annotations

from typing import Any

__all__ = ["why_kind_not_here", "why_not_here"]

# How a stream waits for values without holding its event loop up.
_GATHERED = ".map_async(client.gather, asynchronous=True)"


def why_not_here(value: Any, name: str) -> str:
    """Say that a value is not here, and how to get it; nothing if it is.

    Parameters
    ----------
    value
        Told without importing dask's collections.
    name
        Of the value where it is given.
    """
    return why_kind_not_here(type(value), name)


def why_kind_not_here(kind: type, name: str) -> str:
    """As `why_not_here`, of all values of a class."""
    package = kind.__module__.partition(".")[0]
    if package == "numpy":
        return ""
    if package == "distributed" and kind.__name__ == "Future":
        return (
            "is a Future, whose value lies on the cluster. Put .gather() before the "
            f"node that learns, behind .scatter(); in other streams {_GATHERED}. Or "
            f"give its value: {name}.result()."
        )
    if hasattr(kind, "__dask_graph__"):  # of the class: a Delayed has all attributes
        return (
            f"is {_a(kind)} of Dask, which has not been computed. Give its values, "
            f"{name}.compute(); or let the stream wait for items that are computed on "
            f"the cluster: .map(client.compute){_GATHERED}."
        )
    if hasattr(kind, "__await__"):
        return (
            f"is {_a(kind)}, which nobody has awaited. A function that is a coroutine "
            "belongs in .map_async(function), not in .map(function)."
        )
    if package == "concurrent":
        return f"is {_a(kind)} of Python. Give its value: {name}.result()."
    if kind.__name__ == "generator":
        return (
            "is a generator, which gives its values one by one, and only once. Put "
            ".flatten() before the node if they are items, or give list(...) of them."
        )
    return ""


def _a(kind: type) -> str:
    return f"{'an' if kind.__name__[0] in 'AEIOU' else 'a'} {kind.__name__}"
