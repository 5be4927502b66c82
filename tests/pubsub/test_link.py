"""A link and an inlet, joined by a transport in memory."""

from __future__ import annotations

import asyncio
import operator
import random
from collections.abc import Iterable

import pytest

from tensair_dask.pubsub.faults import Fault, inject
from tensair_dask.pubsub.inlet import Inlet
from tensair_dask.pubsub.link import GONE, OK, Link
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.policies import Block, Conflate, DropOldest
from tensair_dask.pubsub.pulse import Pulse
from tensair_dask.pubsub.view import Member

SENDER = Member("p", "tcp://a:1", None, "worker")
RECEIVER = Member("s", "tcp://b:1", None, "worker")


class Wire:
    """One link whose deliveries go straight into one inlet."""

    is_shared = False

    def __init__(self, policy, accept=None, retry=0.001, local=True):
        self.got = []
        self.pulse = Pulse()
        self.deliveries = []
        self.error = None
        spawn = asyncio.get_running_loop().create_task
        self.inlet = Inlet(accept or (lambda m, _: self.got.append(m)), spawn)
        self.link = Link(
            RECEIVER,
            policy,
            self,
            retry=retry,
            changed=self.pulse.beat,
            spawn=spawn,
            local=local,
        )
        self.ordinal = 0

    async def send(self, number, parcels):
        await asyncio.sleep(0)
        if self.error is not None:
            raise self.error
        self.deliveries.append((number, len(parcels)))
        return await self.inlet.receive(SENDER, number, parcels)

    def close(self):
        self.closed = True

    def put(self, *messages):
        for message in messages:
            self.ordinal += 1
            self.link.outbox.put(self.ordinal, Parcel(message))
            self.link.wake()

    async def flushed(self):
        ordinal = self.ordinal
        await self.pulse.until(lambda: self.link.outbox.settled(ordinal), 10, "flushed")


def in_a_loop(function):
    def test():
        async def bounded():
            await asyncio.wait_for(function(), 20)

        asyncio.run(bounded())

    test.__name__ = function.__name__
    return test


@in_a_loop
async def test_messages_arrive_in_order():
    wire = Wire(Block(1000))
    wire.put(*range(500))
    await wire.flushed()
    assert wire.got == list(range(500))


@in_a_loop
async def test_messages_that_wait_leave_together():
    wire = Wire(Block(1000))
    wire.put(*range(150))
    await wire.flushed()
    assert wire.deliveries == [(1, 100), (2, 50)]
    assert wire.link.stats.messages == 150


@in_a_loop
async def test_large_messages_leave_one_by_one():
    wire = Wire(Block(1000), local=False)
    wire.put(*[bytes(2**20)] * 3)
    await wire.flushed()
    assert wire.deliveries == [(1, 1), (2, 1), (3, 1)]
    assert wire.link.stats.bytes >= 3 * 2**20


@in_a_loop
async def test_nothing_is_delivered_twice_when_acknowledgements_are_lost():
    wire = Wire(DropOldest(1000))
    lost = iter([True, True, False] * 1000)
    with inject(Fault.SENT_ACK_LOST, lambda _: next(lost)):
        wire.put(*range(50))
        await wire.flushed()
    assert wire.got == list(range(50))
    assert wire.link.stats.resent == wire.inlet.duplicates == 100


@in_a_loop
async def test_nothing_is_lost_when_connections_break():
    wire = Wire(DropOldest(1000))
    dice = random.Random(0)
    with inject(Fault.CONNECT_FAILS, lambda _: dice.random() < 0.5):
        wire.put(*range(50))
        await wire.flushed()
    assert wire.got == list(range(50))
    assert wire.link.stats.resent > 0


@in_a_loop
async def test_conflation_loses_nothing_under_all_faults_at_once():
    wire = Wire(Conflate(operator.add))
    dice = random.Random(1)
    with (
        inject(Fault.CONNECT_FAILS, lambda _: dice.random() < 0.2),
        inject(Fault.SENT_ACK_LOST, lambda _: dice.random() < 0.2),
        inject(Fault.DELAY, lambda _: dice.random() / 500),
    ):
        for number in range(300):
            wire.put(number)
            await asyncio.sleep(0)
        await wire.flushed()
    assert sum(wire.got) == sum(range(300))
    assert len(wire.got) < 300
    assert wire.link.stats.conflated == 300 - len(wire.got)


@in_a_loop
async def test_a_repeated_delivery_waits_for_the_handling_that_still_runs():
    handled = asyncio.get_running_loop().create_future()
    calls = []

    def accept(message, sender):
        calls.append(message)
        return handled

    wire = Wire(Block(10), accept)
    first = asyncio.ensure_future(wire.inlet.receive(SENDER, 1, [Parcel("m")]))
    again = asyncio.ensure_future(wire.inlet.receive(SENDER, 1, [Parcel("m")]))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not first.done()
    assert not again.done()
    handled.set_result(None)
    assert await first == await again == OK
    assert calls == ["m"]


