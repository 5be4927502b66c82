"""A worker that closes lets its replicas leave first."""

from __future__ import annotations

import asyncio
import functools
import gc
import logging
import signal
import weakref

import dask
import pytest
from departing import FleetOf, Slow, until
from distributed.utils_test import captured_logger, gen_cluster
from helpers import linear_data

from tensair_dask.errors import ClusterError
from tensair_dask.pubsub import Pub, Sub
from tensair_dask.replica.worker_departures import NAME, Departures

three = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60
)
one = functools.partial(gen_cluster, nthreads=[("127.0.0.1", 1)], timeout=60)


class Leaving:
    """Leaves as a replica does, and says when."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.asked: list[float] = []

    async def leave(self, timeout: float) -> None:
        self.asked.append(timeout)
        if self.error is not None:
            raise self.error


@three()
async def test_a_worker_that_closes_while_it_learns_loses_nothing(c, s, *workers):
    fleet = await FleetOf(c, [w.address for w in workers]).start()
    data = linear_data(90)
    feeding = [
        asyncio.create_task(fleet.feed(data[at : at + 30], each))
        for each, at in enumerate((0, 30, 60))
    ]
    await until(lambda: len(fleet.learned) > 20)
    await workers[0].close()
    fleet.gone.add(0)
    await asyncio.gather(*feeding)
    assert len(fleet.learned) == 90
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_answers_go_out_before_the_worker_closes_its_connections(c, s, *workers):
    addresses = [w.address for w in workers]
    fleet = await FleetOf(c, addresses, model=Slow).start()
    data = linear_data(8)
    sent = [
        asyncio.create_task(fleet.call(0, "learn", fleet.block(data[at : at + 2])))
        for at in range(0, 8, 2)
    ]
    (replica,) = workers[0].state.actors.values()
    await until(lambda: replica.departure.under_way == 4)
    await workers[0].close()
    for outcome in await asyncio.gather(*sent):
        assert len(outcome.losses) == 2
        assert outcome.status.leaving
    fleet.learned = data
    await fleet.check([1, 2])
    fleet.release()


@three()
async def test_pubsub_ends_after_the_replicas_have_left(c, s, *workers):
    a, b, _ = workers
    heard = []
    sub = Sub("t", worker=b, handler=lambda message, sender: heard.append(message))
    await sub
    pub = Pub("t", worker=a)
    await pub
    await pub.wait_for(lambda view: view.subscribers)

    class Publishing(Leaving):
        async def leave(self, timeout: float) -> None:
            await asyncio.sleep(0.1)
            pub.put("at last")
            await pub.flushed(timeout=timeout)

    publishing = Publishing()
    Departures.of(a).add("run", "replica-0", publishing.leave)
    await a.close()
    assert heard == ["at last"]


@one()
async def test_all_leave_once_bounded_by_the_configured_time(s, a):
    first, second = Leaving(), Leaving()
    Departures.of(a).add("run", "replica-0", first.leave)
    Departures.of(a).add("run", "replica-1", second.leave)
    with dask.config.set({"tensair.timeouts.teardown": "2s"}):
        await a.close()
    assert first.asked == second.asked == [2.0]


@one()
async def test_a_replica_that_cannot_leave_does_not_keep_the_others(s, a):
    failing, other = Leaving(ValueError("no")), Leaving()
    departures = Departures.of(a)
    departures.add("run", "replica-0", failing.leave)
    departures.add("run", "replica-1", other.leave)
    with pytest.raises(ClusterError, match=r"1 of 2 replicas .* could not leave\. no"):
        await departures.leave(1.0)
    with captured_logger(
        "tensair_dask.replica.worker_departures", level=logging.WARNING
    ) as log:
        await a.close()
    assert "1 of 2 replicas" in log.getvalue()
    assert len(other.asked) == 2


@one()
async def test_replicas_that_were_closed_or_dropped_are_forgotten(s, a):
    closed, dropped, other = Leaving(), Leaving(), Leaving()
    departures = Departures.of(a)
    assert Departures.of(a) is departures is a.plugins[NAME]
    for number, each in enumerate((closed, dropped, other)):
        departures.add("run", f"replica-{number}", each.leave)
    departures.remove("run", "replica-0")
    gone = weakref.ref(dropped)
    del dropped, each
    gc.collect()
    assert gone() is None
    assert await departures.leave(1.0) == ["replica-2"]
    assert closed.asked == []


@one()
async def test_signals_of_a_process_that_is_not_the_workers_are_left_alone(s, a):
    before = signal.getsignal(signal.SIGTERM)
    Departures.of(a)
    assert signal.getsignal(signal.SIGTERM) is before
