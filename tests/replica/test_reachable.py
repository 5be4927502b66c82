"""State of a model outside of its attributes, and its generators, are reported."""

from __future__ import annotations

import functools
import itertools
import random
from typing import Any

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes, train_all
from learners import data, learner
from torch import nn

import tensair_dask as ta

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)

STEPS = 0
SEEN: list[int] = []
LIMITS = {"low": 0.0, "high": 1.0}
RANDOM = np.random.default_rng(3)


class Settings:
    step = 0
    rate = 0.5


class Base(nn.Module):
    total = 0

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.numbers = itertools.count(1)

    def forward(self, x):
        self.count(x)
        return self.layer(x)

    def count(self, x):
        """Count nothing."""


class Global(Base):
    def count(self, x):
        global STEPS
        STEPS += 1


class GlobalList(Base):
    def count(self, x):
        SEEN.append(len(SEEN))


def bump():
    global STEPS
    STEPS += 1


class Helper(Base):
    def count(self, x):
        bump()


class ClassAttribute(Base):
    def count(self, x):
        Base.total += 1


class OwnClassAttribute(Base):
    @classmethod
    def count(cls, x):
        cls.total += 1


class OtherClass(Base):
    def count(self, x):
        Settings.step += 1


class Default(Base):
    def count(self, x, seen={"n": 0}):  # noqa: B006
        seen["n"] += 1


class Iterator(Base):
    def count(self, x):
        next(self.numbers)


class Inner(nn.Module):
    """Holds the counting module within."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(Default(), nn.Identity())

    def forward(self, x):
        return self.inner(x)


class Calling(Base):
    """Calls a function that it holds, which counts in a closure."""

    def __init__(self) -> None:
        super().__init__()
        count = 0

        def counting(x):
            nonlocal count
            count += 1
            return x

        self.call = counting

    def count(self, x):
        self.call(x)


def hooked() -> nn.Module:
    model, calls = nn.Linear(3, 2), []
    model.register_forward_hook(lambda *_: calls.append(1))
    return model


class Reading(Base):
    """Reads globals, classes and defaults, and changes none."""

    def count(self, x, scale=(1.0, 2.0)):
        return STEPS * LIMITS["high"] * Settings.rate * scale[0] * Base.total


def said(model: Any, key: str = "habits") -> str | None:
    ours = learner(model)
    for _ in range(4):
        ours.learn(*data(), 8)
    return ours.notices.take().get(key)


@pytest.mark.parametrize(
    ("model", "named"),
    [
        (Global, "'STEPS'"),
        (GlobalList, "'SEEN'"),
        (Helper, "STEPS'"),
        (ClassAttribute, "'Base.total'"),
        (OwnClassAttribute, "'OwnClassAttribute.total'"),
        (OtherClass, "'Settings.step'"),
        (Default, "'default'"),
        (Iterator, "'numbers'"),
        (Inner, "'default'"),
        (Calling, "'count'"),
        (hooked, "'calls'"),
    ],
)
def test_what_forward_counts_is_said_wherever_it_is(model, named):
    text = said(model)
    assert named in text
    assert "register_buffer" in text


@pytest.mark.parametrize("model", [Base, Reading, lambda: nn.Linear(3, 2)])
def test_nothing_is_said_of_what_stays(model):
    assert said(model) is None
    assert said(model, "generators") is None


class Drawing(Base):
    def __init__(self, generator: Any, draw: Any) -> None:
        super().__init__()
        self.generator, self.draw = generator, draw

    def count(self, x):
        self.draw(self.generator)


class DrawingGlobally(Base):
    def count(self, x):
        RANDOM.normal()


@pytest.mark.parametrize(
    ("make", "draw"),
    [
        (torch.Generator, lambda each: torch.rand(2, generator=each)),
        (np.random.default_rng, lambda each: each.normal()),
        (np.random.RandomState, lambda each: each.rand()),
        (random.Random, lambda each: each.random()),
        (lambda: [np.random.default_rng(1)], lambda each: each[0].normal()),
    ],
)
def test_generators_that_are_drawn_from_are_said(make, draw):
    text = said(lambda: Drawing(make(), draw), "generators")
    assert "'generator'" in text
    assert "numpy.random" in text


def test_a_generator_that_lies_in_a_module_is_reported_too():
    assert "'RANDOM'" in said(DrawingGlobally, "generators")


def test_one_that_only_the_factory_draws_from_is_not():
    def build():
        model = Drawing(np.random.default_rng(2), lambda _: None)
        model.generator.normal()
        return model

    assert said(build, "generators") is None


class Noisy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, CLASSES)
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x):
        Settings.step += 1
        return self.layer(x + torch.randn(x.shape, generator=self.generator))


@two()
async def test_a_trainer_says_both_once(c, s, *workers):
    async with ta.Trainer(c, **classes(model=Noisy)) as trainer:
        await train_all(trainer, class_data(40))
        texts = [*trainer.events.text]
        assert (
            sum("draws random numbers from 'generator'" in each for each in texts) == 1
        )
        assert sum("changes 'Settings.step'" in each for each in texts) == 1
