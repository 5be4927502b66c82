"""Gradient scalers of mixed precision, which have no place here."""

from __future__ import annotations

from typing import Any

import torch

__all__ = ["ADVICE", "scales"]

ADVICE = (
    "GradScaler multiplies the loss, and divides the gradients again in a loop of its "
    "own, which there is none of here: scaled gradients would be learned. Use "
    "bfloat16, which needs no scaler: with torch.autocast(device, "
    "dtype=torch.bfloat16) in the model's forward."
)


def scales(thing: Any) -> bool:
    """Whether it is a scaler that has an effect."""
    return isinstance(thing, torch.amp.GradScaler) and thing.is_enabled()
