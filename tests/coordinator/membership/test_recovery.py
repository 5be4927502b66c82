"""What lost replicas had learned survives, or is learned again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from helpers import feed, linear, linear_data, spread, until
from lab import (
    SILENT,
    assert_learned_once,
    cluster,
    cut_off,
    exchange_of,
    handle_on,
)

import tensair_dask as ta
from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.pubsub import faults
from tensair_dask.pubsub.faults import Fault


@cluster(2, config=SILENT)
async def test_what_was_reported_and_not_yet_shared_is_learned_again(c, s, a, b):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        exchange_of(trainer, a).due = lambda busy: None
        reports = feed(trainer, data)
        await until(lambda: len(reports) == len(data))
        (lane,) = (
            h.lane
            for h in trainer.session.replicas.handles
            if h.lane.address == a.address
        )
        held = len(lane.unconfirmed)
        assert held > 0
        cut_off(trainer, a)
        await trainer.drain()
        assert trainer.session.dispatcher.relearned == held
        assert sorted(report.index for report in reports) == list(range(60))
        await assert_learned_once(trainer, data)


@cluster(2, config={**SILENT, "tensair.replicas.watch": "1h"})
async def test_a_drain_waits_for_what_is_learned_again_since_it_began(c, s, a, b):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        exchange_of(trainer, a).due = lambda busy: None
        reports = feed(trainer, data)
        await until(lambda: len(reports) == len(data))
        ask_all = trainer.session.replicas.ask_all

        async def lose_one_first(function: str, *args: Any, **options: Any) -> Any:
            if function == "flush":
                trainer.session.replicas.ask_all = ask_all
                cut_off(trainer, a)
            return await ask_all(function, *args, **options)

        trainer.session.replicas.ask_all = lose_one_first
        await trainer.drain()
        assert not trainer.backlog
        assert trainer.session.dispatcher.relearned > 0
        await assert_learned_once(trainer, data)


@cluster(3)
@pytest.mark.parametrize("seed", range(4))
async def test_every_mini_batch_is_learned_once_whenever_a_replica_is_lost(
    c, s, *workers, seed
):
    data = linear_data(600, seed=seed)
    async with ta.Trainer(c, **linear(replicas=(1, 3))) as trainer:
        reports = feed(trainer, data)
        await until(lambda: len(reports) > 150 * seed)
        cut_off(trainer, workers[seed % 3])
        await until(lambda: len(reports) == len(data))
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(600))
        assert all(report.error is None and report.learned for report in reports)
        await assert_learned_once(trainer, data)


@cluster(3, config={**SILENT, "tensair.exchange.staleness": "5ms"})
async def test_peers_that_have_different_parts_of_a_lost_one_take_over_the_larger(
    c, s, *workers
):
    data = linear_data(300)
    slow = workers[1].address

    def delay(destination: Any) -> float:
        return 0.5 if destination.address == slow else 0.0

    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        with faults.inject(Fault.DELAY, delay):
            reports = feed(trainer, data)
            await until(lambda: len(reports) > 200)
            cut_off(trainer, workers[0])
        await trainer.drain()
        texts = " ".join(trainer.events["text"])
        assert "took over a model that holds more" in texts
        await assert_learned_once(trainer, data)
        assert spread(await trainer.state_dicts()) < 1e-4


@cluster(3)
async def test_two_that_are_lost_at_once_take_nothing_with_them(c, s, *workers):
    data = linear_data(500)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        reports = feed(trainer, data)
        await until(lambda: len(reports) > 100)
        cut_off(trainer, workers[0])
        cut_off(trainer, workers[2])
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(500))
        await assert_learned_once(trainer, data)


@cluster(3)
async def test_a_replica_may_be_lost_while_another_loss_is_looked_into(c, s, *workers):
    data = linear_data(500)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        calls = trainer.session.replicas
        ask_all = calls.ask_all

        async def lose_another(function: str, *args: Any, **kwargs: Any) -> Any:
            if function == "seal":
                calls.ask_all = ask_all
                cut_off(trainer, workers[1])
            return await ask_all(function, *args, **kwargs)

        reports = feed(trainer, data)
        await until(lambda: len(reports) > 100)
        calls.ask_all = lose_another
        cut_off(trainer, workers[0])
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(500))
        await assert_learned_once(trainer, data)


@cluster(2, config=SILENT)
async def test_what_lived_on_and_was_not_reported_is_only_scored(c, s, a, b):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        handle, exchange = handle_on(trainer, a), exchange_of(trainer, a)
        lane = handle.lane
        learn = lane.learn
        shared = []

        async def silent(block: Any) -> Any:
            shared.append(await learn(block))
            await trainer.session.replicas.ask(handle, "flush", 10)
            await asyncio.Event().wait()  # the report never comes

        lane.learn = silent
        reports = feed(trainer, data)
        thread = a.state.actors[handle.key].thread
        await until(lambda: shared)
        while await thread.call(exchange.confirmed) < exchange.taken:
            await asyncio.sleep(0.005)
        await until(lambda: not trainer.session.replicas.under_way[handle.key])
        cut_off(trainer, a)
        await trainer.drain()
        assert trainer.session.dispatcher.survived > 0
        assert sorted(report.index for report in reports) == list(range(40))
        assert all(report.learned for report in reports)
        await assert_learned_once(trainer, data)


@cluster(2)
async def test_a_replica_that_was_only_cut_off_reaches_nobody_any_more(c, s, a, b):
    data = linear_data(50)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        feed(trainer, data)
        await trainer.drain()
        alive, zombie = trainer.session.replicas.handles
        workers = {a.address: a, b.address: b}
        replica = workers[zombie.place.address].state.actors[zombie.key]
        trainer.session.dispatcher.lose(zombie.lane, OSError("the network was cut"))
        await trainer.drain()
        (pair,) = linear_data(1, seed=7)
        await replica.learn(Block.join(trainer.run_id, [MiniBatch.of(*pair)]))
        await replica.flush(10)  # it is told that all is well
        await assert_learned_once(trainer, data)
        assert (await trainer.exchange_stats())[alive.place.address]["refused"] == 1
