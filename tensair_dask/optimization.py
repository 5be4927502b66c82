"""Stepping the optimizers: with local gradients, and with those of other replicas."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.gradients import Gradients

__all__ = ["Stepper", "why_not_linear"]


class Stepper:
    """Applies gradients and updates to the parameters of an arena.

    Plain SGD (no momentum, no weight decay) is written over the arena: the optimizer
    objects of torch cost 60 µs a step at 85k parameters, a tenth of the whole step,
    most of it book-keeping. The arithmetic is the same; any other optimizer, or one
    with hooks, is called as it is.

    Parameters
    ----------
    optimizers
        Together they hold the parameters of the arena; most often it is one.
    arena
        Of the model.
    """

    def __init__(
        self, optimizers: Sequence[torch.optim.Optimizer], arena: Arena
    ) -> None:
        self._optimizers = optimizers
        self._arena = arena
        self._plain = len(optimizers) == 1 and _is_plain_sgd(optimizers[0], arena)
        self._changes_gradients = any(map(_changes_gradients, optimizers))
        self._values: list[torch.Tensor] = list(arena.dense)

    def step_locally(self) -> Changes:
        """Step with the gradients that lie at the parameters, and return those."""
        arena = self._arena
        dense = [parameter.grad for parameter in arena.dense]
        rows = [table.grad for table in arena.tables]
        shared = Changes(dense, rows)
        if self._changes_gradients:
            shared = Changes(_copies(dense), _copies(rows))
        self._step(dense, rows)
        return shared

    def _step(
        self,
        dense: Sequence[torch.Tensor | None],
        rows: Sequence[torch.Tensor | None],
    ) -> None:
        present = [gradient for gradient in dense if gradient is not None]
        if not self._plain or len(present) < len(dense):
            self._step_optimizers()
            return
        with torch.no_grad():
            if present:
                torch._foreach_add_(self._values, present, alpha=-self._rate)
            for table, gradient in zip(self._arena.tables, rows, strict=True):
                if gradient is not None:
                    table.add_(gradient, alpha=-self._rate)

    def writes(self) -> int:
        """Count how often the parameters were written to, by whomever."""
        return sum(parameter._version for parameter in self._arena.parameters)

    def apply(self, share: str, gradients: Gradients) -> None:
        """Apply the sum of other replicas' gradients or updates."""
        arena = self._arena
        if share == "update" or self._plain:
            factor = 1.0 if share == "update" else -self._rate
            with torch.no_grad():
                for mine, theirs in zip(arena.buffers, gradients.buffers, strict=True):
                    mine.add_(theirs, alpha=factor)
                for number, part in gradients.rows.items():
                    arena.tables[number].index_add_(
                        0, part.ids, part.values, alpha=factor
                    )
            return
        views = arena.layout.views(gradients.buffers)
        for position, (parameter, view) in enumerate(
            zip(arena.dense, views, strict=True)
        ):
            if gradients.touched is None or position in gradients.touched:
                # The message may be on its way to others too.
                parameter.grad = view.clone() if self._changes_gradients else view
        for number, part in gradients.rows.items():
            table = arena.tables[number]
            rows = part.gradient(table)
            table.grad = rows.clone() if self._changes_gradients else rows
        try:
            self._step_optimizers()
        finally:
            for parameter in arena.parameters:
                parameter.grad = None

    @property
    def _rate(self) -> float:
        # Read at each step: a scheduler may change it.
        return self._optimizers[0].param_groups[0]["lr"]

    def _step_optimizers(self) -> None:
        for optimizer in self._optimizers:
            optimizer.step()


def _changes_gradients(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a step may write into the gradients that it is given."""
    return bool(optimizer._optimizer_step_pre_hooks) or any(
        group.get("nesterov") for group in optimizer.param_groups
    )


def _copies(gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    return [None if each is None else each.clone() for each in gradients]


def why_not_linear(optimizer: torch.optim.Optimizer) -> str | None:
    """Say why a step is more than ``parameter -= lr * gradient``; None if it is not.

    Steps that are no more than that commute, and their sum is the step with the sum of
    their gradients: replicas that exchange gradients agree.
    """
    kind = type(optimizer)
    if kind is not torch.optim.SGD:
        return f"{kind.__name__} is not linear in the gradient"
    if optimizer._optimizer_step_pre_hooks or optimizer._optimizer_step_post_hooks:
        return "SGD has step hooks"
    step = vars(optimizer).get("step")
    # A scheduler of torch puts its own around it, which only counts.
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return "the step of SGD was replaced"
    used = [
        name
        for name in ("momentum", "weight_decay", "nesterov")
        if any(group[name] for group in optimizer.param_groups)
    ]
    return f"SGD has {' and '.join(used)}" if used else None


def _is_plain_sgd(optimizer: torch.optim.Optimizer, arena: Arena) -> bool:
    """Whether one factor times the gradient is the whole step, for all parameters."""
    if why_not_linear(optimizer) is not None or len(optimizer.param_groups) != 1:
        return False
    group = optimizer.param_groups[0]
    held = {id(parameter) for parameter in group["params"]}
    return (
        isinstance(group["lr"], (int, float))
        and not group["maximize"]
        and not group["differentiable"]
        and held == {id(parameter) for parameter in arena.parameters}
    )
