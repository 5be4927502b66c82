"""Replicas that are lost, that join and that leave, while the others learn."""

from __future__ import annotations

import asyncio
import functools
from typing import Any

import pytest
import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import (
    class_data,
    classes,
    expected_weight,
    feed,
    linear,
    linear_data,
    spread,
    until,
)

import tensair_dask as ta
from tensair_dask.batches import Block, MiniBatch
from tensair_dask.errors import (
    ConfigurationError,
    NoReplicasError,
    TensairTimeoutError,
)
from tensair_dask.placement import Wish
from tensair_dask.pubsub import faults
from tensair_dask.pubsub.faults import Fault
from tensair_dask.replica import Replica

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


# ---------------------------------------------------------------------------- lost


@cluster(2, config=SILENT)
async def test_what_was_reported_and_not_yet_shared_is_learned_again(c, s, a, b):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        exchange_of(trainer, a).publish = lambda: None
        reports = feed(trainer, data)
        await until(lambda: len(reports) == len(data))
        (lane,) = (h.lane for h in trainer._handles if h.lane.address == a.address)
        held = len(lane.unconfirmed)
        assert held > 0
        cut_off(trainer, a)
        await trainer.drain()
        assert trainer._dispatcher.relearned == held
        assert sorted(report.index for report in reports) == list(range(60))
        await assert_learned_once(trainer, data)


@cluster(2, config={**SILENT, "tensair.replicas.watch": "1h"})
async def test_a_drain_waits_for_what_is_learned_again_since_it_began(c, s, a, b):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        exchange_of(trainer, a).publish = lambda: None
        reports = feed(trainer, data)
        await until(lambda: len(reports) == len(data))
        ask_all = trainer._calls.ask_all

        async def lose_one_first(function: str, *args: Any, **options: Any) -> Any:
            if function == "flush":
                trainer._calls.ask_all = ask_all
                cut_off(trainer, a)
            return await ask_all(function, *args, **options)

        trainer._calls.ask_all = lose_one_first
        await trainer.drain()
        assert not trainer.backlog
        assert trainer._dispatcher.relearned > 0
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
async def test_one_that_is_lost_while_another_loss_is_looked_into(c, s, *workers):
    data = linear_data(500)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        calls = trainer._calls
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
            await trainer._calls.ask(handle, "flush", 10)
            await asyncio.Event().wait()  # the report never comes

        lane.learn = silent
        reports = feed(trainer, data)
        await until(lambda: shared and exchange.taken == exchange.confirmed())
        await until(lambda: not trainer._calls.under_way[handle.key])
        cut_off(trainer, a)
        await trainer.drain()
        assert trainer._dispatcher.lived_on > 0
        assert sorted(report.index for report in reports) == list(range(40))
        assert all(report.learned for report in reports)
        await assert_learned_once(trainer, data)


@cluster(2)
async def test_a_replica_that_was_only_cut_off_reaches_nobody_any_more(c, s, a, b):
    data = linear_data(50)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        feed(trainer, data)
        await trainer.drain()
        alive, zombie = trainer._handles
        workers = {a.address: a, b.address: b}
        replica = workers[zombie.place.address].state.actors[zombie.key]
        trainer._dispatcher.lose(zombie.lane, OSError("the network was cut"))
        await trainer.drain()
        (pair,) = linear_data(1, seed=7)
        await replica.learn(Block.join(trainer.run_id, [MiniBatch.of(*pair)]))
        await replica.flush(10)  # it is told that all is well
        await assert_learned_once(trainer, data)
        assert (await trainer.exchange_stats())[alive.place.address]["refused"] == 1


# --------------------------------------------------------------------------- missed


def swallow_a_message(exchange: Any) -> None:
    """Let what an exchange publishes next reach nobody, unnoticed."""
    take = exchange._accumulator.take

    def swallow() -> None:
        if take() is not None:
            exchange._accumulator.take = take

    exchange._accumulator.take = swallow


