"""What of a source has been learned, and from where to read again."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

from tensair_dask.errors import ConfigurationError

__all__ = ["Mark", "Positions", "Tracker", "check_positions", "named"]

# {source name: {partition: next offset}}, as a checkpoint keeps it.
Positions = dict[str, dict[str, int]]


class _Frontier:
    """The lowest offset such that everything below it is done.

    Costs O(1) for each range, and memory only for the ranges that are not done.

    Parameters
    ----------
    offset
        Where the first range may begin.
    """

    __slots__ = ("_open", "_stop")

    def __init__(self, offset: int) -> None:
        # Begins of the ranges that are not done, by their number. An ordered dict, not
        # a dict: its first item is found at once, however many went before.
        self._open: OrderedDict[int, int] = OrderedDict()
        self._stop = offset

    def add(self, number: int, start: int, stop: int) -> None:
        self._open[number] = start
        self._stop = stop

    def done(self, number: int) -> bool:
        """Take a range as done; whether that moved the frontier."""
        if number not in self._open:
            return False
        before = self.offset
        del self._open[number]
        return self.offset != before

    @property
    def offset(self) -> int:
        for start in self._open.values():
            return start
        return self._stop

    def __len__(self) -> int:
        return len(self._open)


class _Assignment:
    """One partition, from when it was assigned until it is dropped."""

    __slots__ = ("learned", "numbers", "partition", "released", "stop")

    def __init__(self, partition: str, offset: int) -> None:
        self.partition = partition
        self.stop = offset
        self.numbers = 0
        self.learned = _Frontier(offset)
        self.released = _Frontier(offset)


class Mark:
    """Offsets ``[start, stop)`` of a partition, which left the source in one item.

    Made by `Tracker.emitted`. Both phases may come more than once, in either order and
    on any thread; `released` implies `learned`.

    Attributes
    ----------
    tracker
        Where it belongs; its name is the source's.
    start, stop
        What was emitted.
    """

    __slots__ = ("_assignment", "_number", "start", "stop", "tracker")

    def __init__(
        self,
        tracker: Tracker,
        assignment: _Assignment,
        number: int,
        start: int,
        stop: int,
    ) -> None:
        self.tracker = tracker
        self._assignment = assignment
        self._number = number
        self.start = start
        self.stop = stop

    @property
    def partition(self) -> str:
        """Name of the partition that it is a part of."""
        return self._assignment.partition

    @property
    def dropped(self) -> bool:
        """Whether its partition belongs to somebody else by now."""
        return not self.tracker._holds(self._assignment)

    def learned(self) -> None:
        """Its gradient is in the state that the next checkpoint holds."""
        self.tracker._learned(self._assignment, self._number)

    def released(self) -> None:
        """It is safe to forget: it never has to be read again."""
        self.tracker._released(self._assignment, self._number)

    def __repr__(self) -> str:
        where = f"{self.tracker.name} {self.partition}".strip()
        return f"<Mark {where} [{self.start}, {self.stop})>"


class Tracker:
    """Two watermarks for each partition of a source.

    Every range of offsets that leaves the source gets a `Mark`, which becomes *learned*
    and then *released*, in any order relative to the others. The watermarks are the
    lowest offsets such that everything emitted below is learned, or released: where to
    read again if only the checkpoint is left, and what may be committed.

    Parameters
    ----------
    name
        Of the source, in checkpoints; keep it the same from run to run.

    Attributes
    ----------
    closed
        Whether another source may take the name.

    Notes
    -----
    Memory grows with the ranges that are not released, which back-pressure bounds, and
    not with how far they lie apart. Safe to use from several threads.

    Offsets that were never emitted (a topic that was compacted has gaps) hold nothing
    back.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.closed = False
        self._lock = threading.Lock()
        self._assignments: dict[str, _Assignment] = {}
        self._begun: set[str] = set()
        self._listeners: list[Callable[[str, int], object]] = []
        self._notes: list[str] = []
        self._hearers: weakref.WeakSet[Any] = weakref.WeakSet()

    def begin(self, partition: str, offset: int) -> None:
        """Start a partition at an offset, anew if it is known: older marks are void."""
        _check_offset(partition, offset)
        with self._lock:
            self._assignments[partition] = _Assignment(partition, offset)
            self._begun.add(partition)

    def emitted(self, partition: str, start: int, stop: int) -> Mark:
        """Register that offsets ``[start, stop)`` leave the source.

        A partition that is not known begins at ``start``.

        Raises
        ------
        ConfigurationError
            If the range is empty, or begins below what was emitted before.
        """
        with self._lock:
            assignment = self._assignments.get(partition)
            if assignment is None:
                _check_offset(partition, start)
                assignment = _Assignment(partition, start)
                self._assignments[partition] = assignment
                self._begun.add(partition)
            if not assignment.stop <= start < stop:
                raise ConfigurationError(
                    f"{self.name} emits offsets [{start}, {stop}) of partition "
                    f"{partition!r} after those below {assignment.stop}; ranges must "
                    "not be empty and must ascend. Call begin() to read again."
                )
            assignment.stop = stop
            number = assignment.numbers
            assignment.numbers += 1
            assignment.learned.add(number, start, stop)
            assignment.released.add(number, start, stop)
        return Mark(self, assignment, number, start, stop)

    def drop(self, partition: str) -> None:
        """Forget a partition, which somebody else reads now; its marks are void."""
        with self._lock:
            self._assignments.pop(partition, None)

    def begun(self) -> set[str]:
        """Name all partitions that there have ever been, also dropped ones."""
        with self._lock:
            return set(self._begun)

    def learned(self) -> dict[str, int]:
        """Next offset to read again for each partition, for a checkpoint."""
        with self._lock:
            return {key: one.learned.offset for key, one in self._assignments.items()}

    def released(self) -> dict[str, int]:
        """Next offset to read again for each partition, to be committed."""
        with self._lock:
            return {key: one.released.offset for key, one in self._assignments.items()}

    def outstanding(self) -> int:
        """How many marks are not released."""
        with self._lock:
            return sum(len(one.released) for one in self._assignments.values())

    def listen(self, callback: Callable[[str, int], object]) -> Callable[[], None]:
        """Call ``callback(partition, offset)`` when a released watermark moves.

        It is called on the thread that released, and must not raise.

        Returns
        -------
        unlisten
            Call it to end that.
        """
        with self._lock:
            self._listeners = [*self._listeners, callback]

        def unlisten() -> None:
            with self._lock:
                self._listeners = [one for one in self._listeners if one != callback]

        return unlisten

    def note(self, text: str, again: bool = False) -> bool:
        """Keep something to be said of the source; whether that is new.

        Parameters
        ----------
        text
            Is told once.
        again
            Whether it is said each time: it has happened anew.
        """
        with self._lock:
            is_new = text not in self._notes
            if is_new:
                self._notes.append(text)
            hearers = list(self._hearers) if is_new or again else []
        for hearer in hearers:
            hearer.note_soon(text)
        return is_new

    def add_hearer(self, hearer: Any) -> None:
        """Call ``hearer.note_soon(text)`` for each note there is, and that will be."""
        with self._lock:
            notes = [] if hearer in self._hearers else list(self._notes)
            self._hearers.add(hearer)
        for text in notes:
            hearer.note_soon(text)

    # ---- for marks ------------------------------------------------------------------

    def _holds(self, assignment: _Assignment) -> bool:
        return self._assignments.get(assignment.partition) is assignment

    def _learned(self, assignment: _Assignment, number: int) -> None:
        with self._lock:
            assignment.learned.done(number)

    def _released(self, assignment: _Assignment, number: int) -> None:
        with self._lock:
            assignment.learned.done(number)
            moved = assignment.released.done(number) and self._holds(assignment)
            offset = assignment.released.offset
            listeners = self._listeners
        if moved:
            for listener in listeners:
                listener(assignment.partition, offset)

    def __repr__(self) -> str:
        return f"<Tracker {self.name}: {self.outstanding()} outstanding>"


def check_positions(positions: Positions | None, name: str) -> dict[str, int]:
    """Take the positions of one source out of those that a checkpoint keeps.

    Raises
    ------
    ConfigurationError
        If they do not have the form ``{source name: {partition: offset}}``.
    """
    if positions is None:
        return {}
    if not isinstance(positions, dict) or not all(
        isinstance(each, dict) for each in positions.values()
    ):
        raise ConfigurationError(
            f"positions={positions!r} was given; {{source name: {{partition: offset}}}}"
            f" is needed, for example {{{name!r}: {{'0': 500}}}}."
        )
    own = positions.get(name, {})
    for partition, offset in own.items():
        _check_offset(partition, offset)
    return dict(own)


def named(keys: Iterable[str]) -> str:
    """List names for a message; of many, the first ones."""
    known = list(keys)
    return ", ".join(map(repr, known[:5])) + (", ..." if len(known) > 5 else "")


def _check_offset(partition: str, offset: int) -> None:
    if not isinstance(partition, str) or not isinstance(offset, int) or offset < 0:
        raise ConfigurationError(
            f"Partition {partition!r} at offset {offset!r} was given; a partition is a "
            "text, and an offset a whole number from 0 on."
        )
