"""The number of replicas stays as requested while workers come and go."""

from __future__ import annotations

import functools

import pytest
from distributed import Worker
from helpers import feed, linear, linear_data, until
from lab import addresses, assert_learned_once, cluster, cut_off, not_on

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError, TensairTimeoutError

QUICK = {"tensair.replicas.watch": "20ms", "tensair.replicas.patience": "0s"}


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
        await until(lambda: len(trainer.session.replicas.alive()) == 2)
        feed(trainer, data[300:], reports)
        await trainer.drain()
        assert len(await trainer.state_dicts()) == 2
        await assert_learned_once(trainer, data)


@cluster(1, config=QUICK)
async def test_replicas_that_share_a_worker_move_to_a_new_worker(c, s, a):
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
        assert len(trainer.session.replicas.alive()) == 1
        feed(trainer, data[300:600], reports)
        await trainer.scale((2, 3))
        assert len(trainer.session.replicas.alive()) == 3
        feed(trainer, data[600:], reports)
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(900))
        assert trainer.session.dispatcher.relearned == 0
        assert list(trainer.events["kind"]).count("left") == 2
        # As many predictions may be under way as three replicas take.
        assert (
            trainer.session.inference._room._value
            == trainer.session.inference.most
            == 3 * 16
        )
        await assert_learned_once(trainer, data)


@cluster(3)
async def test_none_is_started_on_a_worker_that_is_about_to_go(c, s, *workers):
    async with ta.Trainer(c, **linear()) as trainer:
        reports = feed(trainer, linear_data(60))
        await until(lambda: len(reports) == 60)
        address = workers[0].address
        assert list(await c.retire_workers([address])) == [address]
        assert trainer.session.membership.count == 2
        await trainer.session.membership.fit(patience=0)
        assert [each.place.address for each in trainer.session.replicas.handles].count(
            address
        ) == 1


@cluster(1)
async def test_a_scale_that_cannot_be_had_says_why(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(ConfigurationError, match="'all'"):
            await trainer.scale("many")
        trainer.session.starter.recipe.model = functools.partial(not_on, a.address)
        with pytest.raises(TensairTimeoutError, match="workers can hold them"):
            await trainer.scale(2, timeout=0.5)
