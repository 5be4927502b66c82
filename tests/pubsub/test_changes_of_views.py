"""Every process knows the members, whatever becomes of the changes sent to it."""

from __future__ import annotations

import asyncio
import math

import dask
import msgpack
import pytest
from topics_in_memory import SETTINGS, Cluster

from tensair_dask.pubsub import Pub, Sub
from tensair_dask.pubsub.view import Change


def run(test):
    """Run a test with the settings of topics in memory."""
    with dask.config.set(SETTINGS):
        asyncio.run(asyncio.wait_for(test(), 60))


async def until(predicate):
    async with asyncio.timeout(30):
        while not predicate():
            await asyncio.sleep(0.001)


def ids(view):
    return {*view.publishers, *view.subscribers}


class Crowd:
    """Publishers and subscriptions that come and go at random."""

    def __init__(self, cluster, workers, together=1):
        self.cluster = cluster
        self.together = together
        self.nodes = [cluster.worker() for _ in range(workers)]
        self.there = []

    async def act(self):
        dice = self.cluster.dice
        chance = dice.random()
        if chance < 0.05 and len(self.nodes) > 2:
            await self.replace(dice.choice(self.nodes))
        elif chance < 0.4 and self.there:
            handle = self.there.pop(dice.randrange(len(self.there)))
            await handle.close(0)
        else:
            await self.join(dice.choice([Pub, Sub]), dice.choice(self.nodes))

    async def replace(self, node):
        self.nodes.remove(node)
        self.there = [each for each in self.there if each.node is not node]
        await self.cluster.kill(node)
        self.nodes.append(self.cluster.worker())

    async def join(self, kind, node):
        some = {}
        if kind is Sub:
            some["together"] = self.cluster.dice.randint(1, self.together)
        handle = kind("t", worker=node, on_view=self.check, **some)
        handle.node = node
        self.there.append(handle)
        await handle
        if handle not in self.there:  # it was closed, or killed, meanwhile
            return
        self.check(handle.view)
        if kind is Sub:
            # All publishers that act by a view act by one that it is in.
            for each in self.there:
                if isinstance(each, Pub) and each.view.number:
                    assert handle.id in each.subscribers

    def check(self, view):
        """Nobody sees a view that was not told."""
        assert ids(view) == self.cluster.told[view.number]

    async def agrees(self):
        wanted = {each.id for each in self.there}
        await until(lambda: all(ids(each.view) == wanted for each in self.there))


async def come_and_go(cluster, together=1):
    await cluster.start()
    crowd = Crowd(cluster, 4, together)
    acting = set()
    for _ in range(40):
        acting.add(asyncio.ensure_future(crowd.act()))
        await asyncio.sleep(cluster.dice.choice([0, 0, 0.001]))
    cluster.lose = 0
    while (await asyncio.wait(acting, timeout=0.01))[1]:
        # What was lost is noticed at the next change, and then confirmed; and whoever
        # waits for others is told of with the next one that does not.
        await crowd.join(Pub, crowd.nodes[0])
    for each in acting:
        error = each.exception()
        # Whoever waits on a worker that is killed is told so.
        assert error is None or "is closed" in str(error), error
    crowd.there = [each for each in crowd.there if not each._core.closed]
    await crowd.join(Pub, crowd.nodes[0])
    await crowd.agrees()
    for node in crowd.nodes:
        await cluster.kill(node)
    assert not cluster.half.topics


@pytest.mark.parametrize("seed", range(30))
def test_all_agree_after_coming_and_going_at_random(seed):
    run(lambda: come_and_go(Cluster(seed)))


@pytest.mark.parametrize("seed", range(30))
def test_all_agree_where_changes_are_repeated_and_answers_are_lost(seed):
    run(lambda: come_and_go(Cluster(seed, repeat=0.3, unsure=0.2)))


@pytest.mark.parametrize("seed", range(30))
def test_all_agree_where_changes_are_lost(seed):
    run(lambda: come_and_go(Cluster(seed, lose=0.3, repeat=0.2)))


