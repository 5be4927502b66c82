"""Contents: what things hold, to be compared with what they hold later, and put back.

Numbers, texts, tensors and arrays, in containers and objects of the user's own, to a
depth and a number that are bounded. What else there is counts by its identity.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import operator
import sys
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator
from datetime import date
from pathlib import PurePath
from typing import Any, TypeAlias

import numpy as np
import torch

__all__ = ["Contents", "Token", "parts"]

# Stands for what something holds; equal if that is the same.
Token: TypeAlias = Hashable

# How deep it is looked: objects in lists in objects.
_DEPTH = 6

# Things that are looked at, and entries of one container; further ones are not.
_MOST = 100_000
_ENTRIES = 10_000

# Elements of an array that are looked at, where it is not copied either.
_SAMPLE = 10_000

_PLAIN = (int, bool, str, bytes, type(None))
# Values, of which each look may find another object; NaN is what it was.
_BY_TEXT = (
    *(float, complex, range, slice, np.generic, torch.device, PurePath, date),
    itertools.count,
)
_SEQUENCES = (list, tuple, deque)
_SETS = (set, frozenset)
_MAPPINGS = (dict, OrderedDict, defaultdict)

# What objects of these hold is not the user's.
_FOREIGN = ("torch", "numpy", "dask", "distributed", "streamz", "tensair_dask")


class Contents:
    """What some things hold now.

    Parameters
    ----------
    named
        Things, by names; one name may stand for several.
    known
        Ids of things that count by their identity.
    whole
        Whether tensors are compared by their values, and all can be put back, which
        takes a copy; else tensors that are written to are others.

    Attributes
    ----------
    tokens
        What each name holds. Equal only to those of `Contents` made in the same way,
        while both live.
    """

    def __init__(
        self,
        named: Iterable[tuple[Any, Any]],
        known: Collection[int] = (),
        whole: bool = False,
    ) -> None:
        self._known = known
        self._whole = whole
        self._left = _MOST
        # No id may be given to something else, as long as it is compared.
        self._alive: list[Any] = []
        self._undo: list[Callable[[], None]] = []
        self.tokens: dict[Any, Token] = {}
        for name, thing in named:
            self.tokens[name] = (self.tokens.get(name), self._token(thing, _DEPTH))

    def restore(self) -> None:
        """Put back what containers, objects, tensors and arrays held; see ``whole``."""
        for undo in self._undo:
            undo()

    def _token(self, thing: Any, depth: int) -> Token:
        kind = type(thing)
        if kind in _PLAIN:
            return kind, thing
        if isinstance(thing, _BY_TEXT):
            return kind, repr(thing)
        if kind is types.MethodType:  # a new object each time
            return kind, self._token(thing.__self__, 0), id(thing.__func__)
        self._alive.append(thing)
        self._left -= 1
        if id(thing) in self._known or depth == 0 or self._left < 0:
            return id(thing)
        if isinstance(thing, torch.Tensor):
            return self._of_tensor(thing)
        if isinstance(thing, np.ndarray):
            return self._of_array(thing)
        inner = parts(thing)
        if inner is None:
            return id(thing)
        if self._whole:
            self._undo.extend(_undoing(thing))
        tokens = [
            (self._token(name, 1), self._token(part, depth - 1)) for name, part in inner
        ]
        if kind in _SEQUENCES:
            return kind, len(thing), tuple(tokens)
        return kind, len(tokens), frozenset(tokens)

    def _of_tensor(self, tensor: torch.Tensor) -> Token:
        if tensor.grad_fn is not None:
            return "computed"  # anew each time, as a normed weight is
        if self._whole:
            try:
                token = _values(tensor)
                clone = tensor.detach().clone()
            except Exception:  # sparse, quantized, on the device meta
                return id(tensor)
            self._undo.append(functools.partial(_put, tensor, clone))
            return token
        return id(tensor), 0 if tensor.is_inference() else tensor._version

    def _of_array(self, array: np.ndarray) -> Token:
        if self._whole:
            self._undo.append(functools.partial(_copy_to, array, array.copy()))
            sample = array
        else:
            sample = array.flat[:: 1 + array.size // _SAMPLE]
        return array.shape, str(array.dtype), hash(sample.tobytes())


def parts(thing: Any) -> Iterable[tuple[Any, Any]] | None:
    """What a thing holds that is the user's; None of what counts by its identity."""
    kind = type(thing)
    if kind in _SEQUENCES:
        return [(None, each) for each in itertools.islice(thing, _ENTRIES)]
    if kind in _SETS:
        return [(each, None) for each in itertools.islice(thing, _ENTRIES)]
    if kind in _MAPPINGS:
        return itertools.islice(thing.items(), _ENTRIES)
    if isinstance(thing, torch.nn.Module):
        return vars(thing).items()
    own = [*getattr(thing, "__dict__", {}).items(), *_slots(thing)]
    for base in (tuple, list, dict):
        if isinstance(thing, base):  # of a class of the user's own
            return [("", base(thing)), *own]
    if isinstance(thing, type) or hasattr(thing, "__code__") or _is_foreign(kind):
        return None
    return own or None


def _is_foreign(kind: type) -> bool:
    """Whether it is no business of the user what objects of a class hold."""
    if kind in (types.SimpleNamespace, argparse.Namespace):
        return False
    package = kind.__module__.partition(".")[0]
    return package in _FOREIGN or package in sys.stdlib_module_names


def _slots(thing: Any) -> Iterator[tuple[str, Any]]:
    for base in type(thing).__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(thing, name):
                yield name, getattr(thing, name)


def _values(tensor: torch.Tensor) -> Token:
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    data = plain.reshape(-1).view(torch.uint8).numpy().tobytes()
    return tuple(tensor.shape), str(tensor.dtype), str(tensor.device), hash(data)


def _undoing(thing: Any) -> Iterator[Callable[[], None]]:
    """Give what puts the parts of a thing back that may be changed in place."""
    if isinstance(thing, (list, dict, set, deque)):
        yield functools.partial(_refill, thing, copy.copy(thing))
    held = getattr(thing, "__dict__", None)
    if isinstance(held, dict):
        yield functools.partial(_refill, held, dict(held))
    for name, value in _slots(thing):
        yield functools.partial(object.__setattr__, thing, name, value)


def _refill(container: Any, content: Any) -> None:
    if isinstance(container, (list, deque)):
        same = len(container) == len(content)
        if same and all(map(operator.is_, container, content)):
            return
        container.clear()
        container.extend(content)
    else:
        container.clear()
        container.update(content)


@torch.no_grad()
def _put(tensor: torch.Tensor, values: torch.Tensor) -> None:
    if tensor.shape == values.shape and tensor.dtype == values.dtype:
        tensor.copy_(values)
    else:
        tensor.data = values


def _copy_to(array: np.ndarray, values: np.ndarray) -> None:
    if array.flags.writeable and array.shape == values.shape:
        array[...] = values
