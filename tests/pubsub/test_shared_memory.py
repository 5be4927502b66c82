"""Which way messages take, and that none gets lost on it or comes twice."""

from __future__ import annotations

import asyncio
import errno
import os
import signal

import numpy as np
import pytest
from distributed import Client, LocalCluster, Worker
from distributed.utils_test import gen_cluster
from helpers import (
    class_data,
    classes,
    expected_weight,
    linear,
    linear_data,
    spread,
    train_all,
    until,
)

import tensair_dask as ta
from tensair_dask.pubsub import Pub, Sub, neighbours
from tensair_dask.pubsub.slot import AVAILABLE, Slot

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no files in memory here")


def links(pub):
    return list(pub.links.values())


@gen_cluster(client=True)
async def test_workers_of_one_machine_share_memory(c, s, a, b):
    sub = await Sub("t", worker=b)
    pub = await Pub("t", worker=a)
    for size in (3, 200_000, 5):
        pub.put(np.full(size, size))
        assert (await sub.get("5s")).tolist() == [size] * size
    assert [link.shared_memory for link in links(pub)] == [True]


@gen_cluster(client=True)
async def test_what_a_subscriber_keeps_is_not_overwritten(c, s, a, b):
    sub = await Sub("t", worker=b)
    pub = await Pub("t", worker=a)
    kept = []
    for number in range(10):
        pub.put(np.full(1000, number))
        kept.append(await sub.get("5s"))
    assert [each[0] for each in kept] == list(range(10))
    assert all((each == each[0]).all() for each in kept)


@gen_cluster(client=True, config={"tensair.pubsub.shared-memory": False})
async def test_memory_is_not_shared_where_that_is_off(c, s, a, b):
    sub = await Sub("t", worker=b)
    pub = await Pub("t", worker=a)
    pub.put(np.arange(3))
    assert (await sub.get("5s")).tolist() == [0, 1, 2]
    assert [link.shared_memory for link in links(pub)] == [False]


@gen_cluster(client=True)
async def test_clients_and_other_machines_get_their_messages_by_comms(c, s, a, b):
    at_client = await Sub("t", client=c)
    sub = await Sub("t", worker=b)
    b.plugins["tensair-pubsub"].machine = "another one"
    pub = await Pub("t", worker=a)
    pub.put(np.arange(3))
    assert (await sub.get("5s")).tolist() == [0, 1, 2]
    assert (await at_client.get("5s")).tolist() == [0, 1, 2]
    assert [link.shared_memory for link in links(pub)] == [False, False]


@gen_cluster(client=True)
async def test_a_neighbour_that_cannot_be_connected_to_is_reached_by_comms(c, s, a, b):
    class Unreachable(neighbours.Neighbours):
        @property
        def invitation(self):
            return {**super().invitation, "name": "\0nobody listens here"}

    sub = await Sub("t", worker=b)
    endpoint = b.plugins["tensair-pubsub"]
    endpoint.neighbours = Unreachable(
        endpoint.loop, endpoint._deliver_borrowed, endpoint.spawn
    )
    pub = await Pub("t", worker=a)
    pub.put(np.arange(3))
    assert (await sub.get("5s")).tolist() == [0, 1, 2]
    assert [link.shared_memory for link in links(pub)] == [False]


def none_made(nbytes):
    raise OSError(errno.ENOMEM, "no memory")


def none_mapped(file):
    os.close(file)
    raise OSError(errno.ENOMEM, "no memory")


@pytest.mark.parametrize(
    ("method", "fails"), [("made", none_made), ("received", none_mapped)]
)
def test_without_memory_to_share_messages_go_by_comms(
    method, fails, monkeypatch, caplog
):
    monkeypatch.setattr(Slot, method, fails)

    @gen_cluster(client=True, config={"tensair.pubsub.retry": "1ms"})
    async def run(c, s, a, b):
        sub = await Sub("t", worker=b)
        pub = await Pub("t", worker=a)
        for number in range(3):
            pub.put(np.array([number]))
        assert [(await sub.get("5s"))[0] for _ in range(3)] == [0, 1, 2]
        assert [link.shared_memory for link in links(pub)] == [False]

    run()
    assert caplog.text.count("go by Dask's comms from now on") == 1


@gen_cluster(client=True)
async def test_a_connection_that_breaks_loses_nothing_and_repeats_nothing(c, s, a, b):
    got = []

    async def take(message, sender):
        await asyncio.sleep(0)
        got.append(int(message[0]))

    sub = await Sub("t", worker=b, handler=take)
    pub = await Pub("t", worker=a)
    pub.put(np.array([0]))
    await pub.flushed(timeout=10)
    host = b.plugins["tensair-pubsub"].neighbours
    for number in range(1, 100):
        pub.put(np.array([number]))
        if number % 7 == 0:
            host.hang_up()
            await asyncio.sleep(0)
    await pub.flushed(timeout=20)
    assert got == list(range(100))
    assert links(pub)[0].resent > 0
    await sub.close()


@gen_cluster(client=True)
async def test_the_connection_ends_with_the_subscription(c, s, a, b):
    sub = await Sub("t", worker=b)
    pub = await Pub("t", worker=a)
    pub.put(np.arange(3))
    await sub.get("5s")
    host = b.plugins["tensair-pubsub"].neighbours
    assert host.connections == 1
    await sub.close()
    await until(lambda: not host.connections)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_gradients_arrive_once_although_connections_break(c, s, *workers):
    data = linear_data(300)
    async with ta.Trainer(c, staleness="1ms", **linear()) as trainer:
        learning = asyncio.ensure_future(train_all(trainer, data))
        broken = 0
        while not learning.done():
            await asyncio.sleep(0.02)
            for worker in workers:
                host = worker.plugins["tensair-pubsub"].neighbours
                if host is not None and host.connections:
                    host.hang_up()
                    broken += 1
        await learning
        await trainer.drain()
        states = await trainer.state_dicts()
        stats = await trainer.exchange_stats()
    assert broken > 0
    assert spread(states) < 1e-3
    for state in states.values():
        difference = state["weight"].double() - expected_weight(data)
        assert float(difference.abs().max()) < 2e-4
    assert sum(each["resent"] for each in stats.values()) > 0


def shared_memory_of(pid: int) -> list[str]:
    """Files in memory that a process has mapped."""
    with open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return [line for line in maps if "memfd:tensair" in line]


def name_of_socket(dask_worker: Worker) -> str:
    neighbours = dask_worker.plugins["tensair-pubsub"].neighbours
    return neighbours.invitation["name"].replace("\0", "@")


@pytest.mark.processes
def test_nothing_is_left_of_workers_that_are_killed_together():
    before = set(os.listdir("/dev/shm"))
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as lc,
        Client(lc) as client,
    ):
        pids = list(client.run(os.getpid).values())
        trainer = ta.Trainer(client, replicas=2, **classes())
        for x, y in class_data(100):
            trainer.train(x, y)
        trainer.drain()
        assert all(
            each["shared_memory"] == 1 for each in trainer.exchange_stats().values()
        )
        assert all(map(shared_memory_of, pids))
        assert not [
            name for name in set(os.listdir("/dev/shm")) - before if "tensair" in name
        ]
        names = client.run(name_of_socket).values()
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        trainer.close()
    with open("/proc/net/unix", encoding="utf-8") as sockets:
        left = sockets.read()
    assert not [name for name in names if name in left]
