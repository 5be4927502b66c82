"""The cluster grows when the stream lags, and shrinks when it idles."""

from __future__ import annotations

import time
from typing import Any

import dask
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster, gen_test
from helpers import Linear, expected_weight, feed, linear, linear_data, until

import tensair_dask as ta
from tensair_dask.coordinator.membership.autoscale import Demand
from tensair_dask.errors import ConfigurationError


def demand(**overrides: Any) -> Demand:
    arguments = {"least": 1, "most": 8, "target": 1.0, "patience": 10.0}
    return Demand(**{**arguments, **overrides})


def test_one_look_at_a_lag_is_not_enough():
    wanted = demand()
    assert wanted.count(2, lag=1.5, busy=1.0, now=0) == 2
    assert wanted.count(2, lag=1.5, busy=1.0, now=1) == 3


def test_the_larger_the_lag_the_more_but_twice_as_many_at_most():
    wanted = demand()
    for lag, count in ((1.1, 4), (1.6, 5), (9.0, 6)):
        wanted.count(3, lag=lag, busy=1.0, now=0)
        assert wanted.count(3, lag=lag, busy=1.0, now=0) == count


def test_bounds_are_kept():
    wanted = demand(most=4, least=2)
    wanted.count(3, lag=9, busy=1.0, now=0)
    assert wanted.count(3, lag=9, busy=1.0, now=0) == 4
    assert wanted.count(1, lag=0, busy=0.0, now=0) == 2


def test_one_goes_when_the_others_have_been_able_to_do_its_work_for_long():
    wanted = demand()
    assert wanted.count(4, lag=0.1, busy=0.4, now=0) == 4
    assert wanted.count(4, lag=0.1, busy=0.4, now=9) == 4
    assert wanted.count(4, lag=0.1, busy=0.4, now=10) == 3
    # From then on it is looked anew.
    assert wanted.count(3, lag=0.1, busy=0.1, now=11) == 3


@pytest.mark.parametrize(
    "interruption", [{"busy": 0.9, "lag": 0.1}, {"lag": 0.5, "busy": 0.1}]
)
def test_none_goes_while_they_are_busy_or_the_stream_waits(interruption):
    wanted = demand()
    assert wanted.count(4, lag=0.1, busy=0.4, now=0) == 4
    assert wanted.count(4, now=9, **interruption) == 4
    assert wanted.count(4, lag=0.1, busy=0.4, now=10) == 4


class Slow(Linear):
    """Takes ten milliseconds a step."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(0.01)
        return super().forward(x)


@gen_test(timeout=60)
async def test_a_cluster_follows_the_stream_and_nothing_is_lost():
    settings = {
        "tensair.replicas.adapt": "50ms",
        "tensair.replicas.idle": "300ms",
        "tensair.replicas.watch": "20ms",
    }
    data = linear_data(400)
    with dask.config.set(settings):
        async with (
            LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                processes=False,
                asynchronous=True,
                dashboard_address=None,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
            ta.Trainer(client, **linear(model=Slow)) as trainer,
        ):
            await trainer.adapt(minimum=1, maximum=3, target_lag="200ms")
            reports = feed(trainer, data)
            await until(lambda: len(trainer.session.replicas.alive()) == 3)
            await until(lambda: len(reports) == 400)
            await until(lambda: len(cluster.workers) == 1)
            assert len(trainer.session.replicas.alive()) == 1
            await trainer.drain()
            state = await trainer.state_dict()
            assert torch.allclose(
                state["weight"].double(), expected_weight(data), atol=2e-4
            )
            assert trainer.session.dispatcher.relearned == 0
            kinds = trainer.events["kind"].tolist()
            assert kinds.count("joined") >= 2
            assert kinds.count("left") >= 2
            assert "lost" not in kinds


class Stubborn:
    """A cluster that fails when it is scaled first."""

    def __init__(self) -> None:
        self.asked = 0

    def scale(self, count: int) -> None:
        self.asked += 1
        if self.asked == 1:
            raise RuntimeError("the batch system is busy")


@gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 1)],
    timeout=60,
    config={"tensair.replicas.adapt": "5ms"},
)
async def test_a_lag_or_a_cluster_that_raises_is_reported_and_asked_again(c, s, a):
    looks: list[int] = []

    def lag() -> float:
        looks.append(len(looks))
        if looks[-1] in (2, 3):
            raise ValueError("the broker does not answer")
        return 0.0 if looks[-1] < 6 else 9.0

    cluster = Stubborn()
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        await trainer.adapt(1, 2, "1s", lag=lag, cluster=cluster)
        await until(lambda: cluster.asked > 1)
        texts = [text for text in trainer.events["text"] if "not scaled" in text]
        assert texts == [
            "not scaled, RuntimeError: the batch system is busy",
            "not scaled, ValueError: the broker does not answer",
        ]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_without_a_cluster_it_says_what_to_give(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(ConfigurationError, match="cluster="):
            await trainer.adapt()
        with pytest.raises(ConfigurationError, match="above 0"):
            await trainer.adapt(target_lag=0)
        with pytest.raises(ConfigurationError, match="pair"):
            await trainer.adapt(minimum=3, maximum=2)
