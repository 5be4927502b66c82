"""Trainers of small models, with data whose gradients are known."""

from __future__ import annotations

import asyncio
import threading

import torch
from helpers import (
    CLASSES,
    FEATURES,
)
from torch import nn


class Slow(nn.Module):
    """Waits in the forward pass until the test lets it go."""

    gate = threading.Event()
    entered = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            Slow.entered.set()
            Slow.gate.wait(30)
        return self.layer(x)


async def until(predicate) -> None:
    while not predicate():
        await asyncio.sleep(0.001)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, left, right=None):
        return self.layer(left if right is None else left + right)
