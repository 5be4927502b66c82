"""Replicas share gradients or updates, as their optimizer needs."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import numpy as np
import pytest
import torch
from helpers import CLASSES, class_data, classes, linear, spread, train_all
from lab import cluster, exchange_of
from torch import nn

import tensair_dask as ta
from tensair_dask.observe.telemetry.trainers import TrainerRecord

SGD = torch.optim.SGD
part = functools.partial


def clipping(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    optimizer = SGD(parameters, lr=0.3)

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 0.1)

    optimizer.register_step_pre_hook(clip)
    return optimizer


def scheduled(parameters: Any) -> torch.optim.Optimizer:
    optimizer = SGD(parameters, lr=0.5)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.97)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def two_rates(parameters: Any) -> torch.optim.Optimizer:
    first, *rest = parameters
    return SGD([{"params": [first], "lr": 0.01}, {"params": rest}], lr=0.1)


def short_rows(sparse: bool = False) -> nn.Module:
    words = nn.EmbeddingBag(20, 4, max_norm=0.5, sparse=sparse)
    return nn.Sequential(words, nn.Linear(4, CLASSES))


class Short(nn.Module):
    """Of numbers with few places."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES).to(dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x.to(self.layer.weight.dtype)).float()


class Bounded(nn.Module):
    """Keeps its own weights within bounds, in forward."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, CLASSES)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            self.layer.weight.clamp_(-0.3, 0.3)
        return self.layer(x)


class Decaying(Bounded):
    """Puts other tensors in the place of its weights, in forward."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.layer.weight.data = self.layer.weight.data * 0.99
        return self.layer(x)


class Held(Bounded):
    """Writes through ``data``, which torch does not count."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.layer.weight.data.clamp_(-0.3, 0.3)
        return self.layer(x)


class Normed(Bounded):
    """Gives its weights another length, uncounted as well."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.layer.weight.data.div_(self.layer.weight.data.norm())
        return self.layer(x)


def word_data(count: int) -> list[tuple[Any, Any]]:
    generator = np.random.default_rng(0)
    words = [generator.integers(0, 20, size=(8, 3)) for _ in range(count)]
    return [(each, each.sum(1) % CLASSES) for each in words]


OPTIMIZERS = {
    "weight decay": part(SGD, lr=0.1, weight_decay=0.1),
    "momentum": part(SGD, lr=0.05, momentum=0.9),
    "nesterov": part(SGD, lr=0.05, momentum=0.9, nesterov=True),
    "adam": part(torch.optim.Adam, lr=0.01),
    "adamw": part(torch.optim.AdamW, lr=0.01),
    "adagrad": part(torch.optim.Adagrad, lr=0.05),
    "clipping in a hook": clipping,
    "a schedule in a hook": scheduled,
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_replicas_agree_by_default_whatever_the_optimizer(name):
    @cluster(2)
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(optimizer=OPTIMIZERS[name])) as trainer:
            assert trainer.share == "update"
            reports = await train_all(trainer, class_data(200))
            assert all(report.error is None for report in reports)
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_that_are_rounded_differ_by_their_last_place_at_most(dtype):
    @cluster(2)
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=part(Short, dtype))) as trainer:
            assert trainer.share == "update"
            await train_all(trainer, class_data(300))
            states = await trainer.state_dicts()
            largest = max(
                each.abs().max().item() for each in states[a.address].values()
            )
            assert spread(states) <= 2 * largest * torch.finfo(dtype).eps

    run()


@pytest.mark.parametrize("optimizer", [part(SGD, lr=0.1), two_rates])
def test_gradients_are_shared_where_steps_add_up(optimizer):
    @cluster(2)
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(optimizer=optimizer)) as trainer:
            assert trainer.share == "gradient"
            await train_all(trainer, class_data(100))
            assert spread(await trainer.state_dicts()) <= 1e-5
            assert not any("share" in text for text in trainer.events["text"])

    run()


