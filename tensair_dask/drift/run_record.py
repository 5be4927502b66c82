"""What happened along a stream that drifts: scores, phases, and what was detected."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from tensair_dask.drift.evaluation import match

if TYPE_CHECKING:
    from tensair_dask.reports import Report

__all__ = ["Alarms", "Detections", "Record"]


class Record:
    """Loss, one metric and phase of each mini-batch, by its place in the stream.

    Give it to ``reports.sink(record.add)``.

    Parameters
    ----------
    length
        Mini-batches of the stream, if that is known; 13 bytes are kept for each.
    metric
        Name of the metric.
    newest
        Reports over which `recent` looks back.

    Attributes
    ----------
    records
        Records that were scored.
    learned, predicted
        Mini-batches that were learned, and those that were only predicted.
    """

    def __init__(
        self, length: int, metric: str = "accuracy", newest: int = 100
    ) -> None:
        self.metric = metric
        self._loss = np.full(length, np.nan, dtype=np.float32)
        self._score = np.full(length, np.nan, dtype=np.float32)
        self._learned = np.zeros(length, dtype=bool)
        self._samples = np.zeros(length, dtype=np.uint32)
        self._newest: deque[tuple[float, int]] = deque(maxlen=newest)
        self._sum = 0.0
        self.records = self.learned = self.predicted = 0

    def add(self, report: Report) -> None:
        """Keep what one report tells; a refused mini-batch tells nothing."""
        if report.error is not None:
            return
        score = report.metrics[self.metric]
        if report.index >= len(self._loss):
            self._make_room(report.index + 1)
        self._loss[report.index] = report.loss
        self._score[report.index] = score
        self._learned[report.index] = report.learned
        self._samples[report.index] = report.samples
        self._newest.append((score * report.samples, report.samples))
        self._sum += score * report.samples
        self.records += report.samples
        self.learned += report.learned
        self.predicted += not report.learned

    def _make_room(self, length: int) -> None:
        more = max(length - len(self._loss), 1024, len(self._loss) // 2)
        self._loss = np.pad(self._loss, (0, more), constant_values=np.nan)
        self._score = np.pad(self._score, (0, more), constant_values=np.nan)
        self._learned = np.pad(self._learned, (0, more))
        self._samples = np.pad(self._samples, (0, more))

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the state as numpy arrays: 13 bytes a mini-batch."""
        end = 1 + int(np.flatnonzero(self._samples).max(initial=-1))
        return {
            "loss": self._loss[:end].copy(),
            "score": self._score[:end].copy(),
            "learned": self._learned[:end].copy(),
            "samples": self._samples[:end].astype(np.int64),
        }

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where that was of which this is the `state_dict`."""
        end = len(state["samples"])
        if end > len(self._loss):
            self._make_room(end)
        self._loss[:end] = state["loss"]
        self._score[:end] = state["score"]
        self._learned[:end] = state["learned"]
        self._samples[:end] = state["samples"]
        self.rewind(end)

    def rewind(self, batches: int) -> None:
        """Forget all mini-batches but the first so many: they come again."""
        self._loss[batches:] = np.nan
        self._score[batches:] = np.nan
        self._learned[batches:] = False
        self._samples[batches:] = 0
        scored = np.flatnonzero(self._samples)
        samples = self._samples[scored].astype(np.int64)
        totals = self._score[scored].astype(np.float64) * samples
        self._sum = float(totals.sum())
        self.records = int(samples.sum())
        self.learned = int(np.count_nonzero(self._learned))
        self.predicted = len(scored) - self.learned
        self._newest.clear()
        self._newest.extend(zip(totals.tolist(), samples.tolist(), strict=True))

    @property
    def mean(self) -> float:
        """Of the metric over all records, each scored before it was learned."""
        return self._sum / self.records if self.records else math.nan

    def recent(self) -> float:
        """Mean of the metric over the newest reports; NaN if there is none."""
        records = sum(samples for _, samples in self._newest)
        return (
            sum(total for total, _ in self._newest) / records if records else math.nan
        )

    @property
    def share(self) -> float:
        """Share of the mini-batches that were learned."""
        return self.learned / max(self.learned + self.predicted, 1)

    def frame(self) -> pd.DataFrame:
        """One row for each mini-batch that was scored, in the order of the stream."""
        scored = np.flatnonzero(np.isfinite(self._loss))
        return pd.DataFrame(
            {
                "index": scored,
                "loss": self._loss[scored],
                "learned": self._learned[scored],
                self.metric: self._score[scored],
            }
        )


class Alarms:
    """Mini-batches at which drift was detected, also before a checkpoint.

    Parameters
    ----------
    newest
        Gives those that were detected since.
    """

    def __init__(self, newest: Callable[[], Iterable[int]]) -> None:
        self._newest = newest
        self._before: list[int] = []

    def __call__(self) -> list[int]:
        """All of them, in order."""
        return [*self._before, *(int(each) for each in self._newest())]

    def state_dict(self) -> dict[str, list[int]]:
        """Copy the state as plain values."""
        return {"alarms": self()}

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Go on where that was of which this is the `state_dict`."""
        self._before = list(state["alarms"])


class Detections:
    """Which alarms belong to which changes of a stream.

    The rules are those of `tensair_dask.drift.evaluate`: the first alarm at or after a
    change, and before the next one, finds it; every other alarm is false.

    Parameters
    ----------
    changes
        Mini-batches at which the stream changed, and what changed.
    alarms
        Mini-batches at which a drift was detected.

    Attributes
    ----------
    found
        For each change, the alarm that finds it; None where it was missed.
    false
        Alarms that find no change.
    """

    def __init__(self, changes: Mapping[int, str], alarms: Iterable[int]) -> None:
        self.changes = dict(sorted(changes.items()))
        self.alarms = sorted(alarms)
        self.found = match(list(self.changes), self.alarms)
        self.false = [alarm for alarm in self.alarms if alarm not in self.found]

    @property
    def delays(self) -> list[int | None]:
        """Mini-batches that each detection took: 1 is the first that had changed."""
        return [
            None if alarm is None else alarm - place + 1
            for place, alarm in zip(self.changes, self.found, strict=True)
        ]

    @property
    def delay(self) -> float | None:
        """Mean of the delays that there are."""
        known = [delay for delay in self.delays if delay is not None]
        return sum(known) / len(known) if known else None

    @property
    def missed(self) -> int:
        """Changes that no alarm found."""
        return self.found.count(None)

    def rows(self) -> list[tuple[str, int, int | None, int | None]]:
        """What changed, where, where it was detected, and the delay, of each change."""
        return [
            (text, place, alarm, delay)
            for (place, text), alarm, delay in zip(
                self.changes.items(), self.found, self.delays, strict=True
            )
        ]
