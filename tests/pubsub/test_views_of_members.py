"""Views name the members of a topic, in whatever order they come and go."""

from __future__ import annotations

import asyncio

import pytest
from distributed import Client
from distributed.utils_test import async_poll_for, freeze_batched_send, gen_cluster

from tensair_dask import config
from tensair_dask.errors import ClusterError, PackageMissingError, SchedulerLostError
from tensair_dask.pubsub import Pub, Sub, endpoint
from tensair_dask.pubsub.scheduler import NAME, PubSubScheduler, dask_setup
from tensair_dask.pubsub.view import Change

SHORT = {"tensair.pubsub.timeout": "100ms", "tensair.pubsub.retry": "5ms"}


class Scheduler:
    """As much of Dask's scheduler as the plugin needs."""

    def __init__(self):
        self.handlers = {}
        self.stream_comms = {"tcp://a:1": None, "tcp://b:1": None}
        self.client_comms = {"Client-1": None}
        self.sent = []

    def worker_send(self, address, message):
        self.sent.append((address, message))

    client_send = worker_send


async def plugin():
    scheduler = Scheduler()
    half = PubSubScheduler()
    await half.start(scheduler)
    return scheduler, half


def member(name, address="tcp://a:1", kind="worker"):
    return [name, address, None, kind]


def register(half, role, one, timeout):
    members = {"publishers": [], "subscribers": [], role: [one]}
    return half.register("t", **members, timeout=timeout)


def numbers(scheduler):
    """Numbers of the views that were told, from 1."""
    told = [Change.from_wire(message["view"]).number for _, message in scheduler.sent]
    return [number - told[0] + 1 for number in told]


def test_every_change_has_a_larger_number_and_reaches_all_members():
    async def run():
        scheduler, half = await plugin()
        await register(half, "publishers", member("p"), 1)
        await register(half, "publishers", member("q", "tcp://b:1"), 1)
        await half.unregister(["q"])
        half.remove_worker(scheduler, "tcp://a:1")
        assert [address[6] for address, _ in scheduler.sent] == ["a", "a", "b", "a"]
        assert numbers(scheduler) == [1, 2, 2, 3]
        assert not half.topics

    asyncio.run(run())


def test_a_topic_that_was_empty_goes_on_counting():
    async def run():
        scheduler, half = await plugin()
        await register(half, "publishers", member("p"), 1)
        await half.unregister(["p"])
        await register(half, "publishers", member("q"), 1)
        assert numbers(scheduler) == [1, 2]

    asyncio.run(run())


def test_registering_twice_changes_nothing():
    async def run():
        scheduler, half = await plugin()
        first = await register(half, "publishers", member("p"), 1)
        assert await register(half, "publishers", member("p"), 1) == first
        assert len(scheduler.sent) == 1

    asyncio.run(run())


def test_a_registration_that_comes_after_its_end_is_refused():
    async def run():
        scheduler, half = await plugin()
        await half.unregister(["p"])
        answer = await register(half, "publishers", member("p"), 1)
        assert answer == {"status": "gone"}
        assert not half.topics
        assert not scheduler.sent

    asyncio.run(run())


def test_the_memory_of_ends_is_bounded():
    async def run():
        _, half = await plugin()
        await half.unregister([str(number) for number in range(20_000)])
        assert len(half._gone) == 10_000

    asyncio.run(run())


def test_a_process_that_is_not_connected_cannot_register():
    async def run():
        _, half = await plugin()
        answer = await register(half, "publishers", member("p", "tcp://x:1"), 1)
        assert answer == {"status": "unknown"}

    asyncio.run(run())