@pytest.mark.parametrize("seed", range(30))
def test_all_agree_where_some_wait_for_others(seed):
    run(lambda: come_and_go(Cluster(seed, repeat=0.2), 4))


def test_only_what_has_changed_is_told_to_those_that_know_the_rest():
    async def test():
        cluster = await Cluster().start()
        first = [await Sub("t", worker=cluster.worker()) for _ in range(5)]
        number = first[0].view.number
        cluster.pushed.clear()
        last = await Sub("t", worker=cluster.worker())
        changes = [Change.from_wire(each["view"]) for _, each in cluster.pushed]
        assert len(changes) == len(first) + 1
        for change in changes[:-1]:
            assert change.after == number
            assert [one.id for one in change.subscribers] == [last.id]
        assert changes[-1].after == 0
        assert len(changes[-1].subscribers) == len(first) + 1

    run(test)


def test_one_that_missed_a_change_asks_for_the_whole_view():
    async def test():
        cluster = await Cluster().start()
        pub = await Pub("t", worker=cluster.worker())
        cluster.lose = 1
        lost = Sub("t", worker=cluster.worker())
        await until(lambda: lost.id in cluster.half.topics["t"].view)
        cluster.lose = 0
        sub = await Sub("t", worker=cluster.worker())
        assert set(pub.subscribers) == {lost.id, sub.id}
        asked = [name for name, _ in cluster.calls if name == "tensair_pubsub_view"]
        assert asked

    run(test)


def test_a_subscription_whose_first_view_is_lost_asks_for_it():
    async def test():
        cluster = await Cluster(lose=1).start()
        sub = await Sub("t", worker=cluster.worker())
        assert set(sub.view.subscribers) == {sub.id}

    run(test)


def test_what_was_confirmed_is_known_to_all_that_publish():
    async def test():
        cluster = await Cluster().start()
        pubs = [await Pub("t", worker=cluster.worker()) for _ in range(5)]
        sub = await Sub("t", worker=cluster.worker())
        assert all(sub.id in pub.subscribers for pub in pubs)
        confirmed = [name for name, _ in cluster.calls if name == "tensair_pubsub_seen"]
        assert len(confirmed) == len(pubs)

    run(test)


def test_what_begins_together_in_a_process_is_registered_in_one_call():
    async def test():
        cluster = await Cluster().start()
        other = await Pub("t", worker=cluster.worker())
        node = cluster.worker()
        sub, pub = Sub("t", worker=node), Pub("t", worker=node)
        await sub
        await pub
        calls = [each for name, each in cluster.calls if "register" in name]
        assert [len(each["subscribers"]) for each in calls] == [0, 1]
        assert [len(each["publishers"]) for each in calls] == [1, 1]
        assert sub.view == pub.view == other.view

    run(test)


def test_a_publisher_does_not_wait_for_a_subscription_beside_it():
    async def test():
        cluster = await Cluster().start()
        silent = cluster.worker()
        first = await Pub("t", worker=silent)
        silent.stream_handlers["tensair-pubsub-view"] = lambda **_: None
        node = cluster.worker()
        sub, pub = Sub("t", worker=node), Pub("t", worker=node)
        await pub
        assert sub.id in pub.subscribers
        assert not sub._core.ready
        assert sub.id not in first.subscribers

    run(test)


def test_one_that_leaves_while_it_is_registered_does_not_take_others_with_it():
    async def test():
        cluster = await Cluster().start()
        node = cluster.worker()
        sub, pub = Sub("t", worker=node), Pub("t", worker=node)
        await sub.close(0)
        await pub
        await until(lambda: ids(pub.view) == {pub.id})

    run(test)


def test_those_that_begin_together_get_one_view():
    async def test():
        cluster = await Cluster().start()

        async def join(node):
            sub = Sub("t", worker=node, together=16)
            pub = Pub("t", worker=node)
            await asyncio.gather(_ready(sub), _ready(pub))
            return sub, pub

        joining = [asyncio.ensure_future(join(cluster.worker())) for _ in range(8)]
        ends = [end for pair in await asyncio.gather(*joining) for end in pair]
        assert {end.view.number for end in ends} == {ends[0].view.number}
        assert len(cluster.pushed) == 8
        assert len(cluster.calls) == 8  # nobody has anything to confirm

    run(test)


