"""Order, exactly-once and back-pressure across a cluster."""

from __future__ import annotations

import asyncio
import operator
import random
import threading
import weakref

import numpy as np
import pytest
from distributed.utils_test import async_poll_for, gen_cluster

from tensair_dask.errors import TensairTimeoutError, TrainerClosedError
from tensair_dask.pubsub import Block, Conflate, DropOldest, Pub, Sub
from tensair_dask.pubsub.faults import Fault, inject

QUICK = {"tensair.pubsub.retry": "1ms"}


class Gate:
    """A handler that acknowledges nothing until it is opened."""

    def __init__(self):
        self.got = []
        self.open = asyncio.Event()

    async def __call__(self, message, sender):
        await self.open.wait()
        self.got.append(message)


def _on_the_way(pub, sub):
    stats = pub.links[sub.id]
    return stats.pending + stats.in_flight


@gen_cluster(client=True, config=QUICK)
async def test_exactly_once_and_in_order_whatever_breaks(c, s, a, b):
    dice = random.Random(3)
    with (
        inject(Fault.CONNECT_FAILS, lambda _: dice.random() < 0.1),
        inject(Fault.SENT_ACK_LOST, lambda _: dice.random() < 0.2),
        inject(Fault.DELAY, lambda _: dice.random() / 500),
    ):
        got = {name: [] for name in "abc"}
        subs = [
            await Sub("t", handler=lambda m, _, n=name: got[n].append(m), **where)
            for name, where in zip(
                "abc", [{"worker": a}, {"worker": b}, {"client": c}], strict=True
            )
        ]
        pubs = [
            await Pub("t", worker=a, policy=DropOldest(10_000)),
            await Pub("t", worker=b),
            await Pub("t", client=c),
        ]
        for number in range(60):
            for key, pub in enumerate(pubs):
                pub.put((key, number))
            await asyncio.sleep(0)
        for pub in pubs:
            await pub.flushed("20s")
    for messages in got.values():
        for key in range(3):
            mine = [number for sender, number in messages if sender == key]
            assert mine == list(range(60))
    assert sum(link.resent for pub in pubs for link in pub.links.values()) > 0
    assert len(subs) == 3


@gen_cluster(client=True, config=QUICK)
async def test_sums_survive_conflation_and_lost_acknowledgements(c, s, a, b):
    dice = random.Random(4)
    got = []
    with inject(Fault.SENT_ACK_LOST, lambda _: dice.random() < 0.3):
        async with Sub("t", worker=a, handler=lambda m, _: got.append(m)):
            pub = await Pub("t", worker=b, policy=Conflate(operator.add))

            def put():
                for number in range(500):
                    pub.put(number)

            threads = [threading.Thread(target=put) for _ in range(3)]
            for thread in threads:
                thread.start()
            await async_poll_for(lambda: not any(t.is_alive() for t in threads), 10)
            await pub.flushed("10s")
    assert sum(got) == 3 * sum(range(500))


@gen_cluster(client=True)
async def test_a_slow_subscriber_does_not_slow_the_others_under_conflation(c, s, a, b):
    gate, got = Gate(), []
    slow = await Sub("t", worker=a, handler=gate)
    fast = await Sub("t", worker=a, handler=lambda m, _: got.append(m))
    pub = await Pub("t", worker=b, policy=Conflate(operator.add))
    for number in range(20):
        pub.put(number)
        await async_poll_for(lambda: not pub.busy(fast.id), 5, period=0.001)
    assert got == list(range(20))
    assert pub.links[slow.id].in_flight == 1
    assert pub.links[slow.id].pending == 1
    gate.open.set()
    await pub.flushed("5s")
    assert gate.got == [0, sum(range(20))]


@gen_cluster(client=True)
async def test_a_full_queue_holds_the_publisher(c, s, a, b):
    for where in ({"worker": a}, {"worker": b}, {"client": c}):
        sub = await Sub("t", maxsize=3, **where)
        pub = await Pub("t", worker=b, policy=Block(1))
        accepted = []

        def put_ten(pub=pub, accepted=accepted):
            for number in range(10):
                pub.put(number)
                accepted.append(number)

        thread = threading.Thread(target=put_ten)
        thread.start()
        # Three are in the queue, and one is on the way.
        await async_poll_for(lambda accepted=accepted: len(accepted) == 4, 5)
        with pytest.raises(TensairTimeoutError):
            await pub.flushed("20ms")
        assert len(accepted) == 4
        assert [await sub.get("5s") for _ in range(10)] == list(range(10))
        await asyncio.get_running_loop().run_in_executor(None, thread.join)
        await pub.close()
        await sub.close()


@gen_cluster(client=True)
async def test_blocking_holds_no_more_than_its_bound_in_memory(c, s, a, b):
    alive = weakref.WeakSet()

    class Message:
        def __init__(self):
            alive.add(self)

        def __reduce__(self):
            return int, ()

    gate = Gate()
    sub = await Sub("t", worker=a, handler=gate)
    pub = await Pub("t", worker=b, policy=Block(4))
    most = 0

    def put_many():
        nonlocal most
        for _ in range(50):
            pub.put(Message())
            most = max(most, len(alive))

    thread = threading.Thread(target=put_many)
    thread.start()
    await async_poll_for(lambda: _on_the_way(pub, sub) == 4, 5)
    gate.open.set()
    await async_poll_for(lambda: not thread.is_alive(), 10)
    await pub.flushed("5s")
    # Four on the way, and the one being put.
    assert most <= 5
    assert len(gate.got) == 50