@cluster(3)
async def test_who_has_missed_gradients_takes_over_a_model_that_holds_them(
    c, s, *workers
):
    data = linear_data(300)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        swallow_a_message(exchange_of(trainer, workers[0]))
        reports = feed(trainer, data[:150])
        await until(lambda: "missed gradients" in " ".join(trainer.events["text"]))
        feed(trainer, data[150:], reports)
        await trainer.drain()
        assert await refusals(trainer) >= 2
        statuses = await trainer._calls.ask_all("status")
        assert not any(status.missed for status in statuses.values())
        await assert_learned_once(trainer, data)


@cluster(3, config={"tensair.replicas.watch": "1h"})
async def test_a_model_is_taken_over_though_nobody_waits_for_it_any_more(
    c, s, *workers, monkeypatch
):
    copied, gate = asyncio.Event(), asyncio.Event()
    snapshot = Replica.snapshot

    async def slowly(replica: Replica) -> Any:
        answer = await snapshot(replica)
        copied.set()
        await gate.wait()
        return answer

    data = linear_data(300)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        swallow_a_message(exchange_of(trainer, workers[0]))
        reports = feed(trainer, data[:150])
        await until(lambda: len(reports) == 150)
        monkeypatch.setattr(Replica, "snapshot", slowly)
        draining = asyncio.ensure_future(trainer.drain())
        await copied.wait()
        draining.cancel()
        await asyncio.wait([draining])
        feed(trainer, data[150:], reports)
        await until(lambda: trainer._dispatcher._held or len(reports) == 300)
        gate.set()
        await until(lambda: len(reports) == 300)
        await trainer.drain()
        await assert_learned_once(trainer, data)


@cluster(2, config={**SILENT, "tensair.replicas.watch": "1h"})
async def test_what_one_has_missed_is_not_safe_with_it(c, s, a, b):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        speaker, listener = handle_on(trainer, a), handle_on(trainer, b)
        exchange = exchange_of(trainer, a)
        exchange.due = lambda busy: None

        async def learn(data: list[Any]) -> None:
            block = Block.join(trainer.run_id, [MiniBatch.of(*pair) for pair in data])
            await speaker.call("learn", block)

        await learn(data[:10])
        exchange._accumulator.drop()  # nobody hears of these
        await learn(data[10:])
        flushing = asyncio.ensure_future(speaker.call("flush", 10))
        heard = exchange_of(trainer, b)
        await until(lambda: heard._inbox.missed)
        assert exchange.confirmed() < exchange.taken
        assert not flushing.done()
        # Only now the client knows, and lets go of nothing.
        assert (await trainer._calls.ask(listener, "status")).missed
        await flushing


@cluster(2)
async def test_where_all_have_missed_gradients_they_agree_again(c, s, *workers):
    data = linear_data(600)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        for worker in workers:
            swallow_a_message(exchange_of(trainer, worker))
        reports = feed(trainer, data[:300])
        await until(lambda: "had missed some, too" in " ".join(trainer.events["text"]))
        before = await refusals(trainer)
        feed(trainer, data[300:], reports)
        await trainer.drain()
        assert await refusals(trainer) == before
        assert spread(await trainer.state_dicts()) < 1e-4


# ---------------------------------------------------------------------------- joins


@cluster(1)
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_a_new_worker_gets_a_replica_that_misses_nothing(c, s, a, share):
    data = linear_data(900)
    async with ta.Trainer(c, **linear(share=share)) as trainer:
        reports = feed(trainer, data[:400])
        await until(lambda: len(reports) > 50)
        async with Worker(s.address, nthreads=1) as b:
            await until(lambda: len(trainer._calls.alive()) == 2)
            feed(trainer, data[400:], reports)
            await trainer.drain()
            assert {info.address for info in trainer.replicas} == {a.address, b.address}
            assert all(info.samples > 0 for info in trainer.replicas)
            assert {info.version for info in trainer.replicas} == {900}
            assert "joined" in set(trainer.events["kind"])
            await assert_learned_once(trainer, data)


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


