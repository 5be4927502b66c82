"""Workers with replicas are not scaled away, and are emptied before they retire."""

from __future__ import annotations

import asyncio
import functools
import logging

import dask
import pytest
from departing import FleetOf, until
from distributed import Worker
from distributed.utils_test import captured_logger, gen_cluster
from helpers import linear, linear_data, spread

import tensair_dask as ta
from tensair_dask.coordinator.scheduler_plugin import NAME, ReplicaGuard, install
from tensair_dask.replica.worker_departures import NAME as DEPARTURES

three = functools.partial(
    gen_cluster,
    client=True,
    nthreads=[("127.0.0.1", 1)] * 3,
    timeout=60,
    config={"tensair.timeouts.release": "200ms"},
)


class Counter:
    """An actor that is not ours."""


async def actor(c, worker):
    return await c.submit(Counter, actor=True, workers=[worker.address])


def leaving(worker):
    (replica,) = worker.state.actors.values()
    return replica.departure.begun


@three()
async def test_a_retired_worker_hands_over_and_goes(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    data = linear_data(90)
    feeding = [
        asyncio.create_task(fleet.feed(data[at : at + 30], each))
        for each, at in enumerate((0, 30, 60))
    ]
    await until(lambda: len(fleet.learned) > 20)
    retired = await c.retire_workers([workers[0].address])
    assert list(retired) == [workers[0].address]
    assert workers[0].address not in s.workers
    await asyncio.gather(*feeding)
    assert len(fleet.learned) == 90
    await fleet.check([1, 2])
    # The client, which did not release it, is told.
    await until(lambda: fleet.futures[0].status == "cancelled")
    assert fleet.futures[1].status == "finished"
    fleet.release()


@three()
async def test_a_client_that_releases_the_actor_is_not_waited_for(c, s, *workers):
    with dask.config.set({"tensair.timeouts.release": "60s"}):
        await install(c)
        fleet = await FleetOf(c, [w.address for w in workers]).start()
        retiring = asyncio.ensure_future(c.retire_workers([workers[0].address]))
        await until(lambda: leaving(workers[0]))
        fleet.futures[0].release()
        assert list(await asyncio.wait_for(retiring, 20)) == [workers[0].address]
        fleet.release()


@three()
async def test_workers_that_retire_by_name_or_over_http_are_waited_for_too(
    c, s, *workers
):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    await asyncio.gather(*(fleet.learn(linear_data(5), each) for each in range(3)))
    await c.scheduler.retire_workers(names=[workers[0].name], close_workers=True)
    await s.retire_workers(workers=[workers[1].address])  # as its HTTP routes do
    assert list(s.workers) == [workers[2].address]
    await fleet.check([2])
    fleet.release()


@three()
async def test_a_worker_that_closes_gracefully_hands_over(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    await asyncio.gather(*(fleet.learn(linear_data(5), each) for each in range(3)))
    await workers[0].close_gracefully()  # what --lifetime calls
    assert workers[0].address not in s.workers
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_replicas_of_several_trainers_leave_together(c, s, *workers):
    await install(c)
    fleets = [
        await FleetOf(c, [w.address for w in workers], run_id).start()
        for run_id in ("first-run", "second-run")
    ]
    for fleet in fleets:
        await asyncio.gather(*(fleet.learn(linear_data(5), each) for each in range(3)))
    assert list(await c.retire_workers([workers[0].address])) == [workers[0].address]
    for fleet in fleets:
        await fleet.check([1, 2])
        fleet.release()


@three()
async def test_a_replica_whose_thread_has_ended_keeps_no_worker(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    (broken,) = workers[0].state.actors.values()
    await broken.thread.stopped()
    del broken
    assert list(await c.retire_workers([workers[0].address])) == [workers[0].address]
    fleet.release()


@three()
async def test_a_replica_that_is_not_built_keeps_its_worker(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    workers[0].plugins[DEPARTURES].remove(fleet.run_id, "replica-0")
    with captured_logger(
        "tensair_dask.coordinator.scheduler_plugin", level=logging.WARNING
    ) as log:
        assert await c.retire_workers([workers[0].address]) == {}
    assert "still being built" in log.getvalue()
    assert not (await fleet.learn(linear_data(1), 0)).status.leaving
    fleet.release()


@three()
async def test_a_trainer_goes_on_with_the_others(c, s, *workers):
    await install(c)
    async with ta.Trainer(c, **linear()) as trainer:
        data = linear_data(600)
        reports = await asyncio.gather(*(trainer.train(*each) for each in data[:300]))
        training = asyncio.gather(*(trainer.train(*each) for each in data[300:]))
        assert list(await c.retire_workers([workers[0].address]))
        reports += await training
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(600))
        assert not any(report.error for report in reports)
        states = await trainer.state_dicts()
        assert set(states) == {w.address for w in workers[1:]}
        assert spread(states) < 1e-4


@three()
async def test_clusters_that_name_workers_as_addresses_are_understood(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    await asyncio.gather(*(fleet.learn(linear_data(5), each) for each in range(3)))
    # As cluster.scale does; Dask finds no such worker and closes it afterwards.
    await c.scheduler.retire_workers(workers=[workers[0].name])
    assert not workers[0].state.actors
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_workers_with_replicas_are_not_offered_for_scaling_down(c, s, *workers):
    a, b, other = workers
    await install(c)
    fleet = await FleetOf(c, [a.address, b.address]).start()
    assert s.workers_to_close(target=0) == [other.address]
    assert s.workers_to_close(n=3) == [other.address]
    held = await actor(c, other)
    assert s.workers_to_close(target=0) == [other.address]  # others' are Dask's
    assert await c.retire_workers(n=3) == {}
    assert set(s.workers) == {w.address for w in workers}
    fleet.release()
    await until(lambda: not a.state.actors and not b.state.actors)
    assert len(s.workers_to_close(n=3)) == 3
    del held


@three()
async def test_replicas_stay_where_dask_would_not_retire_the_worker(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    held = await actor(c, workers[0])
    with captured_logger(
        "tensair_dask.coordinator.scheduler_plugin", level=logging.WARNING
    ) as log:
        assert await c.retire_workers([workers[0].address]) == {}
    assert "holds actors besides its replicas" in log.getvalue()
    assert not (await fleet.learn(linear_data(1), 0)).status.leaving
    fleet.release()
    del held


@three(config={"tensair.timeouts.leave": "300ms"})
async def test_a_replica_that_cannot_leave_stays_and_can_be_asked_again(c, s, *workers):
    await install(c)
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    (replica,) = workers[0].state.actors.values()
    held = asyncio.Event()
    flushed = replica.exchange.flushed

    async def slow(timeout: float) -> None:
        await asyncio.wait_for(held.wait(), timeout)
        await flushed(timeout)

    replica.exchange.flushed = slow
    with captured_logger(
        "tensair_dask.coordinator.scheduler_plugin", level=logging.WARNING
    ) as log:
        assert await c.retire_workers([workers[0].address]) == {}
    assert "1 of 1 replicas" in log.getvalue()
    assert "has not left within 0.3 s" in log.getvalue()
    assert workers[0].address in s.workers
    assert (await fleet.call(0, "status")).leaving
    assert s.workers_to_close(n=3) == []
    held.set()
    del replica
    assert list(await c.retire_workers([workers[0].address])) == [workers[0].address]
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_everything_else_passes_through_unchanged(c, s, *workers):
    original = s.handlers["retire_workers"]
    await install(c)
    wrapper = s.handlers["retire_workers"]
    await install(c)
    assert s.handlers["retire_workers"] is wrapper is not original
    assert await c.retire_workers(["tcp://127.0.0.1:1"]) == {}
    with pytest.raises(TypeError, match="mutually exclusive"):
        await c.scheduler.retire_workers(workers=[], names=[])
    with pytest.raises(TypeError, match="nonsense"):
        await c.scheduler.retire_workers(nonsense=1)
    retired = await c.retire_workers([workers[0].address], close_workers=True)
    assert retired[workers[0].address]["name"] == workers[0].name
    async with Worker(s.address, nthreads=1) as extra:
        assert list(await c.retire_workers(names=[extra.name])) == [extra.address]


@three()
async def test_a_guard_that_is_not_registered_any_more_takes_itself_out(c, s, *workers):
    original = s.handlers["retire_workers"]
    await install(c)
    await c.unregister_scheduler_plugin(NAME)
    assert await c.retire_workers(["tcp://127.0.0.1:1"]) == {}
    assert s.handlers["retire_workers"] == original
    assert "retire_workers" not in vars(s)
    guard = ReplicaGuard()
    await s.register_scheduler_plugin(guard, idempotent=True)
    assert s.handlers["retire_workers"] != original
    await guard.close()
    assert s.handlers["retire_workers"] == original
