"""Events of a training: what people want to see as a mark across the curves."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tensair_dask._wording import bounded

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["KINDS", "LEAVING", "TOPIC", "Event", "Events"]

# Of Dask's event log: `client.get_events(TOPIC)`, `client.subscribe_topic(TOPIC, f)`.
TOPIC = "tensair"

# How a replica itself says, in that log, that it is about to leave.
LEAVING = "leaving"

# What there is, and what pages call it.
KINDS = {
    "drift": "drift",
    "policy": "answer to drift",
    "mode": "change of mode",
    "joined": "replica joined",
    "left": "replica left",
    "lost": "replica lost",
    "note": "note",
}


@dataclass(frozen=True)
class Event:
    """Something that happened at a moment.

    Attributes
    ----------
    kind
        One of `KINDS`.
    text
        For people.
    time
        Seconds since the epoch.
    index
        The mini-batch at which it happened, in the order of submission; -1 where that
        is not known.
    replica
        Name of the replica that it is about, if it is about one.
    """

    kind: str
    text: str
    time: float = field(default_factory=time.time)
    index: int = -1
    replica: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", bounded(self.text))

    def plain(self) -> dict[str, Any]:
        """As JSON and msgpack have it."""
        return dataclasses.asdict(self)


class Events:
    """The newest events, in order.

    Parameters
    ----------
    maxlen
        How many are kept.

    Attributes
    ----------
    added
        How many there have been.
    counts
        How many of each kind.
    """

    def __init__(self, maxlen: int = 1000) -> None:
        self._newest: deque[Event] = deque(maxlen=maxlen)
        self.added = 0
        self.counts: Counter[str] = Counter()

    def append(self, event: Event) -> None:
        """Keep an event; the oldest one goes where there is no room."""
        self._newest.append(event)
        self.added += 1
        self.counts[event.kind] += 1

    def __iter__(self) -> Iterator[Event]:
        return iter(list(self._newest))

    def __len__(self) -> int:
        return len(self._newest)

    def frame(self) -> pd.DataFrame:
        """One row an event; ``time`` is in UTC."""
        import pandas as pd

        frame = pd.DataFrame(
            [event.plain() for event in self],
            columns=["time", "kind", "text", "index", "replica"],
        )
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
        return frame
