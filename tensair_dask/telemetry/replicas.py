"""What the scheduler knows of one replica: its counts, and how fast they grow."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

__all__ = ["COUNTS", "ReplicaRecord"]

# Cumulative numbers of a snapshot.
COUNTS = (
    "steps",
    "samples",
    "refused",
    "predictions",
    "busy",
    "loss",
    "sent",
    "received",
    "sent_bytes",
    "received_bytes",
)

# Rates are taken over so many seconds, or over so many steps where steps are long;
# a replica that has not told anything new for longer than that has the rate 0.
WINDOW = 2.0
STEPS = 4
LONGEST = 60.0


class ReplicaRecord:
    """Counts of one replica as heartbeats brought them.

    Parameters
    ----------
    name
        Of the replica in its run.
    address
        Of its worker.
    slot
        Which of the lines that pages draw for single replicas is its own; None for
        none.

    Attributes
    ----------
    lost
        Whether its worker has left, or has dropped it.
    """

    def __init__(self, name: str, address: str, slot: int | None) -> None:
        self.name = name
        self.address = address
        self.slot = slot
        self.lost = False
        self._snapshots: deque[dict[str, Any]] = deque()

    @property
    def newest(self) -> dict[str, Any]:
        """The newest snapshot; empty if there is none."""
        return self._snapshots[-1] if self._snapshots else {}

    def observe(self, snapshot: dict[str, Any]) -> dict[str, float]:
        """Take in a snapshot; how much each count has grown since the last one."""
        before = self.newest
        if before and snapshot["at"] <= before["at"]:
            return {}
        self._snapshots.append(snapshot)
        self._forget(snapshot["at"] - self._window(snapshot))
        return {name: snapshot[name] - before.get(name, 0) for name in COUNTS}

    def _window(self, snapshot: dict[str, Any]) -> float:
        steps = snapshot["steps"]
        long = STEPS * snapshot["busy"] / steps if steps else 0.0
        return min(LONGEST, max(WINDOW, long))

    def _forget(self, moment: float) -> None:
        # The one before the window stays: it is where the window begins.
        while len(self._snapshots) > 2 and self._snapshots[1]["at"] <= moment:
            self._snapshots.popleft()

    def grown(self, name: str) -> float:
        """How much a count has grown over the window."""
        if self.lost or len(self._snapshots) < 2:
            return 0.0
        return self._snapshots[-1][name] - self._snapshots[0][name]

    def rate(self, name: str) -> float:
        """How fast a count grows, per second over the window."""
        if self.lost or len(self._snapshots) < 2:
            return 0.0
        seconds = self._snapshots[-1]["at"] - self._snapshots[0]["at"]
        return self.grown(name) / seconds

    def loss(self) -> float:
        """Mean loss of the samples of the window; NaN if there were none."""
        samples = self.grown("samples")
        return self.grown("loss") / samples if samples else math.nan

    def metric(self, name: str) -> tuple[float, float]:
        """Sum of a metric over the samples of the window, and how many these are."""
        if self.lost or len(self._snapshots) < 2:
            return 0.0, 0.0
        (now, seen), (before, had) = (
            snapshot["metrics"].get(name, (0.0, 0))
            for snapshot in (self._snapshots[-1], self._snapshots[0])
        )
        return now - before, seen - had

    @property
    def state(self) -> str:
        """Return ``"lost"``, ``"learning"`` or ``"waiting"``."""
        if self.lost:
            return "lost"
        return "learning" if self.grown("steps") else "waiting"

    def row(self) -> dict[str, Any]:
        """What tables show of it."""
        newest = self.newest
        return {
            "replica": self.name,
            "address": self.address,
            "device": newest.get("device", ""),
            "state": self.state,
            "steps": newest.get("steps", 0),
            "samples": newest.get("samples", 0),
            "samples_per_second": self.rate("samples"),
            "busy": min(1.0, self.rate("busy")),
            "loss": self.loss(),
            "staleness": newest.get("staleness_mean", 0.0),
            "age": newest.get("age_p95", 0.0),
            "version": newest.get("version", 0),
            "refused": newest.get("refused", 0),
            "predictions": newest.get("predictions", 0),
        }
