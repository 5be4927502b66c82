"""What the scheduler knows of one trainer: replicas, totals, series, events."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Iterable, Sequence
from typing import Any

from tensair_dask.observe.telemetry.archive import Archive, latest, least, mean, most
from tensair_dask.observe.telemetry.events import Event, Events
from tensair_dask.observe.telemetry.replicas import COUNTS, ReplicaRecord

__all__ = ["COLUMNS", "METRICS", "SLOTS", "TrainerRecord"]

# Of so many replicas, and of so many metrics, series are kept one by one: pages draw
# a line for each. Of all others there are the cluster's, and the extremes.
SLOTS = 8
METRICS = 4

# Replicas kept that were lost.
_LOST = 100

# Seconds after which a trainer without replicas, whose client tells nothing, is over.
_FORGOTTEN = 60.0

# Columns of the series, and how several rows become one.
COLUMNS = {
    "time": latest,
    "samples": mean,
    "steps": mean,
    "predictions": mean,
    "sent": mean,
    "received": mean,
    "speed": mean,
    "speed_least": least,
    "speed_most": most,
    "loss": mean,
    "loss_least": least,
    "loss_most": most,
    "staleness": mean,
    "staleness_p95": most,
    "staleness_most": most,
    "age": most,
    "backlog": most,
    "lag": most,
    "dead_letters": latest,
    "dropped": latest,
    "replicas": latest,
    "workers": latest,
    "target": latest,
    **{f"metric_{number}": mean for number in range(METRICS)},
    **{f"speed_{number}": mean for number in range(SLOTS)},
    **{f"loss_{number}": mean for number in range(SLOTS)},
    **{f"staleness_{number}": mean for number in range(SLOTS)},
}


class TrainerRecord:
    """One trainer, as heartbeats and its client tell of it.

    Parameters
    ----------
    run_id
        Run of the trainer.
    name
        What people call it.
    client
        Id of the Dask client that it belongs to.
    metrics
        Names of its metrics.
    target
        How many replicas it wants.
    length
        Rows of each tier of its series.

    Attributes
    ----------
    state
        ``"starting"``, ``"open"``, ``"closed"``, or ``"lost"`` if its client went
        without closing it.
    totals
        Sums over all replicas, also over those that were lost meanwhile.
    reported
        What the client said last: backlog, lag and so on.
    """

    def __init__(
        self,
        run_id: str,
        name: str,
        client: str,
        metrics: Sequence[str] = (),
        target: int = 0,
        length: int = 600,
    ) -> None:
        self.run_id = run_id
        self.name = name
        self.client = client
        self.metrics = list(metrics)
        self.state = "starting"
        self.started = time.time()
        self.ended: float | None = None
        self.replicas: dict[str, ReplicaRecord] = {}
        self.totals = dict.fromkeys(COUNTS, 0.0)
        self.reported: dict[str, Any] = {"target": target}
        # Replicas with a higher number were not there at the start.
        self._first = target
        self.archive = Archive(COLUMNS, length)
        self.events = Events()
        self._heard = time.monotonic()

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes from it."""
        return self.ended is not None

    # ---- what comes in --------------------------------------------------------------

    def observe(
        self,
        name: str,
        address: str,
        snapshot: dict[str, Any],
        now: float | None = None,
    ) -> None:
        """Take in what is known of one replica; see `ReplicaRecord.observe`."""
        replica = self.replicas.get(name)
        if replica is None:
            replica = ReplicaRecord(name, address, self._slot_for(name))
            self.replicas[name] = replica
            if _number(name) >= self._first:
                self.events.append(Event("joined", f"{name} on {address}"))
        elif replica.address != address:
            if not (replica.lost or replica.silent):
                return  # there cannot be two
            replica.address = address
        growth = replica.observe(snapshot, now)
        if replica.lost and growth and not replica.left:  # it was not
            replica.slot = self._slot_for(name)
            replica.lost = False
            self.events.append(Event("joined", f"{name} on {address}, again"))
        for count, grown in growth.items():
            self.totals[count] += grown

    def listen(self, now: float) -> None:
        """Take note of what has not come; see `ReplicaRecord.listen`."""
        for replica in self.alive:
            if not replica.listen(now):
                self.lose(replica)
        if not self.alive and now - self._heard > _FORGOTTEN:
            self.end("lost")

    def lose(self, replica: ReplicaRecord) -> None:
        """Take note that a replica is gone."""
        if replica.lost:
            return
        if replica.leaving:  # its client tells of it
            replica.lose(left=True)
            return
        replica.lose()
        text = f"{replica.name} on {replica.address}"
        self.events.append(Event("lost", text))
        gone = [each for each in self.replicas.values() if each.lost]
        for each in gone[: max(0, len(gone) - _LOST)]:
            del self.replicas[each.name]

    def leave(self, name: str, now: bool = True) -> None:
        """Take note that a replica has left, or is about to.

        Parameters
        ----------
        name
            Of the replica.
        now
            Whether it has, as its client says; else it is about to, as it says itself.
        """
        replica = self.replicas.get(name)
        if replica is None or replica.lost:
            return
        replica.leaving = True
        if now:
            replica.lose(left=True)

    def update(self, report: dict[str, Any]) -> None:
        """Take in what the client says."""
        self._heard = time.monotonic()
        self.reported.update(report)
        for name in report.get("metrics", ()):
            if name not in self.metrics:
                self.metrics.append(name)
        if not self.is_over:
            self.state = report.get("state", self.state)

    def end(self, state: str) -> None:
        """Take note that nothing more comes."""
        if self.is_over:
            return
        self.state = state
        self.ended = time.time()
        for replica in self.alive:
            replica.lose(closed=state == "closed")

    def _slot_for(self, name: str) -> int | None:
        """Give the first replicas a line each; later ones get those of the lost."""
        free = set(range(SLOTS)) - {each.slot for each in self.alive}
        number = _number(name)
        if number in free:
            return number
        return min(free) if free and number >= self.reported["target"] else None

    # ---- what is made of it ---------------------------------------------------------

    @property
    def alive(self) -> list[ReplicaRecord]:
        """Replicas that are not lost."""
        return [each for each in self.replicas.values() if not each.lost]

    def sample(self, workers: int) -> None:
        """Add a row to the series, from the first replica on."""
        if not self.replicas:
            return
        self.archive.add(self.row(workers))

    def row(self, workers: int) -> dict[str, float]:
        """How it stands now: one number for each of `COLUMNS` that is known."""
        alive = self.alive
        row = {
            "time": time.time(),
            "workers": workers,
            "replicas": len(alive),
            "target": self.reported.get("target", 0),
            "backlog": self.reported.get("backlog", math.nan),
            "lag": self.reported.get("lag", math.nan),
            "dead_letters": self.dead_letters,
            "dropped": self.dropped,
            "samples": _total(alive, "samples"),
            "steps": _total(alive, "steps"),
            "predictions": _total(alive, "predictions"),
            "sent": _total(alive, "sent_bytes"),
            "received": _total(alive, "received_bytes"),
            "loss": _mean([each.losses() for each in alive]),
        }
        row |= {
            f"metric_{number}": self.metric(name)
            for number, name in enumerate(self.metrics[:METRICS])
        }
        row |= _spread("speed", [each.rate("samples") for each in alive])
        row |= _extremes("loss", [each.loss() for each in alive])
        row |= _staleness(alive)
        for each in alive:
            if each.slot is not None:
                row[f"speed_{each.slot}"] = each.rate("samples")
                row[f"loss_{each.slot}"] = each.loss()
                row[f"staleness_{each.slot}"] = each.newest.get("staleness_mean", 0.0)
        return row

    def metric(self, name: str) -> float:
        """Mean of a metric over the newest samples; NaN if there are none."""
        return _mean([each.metric(name) for each in self.alive])

    @property
    def dead_letters(self) -> int:
        """Mini-batches that were refused, by the client or by a replica."""
        return int(self.reported.get("dead_letters", self.totals["refused"]))

    @property
    def dropped(self) -> int:
        """Mini-batches that streams dropped, since more came than could be learned."""
        return int(self.reported.get("dropped", 0))

    def summary(self, workers: int) -> dict[str, Any]:
        """Everything that a script or a table wants to know, without the series."""
        row = self.row(workers)
        return {
            "run_id": self.run_id,
            "name": self.name,
            "client": self.client,
            "state": self.state,
            "mode": self.reported.get("mode", "always"),
            "phase": self.reported.get("phase", "training"),
            "share": self.reported.get("share", ""),
            "started": self.started,
            "ended": self.ended,
            "target": self.reported.get("target", 0),
            "emitted": self.reported.get("emitted", 0),
            "backlog": self.reported.get("backlog", 0),
            "lag": self.reported.get("lag", 0.0),
            "dead_letters": self.dead_letters,
            "dropped": self.dropped,
            "totals": {
                name: self.totals[name]
                for name in COUNTS
                if name not in ("loss", "refused")
            },
            "now": {
                "samples_per_second": row["samples"],
                "steps_per_second": row["steps"],
                "predictions_per_second": row["predictions"],
                "sent_bytes_per_second": row["sent"],
                "received_bytes_per_second": row["received"],
                "loss": row["loss"],
                "metrics": {name: self.metric(name) for name in self.metrics},
                "staleness_mean": row.get("staleness", math.nan),
                "staleness_p95": row.get("staleness_p95", math.nan),
                "staleness_max": row.get("staleness_most", math.nan),
                "age_p95": row.get("age", math.nan),
            },
            "replicas": [each.row() for each in self.replicas.values()],
            "events": [event.plain() for event in self.events],
        }


def _total(replicas: Iterable[ReplicaRecord], count: str) -> float:
    return sum(each.rate(count) for each in replicas)


def _mean(pairs: Sequence[tuple[float, float]]) -> float:
    totals, samples = zip(*pairs, strict=True) if pairs else ((), ())
    return sum(totals) / sum(samples) if sum(samples) else math.nan


def _extremes(name: str, values: Iterable[float]) -> dict[str, float]:
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return {}
    return {f"{name}_least": min(known), f"{name}_most": max(known)}


def _spread(name: str, values: list[float]) -> dict[str, float]:
    if not values:
        return {}
    return {name: statistics.median(values), **_extremes(name, values)}


def _staleness(replicas: list[ReplicaRecord]) -> dict[str, float]:
    newest = [each.newest for each in replicas if each.newest]
    if not newest:
        return {}
    return {
        "staleness": statistics.fmean(one["staleness_mean"] for one in newest),
        "staleness_p95": max(one["staleness_p95"] for one in newest),
        "staleness_most": max(one["staleness_max"] for one in newest),
        "age": max(one["age_p95"] for one in newest),
    }


def _number(name: str) -> int:
    """Give the number of a replica, in the order of their start."""
    return int(name.rpartition("-")[2])