@pytest.mark.parametrize("sparse", [False, True], ids=["dense", "rows"])
def test_rows_that_are_kept_short_in_forward_agree_also_where_one_only_predicts(sparse):
    @cluster(2)
    async def run(c, s, a, b):
        arguments = classes(model=part(short_rows, sparse))
        async with ta.Trainer(c, **arguments) as trainer:
            assert trainer.share == "update"
            every = np.arange(20)[:, None]
            await trainer.predict(every)  # one replica cuts all rows
            await train_all(trainer, word_data(100))
            await trainer.evaluate([(every, every[:, 0] % CLASSES)])
            await trainer.drain()
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()


@pytest.mark.parametrize("model", [Bounded, Decaying, Held, Normed])
def test_a_model_that_changes_its_parameters_in_forward_is_found_out(model):
    @cluster(2)
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=model)) as trainer:
            assert trainer.share == "gradient"
            await train_all(trainer, class_data(100))
            assert trainer.share == "update"
            reported = [text for text in trainer.events["text"] if "its own p" in text]
            assert len(reported) == 1
            await train_all(trainer, class_data(100, seed=1))
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()


@pytest.mark.parametrize("model", [Bounded, Held])
def test_that_what_a_model_changes_itself_is_added_up_is_said_once(model):
    @cluster(2)
    async def run(c, s, a, b):
        adam = part(torch.optim.Adam, lr=0.01)
        async with ta.Trainer(c, **classes(model=model, optimizer=adam)) as trainer:
            await train_all(trainer, class_data(100))
            await trainer.drain()
            reported = [text for text in trainer.events["text"] if "its own p" in text]
            assert len(reported) == 1
            assert spread(await trainer.state_dicts()) <= 1e-5

    run()


@cluster(2)
async def test_gradients_that_are_asked_for_are_shared_and_said_to_differ(c, s, a, b):
    adam = part(torch.optim.Adam, lr=0.01)
    arguments = classes(optimizer=adam, share="gradient")
    async with ta.Trainer(c, **arguments) as trainer:
        said = [text for text in trainer.events["text"] if "share=" in text]
        assert len(said) == 1  # by two replicas, before anything is learned
        assert "Adam" in said[0]
        await train_all(trainer, class_data(50))
        assert trainer.share == "gradient"
        assert [text for text in trainer.events["text"] if "share=" in text] == said


@cluster(2)
async def test_a_replica_that_joins_shares_as_the_others_do(c, s, a, b):
    def heavier(model, optimizers):
        optimizers[0].param_groups[0]["weight_decay"] = 0.1

    async with ta.Trainer(c, **classes(replicas=1)) as trainer:
        assert trainer.share == "gradient"
        await trainer.apply(heavier)
        await train_all(trainer, class_data(20))
        assert trainer.share == "update"
        await trainer.scale(2)
        await train_all(trainer, class_data(100))
        assert {exchange_of(trainer, each).share for each in (a, b)} == {"update"}
        assert spread(await trainer.state_dicts()) <= 1e-5


@cluster(3)
async def test_a_function_that_changes_the_optimizer_changes_what_is_shared(
    c, s, *workers
):
    def set_to(momentum, model, optimizers):
        optimizers[0].param_groups[0]["momentum"] = momentum
        optimizers[0].state.clear()

    async with ta.Trainer(c, **classes()) as trainer:
        data = class_data(240)
        shared = []
        for momentum in (0.9, 0.0, 0.5):
            learning = asyncio.gather(*(trainer.train(x, y) for x, y in data[:40]))
            await trainer.apply(part(set_to, momentum))
            await learning
            await train_all(trainer, data[40:80])
            data = data[80:]
            shared.append({exchange_of(trainer, each).share for each in workers})
            assert spread(await trainer.state_dicts()) <= 1e-5
        assert shared == [{"update"}, {"gradient"}, {"update"}]


@cluster(1)
async def test_what_is_shared_is_shown(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, [])
        assert "share 'gradient'" in repr(trainer)
        assert "they share gradients" in trainer._repr_html_()
        assert trainer.session.status.state()["share"] == "gradient"


def test_the_dashboard_shows_it_once_it_is_known():
    tables = pytest.importorskip("tensair_dask.observe.dashboard.tables")
    record = TrainerRecord("run", "m", "client", target=1)
    assert "they share" not in dict(tables._numbers(record, 1))
    record.update({"share": "update"})
    assert dict(tables._numbers(record, 1))["they share"] == "updates"
