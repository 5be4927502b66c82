"""Advice: which side is at fault where torch raises, and what is to be done there.

torch says what did not fit, in words of its own; whether the data, the model or the
loss is to be changed follows from the shapes and dtypes of both sides.
"""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

import numpy as np
import torch

from tensair_dask.batches.batch import names_of
from tensair_dask.errors import (
    BatchError,
    DtypeError,
    ForwardError,
    LossError,
    ShapeError,
)

__all__ = ["on_backward", "on_forward", "on_loss"]

# How torch words what does not fit.
_DTYPE = (
    "dtype",
    "scalar type",
    "output type",
    "floating point type",
    "bool tensor",
    "not implemented for",
    "Input type",
)
_SHAPE = ("shape", "size", "dimension", "expected input", "channels", "multi-target")
_KEPT = (
    "backward through the graph a second time",
    "modified by an inplace operation",
    "Expected hidden",
)
_CHANNELS = re.compile(r"to have (\d+) channels|should contain \d+ elements not (\d+)")
_PRODUCT = re.compile(r"\((\d+)x(\d+) and (\d+)x(\d+)\)")

Advice = tuple[type[BatchError], str]


# ---- the model -----------------------------------------------------------------------


def on_forward(text: str, kind: tuple[Any, ...], model: torch.nn.Module) -> Advice:
    """Advise where the model raised.

    Parameters
    ----------
    text
        What it raised, in words.
    kind
        Of the mini-batch.
    model
        The model.
    """
    for look in (_arguments, _kept, _device, _channels, _row, _dtype_of_x, _shape_of_x):
        advice = look(text, kind, model)
        if advice is not None:
            return advice
    return ForwardError, ""


def _arguments(text: str, kind: Any, model: torch.nn.Module) -> Advice | None:
    """Whether the parts of x are other arguments than the model has."""
    if "argument" not in text or f"{type(model).__name__}.forward()" not in text:
        return None
    structure = kind[0]
    takes = f"forward{_signature(model)}"
    if isinstance(structure, int):
        return ShapeError, (
            f"x is a tuple, or a list of arrays, so each of its {structure} is an "
            f"argument of the model, which has {takes}. If they are rows, make one "
            "array of them: numpy.stack(x)."
        )
    if isinstance(structure, tuple):
        return ShapeError, (
            "x is a dict, so its keys are the names of the model's arguments; it has "
            f"{takes}."
        )
    return ShapeError, (
        f"x is one array, and the model has {takes}: give a tuple of arrays, in that "
        "order, or a dict of them by name."
    )


def _signature(model: torch.nn.Module) -> str:
    try:
        return str(inspect.signature(model.forward))
    except (TypeError, ValueError):
        return "(...)"


def _kept(text: str, *_: Any) -> Advice | None:
    """Whether the model holds on to the mini-batch before."""
    if not any(words in text for words in _KEPT):
        return None
    told = (
        "The model, or the loss, keeps something of the mini-batch before, such as a "
        "hidden state, and each mini-batch is learned for itself, in any order, with "
        "any number of rows. Begin anew in every forward"
    )
    if "inplace" in text:
        return ForwardError, (
            f"{told}, or keep it with detach(). Or a tensor is changed in place that "
            "the gradient is computed from: use x = x + 1 in place of x += 1."
        )
    return ForwardError, (
        f"{told}, or keep it with detach(): self.h = h.detach(). If the loss calls "
        "backward() itself, leave that away: it is done with what it returns."
    )


def _device(text: str, *_: Any) -> Advice | None:
    if "same device" not in text and "different from other tensors" not in text:
        return None
    return ForwardError, (
        "Parameters, x and y are on one device: a tensor that the model or the loss "
        "makes or holds itself is not. Make it with device=x.device, or hold it with "
        "register_buffer."
    )


def _channels(text: str, kind: Any, model: Any) -> Advice | None:
    """Whether images have their channels where the model has rows or columns."""
    found = _CHANNELS.search(text)
    if found is None:
        return None
    wanted = int(found[1] or found[2])
    for name, _, trailing in _leaves_of_x(kind):
        if len(trailing) == 3 and trailing[2] == wanted != trailing[0]:
            return ShapeError, (
                f"{name} has its channels last, (n, height, width, channels), and the "
                f"model takes them first: {name}.transpose(0, 3, 1, 2)."
            )
        if len(trailing) == 2:
            return ShapeError, (
                f"{name} has no axis of channels, (n, channels, height, width): give "
                f"{name}[:, None] where there is one channel."
            )
    return None


