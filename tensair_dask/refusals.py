"""Say why a mini-batch was refused, so that its sender can mend it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tensair_dask.batches import describe_kind
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    ForwardError,
    LossError,
    ShapeError,
)

__all__ = ["explain"]

# How torch words a mismatch, where there is no learned mini-batch to compare with.
_DTYPE_WORDS = ("dtype", "scalar type", "output type")
_SHAPE_WORDS = ("shape", "size", "dimension", "expected input", "channels")


def explain(
    error: BatchError,
    kind: tuple[Any, ...],
    samples: int,
    learned: tuple[Any, ...] | None,
    model: torch.nn.Module,
) -> BatchError:
    """Turn what the model or the loss raised into the error for the user.

    Parameters
    ----------
    error
        As raised by the learner.
    kind, samples
        Of the refused mini-batch.
    learned
        Kind of a mini-batch that was learned before; None if there was none.
    model
        Its parameters' dtype is what float inputs should have.

    Returns
    -------
    error
        A `ShapeError` or `DtypeError` where the mini-batch differs from what was
        learned before, or torch complains of it; else of the given type. Its message
        says what was given, what is allowed and what to do.
    """
    if not isinstance(error, (ForwardError, LossError)):
        return type(error)(f"{error} Given: {describe_kind(kind, samples)}.")
    given = f"Given: {describe_kind(kind, samples)}."
    allowed = ""
    if learned is not None:
        allowed = f" Learned before: {describe_kind(learned)}."
    cause = str(error)
    expected = next(p.dtype for p in model.parameters() if p.requires_grad)
    name = str(expected).removeprefix("torch.")
    if _differs_in_dtype(cause, kind, learned):
        cast = f"x.astype({name!r})"
        if expected == torch.bfloat16:  # numpy has none
            cast = "torch.as_tensor(x).bfloat16()"
        advice = f" The parameters are {name}: cast with {cast}."
        if isinstance(error, LossError):
            advice = " Cast y to what the loss takes: class numbers as int64."
        return DtypeError(f"{cause.rstrip('.')}. {given}{allowed}{advice}")
    if _differs_in_shape(cause, kind, learned):
        advice = " Make every mini-batch of the shape that the model takes."
        return ShapeError(f"{cause.rstrip('.')}. {given}{allowed}{advice}")
    return type(error)(f"{cause.rstrip('.')}. {given}{allowed}")


def _differs_in_dtype(
    cause: str, kind: tuple[Any, ...], learned: tuple[Any, ...] | None
) -> bool:
    if learned is not None and len(learned[3]) == len(kind[3]):
        return any(
            np.dtype(mine) != np.dtype(theirs)
            for (mine, _), (theirs, _) in zip(kind[3], learned[3], strict=True)
        )
    return any(word in cause for word in _DTYPE_WORDS)


def _differs_in_shape(
    cause: str, kind: tuple[Any, ...], learned: tuple[Any, ...] | None
) -> bool:
    if learned is not None:
        if kind[:2] != learned[:2]:
            return True
        return any(
            mine != theirs
            for (_, mine), (_, theirs) in zip(kind[3], learned[3], strict=True)
        )
    return any(word in cause for word in _SHAPE_WORDS)