@in_a_loop
async def test_handling_goes_on_when_the_publisher_hangs_up():
    go_on = asyncio.get_running_loop().create_future()
    got = []

    async def accept(message, sender):
        await go_on
        got.append(message)

    wire = Wire(Block(10), accept)
    delivery = asyncio.ensure_future(
        wire.inlet.receive(SENDER, 1, [Parcel(1), Parcel(2)])
    )
    await asyncio.sleep(0)
    delivery.cancel()
    go_on.set_result(None)
    assert await wire.inlet.receive(SENDER, 1, [Parcel(1), Parcel(2)]) == OK
    assert got == [1, 2]


@in_a_loop
async def test_an_old_delivery_that_the_network_held_back_is_not_handled_again():
    wire = Wire(Block(10))
    for number in (1, 2):
        await wire.inlet.receive(SENDER, number, [Parcel(number)])
    wire.inlet.see([])  # the publisher leaves the view meanwhile
    assert await wire.inlet.receive(SENDER, 1, [Parcel(1)]) == OK
    assert wire.got == [1, 2]


@in_a_loop
async def test_the_memory_of_publishers_that_left_is_bounded():
    wire = Wire(Block(10))

    async def deliver(numbers: Iterable[int]) -> None:
        for number in numbers:
            sender = SENDER._replace(id=str(number))
            await wire.inlet.receive(sender, 1, [Parcel(number)])

    await deliver(range(2000))
    wire.inlet.see(["0"])
    wire.got.clear()
    # What is not known any more is taken for new.
    await deliver([0, *range(1000, 2000)])
    assert not wire.got
    await deliver(range(1, 1000))
    assert wire.got == list(range(1, 1000))


@in_a_loop
async def test_a_handler_that_raises_does_not_stop_the_link():
    got = []

    def accept(message, sender):
        if message == 1:
            raise ValueError("bad")
        got.append(message)

    wire = Wire(Block(10), accept)
    wire.put(0, 1, 2)
    await wire.flushed()
    assert got == [0, 2]
    assert wire.inlet.errors == 1


@in_a_loop
async def test_an_awaitable_that_raises_does_not_stop_the_link():
    got = []

    async def accept(message, sender):
        if message == 1:
            raise ValueError("bad")
        got.append(message)

    wire = Wire(Block(10), accept)
    wire.put(0, 1, 2)
    await wire.flushed()
    assert got == [0, 2]
    assert wire.inlet.errors == 1


@in_a_loop
async def test_a_message_that_cannot_be_pickled_does_not_stop_the_link():
    wire = Wire(Block(10), local=False)
    wire.put(0, (i for i in ()), 2)
    await wire.flushed()
    assert wire.got == [0, 2]
    wire.put(i for i in ())
    await wire.flushed()
    assert wire.link.stats.failed == 2
    wire.put(4)
    await wire.flushed()
    assert wire.got == [0, 2, 4]


@in_a_loop
async def test_an_unexpected_error_costs_one_delivery():
    wire = Wire(DropOldest(10))
    wire.error = TypeError("no such message")
    wire.put(1)
    await wire.flushed()
    wire.error = None
    wire.put(2)
    await wire.flushed()
    assert wire.got == [2]
    assert wire.link.stats.failed == 1


@in_a_loop
async def test_a_closed_inlet_says_so_and_ends_the_link():
    wire = Wire(Block(10))
    wire.inlet.close()
    assert await wire.inlet.receive(SENDER, 1, [Parcel(1)]) == GONE
    wire.put(1, 2, 3)
    await wire.flushed()
    assert wire.link.closed
    assert wire.link.stats.pending == wire.link.stats.in_flight == 0


@in_a_loop
async def test_closing_an_inlet_ends_the_handling_and_says_so():
    never = asyncio.get_running_loop().create_future()
    wire = Wire(Block(10), lambda message, sender: never)
    wire.put(1)
    await wire.pulse.until(lambda: not wire.deliveries, 1, "sent")
    delivery = asyncio.ensure_future(wire.inlet.receive(SENDER, 5, [Parcel(1)]))
    await asyncio.sleep(0)
    wire.inlet.close()
    assert await delivery == GONE


@in_a_loop
async def test_closing_a_link_gives_up_what_is_in_flight():
    never = asyncio.get_running_loop().create_future()
    wire = Wire(Block(10), lambda message, sender: never)
    before = asyncio.all_tasks()
    wire.put(1, 2, 3)
    await asyncio.sleep(0)
    assert wire.link.stats.in_flight == 3
    (task,) = asyncio.all_tasks() - before
    wire.link.close()
    await wire.flushed()
    await asyncio.wait([task])
    assert task.cancelled()


@in_a_loop
async def test_a_link_counts_round_trips():
    wire = Wire(Block(10))
    assert wire.link.stats.last_rtt_seconds is None
    wire.put(1)
    await wire.flushed()
    stats = wire.link.stats
    assert stats.ewma_rtt_seconds == stats.last_rtt_seconds > 0
    wire.put(2)
    await wire.flushed()
    newer = wire.link.stats
    assert newer.ewma_rtt_seconds == pytest.approx(
        0.875 * stats.last_rtt_seconds + 0.125 * newer.last_rtt_seconds
    )