def _row(text: str, *_: Any) -> Advice | None:
    if "index out of range in self" not in text:
        return None
    return ForwardError, (
        "An embedding was asked for a row that it does not have: x holds a number "
        "below 0, or not below num_embeddings. Make it larger, or give what is new a "
        "row of its own, such as 0."
    )


def _dtype_of_x(text: str, kind: Any, model: torch.nn.Module) -> Advice | None:
    if not any(word in text for word in _DTYPE):
        return None
    leaves = _leaves_of_x(kind)
    if "indices" in text:
        wrong = [name for name, dtype, _ in leaves if "float" in dtype]
        casts = ", ".join(f"{name}.astype('int64')" for name in wrong)
        if wrong:
            told = f"An embedding takes numbers of rows: cast with {casts}."
            return DtypeError, told
        return None
    wanted = _dtype_of(model)
    others = [leaf for leaf in leaves if leaf[1] != wanted]
    if not others:
        return ForwardError, (
            f"x is {wanted}, as the parameters are: the model itself makes tensors of "
            "another dtype. Make them with dtype=x.dtype."
        )
    casts = ", ".join(_cast(name, wanted) for name, *_ in others)
    images = [
        name
        for name, dtype, trailing in others
        if dtype == "uint8" and len(trailing) >= 2
    ]
    scale = f" Images of bytes are scaled as well: {images[0]} / 255." if images else ""
    return DtypeError, f"The parameters are {wanted}: cast with {casts}.{scale}"


def _shape_of_x(text: str, kind: Any, model: Any) -> Advice | None:
    if not any(word in text for word in _SHAPE):
        return None
    found = _PRODUCT.search(text)
    columns = int(found[3]) if found else -1
    for name, _, trailing in _leaves_of_x(kind):
        if len(trailing) > 1 and math.prod(trailing) == columns:
            return ShapeError, (
                f"The model takes rows of {columns} numbers: give "
                f"{name}.reshape(len({name}), -1), or begin it with torch.nn.Flatten()."
            )
        if not trailing and columns == 1:
            return ShapeError, (
                f"The model takes rows of one number: give {name}[:, None]."
            )
    return ShapeError, "Make every mini-batch of the shape that the model takes."


def _leaves_of_x(kind: Any) -> list[tuple[str, str, tuple[int, ...]]]:
    """Give name, dtype and shape (without the rows) of each array of x."""
    leaves = zip(names_of("x", kind[0]), kind[2], kind[3], strict=False)
    return [
        (name, "bfloat16" if is_bits else np.dtype(dtype).name, trailing)
        for name, is_bits, (dtype, trailing) in leaves
    ]


def _dtype_of(model: torch.nn.Module) -> str:
    dtype = next(p.dtype for p in model.parameters() if p.requires_grad)
    return str(dtype).removeprefix("torch.")


def _cast(name: str, dtype: str) -> str:
    if dtype == "bfloat16":  # numpy has none
        return f"torch.as_tensor({name}).bfloat16()"
    return f"{name}.astype({dtype!r})"


# ---- the loss ------------------------------------------------------------------------


def on_loss(text: str, prediction: Any, y: Any) -> Advice:
    """Advise where the loss raised.

    Parameters
    ----------
    text
        What it raised, in words.
    prediction, y
        What it was called with.
    """
    for general in (_kept, _device):
        if (advice := general(text)) is not None:
            return advice
    if isinstance(prediction, torch.Tensor) and isinstance(y, torch.Tensor):
        for look in (_class, _probability, _dtype_of_y, _shape_of_y):
            if (advice := look(text, prediction, y)) is not None:
                return advice
    elif not isinstance(prediction, torch.Tensor) and "Error" in text:
        return LossError, (
            f"The model returns a {type(prediction).__name__}, which the loss gets as "
            "it is: let the loss take out what it compares with y."
        )
    if any(word in text for word in _DTYPE):
        return DtypeError, "Prediction and y must be of dtypes that the loss takes."
    if any(word in text for word in _SHAPE):
        return ShapeError, "Prediction and y must be of shapes that the loss takes."
    return LossError, ""


