"""Broadcasts: a loss that compares each prediction with the targets of all samples.

The mean of ``(prediction - y) ** 2`` of shapes (n, 1) and (n,) is that of n x n
differences. It falls, and what is learned is the mean of the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from tensair_dask._common.notices import Notices
from tensair_dask.batches.outputs import contents
from tensair_dask.replica.scoring import shapes

__all__ = ["Broadcasts"]

# Forms of mini-batches that are remembered: padded sequences have a new one each time.
MOST_FORMS = 1000

# Which take shapes that differ, and broadcast them.
_OF_TORCH = (
    torch.nn.functional.mse_loss,
    torch.nn.functional.l1_loss,
    torch.nn.functional.smooth_l1_loss,
    torch.nn.functional.huber_loss,
)


class Broadcasts:
    """Calls the loss, and looks at what it does with the first mini-batch of each form.

    Only where the shapes of prediction and target differ and would broadcast, and only
    at operations of both: a loss that takes ``prediction[:, 0]`` is right. Wrong are
    those whose result has a third shape; one of the two may be meant (quantiles), but
    not by torch's losses of numbers.

    Parameters
    ----------
    loss
        To call.
    notices
        Where it is said.
    """

    def __init__(self, loss: Callable[[Any, Any], Any], notices: Notices) -> None:
        self._loss = loss
        self._notices = notices
        self._known: set[Any] = set()
        self._newest: Any = None

    def __call__(self, prediction: Any, y: Any) -> Any:
        """What the loss returns."""
        if type(prediction) is type(y) is torch.Tensor:
            # Most often as before: that is told in a third of a microsecond.
            shapes = prediction.shape, y.shape
            if shapes == self._newest:
                return self._loss(prediction, y)
            self._newest = shapes
        return self._look(prediction, y)

    def _look(self, prediction: Any, y: Any) -> Any:
        form = _form(prediction), _form(y)
        if form in self._known or len(self._known) >= MOST_FORMS:
            return self._loss(prediction, y)
        predicted, targets = list(_tensors(prediction)), list(_tensors(y))
        if all(len(each) < 2 for each in targets if each.ndim):
            return self._loss(prediction, y)  # one row fits all shapes
        self._known.add(form)
        if not any(_together(one, other) for one in predicted for other in targets):
            return self._loss(prediction, y)
        with _Watch(targets) as watch:
            loss = self._loss(prediction, y)
        if watch.found is not None:
            one, other = watch.found
            self._notices.say(
                f"broadcast {one} {other}",
                f"The loss broadcasts {one} against the target {other}, so that each "
                "prediction is compared with the targets of other samples as well "
                f"(prediction: {shapes(prediction)}; target: {shapes(y)}). Make the "
                "shapes equal: prediction.squeeze(1) in the model or the loss, or "
                "y[:, None] in the stream.",
            )
        return loss


class _Watch(TorchFunctionMode):
    """Finds the first operation that broadcasts a target against something else."""

    def __init__(self, targets: list[torch.Tensor]) -> None:
        super().__init__()
        # What is computed from targets alone is a target: y.float(), y[:, None].
        self._targets = list(targets)
        self.found: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        given = [
            each
            for each in (*args, *(kwargs or {}).values())
            if isinstance(each, torch.Tensor)
        ]
        of_target = [self._is_target(each) for each in given]
        if given and all(of_target) and isinstance(result, torch.Tensor):
            self._targets.append(result)
        elif any(of_target) and self.found is None:
            self._look(func, given, of_target)
        return result

    def _look(
        self, func: Any, given: list[torch.Tensor], of_target: list[bool]
    ) -> None:
        for one, is_target in zip(given, of_target, strict=True):
            if is_target:
                continue
            for other, of in zip(given, of_target, strict=True):
                differ = func in _OF_TORCH and one.shape != other.shape
                if of and (differ or _widen(one, other)):
                    self.found = tuple(one.shape), tuple(other.shape)

    def _is_target(self, tensor: torch.Tensor) -> bool:
        return any(tensor is each for each in self._targets)


def _together(one: torch.Tensor, other: torch.Tensor) -> torch.Size | None:
    """What shape they broadcast to, if theirs differ; None if they do not."""
    if one.shape == other.shape:
        return None
    try:
        return torch.broadcast_shapes(one.shape, other.shape)
    except RuntimeError:
        return None


def _widen(one: torch.Tensor, other: torch.Tensor) -> bool:
    return _together(one, other) not in (None, one.shape, other.shape)


def _form(tree: Any) -> Any:
    """Shapes without the samples."""
    if isinstance(tree, torch.Tensor):
        return tree.shape[1:]
    items = contents(tree)
    if items is None:
        return type(tree)
    return tuple(_form(value) for _, value in items)


def _tensors(tree: Any) -> Iterator[torch.Tensor]:
    if isinstance(tree, torch.Tensor):
        yield tree
        return
    for _, value in contents(tree) or ():
        yield from _tensors(value)
