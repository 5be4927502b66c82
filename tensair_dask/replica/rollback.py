"""Rollback: a model and its optimizers as they were before a function changed them."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import torch

from tensair_dask.replica.model_state import copied

__all__ = ["Rollback"]

_CONTAINERS = (dict, OrderedDict, list, set)


class Rollback:
    """Remembers values and structure, so that both can be put back.

    Parameters
    ----------
    model, optimizers
        What a function is about to change in place.
    """

    def __init__(
        self, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        self._model = model
        self._optimizers = optimizers
        self._modules = [
            (module, dict(module.__dict__), _contents(module.__dict__))
            for module in model.modules()
            if not isinstance(module, torch.jit.ScriptModule)
        ]
        self._training = [(module, module.training) for module in model.modules()]
        self._parameters = [
            (parameter, parameter.data, parameter.requires_grad)
            for parameter in model.parameters()
        ]
        self._tensors = [
            (each, each.detach().clone())
            for each in (*model.parameters(), *model.buffers())
        ]
        self._names = _names(model)
        self._own_way = _given_in_their_own_way(model)
        self._groups = [
            [dict(group, params=list(group["params"])) for group in each.param_groups]
            for each in optimizers
        ]
        self._states = [copy.deepcopy(each.state_dict()) for each in optimizers]

    def is_needed(self) -> bool:
        """Whether anything is, or may be, other than it was."""
        return bool(self._own_way) or not (
            self._names == _names(self._model)
            and all(each.requires_grad == was for each, _, was in self._parameters)
            and all(_same(tensor, value) for tensor, value in self._tensors)
            and all(
                _same(each.state_dict(), state)
                for each, state in zip(self._optimizers, self._states, strict=True)
            )
        )

    def restore(self) -> None:
        """Put everything back."""
        for module, attributes, contents in self._modules:
            module.__dict__.clear()
            module.__dict__.update(attributes)
            for name, content in contents.items():
                _refill(attributes[name], content)
        for module, training in self._training:
            module.training = training
        for parameter, data, trained in self._parameters:
            parameter.data = data
            parameter.requires_grad_(trained)
            parameter.grad = None
        with torch.no_grad():
            for tensor, value in self._tensors:
                tensor.copy_(value)
        if self._own_way:
            self._model.load_state_dict(self._own_way)
        for optimizer, groups, state in zip(
            self._optimizers, self._groups, self._states, strict=True
        ):
            optimizer.param_groups[:] = groups
            optimizer.load_state_dict(state)


def _names(model: torch.nn.Module) -> list[str]:
    named = (*model.named_parameters(), *model.named_buffers())
    return [name for name, _ in named]


def _same(one: Any, other: Any) -> bool:
    """Whether two states hold the same; what cannot be compared is another."""
    if isinstance(one, torch.Tensor) or isinstance(other, torch.Tensor):
        return (
            isinstance(one, torch.Tensor)
            and isinstance(other, torch.Tensor)
            and torch.equal(one, other)
        )
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(
            _same(value, other[key]) for key, value in one.items()
        )
    if isinstance(one, (list, tuple)) and type(one) is type(other):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one is other or one == other)


def _given_in_their_own_way(model: torch.nn.Module) -> dict[str, Any]:
    """Copy a state that holds more than parameters and buffers; empty if not."""
    state = model.state_dict()
    usual = {
        name
        for named in (model.named_parameters, model.named_buffers)
        for name, _ in named(remove_duplicate=False)
    }
    if usual.issuperset(state):
        return {}
    return dict(copied(state))


def _contents(attributes: dict[str, Any]) -> dict[str, Any]:
    """Copy what a module keeps in containers of its own: its layers, for one."""
    return {
        name: copy.copy(value)
        for name, value in attributes.items()
        if type(value) in _CONTAINERS
    }


def _refill(container: Any, content: Any) -> None:
    """Put a content back into a container that others may hold, too."""
    container.clear()
    if isinstance(container, list):
        container.extend(content)
    else:
        container.update(content)
