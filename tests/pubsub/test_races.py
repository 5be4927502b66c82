"""The interleavings that broke Dask's Pub and Sub, made to happen."""

from __future__ import annotations

import asyncio
import random

import pytest
from distributed import Client, Event, LocalCluster, get_worker
from distributed.utils_test import (
    async_poll_for,
    freeze_batched_send,
    gen_cluster,
)

from tensair_dask.errors import TensairTimeoutError
from tensair_dask.pubsub import Conflate, Pub, Sub
from tensair_dask.pubsub.faults import Fault, inject
from tensair_dask.pubsub.scheduler import NAME, PubSubScheduler

ONE = [("127.0.0.1", 1)]


async def assert_the_client_still_works(c: Client) -> None:
    assert await c.submit(sum, [1, 2], pure=False) == 3


@gen_cluster(client=True, nthreads=ONE)
async def test_a_subscription_dropped_while_a_task_publishes_leaves_the_client_alive(
    c, s, a
):
    # distributed#8685: the removal of a subscriber crosses a message to it.
    sub = Sub("a")
    await sub
    in_event, in_event_2 = Event(client=c), Event(client=c)
    block_event, block_event_2 = Event(client=c), Event(client=c)

    def publish(in_event, block_event, in_event_2, block_event_2):
        pub = Pub("a")
        in_event.set()
        block_event.wait()
        pub.put({"status": "OK"})
        in_event_2.set()
        block_event_2.wait()
        del pub
        return "done"

    future = c.submit(publish, in_event, block_event, in_event_2, block_event_2)
    await in_event.wait()
    with freeze_batched_send(s.client_comms[c.id]):
        await block_event.set()
        await in_event_2.wait()
        del sub
        await block_event_2.set()
    assert await future == "done"
    await assert_the_client_still_works(c)
    await async_poll_for(lambda: not s.plugins[NAME].topics, timeout=10)


@gen_cluster(client=True, nthreads=ONE)
async def test_a_subscription_that_is_removed_while_its_publisher_lives(c, s, a):
    # distributed#8334: removing the last subscriber of a publishing worker used an
    # operation that did not exist, and ended the connection.
    pub = await Pub("a", worker=a)
    sub = await Sub("a", client=c)
    await async_poll_for(lambda: pub.subscribers, timeout=10)
    await sub.close()
    await async_poll_for(lambda: not pub.subscribers, timeout=10)
    await pub.put("nobody hears this")
    await assert_the_client_still_works(c)
    assert a.batched_stream.comm is not None
    assert not a.batched_stream.comm.closed()


@gen_cluster(client=True)
async def test_topics_one_after_another_with_publishers_that_come_and_go(c, s, a, b):
    # distributed#3276: the second topic of a client failed.
    def finished(name, number):
        with Pub(name) as pub:
            pub.put(("finished", number))

    for name in ("1", "2", "3"):
        async with Sub(name, client=c) as sub:
            futures = c.map(finished, [name] * 4, range(4), pure=False)
            got = [await sub.get(timeout="10s") for _ in range(4)]
            assert sorted(number for _, number in got) == [0, 1, 2, 3]
            await c.gather(futures)
    await assert_the_client_still_works(c)


@gen_cluster(client=True)
async def test_a_view_that_comes_late_does_not_undo_a_newer_one(c, s, a, b):
    pub = await Pub("t", worker=a)
    old = pub.view
    sub = await Sub("t", worker=b)
    await async_poll_for(lambda: pub.subscribers, timeout=10)
    a.stream_handlers["tensair-pubsub-view"](view=old.to_wire(), confirm=False)
    assert list(pub.subscribers) == [sub.id]
    await pub.put("still there")
    assert await sub.get(timeout=10) == "still there"


@gen_cluster(client=True)
async def test_a_message_to_a_subscriber_that_has_left_is_refused_politely(c, s, a, b):
    pub = await Pub("t", worker=a)
    sub = await Sub("t", worker=b)
    await async_poll_for(lambda: pub.subscribers, timeout=10)
    with freeze_batched_send(s.stream_comms[a.address]):
        await sub.close()  # the publisher does not know yet
        await pub.put("too late")
        await pub.flushed(timeout=10)
        assert not any(link.pending for link in pub.links.values())
    await assert_the_client_still_works(c)


@gen_cluster(client=True)
async def test_a_subscriber_that_leaves_with_a_message_in_flight(c, s, a, b):
    gate = asyncio.Event()
    sub = await Sub("t", worker=b, handler=lambda message, sender: gate.wait())
    pub = await Pub("t", worker=a)
    await pub.put("held by the handler")
    await async_poll_for(
        lambda: any(link.in_flight for link in pub.links.values()), timeout=10
    )
    with pytest.raises(TensairTimeoutError):
        await pub.flushed(timeout="20ms")
    await sub.close()
    await pub.flushed(timeout=10)
    await async_poll_for(lambda: not pub.links, timeout=10)


