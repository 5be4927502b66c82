"""Criterion: the loss with all that it holds, such as class weights or a frozen model.

What a loss holds goes to the device of the model, and into its modes of training and
evaluation. Only the model is trained, exchanged and saved: parameters of the loss that
ask for gradients are refused.
"""

from __future__ import annotations

import dis
import functools
import inspect
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from tensair_dask._common.contents import Contents
from tensair_dask._common.notices import Notices
from tensair_dask.errors import ConfigurationError
from tensair_dask.replica.attributes import Habits
from tensair_dask.replica.broadcasts import Broadcasts
from tensair_dask.replica.scalers import ADVICE, scales

__all__ = ["Criterion"]

# How deep it is looked for modules: partial, closure, helper function, list.
_DEPTH = 5

# Entries of a container that are looked at.
_ENTRIES = 100

_CONTAINERS = (Mapping, list, tuple, set)

# What these hold is not the user's.
_FOREIGN = ("torch", "numpy", "builtins", "functools", "tensair_dask")


class Criterion:
    """Calls the loss of a recipe.

    Parameters
    ----------
    loss
        A function of prediction and target, or a module.
    device
        That of the model.
    notices
        Where it is said what a loss does that it should not.

    Attributes
    ----------
    modules
        That the loss is, or refers to.

    Raises
    ------
    ConfigurationError
        If it has parameters of its own that ask for gradients, or a `GradScaler`.
    """

    def __init__(
        self, loss: Callable[[Any, Any], Any], device: torch.device, notices: Notices
    ) -> None:
        found = list(_held(loss, "", _DEPTH, set()))
        _refuse_scalers(found)
        found = [
            (name, each)
            for name, each in found
            if isinstance(each, (torch.nn.Module, torch.Tensor))
        ]
        _refuse_parameters(loss, found)
        self.modules = [each for _, each in found if isinstance(each, torch.nn.Module)]
        for module in self.modules:
            module.to(device)
        _move_tensors(loss, device)
        self._loss = loss
        self._call = Broadcasts(loss, notices)
        self._notices = notices
        self._habits = Habits(self._contents, self._say)
        # Looked at once, after the first mini-batch.
        self._buffers = [
            (f"{name}.{key}".lstrip("."), buffer, buffer._version)
            for name, module in found
            if isinstance(module, torch.nn.Module)
            for key, buffer in module.named_buffers()
        ]
        self._told: list[str] = []

    def __call__(self, prediction: Any, y: Any) -> Any:
        """What the loss returns."""
        return self._call(prediction, y)

    @property
    def knows(self) -> bool:
        """Whether it was seen what the loss changes."""
        return self._habits.knows

    def look(self) -> None:
        """See, by the first mini-batches, what is changed that nobody saves."""
        self._look_at_buffers()
        self._habits.look()

    def _look_at_buffers(self) -> None:
        changed = [name for name, each, was in self._buffers if each._version != was]
        self._buffers = []
        self._told += changed
        if changed:
            self._notices.say(
                "loss buffers",
                f"The loss changes its buffers {', '.join(changed[:5])} while it is "
                "computed. They are neither exchanged nor saved: each replica has "
                "its own, which begin anew after a restore. Make them buffers of the "
                "model, for checkpoints to hold them.",
            )

    def _contents(self) -> Contents:
        leaves = _leaves(self._loss, "", _DEPTH, set())
        return Contents(pair for pair in leaves if pair[0] not in self._told)

    def _say(self, names: str) -> None:
        self._notices.say(
            "loss habits",
            f"The loss changes {names} with each mini-batch. That is neither "
            "exchanged nor saved: each replica has its own, which counts the "
            "mini-batches that it learns itself, and those of evaluate and of what is "
            "only scored, too; it begins anew where a replica joins, and after a "
            "restore. If it matters, keep it in a buffer of the model, which changes "
            "it if self.training, and let forward return it with the prediction.",
        )


def _leaves(
    thing: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    """Find what a loss may change, with names: attributes, variables, globals."""
    if isinstance(thing, torch.nn.Module):
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
    parts = [] if isinstance(thing, _CONTAINERS) else _parts(thing)
    if not parts:
        yield name, thing
    for inner, part in parts:
        yield from _leaves(part, f"{name}.{inner}".lstrip("."), depth - 1, seen)


def _refuse_scalers(found: list[tuple[str, Any]]) -> None:
    for name, each in found:
        if scales(each):
            raise ConfigurationError(f"The loss refers to {name!r}: {ADVICE}")


def _refuse_parameters(loss: Any, found: list[tuple[str, Any]]) -> None:
    names = []
    for name, each in found:
        if isinstance(each, torch.nn.Module):
            names += [
                f"{name}.{key}".lstrip(".")
                for key, parameter in each.named_parameters()
                if parameter.requires_grad
            ]
        elif each.is_leaf and each.requires_grad:
            names.append(name)
    if not names:
        return
    kind = loss if hasattr(loss, "__qualname__") else type(loss)
    told = ", ".join(map(repr, names[:5]))
    more = "" if len(names) <= 5 else f" and {len(names) - 5} others"
    raise ConfigurationError(
        f"The loss ({getattr(kind, '__qualname__', kind)}) has parameters of its own "
        f"that ask for gradients, {told}{more}. Only those of the model are trained, "
        "exchanged and saved. Make them part of the model, whose forward can return "
        "what the loss needs of them, for example (scores, self.temperature); a "
        "penalty on the model's weights is weight_decay= of the optimizer. If they are "
        "to stay as they are, freeze them with requires_grad_(False)."
    )


def _held(
    value: Any, name: str, depth: int, seen: set[int]
) -> Iterator[tuple[str, Any]]:
    """Find modules and tensors that something refers to, with their names."""
    if depth < 0 or id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, (torch.nn.Module, torch.Tensor)) or scales(value):
        yield name, value
        return
    for inner, part in _parts(value):
        yield from _held(part, f"{name}.{inner}".lstrip("."), depth - 1, seen)


def _parts(value: Any) -> list[tuple[str, Any]]:
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
    found = [(name, cell.cell_contents) for name, cell in free if _is_full(cell)]
    defaults = [
        *(function.__defaults__ or ()),
        *(function.__kwdefaults__ or {}).values(),
    ]
    found += [("default", each) for each in defaults]
    names = set(_names(function.__code__))
    found += [
        (name, each) for name, each in function.__globals__.items() if name in names
    ]
    return found


def _names(code: types.CodeType) -> Iterator[str]:
    """Global names in a function, and in those within it."""
    for each in dis.get_instructions(code):
        if each.opname == "LOAD_GLOBAL":  # co_names has attributes as well
            yield each.argval
    for each in code.co_consts:
        if isinstance(each, types.CodeType):
            yield from _names(each)


def _is_full(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _move_tensors(loss: Any, device: torch.device) -> None:
    """Bring tensors that were given to a partial, or a closure, to the device."""
    if isinstance(loss, functools.partial):
        for name, value in loss.keywords.items():
            if isinstance(value, torch.Tensor):
                loss.keywords[name] = value.to(device)
        _move_tensors(loss.func, device)
    elif inspect.isfunction(loss):
        for cell in loss.__closure__ or ():
            if _is_full(cell) and isinstance(cell.cell_contents, torch.Tensor):
                cell.cell_contents = cell.cell_contents.to(device)
