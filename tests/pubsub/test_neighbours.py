from __future__ import annotations

import asyncio
import contextlib
import socket

import numpy as np
import pytest

from tensair_dask.pubsub import neighbours as module
from tensair_dask.pubsub.link import GONE, OK
from tensair_dask.pubsub.neighbours import Connection, Neighbours
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.slot import AVAILABLE

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no files in memory here")

SENDER = ("id", "tcp://a:1", "name", "worker")


class Host:
    """Takes deliveries; answers when it is let."""

    def __init__(self):
        self.deliveries = []
        self.answer = OK
        self.free = asyncio.Event()
        self.free.set()
        loop = asyncio.get_running_loop()
        self.neighbours = Neighbours(loop, self.deliver, loop.create_task)

    async def deliver(self, subscription, sender, number, parcels):
        values = [np.array(parcel.open()) for parcel in parcels]
        self.deliveries.append((subscription, tuple(sender), number, values))
        await self.free.wait()
        return self.answer

    def connect(self):
        return Connection(asyncio.get_running_loop(), **self.neighbours.invitation)


def with_a_host(function):
    def test():
        async def run():
            host = Host()
            try:
                async with asyncio.timeout(30):
                    await function(host)
            finally:
                host.neighbours.close()

        asyncio.run(run())

    test.__name__ = function.__name__
    return test


def parcels(*sizes):
    return [Parcel(np.full(size, size, "float32")) for size in sizes]


def stranger_was_hung_up_on(stranger):
    stranger.setblocking(False)
    try:
        return stranger.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


async def until(condition):
    while not condition():
        await asyncio.sleep(0.001)


@with_a_host
async def test_deliveries_arrive_with_all_that_belongs_to_them(host):
    with contextlib.closing(host.connect()) as connection:
        for number, sizes in enumerate([(3,), (100_000, 1), (5, 6, 7), (200_000,)]):
            answer = await connection.deliver("sub", SENDER, number, parcels(*sizes))
            assert answer == OK
            subscription, sender, told, values = host.deliveries[-1]
            assert (subscription, sender, told) == ("sub", SENDER, number)
            assert [len(value) for value in values] == list(sizes)
            assert all((value == len(value)).all() for value in values)


@with_a_host
async def test_a_subscription_that_is_gone_is_answered(host):
    host.answer = GONE
    with contextlib.closing(host.connect()) as connection:
        assert await connection.deliver("sub", SENDER, 1, parcels(1)) == GONE


@with_a_host
async def test_a_host_that_ends_in_between_raises(host):
    host.free.clear()
    connection = host.connect()
    delivery = asyncio.ensure_future(connection.deliver("sub", SENDER, 1, parcels(1)))
    await until(lambda: host.deliveries)
    host.neighbours.close()
    with pytest.raises(OSError, match="hung up"):
        await delivery
    assert connection.closed
    host.free.set()


@with_a_host
async def test_a_delivery_that_is_given_up_leaves_its_memory_alone(host):
    host.free.clear()
    connection = host.connect()
    delivery = asyncio.ensure_future(connection.deliver("sub", SENDER, 1, parcels(1)))
    await until(lambda: host.deliveries)
    delivery.cancel()
    with pytest.raises(asyncio.CancelledError):
        await delivery
    # The host reads it still: nothing more is written there.
    assert connection.closed
    host.free.set()


@with_a_host
async def test_who_does_not_know_the_key_is_hung_up_on(host):
    invitation = host.neighbours.invitation
    loop = asyncio.get_running_loop()
    stranger = Connection(loop, invitation["name"], b"x" * 16)
    with pytest.raises(OSError, match=r"hung up|Broken pipe|reset"):
        await stranger.deliver("sub", SENDER, 1, parcels(1))
    assert not host.deliveries


def test_another_user_is_not_connected_to(monkeypatch):
    @with_a_host
    async def run(host):
        monkeypatch.setattr(module.os, "geteuid", lambda: -7)
        with pytest.raises(OSError, match="another user"):
            host.connect()
        await asyncio.sleep(0)
        assert not host.neighbours.connections

    run()


@pytest.mark.parametrize("packet", [b"short", b"\0" * 16, b"x" * 16, b"y" * 40])
def test_whatever_a_neighbour_sends_the_host_goes_on(packet):
    @with_a_host
    async def run(host):
        invitation = host.neighbours.invitation
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
            stranger.connect(invitation["name"])
            stranger.send(invitation["key"])
            stranger.send(packet)
            await until(lambda: stranger_was_hung_up_on(stranger))
        with contextlib.closing(host.connect()) as connection:
            assert await connection.deliver("sub", SENDER, 1, parcels(1)) == OK

    run()


@with_a_host
async def test_an_answer_that_cannot_be_sent_ends_the_connection(host):
    host.free.clear()
    connection = host.connect()
    delivery = asyncio.ensure_future(connection.deliver("sub", SENDER, 1, parcels(1)))
    await until(lambda: host.deliveries)
    connection.close()
    with pytest.raises(OSError, match="hung up"):
        await delivery
    host.free.set()
    await until(lambda: not host.neighbours.connections)
