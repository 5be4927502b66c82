"""What people do to use memory and precision: autocast, scalers, accumulation."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import CLASSES, FEATURES, class_data, classes, linear, spread, train_all
from lab import cluster
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError, LossError, OptimizerError

cross_entropy = nn.functional.cross_entropy

# Steps are so short that each replica would learn half of the data alone: it publishes
# after every step that the exchange leaves it time for, and soon waits for more.
AT_ONCE = {
    "tensair.exchange.staleness": "1ms",
    "tensair.exchange.share-of-time": 1.0,
    "tensair.dispatch.max-in-flight": 4,
}


class Autocast(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.bfloat16) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(FEATURES, 16), nn.ReLU(), nn.Linear(16, CLASSES)
        )
        self.dtype = dtype

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=self.dtype):
            return self.layers(x)


class Decorated(Autocast):
    @torch.autocast("cpu", dtype=torch.bfloat16)
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


class Accumulating(torch.optim.SGD):
    """Makes a step of every four gradients."""

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for each in group["params"]:
                state = self.state[each]
                state.setdefault("sum", torch.zeros_like(each)).add_(each.grad)
                state["count"] = state.get("count", 0) + 1
                if state["count"] % 4 == 0:
                    each.sub_(state["sum"], alpha=group["lr"] / 4)
                    state["sum"].zero_()


@pytest.mark.parametrize(
    "model", [Autocast, functools.partial(Autocast, torch.float16), Decorated]
)
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.Adam])
def test_autocast_in_forward_learns_and_replicas_agree(model, optimizer):
    @cluster(2, config=AT_ONCE)
    async def run(c, s, a, b):
        arguments = classes(
            model=model,
            optimizer=functools.partial(optimizer, lr=0.02),
            metrics={"accuracy": ta.metrics.accuracy},
        )
        async with ta.Trainer(c, **arguments) as trainer:
            data = class_data(200)
            reports = await train_all(trainer, data)
            assert all(report.error is None for report in reports)
            assert spread(await trainer.state_dicts()) <= 1e-5
            scores = await trainer.evaluate(data[:20])
            assert scores["loss"] < reports[0].loss
            x, y = data[0]
            assert (await trainer.predict(x)).shape == (len(y), CLASSES)

    run()


@cluster(2, config=AT_ONCE)
async def test_an_optimizer_may_accumulate_gradients(c, s, a, b):
    optimizer = functools.partial(Accumulating, lr=0.3)
    arguments = classes(optimizer=optimizer)
    async with ta.Trainer(c, **arguments) as trainer:
        reports = await train_all(trainer, class_data(200))
        assert sum(each.loss for each in reports[-20:]) < sum(
            each.loss for each in reports[:20]
        )
        assert spread(await trainer.state_dicts()) <= 1e-5


def scaled(scaler: Any, prediction: Any, y: Any) -> Any:
    return scaler.scale(cross_entropy(prediction, y))


def unscaling(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=0.1)
    scaler = torch.amp.GradScaler("cpu")

    def unscale(*_: Any) -> None:
        scaler.unscale_(optimizer)

    optimizer.register_step_pre_hook(unscale)
    return optimizer


@cluster(1)
async def test_scalers_are_refused_at_the_start_but_those_that_do_nothing(c, s, a):
    scaler = torch.amp.GradScaler("cpu")
    within = functools.partial(scaled, scaler)
    for loss in (within, lambda prediction, y: scaled(scaler, prediction, y)):
        with pytest.raises(ConfigurationError, match="bfloat16"):
            await ta.Trainer(c, **classes(loss=loss))
    with pytest.raises(OptimizerError, match="bfloat16"):
        await ta.Trainer(c, **classes(optimizer=unscaling))
    nothing = torch.amp.GradScaler("cpu", enabled=False)
    loss = functools.partial(scaled, nothing)
    async with ta.Trainer(c, **classes(loss=loss)) as trainer:
        reports = await train_all(trainer, class_data(5))
        assert all(report.error is None for report in reports)


@pytest.mark.parametrize(
    "several",
    [
        lambda ce, penalty: (ce, penalty),
        lambda ce, penalty: [ce, penalty],
        lambda ce, penalty: {"ce": ce, "penalty": penalty},
    ],
)
def test_several_losses_are_to_be_added_up(several):
    @cluster(1)
    async def run(c, s, a):
        def loss(prediction: Any, y: Any) -> Any:
            return several(cross_entropy(prediction, y), prediction.square().mean())

        async with ta.Trainer(c, **classes(loss=loss)) as trainer:
            (report,) = await train_all(trainer, class_data(1))
            assert isinstance(report.error, LossError)
            assert "Add them up" in str(report.error)

    run()


@cluster(2)
async def test_a_sum_of_losses_is_learned_as_one(c, s, a, b):
    def loss(prediction: Any, y: Any) -> Any:
        return (prediction * y).sum() + 0.5 * (prediction * y).sum()

    one, both = [], []
    for function, state in ((linear()["loss"], one), (loss, both)):
        async with ta.Trainer(c, **linear(loss=function, replicas=1)) as trainer:
            x = torch.ones(4, FEATURES)
            await trainer.train(x, torch.ones(4, CLASSES))
            state.append((await trainer.state_dict())["weight"] - 1.0)
    assert torch.allclose(1.5 * one[0], both[0])
