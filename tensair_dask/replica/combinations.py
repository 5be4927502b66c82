"""Combinations that cannot work, or not as meant: found when a trainer starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from tensair_dask.errors import ConfigurationError, ModelError, OptimizerError
from tensair_dask.exchange.arena import Arena

__all__ = [
    "check_optimizers",
    "check_parameters",
    "check_settings",
    "left_out",
]

# Gradients of others cannot be summed, or are not, or nothing is known of them.
_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
)


def check_parameters(model: torch.nn.Module, arena: Arena, compression: str) -> None:
    """See that the trained parameters of a model can be exchanged.

    Raises
    ------
    ModelError
        If their dtype does not let them be learned.
    ConfigurationError
        If it does not let their gradients be compressed.
    """
    tables = {id(table) for table in arena.tables}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        dtype = str(parameter.dtype).removeprefix("torch.")
        if parameter.dtype not in _DTYPES:
            raise ModelError(
                f"Parameter {name!r} is of dtype {dtype}, whose gradients cannot be "
                "summed. Keep it in float32 or bfloat16, and convert it in forward; "
                "or freeze it with requires_grad_(False)."
            )
        if parameter.layout != torch.strided:
            raise ModelError(
                f"Parameter {name!r} is a tensor of layout {parameter.layout}; only "
                "dense ones can be exchanged. Keep its values in a dense parameter."
            )
        if parameter.is_complex() and id(parameter) in tables:
            raise ModelError(
                f"Table {name!r} is of dtype {dtype}, and torch does not differentiate "
                "embeddings of it. Keep real and imaginary parts in two."
            )
        if parameter.is_complex() and compression != "none":
            raise ConfigurationError(
                f"compression={compression!r} was given, and parameter {name!r} is "
                f"of dtype {dtype}: it would lose the imaginary parts. Give "
                "compression='none', or keep real and imaginary parts in two "
                "parameters, or use torch.view_as_complex in forward."
            )


def check_optimizers(optimizers: Sequence[torch.optim.Optimizer], arena: Arena) -> None:
    """See that optimizers hold parameters of the model, and each once.

    Raises
    ------
    OptimizerError
        If they hold others.
    """
    known = {id(parameter) for parameter in arena.parameters}
    seen: set[int] = set()
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if id(parameter) not in known:
                    raise OptimizerError(
                        f"{type(optimizer).__name__} holds a parameter "
                        f"{tuple(parameter.shape)} that is no trained one of the "
                        "model. Its factory is called with the parameters of the "
                        "model on the worker: give functools.partial(torch.optim.SGD, "
                        "lr=0.05), not an optimizer of another model."
                    )
                if id(parameter) in seen:
                    raise OptimizerError(
                        f"A parameter {tuple(parameter.shape)} is in two groups of "
                        "the optimizers, and would be stepped twice. Put each in one."
                    )
                seen.add(id(parameter))


def check_settings(optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """See that the settings of optimizers are numbers: the first step would be none.

    Raises
    ------
    OptimizerError
        If one is NaN, or a learning rate is infinite.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for name, value in group.items():
                if name != "params" and _is_no_number(value, name == "lr"):
                    raise OptimizerError(
                        f"{type(optimizer).__name__} has {name}={value}, with which a "
                        "step would make the parameters NaN or infinite. Give a finite "
                        "number."
                    )


def _is_no_number(value: Any, finite: bool) -> bool:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    if isinstance(value, tuple):
        return any(_is_no_number(each, finite) for each in value)
    if not isinstance(value, float):
        return False
    return math.isnan(value) or (finite and math.isinf(value))


def left_out(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> list[str]:
    """Name the trainable parameters that no optimizer holds: they stay as they are."""
    held = {
        id(parameter)
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and id(parameter) not in held
    ]
