"""The model and the training step that every contender uses."""

from __future__ import annotations

import functools
import os

import numpy as np
import torch
from memory import keep_memory
from torch import nn
from torch.nn.functional import cross_entropy
from workloads import LEARNING_RATE, WORKLOADS, Workload

from open_loop.wire import Acks

__all__ = ["Learner", "learn_here", "workload"]


def workload() -> Workload:
    """Return the model and its stream, which the environment names."""
    return WORKLOADS[os.environ["OPEN_LOOP_MODEL"]]


class Learner:
    """Learns mini-batches with the tutorial's step, in one thread, keeping memory."""

    def __init__(self, model: nn.Module | None = None) -> None:
        keep_memory()
        torch.set_num_threads(1)
        self.model = workload().seeded_model() if model is None else model
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=LEARNING_RATE)

    def gradients(self, x: np.ndarray, y: np.ndarray) -> float:
        """Compute the gradients of one mini-batch; return its loss."""
        self.optimizer.zero_grad()
        loss = cross_entropy(self.model(torch.from_numpy(x)), torch.from_numpy(y))
        loss.backward()
        return loss.item()

    def learn(self, x: np.ndarray, y: np.ndarray) -> float:
        """Learn one mini-batch; return its loss."""
        loss = self.gradients(x, y)
        self.optimizer.step()
        return loss


@functools.cache
def _of_this_process() -> tuple[Learner, Acks]:
    return Learner(), Acks()


def learn_here(index: int, x: np.ndarray, y: np.ndarray) -> None:
    """Learn with the one model of this process, and tell the driver."""
    learner, acks = _of_this_process()
    acks.learned(index, learner.learn(x, y))
