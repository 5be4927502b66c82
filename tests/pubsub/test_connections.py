"""What ended connections in Dask's Pub and Sub: odd messages, members that leave."""

from __future__ import annotations

import asyncio
import gc

from distributed.utils_test import async_poll_for, gen_cluster

from tensair_dask.pubsub import Pub, Sub


@gen_cluster(client=True, nthreads=[("", 1)])
async def test_dask_8685_a_message_that_looks_like_an_error_is_only_a_message(c, s, a):
    sub = await Sub("a", client=c)
    pub = await Pub("a", worker=a)
    for message in ({"status": "error"}, {"op": "close"}, {"status": "uncaught-error"}):
        pub.put(message)
        assert await sub.get("5s") == message


@gen_cluster(client=True)
async def test_dask_8334_a_publisher_that_leaves_does_not_end_a_connection(c, s, a, b):
    # Dask's scheduler told members of a leaving publisher by an operation that they
    # did not know. Here the last of each role leaves, in each order, on every process.
    for first, second in ((Pub, Sub), (Sub, Pub)):
        for where in ({"worker": a}, {"client": c}):
            witness = await first("t", worker=b)
            one, two = await first("t", **where), await second("t", **where)
            await one.close()
            await two.close()
            await witness.close()
    await async_poll_for(lambda: not s.plugins["tensair-pubsub"].topics, 5)
    assert set(s.workers) == {a.address, b.address}
    assert await c.submit(lambda: 1) == 1


@gen_cluster(client=True, nthreads=[("", 1)] * 4)
async def test_dask_3276_topic_after_topic_from_the_same_client(c, s, *workers):
    def run(topic, number):
        pub = Pub(topic)
        pub.put(["finished", number])

    for topic in ("1", "1", "2", "3"):
        sub = await Sub(topic)
        c.map(run, [topic] * 4, range(4), pure=False)
        finished = set()
        async for what, number in sub:
            assert what == "finished"
            finished.add(number)
            if len(finished) == 4:
                break
        del sub
        gc.collect()
    assert set(s.workers) == {worker.address for worker in workers}
    assert await c.submit(lambda: 1) == 1


@gen_cluster(client=True)
async def test_unregistering_twice_or_what_never_was_is_harmless(c, s, a, b):
    sub = await Sub("t", client=c)
    half = s.plugins["tensair-pubsub"]
    for _ in range(2):
        await c.scheduler.tensair_pubsub_unregister(ids=[sub.id, "never"])
    half.remove_client(s, c.id)
    half.remove_client(s, "never")
    half.remove_worker(s, "tcp://never:1", stimulus_id="x")
    assert await c.submit(lambda: 1) == 1


@gen_cluster(client=True)
async def test_coming_and_going_at_random_keeps_everyone_connected(c, s, a, b):
    got = []
    stay = await Sub("t", worker=b, handler=lambda m, _: got.append(m))

    async def come_and_go(number):
        where = [{"worker": a}, {"worker": b}, {"client": c}][number % 3]
        sub, pub = Sub("t", **where), Pub("t", **where)
        if number % 2:
            await sub
        pub.put(number)
        if number % 5:
            await pub.close()
        sub.close()

    await asyncio.gather(*(come_and_go(number) for number in range(30)))
    gc.collect()
    await async_poll_for(lambda: sorted(got) == list(range(30)), 10)
    await stay.wait_for(
        lambda view: not view.publishers and set(view.subscribers) == {stay.id}, "10s"
    )
    assert set(s.workers) == {a.address, b.address}
    assert await c.submit(lambda: 1) == 1
