"""Attributes of an optimizer are saved, and copied to replicas that join."""

from __future__ import annotations

import functools
import itertools
import tempfile
from collections import deque
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, mlp, spread, train_all
from learners import data, learner
from torch import nn

import tensair_dask as ta
from tensair_dask.exchange.wire import pack, unpack
from tensair_dask.replica.optimizer_memory import OptimizerMemory

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


class Base(torch.optim.Optimizer):
    """Steps by what `direction` makes of a gradient."""

    def __init__(self, parameters: Any, lr: float = 0.05) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                p.sub_(group["lr"] * self.direction(p, p.grad))


class Moments(Base):
    """Keeps moments by parameters, and counts."""

    def __init__(self, parameters: Any, lr: float = 0.05, decay: float = 0.9) -> None:
        super().__init__(parameters, lr)
        self.t, self.m, self.decay = 0, {}, decay

    def step(self, closure: Any = None) -> None:
        self.t += 1
        super().step()

    def direction(self, p: Any, gradient: Any) -> Any:
        m = self.m.setdefault(p, torch.zeros_like(p))
        m.mul_(self.decay).add_(gradient, alpha=0.1)
        return m / (1 - self.decay**self.t)


class Recent(Base):
    """Steps by the mean of the gradients of late, and less each time."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        held = [p for group in self.param_groups for p in group["params"]]
        self.queues = [deque([torch.zeros_like(p)], maxlen=3) for p in held]
        self.places = {id(p): at for at, p in enumerate(held)}
        self.scale = np.ones(1)

    def step(self, closure: Any = None) -> None:
        self.scale *= 0.9
        super().step()

    def direction(self, p: Any, gradient: Any) -> Any:
        [queue] = [
            self.queues[at]
            for at, each in enumerate(self.param_groups[0]["params"])
            if each is p
        ]
        queue.append(gradient.clone())
        return float(self.scale[0]) * sum(queue) / len(queue)


class Counter:
    def __init__(self) -> None:
        self.steps, self.history = 0, []


class Within(torch.optim.Optimizer):
    """Lets another optimizer step, whose state is its own, and looks back."""

    def __init__(self, parameters: Any) -> None:
        parameters = list(parameters)
        super().__init__(parameters, {})
        self.inner = torch.optim.SGD(parameters, lr=0.05, momentum=0.9)
        self.slow = [p.detach().clone() for p in parameters]
        self.counter = Counter()

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        self.inner.step()
        self.counter.steps += 1
        self.counter.history.append(self.counter.steps)
        if self.counter.steps % 3 == 0:
            for p, slow in zip(self.param_groups[0]["params"], self.slow, strict=True):
                slow.add_(p - slow, alpha=0.5)
                p.copy_(slow)


class Averaging(torch.optim.Adam):
    """One of torch's, with an average that appears at the first step."""

    def step(self, closure: Any = None) -> Any:
        super().step()
        held = [p.detach() for group in self.param_groups for p in group["params"]]
        if not hasattr(self, "average"):
            self.average = [p.clone() for p in held]
        for mean, p in zip(self.average, held, strict=True):
            mean.lerp_(p, 0.5)
            p.lerp_(mean, 0.1)


