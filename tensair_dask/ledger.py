"""Ledger: what all replicas have learned, and no checkpoint holds yet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

__all__ = ["Entry", "Ledger"]

logger = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One mini-batch that is learned.

    Attributes
    ----------
    marks
        Where its records were in their sources: each has ``learned()`` and a
        ``tracker`` with a ``name``.
    release
        Lets go of the records: their sources may forget them.
    """

    marks: Iterable[Any]
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
    positions
        Of sources, as a checkpoint had them: ``{source: {partition: offset}}``.
    """

    def __init__(
        self,
        keeps: bool = False,
        positions: dict[str, dict[str, int]] | None = None,
    ) -> None:
        self._keeps = keeps
        self._restored = dict(positions or {})
        self._trackers: dict[str, Any] = {}
        self._entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self._entries)

    def emitted(self, marks: Iterable[Any]) -> None:
        """Take note of the sources of a mini-batch that has come."""
        for mark in marks:
            self._trackers[mark.tracker.name] = mark.tracker

    def settled(self, entry: Entry) -> None:
        """Take in a mini-batch that all replicas have learned, or none can."""
        if self._keeps:
            self._entries.append(entry)
        else:
            _release(entry)

    def take(self) -> list[Entry]:
        """Take out what a checkpoint holds that is taken from now on."""
        taken, self._entries = self._entries, []
        for entry in taken:
            for mark in entry.marks:
                mark.learned()
        return taken

    def positions(self) -> dict[str, dict[str, int]]:
        """From where each source has to be read again, by what was taken out."""
        found = {name: dict(offsets) for name, offsets in self._restored.items()}
        for name, tracker in self._trackers.items():
            found.setdefault(name, {}).update(tracker.learned())
        return found

    def saved(self, entries: Iterable[Entry]) -> None:
        """Let go of what a checkpoint holds that is written."""
        for entry in entries:
            _release(entry)

    def put_back(self, entries: list[Entry]) -> None:
        """Keep what was taken out: the checkpoint could not be written."""
        self._entries = entries + self._entries


def _release(entry: Entry) -> None:
    try:
        entry.release()
    except Exception:
        logger.exception("What lets go of a mini-batch raised; the stream goes on")
