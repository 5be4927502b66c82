"""The state of an object as plain values, to be put into another one like it.

Pickles name classes, and loading one runs code. Here only values are taken; the object
that they are put into has been made by whoever wants to go on, with the same
parameters. So what is read can change numbers, and nothing else.
"""

from __future__ import annotations

import inspect
import random
from array import array
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Iterable, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from tensair_dask._common.plain_values.kinds import (
    LONG,
    NUMERIC,
    SIMPLE,
    is_key,
    within_depth,
)
from tensair_dask._wording import in_words
from tensair_dask.errors import CheckpointError

__all__ = ["check", "describe", "parameters_of", "put", "take"]

_CODE = (FunctionType, MethodType, BuiltinFunctionType)


def take(thing: Any, leave_out: Collection[str] = (), where: str = "") -> Any:
    """Copy the state of an object.

    Parameters
    ----------
    thing
        Its attributes are plain values, numpy arrays, objects of which the same holds,
        or lists, tuples, sets, deques and dicts of these. Functions are no state.
    leave_out
        Names of attributes that are no state, in ``thing`` or in what it holds.
    where
        What it is, for the error.

    Returns
    -------
    state
        Dicts, lists and tuples of None, numbers, strings, bytes and numpy arrays.

    Raises
    ------
    CheckpointError
        If it holds anything else: the message says where and what.
    """
    where = where or type(thing).__name__
    with within_depth(where):
        return _Taker(leave_out).take(thing, where)


def put(thing: Any, state: Any, where: str = "") -> None:
    """Give an object the state that `take` copied from one like it.

    Parameters
    ----------
    thing
        Made with the same parameters. If this raises it may have been changed in part:
        put into a copy.
    state
        What `take` has returned.
    where
        What it is, for the error.

    Raises
    ------
    CheckpointError
        If the state is that of something else.
    """
    where = where or type(thing).__name__
    try:
        _Putter().put(thing, state, where)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{where} cannot go on from this state ({in_words(error)}): "
            "it is not one that was taken of it."
        ) from error


def parameters_of(thing: Any) -> dict[str, Any]:
    """Read what a constructor was given, where an attribute of that name is plain."""
    names = inspect.signature(type(thing)).parameters
    found = {name: getattr(thing, name, _CODE) for name in names}
    return {name: value for name, value in found.items() if type(value) in SIMPLE}


def describe(thing: Any, parameters: Mapping[str, Any], state: Any) -> dict[str, Any]:
    """Put beside a state whose it is; see `check`."""
    return {
        "class": type(thing).__name__,
        "parameters": dict(parameters),
        "state": state,
    }


def check(thing: Any, parameters: Mapping[str, Any], state: Any) -> Any:
    """Return the state that `describe` was given, if it is that of such a thing.

    Raises
    ------
    CheckpointError
        If it is of another class, or of other parameters.
    """
    kind = type(thing).__name__
    if not isinstance(state, Mapping) or not {"class", "parameters", "state"} <= set(
        state
    ):
        raise CheckpointError(
            f"{kind} was given a state that is none; give what {kind}.state_dict() "
            "has returned."
        )
    if state["class"] != kind:
        raise CheckpointError(
            f"The state is that of {_article(state['class'])}, and this is "
            f"{_article(kind)}; restore with the class that it was saved with."
        )
    saved = state["parameters"]
    if saved != dict(parameters):
        text = ", ".join(
            f"{name}={saved.get(name)!r} (here {parameters.get(name)!r})"
            for name in {**saved, **parameters}
            if saved.get(name, _CODE) != parameters.get(name, _CODE)
        )
        raise CheckpointError(
            f"The state is that of {_article(kind)} with {text}; restore with the "
            "parameters that it was saved with."
        )
    return state["state"]


def _article(kind: Any) -> str:
    return f"{'an' if str(kind)[:1] in 'AEIOU' else 'a'} {kind}"


def _name(thing: Any) -> str:
    return type(thing).__qualname__


