"""What stands for values that are computed later, or lie on the cluster."""

from __future__ import annotations

from typing import Any

__all__ = ["why_not_here"]


def why_not_here(value: Any, name: str) -> str:
    """Say that a value is not here, and how to get it; nothing if it is.

    Parameters
    ----------
    value
        Told without importing dask's collections.
    name
        Of the value where it is given.
    """
    kind = type(value)
    package = kind.__module__.partition(".")[0]
    if package == "numpy":
        return ""
    if package == "distributed" and kind.__name__ == "Future":
        return (
            "is a Future, whose value lies on the cluster. Put .gather() before the "
            "node that learns, behind .scatter(); or give "
            f"{name}.result()."
        )
    if hasattr(kind, "__dask_graph__"):  # of the class: a Delayed has all attributes
        return (
            f"is a {kind.__name__} of Dask, which has not been computed. Give its "
            f"values: {name}.compute()."
        )
    return ""
