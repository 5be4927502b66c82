"""Checkpoints to write and read, and how to compare them."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import nn

from tensair_dask.checkpoints import Checkpoint


class Words(nn.Module):
    """A table with sparse gradients, weights that two layers share, and a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, sparse=True)
        self.out = nn.Linear(4, 7, bias=False)
        self.norm = nn.BatchNorm1d(4)
        self.again = self.out
        self.halves = nn.Parameter(torch.randn(3).to(torch.float16))
        self.brains = nn.Parameter(torch.randn(3).to(torch.bfloat16))
        self.register_buffer("nothing", torch.empty(0, 3))

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        return self.out(self.norm(self.table(words)))


def trained() -> tuple[Words, list[torch.optim.Optimizer]]:
    torch.manual_seed(0)
    model = Words()
    dense = [p for name, p in model.named_parameters() if "table" not in name]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.Adam(dense, lr=0.1, amsgrad=True),
        torch.optim.SparseAdam(model.table.parameters()),
    ]
    for _ in range(3):
        loss = nn.functional.cross_entropy(
            model(torch.tensor([1, 2, 5])), torch.tensor([2, 3, 6])
        )
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    return model, optimizers


def example(index: int = 42, **overrides) -> Checkpoint:
    model, optimizers = trained()
    values = {
        "model": model.state_dict(),
        "optimizers": [each.state_dict() for each in optimizers],
        "clock": {"tcp://127.0.0.1:1": 30, "tcp://127.0.0.1:2": 12},
        "counters": {"mini-batches": index, "samples": 64 * index, "loss": 0.5},
        "adaptation": {"phase": "training", "window": np.arange(5.0), "none": None},
        "scores": {"accuracy": {"cm": {True: {False: 2.0}}, "ring": [1, 2] * 50}},
        "positions": {"clicks": {0: 17, 1: 2**40}},
        "name": "words",
        "index": index,
    }
    return Checkpoint(**{**values, **overrides})


def small(index: int = 0, **overrides) -> Checkpoint:
    return Checkpoint({"w": torch.full((3,), float(index))}, index=index, **overrides)


def same(one, other) -> bool:
    """Whether two trees are equal, bit by bit, and of the same kinds."""
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one)]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return type(one) is type(other) and one == other