def _bytes_of(thing: Any) -> bytes | None:
    """State of an object whose code is compiled and tells it as bytes, else None."""
    if hasattr(thing, "__dict__") or not hasattr(thing, "__setstate__"):
        return None
    state = thing.__getstate__()
    return state if isinstance(state, bytes) else None


class _Taker:
    """One copy; what occurs twice is written once, and numbered as it comes."""

    def __init__(self, leave_out: Collection[str]) -> None:
        self._leave_out = leave_out
        self._numbers: dict[int, int] = {}
        self._seen: list[Any] = []  # as long as they live no other has their id

    def take(self, thing: Any, where: str) -> Any:
        kind = type(thing)
        if kind in SIMPLE:
            return thing
        if isinstance(thing, np.generic):
            return thing.item()
        if kind is tuple:
            if SIMPLE.issuperset(map(type, thing)):
                return thing
            return {"tuple": self._each(thing, where)}
        number = self._numbers.setdefault(id(thing), len(self._seen))
        if number < len(self._seen):
            return {"same": number}
        self._seen.append(thing)
        if kind is np.ndarray and thing.dtype.kind in NUMERIC:
            return {"array": thing.copy()}
        if isinstance(thing, array):
            return {"numbers": np.array(thing)}
        if kind in (list, deque):
            return {kind.__name__: self._items(thing, where)}
        if kind is set:
            return {"set": self._each(thing, where)}
        if isinstance(thing, dict):
            return self._dict(thing, where)
        if isinstance(thing, random.Random):
            return {"random": thing.getstate()}
        return self._object(thing, where)

    def _items(self, items: Collection[Any], where: str) -> Any:
        if SIMPLE.issuperset(map(type, items)):
            return list(items)
        if len(items) >= LONG and set(map(type, items)) == {tuple}:
            widths = set(map(len, items))
            if len(widths) == 1 and widths != {0}:
                columns = zip(*items, strict=True)
                return {
                    "columns": [
                        self._items(column, f"{where}[:][{at}]")
                        for at, column in enumerate(columns)
                    ]
                }
        return self._each(items, where)

    def _each(self, items: Iterable[Any], where: str) -> list[Any]:
        return [self.take(each, f"{where}[{at}]") for at, each in enumerate(items)]

    def _dict(self, thing: dict[Any, Any], where: str) -> Any:
        for key in thing:
            if not is_key(key):
                raise _refused(f"A key of {where}", key)
        values = [self.take(each, f"{where}[{key!r}]") for key, each in thing.items()]
        return {"keys": list(thing), "values": values}

    def _object(self, thing: Any, where: str) -> Any:
        text = _bytes_of(thing)
        if text is not None:
            return {"class": _name(thing), "bytes": text}
        if isinstance(thing, (type, ModuleType, *_CODE)) or not hasattr(
            thing, "__dict__"
        ):
            raise _refused(where, thing)
        attributes = {
            name: self.take(value, f"{where}.{name}")
            for name, value in vars(thing).items()
            if name not in self._leave_out and not isinstance(value, _CODE)
        }
        return {"class": _name(thing), "attributes": attributes}


