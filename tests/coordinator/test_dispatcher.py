"""The dispatcher alone, with replicas that are plain coroutines."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from distributed.utils_test import captured_logger, gen_test
from receivers import Hearer

from tensair_dask.batches.batch import Block, MiniBatch
from tensair_dask.coordinator.dispatcher import Dispatcher
from tensair_dask.coordinator.lane import Lane, Limits
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.errors import (
    KilledReplicasError,
    NoReplicasError,
    TensairTimeoutError,
)
from tensair_dask.replica.thread import Outcome, Status
from tensair_dask.reports import Report

ROW = np.zeros((1, 2), "float32")


def limits(**overrides: Any) -> Limits:
    arguments = {
        "batches": 8,
        "nbytes": 1 << 20,
        "unconfirmed_nbytes": 1 << 20,
        "unconfirmed": 1000,
        "seconds": 1.0,
        "message_seconds": 0.01,
        "message_nbytes": 1 << 20,
        "messages": 2,
        "rate": 1e9,
        "losses": 2,
        "room": 5.0,
    }
    return Limits(**{**arguments, **overrides})


class Peer:
    """Learns a block when it is told to, at a given speed.

    How much of that the others have applied is told by `confirmed`, if that is set.
    """

    def __init__(self, seconds: float = 0.001, free: bool = True) -> None:
        self.seconds = seconds
        self.blocks: list[Block] = []
        self.gate = asyncio.Event()
        self.error: Exception | None = None
        self.confirmed = 0
        self.leaving = False
        if free:
            self.gate.set()

    async def learn(self, block: Block) -> Outcome:
        self.blocks.append(block)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        count = len(block)
        return Outcome(
            [],
            [0.5] * count,
            [[]] * count,
            [self.seconds] * count,
            [0] * count,
            [None] * count,
            {},
            self.status(),
        )

    def status(self) -> Status:
        count = sum(map(len, self.blocks))
        return Status(
            count, count, 0.0, count, count, self.confirmed, leaving=self.leaving
        )


class Losing(Subscriber):
    """Does something where a replica is lost."""

    def __init__(self, function: Callable[[Lane], Any]) -> None:
        self.replica_lost = function


def losing(function: Callable[[Lane], Any]) -> RunEvents:
    """Events of which a function hears when a replica is lost."""
    nobody: Any = None
    events = RunEvents(nobody, "run")
    events.subscribe(Losing(function))
    return events


class Bench:
    """A dispatcher, its peers, and the reports that came back."""

    def __init__(self, *peers: Peer, **overrides: Any) -> None:
        self.limits = limits(**overrides)
        self.dispatcher = Dispatcher("run", self.limits)
        for number, peer in enumerate(peers):
            self.dispatcher.admit(Lane(f"peer-{number}", peer.learn))
        self.reports: list[Report] = []
        self.settled: list[int] = []
        self.count = 0

    def pending(self) -> Pending:
        self.count += 1
        batch = MiniBatch.of(ROW, np.zeros(1))
        receiver = Hearer(self.reports.append)
        return Pending(
            self.count - 1,
            batch,
            ROW,
            receiver,
            settle=lambda pending: self.settled.append(pending.index),
        )

    def make_room(self) -> None:
        """Let the first lane have room for one more, and wake who waits for it."""
        lane = self.dispatcher.lanes[0]
        lane.batches -= 1
        self.dispatcher._roomy.put(lane)
        self.dispatcher._wake()

    async def submit(self, count: int) -> None:
        for _ in range(count):
            await self.dispatcher.submit(self.pending())


@gen_test()
async def test_every_mini_batch_is_reported_once():
    bench = Bench(Peer(), Peer())
    await bench.submit(100)
    await bench.dispatcher.drained(5)
    assert sorted(report.index for report in bench.reports) == list(range(100))
    assert bench.dispatcher.backlog == 0


@gen_test()
async def test_what_is_given_while_a_replica_is_busy_leaves_as_one_message():
    peer = Peer(free=False)
    bench = Bench(peer, batches=100, seconds=100.0, message_seconds=10.0)
    bench.dispatcher.lanes[0].seconds_per_batch = 0.001
    await bench.submit(1)
    while not peer.blocks:
        await asyncio.sleep(0)
    await bench.submit(40)
    peer.gate.set()
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peer.blocks] == [1, 40]


@gen_test()
async def test_mini_batches_given_in_one_go_leave_together():
    peer = Peer()
    bench = Bench(peer)
    bench.dispatcher.lanes[0].seconds_per_batch = 0.001
    for _ in range(5):
        assert bench.dispatcher.offer(bench.pending())
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peer.blocks] == [5]


@gen_test()
async def test_a_message_is_bounded_in_time_and_in_bytes():
    peer = Peer()
    bench = Bench(peer, batches=100, message_seconds=0.004)
    bench.dispatcher.lanes[0].seconds_per_batch = 0.001
    for _ in range(8):
        bench.dispatcher.offer(bench.pending())
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peer.blocks] == [4, 4]

    peer = Peer()
    bench = Bench(peer, batches=100, message_nbytes=3 * (ROW.nbytes + 8))
    bench.dispatcher.lanes[0].seconds_per_batch = 1e-9
    for _ in range(6):
        bench.dispatcher.offer(bench.pending())
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peer.blocks] == [3, 3]


@gen_test()
async def test_the_more_replicas_there_are_the_more_work_a_message_holds():
    peers = [Peer(free=False) for _ in range(10)]
    bench = Bench(*peers, batches=100, seconds=0.02, rate=100)
    for lane in bench.dispatcher.lanes:
        lane.seconds_per_batch = lane.pace = 0.01
    while bench.dispatcher.offer(bench.pending()):
        await asyncio.sleep(0)
    for peer in peers:
        peer.gate.set()
    await bench.dispatcher.drained(5)
    # The first leaves alone; then a tenth of a second of work in each.
    assert [len(block) for block in peers[0].blocks] == [1, 10, 9]


@gen_test()
async def test_where_replicas_leave_messages_hold_less_work_again():
    peers = [Peer(free=False) for _ in range(10)]
    bench = Bench(*peers, batches=100, seconds=0.02, rate=100)
    first, *others = bench.dispatcher.lanes
    first.seconds_per_batch = first.pace = 0.01
    for lane in others:
        bench.dispatcher.dismiss(lane)
    while bench.dispatcher.offer(bench.pending()):
        await asyncio.sleep(0)
    assert first.batches == 2
    peers[0].gate.set()
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peers[0].blocks] == [1, 1]


@gen_test()
@pytest.mark.parametrize("bound", ["message_seconds", "message_nbytes"])
async def test_a_message_holds_at_least_one_mini_batch(bound):
    peer = Peer()
    bench = Bench(peer, **{bound: 0})
    bench.dispatcher.lanes[0].seconds_per_batch = 0.001
    await bench.submit(3)
    await bench.dispatcher.drained(5)
    assert [len(block) for block in peer.blocks] == [1, 1, 1]
    assert len(bench.reports) == 3


@gen_test()
async def test_a_stopped_replica_stops_the_source_at_the_bound():
    peer = Peer(free=False)
    bench = Bench(peer, batches=4)
    bench.dispatcher.lanes[0].seconds_per_batch = 0.001
    feeding = asyncio.ensure_future(bench.submit(20))
    while not bench.dispatcher.waiting:
        await asyncio.sleep(0)
    assert bench.count == 5  # four lie at the replica, one waits for room
    assert bench.dispatcher.lanes[0].batches == 4
    assert bench.dispatcher.backlog == 5
    peer.gate.set()
    await feeding
    await bench.dispatcher.drained(5)
    assert len(bench.reports) == 20


@gen_test()
async def test_at_any_moment_what_was_given_is_reported_or_in_the_backlog():
    bench = Bench(Peer(), batches=1)
    feeding = asyncio.ensure_future(bench.submit(50))
    while not feeding.done():
        assert bench.count == len(bench.reports) + bench.dispatcher.backlog
        await asyncio.sleep(0)
    await bench.dispatcher.drained(5)
    assert len(bench.reports) == 50


@gen_test()
async def test_bytes_are_bounded_too():
    bench = Bench(Peer(free=False), nbytes=2 * (ROW.nbytes + 8))
    bench.dispatcher.lanes[0].seconds_per_batch = 1e-6
    assert bench.dispatcher.offer(bench.pending())
    assert bench.dispatcher.offer(bench.pending())
    assert not bench.dispatcher.offer(bench.pending())
    await bench.dispatcher.close()


@gen_test()
async def test_waiting_for_room_is_bounded_and_says_what_to_do():
    bench = Bench(Peer(free=False), batches=1, room=0.01)
    await bench.submit(1)
    with pytest.raises(TensairTimeoutError, match=r"tensair\.timeouts\.room"):
        await bench.submit(1)
    assert bench.dispatcher.backlog == 1
    await bench.dispatcher.close()


@gen_test()
async def test_room_that_comes_at_the_last_moment_is_taken():
    bench = Bench(Peer(free=False), batches=1, room=0.02)
    await bench.submit(1)
    waiting = asyncio.ensure_future(bench.submit(1))
    await asyncio.sleep(0)

    def make_room() -> None:
        bench.make_room()

    asyncio.get_running_loop().call_later(0.01, make_room)
    time.sleep(0.03)  # so that room and the end of the wait come in one turn
    await waiting
    await bench.dispatcher.close()


@gen_test()
async def test_mini_batches_that_wait_for_room_keep_their_order():
    peer = Peer(free=False)
    bench = Bench(peer, batches=2)
    await bench.submit(2)
    waiting = [asyncio.ensure_future(bench.submit(1)) for _ in range(6)]
    await asyncio.sleep(0)
    assert bench.dispatcher.backlog == 8
    lane = bench.dispatcher.lanes[0]
    # There is room for one, which two hear of: the second of them waits on.
    bench.make_room()
    bench.dispatcher._wake()
    # Nor does who comes just then go first.
    assert not bench.dispatcher.offer(bench.pending())
    await asyncio.sleep(0.01)
    assert sum(each.done() for each in waiting) == 1
    lane.batches += 1
    peer.gate.set()
    await asyncio.gather(*waiting)
    await bench.dispatcher.drained(5)
    assert [report.index for report in bench.reports] == list(range(8))


@gen_test()
async def test_a_source_that_is_cancelled_just_as_there_is_room_ends():
    peer = Peer(free=False)
    bench = Bench(peer, batches=2)
    feeding = asyncio.ensure_future(bench.submit(100))
    while not bench.dispatcher.waiting:
        await asyncio.sleep(0)
    ((_, room),) = bench.dispatcher.waiting
    room.add_done_callback(lambda _: feeding.cancel())
    peer.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await feeding


@gen_test()
async def test_a_cancelled_source_leaves_its_room_to_the_next():
    peer = Peer(free=False)
    bench = Bench(peer, batches=1)
    await bench.submit(1)
    first = asyncio.ensure_future(bench.submit(1))
    second = asyncio.ensure_future(bench.submit(1))
    while len(bench.dispatcher.waiting) < 2:
        await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    peer.gate.set()
    await second
    await bench.dispatcher.drained(5)
    assert len(bench.reports) == 2


@gen_test()
async def test_the_faster_replica_gets_more():
    fast, slow = Peer(seconds=0.001), Peer(seconds=0.004)
    bench = Bench(fast, slow, batches=100, seconds=0.02)

    async def at_speed(peer: Peer, block: Block) -> Outcome:
        await asyncio.sleep(peer.seconds * len(block))
        return await Peer.learn(peer, block)

    for lane, peer in zip(bench.dispatcher.lanes, (fast, slow), strict=True):
        lane.learn = lambda block, peer=peer: at_speed(peer, block)
    await bench.submit(400)
    await bench.dispatcher.drained(10)
    learned = [sum(map(len, peer.blocks)) for peer in (fast, slow)]
    assert learned[0] > 2 * learned[1] > 0


class Contended(Peer):
    """Waits for a CPU for nine tenths of the time that its steps take."""

    async def learn(self, block: Block) -> Outcome:
        outcome = await super().learn(block)
        outcome.work = sum(outcome.seconds) / 10
        return outcome


@gen_test()
async def test_a_replica_that_waits_for_a_cpu_gets_as_much_in_a_message_as_ever():
    # By the clock on the wall two mini-batches are worth a message; by its work 20 are.
    peer = Contended(seconds=0.005)
    bench = Bench(peer, batches=200, seconds=0.04)
    await bench.submit(200)
    await bench.dispatcher.drained(5)
    assert max(map(len, peer.blocks)) == 20


@gen_test()
async def test_a_replica_that_waits_for_a_cpu_gets_fewer_mini_batches_than_another():
    contended, free = Contended(seconds=0.005), Peer(seconds=0.0005)
    bench = Bench(contended, free, batches=1000, seconds=100.0)
    for lane in bench.dispatcher.lanes:
        lane.measured([0.005 if lane.address == "peer-0" else 0.0005], 0.0005)
    contended.gate.clear()
    free.gate.clear()
    await bench.submit(110)
    assert [lane.batches for lane in bench.dispatcher.lanes] == [10, 100]
    contended.gate.set()
    free.gate.set()
    await bench.dispatcher.drained(5)


@gen_test()
async def test_what_a_lost_replica_had_goes_to_another():
    lost, other = Peer(free=False), Peer()
    bench = Bench(lost, other)
    for lane in bench.dispatcher.lanes:
        lane.seconds_per_batch = 0.001
    await bench.submit(8)
    while not lost.blocks:
        await asyncio.sleep(0)
    lost.error = OSError("killed")
    lost.gate.set()
    await bench.dispatcher.drained(5)
    assert sorted(report.index for report in bench.reports) == list(range(8))
    assert {report.replica for report in bench.reports} == {"peer-1"}
    assert bench.dispatcher.redispatched > 0
    assert [lane.alive for lane in bench.dispatcher.lanes] == [False, True]


class Mortal(Peer):
    """Dies of the mini-batches whose first number is 666."""

    async def learn(self, block: Block) -> Outcome:
        self.blocks.append(block)
        await asyncio.sleep(0)
        if any(666 in group.leaves[0] for group in block.groups):
            raise OSError("killed")
        self.blocks.pop()
        return await super().learn(block)


async def with_poison(replicas: int, **overrides: Any) -> tuple[Bench, list[Mortal]]:
    """Give 40 mini-batches, of which number 10 kills; give what has become of it."""
    peers = [Mortal() for _ in range(replicas)]
    bench = Bench(*peers, **overrides)
    for lane in bench.dispatcher.lanes:
        lane.seconds_per_batch = 0.001
    poison = np.full_like(ROW, 666)
    for number in range(40):
        pending = bench.pending()
        if number == 10:
            pending.batch = MiniBatch.of(poison, np.zeros(1))
        await bench.dispatcher.submit(pending)
    await bench.dispatcher.drained(5)
    assert sorted(report.index for report in bench.reports) == list(range(40))
    return bench, peers


@gen_test()
@pytest.mark.parametrize(
    ("replicas", "allowed", "lost"), [(5, 2, 3), (5, 1, 2), (5, 0, 1), (3, 2, 2)]
)
async def test_a_mini_batch_that_ends_replicas_is_refused(replicas, allowed, lost):
    bench, _ = await with_poison(replicas, losses=allowed)
    assert sum(not lane.alive for lane in bench.dispatcher.lanes) == lost
    refused = {each.index for each in bench.reports if each.error is not None}
    if allowed:
        assert refused == {10}
    (error,) = (each.error for each in bench.reports if each.index == 10)
    assert type(error) is KilledReplicasError
    assert "allowed-losses" in str(error)


@gen_test()
async def test_a_suspect_is_at_a_replica_alone():
    bench, peers = await with_poison(5)
    last = [peer.blocks[-1] for peer in peers if 666 in _values(peer.blocks[-1])]
    assert sorted(map(len, last))[:2] == [1, 1]
    # Those that came with it the first time are cleared, and learned.
    assert all(each.error is None for each in bench.reports if each.index != 10)


def _values(block: Block) -> set[float]:
    return {float(value) for group in block.groups for value in group.leaves[0].flat}


@gen_test()
async def test_a_suspect_that_was_learned_after_all_is_none_any_more():
    peer, other = Peer(free=False), Peer(free=False)
    bench = Bench(peer, other)
    pending = bench.pending()
    await bench.dispatcher.submit(pending)
    while not peer.blocks:
        await asyncio.sleep(0)
    lost = []
    bench.dispatcher.events = losing(lost.append)
    bench.dispatcher.lose(bench.dispatcher.lanes[0], OSError("killed"))
    assert pending.losses == 1
    bench.dispatcher.resolve(lost[0], 1)
    assert pending.losses == 0
    other.gate.set()
    await bench.dispatcher.drained(5)


@gen_test()
async def test_a_replica_that_ends_while_it_leaves_leaves_no_suspects():
    peer, other = Peer(free=False), Peer()
    bench = Bench(peer, other)
    pending = bench.pending()
    await bench.dispatcher.submit(pending)
    while not peer.blocks:
        await asyncio.sleep(0)
    bench.dispatcher.dismiss(bench.dispatcher.lanes[0])
    bench.dispatcher.lose(bench.dispatcher.lanes[0], OSError("its time was up"))
    assert pending.losses == 0
    await bench.dispatcher.drained(5)


@gen_test()
async def test_when_all_replicas_are_lost_every_mini_batch_is_answered():
    peer = Peer(free=False)
    bench = Bench(peer, batches=2)
    feeding = asyncio.ensure_future(bench.submit(5))
    while not bench.dispatcher.waiting:
        await asyncio.sleep(0)
    peer.error = OSError("killed")
    peer.gate.set()
    with pytest.raises(NoReplicasError, match="None of the 1 replicas is alive"):
        await feeding
    await bench.dispatcher.drained(5)
    assert [type(report.error) for report in bench.reports] == [NoReplicasError] * 2


@gen_test()
async def test_a_late_answer_of_a_lost_replica_is_not_reported_twice():
    peer, other = Peer(free=False), Peer()
    bench = Bench(peer, other)
    await bench.submit(2)
    while not peer.blocks:
        await asyncio.sleep(0)
    bench.dispatcher.lose(bench.dispatcher.lanes[0], OSError("declared dead"))
    await bench.dispatcher.drained(5)
    peer.gate.set()
    await asyncio.gather(*bench.dispatcher._tasks)
    assert sorted(report.index for report in bench.reports) == [0, 1]


@gen_test()
async def test_a_receiver_that_raises_does_not_stop_the_rest():
    bench = Bench(Peer())
    pending = bench.pending()

    def deliver(report: Report) -> None:
        raise RuntimeError("a sink that fails")

    pending.receiver = Hearer(deliver)
    await bench.dispatcher.submit(pending)
    await bench.submit(1)
    await bench.dispatcher.drained(5)
    assert len(bench.reports) == 1


@gen_test()
async def test_draining_waits_for_what_receives_the_reports():
    bench = Bench(Peer())
    gate = asyncio.Event()
    pending = bench.pending()
    pending.receiver = Hearer(lambda report: gate.wait())
    await bench.dispatcher.submit(pending)
    with pytest.raises(TensairTimeoutError, match=r"1 mini-batches were not reported"):
        await bench.dispatcher.drained(0.01)
    gate.set()
    await bench.dispatcher.drained(5)


@pytest.mark.parametrize("seconds", [0, 5])
@gen_test()
async def test_where_nothing_is_under_way_there_is_nothing_to_drain(seconds):
    bench = Bench(Peer())
    await bench.dispatcher.drained(seconds)


@gen_test()
async def test_a_drain_may_give_up_before_the_trainer_is_closed():
    complaints: list[Any] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    bench = Bench(Peer(free=False))
    await bench.submit(1)
    draining = asyncio.ensure_future(bench.dispatcher.drained(5))
    await asyncio.sleep(0)
    draining.cancel()
    with pytest.raises(asyncio.CancelledError):
        await draining
    await bench.dispatcher.close()
    del draining
    gc.collect()
    assert not complaints


@gen_test()
async def test_what_is_reported_is_kept_while_a_peer_has_missed_something():
    bench = Bench(Peer(), Peer())
    await bench.submit(1)
    await bench.dispatcher.drained(5)
    teller = next(lane for lane in bench.dispatcher.lanes if lane.unconfirmed)
    listener = next(lane for lane in bench.dispatcher.lanes if lane is not teller)
    note = bench.dispatcher.note_status
    note(teller, Status(1, 1, 0.0, 1, taken=1, confirmed=1))
    note(listener, Status(0, 0, 0.0, 0, missed=True))
    bench.dispatcher.confirm(teller)
    assert teller.unconfirmed
    note(listener, Status(0, 0, 0.0, 1))
    bench.dispatcher.confirm(teller)
    assert not teller.unconfirmed


@gen_test()
async def test_while_a_leaving_replica_has_the_model_mini_batches_wait():
    leaving, lost = Peer(free=False), Peer(free=False)
    bench = Bench(leaving, lost)
    dispatcher = bench.dispatcher
    dispatcher.events = losing(lambda lane: None)  # it is up to the test to resolve
    await bench.submit(4)
    while not (leaving.blocks and lost.blocks):
        await asyncio.sleep(0)
    first, second = dispatcher.lanes
    dispatcher.dismiss(first)
    assert not dispatcher.expecting
    dispatcher.lose(second, OSError("killed"))
    dispatcher.resolve(second, 0)
    assert dispatcher.expecting
    await asyncio.sleep(0)
    assert not bench.reports
    leaving.gate.set()
    while first.alive:
        await asyncio.sleep(0)
    assert dispatcher.expecting
    heir = Peer()
    dispatcher.admit(Lane("heir", heir.learn))
    dispatcher.resolve(first, 10)
    await dispatcher.drained(5)
    assert all(report.error is None for report in bench.reports)
    assert len(bench.reports) == 4


# ---- what some peers may not have applied --------------------------------------------

NBYTES = ROW.nbytes + 8


@gen_test()
async def test_what_is_not_applied_everywhere_is_not_settled_however_much_it_is():
    peer = Peer()
    bench = Bench(peer, unconfirmed_nbytes=4 * NBYTES)
    lane = bench.dispatcher.lanes[0]
    await bench.submit(20)
    await bench.dispatcher.drained(5)
    assert bench.settled == []
    assert bench.dispatcher.unguarded == 16
    assert lane.guarded_nbytes == 4 * NBYTES
    light = list(lane.unconfirmed)[:16]
    assert all(each.batch is each.item is None for each in light)
    for peer.confirmed in (10, 18, 20):
        lane.status = peer.status()
        bench.dispatcher.confirm(lane)
        assert bench.settled == list(range(peer.confirmed))
    assert (lane.guarded_nbytes, lane.unconfirmed_records) == (0, 0)
    assert not lane.guarded


@gen_test()
async def test_of_a_lost_replica_what_cannot_be_learned_again_is_never_settled():
    hung, other = Peer(), Peer()
    other.confirmed = 1000
    bench = Bench(hung, unconfirmed_nbytes=4 * NBYTES)
    await bench.submit(20)
    await bench.dispatcher.drained(5)
    (lane,) = bench.dispatcher.lanes
    bench.dispatcher.events = losing(lambda lane: bench.dispatcher.resolve(lane, 10))
    bench.dispatcher.admit(Lane("other", other.learn))
    with captured_logger(
        "tensair_dask.coordinator.dispatcher", level=logging.WARNING
    ) as log:
        bench.dispatcher.lose(lane, OSError("killed"))
    await bench.dispatcher.drained(5)
    # The others have the first ten; of the rest the newest four can be learned again.
    assert bench.settled == [*range(10), *range(16, 20)]
    assert (bench.dispatcher.missing, bench.dispatcher.relearned) == (6, 4)
    assert "6 mini-batches are lost" in log.getvalue()
    assert len(bench.reports) == 20


@gen_test()
async def test_records_that_wait_for_a_peer_are_bounded_by_back_pressure():
    peer = Peer()
    bench = Bench(peer, unconfirmed=5)
    lane = bench.dispatcher.lanes[0]
    feeding = asyncio.ensure_future(bench.submit(20))
    while not (lane.unconfirmed_records >= 5 and bench.dispatcher.waiting):
        await asyncio.sleep(0)
    while lane.batches:
        await asyncio.sleep(0)
    assert bench.count < 20
    assert not lane.has_room(bench.limits)
    peer.confirmed = 100
    lane.status = peer.status()
    bench.dispatcher.confirm(lane)
    await feeding
    await bench.dispatcher.drained(5)
    assert bench.settled == list(range(20))


@gen_test()
async def test_the_last_message_of_a_replica_that_leaves_is_guarded_too():
    leaving, other = Peer(), Peer()
    leaving.leaving, other.confirmed = True, 1000
    bench = Bench(leaving, other)
    assert bench.dispatcher.offer(bench.pending())
    await bench.dispatcher.drained(5)
    await asyncio.gather(*bench.dispatcher._tasks)
    await bench.dispatcher.drained(5)
    assert not bench.dispatcher.lanes[0].alive
    assert bench.settled == [0]
    assert bench.dispatcher.relearned == 1
