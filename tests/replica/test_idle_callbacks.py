from __future__ import annotations

import asyncio
import threading

import dask
import pytest
from helpers import linear
from lab import cluster

import tensair_dask as ta
from tensair_dask.replica.idle_callbacks import REST, calm

GO_ON = threading.Event()

PROFILED = {"distributed.worker.profile.enabled": True}


def wait_to_go_on():
    # By its name: the worker is in this process, but functions travel by value.
    import test_idle_callbacks

    assert test_idle_callbacks.GO_ON.wait(20)


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


@cluster(1, config=PROFILED)
async def test_the_profiler_rests_unless_a_task_runs(c, s, a):
    profile = a.periodic_callbacks["profile"]
    usual = profile.callback_time
    async with ta.Trainer(c, **linear()):
        await until(lambda: profile.callback_time == REST * usual)
        future = c.submit(wait_to_go_on)
        await until(lambda: profile.callback_time == usual)
        await until(lambda: a.profile_recent["count"] or a.profile_history)
        GO_ON.set()
        await future
        await until(lambda: profile.callback_time == REST * usual)


@cluster(1, config=PROFILED)
async def test_a_worker_is_calmed_once(c, s, a):
    profile = a.periodic_callbacks["profile"]
    calm(a)
    callback, tick = profile.callback, a.periodic_callbacks["tick"].callback_time
    calm(a)
    assert profile.callback is callback
    assert a.periodic_callbacks["tick"].callback_time == tick


@cluster(1)
async def test_a_profiler_that_is_off_stays_off(c, s, a):
    calm(a)
    assert "profile" not in a.periodic_callbacks


@pytest.mark.parametrize(
    ("own", "wanted", "then"),
    [("20ms", "100ms", 100), ("500ms", "100ms", 500), ("20ms", "0s", 20)],
)
def test_ticks_are_as_far_apart_as_configured(own, wanted, then):
    @cluster(1, config={"distributed.admin.tick.interval": own})
    async def run(c, s, a):
        with dask.config.set({"tensair.replicas.tick": wanted}):
            calm(a)
        assert a.periodic_callbacks["tick"].callback_time == then

    run()
