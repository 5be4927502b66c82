"""Reachable: what the code of a user refers to, and may change while it runs.

Attributes, variables of closures, defaults, globals, class attributes: nobody saves
them, and no other replica has them.
"""

from __future__ import annotations

import dis
import functools
import inspect
import itertools
import types
from collections.abc import Iterator, Mapping
from typing import Any

import torch

__all__ = ["DEPTH", "is_full", "leaves", "of_code", "parts"]

# How deep it is looked: partial, closure, helper function, list.
DEPTH = 5

# Entries of a container that are looked at, and things that a model refers to.
_ENTRIES = 100
_MOST = 10_000

_CALLED = (types.FunctionType, types.MethodType, functools.partial)
_CONTAINERS = (Mapping, list, tuple, set)

# What these hold is not the user's.
_FOREIGN = ("torch", "numpy", "builtins", "functools", "tensair_dask")


def leaves(
    thing: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    """Find what a function may change, with names: attributes, variables, globals."""
    if isinstance(thing, torch.nn.Module):
        if id(thing) in seen:
            return
        seen.add(id(thing))
        for path, module in thing.named_modules():
            at = f"{name}.{path}".strip(".")
            for key, part in {**vars(module), **module._buffers}.items():
                if key not in ("_parameters", "_buffers", "_modules"):
                    yield f"{at}.{key}".lstrip("."), part
        return
    if isinstance(thing, (int, float, str, type(None))):
        yield name, thing  # may be the same object elsewhere
        return
    if depth < 0 or id(thing) in seen:
        return
    seen.add(id(thing))
    if isinstance(thing, type):
        yield from _values_of(thing)
    inside = [] if isinstance(thing, _CONTAINERS) else parts(thing)
    if not inside:
        yield name, thing
    for inner, part in inside:
        yield from leaves(part, f"{name}.{inner}".lstrip("."), depth - 1, seen)


def parts(value: Any) -> list[tuple[str, Any]]:
    """What something refers to, if that may be the user's."""
    if isinstance(value, (str, bytes, int, float, type, types.ModuleType)):
        return []
    if isinstance(value, functools.partial):
        named = enumerate((value.func, *value.args))
        return [*((str(at), each) for at, each in named), *value.keywords.items()]
    if isinstance(value, Mapping):
        return [(str(key), each) for key, each in [*value.items()][:_ENTRIES]]
    if isinstance(value, (list, tuple, set)):
        return [(str(at), each) for at, each in enumerate([*value][:_ENTRIES])]
    if str(getattr(value, "__module__", None)).partition(".")[0] in _FOREIGN:
        return []
    if inspect.ismethod(value):
        return [("self", value.__self__), (value.__name__, value.__func__)]
    if inspect.isfunction(value):
        return _parts_of(value)
    return [*getattr(value, "__dict__", {}).items()][:_ENTRIES]


def _parts_of(function: types.FunctionType) -> list[tuple[str, Any]]:
    free = zip(function.__code__.co_freevars, function.__closure__ or (), strict=False)
    found = [(name, cell.cell_contents) for name, cell in free if is_full(cell)]
    defaults = [
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]
    found += [("default", each) for each in defaults]
    names = _names(function.__code__)
    found += [
        (name, each) for name, each in function.__globals__.items() if name in names
    ]
    return found


@functools.lru_cache(maxsize=4096)
def _names(code: types.CodeType) -> frozenset[str]:
    """Global names in a function, and in those within it."""
    found = {
        each.argval
        for each in dis.get_instructions(code)
        if each.opname == "LOAD_GLOBAL"  # co_names has attributes as well
    }
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            found |= _names(each)
    return frozenset(found)


def is_full(cell: Any) -> bool:
    """Whether a variable of a closure is bound already."""
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def of_code(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Find what the code of a model refers to, with names; not its attributes.

    Its code: its classes and methods, hooks, and functions that it holds.
    """
    return itertools.islice(_of_code(model), _MOST)


def _values_of(kind: type) -> Iterator[tuple[str, Any]]:
    """Find the attributes of a class that are no methods."""
    if _is_foreign(kind):
        return
    for key, value in vars(kind).items():
        if not key.startswith("__") and not hasattr(value, "__get__"):
            yield f"{kind.__name__}.{key}", value


def _of_code(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    seen = {id(each) for each in model.modules()}
    kinds: set[type] = set()
    for module in model.modules():
        for kind in type(module).__mro__:
            if kind in kinds or _is_foreign(kind):
                continue
            kinds.add(kind)
            yield from leaves(kind, "", DEPTH, seen)
            for value in vars(kind).values():
                function = getattr(value, "__func__", value)
                if inspect.isfunction(function):
                    yield from leaves(function, "", DEPTH, seen)
        hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
        for held in (*hooks, *vars(module).values()):
            if isinstance(held, _CALLED):
                yield from leaves(held, "", DEPTH, seen)


def _is_foreign(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in _FOREIGN
