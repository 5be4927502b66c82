"""Stepping an optimizer: with local gradients, and with those of other replicas."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tensair_dask.exchange.arena import Arena

__all__ = ["Stepper"]


class Stepper:
    """Applies gradients and updates to the parameters of an arena.

    Plain SGD (no momentum, no weight decay) is written over the arena: the optimizer
    objects of torch cost 60 µs a step at 85k parameters, a tenth of the whole step,
    most of it book-keeping. The arithmetic is the same; any other optimizer, or one
    with hooks, is called as it is.

    Parameters
    ----------
    optimizer
        Holds the parameters of the arena.
    arena
        Of the model.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, arena: Arena) -> None:
        self._optimizer = optimizer
        self._arena = arena
        self._plain = _is_plain_sgd(optimizer, arena)
        self._values: list[torch.Tensor] = list(arena.parameters)
        self._before: list[torch.Tensor] | None = None

    def step_locally(self, share: str) -> list[Any]:
        """Step with the gradients that lie at the parameters.

        Returns
        -------
        changes
            One for each parameter: its gradient or, with ``share="update"``, the
            change of its value; None where it has no gradient.
        """
        parameters = self._arena.parameters
        gradients = [parameter.grad for parameter in parameters]
        if share == "update":
            return self._step_for_updates(gradients)
        self._step(gradients)
        return gradients

    def _step(self, gradients: Sequence[torch.Tensor | None]) -> None:
        dense = [
            gradient
            for gradient in gradients
            if gradient is not None and gradient.layout == torch.strided
        ]
        if self._plain and len(dense) == len(gradients):
            with torch.no_grad():
                torch._foreach_add_(self._values, dense, alpha=-self._rate)
        else:
            self._optimizer.step()

    def _step_for_updates(self, gradients: Sequence[Any]) -> list[Any]:
        arena = self._arena
        if self._before is None:
            self._before = arena.layout.zeros(arena.device)
        with torch.no_grad():
            for before, now in zip(self._before, arena.buffers, strict=True):
                before.copy_(now)
            self._step(gradients)
            # The difference of two floats so near to each other is exact: what the
            # peers add is what was added here.
            for before, now in zip(self._before, arena.buffers, strict=True):
                torch.sub(now, before, out=before)
        views = arena.layout.views(self._before)
        return [
            None if gradient is None else view
            for gradient, view in zip(gradients, views, strict=True)
        ]

    def apply(
        self,
        share: str,
        buffers: Sequence[torch.Tensor],
        touched: frozenset[int] | None,
    ) -> None:
        """Apply the sum of other replicas' gradients or updates."""
        arena = self._arena
        if share == "update" or self._plain:
            factor = 1.0 if share == "update" else -self._rate
            with torch.no_grad():
                for mine, theirs in zip(arena.buffers, buffers, strict=True):
                    mine.add_(theirs, alpha=factor)
            return
        views = arena.layout.views(buffers)
        for position, (parameter, view) in enumerate(
            zip(arena.parameters, views, strict=True)
        ):
            if touched is None or position in touched:
                parameter.grad = view
        try:
            self._optimizer.step()
        finally:
            for parameter in arena.parameters:
                parameter.grad = None

    @property
    def _rate(self) -> float:
        # Read at each step: a scheduler may change it.
        return self._optimizer.param_groups[0]["lr"]


def _is_plain_sgd(optimizer: torch.optim.Optimizer, arena: Arena) -> bool:
    """Whether a step is no more than ``parameter -= lr * gradient``, for all."""
    if type(optimizer) is not torch.optim.SGD or len(optimizer.param_groups) != 1:
        return False
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return False
    group = optimizer.param_groups[0]
    held = {id(parameter) for parameter in group["params"]}
    return (
        isinstance(group["lr"], (int, float))
        and not any(group[name] for name in ("momentum", "weight_decay", "nesterov"))
        and not group["maximize"]
        and not group["differentiable"]
        and held == {id(parameter) for parameter in arena.parameters}
    )
