"""Small models, and learners of them without a cluster."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

from tensair_dask.replica.learner import Learner, Recipe

SGD = functools.partial(torch.optim.SGD, lr=0.1)


CPU = torch.device("cpu")


def learner(model: Any = None, **overrides: Any) -> Learner:
    arguments = {
        "model": model or (lambda: nn.Linear(3, 2)),
        "loss": nn.functional.cross_entropy,
        "optimizer": SGD,
        "metrics": {},
        "share": "gradient",
        "seed": 0,
        "keep_predictions": False,
    }
    return Learner(Recipe(**{**arguments, **overrides}), CPU)


def data(samples: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(samples, 3, generator=generator)
    return x, torch.randint(0, 2, (samples,), generator=generator)


def generator(model, optimizers):
    yield model.weight.zero_()
