"""A replica is lost at any moment of a join, a departure, or another's loss."""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from typing import Any

import pytest
import torch
from helpers import Linear, feed, linear, linear_data, spread, train_all, until
from lab import (
    SILENT,
    assert_learned_once,
    cut_off,
    exchange_of,
)
from losses import cluster, dead, kill, take_away, worker_of

import tensair_dask as ta
from tensair_dask.errors import ReplicaFailedError, TensairTimeoutError
from tensair_dask.pubsub import faults
from tensair_dask.pubsub.faults import Fault
from tensair_dask.pubsub.moments import Moment
from tensair_dask.replica.placement import ReplicaCount


async def silent(function: str, *args: Any) -> Any:
    """Answer nothing, as a process that is stopped: its sockets stay open."""
    await asyncio.Event().wait()


# Whether replicas get on with what they learn: all are in this process.
going = threading.Event()


class Stoppable(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        going.wait(30)
        return super().forward(x)


@pytest.fixture(autouse=True)
def all_get_on() -> Any:
    """Let replicas get on, until a test stops them, and after it."""
    going.set()
    yield
    going.set()


# ------------------------------------------------------------------ at each moment


@cluster(5, **{"tensair.exchange.staleness": "5ms"})
@pytest.mark.parametrize("who", ["the one concerned", "another one"])
@pytest.mark.parametrize("moment", list(Moment))
async def test_losing_a_replica_at_any_moment_loses_no_gradient(
    c, s, *workers, moment, who
):
    data = linear_data(300)
    struck: list[Any] = []
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        first, second, _ = trainer.session.replicas.handles

        def strike(handle: Any) -> None:
            others = [
                each for each in trainer.session.replicas.handles if each.lane.alive
            ]
            others = [each for each in others if each is not handle] or [handle]
            victim = handle if who == "the one concerned" else others[-1]
            if not struck:
                struck.append(victim or others[0])
                kill(trainer, struck[0], workers)

        def delay(destination: Any) -> float:
            return 0.3 if destination.address == second.place.address else 0.0

        with faults.inject(moment, strike):
            # Of one that is lost, one of the others has less than the other.
            with faults.inject(Fault.DELAY, delay):
                reports = feed(trainer, data[:100])
                await until(lambda: len(reports) > 60)
                cut_off(trainer, worker_of(workers, first))
            # One joins, all but one leave, and then the last one does.
            await trainer.scale(4)
            await trainer.scale(1)
            feed(trainer, data[100:200], reports)
            await until(lambda: len(reports) > 110)
            (last,) = trainer.session.replicas.alive()
            await c.retire_workers([last.place.address])
            await until(trainer.session.replicas.alive)
            feed(trainer, data[200:], reports)
            await until(lambda: len(reports) == 300)
        assert struck
        await trainer.scale(3)
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(300))
        assert [report.error for report in reports if report.error] == []
        assert len(trainer.session.replicas.alive()) == 3
        assert spread(await trainer.state_dicts()) < 1e-4
        await assert_learned_once(trainer, data)


# ------------------------------------------------------------------------- copies


@cluster(3)
async def test_a_source_that_is_retired_while_others_copy_it_leaves_alone(
    c, s, *workers
):
    def shift(model: Any, optimizers: Any) -> None:
        with torch.no_grad():
            model.weight.add_(5.0)

    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        sources: list[Any] = []

        def retire(source: Any) -> None:
            if not sources:
                sources.append(source)
                replica = worker_of(workers, source).state.actors[source.key]
                asyncio.ensure_future(replica.leave(5))

        with faults.inject(Moment.COPYING, retire):
            await trainer.apply(shift)
        assert sources[0].lane.leaving
        assert len(trainer.session.replicas.alive()) == 2
        for state in (await trainer.state_dicts()).values():
            assert state["weight"].eq(6.0).all()


def close(replica: Any) -> None:
    replica.thread.stop()


def fail(replica: Any) -> None:
    def end() -> None:
        raise ReplicaFailedError("The exchange raised an error")

    replica.thread.call(end).add_done_callback(lambda answer: answer.exception())


def ends_as_it_is_copied(workers: Any, end: Any) -> tuple[Any, list[Any]]:
    """End the first replica that others copy: its worker and its actor stay.

    Returns
    -------
    strike, ended
        What to inject at `Moment.COPYING`, and whom it has struck.
    """
    ended: list[Any] = []

    def strike(source: Any) -> None:
        if not ended:
            ended.append(source)
            replica = worker_of(workers, source).state.actors[source.key]
            end(replica)
            while not replica.thread.has_ended:  # the event loop waits for it, too
                time.sleep(0.001)

    return strike, ended


