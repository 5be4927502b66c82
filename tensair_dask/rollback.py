"""Rollback: a model and its optimizers as they were before a function changed them."""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch

__all__ = ["Rollback"]


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
            (module, dict(module._modules), dict(module._parameters), module.training)
            for module in model.modules()
        ]
        self._parameters = [
            (parameter, parameter.data, parameter.requires_grad)
            for parameter in model.parameters()
        ]
        self._values = {
            name: value.clone() if isinstance(value, torch.Tensor) else value
            for name, value in model.state_dict().items()
        }
        self._groups = [
            [dict(group, params=list(group["params"])) for group in each.param_groups]
            for each in optimizers
        ]
        self._states = [copy.deepcopy(each.state_dict()) for each in optimizers]

    def keeps_structure(self) -> bool:
        """Whether all parameters are the same objects at the same places still."""
        now = list(self._model.parameters())
        return len(now) == len(self._parameters) and all(
            parameter is was
            and parameter.data_ptr() == data.data_ptr()
            and parameter.shape == data.shape
            and parameter.requires_grad == trained
            for parameter, (was, data, trained) in zip(
                now, self._parameters, strict=True
            )
        )

    def restore(self) -> None:
        """Put everything back."""
        for module, modules, parameters, training in self._modules:
            module._modules = modules
            module._parameters = parameters
            module.training = training
        for parameter, data, trained in self._parameters:
            parameter.data = data
            parameter.requires_grad_(trained)
            parameter.grad = None
        self._model.load_state_dict(self._values)
        for optimizer, groups, state in zip(
            self._optimizers, self._groups, self._states, strict=True
        ):
            optimizer.param_groups[:] = groups
            optimizer.load_state_dict(state)