@gen_cluster(client=True)
async def test_putting_on_the_event_loop_can_be_awaited(c, s, a, b):
    gate = Gate()
    async with Sub("t", worker=a, handler=gate) as sub:
        pub = await Pub("t", worker=b, policy=Block(2))
        await pub.put(0)
        await pub.put(1)
        with pytest.raises(TensairTimeoutError, match="room"):
            await pub.put(2, timeout="20ms")
        pub.put(3)  # not awaited: taken all the same
        assert _on_the_way(pub, sub) == 4
        waiting = asyncio.ensure_future(_awaited(pub.put(4)))
        gate.open.set()
        await waiting
        await pub.flushed()
        assert gate.got == [0, 1, 2, 3, 4]


async def _awaited(awaitable):
    return await awaitable


@gen_cluster(client=True)
async def test_a_put_that_times_out_was_not_published(c, s, a, b):
    gate = Gate()
    async with Sub("t", worker=a, handler=gate):
        pub = await Pub("t", worker=b, policy=Block(1))
        await pub.put(0)

        def put():
            with pytest.raises(TensairTimeoutError, match="maxsize"):
                pub.put(1, timeout="10ms")

        await asyncio.get_running_loop().run_in_executor(None, put)
        gate.open.set()
        pub.put(2)
        await pub.flushed()
        assert gate.got == [0, 2]


@gen_cluster(client=True)
async def test_a_held_publisher_goes_on_when_the_subscriber_leaves(c, s, a, b):
    async with Pub("t", worker=b, policy=Block(1)) as pub:
        sub = await Sub("t", worker=a, handler=Gate())
        await pub.put(0)
        loop = asyncio.get_running_loop()
        held = loop.run_in_executor(None, pub.put, 1)
        await asyncio.wait([held], timeout=0.01)
        assert not held.done()
        await sub.close()
        await held


@gen_cluster(client=True)
async def test_a_publisher_that_waits_gets_an_error_when_it_is_closed(c, s, a, b):
    pub = await Pub("t", worker=b, policy=Block(1))
    sub = await Sub("t", worker=a, handler=Gate())
    await pub.put(0)
    held = asyncio.get_running_loop().run_in_executor(None, pub.put, 1)
    await asyncio.wait([held], timeout=0.01)
    await pub.close(timeout=0)
    with pytest.raises(TrainerClosedError):
        await held
    await sub.close()


@gen_cluster(client=True)
async def test_dropping_keeps_the_newest_and_counts(c, s, a, b):
    gate = Gate()
    async with Sub("t", worker=a, handler=gate) as sub:
        pub = await Pub("t", worker=b, policy=DropOldest(2))
        pub.put(0)
        await async_poll_for(lambda: pub.links[sub.id].in_flight == 1, 5)
        for number in range(1, 10):
            pub.put(number)
        assert pub.links[sub.id].dropped == 7
        gate.open.set()
        await pub.flushed()
        assert gate.got == [0, 8, 9]


@gen_cluster(client=True)
async def test_a_merge_that_raises_is_raised_by_put(c, s, a, b):
    gate = Gate()
    async with Sub("t", worker=a, handler=gate) as sub:
        pub = await Pub("t", worker=b, policy=Conflate(operator.add))
        pub.put(0)
        await async_poll_for(lambda: pub.links[sub.id].in_flight == 1, 5)
        pub.put(1)
        with pytest.raises(TypeError):
            pub.put("one")
        pub.put(2)
        gate.open.set()
        await pub.flushed()
        assert gate.got == [0, 3]


@gen_cluster(client=True, config=QUICK)
async def test_collections_of_arrays_survive_being_sent_again(c, s, a, b):
    lost = iter([True, True, False] * 10)
    async with Sub("t", worker=a) as sub, Pub("t", worker=b) as pub:
        with inject(Fault.SENT_ACK_LOST, lambda _: next(lost)):
            pub.put({"x": np.arange(3), "y": [np.ones(2), "name"]})
            await pub.flushed("5s")
        assert pub.links[sub.id].resent == 2
        got = await sub.get("5s")
        np.testing.assert_array_equal(got["x"], [0, 1, 2])
        np.testing.assert_array_equal(got["y"][0], [1, 1])
        assert got["y"][1] == "name"


class Unwanted:
    """Cannot be unpickled."""

    def __reduce__(self):
        return _refuse, ()


def _refuse():
    raise ImportError("no such module here")


@gen_cluster(client=True)
async def test_a_message_that_cannot_be_opened_there_harms_nothing(c, s, a, b):
    for where in ({"worker": a}, {"client": c}):
        sub = await Sub("t", **where)
        pub = await Pub("t", worker=b)
        pub.put(Unwanted())
        pub.put("good")
        assert await sub.get("5s") == "good"
        assert sub.errors == 1
        await sub.close()
    assert await c.submit(lambda: 1) == 1


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_thread_gets_messages_while_the_loop_runs(c, s, a):
    sub = await Sub("t", worker=a, maxsize=2)
    pub = await Pub("t", worker=a)

    def read():
        return [sub.get(timeout="5s") for _ in range(200)]

    reading = asyncio.get_running_loop().run_in_executor(None, read)
    for number in range(200):
        await pub.put(number)
    assert await reading == list(range(200))


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_worker_that_closes_lets_go_the_threads_that_wait(c, s, a):
    sub = await Sub("t", worker=a)
    loop = asyncio.get_running_loop()
    waiting = loop.run_in_executor(None, sub.get)
    await asyncio.wait([waiting], timeout=0.01)
    await a.close()
    with pytest.raises(TrainerClosedError):
        await waiting