class ById(Base):
    """Keeps squares by the ids of parameters, which no other process has."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self.squares: dict[int, torch.Tensor] = {}

    def direction(self, p: Any, gradient: Any) -> Any:
        square = self.squares.setdefault(id(p), torch.zeros_like(p))
        square.add_(gradient**2)
        return gradient / (square.sqrt() + 1e-8)


KINDS = [Moments, Recent, Within, Averaging, ById]


def weights(ours: Any) -> list[torch.Tensor]:
    return [each.detach().clone() for each in ours.model.parameters()]


def learned(ours: Any, steps: int) -> None:
    x, y = data()
    for number in range(steps):
        ours.learn(x + number, y, len(x))


def taken_over(kind: Any, snapshot: Any) -> Any:
    other = learner(optimizer=kind, share="update")
    snapshot = unpack(pack(snapshot))  # as it travels
    other.load(
        snapshot["model"],
        snapshot["optimizers"],
        attributes=snapshot["attributes"],
    )
    return other


@pytest.mark.parametrize("kind", KINDS)
def test_a_replica_that_takes_it_over_goes_on_as_the_other_does(kind):
    ours = learner(optimizer=kind, share="update")
    learned(ours, 7)
    other = taken_over(kind, ours.snapshot())
    learned(ours, 7)
    learned(other, 7)
    torch.testing.assert_close(weights(other), weights(ours), rtol=0, atol=0)
    assert not {**ours.notices.take(), **other.notices.take()}.keys() & {
        "optimizer memory",
        "optimizer memory here",
    }


@pytest.mark.parametrize("kind", KINDS)
def test_a_copy_is_no_part_of_what_it_was_taken_of(kind):
    ours = learner(optimizer=kind, share="update")
    learned(ours, 4)
    snapshot = ours.snapshot()
    learned(ours, 4)
    one = taken_over(kind, snapshot)
    learned(one, 4)
    torch.testing.assert_close(weights(one), weights(ours), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_that_has_stepped_goes_back_to_the_state_it_takes_over(kind):
    ours, other = (learner(optimizer=kind, share="update") for _ in range(2))
    learned(other, 5)
    start = unpack(pack(ours.snapshot()))
    other.load(start["model"], start["optimizers"], attributes=start["attributes"])
    learned(ours, 3)
    learned(other, 3)
    torch.testing.assert_close(weights(other), weights(ours), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_that_is_only_tried_leaves_no_trace(kind):
    ours, other = (learner(optimizer=kind, share="update") for _ in range(2))
    learned(ours, 5)
    learned(other, 5)
    other.try_step()
    learned(ours, 3)
    learned(other, 3)
    torch.testing.assert_close(weights(other), weights(ours), rtol=0, atol=0)


def test_settings_that_no_step_has_changed_are_those_that_were_given():
    ours = learner(optimizer=Moments, share="update")
    learned(ours, 3)
    other = taken_over(functools.partial(Moments, decay=0.5), ours.snapshot())
    [optimizer] = other.optimizers
    assert (optimizer.decay, optimizer.t) == (0.5, 3)


def test_lists_and_tensors_stay_the_same_objects():
    one, other = (Within([nn.Parameter(torch.ones(2))]) for _ in range(2))
    memory = OptimizerMemory(other)
    slow, counter = other.slow[0], other.counter
    one.slow[0] += 1
    one.counter.steps = 4
    assert memory.put(OptimizerMemory(one).take()) == []
    assert other.slow[0] is slow
    assert slow.tolist() == [2, 2]
    assert other.counter is counter


def test_those_of_torch_are_not_looked_at():
    for kind in (torch.optim.Adam, functools.partial(torch.optim.SGD, lr=0.1)):
        memory = OptimizerMemory(kind([nn.Parameter(torch.ones(2))]))
        assert memory.is_empty
        assert memory.take() == {}
        assert memory.left() == []


class Keeping(Base):
    """Keeps what nobody can copy, beside what is no state."""

    def __init__(self, parameters: Any, thing: Any) -> None:
        super().__init__(parameters)
        self.thing = thing
        self.log, self.rule, self.kind = print, (lambda x: x), torch.optim.SGD

    def direction(self, p: Any, gradient: Any) -> Any:
        return gradient


@pytest.mark.parametrize(
    ("thing", "named"),
    [
        (itertools.count(), "thing (count)"),
        (np.random.default_rng(0), "thing (Generator)"),
        (nn.Linear(1, 1), "thing (Linear)"),
        ({"inner": [torch.Generator()]}, "thing (Generator)"),
        (3, None),
        ([torch.zeros(2), {"a": np.ones(1)}], None),
    ],
)
def test_an_attribute_that_cannot_be_copied_is_reported_by_name(thing, named):
    ours = learner(optimizer=functools.partial(Keeping, thing=thing), share="update")
    ours.say_what_is_hidden()
    text = ours.notices.take().get("optimizer memory")
    assert (text is None) if named is None else (named in text)


class Slots(Base):
    """Makes an object for each parameter, when it steps."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters)
        self.slots: dict[Any, Counter] = {}

    def direction(self, p: Any, gradient: Any) -> Any:
        self.slots.setdefault(p, Counter()).steps += 1
        return gradient


def test_objects_that_are_made_in_a_step_are_not_copied_and_that_is_reported():
    ours = learner(optimizer=Slots, share="update")
    learned(ours, 2)
    reported = taken_over(Slots, ours.snapshot()).notices.take()
    assert "slots (Counter)" in reported["optimizer memory here"]


@two()
async def test_a_replica_that_joins_has_the_memory_of_its_peer(c, s, *workers):
    async def counted(trainer: ta.Trainer) -> list[int]:
        handles = trainer.session.replicas.handles
        snapshots = [await handle.call("snapshot") for handle in handles]
        found = [unpack(each)["attributes"][0]["counter"] for each in snapshots]
        return [dict((k[1], v[1]) for k, v in each[2])["steps"] for each in found]

    async with ta.Trainer(c, **classes(optimizer=Within, replicas=1)) as trainer:
        await train_all(trainer, class_data(12))
        await trainer.scale(2)
        assert await counted(trainer) == [12, 12]
        await train_all(trainer, class_data(12))
        assert spread(await trainer.state_dicts()) < 1e-5


@two()
async def test_a_restored_trainer_learns_on_as_one_that_has_not_ended(c, s, *workers):
    batches = class_data(14)
    arguments = classes(optimizer=Moments, replicas=1)
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/saved"
        async with ta.Trainer(c, **arguments) as trainer:
            await train_all(trainer, batches[:7])
            await trainer.save(path)
            await train_all(trainer, batches[7:])
            expected = await trainer.state_dict()
        async with ta.Trainer.restore(path, c, **arguments) as trainer:
            await train_all(trainer, batches[7:])
            got = await trainer.state_dict()
    torch.manual_seed(0)
    assert list(got) == list(mlp().state_dict())
    for name, each in expected.items():
        torch.testing.assert_close(got[name], each, rtol=0, atol=0)