@gen_cluster(client=True)
async def test_a_registration_that_comes_after_its_removal_stays_out(c, s, a, b):
    pub = await Pub("t", worker=a)
    plugin = s.plugins[NAME]
    await plugin.unregister(["ghost"])
    ghost = ["ghost", b.address, None, "worker"]
    answer = await plugin.register("t", [], [ghost], timeout=1)
    assert answer["status"] == "gone"
    assert not pub.subscribers


@gen_cluster(client=True)
async def test_a_worker_that_closes_leaves_all_its_topics(c, s, a, b):
    pub = await Pub("t", worker=a)
    sub = await Sub("t", worker=b)
    await async_poll_for(lambda: pub.subscribers, timeout=10)
    await b.close()
    await async_poll_for(lambda: not pub.subscribers, timeout=10)
    await pub.put("nobody")
    await pub.flushed(timeout=10)
    assert sub is not None


@gen_cluster(client=True)
async def test_what_is_put_after_a_subscription_is_ready_reaches_it(c, s, a, b):
    pub = await Pub("t", worker=a)
    for number in range(20):
        # Even while the scheduler's news to the publisher are held up.
        with freeze_batched_send(s.stream_comms[a.address]):
            sub = Sub("t", worker=b)
            await asyncio.sleep(0)
        await sub
        await pub.put(number)
        assert await sub.get(timeout=10) == number
        await sub.close()


@gen_cluster(client=True)
async def test_order_and_exactly_once_between_workers_under_all_faults(c, s, a, b):
    sub = await Sub("t", worker=b)
    pub = await Pub("t", worker=a)
    dice = random.Random(0)
    with (
        inject(Fault.CONNECT_FAILS, lambda _: dice.random() < 0.2),
        inject(Fault.SENT_ACK_LOST, lambda _: dice.random() < 0.2),
        inject(Fault.DELAY, lambda _: dice.random() / 100),
    ):
        for number in range(100):
            await pub.put(number)
        await pub.flushed(timeout=30)
    assert [await sub.get(timeout=1) for _ in range(100)] == list(range(100))
    with pytest.raises(TensairTimeoutError):
        await sub.get(timeout="10ms")


@gen_cluster(client=True)
async def test_a_slow_subscriber_holds_a_blocking_publisher(c, s, a, b):
    from tensair_dask.pubsub import Block

    sub = await Sub("t", worker=b, maxsize=3)
    pub = await Pub("t", worker=a, policy=Block(4))
    putting = asyncio.ensure_future(_put_all(pub, 50))
    await async_poll_for(
        lambda: any(link.pending + link.in_flight >= 4 for link in pub.links.values()),
        timeout=10,
    )
    assert not putting.done()
    got = [await sub.get(timeout=10) for _ in range(50)]
    assert got == list(range(50))
    await putting


async def _put_all(pub: Pub, count: int) -> None:
    for number in range(count):
        await pub.put(number)


@gen_cluster(client=True)
async def test_conflation_between_workers_loses_nothing(c, s, a, b):
    total: list[int] = []

    async def slow(message: int, sender: object) -> None:
        await asyncio.sleep(0)
        total.append(message)

    sub = await Sub("t", worker=b, handler=slow)
    pub = await Pub("t", worker=a, policy=Conflate(int.__add__))
    for number in range(1000):
        pub.put(number)
    await pub.flushed(timeout=30)
    assert sum(total) == sum(range(1000))
    assert len(total) < 1000
    assert sub is not None


@gen_cluster(client=True)
async def test_two_clients_talk_to_each_other(c, s, a, b):
    async with Client(s.address, asynchronous=True) as other:
        sub = await Sub("t", client=other)
        pub = await Pub("t", client=c)
        await pub.put("from one client to another")
        assert await sub.get(timeout=10) == "from one client to another"
        await sub.close()
        await pub.close()


@gen_cluster(client=True)
async def test_registering_the_plugin_twice_keeps_the_topics(c, s, a, b):
    pub = await Pub("t", worker=a)
    await s.register_scheduler_plugin(PubSubScheduler(), idempotent=True)
    sub = await Sub("t", worker=b)
    await pub.put(1)
    assert await sub.get(timeout=10) == 1


@pytest.mark.processes
def test_synchronous_code_on_a_running_cluster_of_processes():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        sub = Sub("results")

        def task(number: int) -> str:
            pub = Pub("results")
            for _ in range(3):
                pub.put(number)
            return get_worker().address

        futures = client.map(task, range(4))
        got = [sub.get(timeout="20s") for _ in range(12)]
        assert sorted(got) == sorted(list(range(4)) * 3)
        with pytest.raises(TimeoutError):
            sub.get(timeout=0.01)
        client.gather(futures)

        client.restart()
        future = client.submit(task, 7)
        assert [sub.get(timeout="20s") for _ in range(3)] == [7, 7, 7]
        assert next(iter([future.result()]))
        sub.close()
