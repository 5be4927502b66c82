"""Steps that are too large for gradients as stale as those of the peers are noticed."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import dask
import numpy as np
import pytest
import torch
from helpers import train_all, until
from lab import cluster
from learners import SGD, learner
from torch import nn

import tensair_dask as ta
from tensair_dask.replica.stability import NEEDED, Stability, stable_product


def settles(replicas: int, product: float) -> bool:
    """Whether a slope is forgotten, with gradients that come late, one after the other.

    Each round a replica takes a part of the slope by its own gradient, and as much for
    each of the others by those that are so many rounds old that curvature times
    staleness is `product`.
    """
    part = 0.02 / replicas
    delay = round(product / part / replicas)
    place = [1.0] * (delay + 1)
    for _ in range(60 * delay):
        own, others = place[-1], place[-1 - delay]
        place.append(own - part * own - part * (replicas - 1) * others)
    return max(map(abs, place[-4 * delay :])) < 0.5


@pytest.mark.parametrize("replicas", [3, 4, 8, 100])
def test_the_bound_is_half_of_what_settles_without_bursts(replicas):
    bound = stable_product(replicas)
    assert settles(replicas, 1.9 * bound)
    assert not settles(replicas, 2.1 * bound)


def test_two_replicas_bear_any_staleness():
    assert stable_product(1) == stable_product(2) == math.inf
    assert settles(2, 20.0)


def line() -> nn.Module:
    return nn.Linear(1, 1, bias=False)


def half_square(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return 0.5 * (prediction - y).square().mean()


def looked(subject: Any, x: torch.Tensor, y: torch.Tensor, looks: int) -> Stability:
    """Let it look at so many steps."""
    stability = Stability(subject, 1)
    for _ in range(looks):
        before = stability.before_step()
        subject.learn(x, y, len(x))
        stability.look(before, x, y)
    return stability


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.2])
def test_the_curvature_of_a_quadratic_is_rate_times_second_derivative(rate):
    optimizer = functools.partial(torch.optim.SGD, lr=rate)
    subject = learner(line, loss=half_square, optimizer=optimizer)
    x = torch.full((4, 1), 3.0)
    stability = looked(subject, x, torch.zeros(4, 1), NEEDED)
    assert stability.curvature == pytest.approx(9 * rate, rel=1e-4)


def test_a_few_looks_decide_nothing():
    subject = learner(line, loss=half_square)
    x = torch.full((4, 1), 3.0)
    stability = looked(subject, x, torch.zeros(4, 1), NEEDED - 1)
    assert stability.curvature is None
    stability.judge(8, 1e9)
    assert not subject.notices.take()


def deep() -> nn.Module:
    return nn.Sequential(
        nn.Linear(3, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 2)
    )


@pytest.mark.parametrize("clipping", [None, ("norm", 0.1)])
@pytest.mark.parametrize("optimizer", [SGD, torch.optim.Adam])
@pytest.mark.parametrize("share", ["gradient", "update"])
def test_a_look_changes_nothing(share, optimizer, clipping):
    from tensair_dask.replica.clipping import as_clipping

    subject = learner(
        deep, optimizer=optimizer, share=share, clipping=as_clipping(clipping)
    )
    stability = Stability(subject, 1)
    x, y = torch.rand(8, 3), torch.randint(0, 2, (8,))
    for _ in range(3):
        before = stability.before_step()
        subject.learn(x, y, len(x))
        state = copy.deepcopy(subject.model.state_dict())
        memory = copy.deepcopy(subject.optimizers[0].state_dict())
        numbers = torch.get_rng_state()
        stability.look(before, x, y)
        torch.testing.assert_close(subject.model.state_dict(), state, rtol=0, atol=0)
        torch.testing.assert_close(
            subject.optimizers[0].state_dict()["state"], memory["state"], rtol=0, atol=0
        )
        assert torch.equal(torch.get_rng_state(), numbers)
        assert all(each.grad is None for each in subject.model.parameters())
        assert subject.model.training
    assert len(stability._looks) == 3


class Untwice(nn.Module):
    """Raises when it is called in evaluation mode, as some do."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.error = error

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.training:
            raise self.error
        return self.layer(x)


def assert_gives_up(stability: Stability, subject: Any, why: str) -> None:
    assert not any(stability.is_due(8) for _ in range(100))
    (text,) = subject.notices.take().values()
    assert "Nobody looks whether" in text
    assert why in text
    assert "stability-check=0" in text


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt("no")])
def test_a_model_that_cannot_be_looked_at_is_left_alone_and_that_is_said(error):
    subject = learner(functools.partial(Untwice, error))
    x, y = torch.rand(8, 3), torch.randint(0, 2, (8,))
    subject.notices.take()
    stability = looked(subject, x, y, 1)
    assert_gives_up(stability, subject, type(error).__name__)


def test_where_there_is_no_memory_for_a_look_the_step_is_made_all_the_same(monkeypatch):
    subject = learner()
    stability = Stability(subject, 1)

    def full() -> Any:
        raise MemoryError("no room here")

    monkeypatch.setattr(stability, "_copies", full)
    assert stability.before_step() is None
    assert_gives_up(stability, subject, "no room here")


def test_tables_are_not_copied_and_that_is_said():
    def model() -> nn.Module:
        return nn.Sequential(nn.Embedding(10, 2, sparse=True), nn.Linear(2, 2))

    subject = learner(model)
    subject.notices.take()
    stability = Stability(subject, 1)
    assert not stability.is_due(2)
    assert not subject.notices.take()
    assert_gives_up(stability, subject, "sparse table")


@pytest.mark.parametrize(("replicas", "every"), [(1, 1), (2, 1), (8, 0)])
def test_no_look_where_none_is_needed(replicas, every):
    stability = Stability(learner(), every)
    assert not any(stability.is_due(replicas) for _ in range(100))


def test_the_first_looks_come_soon_and_later_ones_now_and_then():
    subject = learner(line, loss=half_square)
    stability = Stability(subject, 100)
    x = torch.full((4, 1), 3.0)
    at = []
    for step in range(400):
        if stability.is_due(3):
            at.append(step)
            before = stability.before_step()
            subject.learn(x, torch.zeros(4, 1), 4)
            stability.look(before, x, torch.zeros(4, 1))
    assert at == [*range(9, 90, 10), 189, 289, 389]


def test_the_warning_says_what_to_set_and_comes_once():
    optimizer = functools.partial(torch.optim.SGD, lr=0.1)
    subject = learner(line, loss=half_square, optimizer=optimizer)
    x = torch.full((4, 1), 1.0)
    stability = looked(subject, x, torch.zeros(4, 1), NEEDED)
    stability.judge(4, 13.0)  # 0.1 times 13 is below 1.35
    assert not subject.notices.take()
    stability.judge(4, 54.0)
    (text,) = subject.notices.take().values()
    assert "8 times smaller (to 0.013 in place of 0.1)" in text
    assert not any(stability.is_due(4) for _ in range(100))


@cluster(4)
async def test_users_of_four_replicas_are_warned(c, s, *workers):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(16, 1)).astype("float32")
    data = [(x, 2 * x)] * 400
    with dask.config.set({"tensair.exchange.stability-check": 10}):
        trainer = ta.Trainer(
            c,
            model=line,
            loss=half_square,
            optimizer=functools.partial(torch.optim.SGD, lr=0.9),
            staleness="50ms",
        )
        async with trainer:
            await train_all(trainer, data)
            await until(
                lambda: any("too stale" in each for each in trainer.events.text)
            )
