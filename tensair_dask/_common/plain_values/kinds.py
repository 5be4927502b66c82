"""What is a plain value, and from which length and up to which depth it is taken."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from tensair_dask.errors import CheckpointError

__all__ = ["LONG", "NUMERIC", "SIMPLE", "is_key", "within_depth"]

SIMPLE = frozenset({type(None), bool, int, float, str, bytes})

# Of numpy's dtypes: truth values, whole numbers, floats, complex numbers.
NUMERIC = "biufc"

# Lists that are longer travel as columns of numbers: a thousand times fewer values.
LONG = 64


def is_key(key: Any) -> bool:
    """Whether it may be a key of a dict: a plain value, or a tuple of them."""
    return SIMPLE.issuperset(map(type, key if type(key) is tuple else (key,)))


@contextlib.contextmanager
def within_depth(where: str) -> Iterator[None]:
    """Say in which thing values are nested more deeply than Python can follow.

    Raises
    ------
    CheckpointError
        If they are.
    """
    try:
        yield
    except RecursionError as error:
        raise CheckpointError(
            f"{where} is nested too deeply, or holds itself, and cannot be kept in a "
            "checkpoint; give plain values."
        ) from error
