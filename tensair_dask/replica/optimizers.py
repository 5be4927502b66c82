"""Stepping the optimizers: with local gradients, and with those of other replicas."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch.optim.optimizer import (
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

from tensair_dask._wording import in_words
from tensair_dask.errors import ReplicaFailedError, StepError
from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.replica.before_step import BeforeStep
from tensair_dask.replica.optimizer_memory import OptimizerMemory

__all__ = ["Stepper", "why_not_linear"]

_HOST = torch.device("cpu")

_version = operator.attrgetter("_version")


class Stepper:
    """Applies gradients and updates to the parameters of an arena.

    Plain SGD (no momentum, no weight decay) is written over the arena: the optimizer
    objects of torch cost 60 µs a step at 85k parameters, a tenth of the whole step,
    most of it book-keeping. The arithmetic is the same; any other optimizer, or one
    with hooks, is called as it is.

    A step is made as a whole or not at all. Nothing of plain SGD can raise between two
    writes. Where code of others takes part (hooks, an optimizer that is not torch's),
    what is about to be written is copied before each step, and put back where it
    raises: a copy costs a tenth of the step of Adam. One of torch's own raises for
    lack of memory, or for gradients that it does not take, and so in its first step:
    only that one is copied.

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
        self._watched = not all(map(_is_torchs_own, optimizers))
        # On the host, since a model may fill its device; where it is taken at each
        # step that would be slow.
        host = None if self._watched else _HOST
        self._before: BeforeStep | None = BeforeStep(optimizers, arena, host)
        self._states: list[torch.Tensor] = []

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
            # Tables first: what needs no memory cannot raise after a write.
            if rows:
                with self._undivided(self._arena.tables):
                    for table, gradient in zip(self._arena.tables, rows, strict=True):
                        if gradient is not None:
                            table.add_(gradient, alpha=-self._rate)
            if present:
                torch._foreach_add_(self._values, present, alpha=-self._rate)

    def writes(self) -> int:
        """Count how often the parameters were written to, by whomever."""
        return sum(map(_version, self._arena.parameters))

    def apply(self, share: str, gradients: Gradients) -> None:
        """Apply the sum of other replicas' gradients or updates."""
        arena = self._arena
        if share == "update" or self._plain:
            factor = 1.0 if share == "update" else -self._rate
            with torch.no_grad():
                with self._undivided(arena.tables):
                    for number, part in gradients.rows.items():
                        arena.tables[number].index_add_(
                            0, part.ids, part.values, alpha=factor
                        )
                for mine, theirs in zip(arena.buffers, gradients.buffers, strict=True):
                    mine.add_(theirs, alpha=factor)
            return
        views = arena.layout.views(gradients.buffers)
        for position, (parameter, view) in enumerate(
            zip(arena.dense, views, strict=True)
        ):
            # What shares the memory of another has that one's gradient.
            if position in arena.layout.repeated:
                continue
            if gradients.touched is None or position in gradients.touched:
                # The memory is that of the message: an optimizer may change, or keep,
                # what it gets.
                parameter.grad = view.clone()
        for number, part in gradients.rows.items():
            table = arena.tables[number]
            rows = part.gradient(table)
            table.grad = rows.clone()
        try:
            self._step_optimizers()
        finally:
            for parameter in arena.parameters:
                parameter.grad = None

    @property
    def is_plain(self) -> bool:
        """Whether each step is one of plain SGD, made without the optimizer."""
        return self._plain

    @property
    def _rate(self) -> float:
        # Read at each step: a scheduler may change it.
        return self._optimizers[0].param_groups[0]["lr"]

    def _step_optimizers(self) -> None:
        before = self._before
        if before is None:
            with self._undivided([*self._arena.parameters, *self._states]):
                for optimizer in self._optimizers:
                    optimizer.step()
            return
        before.take()
        try:
            for optimizer in self._optimizers:
                optimizer.step()
        except BaseException as error:
            before.restore()
            raise self._refusal(error) from error
        if not self._watched:
            self._before = None
            self._states = _states(self._optimizers)

    @contextmanager
    def _undivided(self, tensors: Sequence[torch.Tensor]) -> Iterator[None]:
        """Around writes of which no copy was taken.

        Raises
        ------
        StepError
            If something raises before the first of them.
        ReplicaFailedError
            If it raises later: nobody knows what the model was before.
        """
        versions = [each._version for each in tensors]
        try:
            yield
        except BaseException as error:
            is_new = self._states and len(self._states) < len(_states(self._optimizers))
            if not is_new and versions == [each._version for each in tensors]:
                raise self._refusal(error) from error
            raise ReplicaFailedError(
                f"{self._raised(error)} half way through a step, of which no copy was "
                "taken: the replica ends, since its model is neither what it was nor "
                "what it should be. If memory is short, use a smaller model or device."
            ) from error

    def _refusal(self, error: BaseException) -> StepError:
        return StepError(
            f"{self._raised(error)}. Parameters and optimizer state are as they were "
            "before the step."
        )

    def _raised(self, error: BaseException) -> str:
        kinds = ", ".join(type(each).__name__ for each in self._optimizers)
        return f"The optimizer ({kinds}) raised {in_words(error)}"

    def try_step(self) -> None:
        """Step with the gradients that lie at the parameters, and undo all of it.

        Hooks are left out: they may count steps, or write what they see somewhere.

        Raises
        ------
        Exception
            What an optimizer raises.
        """
        before = BeforeStep(self._optimizers, self._arena, _HOST, whole=True)
        before.take()
        memories = [OptimizerMemory(each) for each in self._optimizers]
        taken = [each.take() for each in memories]
        try:
            for optimizer in self._optimizers:
                with _without_traces(optimizer):
                    optimizer.step()
        finally:
            before.restore()
            for memory, was in zip(memories, taken, strict=True):
                memory.put(was)


@contextmanager
def _without_traces(optimizer: torch.optim.Optimizer) -> Iterator[None]:
    """Let neither hooks nor counters of an optimizer know of a step."""
    attributes = dict(vars(optimizer))
    optimizer._optimizer_step_pre_hooks = OrderedDict()
    optimizer._optimizer_step_post_hooks = OrderedDict()
    try:
        yield
    finally:
        vars(optimizer).clear()
        vars(optimizer).update(attributes)


def _states(optimizers: Sequence[torch.optim.Optimizer]) -> list[torch.Tensor]:
    return [
        value
        for optimizer in optimizers
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]


def _is_torchs_own(optimizer: torch.optim.Optimizer) -> bool:
    """Whether no code of others takes part in a step."""
    step = vars(optimizer).get("step")
    return (
        type(optimizer).__module__.partition(".")[0] == "torch"
        and not _has_hooks(optimizer)
        # A learning rate schedule only counts the steps.
        and (step is None or hasattr(step, "_wrapped_by_lr_sched"))
    )


def _has_hooks(optimizer: torch.optim.Optimizer) -> bool:
    return bool(
        optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
    )


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
    if _has_hooks(optimizer):
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