def gone(trainer: Any) -> list[Any]:
    return [each for each in trainer.session.replicas.handles if not each.lane.alive]


@cluster(3)
@pytest.mark.parametrize("end", [close, fail])
async def test_a_replica_that_copies_a_dying_one_is_not_blamed(c, s, *workers, end):
    def shift(model: Any, optimizers: Any) -> None:
        with torch.no_grad():
            model.weight.add_(5.0)

    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        strike, ended = ends_as_it_is_copied(workers, end)
        with faults.inject(Moment.COPYING, strike):
            await trainer.apply(shift)
        assert gone(trainer) == ended != []
        for state in (await trainer.state_dicts()).values():
            assert state["weight"].eq(6.0).all()


@cluster(3, **SILENT)
@pytest.mark.parametrize("end", [close, fail])
async def test_the_model_of_the_last_replica_survives_where_a_newer_one_ends(
    c, s, *workers, end
):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        first, second, third = trainer.session.replicas.handles
        for worker in workers:  # nothing is published before it is asked for
            exchange_of(trainer, worker).due = lambda busy: None
        reports = feed(trainer, data)
        await until(lambda: len(reports) == len(data))

        def delay(destination: Any) -> float:
            is_second = destination.address == second.place.address
            return 60.0 if is_second and first.lane.alive else 0.0

        strike, ended = ends_as_it_is_copied(workers, end)
        with faults.inject(Moment.COPYING, strike), faults.inject(Fault.DELAY, delay):
            # What the first one has learned reaches the third one alone.
            teller = worker_of(workers, first).state.actors[first.key]
            await teller.thread.call(teller.exchange.publish_all)
            clock = exchange_of(trainer, worker_of(workers, third)).clock
            await until(lambda: clock[first.name])
            cut_off(trainer, worker_of(workers, first))
            await until(lambda: not first.lane.alive)  # from here on none is delayed
            await trainer.drain()
        assert ended == [third]
        assert gone(trainer) == [first, third]
        await assert_learned_once(trainer, data)


# ------------------------------------------------------------------------- departures


@cluster(3)
async def test_where_the_last_open_replica_is_lost_a_learning_one_has_an_heir(
    c, s, *workers
):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2, model=Stoppable)) as trainer:
        first, second = trainer.session.replicas.handles
        reports = feed(trainer, data[:10])
        await until(lambda: len(reports) > 4)
        going.clear()
        feed(trainer, data[10:], reports)
        await until(lambda: first.lane.sent and second.lane.sent)
        scaling = asyncio.ensure_future(trainer.scale(1))
        await until(lambda: second.lane.leaving)
        assert second.lane.alive
        cut_off(trainer, worker_of(workers, first))
        going.set()
        await scaling
        await until(lambda: len(reports) == len(data))
        assert all(report.error is None for report in reports)
        await trainer.drain()
        assert len(trainer.session.replicas.alive()) == 1
        await assert_learned_once(trainer, data)


@cluster(3)
async def test_scaling_while_the_last_replicas_leave_waits_for_their_heir(
    c, s, *workers
):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2, model=Stoppable)) as trainer:
        membership = trainer.session.membership
        first, second = trainer.session.replicas.handles
        reports = feed(trainer, data[:10])
        await until(lambda: len(reports) > 4)
        going.clear()
        feed(trainer, data[10:], reports)
        await until(lambda: first.lane.sent and second.lane.sent)
        scaling = asyncio.ensure_future(trainer.scale(1))
        await until(lambda: second.lane.leaving)
        usable, slow = membership.workers.usable, []

        async def slowly() -> list[str]:
            """Answer who scales, while none is there, when the heir has taken over."""
            if (
                asyncio.current_task() is scaling
                and not trainer.session.replicas.alive()
            ):
                slow.append(second)
                await until(lambda: second.lane.judged)
            return await usable()

        build = trainer.session.starter.build

        async def when_asked(places: Any, **how: Any) -> Any:
            await until(lambda: slow)
            return await build(places, **how)

        membership.workers.usable = slowly
        trainer.session.starter.build = when_asked
        cut_off(trainer, worker_of(workers, first))
        going.set()
        await scaling
        assert slow
        await until(lambda: len(reports) == len(data))
        await trainer.drain()
        assert len(trainer.session.replicas.alive()) == 1
        await assert_learned_once(trainer, data)


