"""A replica that has missed gradients takes over a model that holds them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers import (
    class_data,
    classes,
    feed,
    linear,
    linear_data,
    spread,
    train_all,
    until,
)
from lab import (
    SILENT,
    assert_learned_once,
    cluster,
    exchange_of,
    handle_on,
    refusals,
)

import tensair_dask as ta
from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.exchange.accumulator import Changes
from tensair_dask.replica.actor import Replica


def reported(trainer: Any) -> str:
    return " ".join(trainer.events["text"])


def swallow_a_message(exchange: Any) -> None:
    """Let what an exchange publishes next reach nobody, unnoticed."""
    take = exchange.accumulator.take

    def swallow() -> None:
        if take() is not None:
            exchange.accumulator.take = take

    exchange.accumulator.take = swallow


@cluster(3)
async def test_a_replica_that_has_missed_gradients_takes_over_a_model_that_holds_them(
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
        statuses = await trainer.session.replicas.ask_all("status")
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
        while not copied.is_set():
            # What does not fit is acknowledged when it is told, which nobody else asks.
            await trainer.session.replicas.ask_all("status")
        draining.cancel()
        await asyncio.wait([draining])
        feed(trainer, data[150:], reports)
        await until(lambda: trainer.session.dispatcher.held or len(reports) == 300)
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
        exchange.accumulator.drop()  # nobody hears of these
        await learn(data[10:])
        flushing = asyncio.ensure_future(speaker.call("flush", 10))
        heard = exchange_of(trainer, b)
        await until(lambda: heard.is_behind)
        # On its thread, which may have put a message and not noted yet what is in it.
        thread = a.state.actors[speaker.key].thread
        assert await thread.call(exchange.confirmed) < exchange.taken
        assert not flushing.done()
        # Only now the client knows, and lets go of nothing.
        assert (await trainer.session.replicas.ask(listener, "status")).missed
        await flushing
        # And nothing more waits until it is asked again.
        await learn(data[:10])
        await speaker.call("flush", 10)


def poison(trainer: Any, worker: Any, value: float) -> Any:
    """Spoil the model of one replica, and let it publish a step of the kind."""
    replica = worker.state.actors[handle_on(trainer, worker).key]
    exchange = replica.exchange

    def spoil() -> None:
        replica.learner.arena.buffers[0].fill_(value)
        exchange.before_step()
        bad = torch.full_like(replica.learner.arena.dense[0], value)
        exchange.learned(4, 1e-3, Changes([bad]))
        exchange.publish()

    return replica.thread.call(spoil)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_replica_with_a_model_that_is_not_finite_takes_over_a_finite_one(
    count, value
):
    @cluster(count)
    async def run(c, s, *workers):
        data = linear_data(200)
        async with ta.Trainer(c, **linear(replicas=count)) as trainer:
            await train_all(trainer, data[:100])
            await poison(trainer, workers[0], value)
            others = [exchange_of(trainer, each) for each in workers[1:]]
            await until(lambda: all(each.is_behind for each in others))
            await trainer.session.membership.resync.look()
            await until(lambda: "NaN or infinite, and" in reported(trainer))
            await train_all(trainer, data[100:])
            # Nothing but the poison is lost, and it is nowhere.
            await assert_learned_once(trainer, data)
            statuses = await trainer.session.replicas.ask_all("status")
            assert not any(status.missed for status in statuses.values())
            assert "it holds NaN or infinite values" in reported(trainer)

    run()


@cluster(2)
async def test_where_no_model_is_finite_any_more_nothing_waits(c, s, a, b):
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        await train_all(trainer, linear_data(20))
        nan = float("nan")
        await asyncio.gather(poison(trainer, a, nan), poison(trainer, b, nan))
        exchanges = [exchange_of(trainer, each) for each in (a, b)]
        await until(lambda: all(each.is_behind for each in exchanges))
        await trainer.session.membership.resync.look()
        assert not any(each.is_behind for each in exchanges)
        await trainer.drain()
        reports = await train_all(trainer, linear_data(4))
        assert all(report.error is not None for report in reports)


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


def in_the_sum(exchange: Any, raising: Callable[..., Any]) -> None:
    exchange._apply = raising


def in_the_outbox(exchange: Any, raising: Callable[..., Any]) -> None:
    exchange._send = raising


def in_what_is_gathered(exchange: Any, raising: Callable[..., Any]) -> None:
    exchange.accumulator.add = raising


def no_room(*_: Any) -> None:
    raise MemoryError("no room for it")


def lost(trainer: Any) -> list[str]:
    events = trainer.events
    return events["text"][events["kind"] == "lost"].tolist()


@cluster(3)
async def test_gradients_that_cannot_be_applied_come_with_a_peers_model(c, s, *workers):
    data = linear_data(300)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        exchange = exchange_of(trainer, workers[0])
        apply, failures = exchange._apply, []

        def fail(gradients: Any) -> None:
            if len(failures) < 4:
                failures.append(1)
                raise MemoryError("no room")
            apply(gradients)

        in_the_sum(exchange, fail)
        reports = feed(trainer, data[:150])
        await until(lambda: "missed gradients" in " ".join(trainer.events["text"]))
        feed(trainer, data[150:], reports)
        await trainer.drain()
        assert len(failures) == 4
        assert not lost(trainer)
        await assert_learned_once(trainer, data)


@cluster(2)
async def test_an_optimizer_that_fails_now_and_then_costs_no_replica(c, s, a, b):
    def optimizer(parameters: Any) -> Any:
        import torch

        made, steps = torch.optim.Adam(parameters, lr=0.01), []

        def log(*_: Any) -> None:
            steps.append(1)
            if len(steps) % 5 == 0:
                raise OSError("the log is full")

        made.register_step_post_hook(log)
        return made

    arguments = classes(replicas=2, optimizer=optimizer, share="gradient")
    async with ta.Trainer(c, **arguments) as trainer:
        reports = feed(trainer, class_data(100))
        await trainer.drain()
        await until(lambda: len(reports) == 100)
        refused = [report.error for report in reports if report.error is not None]
        assert 0 < len(refused) < 50
        assert all("the log is full" in str(each) for each in refused)
        assert len(trainer.session.replicas.alive()) == 2
        assert not lost(trainer)
        learned = 100 - len(refused)
        assert {info.version for info in trainer.replicas} == {learned}


@pytest.mark.parametrize("place", [in_the_sum, in_the_outbox, in_what_is_gathered])
def test_a_replica_whose_exchange_fails_ends_alone_and_says_why(place, monkeypatch):
    # The eldest, if it is this one, waits so long whether all others end as well.
    monkeypatch.setattr("tensair_dask.exchange.exchange.PATIENCE", 0.5)

    @cluster(3)
    async def run(c, s, *workers):
        data = linear_data(300)
        async with ta.Trainer(c, **linear(replicas=3)) as trainer:
            place(exchange_of(trainer, workers[1]), no_room)
            reports: list[Any] = []
            fed = 0
            while not lost(trainer):
                feed(trainer, data[fed : fed + 1], reports)
                fed += 1
                while len(reports) < fed:
                    await asyncio.sleep(0.005)
            feed(trainer, data[fed:], reports)
            await trainer.drain()
            await until(lambda: len(reports) == len(data))
            (text,) = lost(trainer)
            assert "MemoryError: no room for it" in text
            assert workers[1].address in text
            assert len(trainer.session.replicas.alive()) == 2
            assert all(report.error is None for report in reports)
            await assert_learned_once(trainer, data)

    run()


@pytest.mark.parametrize("place", [in_the_outbox, in_what_is_gathered])
def test_where_the_exchange_fails_everywhere_one_goes_on_with_the_model(place):
    @cluster(3)
    async def run(c, s, *workers):
        data = linear_data(60)
        async with ta.Trainer(c, **linear(replicas=3)) as trainer:
            for worker in workers:
                place(exchange_of(trainer, worker), no_room)
            reports = feed(trainer, data)
            await until(lambda: len(reports) == len(data))
            await until(lambda: len(lost(trainer)) == 2)
            await trainer.drain()
            assert all("no room for it" in text for text in lost(trainer))
            assert [each.name for each in trainer.session.replicas.alive()] == [
                "replica-0"
            ]
            await assert_learned_once(trainer, data)

    run()


class Drifting(torch.nn.Module):
    """Changes a parameter by itself, and then may raise."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = classes()["model"]()

    def forward(self, x: Any) -> Any:
        if (x == 99).any():
            with torch.no_grad():
                self.inner[0].bias.add_(1.0)
            raise ValueError("no such value")
        return self.inner(x)


@cluster(2)
async def test_what_a_model_has_changed_before_it_raises_is_shared(c, s, a, b):
    data = class_data(20)
    bad = (data[0][0] * 0 + 99, data[0][1])
    async with ta.Trainer(c, **classes(replicas=2, model=Drifting)) as trainer:
        refused = await trainer.train(*bad)
        assert "no such value" in str(refused.error)
        await train_all(trainer, data)
        await until(lambda: trainer.share == "update")
        await train_all(trainer, [bad, *data])
        assert spread(await trainer.state_dicts()) < 1e-5
