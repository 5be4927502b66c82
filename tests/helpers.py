"""Models and data whose gradients are known without training them."""

from __future__ import annotations

import asyncio
import functools
import re
from typing import Any

import numpy as np
import torch
from distributed.protocol import dumps, loads, to_serialize
from receivers import Hearer
from torch import nn

from tensair_dask.drift.base import Detector, Shift
from tensair_dask.errors import DriftError

RATE = 0.01
SGD = functools.partial(torch.optim.SGD, lr=RATE)
FEATURES, CLASSES = 6, 3


class Linear(nn.Module):
    """Scores that are linear in the parameters; see `linear_loss`."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight.T


def linear_loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear in the prediction: the gradient is y.T @ x, whatever the parameters."""
    return (prediction * y).sum()


def linear_data(count: int, samples: int = 4, seed: int = 0) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(seed)
    return [
        (
            generator.normal(size=(samples, FEATURES)).astype("float32"),
            generator.normal(size=(samples, CLASSES)).astype("float32"),
        )
        for _ in range(count)
    ]


def expected_weight(data: list[tuple[Any, Any]]) -> torch.Tensor:
    """Initial minus the rate times the sum of all gradients, in double precision."""
    total = sum(y.astype("float64").T @ x.astype("float64") for x, y in data)
    return torch.from_numpy(1.0 - RATE * total)


def linear(**overrides: Any) -> dict[str, Any]:
    """Arguments of a trainer of the linear model."""
    arguments = {"model": Linear, "loss": linear_loss, "optimizer": SGD}
    return {**arguments, **overrides}


def stable(value: Any) -> str:
    """Name a parameter of a test alike in every process: without addresses."""
    return re.sub(" at 0x[0-9a-f]+", "", str(value))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES))


def classes(**overrides: Any) -> dict[str, Any]:
    """Arguments of a trainer of a small classifier."""
    arguments = {
        "model": mlp,
        "loss": nn.functional.cross_entropy,
        "optimizer": functools.partial(torch.optim.SGD, lr=0.1),
    }
    return {**arguments, **overrides}


def class_data(count: int, samples: int = 16, seed: int = 0) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(seed)
    data = []
    for _ in range(count):
        x = generator.normal(size=(samples, FEATURES)).astype("float32")
        data.append((x, x[:, :CLASSES].argmax(1)))
    return data


async def train_all(trainer: Any, data: list[tuple[Any, Any]]) -> list[Any]:
    """Give all mini-batches at once and drain."""
    reports = await asyncio.gather(*(trainer.train(x, y) for x, y in data))
    await trainer.drain()
    return reports


class Above(Detector):
    """A value above the limit is a drift; those below 0 it does not take.

    After a drift it rests for so many values.
    """

    bytes = 0

    def __init__(self, limit: float = 10.0, rest: int = 0) -> None:
        super().__init__()
        self.limit = limit
        self.rest = rest
        self.resting = 0
        self.seen: list[float] = []

    def _check(self, value: float) -> None:
        if value < 0:
            raise DriftError(f"{value} is below 0")

    def _observe(self, value: float) -> bool:
        self.seen.append(value)
        self.shift = Shift.between(1.0, value, 4.0)
        if self.resting:
            self.resting -= 1
            return False
        return value > self.limit

    def _restart(self) -> None:
        self.seen = []
        self.resting = self.rest


def carried(obj: Any) -> Any:
    """Send an object through the bytes of Dask's protocol."""
    frames = [bytearray(frame) for frame in dumps({"obj": to_serialize(obj)})]
    return loads(frames)["obj"]


def spread(states: dict[str, Any]) -> float:
    """Largest difference of any parameter between any two replicas."""
    first, *others = states.values()
    return max(
        ((first[name] - state[name]).abs().max().item())
        for state in others
        for name in first
    )


async def until(predicate: Any) -> None:
    while not predicate():
        await asyncio.sleep(0.005)


def feed(trainer: Any, data: list[Any], reports: list[Any] | None = None) -> list[Any]:
    """Give all at once; the reports come into the list that is returned."""
    reports = [] if reports is None else reports
    receiver = Hearer(reports.append)
    for pair in data:
        rest = trainer.session.intake.feed(pair, lambda item: item, receiver)
        if rest is not None:
            asyncio.ensure_future(rest)
    return reports
