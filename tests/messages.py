"""Gradient messages to encode, send and check."""

from __future__ import annotations

import time

import torch

from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.message import GradientMessage


def message(first: int, last: int, value: float, **overrides) -> GradientMessage:
    arguments = {
        "run_id": "run",
        "origin": "a",
        "first": first,
        "last": last,
        "samples": 10 * (last - first + 1),
        "taken": last,
        "clock": {"a": first - 1},
        "oldest": time.monotonic(),
        "content": Gradients([torch.full((4,), value)]),
    }
    return GradientMessage(**{**arguments, **overrides})
