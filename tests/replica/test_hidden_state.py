"""State in hooks of an optimizer is reported where it is lost."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from helpers import class_data, classes, train_all
from lab import cluster
from torch import nn

import tensair_dask as ta
from tensair_dask.errors import OptimizerError
from tensair_dask.replica.hidden_state import hidden_state


def with_hook(hook: Any, before: bool = False) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=1.0)
    if before:
        optimizer.register_step_pre_hook(hook)
    else:
        optimizer.register_step_post_hook(hook)
    return optimizer


class Counter:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *_: Any) -> None:
        self.count += 1

    def step(self, *_: Any) -> None:
        self.count += 1


def counting() -> Any:
    count = 0

    def hook(*_: Any) -> None:
        nonlocal count
        count += 1

    return hook


def averaging() -> Any:
    means: dict[str, float] = {}
    return lambda *_: means.update(a=1.0)


def average(means: Any, *_: Any) -> None:
    means.mul_(0.9)


def scheduling(parameters: Any) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(parameters, lr=1.0)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    optimizer.register_step_post_hook(lambda *_: schedule.step())
    return optimizer


def bounded(parameters: Any) -> torch.optim.Optimizer:
    parameters = list(parameters)
    optimizer = torch.optim.SGD(parameters, lr=0.1)

    def bound(limit: float, *_: Any) -> None:
        with torch.no_grad():
            for each in parameters:
                each.clamp_(-limit, limit)

    optimizer.register_step_post_hook(functools.partial(bound, 1.0))
    return optimizer


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        (Counter(), "Counter"),
        (Counter().step, "Counter"),
        (counting(), "function"),
        (averaging(), "dict"),
        (functools.partial(average, torch.zeros(2)), "Tensor"),
        (lambda *_, losses=[]: losses.append(1), "list"),
    ],
)
@pytest.mark.parametrize("before", [False, True])
def test_hooks_that_keep_a_state_are_named(hook, named, before):
    assert named in hidden_state([with_hook(hook, before)])


def test_a_schedule_in_a_hook_is_named():
    found = hidden_state([scheduling([nn.Parameter(torch.zeros(2))])])
    assert "ExponentialLR" in found


def test_hooks_that_keep_nothing_are_passed_over():
    parameters = [nn.Parameter(torch.zeros(2))]

    def clip(*_: Any) -> None:
        nn.utils.clip_grad_norm_(parameters, 0.1)

    assert hidden_state([with_hook(clip, before=True)]) is None
    assert hidden_state([bounded(parameters)]) is None
    assert hidden_state([with_hook(functools.partial(print, "step"))]) is None


def test_an_optimizer_that_saves_it_itself_is_trusted():
    optimizer = with_hook(Counter())
    optimizer.register_state_dict_post_hook(lambda *_: None)
    assert hidden_state([optimizer]) is None


def reported(trainer: Any) -> list[str]:
    return [text for text in trainer.events["text"] if "begins anew" in text]


@cluster(2)
async def test_it_is_said_once_at_a_checkpoint_and_at_a_join(c, s, a, b, tmp_path):
    arguments = classes(optimizer=scheduling, replicas=1)
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, class_data(5))
        assert not reported(trainer)
        await trainer.save(tmp_path / "file")
        assert len(reported(trainer)) == 1
        await trainer.scale(2)
        await trainer.save(tmp_path / "file")
        assert len(reported(trainer)) == 1


@cluster(2)
async def test_it_is_said_at_a_join_without_a_checkpoint(c, s, a, b):
    arguments = classes(optimizer=scheduling, replicas=1)
    async with ta.Trainer(c, **arguments) as trainer:
        await trainer.scale(2)
        await trainer.drain()
        assert len(reported(trainer)) == 1


@cluster(1)
async def test_it_is_said_of_the_checkpoint_at_the_end(c, s, a, tmp_path):
    arguments = classes(optimizer=scheduling, checkpoint_to=tmp_path)
    async with ta.Trainer(c, **arguments) as trainer:
        await train_all(trainer, class_data(5))
    assert len(reported(trainer)) == 1


@cluster(1)
async def test_it_is_said_where_a_run_goes_on(c, s, a, tmp_path):
    async with ta.Trainer(c, **classes(optimizer=scheduling)) as trainer:
        await train_all(trainer, class_data(5))
        await trainer.save(tmp_path / "file")
    arguments = classes(optimizer=scheduling)
    async with ta.Trainer.restore(tmp_path / "file", c, **arguments) as trainer:
        await trainer.train(*class_data(1)[0])
        assert len(reported(trainer)) == 1


@cluster(2)
async def test_nothing_is_said_of_hooks_that_keep_nothing(c, s, a, b, tmp_path):
    async with ta.Trainer(c, **classes(optimizer=bounded, replicas=1)) as trainer:
        await train_all(trainer, class_data(5))
        await trainer.save(tmp_path / "file")
        await trainer.scale(2)
        await trainer.drain()
        assert not reported(trainer)


@cluster(2)
async def test_a_function_cannot_give_one_replica_hooks_that_others_lack(c, s, a, b):
    def attach(model, optimizers):
        optimizers[0].register_step_pre_hook(lambda *_: None)

    def remove(model, optimizers):
        optimizers[0]._optimizer_step_post_hooks.clear()

    async with ta.Trainer(c, **classes(optimizer=bounded)) as trainer:
        for change in (attach, remove):
            with pytest.raises(OptimizerError, match="hooks"):
                await trainer.apply(change)
        replicas = [
            w.state.actors[h.key]
            for h in trainer.session.replicas.handles
            for w in (a, b)
            if h.key in w.state.actors
        ]
        for replica in replicas:
            (optimizer,) = replica.learner.optimizers
            assert not optimizer._optimizer_step_pre_hooks
            assert len(optimizer._optimizer_step_post_hooks) == 1