def test_a_subscriber_waits_for_the_publishers_to_know_it():
    async def run():
        _, half = await plugin()
        await register(half, "publishers", member("p"), 1)
        await register(half, "publishers", member("q", "tcp://b:1"), 1)
        subscriber = member("s", "Client-1", "client")
        registering = asyncio.ensure_future(
            register(half, "subscribers", subscriber, 10)
        )
        while "s" not in half.topics["t"].view:
            await asyncio.sleep(0)
        number = half.topics["t"].view.number
        await half.seen("t", "tcp://a:1", number - 1)
        await half.seen("t", "tcp://a:1", number)
        await asyncio.wait([registering], timeout=0)
        assert not registering.done()
        half.remove_worker(None, "tcp://b:1")
        assert (await registering)["unheard"] == []

    asyncio.run(run())


def test_a_publisher_that_does_not_answer_is_named():
    async def run():
        _, half = await plugin()
        await register(half, "publishers", member("p"), 1)
        answer = await register(half, "subscribers", member("s"), 0.01)
        assert answer["status"] == "ok"
        assert answer["unheard"] == ["tcp://a:1"]

    asyncio.run(run())


def test_a_message_for_a_client_that_leaves_is_answered():
    async def run():
        scheduler, half = await plugin()
        subscriber = member("s", "Client-1", "client")
        await register(half, "subscribers", subscriber, 1)
        answers = [
            asyncio.ensure_future(half.forward(subscriber, member("p"), 1, []))
            for _ in range(2)
        ]
        await asyncio.sleep(0)
        half.remove_client(scheduler, "Client-1")
        assert await asyncio.gather(*answers) == ["gone", "gone"]
        assert not half._forwarded
        assert await half.forward(subscriber, member("p"), 1, []) == "gone"
        await half.acknowledge(1, "ok")  # too late: nobody minds

    asyncio.run(run())


@gen_cluster(client=True)
async def test_a_spoiled_view_does_not_end_the_connection(c, s, a, b):
    pub = await Pub("t", worker=a)
    sub = await Sub("t", client=c)
    message = {"op": "tensair-pubsub-view", "view": {"topic": "t"}, "confirm": True}
    s.worker_send(a.address, dict(message))
    s.client_send(c.id, dict(message))
    other = await Sub("t", worker=a)
    assert set(pub.subscribers) == {sub.id, other.id}
    assert await c.submit(lambda: 1) == 1


@gen_cluster(client=True)
async def test_a_message_to_a_subscriber_that_has_left_is_refused_politely(c, s, a, b):
    pub = await Pub("t", worker=a)
    message = {
        "sender": list(pub.view.publishers[pub.id]),
        "number": 1,
        "parcels": [],
    }
    await Sub("t", worker=b)
    answer = await a.rpc(b.address).tensair_pubsub_deliver(
        subscription="nobody", **message
    )
    assert answer == "gone"
    sub = await Sub("t", client=c)
    s.client_send(
        c.id,
        {
            "op": "tensair-pubsub-deliver",
            "token": 10**9,
            "subscription": "nobody",
            **message,
        },
    )
    pub.put(1)
    assert await sub.get("5s") == 1


@gen_cluster(client=True)
async def test_a_subscriber_may_leave_with_a_message_in_flight(c, s, a, b):
    for where in ({"worker": a}, {"client": c}):
        never = asyncio.get_running_loop().create_future()
        handled = asyncio.Event()

        def hold(message, sender, handled=handled, never=never):
            handled.set()
            return never

        sub = await Sub("t", handler=hold, **where)
        pub = await Pub("t", worker=b)
        for number in range(3):
            pub.put(number)
        await handled.wait()
        await sub.close()
        await pub.flushed("5s")
        await pub.wait_for(lambda view: not view.subscribers, "5s")
        assert not pub.links
        await pub.close()


@gen_cluster(client=True, nthreads=[("", 1)] * 3)
async def test_a_closed_worker_leaves_all_its_topics(c, s, a, b, d):
    got = []
    keep = [await Sub(topic, worker=a) for topic in "xy"]
    pub = await Pub("x", worker=b)
    other = await Sub("x", worker=d, handler=lambda m, _: got.append(m))
    for number in range(100):
        pub.put(number)
    await a.close()
    await pub.flushed("5s")
    await pub.wait_for(lambda view: set(view.subscribers) == {other.id}, "5s")
    assert got == list(range(100))
    assert list(s.plugins[NAME].topics) == ["x"]
    del keep


