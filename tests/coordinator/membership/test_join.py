"""Replicas join while the others learn, and miss nothing."""

from __future__ import annotations

import functools

import pytest
import torch
from distributed import Worker
from helpers import class_data, classes, feed, linear, linear_data, spread, until
from lab import (
    SILENT,
    assert_learned_once,
    cluster,
    cut_off,
    exchange_of,
    handle_on,
    not_on,
    refusals,
)

import tensair_dask as ta
from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.exchange.wire import unpack
from tensair_dask.replica.placement import ReplicaCount


@cluster(1)
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_a_new_worker_gets_a_replica_that_misses_nothing(c, s, a, share):
    data = linear_data(900)
    async with ta.Trainer(c, **linear(share=share)) as trainer:
        reports = feed(trainer, data[:400])
        await until(lambda: len(reports) > 50)
        async with Worker(s.address, nthreads=1) as b:
            await until(lambda: len(trainer.session.replicas.alive()) == 2)
            feed(trainer, data[400:], reports)
            await trainer.drain()
            assert {info.address for info in trainer.replicas} == {a.address, b.address}
            assert all(info.samples > 0 for info in trainer.replicas)
            assert {info.version for info in trainer.replicas} == {900}
            assert "joined" in set(trainer.events["kind"])
            await assert_learned_once(trainer, data)


@cluster(2, config=SILENT)
@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("alone", [0, 40])
async def test_a_joining_replica_hears_nothing_of_messages_without_a_receiver(
    c, s, a, b, share, compression, alone
):
    data = linear_data(120)
    arguments = linear(replicas=2, share=share, compression=compression)
    async with ta.Trainer(c, **arguments) as trainer:
        exchange = exchange_of(trainer, a)
        exchange.due = lambda busy: None
        reports = feed(trainer, data[:40])
        await until(lambda: len(reports) == 40)
        # It has said nothing yet; and now the only one who could hear it is lost.
        cut_off(trainer, b)
        await trainer.scale(1)
        await until(lambda: not exchange.peers)
        feed(trainer, data[40 : 40 + alone], reports)
        await until(lambda: len(reports) == 40 + alone)
        await trainer.scale(2)
        del exchange.due
        feed(trainer, data[40 + alone :], reports)
        await trainer.drain()
        assert await refusals(trainer) == 0
        if compression == "none":  # else what rounding left at the lost one is lost
            await assert_learned_once(trainer, data)
        assert spread(await trainer.state_dicts()) < 1e-5


@cluster(3)
async def test_a_joining_replica_hears_nothing_of_one_that_was_lost_before(
    c, s, *workers
):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        feed(trainer, data)
        await trainer.drain()
        zombie = trainer.session.replicas.handles[1]
        address = zombie.place.address
        worker = next(each for each in workers if each.address == address)
        replica = worker.state.actors[zombie.key]
        trainer.session.dispatcher.lose(zombie.lane, OSError("the network was cut"))
        await until(lambda: len(trainer.session.replicas.alive()) == 2)
        (pair,) = linear_data(1, seed=7)
        await replica.learn(Block.join(trainer.run_id, [MiniBatch.of(*pair)]))
        await replica.flush(10)
        await trainer.drain()
        assert await refusals(trainer) == 2
        await assert_learned_once(trainer, data)


@cluster(6)
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_several_that_join_at_once_miss_nothing(c, s, *workers, share):
    data = linear_data(600)
    async with ta.Trainer(c, **linear(replicas=1, share=share)) as trainer:
        reports = feed(trainer, data[:300])
        await until(lambda: len(reports) > 50)
        await trainer.scale(6)
        feed(trainer, data[300:], reports)
        await trainer.drain()
        assert {info.version for info in trainer.replicas} == {600}
        await assert_learned_once(trainer, data)
        replicas = [each for w in workers for each in w.state.actors.values()]
        assert [replica._kept for replica in replicas] == [None] * 6


@cluster(2)
async def test_what_a_new_replica_keeps_for_others_stays_as_it_was(c, s, a, b):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    arguments = classes(optimizer=adam, share="update", replicas=2)
    async with ta.Trainer(c, **arguments) as trainer:
        feed(trainer, class_data(20))
        await trainer.drain()
        source = b.state.actors[handle_on(trainer, b).key]
        taker = a.state.actors[handle_on(trainer, a).key]
        await source.keep()
        await taker.adopt(handle_on(trainer, b).peer, True, True)
        feed(trainer, class_data(20))
        await trainer.drain()
        for theirs, own in zip(
            _tensors(unpack(await source.kept())),
            _tensors(unpack(await taker.kept())),
            strict=True,
        ):
            assert torch.equal(theirs, own)


def _tensors(tree):
    if isinstance(tree, torch.Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = list(tree.values())
    if isinstance(tree, (list, tuple)):
        return [each for part in tree for each in _tensors(part)]
    return []


@cluster(2)
async def test_optimizer_state_and_buffers_come_along(c, s, a, b):
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    arguments = classes(optimizer=adam, share="update", replicas=1)
    async with ta.Trainer(c, **arguments) as trainer:
        feed(trainer, class_data(50))
        await trainer.drain()
        await trainer.scale(2)
        one, two = (
            w.state.actors[h.key].learner.optimizers[0].state_dict()["state"]
            for h in trainer.session.replicas.handles
            for w in (a, b)
            if w.address == h.place.address
        )
        for key, state in one.items():
            assert torch.equal(state["exp_avg"], two[key]["exp_avg"])
            assert state["step"] == two[key]["step"] == 50
        assert spread(await trainer.state_dicts()) < 1e-6


@cluster(2)
async def test_a_joining_replica_that_cannot_be_built_disturbs_nobody(c, s, a, b):
    data = linear_data(100)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (handle,) = trainer.session.replicas.handles
        other = b if handle.place.address == a.address else a
        trainer.session.starter.recipe.model = functools.partial(not_on, other.address)
        trainer.session.membership.wanted = ReplicaCount.of(2)
        await until(lambda: other.address in trainer.session.membership.workers.avoided)
        feed(trainer, data)
        await trainer.drain()
        assert len(trainer.session.replicas.alive()) >= 1
        await assert_learned_once(trainer, data)
