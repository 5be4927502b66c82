"""Overload: what waits, what is dropped, and that nothing is lost from the count."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, classes
from streamz import Stream
from streamz.core import RefCounter
from tornado.ioloop import IOLoop
from trainers import Slow, until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.observe.dashboard.plugin import NAME as DASHBOARD
from tensair_dask.observe.telemetry import reporter
from tensair_dask.streams.overload import Overload, WaitingRoom

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)
LOSSY = ["drop-oldest", "sample"]


@pytest.fixture
def slow():
    Slow.gate.clear()
    Slow.entered.clear()
    yield Slow
    Slow.gate.set()


def numbered(number: int) -> tuple[np.ndarray, np.ndarray]:
    return np.full((1, FEATURES), float(number), "float32"), np.zeros(1, int)


# ---- the waiting room ----------------------------------------------------------------


def test_the_oldest_are_dropped_and_the_rest_keep_their_order():
    room = WaitingRoom("drop-oldest", 3)
    gone = [each for number in range(8) for each in room.put(number)]
    assert gone == [0, 1, 2, 3, 4]
    assert [room.take() for _ in range(len(room))] == [5, 6, 7]


def test_a_sample_of_a_burst_is_uniform_and_keeps_its_order():
    kept: Counter[int] = Counter()
    for seed in range(2000):
        room = WaitingRoom("sample", 5, seed)
        for number in range(50):
            room.put(number)
        taken = [room.take() for _ in range(len(room))]
        assert taken == sorted(taken)
        assert len(taken) == 5
        kept.update(taken)
    # 200 expected of each; chi-square with 49 degrees of freedom, 99.9 %: 85.4.
    chi_square = sum((kept[number] - 200) ** 2 / 200 for number in range(50))
    assert chi_square < 85.4


def test_a_sample_favours_no_time_under_a_steady_overload():
    kept: list[int] = []
    room = WaitingRoom("sample", 20, seed=1)
    for number in range(30_000):
        room.put(number)
        if number % 3 == 2:  # three come while one is learned
            kept.append(room.take())
    share, _ = np.histogram(kept, bins=10, range=(0, 30_000))
    assert share == pytest.approx(np.full(10, 1000), rel=0.1)
    assert kept == sorted(kept)


@pytest.mark.parametrize("policy", LOSSY)
def test_a_waiting_room_stays_bounded_whatever_comes_and_goes(policy):
    room = WaitingRoom(policy, 4, seed=0)
    gone = taken = 0
    for number in range(5000):
        gone += len(room.put(number))
        if number % 2:
            room.take()
            taken += 1
        assert len(room) <= 4
        assert len(room._tags) <= 2 * 4 + 17
    assert gone + taken + len(room) == 5000


# ---- episodes ------------------------------------------------------------------------


class Gate:
    """Takes items one by one, as the test lets it."""

    def __init__(self, calm: float = 60.0, policy: str = "drop-oldest") -> None:
        self.open = asyncio.Event()
        self.fed: list[int] = []
        self.dropped: list[int] = []
        self.notes: list[str] = []
        self.errors: list[Exception] = []
        self.fails = False
        self.overload = Overload(
            WaitingRoom(policy, 2),
            self.feed,
            self.dropped.append,
            self.errors.append,
            self.notes.append,
            calm,
        )

    def feed(self, item):
        if self.open.is_set() and not self.fails:
            self.fed.append(item)
            return None
        return self.wait(item)

    async def wait(self, item):
        await self.open.wait()
        if self.fails:
            raise errors.NoReplicasError("none is alive")
        self.fed.append(item)


def run(function):
    async def limited():
        await asyncio.wait_for(function(), 30)

    asyncio.run(limited())


def test_an_episode_is_noted_where_it_begins_and_where_it_ends():
    async def test():
        gate = Gate(calm=0.01)
        for number in range(10):
            gate.overload.offer(number)
        assert len(gate.notes) == 1
        assert "2 mini-batches wait" in gate.notes[0]
        gate.open.set()
        await until(lambda: len(gate.notes) == 2)
        assert gate.fed == [0, 8, 9]
        assert "7 mini-batches were dropped" in gate.notes[1]
        gate.overload.offer(10)
        assert len(gate.notes) == 2

    run(test)


def test_many_bursts_soon_after_each_other_are_one_episode():
    async def test():
        gate = Gate(calm=60)
        for _ in range(20):
            gate.open.clear()
            for number in range(10):
                gate.overload.offer(number)
            gate.open.set()
            await gate.overload.emptied(10)
        assert len(gate.notes) == 1
        gate.overload.end()
        gate.overload.end()
        assert len(gate.notes) == 2
        assert gate.overload.dropped == len(gate.dropped) == 140

    run(test)


def test_what_could_not_be_fed_waits_and_is_fed_first():
    async def test():
        gate = Gate()
        gate.fails = True
        for number in range(3):
            gate.overload.offer(number)
        gate.open.set()
        await until(lambda: gate.errors)
        assert gate.overload.waiting == 3
        assert gate.overload.lag() > 0
        gate.fails = False
        await gate.overload.emptied(10)
        assert gate.fed == [0, 1, 2]
        assert (gate.overload.waiting, gate.overload.lag()) == (0, 0.0)

    run(test)


def test_waiting_for_it_to_be_empty_is_bounded():
    async def test():
        gate = Gate()
        gate.overload.offer(0)
        gate.overload.offer(1)
        with pytest.raises(errors.TensairTimeoutError, match="1 mini-batches waited"):
            await gate.overload.emptied(0.01)
        gate.overload.close()

    run(test)


# ---- streams -------------------------------------------------------------------------


async def all_learned(trainer) -> int:
    await trainer.drain()
    return sum(each.steps for each in trainer.replicas)


@pytest.mark.parametrize("policy", LOSSY)
def test_emit_never_waits_and_nothing_is_lost_from_the_count(slow, policy):
    @one()
    async def run(c, s, a):
        arguments = classes(model=slow, max_in_flight=2)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            node = source.train(trainer, overload=policy, waiting=5)
            reports = node.sink_to_list()
            refs = [RefCounter(loop=IOLoop.current()) for _ in range(50)]
            for number, ref in enumerate(refs):
                item = None if number == 49 else numbered(number)
                emitted = source.emit(item, metadata=[{"ref": ref}])
                await asyncio.wait_for(emitted, 5)
            assert node.queued == 5
            assert node.dropped == trainer.dropped == 50 - 2 - 1 - 5
            assert trainer.backlog == 8
            assert trainer.lag > 0
            assert trainer.emitted == 50
            assert [ref.count for ref in refs].count(0) == node.dropped
            slow.gate.set()
            learned = await all_learned(trainer)
            refused = trainer.dead_letters.total
            assert learned + refused + trainer.dropped == 50
            assert len(reports) == learned + refused
            indices = sorted(report.index for report in reports)
            assert indices == list(range(len(reports)))
            assert {ref.count for ref in refs} == {0}
            texts = trainer.events["text"].tolist()
            reported = [text for text in texts if text.startswith("overload")]
            assert len(reported) == 2  # besides, what was refused is told
            assert f"{trainer.dropped} mini-batches were dropped" in reported[-1]

    run()


class InOrder(Slow):
    """Notes the numbers in the order in which it learned them."""

    seen: list[float] = []  # noqa: RUF012

    def forward(self, x):
        if self.training:
            InOrder.seen.append(x[0, 0].item())
        return super().forward(x)


@pytest.mark.parametrize("policy", LOSSY)
def test_what_is_learned_keeps_its_order(slow, policy):
    InOrder.seen.clear()

    @one()
    async def run(c, s, a):
        arguments = classes(model=InOrder, max_in_flight=2)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer, overload=policy, waiting=5).sink(lambda report: None)
            for number in range(50):
                await source.emit(numbered(number))
            slow.gate.set()
            await trainer.drain()
            assert InOrder.seen == sorted(InOrder.seen)
            assert len(InOrder.seen) == 8
            if policy == "drop-oldest":
                assert InOrder.seen[-5:] == [45, 46, 47, 48, 49]

    run()


def test_a_source_that_waits_for_nothing_is_learned_from_too(slow):
    @one()
    async def run(c, s, a):
        arguments = classes(model=slow, max_in_flight=2)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            reports = source.train(trainer).sink_to_list()
            for number in range(10):  # as from_tcp does
                source._emit(numbered(number))
            slow.gate.set()
            await until(lambda: len(reports) == 10)
            await trainer.drain()

    run()


@one()
async def test_a_stream_that_is_not_too_fast_drops_nothing(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.train(trainer, overload="sample", waiting=1000)
        for number in range(200):
            await source.emit(numbered(number))
        assert await all_learned(trainer) == 200
        assert (node.dropped, node.queued, len(trainer.events)) == (0, 0, 0)


def test_an_error_of_an_item_that_waited_is_raised_by_emit(slow):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=slow, max_in_flight=2))
        source = Stream(asynchronous=True)
        node = source.train(
            trainer, overload="drop-oldest", waiting=2, on_error="raise"
        )
        node.sink(lambda report: None)
        wrong = (X[:, :1], Y)
        for item in [numbered(0), numbered(1), numbered(2), wrong]:
            await source.emit(item)
        slow.gate.set()
        with pytest.raises(errors.ShapeError):
            await trainer.drain()
        await source.emit(numbered(3))
        assert await all_learned(trainer) == 4
        trainer.session.dispatcher.lose(
            trainer.session.dispatcher.lanes[0], OSError("killed")
        )
        await source.emit(numbered(4))
        await until(lambda: node._failure is not None)
        with pytest.raises(errors.NoReplicasError):
            await source.emit(numbered(5))
        assert node.queued == 1
        await trainer.close()

    run()


def test_what_waits_is_given_up_when_the_trainer_is_closed(slow):
    @one()
    async def run(c, s, a):
        trainer = await ta.Trainer(c, **classes(model=slow, max_in_flight=2))
        source = Stream(asynchronous=True)
        node = source.train(trainer, overload="drop-oldest", waiting=2)
        refs = [RefCounter(loop=IOLoop.current()) for _ in range(10)]
        for number, ref in enumerate(refs):
            await source.emit(numbered(number), metadata=[{"ref": ref}])
        slow.gate.set()
        await trainer.close()
        assert trainer.events["kind"].tolist() == ["note", "note"]
        assert refs[-1].count > 0  # it was not learned
        assert node.dropped == 5

    run()


@one()
async def test_a_policy_or_a_bound_that_does_not_exist_is_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        with pytest.raises(errors.ConfigurationError, match="'drop-oldest', 'sample'"):
            source.train(trainer, overload="newest")
        for waiting in (0, 1.5, True, "10"):
            with pytest.raises(errors.ConfigurationError, match="whole number"):
                source.train(trainer, overload="sample", waiting=waiting)
        for options in ({"overload": "block"}, {}):
            with pytest.raises(errors.ConfigurationError, match="none wait in the"):
                source.train(trainer, waiting=5, **options)
        with (
            dask.config.set({"tensair.overload.waiting": "many"}),
            pytest.raises(errors.ConfigurationError, match="'many' is configured"),
        ):
            source.train(trainer, overload="sample")
        assert not trainer.session.intake.nodes


def test_dropped_items_are_reported_to_the_scheduler(slow, monkeypatch):
    monkeypatch.setattr(reporter, "INTERVAL", 0.02)

    @one()
    async def run(c, s, a):
        arguments = classes(model=slow, max_in_flight=2)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer, overload="drop-oldest", waiting=2)
            for number in range(10):
                await source.emit(numbered(number))
            record = s.plugins[DASHBOARD].telemetry.trainers[trainer.run_id]
            await until(lambda: record.dropped == 5)
            assert record.row(1)["dropped"] == 5
            assert record.summary(1)["dropped"] == 5
            assert record.reported["emitted"] == 10
            slow.gate.set()

    run()


def test_a_script_with_a_source_that_cannot_wait():
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes(max_in_flight=2)) as trainer,
    ):
        source = Stream()
        node = source.train(trainer, overload="sample", waiting=3)
        reports = node.sink_to_list()
        for number in range(500):
            source.emit(numbered(number))
        trainer.drain()
        assert len(reports) + trainer.dropped == trainer.emitted == 500
