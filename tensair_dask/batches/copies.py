"""Values: copies of what a user gives, and may change or use again."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import MutableMapping
from typing import Any

import numpy as np

__all__ = ["as_values"]

# What cannot be changed, or is shared on purpose.
_LASTING = (type(None), bool, int, float, complex, str, bytes, np.generic)


def as_values(item: Any) -> Any:
    """Copy the arrays, tensors and containers of an item; keep their types.

    Parameters
    ----------
    item
        Anything: what is neither an array (of numpy, torch, pandas, or with an
        ``__array__``), nor a container or dataclass of some, is given back itself.

    Returns
    -------
    item
        The same, and what is done to the one that was given no longer reaches it. One
        whose own code raises when it is looked at is given back itself: it is refused
        where a mini-batch is made of it.
    """
    try:
        return _values(item)
    except MemoryError:  # no reason to let the item change
        raise
    except Exception:
        return item


def _values(item: Any) -> Any:
    if type(item) is np.ndarray:
        return item.copy()
    if isinstance(item, _LASTING):
        return item
    if isinstance(item, tuple):
        parts = [
            part.copy() if type(part) is np.ndarray else _values(part) for part in item
        ]
        # A NamedTuple takes its fields one by one.
        return tuple(parts) if type(item) is tuple else _rebuilt(item, parts)
    if type(item) is list:
        return [_values(part) for part in item]
    if type(item) is dict:
        return {key: _values(value) for key, value in item.items()}
    return _copied(item)


def _rebuilt(item: Any, parts: list[Any]) -> Any:
    make = getattr(type(item), "_make", None)
    return tuple(parts) if make is None else make(parts)


def _copied(item: Any) -> Any:
    if hasattr(item, "detach"):  # a torch tensor, told without importing torch
        return item.detach().clone()
    taken: Any
    if isinstance(item, (list, MutableMapping)):
        taken = copy.copy(item)
        places = range(len(item)) if isinstance(item, list) else list(item)
        for place in places:
            taken[place] = _values(item[place])
        return taken
    if dataclasses.is_dataclass(item) and not isinstance(item, type):
        taken = copy.copy(item)
        for field in dataclasses.fields(item):
            value = _values(getattr(item, field.name, None))
            object.__setattr__(taken, field.name, value)
        return taken
    if isinstance(item, memoryview):
        shape: Any = item.shape
        form: Any = item.format
        return memoryview(item.tobytes()).cast("B").cast(form, shape)
    if isinstance(item, bytearray) or hasattr(item, "__array__"):
        try:
            return copy.deepcopy(item)
        except Exception:  # of a file, say: its values are read where it is collated
            return item
    return item
