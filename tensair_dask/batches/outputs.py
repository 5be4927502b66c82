"""Outputs: what models return, taken apart and put together as what it was.

Named tuples, dataclasses and dicts of a class of their own stay what they are where
their tensors are replaced, moved or sent. Imports no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import importlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

__all__ = ["contents", "filled", "find", "is_plain", "made", "mapped", "name_of"]


def contents(tree: Any) -> list[tuple[Any, Any]] | None:
    """Take a container apart.

    Parameters
    ----------
    tree
        What a model returned, or a part of it.

    Returns
    -------
    items
        Of a tuple or list (position, value), of a mapping (key, value), of a dataclass
        (field, value). None if it is none of these.
    """
    if isinstance(tree, Mapping):
        return list(tree.items())
    if isinstance(tree, (tuple, list)):
        return list(enumerate(tree))
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        return [
            (field.name, getattr(tree, field.name))
            for field in dataclasses.fields(tree)
            if hasattr(tree, field.name)
        ]
    return None


def is_plain(tree: Any) -> bool:
    """Whether it is no container of a class of its own."""
    return type(tree) in (dict, list, tuple) or contents(tree) is None


def filled(tree: Any, values: Iterable[Any]) -> Any:
    """Make a container of the same type, with other values in the same places.

    Parameters
    ----------
    tree
        Of which `contents` has told; it stays as it is.
    values
        As many as it holds.
    """
    kind, values = type(tree), list(values)
    if kind is tuple or kind is list:
        return kind(values)
    if kind is dict:
        return dict(zip(tree, values, strict=True))
    if isinstance(tree, tuple):
        return _tuple(kind, values)
    other: Any
    if isinstance(tree, list):
        other = copy.copy(tree)
        other[:] = values
        return other
    if isinstance(tree, Mapping):
        try:
            other = copy.copy(tree)
            for key, value in zip(tree, values, strict=True):
                other[key] = value
        except Exception:  # one that cannot be written to
            return dict(zip(tree, values, strict=True))
        return other
    other = copy.copy(tree)
    for (name, _), value in zip(contents(tree) or (), values, strict=True):
        object.__setattr__(other, name, value)  # also if it is frozen
    return other


def mapped(function: Callable[[Any], Any], tree: Any) -> Any:
    """Call a function with all that is no container, and put the results together."""
    items = contents(tree)
    if items is None:
        return function(tree)
    return filled(tree, [mapped(function, value) for _, value in items])


def name_of(tree: Any) -> tuple[str, str]:
    """Module and name of the type of something."""
    return type(tree).__module__, type(tree).__qualname__


def find(module: str, name: str) -> type | None:
    """Find a type by what `name_of` says; None if it cannot be imported here."""
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
    except Exception:  # whatever the module raises
        return None
    return found if isinstance(found, type) else None


def made(kind: Any, plain: Any) -> Any:
    """Make a container of a type that holds what a plain one holds.

    No code of the type is run: it may be that somebody else says which type it is.

    Parameters
    ----------
    kind
        A type of tuples, lists or dicts, or a dataclass.
    plain
        A tuple, list or dict; of a dataclass a dict of its fields.

    Raises
    ------
    TypeError
        If the type does not hold such things.
    """
    if isinstance(plain, tuple) and _holds(kind, tuple):
        if len(getattr(kind, "_fields", plain)) == len(plain):
            return _tuple(kind, plain)
    elif isinstance(plain, list) and _holds(kind, list):
        items: Any = list.__new__(kind)
        list.extend(items, plain)
        return items
    elif isinstance(plain, dict):
        fields = {each.name for each in _fields(kind)}
        if _holds(kind, dict):
            return _dict(kind, plain, fields)
        if fields and fields.issuperset(plain):
            other: Any = object.__new__(kind)
            for name, value in plain.items():
                object.__setattr__(other, name, value)
            return other
    raise TypeError(f"{kind} does not hold what a {type(plain).__name__} does")


def _holds(kind: Any, of: type) -> bool:
    return isinstance(kind, type) and issubclass(kind, of)


def _fields(kind: Any) -> tuple[dataclasses.Field[Any], ...]:
    return dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else ()


def _tuple(kind: Any, values: Iterable[Any]) -> Any:
    values = list(values)
    try:
        return tuple.__new__(kind, values)
    except TypeError:  # of one that is written in C, as torch.return_types are
        return kind(values)


def _dict(kind: Any, plain: dict[Any, Any], fields: set[str]) -> Any:
    base = next(each for each in kind.__mro__ if each.__module__ in _STANDARD)
    other = base.__new__(kind)
    for key, value in plain.items():
        base.__setitem__(other, key, value)
    for name in fields:  # what is both has each value in two places
        object.__setattr__(other, name, plain.get(name))
    return other


# Where the dicts are from whose own code may run: dict, OrderedDict and the like.
_STANDARD = ("builtins", "collections")
