"""Criterion: the loss with all that it holds, such as class weights or a frozen model.

What a loss holds goes to the device of the model, and into its modes of training and
evaluation. Only the model is trained, exchanged and saved: parameters of the loss that
ask for gradients are refused.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

import torch

from tensair_dask._common.contents import Contents
from tensair_dask._common.notices import Notices
from tensair_dask.errors import ConfigurationError
from tensair_dask.replica.attributes import Habits
from tensair_dask.replica.broadcasts import Broadcasts
from tensair_dask.replica.reachable import DEPTH, is_full, leaves, parts
from tensair_dask.replica.scalers import ADVICE, scales

__all__ = ["Criterion"]


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
        found = list(_held(loss, "", DEPTH, set()))
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
        found = leaves(self._loss, "", DEPTH, set())
        return Contents(pair for pair in found if pair[0] not in self._told)

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
    for inner, part in parts(value):
        yield from _held(part, f"{name}.{inner}".lstrip("."), depth - 1, seen)


def _move_tensors(loss: Any, device: torch.device) -> None:
    """Bring tensors that were given to a partial, or a closure, to the device."""
    if isinstance(loss, functools.partial):
        for name, value in loss.keywords.items():
            if isinstance(value, torch.Tensor):
                loss.keywords[name] = value.to(device)
        _move_tensors(loss.func, device)
    elif inspect.isfunction(loss):
        for cell in loss.__closure__ or ():
            if is_full(cell) and isinstance(cell.cell_contents, torch.Tensor):
                cell.cell_contents = cell.cell_contents.to(device)
