from __future__ import annotations

from tensair_dask.streams.sources.kafka_records import Gathering, Record
from tensair_dask.streams.sources.positions import Tracker


def record(offset: int, partition: int = 0) -> Record:
    return Record("t", partition, offset, None, None, offset)


def test_a_parcel_has_a_mark_for_each_partition_that_covers_what_was_set_aside():
    tracker = Tracker("t")
    gathering = Gathering(tracker, size=3, linger=1.0)
    assert gathering.add("t:0", 4, record(4)) is None
    assert gathering.add("t:0", 5, None) is None
    assert gathering.add("t:1", 9, record(9, 1)) is None
    parcel = gathering.add("t:0", 7, record(7))
    assert [each.offset for each in parcel.records] == [4, 9, 7]
    assert [(m.partition, m.start, m.stop) for m in parcel.marks] == [
        ("t:0", 4, 8),
        ("t:1", 9, 10),
    ]
    assert tracker.released() == {"t:0": 4, "t:1": 9}


def test_what_is_only_set_aside_is_done_at_once():
    tracker = Tracker("t")
    gathering = Gathering(tracker, size=3, linger=1.0)
    gathering.add("t:0", 4, None)
    assert gathering.take() is None
    assert tracker.released() == {"t:0": 5}


def test_records_wait_no_longer_than_they_may():
    now = 0.0
    gathering = Gathering(Tracker("t"), size=3, linger=1.0, clock=lambda: now)
    assert gathering.patience is None
    gathering.add("t:0", 0, record(0))
    now = 0.7
    gathering.add("t:0", 1, record(1))
    assert round(gathering.patience, 6) == 0.3
    now = 2.0
    assert gathering.patience == 0.0
    assert len(gathering.take().records) == 2
    assert gathering.patience is None


def test_records_of_a_partition_that_was_taken_away_are_forgotten():
    tracker = Tracker("t")
    gathering = Gathering(tracker, size=9, linger=1.0)
    gathering.add("t:0", 0, record(0))
    gathering.add("t:1", 0, record(0, 1))
    gathering.drop(["t:0"])
    parcel = gathering.take()
    assert [each.partition for each in parcel.records] == [1]
    assert tracker.released() == {"t:1": 0}
