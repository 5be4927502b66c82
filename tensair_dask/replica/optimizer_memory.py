"""Optimizer memory: what an optimizer keeps in attributes, as another can take it over.

torch saves what an optimizer keeps in ``state`` and ``param_groups``. Those of users
count steps in ``self.t``, keep moments in ``self.m[parameter]``, slow weights in lists,
and another optimizer within. A replica that joins, and a run that goes on from a
checkpoint, would begin with none of it.
"""

from __future__ import annotations

import logging
import types
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from tensair_dask._common.contents import parts
from tensair_dask.replica.attributes import attributes_of_optimizer

__all__ = ["OptimizerMemory"]

# Objects in lists in objects; things of one optimizer.
_DEPTH = 8
_MOST = 100_000

_PLAIN = (type(None), bool, int, float, str, bytes)
_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
}
# What is no state: it is alike wherever the optimizer is built.
_CODE = (
    *(types.FunctionType, types.MethodType, types.BuiltinFunctionType),
    *(type, types.ModuleType, logging.Logger, torch.dtype, torch.device),
)
# Described by lists of a word and what it needs; what is left as it is there, by this.
_AS_IT_IS: list[Any] = ["as it is"]


class OptimizerMemory:
    """Copies the attributes of an optimizer, and puts a copy into one like it.

    Numbers and texts that are as they were built are settings: they are not copied.
    Tensors and arrays are, and all that has changed.

    Parameters
    ----------
    optimizer
        As it was just built.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self._optimizer = optimizer
        # torch's own keep nothing there.
        self.is_empty = type(optimizer).__module__.partition(".")[0] == "torch"
        self._built = {} if self.is_empty else self._described().plain

    def take(self) -> dict[str, Any]:
        """Copy them, as plain values and tensors on the CPU."""
        if self.is_empty:
            return {}
        described = self._described()
        changed = {
            name: each
            for name, each in described.plain.items()
            if self._built.get(name) != each
        }
        return {**described.whole, **changed}

    def left(self) -> list[str]:
        """Name what keeps something that cannot be copied, with its kind."""
        return [] if self.is_empty else self._described().left

    def put(self, memory: dict[str, Any]) -> list[str]:
        """Put in what `take` has given elsewhere; all else is as it was built.

        Returns
        -------
        left
            Names of what has no place here.
        """
        if self.is_empty:
            return []
        own = vars(self._optimizer)
        placing = _Placing(_parameters(self._optimizer))
        for name, each in {**self._built, **memory}.items():
            own[name] = placing.put(own.get(name), each, name)
        now = self._described()
        for name in {*now.plain, *now.whole} - {*self._built, *memory}:
            del own[name]  # it came in a step
        return placing.left

    def _described(self) -> _Described:
        return _Described(self._optimizer)


def _parameters(optimizer: torch.optim.Optimizer) -> list[torch.Tensor]:
    return [each for group in optimizer.param_groups for each in group["params"]]


class _Described:
    """The attributes of an optimizer: those that are only plain, and all others.

    Attributes
    ----------
    plain, whole
        Descriptions by name, without and with tensors and arrays.
    left
        What cannot be copied, in words.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        parameters = _parameters(optimizer)
        self._numbers = {id(each): at for at, each in enumerate(parameters)}
        self._on_gpu = any(each.device.type != "cpu" for each in parameters)
        # torch saves these.
        own = (optimizer, optimizer.state, optimizer.param_groups, optimizer.defaults)
        self._known = {id(each) for each in own}
        self._count = _MOST
        self._name = ""
        self.left: list[str] = []
        self.plain: dict[str, Any] = {}
        self.whole: dict[str, Any] = {}
        for name, value in attributes_of_optimizer(optimizer).items():
            self._name, self._has_values, self._has_any = name, False, False
            described = self._of(value, _DEPTH)
            if self._has_any:
                (self.whole if self._has_values else self.plain)[name] = described

    def _of(self, thing: Any, depth: int) -> list[Any]:
        self._count -= 1
        if id(thing) in self._numbers:
            return ["parameter", self._numbers[id(thing)]]
        if isinstance(thing, np.generic):
            thing = thing.item()
        if type(thing) is int and thing in self._numbers:  # self.m[id(parameter)]
            return ["id", self._numbers[thing]]
        if type(thing) in _PLAIN:
            self._has_any = True
            return ["plain", thing]
        if id(thing) in self._known or isinstance(thing, _CODE):
            return _AS_IT_IS
        if depth == 0 or self._count < 0:
            return self._leave(thing)
        if isinstance(thing, torch.Tensor):
            return self._tensor(thing)
        if isinstance(thing, np.ndarray):
            return self._array(thing)
        kind = type(thing).__name__
        if type(thing) in (list, tuple, set, frozenset, deque):
            self._has_any = True
            return [kind, [self._of(each, depth - 1) for each in thing]]
        if isinstance(thing, dict):
            self._has_any = True
            return ["dict", self._pairs(thing.items(), depth)]
        if isinstance(thing, torch.optim.Optimizer):
            self._known |= {id(thing), id(thing.defaults)}
            named = {**attributes_of_optimizer(thing), "state": thing.state}
            named["param_groups"] = thing.param_groups
            return ["object", kind, self._pairs(named.items(), depth)]
        inner = None if isinstance(thing, torch.nn.Module) else parts(thing)
        if inner is None or isinstance(thing, (list, tuple)):
            return self._leave(thing)
        self._known.add(id(thing))
        return ["object", kind, self._pairs(inner, depth)]

    def _pairs(self, items: Any, depth: int) -> list[Any]:
        return [[self._of(k, depth - 1), self._of(v, depth - 1)] for k, v in items]

    def _leave(self, thing: Any) -> list[Any]:
        told = f"{self._name} ({type(thing).__name__})"
        if told not in self.left:
            self.left.append(told)
        return _AS_IT_IS

    def _tensor(self, tensor: torch.Tensor) -> list[Any]:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return self._leave(tensor)
        self._has_any = self._has_values = True
        on_host = self._on_gpu and tensor.device.type == "cpu"
        return ["tensor", tensor.detach().cpu().clone(), on_host]

    def _array(self, array: np.ndarray) -> list[Any]:
        if array.dtype.kind not in "biufc":
            return self._leave(array)
        self._has_any = self._has_values = True
        return ["array", array.copy()]


