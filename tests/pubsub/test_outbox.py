from __future__ import annotations

import operator
import sys
import threading
import time

import pytest

from tensair_dask.pubsub.outbox import Outbox
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.policies import Block, Conflate, DropOldest


def fill(box, *messages):
    for ordinal, message in enumerate(messages, 1):
        box.put(ordinal, Parcel(message))


def drain(box):
    got = []
    while (parcel := box.take()) is not None:
        got.append(parcel.open())
        box.settle()
    return got


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        (Block(10), [1, 2, 3, 4]),
        (DropOldest(2), [3, 4]),
        (DropOldest(10), [1, 2, 3, 4]),
        (Conflate(operator.add), [10]),
    ],
)
def test_what_waits_follows_the_policy(policy, expected):
    box = Outbox(policy)
    fill(box, 1, 2, 3, 4)
    assert box.pending == len(expected)
    assert drain(box) == expected
    assert box.pending == box.in_flight == 0


def test_dropped_and_conflated_messages_are_counted():
    dropping, merging = Outbox(DropOldest(1)), Outbox(Conflate(operator.add))
    fill(dropping, 1, 2, 3)
    fill(merging, 1, 2, 3)
    assert (dropping.dropped, dropping.conflated) == (2, 0)
    assert (merging.dropped, merging.conflated) == (0, 2)


def test_a_message_in_flight_is_not_merged_into():
    box = Outbox(Conflate(operator.add))
    box.put(1, Parcel(1))
    leaving = box.take()
    box.put(2, Parcel(10))
    box.put(3, Parcel(100))
    assert leaving.open() == 1
    box.settle()
    assert box.take().open() == 110


def test_a_full_blocking_outbox_counts_what_is_in_flight():
    box = Outbox(Block(2))
    fill(box, 1, 2)
    box.take()
    assert not box.has_room
    box.settle()
    assert box.has_room


def test_waiting_for_room_ends_when_something_is_settled():
    box = Outbox(Block(1))
    fill(box, 1)
    box.take()
    thread = threading.Thread(target=box.settle)
    thread.start()
    assert box.wait_for_room(time.monotonic() + 10)
    thread.join()


def test_waiting_for_room_ends_at_the_deadline():
    box = Outbox(Block(1))
    fill(box, 1)
    assert not box.wait_for_room(time.monotonic())


def test_waiting_for_room_ends_when_the_destination_is_gone():
    box = Outbox(Block(1))
    fill(box, 1)
    thread = threading.Thread(target=box.close)
    thread.start()
    assert box.wait_for_room(time.monotonic() + 10)
    thread.join()


def test_a_closed_outbox_swallows_messages():
    box = Outbox(Block(1))
    box.close()
    assert not box.put(1, Parcel(1))
    assert box.pending == 0


def test_the_consumer_is_woken_once():
    box = Outbox(Block(10))
    assert box.put(1, Parcel(1))
    assert not box.put(2, Parcel(2))
    assert drain(box) == [1, 2]
    assert box.put(3, Parcel(3))


@pytest.mark.parametrize("policy", [Block(10), Conflate(operator.add)])
def test_a_put_is_settled_only_when_what_holds_it_is(policy):
    box = Outbox(policy)
    box.put(1, Parcel(1))
    box.take()
    box.put(2, Parcel(2))
    box.put(3, Parcel(3))
    assert not box.settled(1)
    box.settle()
    assert box.settled(1)
    assert not box.settled(2)
    drain(box)
    assert box.settled(3)


def test_a_dropped_message_is_settled():
    box = Outbox(DropOldest(1))
    fill(box, 1, 2)
    assert box.settled(1)
    assert not box.settled(2)


def test_outboxes_that_hold_the_same_message_share_one_merge():
    calls = []

    def merge(waiting, new):
        calls.append((waiting, new))
        return waiting + new

    boxes = [Outbox(Conflate(merge)) for _ in range(4)]
    for ordinal, message in enumerate([1, 2, 3], 1):
        parcel, merged = Parcel(message), {}
        if message == 3:
            boxes[0].take()
            boxes[0].settle()
        for box in boxes:
            box.put(ordinal, parcel, merged)
    assert calls == [(1, 2), (3, 3)]
    assert [drain(box) for box in boxes] == [[3], [6], [6], [6]]


def test_a_merge_that_raises_keeps_what_was_waiting():
    box = Outbox(Conflate(operator.add))
    box.put(1, Parcel(1))
    with pytest.raises(TypeError):
        box.put(2, Parcel("two"))
    box.put(3, Parcel(3))
    assert drain(box) == [4]


def test_taking_does_not_wait_for_a_merge_in_another_thread():
    merging, go_on = threading.Event(), threading.Event()

    def merge(waiting, new):
        merging.set()
        go_on.wait(10)
        return waiting + new

    box = Outbox(Conflate(merge))
    box.put(1, Parcel(1))
    woken = []
    thread = threading.Thread(target=lambda: woken.append(box.put(2, Parcel(2))))
    thread.start()
    merging.wait(10)
    assert box.take() is None
    assert box.pending == 1
    assert not box.settled(1)
    go_on.set()
    thread.join()
    assert woken == [True]
    assert box.take().open() == 3


def test_conflation_from_many_threads_loses_nothing():
    box = Outbox(Conflate(operator.add))
    total = 0

    def put():
        for ordinal in range(300):
            box.put(ordinal, Parcel(1))

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        total += sum(drain(box))
    total += sum(drain(box))
    assert total == 1200


@pytest.fixture
def threads_that_take_turns_often():
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("threads_that_take_turns_often")
def test_what_is_being_merged_never_seems_to_be_gone():
    # A link that found nothing would fall asleep, and nobody would wake it again.
    box = Outbox(Conflate(operator.add))
    box.put(0, Parcel(1))
    stop = threading.Event()

    def keep_putting():
        ordinal = 0
        while not stop.is_set():
            box.put(ordinal := ordinal + 1, Parcel(1))

    putting = threading.Thread(target=keep_putting)
    putting.start()
    seen = {box.pending for _ in range(200_000)}
    stop.set()
    putting.join()
    assert seen == {1}
