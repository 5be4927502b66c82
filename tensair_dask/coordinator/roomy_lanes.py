"""Which replica has room, and the least to do: a heap, however many there are."""

from __future__ import annotations

import heapq
import itertools

from tensair_dask.coordinator.lane import Lane, Limits

__all__ = ["RoomyLanes"]

# Entries for each lane, most of them outdated, at which the heap is made anew.
CROWDED = 4


class RoomyLanes:
    """The open lanes with room, by their load.

    To choose a lane takes a time that grows with the logarithm of their number. An
    entry may be outdated: that is seen where it comes to the top. So a load that grows
    costs nothing, and for one that falls `put` adds an entry.

    Parameters
    ----------
    limits
        Bounds on what lies at one replica. They may be set anew; a lane that gets room
        by that is found when it is `put` again, with its next answer.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        # Load, a number that makes the order of entries unique, and gives lanes of
        # equal load their turns; and the lane.
        self._heap: list[tuple[float, int, Lane]] = []
        self._numbers = itertools.count()
        # The number of the entry that holds, by lane.
        self._current: dict[Lane, int] = {}

    def __len__(self) -> int:
        return len(self._heap)

    def put(self, lane: Lane) -> None:
        """Take note that a lane has room, perhaps, or that its load has fallen."""
        if not self._has_room(lane):
            return
        number = self._current[lane] = next(self._numbers)
        heapq.heappush(self._heap, (lane.load, number, lane))
        if len(self._heap) > CROWDED * (len(self._current) + 1):
            self._heap = [each for each in self._heap if self._holds(each)]
            heapq.heapify(self._heap)

    def drop(self, lane: Lane) -> None:
        """Choose a lane no more."""
        self._current.pop(lane, None)

    def best(self) -> Lane | None:
        """The least loaded lane that has room; None if there is none."""
        heap = self._heap
        while heap:
            entry = load, _, lane = heap[0]
            if not self._holds(entry):
                heapq.heappop(heap)
            elif not self._has_room(lane):
                heapq.heappop(heap)
                del self._current[lane]
            elif lane.load > load:
                number = self._current[lane] = next(self._numbers)
                heapq.heapreplace(heap, (lane.load, number, lane))
            else:
                return lane
        return None

    def _holds(self, entry: tuple[float, int, Lane]) -> bool:
        return self._current.get(entry[2]) == entry[1]

    def _has_room(self, lane: Lane) -> bool:
        return lane.open and lane.has_room(self.limits)
