"""Sums over the reports of one run: speed, loss, staleness, what was refused."""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tensair_dask.reports import Report

__all__ = ["Tally", "number_or_none"]


class Tally:
    """Add up reports as they come; give it to ``reports.sink(tally.add)``.

    Parameters
    ----------
    newest
        Over how many of the newest reports loss and staleness are averaged.
    span
        Seconds over which the current speed is measured.

    Attributes
    ----------
    records
        Records in all reports, refused ones included.
    batches
        Mini-batches that were not refused.
    learned
        Those of them that were learned; the others were only predicted.
    refused
        Mini-batches that were refused, by the name of the error.
    refused_records
        Records that were refused before they were part of a mini-batch.
    first_refusal
        The error of the first that was refused; None if none was.
    staleness_most
        The largest staleness of any report.
    before
        Records of the stream that a checkpoint holds, with which the run has begun.
    lost
        Addresses of the replicas that were lost; set it when the stream has ended.
    """

    def __init__(self, newest: int = 200, span: float = 3.0) -> None:
        self.records = 0
        self.before = 0
        self.batches = 0
        self.learned = 0
        self.refused: Counter[str] = Counter()
        self.refused_records = 0
        self.first_refusal: Exception | None = None
        self.staleness_most = 0
        self.lost: set[str] = set()
        self._staleness_sum = 0
        self._newest: deque[Report] = deque(maxlen=newest)
        self._span = span
        # Moments and how many records had come by then, one for each reading.
        self._marks: deque[tuple[float, int]] = deque()
        self._started = time.monotonic()
        self._stopped: float | None = None
        self._batches_of: Counter[str] = Counter()
        self._records_of: Counter[str] = Counter()

    def add(self, report: Report) -> None:
        """Count one report."""
        self.records += report.samples
        if report.error is not None:
            self.refused[type(report.error).__name__] += 1
            self.first_refusal = self.first_refusal or report.error
            return
        self.batches += 1
        self.learned += report.learned
        self._batches_of[report.replica] += 1
        self._records_of[report.replica] += report.samples
        self._staleness_sum += report.staleness
        self.staleness_most = max(self.staleness_most, report.staleness)
        self._newest.append(report)

    def refuse(self, letter: Any) -> None:
        """Count a record that a source has refused, or ``try_map``.

        Give it to ``source.dead_letters.subscribe``.
        """
        self.refused_records += 1
        self.first_refusal = self.first_refusal or letter.error

    def refusals(self) -> dict[str, Any]:
        """What a script wants to know of all that was refused, fit for JSON."""
        first = self.first_refusal
        return {
            "refused": dict(self.refused),
            "refused_records": self.refused_records,
            "first_refusal": None if first is None else str(first),
        }

    def describe_refusals(self) -> str:
        """Say what was refused, and why the first was; nothing if nothing was."""
        parts = []
        if self.refused:
            names = ", ".join(f"{n:,} {name}" for name, n in self.refused.most_common())
            parts.append(
                f"{_several(self.refused.total(), 'mini-batch', 'es')} ({names})"
            )
        if self.refused_records:
            parts.append(_several(self.refused_records, "record", "s"))
        if not parts:
            return ""
        return f"Refused: {' and '.join(parts)}. The first: {self.first_refusal}"

    @property
    def reached(self) -> int:
        """Records of the stream up to here, those of earlier runs included."""
        return self.before + self.records

    def start(self) -> None:
        """Start the clock."""
        self._started = time.monotonic()
        self._marks.append((self._started, self.records))

    def stop(self) -> None:
        """Stop the clock."""
        self._stopped = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time from start to stop, or to now."""
        return (self._stopped or time.monotonic()) - self._started

    @property
    def rate(self) -> float:
        """Records per second, from start to stop or to now."""
        return self.records / self.seconds if self.seconds > 0 else 0.0

    def current_rate(self) -> float:
        """Records per second over the span that ends now; ask a few times a second."""
        now = time.monotonic()
        self._marks.append((now, self.records))
        while len(self._marks) > 2 and self._marks[1][0] < now - self._span:
            self._marks.popleft()
        then, records = self._marks[0]
        return (self.records - records) / (now - then) if now > then else 0.0

    def loss(self) -> float:
        """Mean loss of the newest reports, weighted by their samples; NaN if none."""
        samples = sum(report.samples for report in self._newest)
        if not samples:
            return float("nan")
        return sum(each.loss * each.samples for each in self._newest) / samples

    def staleness(self) -> float:
        """Mean staleness of the newest reports; 0 if none."""
        newest = self._newest
        return sum(each.staleness for each in newest) / len(newest) if newest else 0.0

    @property
    def staleness_mean(self) -> float:
        """Mean staleness of all reports; 0 if none."""
        return self._staleness_sum / self.batches if self.batches else 0.0

    def replicas(self) -> list[dict[str, Any]]:
        """What each replica has learned, by address."""
        return [
            {
                "replica": address,
                "batches": self._batches_of[address],
                "records": self._records_of[address],
                "lost": address in self.lost,
            }
            for address in sorted(self._batches_of)
        ]


def number_or_none(value: float) -> float | None:
    """Write NaN as JSON can."""
    return None if math.isnan(value) else value


def _several(number: int, name: str, ending: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else ending}"
