"""`Pub` and `Sub` as their users call them, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from datetime import timedelta

import pytest
from distributed import Client, get_worker
from distributed.utils_test import async_poll_for, gen_cluster

import tensair_dask.pubsub as pubsub
from tensair_dask.errors import (
    ClusterError,
    ConfigurationError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.pubsub import Block, Member, Pub, Sub, View
from tensair_dask.pubsub.parcel import Parcel


def test_the_public_names():
    assert sorted(pubsub.__all__) == [
        "Block",
        "Conflate",
        "DropOldest",
        "LinkStats",
        "Member",
        "Policy",
        "Pub",
        "Sub",
        "View",
    ]


def test_without_a_cluster_the_error_says_what_to_give():
    with pytest.raises(ClusterError, match="client=Client"):
        Pub("a")


@gen_cluster(client=True)
async def test_a_message_goes_from_worker_to_worker(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = await Pub("t", worker=b)
    pub.put({"x": 1})
    assert await sub.get(timeout="5s") == {"x": 1}


@gen_cluster(client=True)
async def test_positional_arguments_as_dask_had_them(c, s, a, b):
    sub = await Sub("t", a)
    pub = await Pub("t", None, c)
    pub.put(1)
    assert await sub.get("5s") == 1
    pub.put(2)
    assert await sub.next() == 2


@gen_cluster(client=True)
async def test_between_all_kinds_of_members(c, s, a, b):
    async with Client(s.address, asynchronous=True) as other:
        subs = [
            await Sub("t", worker=a),
            await Sub("t", worker=b),
            await Sub("t", client=c),
            await Sub("t", client=other),
        ]
        for number, where in enumerate(
            [{"worker": a}, {"client": c}, {"client": other}]
        ):
            pub = await Pub("t", **where)
            pub.put(number)
            assert [await sub.get("5s") for sub in subs] == [number] * 4


@gen_cluster(client=True)
async def test_a_client_that_cannot_reach_workers_publishes_through_the_scheduler(
    c, s, a, b
):
    c.direct_to_workers = False
    sub = await Sub("t", worker=a)
    pub = await Pub("t")
    for number in range(10):
        pub.put(number)
    await pub.flushed()
    assert [await sub.get("5s") for _ in range(10)] == list(range(10))
    assert a.address not in c.rpc.available


@gen_cluster(client=True)
async def test_a_client_remembers_that_a_worker_cannot_be_reached(c, s, a, b):
    attempts = []

    async def refuse(address, timeout=None):
        if address == s.address:
            return await connect(address, timeout)
        attempts.append(address)
        raise OSError("no route")

    connect, c.rpc.connect = c.rpc.connect, refuse
    sub = await Sub("t", worker=a)
    pub = await Pub("t")
    for number in range(5):
        pub.put(number)
        await pub.flushed()
    assert [await sub.get("5s") for _ in range(5)] == list(range(5))
    assert attempts == [a.address]


@gen_cluster(client=True)
async def test_the_very_object_is_handed_over_on_the_same_worker(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = await Pub("t", worker=a)
    message = object()
    pub.put(message)
    assert await sub.get("5s") is message


@gen_cluster(client=True)
async def test_messages_put_before_registration_arrive(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = Pub("t", worker=b)
    pub.put(1)
    pub.put(2)
    assert pub.view.number == 0
    assert [await sub.get("5s"), await sub.get("5s")] == [1, 2]


@gen_cluster(client=True)
async def test_get_may_be_called_before_registration(c, s, a, b):
    pub = await Pub("t", worker=b)
    sub = Sub("t", worker=a)
    got = asyncio.ensure_future(sub.get("5s"))
    await sub
    pub.put(1)
    assert await got == 1


@gen_cluster(client=True)
async def test_without_subscribers_messages_are_dropped(c, s, a, b):
    pub = await Pub("t", worker=b)
    assert not pub.subscribers
    pub.put(1)
    await pub.flushed()
    sub = await Sub("t", worker=a)
    pub.put(2)
    assert await sub.get("5s") == 2


@gen_cluster(client=True)
async def test_a_finished_subscription_hears_all_that_is_put_afterwards(c, s, a, b):
    pubs = [await Pub("t", worker=w) for w in (a, b)] + [await Pub("t", client=c)]
    for _ in range(5):
        sub = await Sub("t", worker=a)
        for number, pub in enumerate(pubs):
            pub.put(number)
        assert sorted([await sub.get("5s") for _ in pubs]) == [0, 1, 2]
        await sub.close()


@pytest.mark.parametrize("timeout", [0.01, "10ms", timedelta(milliseconds=10), 0])
def test_get_times_out(timeout):
    @gen_cluster(client=True, nthreads=[("", 1)])
    async def run(c, s, a):
        sub = await Sub("t")
        with pytest.raises(TensairTimeoutError, match="a message"):
            await sub.get(timeout=timeout)
        with pytest.raises(TimeoutError):
            await sub.get(timeout=timeout)

    run()


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_nothing_is_lost_by_timeouts(c, s, a):
    sub = await Sub("t")
    pub = await Pub("t")
    got = []
    for number in range(50):
        pub.put(number)
        with contextlib.suppress(TensairTimeoutError):
            got.append(await sub.get(timeout=0.0005))
    while len(got) < 50:
        got.append(await sub.get("5s"))
    assert got == list(range(50))


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_async_iteration_ends_when_the_subscription_is_closed(c, s, a):
    sub = await Sub("t")
    pub = await Pub("t")
    got = []
    take = got.append

    async def read():
        async for message in sub:
            take(message)

    reading = asyncio.ensure_future(read())
    for number in range(10):
        pub.put(number)
    await async_poll_for(lambda: len(got) == 10, 5)
    sub.close()
    await reading
    assert got == list(range(10))


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_closed_handle_refuses_work(c, s, a):
    sub, pub = await Sub("t"), await Pub("t")
    waiting = asyncio.ensure_future(sub.get())
    await asyncio.wait([waiting], timeout=0)
    for handle in (sub, pub):
        await handle.close()
        await handle.close()
    for action in (waiting, sub.get(), pub.flushed(), pub.wait_for(bool)):
        with pytest.raises(TrainerClosedError, match="is closed"):
            await action
    with pytest.raises(TrainerClosedError):
        pub.put(1)
    assert not s.plugins["tensair-pubsub"].topics


@gen_cluster(client=True)
async def test_closing_lets_go_what_was_put_before(c, s, a, b):
    sub = await Sub("t", worker=a)
    async with Pub("t", worker=b) as pub:
        for number in range(250):
            pub.put(number)
    assert [await sub.get("5s") for _ in range(250)] == list(range(250))


@gen_cluster(client=True)
async def test_a_publisher_that_is_dropped_at_once_still_delivers(c, s, a, b):
    sub = await Sub("t", worker=a)
    Pub("t", worker=b).put("last words")
    gc.collect()
    assert await sub.get("5s") == "last words"
    await async_poll_for(lambda: not sub.publishers, 5)


@gen_cluster(client=True)
async def test_handles_that_nobody_holds_leave_the_topic(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = await Pub("t", worker=b)
    del sub
    gc.collect()
    await pub.wait_for(lambda view: not view.subscribers, timeout="5s")
    del pub
    gc.collect()
    await async_poll_for(lambda: not s.plugins["tensair-pubsub"].topics, 5)


@gen_cluster(client=True)
async def test_closing_with_timeout_zero_drops_what_waits(c, s, a, b):
    never = asyncio.get_running_loop().create_future()
    sub = await Sub("t", worker=a, handler=lambda message, sender: never)
    pub = await Pub("t", worker=b)
    pub.put(1)
    await async_poll_for(lambda: pub.busy(sub.id), 5)
    await pub.close(timeout=0)
    await async_poll_for(lambda: not sub.publishers, 5)


@gen_cluster(client=True)
async def test_what_a_member_puts_does_not_come_back_to_it(c, s, a, b):
    got = {name: [] for name in ("r1", "r2")}
    subs = [
        await Sub(
            "t", worker=w, member=name, handler=lambda m, _, n=name: got[n].append(m)
        )
        for w, name in ((a, "r1"), (b, "r2"))
    ]
    pub = await Pub("t", worker=a, member="r1")
    pub.put(1)
    await pub.flushed()
    assert got == {"r1": [], "r2": [1]}
    assert list(pub.links) == [subs[1].id]
    assert {m.member for m in pub.subscribers.values()} == {"r1", "r2"}


@gen_cluster(client=True)
async def test_a_handler_may_look_at_messages_before_they_are_opened(c, s, a, b):
    got = []
    sub = Sub("t", worker=a, handler=lambda p, _: got.append(p), sealed=True)
    async with sub, Pub("t", worker=b) as far, Pub("t", worker=a) as near:
        far.put("from afar")
        await far.flushed()
        near.put("from here")
        await near.flushed()
        assert all(isinstance(parcel, Parcel) for parcel in got)
        assert [parcel.seal()[0]["serializer"] for parcel in got] == ["pickle"] * 2
        assert [parcel.open() for parcel in got] == ["from afar", "from here"]


@gen_cluster(client=True)
async def test_a_handler_gets_the_sender(c, s, a, b):
    got = []
    await (sub := Sub("t", worker=a, handler=lambda *what: got.append(what)))
    pub = await Pub("t", worker=b, member="r7")
    pub.put("hello")
    await pub.flushed()
    assert got == [("hello", Member(pub.id, b.address, "r7", "worker"))]
    with pytest.raises(ConfigurationError, match="handler"):
        await sub.get()


@gen_cluster(client=True)
async def test_the_acknowledgement_waits_for_the_handler(c, s, a, b):
    go_on = asyncio.get_running_loop().create_future()
    async with Sub("t", worker=a, handler=lambda message, sender: go_on) as sub:
        pub = await Pub("t", worker=b)
        pub.put(1)
        with pytest.raises(TensairTimeoutError, match="acknowledged"):
            await pub.flushed(timeout="50ms")
        assert pub.busy(sub.id)
        assert pub.busy(pub.subscribers[sub.id])
        go_on.set_result(None)
        await pub.flushed()
        assert not pub.busy(sub.id)


@gen_cluster(client=True)
async def test_a_handler_may_return_a_future_of_a_thread_pool(c, s, a, b):
    got = []
    sub = Sub("t", worker=a, handler=lambda m, _: a.executor.submit(got.append, m))
    async with sub, Pub("t", worker=b) as pub:
        for number in range(20):
            pub.put(number)
        await pub.flushed()
        assert got == list(range(20))


@gen_cluster(client=True)
async def test_a_handler_that_raises_is_counted(c, s, a, b):
    def fail(message, sender):
        raise ValueError(message)

    async with Sub("t", worker=a, handler=fail) as sub, Pub("t", worker=b) as pub:
        pub.put(1)
        pub.put(2)
        await pub.flushed()
        assert sub.errors == 2


@gen_cluster(client=True)
async def test_views_come_in_order_to_both_sides(c, s, a, b):
    reported = {"pub": [], "sub": []}

    def fail(view):
        raise ValueError("a callback that raises stops nobody")

    pub = await Pub("t", worker=a, on_view=reported["pub"].append)
    pub.on_view.insert(0, fail)
    sub = await Sub("t", worker=b, on_view=reported["sub"].append)
    for _ in range(5):
        await (await Sub("t", client=c)).close()
    await pub.wait_for(lambda view: len(view.subscribers) == 1, timeout="5s")
    await sub.wait_for(lambda view: view.number == pub.view.number, timeout="5s")
    for views in reported.values():
        numbers = [view.number for view in views]
        assert numbers == sorted(set(numbers))
        assert isinstance(views[-1], View)
        assert views[-1].publishers.keys() == {pub.id}
        assert views[-1].subscribers.keys() == {sub.id}


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_waiting_for_a_view_times_out(c, s, a):
    pub = await Pub("t")
    with pytest.raises(TensairTimeoutError, match="view"):
        await pub.wait_for(lambda view: len(view.subscribers) == 3, timeout="10ms")


@gen_cluster(client=True)
async def test_topics_do_not_mix(c, s, a, b):
    subs = [await Sub(topic, worker=a) for topic in "xy"]
    pubs = [await Pub(topic, worker=b) for topic in "xy"]
    for number, pub in enumerate(pubs):
        pub.put(number)
    assert [await sub.get("5s") for sub in subs] == [0, 1]


@gen_cluster(client=True, nthreads=[("", 1), ("", 4)])
async def test_tasks_publish_and_subscribe(c, s, a, b):
    def relay():
        with Sub("in") as sub, Pub("out") as pub:
            for number in sub:
                pub.put((number, get_worker().address))
                if number == 4:
                    return "done"

    out = await Sub("out", client=c)
    tasks = [c.submit(relay, workers=[b.address], pure=False) for _ in range(3)]
    pub = await Pub("in")
    await pub.wait_for(lambda view: len(view.subscribers) == 3, timeout="10s")
    for number in range(5):
        pub.put(number)
    assert await c.gather(tasks) == ["done"] * 3
    got = [await out.get("5s") for _ in range(15)]
    assert sorted(got) == sorted([(n, b.address) for n in range(5)] * 3)


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_asynchronous_tasks_publish_and_subscribe(c, s, a):
    async def echo():
        async with Sub("in") as sub, Pub("out") as pub:
            async for message in sub:
                await pub.put(message)
                return message

    out = await Sub("out")
    task = c.submit(echo)
    pub = await Pub("in")
    await pub.wait_for(lambda view: view.subscribers, timeout="10s")
    pub.put("x")
    assert await out.get("5s") == "x"
    assert await task == "x"


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_actors_publish(c, s, a):
    class Speaker:
        def __init__(self):
            self.pub = Pub("t")

        def say(self, what):
            self.pub.put(what)

    sub = await Sub("t")
    speaker = await c.submit(Speaker, actor=True)
    await speaker.say("hi")
    assert await sub.get("5s") == "hi"


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_wrong_arguments_are_refused(c, s, a):
    with pytest.raises(ConfigurationError, match="DropOldest"):
        Pub("t", policy="drop")
    with pytest.raises(ConfigurationError, match="handler"):
        Sub("t", handler=3)
    with pytest.raises(ConfigurationError, match=r"handler\(parcel, sender\)"):
        Sub("t", sealed=True)


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_a_closed_worker_or_client_is_refused(c, s, a):
    other = await Client(s.address, asynchronous=True)
    pub = await Pub("t", client=other)
    await other.close()
    with pytest.raises(TrainerClosedError):
        pub.put(1)
    with pytest.raises(TrainerClosedError):
        Sub("t", client=other)
    sub = await Sub("t", worker=a)
    await a.close()
    with pytest.raises(TrainerClosedError):
        await sub.get()
    with pytest.raises(TrainerClosedError):
        Pub("t", worker=a)


@gen_cluster(client=True)
async def test_links_report_how_the_flow_is_doing(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = await Pub("t", worker=b, policy=Block(5))
    for number in range(3):
        await pub.put(number)
        await pub.flushed()
    stats = pub.links[sub.id]
    assert stats.destination == pub.subscribers[sub.id]
    assert (stats.messages, stats.pending, stats.in_flight) == (3, 0, 0)
    assert stats.bytes > 0
    assert stats.ewma_rtt_seconds > 0


@pytest.mark.parametrize("timeout", [-1, float("nan"), "soon", "-5s", []])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_time_out_that_is_none_is_refused(c, s, a, timeout):
    sub = await Sub("t", client=c)
    with pytest.raises(ConfigurationError, match="number of seconds from 0"):
        await sub.get(timeout=timeout)
    await sub.close()


@pytest.mark.parametrize("maxsize", [0, -1, "3", 2.5, True])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_a_queue_that_would_hold_nothing_is_refused(c, s, a, maxsize):
    with pytest.raises(ConfigurationError, match="maxsize="):
        await Sub("t", worker=a, maxsize=maxsize)
