"""What a model answers while it trains, and one record as a mini-batch of its own."""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from tensair_dask.batches import outputs
from tensair_dask.batches.batch import Structure, stack
from tensair_dask.errors import ShapeError

__all__ = [
    "Prediction",
    "as_batch",
    "unknown_type",
    "why_no_inputs",
    "without_batch_axis",
]


@dataclass(frozen=True, slots=True)
class Prediction:
    """What a model predicted, and which state of it that was.

    Attributes
    ----------
    value
        What the model returned.
    version
        Gradients that the model held, its own and its peers', as
        ``ReplicaInfo.version``. Each replica counts for itself: of two answers of
        one replica, the one with the larger version is the newer.
    age
        Seconds since the parameters last changed, at the moment when the model was
        called: since the end of the replica's last step or since it last applied
        gradients of its peers, whichever was later. Before the first of either,
        since the replica was built. Measured on the replica, on the monotonic
        clock: the way to the client and back is not contained.
    replica
        Address of the worker that answered.
    """

    value: Any
    version: int
    age: float
    replica: str


def as_batch(record: Any) -> Any:
    """Make a mini-batch of one record.

    Parameters
    ----------
    record
        As a stream gives it to ``Stream.partition``: a number, an array or a tensor,
        a list of numbers, a row of a frame (also as a frame), or a tuple or dict of
        them.

    Returns
    -------
    x
        The same structure with arrays of shape (1, ...). Python floats become
        float32, arrays keep their dtype.

    Raises
    ------
    ShapeError
        If a list is ragged, or a frame has not one row.
    """
    try:
        return stack([record])
    except ShapeError as error:
        if error.__cause__ is None:  # it says itself what to give
            raise
        cause = str(error.__cause__).rstrip(".")
        raise ShapeError(
            f"The record cannot be made an array: {cause}. Give a number, an array, "
            "a list of numbers of one shape, or a tuple or dict of them."
        ) from error


def why_no_inputs(x: Any, learned: Set[Structure]) -> str:
    """Say why a tuple is perhaps a pair (x, y), and not several inputs of the model.

    Parameters
    ----------
    x
        For which a prediction is asked.
    learned
        Structures of x that the model has learned from.

    Returns
    -------
    why
        Empty where x is what the model has learned from, or where that cannot be seen.
    """
    if not isinstance(x, tuple) or not learned or len(x) in learned:
        return ""
    known = " or ".join(
        "one array"
        if each is None
        else "a dict"
        if isinstance(each, tuple)
        else f"a tuple of {each}"
        for each in learned
    )
    return (
        f"a tuple of {len(x)} arrays is given, each of which is an argument of the "
        f"model, and the model has learned from mini-batches (x, y) whose x is {known}"
    )


def without_batch_axis(output: Any, name: str = "output") -> Any:
    """Take the answer for one record out of the output for a mini-batch of one.

    Parameters
    ----------
    output
        An array or tensor of shape (1, ...), or a container of them, which stays of
        its type.
    name
        For the error message.

    Raises
    ------
    ShapeError
        If the first axis is missing, or is not of length 1.
    """
    items = outputs.contents(output)
    if items is not None:
        return outputs.filled(
            output,
            [without_batch_axis(value, f"{name}[{key!r}]") for key, value in items],
        )
    shape = getattr(output, "shape", None)
    if shape is None:  # neither array nor tensor: the same for every record
        return output
    if not shape or shape[0] != 1:
        raise ShapeError(
            f"For one record the model's {name} has shape {tuple(shape)}; the first "
            "axis must be 1 long, a row for each record. Give predict(x) a mini-batch "
            "of one, and take the answer out yourself."
        )
    return output[0]


def unknown_type(name: str) -> str:
    """Say that predictions are of a type which only the workers have.

    Parameters
    ----------
    name
        Its full name.
    """
    return (
        f"The model returns {name}, which cannot be imported where predictions are "
        "asked for: named tuples arrive as tuples, dataclasses and other mappings as "
        "dicts. Define the type at the top of a module that the client can import, or "
        "of the notebook, for predictions of that type."
    )
