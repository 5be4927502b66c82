"""Models and losses that differentiate themselves are scored as they are learned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import CLASSES, FEATURES, class_data, classes, spread, train_all
from lab import cluster
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import BatchError, ForwardError

cross_entropy = nn.functional.cross_entropy


class Forces(nn.Module):
    """Returns what its scores change with, too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: torch.Tensor) -> Any:
        x = x.detach().requires_grad_(True)
        scores = self.layer(x).tanh()
        (slope,) = torch.autograd.grad(scores.sum(), x, create_graph=True)
        return scores, slope


def with_slope(prediction: Any, y: Any) -> torch.Tensor:
    scores, slope = prediction
    return cross_entropy(scores, y) + 0.1 * slope.square().mean()


def with_own_gradient(prediction: Any, y: Any) -> torch.Tensor:
    loss = cross_entropy(prediction, y)
    (slope,) = torch.autograd.grad(loss, prediction, create_graph=True)
    return loss + 0.1 * slope.square().sum()


CASES = {
    "in forward": {"model": Forces, "loss": with_slope},
    "in the loss": {"loss": with_own_gradient},
}


@pytest.mark.parametrize("name", CASES)
def test_they_are_learned_scored_evaluated_and_predict(name):
    @cluster(2)
    async def run(c, s, a, b):
        data = class_data(60)
        async with ta.Trainer(c, **classes(**CASES[name])) as trainer:
            reports = await train_all(trainer, data[:40])
            scores = await trainer.evaluate(data[40:])
            await trainer.set_mode("never")
            reports += await train_all(trainer, data[40:])
            answer = await trainer.predict(data[0][0])
            assert all(report.error is None for report in reports)
            mean = sum(report.loss for report in reports[40:]) / 20
            assert scores["loss"] == pytest.approx(mean, rel=1e-5)
            first = answer[0] if isinstance(answer, tuple) else answer
            assert first.shape == (16, CLASSES)
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()


@cluster(1)
async def test_what_fails_also_with_gradients_is_refused_as_ever(c, s, a):
    class Broken(Forces):
        def forward(self, x: torch.Tensor) -> Any:
            return torch.autograd.grad(x.sum(), x)

    async with ta.Trainer(c, **classes(model=Broken)) as trainer:
        (x, y), *_ = class_data(1)
        with pytest.raises(ForwardError, match="does not require grad"):
            await trainer.predict(x)
        with pytest.raises(BatchError):
            await trainer.evaluate([(x, y)])


@pytest.mark.parametrize("retain", [False, True])
def test_a_loss_that_calls_backward_is_refused(retain):
    @cluster(1)
    async def run(c, s, a):
        def loss(prediction: Any, y: Any) -> torch.Tensor:
            value = cross_entropy(prediction, y)
            value.backward(retain_graph=retain)
            return value

        async with ta.Trainer(c, **classes(loss=loss)) as trainer:
            before = await trainer.state_dict()
            (report,) = await train_all(trainer, class_data(1))
            assert "backward() itself" in str(report.error)
            assert spread({"before": before, "now": await trainer.state_dict()}) == 0

    run()
