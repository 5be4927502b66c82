"""Records of a topic, and how they are gathered into what is emitted at once."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from tensair_dask.streams.sources.positions import Mark, Tracker

__all__ = ["Gathering", "Parcel", "Record", "partition_key"]


class Record(NamedTuple):
    """One record of a topic.

    Attributes
    ----------
    topic, partition, offset
        Where it is.
    timestamp
        Seconds since the epoch; None if it has none.
    key
        Bytes as they were sent, or None.
    value
        What ``parse`` made of its bytes; None where it has no bytes (which is how a
        compacted topic tells that a key was deleted).
    """

    topic: str
    partition: int
    offset: int
    timestamp: float | None
    key: bytes | None
    value: Any


class Parcel(NamedTuple):
    """What is emitted at once: records, and a mark for each of their partitions."""

    records: list[Record]
    marks: list[Mark]


@functools.lru_cache(maxsize=10_000)  # asked for with each record
def partition_key(topic: str, partition: int) -> str:
    """Name a partition as checkpoints do: ``"flights:0"``."""
    return f"{topic}:{partition}"


class Gathering:
    """Records that wait until there are enough of them for a parcel.

    Parameters
    ----------
    tracker
        Gets a mark for each partition of each parcel.
    size
        Records in a parcel.
    linger
        Seconds that a record waits at most.
    clock
        Tells the time.
    """

    def __init__(
        self,
        tracker: Tracker,
        size: int,
        linger: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._tracker = tracker
        self._size = size
        self._linger = linger
        self._clock = clock
        self._records: list[Record] = []
        # First offset, and the one behind the last, of each partition; those of records
        # that were set aside are included: they are done with those around them.
        self._ranges: dict[str, tuple[int, int]] = {}
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._records)

    def add(self, key: str, offset: int, record: Record | None) -> Parcel | None:
        """Take a record, or None for one that is set aside; the parcel, if it is full.

        Parameters
        ----------
        key
            Of its partition.
        offset
            Of the record.
        record
            To be emitted.
        """
        if not self._ranges:
            self._since = self._clock()
        known = self._ranges.get(key)
        self._ranges[key] = (offset if known is None else known[0], offset + 1)
        if record is not None:
            self._records.append(record)
        return self.take() if len(self._records) >= self._size else None

    @property
    def patience(self) -> float | None:
        """Seconds until what was gathered must go; None if there is nothing."""
        if not self._ranges:
            return None
        return max(0.0, self._since + self._linger - self._clock())

    def take(self) -> Parcel | None:
        """Make a parcel of what there is; what is only set aside is done at once."""
        records, self._records = self._records, []
        ranges, self._ranges = self._ranges, {}
        marks = [
            self._tracker.emitted(key, start, stop)
            for key, (start, stop) in ranges.items()
        ]
        if records:
            return Parcel(records, marks)
        for mark in marks:
            mark.released()
        return None

    def drop(self, keys: Iterable[str]) -> None:
        """Forget the records of partitions that somebody else reads now."""
        gone = set(keys)
        for key in gone:
            self._ranges.pop(key, None)
        self._records = [
            each
            for each in self._records
            if partition_key(each.topic, each.partition) not in gone
        ]
