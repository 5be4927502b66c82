"""A worker that is busy, paused or silent delays its own replica, and no other."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from distributed import Status, Worker
from distributed.utils_test import gen_cluster
from helpers import feed, linear, linear_data, train_all, until
from lab import addresses, assert_learned_once

import tensair_dask as ta
from tensair_dask.errors import TensairTimeoutError

QUICK = {"tensair.replicas.watch": "20ms", "tensair.timeouts.begin": "200ms"}


def cluster(workers: int, **overrides: Any) -> Any:
    return gen_cluster(
        client=True,
        nthreads=[("127.0.0.1", 1)] * workers,
        timeout=60,
        config={**QUICK, **overrides},
    )


# The event for which long tasks wait, in this process.
GATE: dict[str, threading.Event] = {}


def long_task() -> None:
    GATE["over"].wait(30)


@contextmanager
def busy(client: Any, *workers: Worker) -> Iterator[threading.Event]:
    """Let somebody's long task occupy workers, until the event is set."""
    over = GATE["over"] = threading.Event()
    tasks = [
        client.submit(long_task, workers=[worker.address], key=f"long-{number}")
        for number, worker in enumerate(workers)
    ]
    try:
        yield over
    finally:
        over.set()
        del tasks


@contextmanager
def paused(client: Any, *workers: Worker) -> Iterator[threading.Event]:
    """Pause workers, as Dask does when they have too much in memory."""
    over = threading.Event()
    for worker in workers:
        worker.memory_manager.memory_pause_fraction = 1e-9

    async def resume() -> None:
        await until(over.is_set)
        for worker in workers:
            worker.memory_manager.memory_pause_fraction = 1.0

    task = asyncio.ensure_future(resume())
    try:
        yield over
    finally:
        over.set()
        client.loop.add_callback(lambda: task)


HOW = {"busy": (busy, "is busy with long-0"), "paused": (paused, "is paused")}


async def settled(scheduler: Any, worker: Worker, how: str) -> None:
    """Wait until the scheduler knows."""
    state = scheduler.workers[worker.address]
    if how == "busy":
        await until(lambda: worker.state.executing)
    else:
        await until(lambda: state.status == Status.paused)


def begun(worker: Worker) -> list[str]:
    """What there is of replicas on a worker."""
    return [key for key in worker.state.tasks if str(key).startswith("tensair")]


@pytest.mark.parametrize("how", list(HOW))
def test_the_others_start_and_it_joins_when_it_has_time(how):
    @cluster(3)
    async def run(c, s, *workers):
        hold, why = HOW[how]
        data = linear_data(200)
        slow = workers[1]
        with hold(c, slow) as over:
            await settled(s, slow, how)
            async with ta.Trainer(c, **linear()) as trainer:
                assert sorted(addresses(trainer)) == sorted(
                    {each.address for each in workers} - {slow.address}
                )
                (text,) = trainer.events["text"]
                assert slow.address in text
                assert why in text
                reports = feed(trainer, data[:100])
                await until(lambda: len(reports) == 100)
                over.set()
                await until(lambda: slow.address in addresses(trainer))
                feed(trainer, data[100:], reports)
                await trainer.drain()
                assert len(await trainer.state_dicts()) == 3
                await assert_learned_once(trainer, data)

    run()


@pytest.mark.parametrize("how", list(HOW))
def test_where_none_has_time_the_error_says_why(how):
    @cluster(2, **{"tensair.timeouts.start": "2s"})
    async def run(c, s, *workers):
        hold, why = HOW[how]
        with hold(c, *workers) as over:
            for worker in workers:
                await settled(s, worker, how)
            with pytest.raises(TensairTimeoutError, match=why) as info:
                await ta.Trainer(c, **linear())
            assert all(worker.address in str(info.value) for worker in workers)
            assert "building" not in str(info.value)
            over.set()
            # What was begun too late ends, and leaves the workers as they were.
            await until(lambda: not any(map(begun, workers)))

    run()


@cluster(2)
async def test_few_replicas_go_where_there_is_time(c, s, *workers):
    with busy(c, workers[0]):
        await settled(s, workers[0], "busy")
        async with ta.Trainer(c, **linear(replicas=1)) as trainer:
            assert addresses(trainer) == [workers[1].address]
            assert trainer.events.empty


