from __future__ import annotations

import asyncio
import time

import dask
import pytest
from distributed import Scheduler
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all

import tensair_dask as ta
from tensair_dask.errors import (
    ClusterError,
    ConfigurationError,
    SchedulerLostError,
)
from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard
from tensair_dask.observe.terminal.remote import RemoteTelemetry


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_it_reads_what_the_scheduler_knows(c, s, a, b):
    async with (
        ta.Trainer(c, name="flowers", **classes()) as trainer,
        RemoteTelemetry(s.address) as remote,
    ):
        await train_all(trainer, class_data(30))
        while True:
            reported = await remote.read(["time", "loss", "nothing"])
            (one,) = reported["trainers"]
            if one["totals"]["steps"] == 30:
                break
            await asyncio.sleep(0.05)
        assert reported["scheduler"] == s.address
        assert reported["workers"] == 2
        assert one["name"] == "flowers"
        assert set(one["recent"]) == {"time", "loss"}
        assert len(one["recent"]["time"]) == len(one["recent"]["loss"]) > 0
        assert "recent" not in (await remote.read())["trainers"][0]


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_a_cluster_that_has_seen_no_trainer_is_watched_from_now_on(c, s):
    clients = dict(s.clients)
    async with RemoteTelemetry(s.address) as remote:
        assert not (await remote.read())["trainers"]
        assert s.clients == clients, "a monitor is no client"
        first = s.plugins[NAME]
    async with RemoteTelemetry(s.address) as remote:
        assert s.plugins[NAME] is first
        await c.unregister_scheduler_plugin(NAME)
        first.sample()  # it sees that it is not any more, and goes
        assert not (await remote.read())["trainers"]
        assert s.plugins[NAME] is not first


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_it_knows_where_the_dashboard_is(c, s):
    port = s.http_server.port
    async with RemoteTelemetry(s.address) as remote:
        s.plugins[NAME].attachment.page = None
        reported = await remote.read()
        assert reported["dashboard"] == f"http://127.0.0.1:{port}/status"
        s.plugins[NAME].attachment.page = "/tensair"
        reported = await remote.read()
        assert reported["dashboard"] == f"http://127.0.0.1:{port}/tensair"
        assert "page" not in reported
    with dask.config.set({"distributed.dashboard.link": "/user/{NOBODY}/{port}"}):
        async with RemoteTelemetry(s.address) as remote:
            told = await remote.read()
            assert told["dashboard"] == f"http://127.0.0.1:{port}/tensair"


def test_an_address_may_leave_out_what_is_usual():
    assert RemoteTelemetry("localhost").address == "tcp://localhost:8786"
    assert RemoteTelemetry("tls://host").address == "tls://host:8786"
    assert RemoteTelemetry("host:1").address == "tcp://host:1"
    assert RemoteTelemetry("[::1]:2").address == "tcp://[::1]:2"
    assert RemoteTelemetry("ws://host:3").address == "ws://host:3"


@pytest.mark.parametrize(
    ("address", "reported"),
    [
        ("http://127.0.0.1:8787/status", "looks like a dashboard"),
        ("tcp://127.0.0.1:port", "is no address of a scheduler"),
    ],
)
def test_what_is_no_address_is_refused(address, reported):
    with pytest.raises(ConfigurationError, match=reported):
        RemoteTelemetry(address)


async def open_and_close(address):
    async with RemoteTelemetry(address):
        pass


@pytest.mark.parametrize(
    ("address", "error", "reported"),
    [
        ("tcp://127.0.0.1:1", SchedulerLostError, "No scheduler answers at tcp://127"),
        ("tcp://no-such-host.invalid:1", SchedulerLostError, "No scheduler answers"),
        ("foo://127.0.0.1:1", ConfigurationError, "unknown address scheme 'foo'"),
    ],
)
def test_an_address_where_nobody_listens_is_reported_at_once(address, error, reported):
    start = time.monotonic()
    with pytest.raises(error, match=reported):
        asyncio.run(open_and_close(address))
    assert time.monotonic() - start < 4


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_server_that_is_no_scheduler_is_refused(c, s, a):
    with pytest.raises(ConfigurationError, match="is the address of a Dask worker"):
        await open_and_close(a.address)
    port = s.http_server.port
    with (
        dask.config.set({"tensair.timeouts.monitor": "500ms"}),
        pytest.raises(SchedulerLostError, match=r"Something listens.*tls://"),
    ):
        await open_and_close(f"tcp://127.0.0.1:{port}")
    port = s.port
    with pytest.raises(ConfigurationError, match=r"distributed\.comm\.tls"):
        await open_and_close(f"tls://127.0.0.1:{port}")


def test_a_scheduler_that_goes_away_is_reported():
    async def main():
        scheduler = await Scheduler(
            host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0"
        )
        async with RemoteTelemetry(scheduler.address) as remote:
            await remote.read()
            await scheduler.close()
            with pytest.raises(SchedulerLostError, match="has gone away"):
                await remote.read()

    asyncio.run(asyncio.wait_for(main(), 30))


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_a_scheduler_that_does_not_answer_is_not_waited_for(c, s):
    async def never(recent):
        await asyncio.Event().wait()

    with dask.config.set({"tensair.timeouts.monitor": "200ms"}):
        async with RemoteTelemetry(s.address) as remote:
            s.handlers["tensair_telemetry_read"] = never
            with pytest.raises(SchedulerLostError, match=r"not answered for 0\.2 s"):
                await remote.read()
    del s.handlers["tensair_telemetry_read"]


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_a_scheduler_that_takes_no_plugins_may_have_it_already(c, s):
    s.blocked_handlers = ["register_scheduler_plugin"]
    with pytest.raises(ClusterError, match="--preload tensair_dask"):
        await open_and_close(s.address)
    await s.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
    async with RemoteTelemetry(s.address) as remote:
        assert not (await remote.read())["trainers"]
