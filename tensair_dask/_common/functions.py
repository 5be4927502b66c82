"""Functions: what one of the user's is, so that a restart can tell another from it.

By its name, by its code, and by what it was made with: arguments of a partial, values
of a closure, defaults, attributes of an object, plain globals that it reads.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

__all__ = ["changed", "described", "differences", "name_of", "settings_of"]

# How deep values are looked into, and how many of a container.
_DEPTH = 4
_MOST = 1000
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Characters of a value that are shown as they are.
_SHOWN = 40


def name_of(function: Any) -> str:
    """Name a function: its name, and its code where that is Python's.

    Parameters
    ----------
    function
        Of the user's; a text is its own name.
    """
    if isinstance(function, str):
        return function
    while isinstance(function, functools.partial):
        function = function.func
    named = function if hasattr(function, "__qualname__") else type(function)
    code = getattr(function, "__code__", None)
    if not isinstance(code, types.CodeType):
        return str(named.__qualname__)
    return f"{named.__qualname__} ({_digest(code):08x})"


def settings_of(function: Any) -> dict[str, str]:
    """Describe what a function was made with, in the same words after a restart.

    Parameters
    ----------
    function
        Of the user's.

    Returns
    -------
    settings
        Texts of short values, digests of others; what cannot be looked into is left
        out.
    """
    try:
        return dict(_settings(function, _DEPTH))
    except Exception:  # looking does not decide whether anything runs
        return {}


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """Name the settings that two functions of one code do not share, with values."""
    return [
        f"{name}={now.get(name, 'not there')} (was {was.get(name, 'not there')})"
        for name in {**was, **now}
        if was.get(name) != now.get(name)
    ]


def _digest(code: types.CodeType) -> int:
    """Of what it does: lambdas have no names that would tell them apart."""
    values = [each for each in code.co_consts if not isinstance(each, types.CodeType)]
    texts = repr((code.co_names, values)).encode()
    return zlib.crc32(texts, zlib.crc32(code.co_code))


def _settings(function: Any, depth: int) -> dict[str, str]:
    found: dict[str, Any] = {}
    arguments: dict[str, Any] = {}
    while isinstance(function, functools.partial):
        given = {f"argument {at}": each for at, each in enumerate(function.args)}
        arguments = {**given, **function.keywords, **arguments}
        function = function.func
    if isinstance(function, types.MethodType):
        found.update(_attributes(function.__self__))
        function = function.__func__
    if isinstance(function, types.FunctionType):
        found.update(_of_function(function))
    elif not isinstance(function, (type, types.BuiltinFunctionType)):
        found.update(_attributes(function))
    found.update(arguments)
    texts = {name: _shown(value, depth) for name, value in found.items()}
    return {name: text for name, text in texts.items() if text is not None}


def _of_function(function: types.FunctionType) -> dict[str, Any]:
    code = function.__code__
    names = code.co_varnames[: code.co_argcount]
    defaults = function.__defaults__ or ()
    found = dict(zip(names[len(names) - len(defaults) :], defaults, strict=True))
    found.update(function.__kwdefaults__ or {})
    for name in code.co_names:  # plain ones: others are the module's own matter
        value = function.__globals__.get(name)
        if value is not None and isinstance(value, _PLAIN):
            found[name] = value
    cells = zip(code.co_freevars, function.__closure__ or (), strict=True)
    for name, cell in cells:
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not set yet
            continue
    return found


def _attributes(thing: Any) -> dict[str, Any]:
    held = getattr(thing, "__dict__", {})
    found = {name: value for name, value in held.items() if not name.startswith("_")}
    for name in ("_parameters", "_buffers", "_modules"):  # of a module of torch
        if isinstance(held.get(name), dict):
            found.update(held[name])
    return found


def _shown(value: Any, depth: int) -> str | None:
    """Text of a value, the same in every process; None if there is none."""
    text = _text(value, depth)
    if text is None or len(text) <= _SHOWN:
        return text
    return f"{type(value).__name__} ({zlib.crc32(text.encode()):08x})"


def _text(value: Any, depth: int) -> str | None:
    if isinstance(value, _PLAIN):
        return repr(value)
    if depth == 0:
        return None
    if isinstance(value, (list, tuple)) and len(value) <= _MOST:
        inner = ", ".join(str(_text(each, depth - 1)) for each in value)
        return f"({inner})" if isinstance(value, tuple) else f"[{inner}]"
    if isinstance(value, (set, frozenset)) and len(value) <= _MOST:
        inner = ", ".join(sorted(str(_text(each, depth - 1)) for each in value))
        return f"{{{inner}}}"
    if isinstance(value, Mapping) and len(value) <= _MOST:
        pairs = [
            f"{_text(key, depth - 1)}: {_text(each, depth - 1)}"
            for key, each in value.items()
        ]
        return f"{{{', '.join(pairs)}}}"
    if hasattr(value, "__array__") and hasattr(value, "dtype"):
        return _of_array(value)
    if isinstance(value, type):
        return value.__qualname__
    if isinstance(value, types.ModuleType):
        return value.__name__
    return _of_object(value, depth - 1)


def _of_array(value: Any) -> str:
    array = np.asarray(getattr(value, "detach", lambda: value)())
    digest = zlib.crc32(np.ascontiguousarray(array).tobytes())
    return f"{array.dtype} {array.shape} ({digest:08x})"


def _of_object(value: Any, depth: int) -> str:
    # What is neither holds anything: clients, files, what changes by itself.
    looked_into = (types.FunctionType, types.MethodType, functools.partial)
    if not isinstance(value, looked_into) and not (
        dataclasses.is_dataclass(value) or hasattr(value, "_parameters")
    ):
        return name_of(value)
    settings = _settings(value, depth)
    inner = ", ".join(f"{name}={text}" for name, text in settings.items())
    return f"{name_of(value)} [{inner}]" if inner else name_of(value)


def described(given: Mapping[str, Callable[..., Any] | None]) -> dict[str, Any]:
    """Describe functions by their places, as a checkpoint keeps them."""
    return {
        place: {"name": name_of(each), "settings": settings_of(each)}
        for place, each in given.items()
        if each is not None
    }


def changed(
    was: Mapping[str, Any], now: Mapping[str, Any], codes: bool = True
) -> list[str]:
    """Say of each place in which way its function is another than it was.

    Parameters
    ----------
    was, now
        As `described`.
    codes
        Whether codes can be compared: those of two versions of Python cannot.
    """
    found = []
    for place in {**was, **now}:
        one, two = was.get(place), now.get(place)
        if one is None or two is None:
            found.append(f"{place} was {'not ' if one is None else ''}given")
        elif _compared(one["name"], codes) != _compared(two["name"], codes):
            found.append(f"{place} is {two['name']}, and was {one['name']}")
        elif differ := differences(one["settings"], two["settings"]):
            found.append(f"{place} has {', '.join(differ)}")
    return found


def _compared(name: str, codes: bool) -> str:
    return name if codes else name.partition(" (")[0]
