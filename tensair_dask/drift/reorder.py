"""Order: reports of many replicas, as one stream in the order of submission."""

from __future__ import annotations

from typing import Generic, TypeVar

__all__ = ["InOrder"]

Item = TypeVar("Item")


class InOrder(Generic[Item]):
    """Holds back what comes too early, until all before it has come.

    Parameters
    ----------
    most
        How many may be held back. Beyond, the gap that they wait for is given up, so
        that one replica that stands still does not blind the detector.
    start
        The first place; what is before it is late.

    Attributes
    ----------
    late
        How many came after their gap had been given up; they are passed on at once.
    """

    def __init__(self, most: int, start: int = 0) -> None:
        self._most = most
        self._next = start
        self._early: dict[int, Item | None] = {}
        self.late = 0

    def put(self, index: int, item: Item | None) -> list[Item]:
        """Take in what has come; give what can be passed on, in order.

        Parameters
        ----------
        index
            Its place in the stream, from 0; each comes once.
        item
            None where there is nothing to pass on.
        """
        if index == self._next and not self._early:  # as with a single replica
            self._next += 1
            return [] if item is None else [item]
        if index < self._next:
            self.late += 1
            return [] if item is None else [item]
        self._early[index] = item
        if len(self._early) > self._most:
            self._next = min(self._early)
        return self._ready()

    def _ready(self) -> list[Item]:
        ready = []
        while self._next in self._early:
            item = self._early.pop(self._next)
            self._next += 1
            if item is not None:
                ready.append(item)
        return ready
