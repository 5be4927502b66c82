"""Counts on the heartbeats of real workers."""

from __future__ import annotations

import asyncio
import functools
import gc
import weakref
from typing import Any

from distributed import Status
from distributed.utils_test import gen_cluster

from tensair_dask.observe.telemetry.worker import METRIC, WorkerTelemetry

one = functools.partial(gen_cluster, nthreads=[("127.0.0.1", 1)], timeout=60)


class Counting:
    """Answers as a replica does."""

    def __init__(self, steps: int | None = 1) -> None:
        self.steps = steps

    def report_counts(self) -> dict[str, Any] | None:
        return None if self.steps is None else {"steps": self.steps}


def on_scheduler(s: Any, worker: Any) -> Any:
    return s.workers[worker.address].metrics.get(METRIC)


@one()
async def test_heartbeats_carry_what_all_replicas_of_a_worker_count(s, a):
    first, second, other = Counting(1), Counting(2), Counting(3)
    WorkerTelemetry.of(a).add("run", "replica-0", first.report_counts)
    WorkerTelemetry.of(a).add("run", "replica-1", second.report_counts)
    WorkerTelemetry.of(a).add("another", "replica-0", other.report_counts)
    await a.heartbeat()
    assert on_scheduler(s, a) == {
        "run": {"replica-0": {"steps": 1}, "replica-1": {"steps": 2}},
        "another": {"replica-0": {"steps": 3}},
    }
    first.steps = 10
    await a.heartbeat()
    assert on_scheduler(s, a)["run"]["replica-0"] == {"steps": 10}


@one()
async def test_a_worker_without_replicas_reports_nothing(s, a):
    await a.heartbeat()
    metrics = set(a.metrics)
    assert on_scheduler(s, a) is None
    replica = Counting()
    WorkerTelemetry.of(a).add("run", "replica-0", replica.report_counts)
    await a.heartbeat()
    del replica
    await a.heartbeat()  # finds out
    assert on_scheduler(s, a) == {}
    await a.heartbeat()
    assert on_scheduler(s, a) is None
    assert set(a.metrics) == metrics


@one()
async def test_a_replica_that_dask_drops_is_not_kept_alive(s, a):
    dropped, kept = Counting(1), Counting(2)
    telemetry = WorkerTelemetry.of(a)
    telemetry.add("run", "replica-0", dropped.report_counts)
    telemetry.add("run", "replica-1", kept.report_counts)
    del dropped
    assert sum(type(each) is Counting for each in gc.get_objects()) == 1
    await a.heartbeat()
    assert on_scheduler(s, a) == {"run": {"replica-1": {"steps": 2}}}
    assert len(telemetry._replicas) == 1


@one()
async def test_a_replica_that_does_not_train_any_more_is_left_out(s, a):
    ended, other = Counting(None), Counting(2)
    WorkerTelemetry.of(a).add("run", "replica-0", ended.report_counts)
    await a.heartbeat()
    assert on_scheduler(s, a) == {}
    WorkerTelemetry.of(a).add("run", "replica-1", other.report_counts)
    await a.heartbeat()
    assert on_scheduler(s, a) == {"run": {"replica-1": {"steps": 2}}}


@one()
async def test_after_many_replicas_nothing_is_left(s, a):
    metrics = set(a.metrics)
    telemetry = weakref.ref(WorkerTelemetry.of(a))
    for number in range(50):
        replica = Counting(number)
        WorkerTelemetry.of(a).add(f"run-{number}", "replica-0", replica.report_counts)
        await a.heartbeat()
        assert len(on_scheduler(s, a)) == 1
    del replica
    await a.heartbeat()
    assert set(a.metrics) == metrics
    gc.collect()
    assert telemetry() is None


@one()
async def test_a_replica_may_come_and_go_while_a_heartbeat_is_at_work(s, a):
    """Dask closes a worker whose heartbeat fails."""
    reached, go_on = asyncio.Event(), asyncio.Event()

    async def slow(worker: Any) -> int:
        reached.set()
        await go_on.wait()
        return 1

    a.metrics = {**a.metrics, "slow": slow, "other": lambda worker: 2}
    heartbeat = asyncio.ensure_future(a.heartbeat())
    await reached.wait()
    replica = Counting()
    WorkerTelemetry.of(a).add("run", "replica-0", replica.report_counts)
    go_on.set()
    await heartbeat
    assert s.workers[a.address].metrics["other"] == 2
    await a.heartbeat()
    assert on_scheduler(s, a) == {"run": {"replica-0": {"steps": 1}}}
    del replica
    await a.heartbeat()
    assert a.status is Status.running
    assert METRIC not in a.metrics


@one()
async def test_a_worker_that_is_registered_with_replicas_reports_them_at_once(s, a):
    replica = Counting(5)
    WorkerTelemetry.of(a).add("run", "replica-0", replica.report_counts)
    assert (await a.get_metrics())[METRIC] == {"run": {"replica-0": {"steps": 5}}}