@gen_cluster(client=True)
async def test_a_closed_client_leaves_all_its_topics(c, s, a, b):
    pub = await Pub("t", worker=a)
    async with Client(s.address, asynchronous=True) as other:
        never = asyncio.get_running_loop().create_future()
        sub = await Sub("t", client=other, handler=lambda m, _: never)
        pub.put(1)
        await async_poll_for(lambda: pub.busy(sub.id), 5)
    await pub.flushed("5s")
    await pub.wait_for(lambda view: not view.subscribers, "5s")


@gen_cluster(client=True, config=SHORT)
async def test_a_client_that_found_its_scheduler_again_goes_on(c, s, a, b):
    sub = await Sub("t", client=c)
    pub = await Pub("t", client=c)
    on_worker = await Sub("t", worker=a)
    from_worker = await Pub("t", worker=b)
    before = {sub.id, pub.id}
    await c.scheduler_comm.close()
    await async_poll_for(lambda: not before & {sub.id, pub.id}, 10)
    for handle in (sub, pub):
        await handle
    from_worker.put(1)
    pub.put(2)
    assert sorted([await sub.get("5s") for _ in range(2)]) == [1, 2]
    assert sorted([await on_worker.get("5s") for _ in range(2)]) == [1, 2]
    known = s.plugins[NAME].topics["t"].view
    assert set(known.publishers) == {pub.id, from_worker.id}
    assert set(known.subscribers) == {sub.id, on_worker.id}


@gen_cluster(client=True, config=SHORT)
async def test_a_subscription_on_a_frozen_connection_is_complete_in_bounded_time(
    c, s, a, b
):
    pub = await Pub("t", worker=a)
    with freeze_batched_send(s.stream_comms[a.address]):
        sub = await Sub("t", worker=b)
        assert not pub.subscribers
    await pub.wait_for(lambda view: view.subscribers, "5s")
    pub.put(1)
    assert await sub.get("5s") == 1


@gen_cluster(client=True)
async def test_a_subscription_waits_for_a_publisher_that_hears_late(c, s, a, b):
    pub = await Pub("t", worker=a)
    with freeze_batched_send(s.stream_comms[a.address]):
        sub = Sub("t", worker=b)
        ready = asyncio.ensure_future(sub.wait_for(lambda view: view.publishers))
        await ready
        registering = asyncio.ensure_future(asyncio.wait_for(_ready(sub), 10))
        await asyncio.wait([registering], timeout=0.01)
        assert not registering.done()
    await registering
    assert set(pub.subscribers) == {sub.id}


async def _ready(handle):
    return await handle


@gen_cluster(client=True)
async def test_two_clients_that_install_at_the_same_time_share_one_plugin(c, s, a, b):
    async with Client(s.address, asynchronous=True) as other:
        handles = [
            Sub("t", client=c),
            Sub("t", client=other),
            Pub("t", worker=a),
            Pub("t", worker=b),
        ]
        await asyncio.gather(*(_ready(handle) for handle in handles))
        assert s.handlers["tensair_pubsub_register"].__self__ is s.plugins[NAME]
        view = s.plugins[NAME].topics["t"].view
        assert len(view.publishers) == len(view.subscribers) == 2


@gen_cluster(client=True, nthreads=[("", 8)])
async def test_many_tasks_of_one_worker_begin_at_once(c, s, a):
    def say(number):
        Pub("t").put(number)

    sub = await Sub("t", client=c)
    await c.gather(c.map(say, range(16)))
    assert sorted([await sub.get("5s") for _ in range(16)]) == list(range(16))


@gen_cluster(client=True)
async def test_the_plugin_can_be_installed_when_the_scheduler_starts(c, s, a, b):
    await dask_setup(s)
    half = s.plugins[NAME]
    await Pub("t", worker=a)
    assert s.plugins[NAME] is half
    assert "t" in half.topics or not half.topics