class _Placing:
    """Puts descriptions into the attributes of another optimizer, in place.

    Others may hold the same lists and tensors.
    """

    def __init__(self, parameters: Sequence[torch.Tensor]) -> None:
        self._parameters = parameters
        self._device = parameters[0].device if parameters else torch.device("cpu")
        self.left: list[str] = []

    def put(self, target: Any, described: Sequence[Any], name: str) -> Any:
        """Give what is to stand in the place of the target: itself if it can be."""
        kind, *rest = described
        if kind == "as it is":
            return target
        if kind == "parameter":
            return self._parameters[rest[0]]
        if kind == "id":
            return id(self._parameters[rest[0]])
        if kind == "plain":
            return rest[0]
        if kind == "tensor":
            return self._tensor(target, *rest)
        if kind == "array":
            return _array(target, rest[0])
        if kind == "dict":
            return self._dict(target, rest[0], name)
        if kind == "object":
            return self._object(target, rest[0], rest[1], name)
        return self._sequence(target, kind, rest[0], name)

    @torch.no_grad()
    def _tensor(self, target: Any, value: torch.Tensor, on_host: bool) -> torch.Tensor:
        if (
            isinstance(target, torch.Tensor)
            and target.shape == value.shape
            and target.dtype == value.dtype
            and target.layout is torch.strided
        ):
            return target.copy_(value)
        device = self._device
        if isinstance(target, torch.Tensor):
            device = target.device
        elif on_host:
            device = torch.device("cpu")
        return value.to(device, copy=True)

    def _sequence(
        self, target: Any, kind: str, described: Sequence[Any], name: str
    ) -> Any:
        same = type(target).__name__ == kind
        at = list(target) if same and kind not in ("set", "frozenset") else []
        at += [None] * (len(described) - len(at))
        items = [
            self.put(inner, each, name)
            for inner, each in zip(at, described, strict=False)
        ]
        if kind == "list" and same:
            target[:] = items
        elif kind in ("set", "deque") and same:
            target.clear()
            (target.update if kind == "set" else target.extend)(items)
        else:
            return _SEQUENCES[kind](items)
        return target

    def _dict(self, target: Any, described: Sequence[Any], name: str) -> Any:
        result = target if isinstance(target, dict) else {}
        before = dict(result)
        result.clear()
        for key, each in described:
            if key == _AS_IT_IS:
                continue
            own = self.put(None, key, name)
            result[own] = self.put(before.get(own), each, name)
        return result

    def _object(
        self, target: Any, kind: str, described: Sequence[Any], name: str
    ) -> Any:
        if type(target).__name__ != kind:
            self.left.append(f"{name} ({kind})")
            return target
        for key, each in described:
            inner = getattr(target, key[1], None)
            value = self.put(inner, each, name)
            if value is not inner:
                object.__setattr__(target, key[1], value)
        return target


def _array(target: Any, value: np.ndarray) -> np.ndarray:
    if (
        isinstance(target, np.ndarray)
        and target.shape == value.shape
        and target.dtype == value.dtype
        and target.flags.writeable
    ):
        target[...] = value
        return target
    return value.copy()