@cluster(1)
async def test_a_busy_worker_that_comes_keeps_no_other_from_joining(c, s, a):
    async with (
        ta.Trainer(c, **linear(replicas=(1, 9))) as trainer,
        Worker(s.address, nthreads=1) as slow,
    ):
        with busy(c, slow) as over:
            async with Worker(s.address, nthreads=1) as free:
                await until(lambda: free.address in addresses(trainer))
                over.set()
                await until(lambda: slow.address in addresses(trainer))
                await trainer.scale(1)


@cluster(2, **{"tensair.replicas.patience": "0s"})
async def test_what_is_asked_for_shares_a_worker_till_the_busy_one_has_time(
    c, s, *workers
):
    slow, free = workers
    with busy(c, slow) as over:
        await settled(s, slow, "busy")
        async with ta.Trainer(c, **linear(replicas=2)) as trainer:
            await until(lambda: addresses(trainer) == [free.address] * 2)
            over.set()
            await until(
                lambda: (
                    sorted(addresses(trainer)) == sorted([slow.address, free.address])
                )
            )
            await train_all(trainer, linear_data(20))


@cluster(2)
async def test_a_trainer_may_close_before_a_delayed_replica_has_begun(c, s, *workers):
    slow = workers[0]
    with busy(c, slow) as over:
        await settled(s, slow, "busy")
        async with ta.Trainer(c, **linear()) as trainer:
            await train_all(trainer, linear_data(20))
        over.set()
        await until(lambda: not begun(slow))
        await until(lambda: not trainer.session.starter.releasing)


@cluster(3)
async def test_the_model_of_the_last_one_goes_where_there_is_time(c, s, *workers):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        await train_all(trainer, data)
        (handle,) = trainer.session.replicas.handles
        slow, free = (w for w in workers if w.address != handle.place.address)
        with busy(c, slow):
            await settled(s, slow, "busy")
            await c.retire_workers([handle.place.address])
            await until(lambda: free.address in addresses(trainer))
            await trainer.drain()
            await assert_learned_once(trainer, data)


@cluster(2)
async def test_a_worker_that_does_not_answer_is_left_out(c, s, *workers):
    silent = workers[0]
    run = c.run

    async def or_nothing(*args: Any, **kwargs: Any) -> Any:
        if kwargs.get("workers") == [silent.address]:
            await asyncio.Event().wait()
        return await run(*args, **kwargs)

    c.run = or_nothing
    async with ta.Trainer(c, **linear()) as trainer:
        assert addresses(trainer) == [workers[1].address]
        await train_all(trainer, linear_data(20))
        c.run = run
        await until(lambda: silent.address in addresses(trainer))


# ------------------------------------------------------------------------- by hand


@cluster(2)
async def test_a_scale_that_takes_too_long_names_the_busy_workers(c, s, *workers):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (used,) = addresses(trainer)
        (slow,) = (each for each in workers if each.address != used)
        with busy(c, slow):
            await settled(s, slow, "busy")
            with pytest.raises(TensairTimeoutError, match="busy with long-0") as info:
                await trainer.scale("all", timeout=2)
            assert slow.address in str(info.value)
        await until(lambda: len(addresses(trainer)) == 2)


@pytest.mark.parametrize("count", ["all", (1, 8)])
def test_one_replica_a_worker_ends_replicas_that_share_a_worker(count):
    @cluster(2)
    async def run(c, s, *workers):
        data = linear_data(100)
        async with ta.Trainer(c, **linear(replicas=5)) as trainer:
            await train_all(trainer, data)
            await trainer.scale(count)
            assert sorted(addresses(trainer)) == sorted(w.address for w in workers)
            assert "2 of 2 replicas alive" in repr(trainer)
            await assert_learned_once(trainer, data)
            await trainer.scale(1)
            assert "1 of 1 replicas alive" in repr(trainer)

    run()


@cluster(2)
async def test_workers_that_go_end_no_replica_that_shares(c, s, *workers):
    async with (
        Worker(s.address, nthreads=1) as third,
        ta.Trainer(c, **linear(replicas=(3, 4))) as trainer,
    ):
        await third.close()
        await until(lambda: len(addresses(trainer)) == 2)
        await trainer.scale((1, 4))
        assert len(addresses(trainer)) == 2


@cluster(3)
async def test_each_further_trainer_goes_to_the_emptiest_worker(c, s, *workers):
    trainers = [await ta.Trainer(c, **linear(replicas=1)) for _ in range(6)]
    counts = [len(worker.state.actors) for worker in workers]
    assert counts == [2, 2, 2]
    for trainer in trainers:
        await trainer.close()
