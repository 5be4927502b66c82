"""What the scheduler knows of one replica: its counts, and how fast they grow."""

from __future__ import annotations

import math
import time
from collections import deque
from typing import Any

__all__ = ["COUNTS", "ReplicaRecord"]

# Cumulative numbers of a snapshot.
COUNTS = (
    "steps",
    "samples",
    "predicted",
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
# a replica that has not learned anything for longer than that has the rate 0.
WINDOW = 2.0
STEPS = 4
LONGEST = 60.0

# Snapshots of a long window are kept so many to a window, or it would cost memory.
PARTS = 16

# Who has told nothing for so many seconds, or so many heartbeats, is silent: it may be
# stopped or unreachable, and its last rates are no longer true.
SILENCE = 5.0
HEARTBEATS = 3


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
        Whether nothing more comes from it: its worker has left or has dropped it, or
        its trainer is over.
    closed
        Whether it is so because its trainer was closed.
    left
        Whether it is so because it was asked to, and has handed over.
    leaving
        Whether it has said that it is about to leave.
    silent
        Whether its heartbeats do not come, although it is not lost.
    """

    def __init__(self, name: str, address: str, slot: int | None) -> None:
        self.name = name
        self.address = address
        self.slot = slot
        self.lost = self.closed = self.left = self.silent = False
        self.leaving = False
        self._snapshots: deque[dict[str, Any]] = deque()
        self._heard = self._seen = time.monotonic()
        self._gap = 0.0  # seconds between the last two heartbeats
        self._step = 0.0  # seconds of one step

    @property
    def newest(self) -> dict[str, Any]:
        """The newest snapshot; empty if there is none."""
        return self._snapshots[-1] if self._snapshots else {}

    # ---- what comes in --------------------------------------------------------------

    def observe(
        self, snapshot: dict[str, Any], now: float | None = None
    ) -> dict[str, float]:
        """Take in a snapshot.

        Parameters
        ----------
        snapshot
            Of the worker's newest heartbeat, which may be the same as before.
        now
            On the scheduler's monotonic clock; None for just now. Snapshots have
            their worker's.

        Returns
        -------
        growth
            How much each count has grown since the last one.
        """
        self._seen = now = time.monotonic() if now is None else now
        before = self.newest
        if before and snapshot["began"] != before["began"]:
            self._snapshots.clear()  # counts from 0 again, and perhaps another clock
            before = {}
        if before:
            if snapshot["at"] <= before["at"]:
                return {}
            self._gap = snapshot["at"] - before["at"]
        self._heard, self.silent = now, False
        self._keep(snapshot)
        return {name: snapshot.get(name, 0) - before.get(name, 0) for name in COUNTS}

    def _keep(self, snapshot: dict[str, Any]) -> None:
        kept = self._snapshots
        window = min(LONGEST, max(WINDOW, STEPS * self._step))
        if len(kept) > 2 and kept[-1]["at"] - kept[-2]["at"] < window / PARTS:
            kept.pop()
        kept.append(snapshot)
        # The one before the window stays: it is where the window begins.
        while len(kept) > 2 and kept[1]["at"] <= snapshot["at"] - window:
            kept.popleft()
        if steps := self.grown("steps"):
            self._step = self.grown("busy") / steps

    def listen(self, now: float) -> bool:
        """Take note of how long nothing has come; False if its worker has dropped it.

        The heartbeats of a worker that is stopped go on to be seen, as they were.
        """
        limit = max(SILENCE, min(LONGEST, HEARTBEATS * self._gap))
        self.silent = now - self._heard > limit
        return now - self._seen <= limit

    def lose(self, closed: bool = False, left: bool = False) -> None:
        """Take note that nothing more comes."""
        self.lost, self.closed, self.left = True, closed, left
        while len(self._snapshots) > 1:
            self._snapshots.popleft()

    # ---- what is made of it ---------------------------------------------------------

    @property
    def _reports(self) -> bool:
        return bool(self._snapshots) and not (self.lost or self.silent)

    def grown(self, name: str) -> float:
        """How much a count has grown over the window."""
        if not self._reports:
            return 0.0
        first, last = self._snapshots[0], self._snapshots[-1]
        return last.get(name, 0) - first.get(name, 0)

    def rate(self, name: str) -> float:
        """How fast a count grows, per second over the window."""
        grown = self.grown(name)
        if not grown:
            return 0.0
        seconds = self._snapshots[-1]["at"] - self._snapshots[0]["at"]
        # A step that is longer than the window began before it.
        return grown / max(seconds, self.grown("busy"))

    def losses(self) -> tuple[float, float]:
        """Sum of the loss over the samples of the window, and how many these are."""
        return self.grown("loss") + self.grown("loss_rest"), self.grown("samples")

    def loss(self) -> float:
        """Mean loss of the samples of the window; NaN if there were none."""
        total, samples = self.losses()
        return total / samples if samples else math.nan

    def metric(self, name: str) -> tuple[float, float]:
        """Sum of a metric over the samples of the window, and how many these are."""
        if not self._reports:
            return 0.0, 0.0
        first, last = (
            snapshot["metrics"].get(name, (0.0, 0.0, 0))
            for snapshot in (self._snapshots[0], self._snapshots[-1])
        )
        return (last[0] - first[0]) + (last[1] - first[1]), last[2] - first[2]

    @property
    def state(self) -> str:
        """What it does: ``"learning"``, ``"predicting"`` or ``"waiting"``; or its end.

        That is ``"closed"``, ``"left"``, ``"lost"`` or ``"silent"``.
        """
        if self.lost:
            return "closed" if self.closed else "left" if self.left else "lost"
        if self.silent:
            return "silent"
        steps = self.grown("steps")
        if not steps:
            return "waiting"
        return "predicting" if self.grown("predicted") == steps else "learning"

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
            "busy": self.rate("busy"),
            "loss": self.loss(),
            "staleness": newest.get("staleness_mean", 0.0),
            "age": newest.get("age_p95", 0.0),
            "version": newest.get("version", 0),
            "refused": newest.get("refused", 0),
            "predictions": newest.get("predictions", 0),
        }