@gen_cluster(client=True)
async def test_a_scheduler_without_the_package_is_named(c, s, a, b):
    async def refuse(plugin, name, idempotent):
        raise ModuleNotFoundError("No module named 'tensair_dask'")

    s.handlers["register_scheduler_plugin"] = refuse
    with pytest.raises(PackageMissingError, match="pip install tensair-dask"):
        await Pub("t", worker=a)
    sub = Sub("t", client=c)
    with pytest.raises(PackageMissingError):
        await sub.get()


@gen_cluster(client=True)
async def test_a_scheduler_that_refuses_plugins_is_reported(c, s, a, b):
    async def refuse(plugin, name, idempotent):
        raise ValueError("not here")

    s.handlers["register_scheduler_plugin"] = refuse
    pub = Pub("t", worker=a)
    pub.put(1)
    with pytest.raises(ClusterError, match="not here"):
        await pub


@gen_cluster(client=True, config=SHORT)
async def test_a_scheduler_that_does_not_know_us_is_asked_for_a_bounded_time(
    c, s, a, b
):
    asked = []

    async def unknown(**kwargs):
        asked.append(kwargs)
        return {"status": "unknown"}

    await Pub("t", worker=a)
    s.handlers["tensair_pubsub_register"] = unknown
    with pytest.raises(SchedulerLostError, match=r"tensair\.pubsub\.timeout"):
        await Sub("t", worker=a)
    assert len(asked) > 1


@gen_cluster(client=True, config=SHORT)
async def test_a_replaced_scheduler_gets_the_plugin_again(c, s, a, b):
    await Pub("t", worker=a)
    s.plugins.pop(NAME)
    for name in [name for name in s.handlers if name.startswith("tensair_pubsub")]:
        del s.handlers[name]
    pub, sub = await Pub("u", worker=a), await Sub("u", worker=b)
    await pub.wait_for(lambda view: view.subscribers, "5s")
    pub.put(1)
    assert await sub.get("5s") == 1


@gen_cluster(client=True)
async def test_closing_before_registration_leaves_nothing_behind(c, s, a, b):
    await Pub("other", worker=a)
    sub, pub = Sub("t", worker=a), Pub("t", worker=b)
    await sub.close()
    await pub.close()
    await async_poll_for(lambda: "t" not in s.plugins[NAME].topics, 5)


@gen_cluster(client=True)
async def test_closing_before_registration_still_delivers(c, s, a, b):
    sub = await Sub("t", worker=a)
    pub = Pub("t", worker=b)
    pub.put(1)
    await pub.close()
    assert await sub.get("5s") == 1


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_nothing_is_installed_before_first_use(c, s, a):
    await c.submit(lambda: 1)
    assert NAME not in s.plugins
    assert NAME not in a.plugins
    assert not any(name.startswith("tensair") for name in c._stream_handlers)


@gen_cluster(client=True)
async def test_handlers_are_there_before_the_scheduler_hears_of_a_process(c, s, a, b):
    await Pub("t", worker=b)
    half = s.plugins[NAME]
    seen = []

    async def register(**kwargs):
        [(_, address, *_)] = kwargs["subscribers"]
        node = {a.address: a, c.id: c}[address]
        handlers = node.stream_handlers if node is a else node._stream_handlers
        seen.append("tensair-pubsub-view" in handlers)
        return await half.register(**kwargs)

    s.handlers["tensair_pubsub_register"] = register
    await Sub("t", worker=a)
    await Sub("t", client=c)
    assert seen == [True, True]


def test_timeouts_are_configured():
    assert config.get_seconds("pubsub.timeout") == 30
    assert config.get_seconds("pubsub.retry") == 0.1
    assert config.get_seconds("pubsub.linger") == 5
    assert config.get_seconds("pubsub.connect") == 3


def test_the_scheduler_half_needs_neither_torch_nor_numpy():
    import subprocess
    import sys

    code = "import sys, tensair_dask.pubsub.scheduler;sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert endpoint.NAME == NAME
