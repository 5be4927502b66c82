"""What waits for its label: until the label is brought, or until it would have come."""

from __future__ import annotations

import heapq
import numbers
from collections.abc import Hashable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Generic, TypeVar

import numpy as np
import pandas as pd

from tensair_dask.errors import BatchError, ConfigurationError

__all__ = ["ByKey", "Delay", "UntilDue"]

T = TypeVar("T")


@dataclass(frozen=True)
class Delay:
    """How much later than its record a label comes.

    Attributes
    ----------
    amount
        Records, or seconds.
    in_time
        Whether it is in seconds.
    """

    amount: float
    in_time: bool

    @classmethod
    def of(cls, given: Any) -> Delay:
        """Read what a user gives.

        Parameters
        ----------
        given
            A whole number of records; or a time: ``"2h"``, a timedelta of Python, numpy
            or pandas, or seconds as a float.

        Raises
        ------
        ConfigurationError
            If it is none of these, or negative.
        """
        amount, in_time = _read(given)
        if not 0 <= amount < float("inf"):
            raise ConfigurationError(f"delay={given!r} is not allowed; {_ALLOWED}")
        return cls(amount, in_time)


_ALLOWED = (
    "give 0 or more records as a whole number (delay=500), or a time as text with its "
    "unit (delay='2h'), as a timedelta, or as a float in seconds (delay=7200.0)."
)


def _read(given: Any) -> tuple[float, bool]:
    if isinstance(given, (timedelta, np.timedelta64)):
        return pd.Timedelta(given).total_seconds(), True
    if isinstance(given, numbers.Real) and not isinstance(given, bool):
        return float(given), not isinstance(given, numbers.Integral)
    # pandas takes a number without a unit as nanoseconds.
    if isinstance(given, str) and any(map(str.isalpha, given)):
        try:
            return pd.Timedelta(given).total_seconds(), True
        except ValueError:
            pass
    return float("nan"), False


class ByKey(Generic[T]):
    """Things kept until somebody asks for them by their key; the oldest make room.

    Parameters
    ----------
    most
        Records that are kept.

    Attributes
    ----------
    waiting
        Records that are kept now.
    forgotten
        Records that made room for others.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.waiting = 0
        self.forgotten = 0
        self._kept: dict[Hashable, tuple[int, T]] = {}

    def check_new(self, key: Hashable) -> None:
        """Refuse a key with which something waits.

        Raises
        ------
        BatchError
            If it does.
        """
        if key in self._kept:
            raise BatchError(
                f"A prediction with key={key!r} is waiting for its label already; give "
                "each prediction a key of its own."
            )

    def put(self, key: Hashable, records: int, thing: T) -> None:
        """Keep something that is so many records, with a key that is new."""
        self._kept[key] = (records, thing)
        self.waiting += records
        while self.waiting > self.most:
            oldest = next(iter(self._kept))
            gone, _ = self._kept.pop(oldest)
            self.waiting -= gone
            self.forgotten += gone

    def take(self, key: Hashable) -> T | None:
        """Give it out; None if there is nothing (any more)."""
        records, thing = self._kept.pop(key, (0, None))
        self.waiting -= records
        return thing

    def peek(self, key: Hashable) -> T | None:
        """Look at it without taking it."""
        return self._kept.get(key, (0, None))[1]


class UntilDue(Generic[T]):
    """Things kept until a clock has reached the moment at which each of them is due.

    Parameters
    ----------
    most
        Records that are kept; None for all.

    Attributes
    ----------
    waiting
        Records that are kept now.
    forgotten
        Records that made room for others: those that were due first.
    """

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.waiting = 0
        self.forgotten = 0
        self._number = 0
        # The number keeps the order of what is due at the same moment.
        self._heap: list[tuple[float, int, int, T]] = []

    def put(self, due: float, records: int, thing: T) -> None:
        """Keep something that is so many records."""
        heapq.heappush(self._heap, (due, self._number, records, thing))
        self._number += 1
        self.waiting += records
        while self.most is not None and self.waiting > self.most:
            _, _, gone, _ = heapq.heappop(self._heap)
            self.waiting -= gone
            self.forgotten += gone

    def take(self, now: float) -> list[T]:
        """Give out all that is due, in order; infinity for all there is."""
        due = []
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, records, thing = heapq.heappop(heap)
            self.waiting -= records
            due.append(thing)
        return due

    def take_first(self) -> tuple[float, T]:
        """Give out what is due first, and when that is."""
        due, _, records, thing = heapq.heappop(self._heap)
        self.waiting -= records
        return due, thing

    @property
    def next_due(self) -> float:
        """When something is due; infinity if nothing waits."""
        return self._heap[0][0] if self._heap else float("inf")