class _Putter:
    """One restoration; goes through a state in the order in which it was taken."""

    def __init__(self) -> None:
        self._seen: list[Any] = []

    def put(self, target: Any, state: Any, where: str) -> Any:
        """Return what is to stand in the place of ``target``: itself if it can be."""
        if type(state) in SIMPLE or type(state) is tuple:
            if hasattr(target, "__dict__") and not isinstance(target, Mapping):
                raise _other(where, _name(target), "a value")
            return state
        if "tuple" in state:
            targets = target if isinstance(target, tuple) else ()
            return tuple(self._each(targets, state["tuple"], where))
        if "same" in state:
            return self._seen[state["same"]]
        for key, method in self._methods.items():
            if key in state:
                return method(self, target, state, where)
        raise _other(where, _name(target), f"a node with {', '.join(state)}")

    def _keep(self, thing: Any) -> Any:
        self._seen.append(thing)
        return thing

    def _array(self, target: Any, state: Any, where: str) -> Any:
        return self._keep(np.array(state["array"]))

    def _numbers(self, target: Any, state: Any, where: str) -> Any:
        if not isinstance(target, array) or len(target) != len(state["numbers"]):
            raise _other(where, _name(target), f"{len(state['numbers'])} numbers")
        new = array(target.typecode)
        new.frombytes(np.asarray(state["numbers"], target.typecode).tobytes())
        return self._keep(new)

    def _list(self, target: Any, state: Any, where: str) -> Any:
        result = self._keep(target if type(target) is list else [])
        result[:] = self._items(list(result), state["list"], where)
        return result

    def _deque(self, target: Any, state: Any, where: str) -> Any:
        if type(target) is not deque:
            raise _other(where, _name(target), "a deque")
        self._keep(target)
        items = self._items((), state["deque"], where)
        target.clear()
        target.extend(items)
        return target

    def _set(self, target: Any, state: Any, where: str) -> Any:
        result = self._keep(target if type(target) is set else set())
        items = self._each((), state["set"], where)
        result.clear()
        result.update(items)
        return result

    def _dict(self, target: Any, state: Any, where: str) -> Any:
        result = self._keep(target if isinstance(target, dict) else {})
        before = dict(result)
        result.clear()
        for key, value in zip(state["keys"], state["values"], strict=True):
            inner = before.get(key)
            if inner is None and isinstance(result, defaultdict):
                inner = result.default_factory() if result.default_factory else None
            result[key] = self.put(inner, value, f"{where}[{key!r}]")
        return result

    def _random(self, target: Any, state: Any, where: str) -> Any:
        if not isinstance(target, random.Random):
            raise _other(where, _name(target), "a generator of random numbers")
        target.setstate(state["random"])
        return self._keep(target)

    def _object(self, target: Any, state: Any, where: str) -> Any:
        if _name(target) != state["class"]:
            raise _other(where, _name(target), _article(state["class"]))
        self._keep(target)
        if "bytes" in state:
            _set_bytes(target, state["bytes"], where)
            return target
        own = vars(target)
        for name, value in state["attributes"].items():
            if name not in own:
                raise CheckpointError(
                    f"{where} has no {name!r}, which the state has: it was taken by "
                    "another version of this package, or of river. Install the "
                    "versions that the checkpoint names, or begin afresh."
                )
            own[name] = self.put(own[name], value, f"{where}.{name}")
        return target

    def _items(self, targets: Collection[Any], state: Any, where: str) -> list[Any]:
        if isinstance(state, dict):
            columns = [
                self._items((), column, f"{where}[:][{at}]")
                for at, column in enumerate(state["columns"])
            ]
            return list(zip(*columns, strict=True))
        return self._each(targets, state, where)

    def _each(
        self, targets: Collection[Any], states: list[Any], where: str
    ) -> list[Any]:
        if SIMPLE.issuperset(map(type, states)):
            return list(states)
        known = list(targets) if len(targets) == len(states) else [None] * len(states)
        return [
            self.put(target, state, f"{where}[{at}]")
            for at, (target, state) in enumerate(zip(known, states, strict=True))
        ]

    _methods: Mapping[str, Callable[..., Any]] = {
        "array": _array,
        "numbers": _numbers,
        "list": _list,
        "deque": _deque,
        "set": _set,
        "keys": _dict,
        "random": _random,
        "class": _object,
    }


def _set_bytes(target: Any, state: bytes, where: str) -> None:
    try:
        target.__setstate__(state)
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as error:  # compiled code panics with one of its own
        raise CheckpointError(
            f"{where} cannot go on from this state ({error}): it was taken by another "
            "version of river. Install the version that it was saved with, or begin "
            "afresh."
        ) from error


def _refused(where: str, thing: Any) -> CheckpointError:
    kind = type(thing)
    return CheckpointError(
        f"{where} is a {kind.__module__}.{kind.__qualname__}, whose state cannot be "
        "kept as plain values. Hold numbers, strings, lists and dicts instead, or "
        "write state_dict() and load_state_dict(state) for it."
    )


def _other(where: str, here: str, there: str) -> CheckpointError:
    return CheckpointError(
        f"The state has {there} where {where} has {_article(here)}: it is that of "
        "something else. Restore with what it was saved with."
    )
