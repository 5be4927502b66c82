"""Ledger: what all replicas have learned, and no checkpoint holds yet."""

from __future__ import annotations

import logging
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tensair_dask.errors import CheckpointError

__all__ = ["Entry", "Ledger", "marks_of"]

logger = logging.getLogger(__name__)

# {source name: {partition: next offset}}, as checkpoints have them.
Positions = dict[str, dict[str, int]]


class Entry(NamedTuple):
    """One mini-batch that is learned.

    Attributes
    ----------
    metadata
        Of streamz. A dict with a ``"mark"`` tells where a record was in its source: it
        has ``learned()`` and a ``tracker`` with a ``name``. Its ``"ref"``, if there is
        one, counts in ``count`` who holds the record.
    release
        Lets go of the records: their sources may forget them.
    """

    metadata: Sequence[Any]
    release: Callable[[], Any]


class Ledger:
    """Tells sources when a mini-batch is learned, and when they may forget it.

    Without checkpoints that is at the same time. With them a mini-batch may be
    forgotten only when a checkpoint holds it; until then only that it was learned is
    known, which tells the checkpoint from where to read again.

    Belongs to the client's event loop.

    Parameters
    ----------
    keeps
        Whether entries wait for a checkpoint.
    limit
        Mini-batches that may wait for one.
    """

    def __init__(self, keeps: bool = False, limit: int = 1_000_000) -> None:
        self._keeps = keeps
        self._limit = limit
        self._restored: Positions = {}
        self._trackers: dict[str, Any] = {}
        self._entries: deque[Entry] = deque()

    def __len__(self) -> int:
        return len(self._entries)

    def restored(self, positions: Mapping[str, Mapping[str, int]]) -> None:
        """Begin with the positions of a checkpoint: of sources not read yet, too."""
        self._restored = {name: dict(each) for name, each in positions.items()}

    def emitted(self, metadata: Iterable[Any]) -> None:
        """Take note of the sources of a mini-batch that has come.

        Raises
        ------
        CheckpointError
            If too many wait for a checkpoint.
        """
        if len(self._entries) >= self._limit:
            raise CheckpointError(
                f"{len(self._entries):,} mini-batches are learned and in no "
                "checkpoint, and no more may be: the last ones could not be written, "
                "or are too far apart. See that the folder can be written to; give a "
                "smaller checkpoint_every=, or raise tensair.checkpoints.unsaved."
            )
        for mark in marks_of(metadata):
            self._trackers[mark.tracker.name] = mark.tracker

    def settled(self, entry: Entry) -> None:
        """Take in a mini-batch that all replicas have learned, or none can."""
        if self._keeps:
            self._entries.append(entry)
        else:
            _release(entry)

    def take(self) -> int:
        """Count what a checkpoint holds that is taken from now on; see `saved`.

        A record is learned when nobody holds it but mini-batches that are: others that
        it is in may still be on their way, or it may not be in one yet.
        """
        entries = list(self._entries)
        held = Counter(id(ref) for _, ref in _records(entries))
        for mark, ref in _records(entries):
            if ref is None or ref.count <= held[id(ref)]:
                mark.learned()
        return len(entries)

    def positions(self) -> Positions:
        """From where each source has to be read again, by what is learned."""
        found = {name: dict(offsets) for name, offsets in self._restored.items()}
        for name, tracker in self._trackers.items():
            found.setdefault(name, {}).update(tracker.learned())
        return found

    def saved(self, count: int) -> None:
        """Let go of the oldest so many: a checkpoint that is written holds them."""
        for _ in range(count):
            _release(self._entries.popleft())


def marks_of(metadata: Iterable[Any]) -> list[Any]:
    """Where an item was in its sources, as they put it into its metadata."""
    return [m["mark"] for m in metadata if isinstance(m, dict) and "mark" in m]


def _records(entries: Iterable[Entry]) -> Iterator[tuple[Any, Any]]:
    for entry in entries:
        for each in entry.metadata:
            if isinstance(each, dict) and "mark" in each:
                yield each["mark"], each.get("ref")


def _release(entry: Entry) -> None:
    try:
        entry.release()
    except Exception:
        logger.exception("What lets go of a mini-batch raised; the stream goes on")
