"""Hidden state: what is attached to an optimizer, and neither saved nor copied."""

from __future__ import annotations

import dis
import functools
import types
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch

from tensair_dask.errors import OptimizerError
from tensair_dask.replica.scalers import ADVICE, scales

__all__ = ["StepHooks", "hidden_state"]

# Things that a hook may refer to and that are no state of its own: they are saved
# with the model or the optimizer, or never change.
_NOT_OWN = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    type,
    types.ModuleType,
    types.BuiltinFunctionType,
    torch.nn.Parameter,
    torch.nn.Module,
    torch.optim.Optimizer,
    torch.dtype,
    torch.device,
)


def hidden_state(optimizers: Sequence[torch.optim.Optimizer]) -> str | None:
    """Name what keeps a state that is neither saved nor copied; None if nothing does.

    Parameters
    ----------
    optimizers
        Those with hooks of their own for ``state_dict`` are taken to save it.

    Raises
    ------
    OptimizerError
        If a hook unscales gradients, which nobody scales here.
    """
    found = []
    for optimizer in optimizers:
        for hook in (
            *optimizer._optimizer_step_pre_hooks.values(),
            *optimizer._optimizer_step_post_hooks.values(),
        ):
            own = list(_own_state(hook))
            if any(map(scales, own)):
                raise OptimizerError(f"The hook {_name(hook)} cannot be used: {ADVICE}")
            kinds = sorted({type(each).__name__ for each in own})
            if kinds and not optimizer._optimizer_state_dict_post_hooks:
                found.append(f"{_name(hook)} (with {', '.join(kinds)})")
    return ", ".join(found) or None


class StepHooks:
    """The step hooks of optimizers, which a function is about to be given."""

    def __init__(self, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        self._were: list[tuple[Any, dict[int, Any]]] = [
            (hooks, dict(hooks))
            for each in optimizers
            for hooks in (
                each._optimizer_step_pre_hooks,
                each._optimizer_step_post_hooks,
            )
        ]

    def check(self) -> None:
        """See that they are the same; else put them back, and raise.

        Raises
        ------
        OptimizerError
            If one was attached, or removed.
        """
        if all(now == were for now, were in self._were):
            return
        for now, were in self._were:
            now.clear()
            now.update(were)
        raise OptimizerError(
            "The function has attached hooks to an optimizer, or removed some. The "
            "other replicas take over values, no hooks: only one would have them. "
            "Attach them where the optimizer is built, in optimizer=."
        )


def _own_state(hook: Any) -> Iterator[Any]:
    """Give the objects that a hook can change and nobody else knows."""
    seen: set[int] = set()
    waiting = [hook]
    while waiting:
        each = waiting.pop()
        if id(each) in seen or isinstance(each, _NOT_OWN):
            continue
        seen.add(id(each))
        inner = _parts(each)
        if inner is None:
            yield each
        else:
            waiting.extend(inner)


def _parts(thing: Any) -> Iterable[Any] | None:
    """What a thing refers to that keeps no state itself; None of any other thing."""
    if isinstance(thing, functools.partial):
        return [thing.func, *thing.args, *thing.keywords.values()]
    if isinstance(thing, types.MethodType):
        return [thing.__self__, thing.__func__]
    if isinstance(thing, types.FunctionType):
        if _rebinds(thing):
            return None
        return [
            *(_content(cell) for cell in thing.__closure__ or ()),
            *(thing.__defaults__ or ()),
            *(thing.__kwdefaults__ or {}).values(),
        ]
    if isinstance(thing, (tuple, frozenset)):
        return thing
    if isinstance(thing, list) and thing:  # of parameters, most often
        held = (torch.nn.Parameter, torch.nn.Module)
        return [] if all(isinstance(each, held) for each in thing) else None
    return None


def _rebinds(function: types.FunctionType) -> bool:
    """Whether it counts, say, in a variable of what surrounds it."""
    return any(
        each.opname in ("STORE_DEREF", "STORE_GLOBAL")
        and each.argval in (*function.__code__.co_freevars, *function.__code__.co_names)
        for each in dis.get_instructions(function)
    )


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not bound yet
        return None


def _name(hook: Any) -> str:
    return getattr(hook, "__qualname__", None) or type(hook).__name__