@cluster(1)
async def test_an_heir_may_come_to_the_worker_of_a_surplus_replica(c, s, a):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        await train_all(trainer, data)
        first, _ = trainer.session.replicas.handles

        def lose_the_other(leaving: Any) -> None:
            if first.lane.alive:
                kill(trainer, first, [a])

        with faults.inject(Moment.SEEN_OFF, lose_the_other):
            await trainer.scale(1)
        assert len(trainer.session.replicas.alive()) == 1
        await assert_learned_once(trainer, data)


def slow_heir(trainer: Any, workers: Any, last: Any) -> None:
    """Build replicas when the last one has nothing more to do, or is gone."""
    departure = worker_of(workers, last).state.actors[last.key].departure
    build = trainer.session.starter.build

    async def slow(places: Any, **how: Any) -> Any:
        await until(lambda: departure.free._waiters or last.is_lost)
        return await build(places, **how)

    trainer.session.starter.build = slow


@cluster(3, **{"tensair.timeouts.release": "1ms"})
async def test_a_replica_without_a_step_of_its_own_waits_for_its_heir(c, s, *workers):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (first,) = trainer.session.replicas.handles
        await train_all(trainer, data[:20])
        await trainer.scale(2)
        await c.retire_workers([first.place.address])
        (last,) = trainer.session.replicas.alive()
        slow_heir(trainer, workers, last)
        await c.retire_workers([last.place.address])
        assert trainer.session.replicas.alive()  # the heir; soon there are two again
        await train_all(trainer, data[20:])
        await assert_learned_once(trainer, data)


@cluster(3, **{"tensair.timeouts.release": "1ms"})
async def test_one_from_which_others_joined_waits_for_its_heir(c, s, *workers):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (first,) = trainer.session.replicas.handles
        await train_all(trainer, data[:20])
        await trainer.scale(2)
        await trainer.scale(1)
        assert trainer.session.replicas.alive() == [first]
        await train_all(trainer, data[20:40])
        slow_heir(trainer, workers, first)
        await c.retire_workers([first.place.address])
        assert len(trainer.session.replicas.alive()) == 1
        await train_all(trainer, data[40:])
        await assert_learned_once(trainer, data)


@cluster(4)
async def test_heirs_are_tried_until_one_has_the_model(c, s, *workers):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        await train_all(trainer, data)
        (handle,) = trainer.session.replicas.handles
        others = [each for each in workers if each.address != handle.place.address]
        # One that seemed unfit is better than none.
        trainer.session.membership.workers.avoid(others[0].address)
        heirs: list[Any] = []

        def strike(heir: Any) -> None:
            heirs.append(heir)
            if len(heirs) < 3:
                kill(trainer, heir, workers)

        with faults.inject(Moment.INHERITING, strike):
            await c.retire_workers([handle.place.address])
            await until(trainer.session.replicas.alive)
        tried = [heir.place.address for heir in heirs]
        assert sorted(tried) == sorted(each.address for each in others)
        assert tried[-1] == others[0].address
        await trainer.drain()
        await assert_learned_once(trainer, data)


@cluster(2, **{"tensair.timeouts.leave": "100ms", "tensair.timeouts.join": "100ms"})
async def test_a_replica_that_is_silent_while_it_leaves_delays_no_longer_than_is_set(
    c, s, a, b
):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        await train_all(trainer, linear_data(10))
        (handle,) = trainer.session.replicas.handles
        handle.call = silent
        trainer.session.dispatcher.dismiss(handle.lane)
        await trainer.session.membership.recovered(2)
        assert not trainer.session.barrier.alone.locked()


@cluster(2)
async def test_a_loss_is_looked_into_again_after_any_error(c, s, a, b):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        errors = [RuntimeError("unforeseen"), KeyError("unforeseen")]

        def fail(handle: Any) -> None:
            if errors:
                raise errors.pop()

        with faults.inject(Moment.SEALED, fail):
            feed(trainer, data)
            cut_off(trainer, a)
            await trainer.drain()
        assert not errors
        await assert_learned_once(trainer, data)


# ----------------------------------------------------------------------------- joins


def named(*names: str) -> Any:
    """A model that cannot be built by replicas of these names."""
    if any(name in threading.current_thread().name for name in names):
        raise MemoryError("no room here")
    return Linear()


