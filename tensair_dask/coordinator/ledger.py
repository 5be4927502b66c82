"""Ledger: what all replicas have learned, and no checkpoint holds yet."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tensair_dask.errors import CheckpointError, ConfigurationError, RaisedError

__all__ = ["Entry", "Ledger", "marks_of"]

logger = logging.getLogger(__name__)

# {source name: {partition: next offset}}, as checkpoints have them.
Positions = dict[str, dict[str, int]]

# Seconds for which what a checkpoint holds is let go of, before others on the event
# loop get their turn.
TURN = 0.005


class Entry(NamedTuple):
    """One mini-batch that is learned.

    Attributes
    ----------
    metadata
        Of streamz. A dict with a ``"mark"`` tells where a record was in its source: it
        has ``learned()`` and a ``tracker`` (see
        `tensair_dask.streams.sources.positions`). Its ``"ref"``, if there is one,
        counts in ``count`` who holds the record.
    release
        Lets go of the records: their sources may forget them.
    """

    metadata: Sequence[Any]
    release: Callable[[], Any]

    @property
    def records(self) -> int:
        """How many its sources gave; neighbours that were given at once are one."""
        count, before = 0, None
        for each in self.metadata:
            count += each is not before
            before = each
        return max(1, count)


class _Doubtful(NamedTuple):
    """A record that is learned, and that somebody else held by then."""

    entry: int
    mark: Any
    ref: Any


class Ledger:
    """Informs sources when a mini-batch is learned, and when they may forget it.

    Without checkpoints that is at the same time. With them a mini-batch may be
    forgotten only when a checkpoint holds it; until then only that it was learned is
    known, which tells the checkpoint from where to read again.

    Belongs to the client's event loop.

    Parameters
    ----------
    keeps
        Whether entries wait for a checkpoint.
    limit
        Records that may wait for one.
    """

    def __init__(self, keeps: bool = False, limit: int = 1_000_000) -> None:
        self._keeps = keeps
        self._limit = limit
        # Of sources that are not read: not yet, or not any more.
        self._reached: Positions = {}
        self._trackers: dict[str, Any] = {}
        self._entries: deque[Entry] = deque()
        self._first = 0  # number of the oldest of these
        self._records = 0
        self._doubtful: deque[_Doubtful] = deque()
        # What a checkpoint holds, and is being let go of.
        self._saved: deque[Entry] = deque()
        self._releasing: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    # ---- sources ---------------------------------------------------------------------

    def restored(self, positions: Mapping[str, Mapping[str, int]]) -> None:
        """Begin with the positions of a checkpoint: of sources not read yet, too."""
        self._reached = {name: dict(each) for name, each in positions.items()}

    def reads(self, tracker: Any) -> None:
        """Take note of a source.

        Raises
        ------
        ConfigurationError
            If another one of its name is open: a checkpoint keeps one position by a
            name, so that of the other would be lost.
        """
        known = self._trackers.get(tracker.name)
        if known is tracker:
            return
        if known is not None:
            if not known.closed:
                raise ConfigurationError(
                    f"Two sources named {tracker.name!r} are open, and a checkpoint "
                    "keeps positions by name. Give each a name of its own, for example "
                    f"name='{tracker.name}-2', or close the first one before."
                )
            self._reached[tracker.name] = self._position(known)
        self._trackers[tracker.name] = tracker

    def positions(self) -> Positions:
        """From where each source has to be read again, by what is learned."""
        self._look_again()
        found = {name: dict(offsets) for name, offsets in self._reached.items()}
        for name, tracker in self._trackers.items():
            found[name] = self._position(tracker)
        return found

    def _position(self, tracker: Any) -> dict[str, int]:
        # In this order: a partition that begins meanwhile keeps what was reached. What
        # was taken away from the source is read on by somebody else.
        begun = tracker.begun()
        reached = self._reached.get(tracker.name, {})
        kept = {each: offset for each, offset in reached.items() if each not in begun}
        return {**kept, **tracker.learned()}

    # ---- mini-batches ----------------------------------------------------------------

    def emitted(self, metadata: Iterable[Any]) -> None:
        """Take note of the sources of a mini-batch that has come.

        Raises
        ------
        CheckpointError
            If too many records wait for a checkpoint.
        ConfigurationError
            If two sources of one name are open.
        """
        if self._records >= self._limit:
            raise CheckpointError(
                f"{self._records:,} records are learned and in no checkpoint, and no "
                "more may be: the last ones could not be written, or are too far "
                "apart. See that the folder can be written to; give a smaller "
                "checkpoint_every=, or raise tensair.checkpoints.unsaved."
            )
        for mark in marks_of(metadata) if metadata else ():
            self.reads(mark.tracker)

    def settled(self, entry: Entry) -> None:
        """Take in a mini-batch that all replicas have learned, or none can.

        A record is learned when nobody holds it but mini-batches that are: others that
        it is in may still be on their way, or it may not be in one yet.
        """
        if not self._keeps:
            _release(entry)
            return
        number = self._first + len(self._entries)
        self._entries.append(entry)
        self._records += entry.records
        for mark, ref in _records(entry):
            if ref is None or ref.count <= 1:
                mark.learned()
            else:
                self._doubtful.append(_Doubtful(number, mark, ref))

    def _look_again(self) -> None:
        """See whether those who held a record elsewhere have let go of it."""
        held = Counter(id(each.ref) for each in self._doubtful)
        still: deque[_Doubtful] = deque()
        for each in self._doubtful:
            if each.ref.count <= held[id(each.ref)]:
                each.mark.learned()
            else:
                still.append(each)
        self._doubtful = still

    # ---- checkpoints -----------------------------------------------------------------

    def take(self) -> int:
        """Count what a checkpoint holds that is taken from now on; see `saved`."""
        return len(self._entries)

    def saved(self, count: int) -> None:
        """Let go of the oldest so many: a checkpoint that is written holds them.

        Where they are many, it takes some turns of the event loop; see `released`.
        """
        for _ in range(count):
            self._saved.append(self._entries.popleft())
        self._first += count
        while self._doubtful and self._doubtful[0].entry < self._first:
            self._doubtful.popleft()
        if self._releasing is None:
            self._release_some()

    async def released(self) -> None:
        """Wait until all that is to be let go of is."""
        if self._releasing is not None:
            await asyncio.shield(self._releasing)

    def _release_some(self) -> None:
        until = time.perf_counter() + TURN
        while self._saved and time.perf_counter() < until:
            entry = self._saved.popleft()
            self._records -= entry.records
            _release(entry)
        if self._saved:
            loop = asyncio.get_running_loop()
            self._releasing = self._releasing or loop.create_future()
            loop.call_soon(self._release_some)
        elif self._releasing is not None:
            self._releasing.set_result(None)
            self._releasing = None


def marks_of(metadata: Iterable[Any]) -> list[Any]:
    """Where an item was in its sources, as they put it into its metadata."""
    return [m["mark"] for m in metadata if isinstance(m, dict) and "mark" in m]


def _records(entry: Entry) -> Iterator[tuple[Any, Any]]:
    for each in entry.metadata:
        if isinstance(each, dict) and "mark" in each:
            yield each["mark"], each.get("ref")


def _release(entry: Entry) -> None:
    try:
        entry.release()
    except Exception as error:
        logger.error(
            "What lets go of a mini-batch raised; the stream goes on",
            exc_info=RaisedError.unless_fit(error),
        )
