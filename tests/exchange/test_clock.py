from __future__ import annotations

import pytest

from tensair_dask.exchange.clock import VectorClock


def test_an_origin_that_was_never_heard_of_stands_at_zero():
    assert VectorClock()["a"] == 0


def test_the_version_counts_gradients_of_all_origins():
    clock = VectorClock()
    clock.advance("a", 3)
    clock.advance("b", 4)
    assert clock.version == 7


def test_staleness_counts_what_the_receiver_had_and_the_sender_had_not():
    receiver = VectorClock({"a": 5, "b": 2, "c": 1})
    assert receiver.ahead_of({"a": 3, "b": 9}) == 2 + 0 + 1


def test_a_clock_cannot_go_back():
    clock = VectorClock({"a": 5})
    with pytest.raises(ValueError, match="cannot go back to 4"):
        clock.advance("a", 4)


def test_a_snapshot_does_not_follow_the_clock():
    clock = VectorClock({"a": 1})
    snapshot = clock.snapshot()
    clock.advance("a", 2)
    assert snapshot == {"a": 1}
