"""How well a detector finds known changes: delay, misses and false alarms."""

from __future__ import annotations

import copy
import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from tensair_dask._common.checks import allow, is_whole, shown, whole
from tensair_dask.drift.base import Detector
from tensair_dask.drift.registry import make
from tensair_dask.errors import ConfigurationError

__all__ = ["Evaluation", "Run", "evaluate", "match"]


@dataclass(frozen=True)
class Run:
    """What a detector did on one stream.

    Attributes
    ----------
    changes
        Changes in the stream.
    alarms
        Index of each value that raised an alarm.
    delays
        For each change that was found, the values it took: 1 is the first new value.
    """

    changes: int
    alarms: tuple[int, ...]
    delays: tuple[int, ...]

    @property
    def missed(self) -> int:
        """Changes that were not found."""
        return self.changes - len(self.delays)

    @property
    def false_alarms(self) -> int:
        """Alarms that found no change."""
        return len(self.alarms) - len(self.delays)


@dataclass(frozen=True, repr=False)
class Evaluation:
    """What a detector did on several streams; scores are of all alarms together.

    Attributes
    ----------
    detector
        Its name.
    runs
        One for each stream.
    """

    detector: str
    runs: tuple[Run, ...]

    @property
    def found(self) -> int:
        """Changes that were found."""
        return sum(len(run.delays) for run in self.runs)

    @property
    def missed(self) -> int:
        """Changes that were not found."""
        return sum(run.missed for run in self.runs)

    @property
    def false_alarms(self) -> int:
        """Alarms that found no change."""
        return sum(run.false_alarms for run in self.runs)

    @property
    def false_alarms_per_run(self) -> float:
        """Mean over the streams."""
        return self.false_alarms / len(self.runs)

    @property
    def delay_mean(self) -> float:
        """Of the changes that were found, in values; NaN for none."""
        delays = self._delays()
        return statistics.fmean(delays) if delays else math.nan

    @property
    def delay_median(self) -> float:
        """Of the changes that were found, in values; NaN for none."""
        delays = self._delays()
        return float(statistics.median(delays)) if delays else math.nan

    @property
    def precision(self) -> float:
        """Share of the alarms that found a change; NaN without alarms."""
        return _share(self.found, self.found + self.false_alarms)

    @property
    def recall(self) -> float:
        """Share of the changes that were found; NaN without changes."""
        return _share(self.found, self.found + self.missed)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN without alarms and changes."""
        wrong = self.false_alarms + self.missed
        return _share(2 * self.found, 2 * self.found + wrong)

    def _delays(self) -> list[int]:
        return [delay for run in self.runs for delay in run.delays]

    def __repr__(self) -> str:
        return (
            f"{self.detector} on {len(self.runs)} streams: found {self.found} of "
            f"{self.found + self.missed} changes, delay {self.delay_mean:.1f} (median "
            f"{self.delay_median:g}), {self.false_alarms_per_run:.2f} false alarms a "
            f"stream, precision {self.precision:.3f}, recall {self.recall:.3f}, "
            f"F1 {self.f1:.3f}"
        )


def evaluate(
    detector: Detector | str, streams: Iterable[Any], horizon: int | None = None
) -> Evaluation:
    """Run a detector over streams whose changes are known.

    Parameters
    ----------
    detector
        Its settings count, not its state: every stream gets a fresh copy, and the
        detector itself is left as it is. A name stands for what `make` makes of it.
    streams
        Pairs of values and change points (the index of the first value after each
        change, ascending), or objects that unpack into such: `streams.generate`.
    horizon
        Values within which a change must be found; None: until the next change, or the
        end of the stream.

    Returns
    -------
    evaluation
        For each stream and of all.

    Notes
    -----
    The first alarm at or after a change, within the horizon and before the next change,
    finds it. Every other alarm is false: one before the first change, a second one for
    the same change (also inside a long transition), one beyond the horizon.

    Raises
    ------
    ConfigurationError
        If there are no streams, one is no such pair, change points are not ascending
        within the values, or the detector is none.
    DriftError
        If the detector cannot take a value.
    """
    detector = _detector(detector)
    if horizon is not None:
        horizon = whole("horizon", horizon, 1, 500)
    allow(isinstance(streams, Iterable), f"streams={shown(streams)}", _STREAMS)
    runs = []
    for number, given in enumerate(streams):
        values, changes = _pair(number, given)
        _check(number, changes, len(values))
        alarms = _alarms(detector, values)
        found = match(changes, alarms, horizon)
        delays = tuple(
            alarm - change + 1
            for change, alarm in zip(changes, found, strict=True)
            if alarm is not None
        )
        runs.append(Run(len(changes), tuple(alarms), delays))
    if not runs:
        raise ConfigurationError(f"There are no streams to evaluate on; {_STREAMS}.")
    return Evaluation(type(detector).__name__, tuple(runs))


def match(
    changes: Sequence[int], alarms: Sequence[int], horizon: float | None = None
) -> list[int | None]:
    """Find which alarm belongs to which change; see the notes of `evaluate`.

    Parameters
    ----------
    changes, alarms
        Their places, ascending.
    horizon
        As in `evaluate`.

    Returns
    -------
    found
        For each change its alarm, or None where it was missed.
    """
    ends = [*changes[1:], math.inf]
    if horizon is not None:
        ends = [min(e, c + horizon) for c, e in zip(changes, ends, strict=False)]
    return [
        next((alarm for alarm in alarms if change <= alarm < end), None)
        for change, end in zip(changes, ends, strict=False)
    ]


_STREAMS = (
    "give a list with a pair of values and change points for each stream, for example "
    "[(losses, [1000])]"
)


def _detector(given: Any) -> Detector:
    detector = make(given) if isinstance(given, str) else given
    allow(
        isinstance(detector, Detector),
        f"detector={shown(given)}",
        "give a detector, for example OPTWIN(), or a name such as 'optwin'",
    )
    return detector


def _pair(number: int, given: Any) -> tuple[list[Any], list[int]]:
    """Take a stream apart."""
    try:
        values, points = (_as_list(part) for part in given)
    except (TypeError, ValueError):
        values = points = None
    if values is None or points is None or not all(map(is_whole, points)):
        raise ConfigurationError(
            f"Stream {number}, {shown(given)}, is not allowed; {_STREAMS}. Change "
            "points are whole numbers; give [] where nothing changes."
        )
    return values, [int(point) for point in points]


def _as_list(part: Any) -> list[Any] | None:
    if hasattr(part, "tolist"):
        part = part.tolist()
    is_list = isinstance(part, Iterable) and not isinstance(part, (str, bytes))
    return list(part) if is_list else None


def _alarms(detector: Detector, values: Sequence[Any]) -> list[int]:
    fresh = copy.deepcopy(detector)
    fresh.reset()
    return [place for place, value in enumerate(values) if fresh.update(value)]


def _check(number: int, changes: list[int], length: int) -> None:
    ascending = all(a < b for a, b in pairwise(changes))
    if not ascending or not all(0 <= point < length for point in changes):
        raise ConfigurationError(
            f"Stream {number} has the change points {changes}, which is not allowed; "
            f"give indices of its {length} values in ascending order."
        )


def _share(part: int, whole: int) -> float:
    return part / whole if whole else math.nan
