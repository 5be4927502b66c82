"""Say why a mini-batch was refused, so that its sender can mend it."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from tensair_dask._wording import in_words
from tensair_dask.batches.batch import describe_kind
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    ForwardError,
    LossError,
    ShapeError,
)
from tensair_dask.replica import advice
from tensair_dask.replica.scoring import shapes

__all__ = ["explain", "of_backward", "of_loss"]


def of_loss(error: BaseException, prediction: Any, y: Any) -> BatchError:
    """Make the error for the user of what the loss has raised."""
    text = in_words(error)
    told = (
        f"The loss raised {text.rstrip('.')} (prediction: {shapes(prediction)}; "
        f"target: {shapes(y)})."
    )
    kind, what_to_do = advice.on_loss(text, prediction, y)
    return kind(f"{told} {what_to_do}".rstrip())


def of_backward(error: BaseException, prediction: Any, y: Any) -> BatchError:
    """Make the error for the user of what the backward pass has raised."""
    text = in_words(error)
    told = f"The loss cannot be differentiated: {text.rstrip('.')}."
    kind, what_to_do = advice.on_backward(text, prediction, y)
    return kind(f"{told} {what_to_do}".rstrip())


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
    given = f"Given: {describe_kind(kind, samples)}."
    text = str(error).rstrip()
    text += "" if text.endswith(".") else "."
    if not isinstance(error, (ForwardError, LossError, ShapeError, DtypeError)):
        return type(error)(f"{text} {given}")
    if learned is not None:
        given += f" Learned before: {describe_kind(learned)}."
    found: type[BatchError] = type(error)
    what_to_do = ""
    if isinstance(error, ForwardError):
        raised = text.removeprefix("The model raised ")
        found, what_to_do = advice.on_forward(raised, kind, model)
    if found in (ForwardError, LossError) and learned is not None:
        # Torch does not say so, but there is something that this one has for itself.
        if _differs_in_dtype(kind, learned):
            found, what_to_do = DtypeError, "Cast it to the dtypes that were learned."
        elif _differs_in_shape(kind, learned):
            found, what_to_do = ShapeError, "Give it the shape that was learned."
    if what_to_do in text:
        what_to_do = ""
    return found(f"{text} {given} {what_to_do}".rstrip())


def _differs_in_dtype(kind: tuple[Any, ...], learned: tuple[Any, ...]) -> bool:
    return len(learned[3]) == len(kind[3]) and any(
        np.dtype(mine) != np.dtype(theirs)
        for (mine, _), (theirs, _) in zip(kind[3], learned[3], strict=True)
    )


def _differs_in_shape(kind: tuple[Any, ...], learned: tuple[Any, ...]) -> bool:
    return kind[:2] != learned[:2] or any(
        mine != theirs
        for (_, mine), (_, theirs) in zip(kind[3], learned[3], strict=True)
    )