@cluster(4)
async def test_a_replica_that_cannot_be_built_keeps_no_other_from_joining(
    c, s, *workers
):
    model = functools.partial(named, "replica-2")
    async with ta.Trainer(c, **linear(replicas=1, model=model)) as trainer:
        trainer.session.membership.wanted = ReplicaCount.of((1, 4))
        await until(lambda: len(trainer.session.replicas.alive()) == 3)
        assert len(trainer.session.membership.workers.avoided) == 1


@cluster(3)
async def test_a_joining_replica_is_not_blamed_for_a_source_that_is_lost(
    c, s, *workers
):
    data = linear_data(20)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        await train_all(trainer, data)
        used = {each.place.address for each in trainer.session.replicas.handles}
        (free,) = (each.address for each in workers if each.address not in used)
        lost: list[Any] = []

        def strike(source: Any) -> None:
            if not lost:
                lost.append(source)
                take_away(worker_of(workers, source), source)

        with faults.inject(Moment.KEPT, strike):
            await trainer.scale(3)
        assert free in {each.place.address for each in trainer.session.replicas.alive()}
        assert not trainer.session.membership.workers.avoided
        await trainer.drain()
        await assert_learned_once(trainer, data)


def strike_the_source(workers: Any) -> tuple[Any, list[Any]]:
    """Lose the first one from which newcomers take the model over, before they do.

    Returns
    -------
    strike, newcomers
        What to inject at `Moment.KEPT`, and the replicas that come to nothing then: as
        long as they are referred to, Python alone does not end them.
    """
    newcomers: list[Any] = []

    def strike(source: Any) -> None:
        if not newcomers:
            actors = [each for w in workers for each in w.state.actors.values()]
            newcomers.extend(each for each in actors if each.exchange._adopting)
            take_away(worker_of(workers, source), source)

    return strike, newcomers


@cluster(4)
async def test_a_replica_that_fails_to_join_ends_at_once(c, s, *workers):
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        strike, newcomers = strike_the_source(workers)
        with faults.inject(Moment.KEPT, strike):
            await trainer.scale(3)
        (newcomer,) = newcomers
        await until(lambda: newcomer.thread.has_ended)
        await until(lambda: newcomer.exchange.sub is None)


@cluster(4)
async def test_nobody_waits_for_a_replica_that_failed_to_join(c, s, *workers):
    data = linear_data(60)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        strike, newcomers = strike_the_source(workers)

        def strike_and_hang(source: Any) -> None:
            strike(source)
            newcomers[0].close = lambda: silent("close")

        with faults.inject(Moment.KEPT, strike_and_hang):
            await trainer.scale(3)
        # Those that joined since then find it among the subscribers.
        assert newcomers[0].exchange.sub is not None
        await train_all(trainer, data)
        await asyncio.wait_for(trainer.drain(), 10)
        await assert_learned_once(trainer, data)
        del newcomers[0].close
        await newcomers[0].close()


@cluster(3)
async def test_a_worker_that_is_lost_while_it_builds_is_given_up_at_once(
    c, s, *workers
):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        submit = c.submit
        lost: list[str] = []

        def lose_the_worker(*args: Any, **kwargs: Any) -> Any:
            if not lost:
                lost.extend(kwargs["workers"])
                gone = next(each for each in workers if each.address == lost[0])
                gone.batched_stream.abort()
                asyncio.ensure_future(s.remove_worker(lost[0], stimulus_id="killed"))
            return submit(*args, **kwargs)

        c.submit = lose_the_worker
        try:
            await trainer.scale(2, timeout=10)
        finally:
            del c.submit
        assert lost[0] not in {
            each.place.address for each in trainer.session.replicas.alive()
        }
        assert not trainer.session.starter.releasing


@cluster(2, **{"tensair.timeouts.join": "10s"})
async def test_a_joining_replica_that_is_lost_while_it_subscribes_holds_no_stream(
    c, s, a, b
):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        newcomers: list[Any] = []

        def stop(newcomer: Any) -> None:
            newcomers.append(newcomer)
            newcomer.call = silent

        with faults.inject(Moment.BUILT, stop):
            trainer.session.membership.wanted = ReplicaCount.of(2)
            await until(lambda: trainer.session.dispatcher.held is not None)
            await s.remove_worker(newcomers[0].place.address, stimulus_id="ttl")
            (pair,) = linear_data(1)
            assert (await asyncio.wait_for(trainer.train(*pair), 2)).error is None
        trainer.session.membership.wanted = ReplicaCount.of(1)


