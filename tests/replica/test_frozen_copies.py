"""Frozen copies that a model keeps of itself are each replica's own, which is said."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, train_all
from learners import data, learner
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import tensair_dask as ta

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


class Averaging(nn.Module):
    """Keeps a moving average of itself, and answers with it."""

    def __init__(self, features: int = 3, outputs: int = 2) -> None:
        super().__init__()
        self.net = nn.Linear(features, outputs)
        self.ema = AveragedModel(self.net, multi_avg_fn=get_ema_multi_avg_fn(0.9))
        self.ema.requires_grad_(False)

    def forward(self, x):
        if not self.training:
            return self.ema(x)
        self.ema.update_parameters(self.net)
        return self.net(x)


class Momentum(nn.Module):
    """A momentum encoder, as many write it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.key = copy.deepcopy(self.net).requires_grad_(False)

    def forward(self, x):
        for query, key in zip(self.net.parameters(), self.key.parameters()):  # noqa: B905
            key.data = key.data * 0.99 + query.data * 0.01
        return self.net(x) + 0.1 * self.key(x)


class Target(nn.Module):
    """A target network that follows at intervals."""

    def __init__(self, every: int = 30) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.target = copy.deepcopy(self.net).requires_grad_(False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.every = every

    def forward(self, x):
        self.steps += 1
        if self.steps % self.every == 0:
            self.target.load_state_dict(self.net.state_dict())
        return self.net(x) + self.target(x)


@pytest.mark.parametrize(
    ("model", "named"),
    [(Averaging, "'ema.module.weight'"), (Momentum, "'key.bias'"), (Target, "target")],
)
def test_it_is_said_once_what_is_each_replicas_own(model, named):
    ours = learner(model, share=None)
    for _ in range(140):
        ours.learn(*data(), 8)
    (said,) = ours.notices.take().values()
    assert named in said
    assert "each replica has its own" in said
    assert "trainer.apply" in said


def test_a_hook_of_the_optimizer_is_found_as_well():
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Linear(3, 2)
            self.slow = copy.deepcopy(self.net).requires_grad_(False)

        def forward(self, x):
            return self.net(x)

    def optimizer(parameters):
        made = torch.optim.SGD(parameters, lr=0.1)
        made.register_step_post_hook(lambda *_: ours.model.slow.weight.data.mul_(0.9))
        return made

    ours = learner(Kept, share=None)
    ours = learner(Kept, optimizer=optimizer, share=None)
    for _ in range(10):
        ours.learn(*data(), 8)
    assert any("'slow.weight'" in said for said in ours.notices.take().values())


@pytest.mark.parametrize(
    "model", [lambda: Target(10**6), lambda: nn.Sequential(frozen(), nn.Linear(3, 2))]
)
def test_frozen_layers_that_stay_as_they_are_say_nothing(model):
    ours = learner(model)
    for _ in range(140):
        ours.learn(*data(), 8)
    assert ours.notices.take() == {}


def frozen() -> nn.Module:
    return nn.Linear(3, 3).requires_grad_(False)


def test_what_apply_and_peers_write_is_not_the_models():
    def write(model, optimizers):
        with torch.no_grad():
            model[0].weight.add_(1)

    ours = learner(lambda: nn.Sequential(frozen(), nn.Linear(3, 2)))
    other = learner(lambda: nn.Sequential(frozen(), nn.Linear(3, 2)), seed=1)
    for _ in range(3):
        ours.learn(*data(), 8)
        ours.change(write)
        ours.keep_change()
        ours.learn(*data(), 8)
        snapshot = other.snapshot()
        ours.load(snapshot["model"], snapshot["optimizers"])
    for _ in range(70):
        ours.learn(*data(), 8)
    assert ours.notices.take() == {}


@two()
async def test_users_hear_that_replicas_differ_in_them(c, s, a, b):
    model = functools.partial(Averaging, FEATURES, CLASSES)
    async with ta.Trainer(c, **classes(model=model)) as trainer:
        await train_all(trainer, class_data(40))
        one, other = (await trainer.state_dicts()).values()
        assert torch.allclose(one["net.weight"], other["net.weight"], atol=1e-5)
        assert not torch.equal(one["ema.module.weight"], other["ema.module.weight"])
        notes = trainer.events.text[trainer.events.kind == "note"]
        (said,) = (text for text in notes if "frozen" in text)
        assert "'ema.module.weight'" in said


@two()
async def test_they_agree_once_they_are_copied_by_apply(c, s, a, b):
    model = functools.partial(Averaging, FEATURES, CLASSES)

    def copied(model, optimizers):
        model.ema.module.load_state_dict(model.net.state_dict())

    async with ta.Trainer(c, **classes(model=model)) as trainer:
        await train_all(trainer, class_data(40))
        await trainer.apply(copied)
        one, other = (await trainer.state_dicts()).values()
        assert torch.equal(one["ema.module.weight"], other["ema.module.weight"])
        assert torch.equal(one["net.weight"], one["ema.module.weight"])