def _class(text: str, prediction: torch.Tensor, y: torch.Tensor) -> Advice | None:
    """Whether there is a class that the prediction has no column for."""
    if "out of bounds" not in text or y.is_floating_point() or prediction.ndim < 2:
        return None
    least, most, columns = int(y.min()), int(y.max()), prediction.shape[1]
    told = (
        f"y holds the classes {least} to {most}, and the prediction has {columns} "
        f"columns, for the classes 0 to {columns - 1}. "
    )
    if least == 1 and most == columns:
        return LossError, f"{told}Number them from 0: y - 1."
    if least < 0:
        return LossError, f"{told}Number them from 0."
    return LossError, (
        f"{told}Give the model {most + 1} outputs, or keep other classes out of y."
    )


def _probability(text: str, *_: Any) -> Advice | None:
    if "between 0 and 1" not in text:
        return None
    return LossError, (
        "The loss takes probabilities: the model's outputs are not (then end it with a "
        "sigmoid, or take binary_cross_entropy_with_logits), or y is not."
    )


def _dtype_of_y(text: str, prediction: torch.Tensor, y: torch.Tensor) -> Advice | None:
    if not any(word in text for word in _DTYPE):
        return None
    if _are_probabilities(prediction, y):
        return DtypeError, (
            "y has a column for each class, as probabilities have: give the numbers of "
            "the classes, y.argmax(1), or cast with y.astype('float32')."
        )
    wanted = prediction.dtype
    if _are_classes(prediction, y):
        if y.dtype == torch.int64 and "Double" in text:
            return DtypeError, (
                "The loss holds tensors of float64, such as the weight= of its "
                "classes: make them float32, weight.float()."
            )
        wanted = torch.int64
    if y.dtype == wanted:
        return None
    name = str(wanted).removeprefix("torch.")
    told = f"The loss compares y with {name}: cast with {_cast('y', name)}."
    if wanted == torch.int64:
        told = f"Class numbers are int64: cast with {_cast('y', name)}."
    return DtypeError, told


def _shape_of_y(text: str, prediction: torch.Tensor, y: torch.Tensor) -> Advice | None:
    if not any(word in text for word in _SHAPE):
        return None
    shape = _fit(prediction, y)
    return ShapeError, shape or (
        f"The prediction has shape {tuple(prediction.shape)} and y {tuple(y.shape)}: "
        "let the model give, or y hold, what the loss compares."
    )


def _fit(prediction: torch.Tensor, y: torch.Tensor) -> str:
    """Say how y, or the prediction, comes to the shape of the other; or nothing."""
    mine, its = tuple(prediction.shape), tuple(y.shape)
    if mine == (*its, 1):
        return (
            "The prediction has one column and y none: give y[:, None], or take the "
            "column in the loss, prediction[:, 0]."
        )
    if its[1:] == (1,) and mine[:1] == its[:1] and mine != its:
        return "y has one column where the loss takes none: give y[:, 0]."
    if len(mine) == 4 and mine[:-1] == its:
        return (
            "The prediction has its classes last and the loss takes them as the second "
            "axis: prediction.permute(0, 3, 1, 2)."
        )
    if len(mine) == 3 and mine[:-1] == its:
        return (
            "The prediction has its classes last and the loss takes them as the second "
            "axis: prediction.transpose(1, 2)."
        )
    return ""


def _are_classes(prediction: torch.Tensor, y: torch.Tensor) -> bool:
    """Whether y would be numbers of the prediction's columns."""
    return prediction.ndim == y.ndim + 1 and prediction.shape[1] > 1


def _are_probabilities(prediction: torch.Tensor, y: torch.Tensor) -> bool:
    one_hot = prediction.shape == y.shape and y.ndim > 1 and y.shape[1] > 1
    return one_hot and not y.is_floating_point()


# ---- the gradient --------------------------------------------------------------------


def on_backward(text: str, prediction: Any, y: Any) -> Advice:
    """Advise where the loss could not be differentiated; see `on_loss`."""
    if "does not require grad" in text:
        return LossError, (
            "The loss must depend on the model's parameters: it, or the model, goes by "
            "way of detach(), item(), numpy() or no_grad()."
        )
    if (advice := _kept(text)) is not None:
        return advice
    if isinstance(prediction, torch.Tensor) and isinstance(y, torch.Tensor):
        advice = _dtype_of_y(text, prediction, y)
    return advice or (LossError, "")