@cluster(2, config=SILENT)
@pytest.mark.parametrize("share", ["gradient", "update"])
@pytest.mark.parametrize("compression", ["none", "int8"])
@pytest.mark.parametrize("alone", [0, 40])
async def test_what_nobody_was_left_to_hear_is_not_told_to_a_newcomer(
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


@cluster(3)
async def test_a_newcomer_hears_nothing_of_one_that_was_lost_before(c, s, *workers):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        feed(trainer, data)
        await trainer.drain()
        zombie = trainer._handles[1]
        address = zombie.place.address
        worker = next(each for each in workers if each.address == address)
        replica = worker.state.actors[zombie.key]
        trainer._dispatcher.lose(zombie.lane, OSError("the network was cut"))
        await until(lambda: len(trainer._calls.alive()) == 2)
        (pair,) = linear_data(1, seed=7)
        await replica.learn(Block.join(trainer.run_id, [MiniBatch.of(*pair)]))
        await replica.flush(10)
        await trainer.drain()
        assert await refusals(trainer) == 2
        await assert_learned_once(trainer, data)


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
            for h in trainer._handles
            for w in (a, b)
            if w.address == h.place.address
        )
        for key, state in one.items():
            assert torch.equal(state["exp_avg"], two[key]["exp_avg"])
            assert state["step"] == two[key]["step"] == 50
        assert spread(await trainer.state_dicts()) < 1e-6


@cluster(2)
async def test_a_newcomer_that_cannot_be_built_disturbs_nobody(c, s, a, b):
    data = linear_data(100)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (handle,) = trainer._handles
        other = b if handle.place.address == a.address else a
        trainer._starter._recipe.model = functools.partial(_only_on, other.address)
        trainer._membership.wish = Wish.of(2)
        await until(lambda: other.address in trainer._membership._workers.avoided)
        feed(trainer, data)
        await trainer.drain()
        assert len(trainer._calls.alive()) >= 1
        await assert_learned_once(trainer, data)


def _only_on(forbidden: str) -> Any:
    from distributed import get_worker
    from helpers import Linear

    if get_worker().address == forbidden:
        raise MemoryError("no room here")
    return Linear()


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


@cluster(2)
@pytest.mark.parametrize("how", ["retire", "close"])
async def test_the_last_replica_hands_its_model_to_another_worker(c, s, a, b, how):
    data = linear_data(400)
    workers = {a.address: a, b.address: b}
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (first,) = trainer._handles
        worker = workers[first.place.address]
        reports = feed(trainer, data[:200])
        await until(lambda: len(reports) > 50)
        if how == "retire":
            going = asyncio.ensure_future(c.retire_workers([worker.address]))
        else:
            going = asyncio.ensure_future(worker.close(reason="test"))
        feed(trainer, data[200:], reports)
        await until(lambda: len(reports) == 400)
        await going
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(400))
        assert all(report.error is None for report in reports)
        assert trainer._dispatcher.relearned == 0
        (state,) = (await trainer.state_dicts()).values()
        weight = state["weight"].double()
        assert torch.allclose(weight, expected_weight(data), **EXACT)


@cluster(1)
async def test_the_last_replica_of_the_last_worker_takes_its_model_along(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        reports = feed(trainer, linear_data(20))
        await until(lambda: len(reports) == 20)
        await a.close(reason="test")
        with pytest.raises(NoReplicasError):
            await trainer.train(*linear_data(1)[0])


@cluster(1)
async def test_a_scale_that_cannot_be_had_says_why(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(ConfigurationError, match="'all'"):
            await trainer.scale("many")
        trainer._starter._recipe.model = functools.partial(_only_on, a.address)
        with pytest.raises(TensairTimeoutError, match="workers can hold them"):
            await trainer.scale(2, timeout=0.5)
