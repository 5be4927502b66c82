from __future__ import annotations

from messages import message

from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.inbox import Inbox


def put(inbox: Inbox, *messages) -> list[int]:
    applied: list[int] = []
    for number, one in enumerate(messages):
        inbox.put(one, lambda number=number: applied.append(number))
    return applied


def test_messages_that_follow_each_other_are_fresh():
    inbox = Inbox()
    put(inbox, message(1, 3, 1.0), message(4, 4, 1.0))
    fresh, repeated = inbox.take(VectorClock())
    assert [arrival.message.first for arrival in fresh] == [1, 4]
    assert repeated == []
    assert not inbox


def test_a_range_that_was_applied_is_acknowledged_and_not_applied_again():
    inbox = Inbox()
    put(inbox, message(1, 3, 1.0))
    fresh, repeated = inbox.take(VectorClock({"a": 3}))
    assert fresh == []
    assert len(repeated) == 1
    assert inbox.refused == 0


def test_a_range_that_leaves_a_gap_is_refused_and_counted():
    inbox = Inbox()
    put(inbox, message(3, 4, 1.0))
    fresh, repeated = inbox.take(VectorClock({"a": 1}))
    assert fresh == repeated == []
    assert inbox.refused == 1
    assert inbox.missed == {"a"}
    # It is acknowledged by whoever tells of the gap, and what comes then is at once.
    assert len(inbox.announced()) == 1
    put(inbox, message(5, 6, 1.0))
    fresh, repeated = inbox.take(VectorClock({"a": 1}))
    assert (len(fresh), len(repeated)) == (0, 1)
    assert inbox.announced() == []
    # The next gap is another one, of which nobody was told.
    inbox.caught_up()
    put(inbox, message(9, 9, 1.0))
    assert inbox.take(VectorClock({"a": 6})) == ([], [])
    assert len(inbox.announced()) == 1


def test_nothing_was_missed_of_a_sealed_origin():
    inbox = Inbox()
    put(inbox, message(3, 4, 1.0))
    inbox.take(VectorClock({"a": 1}), {"a"})
    assert inbox.refused == 1
    assert not inbox.missed


def test_origins_are_distinguished():
    inbox = Inbox()
    put(inbox, message(1, 1, 1.0), message(1, 2, 1.0, origin="b"))
    fresh, _ = inbox.take(VectorClock())
    assert [arrival.message.origin for arrival in fresh] == ["a", "b"]


def test_what_could_not_be_applied_comes_before_what_came_meanwhile():
    inbox = Inbox()
    put(inbox, message(1, 1, 1.0), message(2, 3, 1.0))
    fresh, _ = inbox.take(VectorClock())
    put(inbox, message(4, 4, 1.0))
    inbox.put_back(fresh)
    fresh, repeated = inbox.take(VectorClock())
    assert [arrival.message.first for arrival in fresh] == [1, 2, 4]
    assert repeated == []


def test_what_is_dropped_is_forgotten_and_not_acknowledged():
    inbox = Inbox()
    applied = put(inbox, message(1, 3, 1.0), message(9, 9, 1.0))
    inbox.drop()
    assert not inbox
    assert inbox.take(VectorClock()) == ([], [])
    assert inbox.announced() == []
    assert applied == []
