"""There are as many replicas as are wished for, while workers come and go."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import expected_weight, feed, linear, linear_data, until

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError, TensairTimeoutError

EXACT = {"atol": 2e-4, "rtol": 0}
# Nothing leaves by itself: what is shared, and what is not, is up to the test.
SILENT = {"tensair.exchange.staleness": "1h", "tensair.replicas.watch": "20ms"}
QUICK = {"tensair.replicas.watch": "20ms", "tensair.replicas.patience": "0s"}


def cluster(workers: int, **overrides: Any) -> Any:
    arguments = {
        "client": True,
        "nthreads": [("127.0.0.1", 1)] * workers,
        "timeout": 60,
        "config": {"tensair.replicas.watch": "20ms"},
    }
    return gen_cluster(**{**arguments, **overrides})


def handle_on(trainer: Any, worker: Worker) -> Any:
    (handle,) = (
        each
        for each in trainer._handles
        if each.place.address == worker.address and each.lane.alive
    )
    return handle


def addresses(trainer: Any) -> list[str]:
    return [handle.place.address for handle in trainer._calls.alive()]


def exchange_of(trainer: Any, worker: Worker) -> Any:
    return worker.state.actors[handle_on(trainer, worker).key].exchange


def cut_off(trainer: Any, worker: Worker) -> None:
    """Lose a replica as SIGKILL would: nothing that it has leaves it any more."""
    for link in exchange_of(trainer, worker)._pub._core.links.values():
        link.close()
    trainer._dispatcher.lose(handle_on(trainer, worker).lane, OSError("killed"))


async def assert_learned_once(trainer: Any, data: list[Any]) -> None:
    expected = expected_weight(data)
    states = await trainer.state_dicts()
    for state in states.values():
        assert torch.allclose(state["weight"].double(), expected, **EXACT)


async def refusals(trainer: Any) -> int:
    stats = await trainer.exchange_stats()
    return sum(each["refused"] for each in stats.values())


def not_on(forbidden: str) -> Any:
    """A model that cannot be built on this worker."""
    from distributed import get_worker
    from helpers import Linear

    if get_worker().address == forbidden:
        raise MemoryError("no room here")
    return Linear()


# ---------------------------------------------------------------------- by themselves


@cluster(1, config=QUICK)
async def test_a_lost_replica_is_replaced_from_a_peers_model(c, s, a):
    data = linear_data(600)
    async with (
        Worker(s.address, nthreads=1) as b,
        ta.Trainer(c, **linear(replicas=2)) as trainer,
    ):
        reports = feed(trainer, data[:300])
        await until(lambda: len(reports) > 100)
        cut_off(trainer, b)
        # On a worker that is there, since there is no other one.
        await until(lambda: len(trainer._calls.alive()) == 2)
        feed(trainer, data[300:], reports)
        await trainer.drain()
        assert len(await trainer.state_dicts()) == 2
        await assert_learned_once(trainer, data)


@cluster(1, config=QUICK)
async def test_replicas_that_share_a_worker_move_to_one_that_comes(c, s, a):
    data = linear_data(600)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        reports = feed(trainer, data[:200])
        await until(lambda: len(reports) > 50)
        async with Worker(s.address, nthreads=1) as b:
            both = {a.address, b.address}
            await until(lambda: set(addresses(trainer)) == both)
            feed(trainer, data[200:], reports)
            await trainer.drain()
            assert len(await trainer.state_dicts()) == 2
            assert list(trainer.events["kind"]) == ["joined", "left"]
            await assert_learned_once(trainer, data)


# -------------------------------------------------------------------------- by hand


@cluster(3)
async def test_scaling_down_and_up_loses_nothing(c, s, *workers):
    data = linear_data(900)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        reports = feed(trainer, data[:300])
        await trainer.scale(1)
        assert len(trainer._calls.alive()) == 1
        feed(trainer, data[300:600], reports)
        await trainer.scale((2, 3))
        assert len(trainer._calls.alive()) == 3
        feed(trainer, data[600:], reports)
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(900))
        assert trainer._dispatcher.relearned == 0
        assert list(trainer.events["kind"]).count("left") == 2
        # As many predictions may be under way as three replicas take.
        assert trainer._predicting._value == trainer._most_predictions == 3 * 16
        await assert_learned_once(trainer, data)


@cluster(3)
async def test_none_is_started_on_a_worker_that_is_about_to_go(c, s, *workers):
    async with ta.Trainer(c, **linear()) as trainer:
        reports = feed(trainer, linear_data(60))
        await until(lambda: len(reports) == 60)
        address = workers[0].address
        assert list(await c.retire_workers([address])) == [address]
        assert trainer._membership.count == 2
        await trainer._membership.fit(patience=0)
        assert [each.place.address for each in trainer._handles].count(address) == 1


@cluster(1)
async def test_a_scale_that_cannot_be_had_says_why(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(ConfigurationError, match="'all'"):
            await trainer.scale("many")
        trainer._starter._recipe.model = functools.partial(not_on, a.address)
        with pytest.raises(TensairTimeoutError, match="workers can hold them"):
            await trainer.scale(2, timeout=0.5)