@pytest.mark.parametrize("replicas", [16, 64, 256])
def test_a_start_takes_few_bytes_of_the_scheduler(replicas):
    async def test():
        cluster = await Cluster().start()

        async def join(number):
            node = cluster.worker()
            name = f"replica-{number}"
            sub = Sub("t", worker=node, member=name, together=2 * replicas)
            pub = Pub("t", worker=node, member=name)
            await sub
            await pub
            return sub, pub

        there = await asyncio.gather(*map(join, range(replicas)))
        passed = [*cluster.calls, *cluster.pushed]
        size = sum(len(msgpack.packb(each)) for each in passed)
        assert size < 1000 * replicas * math.log2(replicas)
        assert len(passed) == 2 * replicas
        assert len(there[0][1].subscribers) == replicas

    run(test)


async def _ready(handle):
    return await handle


def test_those_that_wait_for_others_in_vain_are_told_of():
    async def test():
        cluster = await Cluster().start()
        one = ["s", cluster.worker().contact_address, None, "worker"]
        answer = await cluster.half.register("t", [], [one], 0.01, together=2)
        assert answer["status"] == "ok"
        assert set(cluster.half.topics["t"].view.subscribers) == {"s"}

    run(test)


def test_one_that_waits_for_others_keeps_nobody_from_being_told():
    async def test():
        cluster = await Cluster().start()
        waiting = Sub("t", worker=cluster.worker(), together=3)
        await until(lambda: cluster.calls)
        sub = await Sub("t", worker=cluster.worker())
        assert set(sub.view.subscribers) == {waiting.id, sub.id}
        await waiting

    run(test)


def test_one_that_waits_for_others_may_leave():
    async def test():
        cluster = await Cluster().start()
        sub = Sub("t", worker=cluster.worker(), together=2)
        await until(lambda: cluster.calls)
        await sub.close()
        assert not cluster.half.topics

    run(test)


def test_one_that_is_forgotten_while_it_is_registered_is_registered_anew():
    async def test():
        cluster = await Cluster().start()
        sub = Sub("t", worker=cluster.worker())
        before = sub.id
        sub._core.endpoint.rejoin()
        await sub
        assert sub.id != before
        await until(lambda: ids(sub.view) == {sub.id})
        (call,) = [
            each for name, each in cluster.calls if name == "tensair_pubsub_register"
        ]
        assert len(call["subscribers"]) == 1

    run(test)


def test_a_plugin_that_begins_anew_is_heard():
    async def test():
        cluster = await Cluster().start()
        a, b = cluster.worker(), cluster.worker()
        before = await Sub("t", worker=a), await Pub("t", worker=b)
        await cluster.start()
        sub, pub = await Sub("t", worker=a), await Pub("t", worker=b)
        assert sub.view.number > before[0].view.number
        assert set(pub.subscribers) == {sub.id}
        assert set(cluster.half.topics["t"].view.subscribers) == {sub.id}

    run(test)


def test_changes_of_one_turn_of_the_loop_are_one_view():
    async def test():
        cluster = await Cluster().start()
        stays = await Sub("t", worker=cluster.worker())
        nodes = [cluster.worker() for _ in range(3)]
        others = [await Sub("t", worker=node) for node in nodes]
        number = stays.view.number
        await asyncio.gather(*map(cluster.kill, nodes))
        await until(lambda: len(stays.view.subscribers) == 1)
        assert stays.view.number == number + 1
        assert all(other._core.closed for other in others)

    run(test)


def test_a_view_takes_few_bytes_for_each_member():
    async def test():
        cluster = await Cluster().start()
        node = cluster.worker()
        subs = [Sub("t", worker=node, member=f"replica-{n}") for n in range(64)]
        for sub in subs:
            await sub
        assert len(subs[0].view.to_wire()) < 20 * len(subs)

    run(test)