@cluster(2, **{"tensair.timeouts.join": "100ms"})
async def test_a_joining_replica_that_is_silent_holds_the_stream_for_a_moment(
    c, s, a, b
):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        with faults.inject(Moment.BUILT, lambda each: setattr(each, "call", silent)):
            trainer.session.membership.wanted = ReplicaCount.of(2)
            await until(lambda: trainer.session.dispatcher.held is not None)
            (pair,) = linear_data(1)
            assert (await asyncio.wait_for(trainer.train(*pair), 2)).error is None
            await until(lambda: trainer.session.membership.workers.avoided)
        trainer.session.membership.wanted = ReplicaCount.of(1)


@cluster(3)
async def test_a_replica_that_dask_gives_up_is_lost_though_others_wait_for_it(
    c, s, *workers
):
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        silent_one = trainer.session.replicas.handles[1]
        silent_one.call = silent
        trainer.session.membership.wanted = ReplicaCount.of(3)
        # Nobody can join while it does not say that all has arrived.
        await until(lambda: trainer.session.replicas.under_way[silent_one.key])
        await s.remove_worker(silent_one.place.address, stimulus_id="ttl")
        await until(lambda: not silent_one.lane.alive)
        await until(lambda: len(trainer.session.replicas.alive()) == 3)


@cluster(4, **{"tensair.exchange.staleness": "1h"})
async def test_a_replica_that_does_not_answer_keeps_no_other_from_being_replaced(
    c, s, *workers
):
    async with ta.Trainer(c, **linear(replicas=3)) as trainer:
        frozen, victim, _ = trainer.session.replicas.handles
        exchange_of(trainer, worker_of(workers, frozen)).due = lambda busy: None
        call = frozen.call

        async def no_status(function: str, *args: Any) -> Any:
            return await (silent if function == "status" else call)(function, *args)

        frozen.call = no_status
        reports = feed(trainer, linear_data(60))
        await until(lambda: len(reports) == 60)
        await until(lambda: trainer.session.replicas.under_way[frozen.key])
        cut_off(trainer, worker_of(workers, victim))
        await until(lambda: len(trainer.session.replicas.alive()) == 3)
        frozen.call = call


# ------------------------------------------------------------------------- the start


@cluster(3, **{"tensair.pubsub.linger": "100ms"})
async def test_a_worker_that_is_lost_while_a_trainer_starts_is_done_without(
    c, s, *workers
):
    data = linear_data(20)
    lost: list[Any] = []

    def strike(handle: Any) -> None:
        if not lost:
            lost.append(handle)
            handle.call = dead
            gone = worker_of(workers, handle)
            asyncio.ensure_future(gone.close(nanny=False, reason="killed"))

    with faults.inject(Moment.BUILT, strike):
        trainer = await ta.Trainer(c, **linear())
    async with trainer:
        there = {each.place.address for each in trainer.session.replicas.alive()}
        assert lost[0].place.address not in there
        await train_all(trainer, data)
        await assert_learned_once(trainer, data)


@cluster(1)
async def test_scaling_ends_in_the_time_that_it_is_given(c, s, a):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        build = trainer.session.starter.build
        may_go_on = asyncio.Event()

        async def slow(places: Any, **how: Any) -> Any:
            await may_go_on.wait()
            return await build(places, **how)

        trainer.session.starter.build = slow
        with pytest.raises(TensairTimeoutError, match="1 replicas are there after"):
            await asyncio.wait_for(trainer.scale(2, timeout=0.1), 2)
        may_go_on.set()  # and what was begun goes on
        await until(lambda: len(trainer.session.replicas.alive()) == 2)


@cluster(2)
async def test_a_start_that_is_interrupted_drops_also_what_is_built_already(c, s, *_):
    trainer = ta.Trainer(c, **linear(replicas=2))
    built: list[Any] = []  # kept, so that nothing is dropped by Python alone

    def interrupt(handle: Any) -> None:
        built.append(handle)
        trainer.session._starting.cancel()

    with faults.inject(Moment.BUILT, interrupt), pytest.raises(asyncio.CancelledError):
        await trainer
    assert built
    await until(lambda: not any(key.startswith("tensair-") for key in s.tasks))
    await trainer.close()
