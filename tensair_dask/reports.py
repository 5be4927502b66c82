"""What one step tells: the report that comes back for every mini-batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from tensair_dask.errors import TensairError

__all__ = ["COLUMNS", "History", "Report"]

# Of the history, besides the metrics.
COLUMNS = (
    "index",
    "time",
    "loss",
    "samples",
    "seconds",
    "staleness",
    "replica",
    "learned",
    "error",
)


@dataclass(slots=True)
class Report:
    """The outcome of one mini-batch, scored before it was learned (prequential).

    Attributes
    ----------
    index
        Number of the mini-batch in the order of submission, from 0. Reports come
        in the order of completion, which differs between replicas.
    loss
        The loss on the mini-batch with the parameters before it was learned; NaN
        if it was refused.
    metrics
        One number for each metric of the trainer, likewise before learning.
    samples
        Rows in the mini-batch.
    seconds
        Time of the step on the replica: forward, backward, optimizer, scoring.
    staleness
        The largest staleness among the gradient messages that the replica applied
        just before this step: gradients that it had applied and the sender had
        not. 0 if none had arrived.
    replica
        Address of the worker that learned it; empty if no replica took it.
    error
        None, or the typed error that says why the mini-batch was refused. It was
        then not learned and lies in ``trainer.dead_letters``.
    prediction
        What the model predicted before learning, as numpy arrays, if the trainer
        was made with ``keep_predictions=True``; else None.
    time
        Seconds since the epoch at which the report came back to the client.
    learned
        False if the mini-batch was only predicted and scored, as the mode of the
        trainer wanted it, or refused. Scores are then of evaluation mode.
    """

    index: int
    loss: float
    metrics: dict[str, float]
    samples: int
    seconds: float = 0.0
    staleness: int = 0
    replica: str = ""
    error: TensairError | None = None
    prediction: Any = field(default=None, repr=False)
    time: float = 0.0
    learned: bool = True

    def raise_for_error(self) -> Report:
        """Raise the report's error if it has one, else return the report."""
        if self.error is not None:
            raise self.error
        return self

    @classmethod
    def refused(cls, index: int, samples: int, error: TensairError) -> Report:
        """Report a mini-batch that no replica learned."""
        return cls(index, float("nan"), {}, samples, error=error, learned=False)


class History:
    """The newest reports, bounded, as a pandas DataFrame on request.

    Parameters
    ----------
    maxlen
        How many are kept.
    metrics
        Names that have a column from the start.
    """

    def __init__(self, maxlen: int, metrics: Iterable[str] = ()) -> None:
        self._names = list(metrics)
        # Without the predictions: a bound on rows is then a bound on memory.
        self._rows: deque[tuple[Any, ...]] = deque(maxlen=maxlen)
        self._metrics: list[dict[str, float]] | deque[dict[str, float]]
        self._metrics = deque(maxlen=maxlen)

    def append(self, report: Report) -> None:
        """Keep one report, dropping the oldest one beyond the bound."""
        error = report.error
        self._rows.append(
            (
                report.index,
                report.time,
                report.loss,
                report.samples,
                report.seconds,
                report.staleness,
                report.replica,
                report.learned,
                None if error is None else f"{type(error).__name__}: {error}",
            )
        )
        self._metrics.append(report.metrics)

    def __len__(self) -> int:
        return len(self._rows)

    def frame(self) -> pd.DataFrame:
        """One row a report, in order of completion; a column for each metric."""
        frame = pd.DataFrame(list(self._rows), columns=COLUMNS)
        frame["time"] = pd.to_datetime(frame["time"], unit="s", utc=True)
        scores = pd.DataFrame(list(self._metrics), index=frame.index)
        for position, name in enumerate(self._columns(scores)):
            values = scores[name] if name in scores else float("nan")
            frame.insert(3 + position, name, values, allow_duplicates=True)
        return frame

    def _columns(self, scores: pd.DataFrame) -> list[str]:
        """Names of all metrics; one that gives several values has a column for each."""
        given = list(scores.columns)
        missing = [
            name
            for name in self._names
            if name not in given
            and not any(each.startswith(f"{name}.") for each in given)
        ]
        order = {name: place for place, name in enumerate(self._names)}

        def place(name: str) -> int:
            return order.get(name, order.get(name.partition(".")[0], len(order)))

        return sorted([*given, *missing], key=place)
