"""Fresh: copies of functions and objects, with what they keep from call to call."""

from __future__ import annotations

import copy
import functools
import types
from typing import Any

import torch

__all__ = ["fresh", "may_keep_something"]

_PLAIN = (type, types.ModuleType, types.BuiltinFunctionType)


def may_keep_something(function: Any) -> bool:
    """Whether something that is called may keep a state of its own; not globals."""
    if isinstance(function, functools.partial):
        parts = (function.func, *function.args, *function.keywords.values())
        return any(map(may_keep_something, parts))
    if isinstance(function, types.FunctionType):
        return bool(function.__closure__) or bool(vars(function))
    atoms = (*_PLAIN, str, bytes, int, float, complex, type(None))
    return not isinstance(function, atoms)


def fresh(value: Any, memo: dict[int, Any] | None = None) -> Any:
    """Copy something that is called, so that neither sees what the other keeps.

    As `copy.deepcopy`, which takes functions as they are; here, what they hold in
    closures is copied, too. Parameters of modules are shared: nobody trains them.

    Parameters
    ----------
    value
        To copy.
    memo
        As `copy.deepcopy` has it.

    Raises
    ------
    Exception
        If something cannot be copied.
    """
    memo = {} if memo is None else memo
    if id(value) in memo:
        return memo[id(value)]
    if isinstance(value, _PLAIN):
        return value
    if isinstance(value, types.FunctionType):
        return _function(value, memo)
    if isinstance(value, types.MethodType):
        return types.MethodType(value.__func__, fresh(value.__self__, memo))
    if isinstance(value, functools.partial):
        args = [fresh(each, memo) for each in value.args]
        named = {name: fresh(each, memo) for name, each in value.keywords.items()}
        return functools.partial(fresh(value.func, memo), *args, **named)
    if isinstance(value, torch.nn.Module):
        memo |= {id(each): each for each in value.parameters()}
    return copy.deepcopy(value, memo)


def _function(function: types.FunctionType, memo: dict[int, Any]) -> Any:
    if not may_keep_something(function):
        return function
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    copied = types.FunctionType(
        function.__code__,
        function.__globals__,
        function.__name__,
        function.__defaults__,
        cells,
    )
    copied.__kwdefaults__ = function.__kwdefaults__
    memo[id(function)] = copied  # before its cells: it may refer to itself
    vars(copied).update({k: fresh(v, memo) for k, v in vars(function).items()})
    for cell, was in zip(cells, function.__closure__ or (), strict=True):
        try:
            content = was.cell_contents
        except ValueError:  # nothing in it yet
            continue
        cell.cell_contents = fresh(content, memo)
    return copied
