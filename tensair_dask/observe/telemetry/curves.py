"""Curves: the whole run of a trainer as its client saw it, in a bounded memory."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tensair_dask.observe.telemetry.archive import Archive, latest, least, most

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["COLUMNS", "Curves"]

# Of the frame, besides the metrics.
COLUMNS = (
    "time",
    "seconds",
    "samples_per_second",
    "steps_per_second",
    "loss",
    "loss_min",
    "loss_max",
    "staleness",
    "staleness_max",
    "backlog",
    "lag",
    "dead_letters",
    "replicas",
    "steps",
    "samples",
)

# How many of the finest rows make one row of each tier. Small steps between them: a
# run of any length is shown by a quarter of a tier's rows at least.
TIERS = tuple(4**power for power in range(9))

# Scores that are added up; those that come beyond are in the reports only.
MOST_METRICS = 256

# Rows that one idle stretch takes at most, as a share of those of a tier: a source that
# rests often must not push out the stretches in which something was learned.
_IDLE = 0.1


class Curves:
    """Adds up reports as they come, and keeps a row now and then.

    Rows hold cumulative counts and not rates: what lies between any two of them is
    exact, whatever resolution they are kept at. A row is made by the report that comes
    after its time is over; no thread and no timer is needed, and a report that makes
    none costs about a microsecond.

    Belongs to the client's event loop.

    Parameters
    ----------
    metrics
        Names of the scores; others may come with the reports.
    state
        Called for each row: ``backlog`` (mini-batches), ``lag`` (seconds) and
        ``replicas`` (how many are alive) as they are now.
    interval
        Seconds between two rows at least.
    rows
        Of each of the nine resolutions.

    Notes
    -----
    *Idle stretches.* A stretch in which no mini-batch was with the trainer has rows of
    its own, with nothing learned in them; the one that a slow step takes has not: its
    row is as long as the step.
    """

    # Since the newest row.
    _loss_least: float
    _loss_most: float
    _staleness_most: int
    _lag_most: float

    def __init__(
        self,
        metrics: Sequence[str],
        state: Callable[[], Mapping[str, float]],
        interval: float = 0.25,
        rows: int = 1000,
    ) -> None:
        self._metrics = {name: place for place, name in enumerate(metrics)}
        self._state = state
        self._interval = interval
        self._idle_rows = max(1, int(_IDLE * rows))
        self._archive = Archive(_consolidations(len(metrics)), rows, TIERS)
        # Cumulative, in the order in which rows have them.
        self._steps = self._samples = self._dead_letters = self._stale = 0
        self._loss = self._staleness = 0.0
        self._sums = [0.0] * len(metrics)
        self._weights = [0] * len(metrics)
        self._held: dict[str, float] | None = None
        self._last_state: Mapping[str, float] = {}
        self._ended: float | None = None
        self._forget_extremes()
        self.begin()

    def begin(self) -> None:
        """Let the run begin now; what was before is not shown."""
        # Of the run, of the newest row, and of the newest reports.
        self._began = self._rowed = self._newest = time.time()

    def end(self) -> None:
        """Take note that nothing more comes."""
        if self._ended is None:
            self._last_state = self._state()
            self._ended = max(time.time(), self._newest)

    @property
    def metrics(self) -> list[str]:
        """Names of the scores that have come, or are known to come."""
        return list(self._metrics)

    # ---- what comes in --------------------------------------------------------------

    def observe(self, report: Any, taken: float) -> None:
        """Add up a report.

        Parameters
        ----------
        report
            A `Report`.
        taken
            When its mini-batch was given, on the monotonic clock.
        """
        # Those of one message have the same time. (If the clock is set back, a row
        # lasts until it has caught up.)
        if report.time > self._newest:
            self._advance(report.time, taken)
        if report.error is not None:
            self._dead_letters += 1
            return
        loss, samples, staleness = report.loss, report.samples, report.staleness
        self._steps += 1
        self._samples += samples
        self._loss += loss * samples
        if staleness:  # 0 says most often that no gradient had come
            self._stale += 1
            self._staleness += staleness
        if loss < self._loss_least:
            self._loss_least = loss
        if loss > self._loss_most:
            self._loss_most = loss
        if staleness > self._staleness_most:
            self._staleness_most = staleness
        for name, value in report.metrics.items():
            if value - value == 0.0:  # neither NaN nor infinite: these would stay
                place = self._metrics.get(name)
                if place is None:
                    if len(self._metrics) >= MOST_METRICS:
                        continue
                    place = self._widen(name)
                self._sums[place] += value * samples
                self._weights[place] += samples

    def _widen(self, name: str) -> int:
        """Begin to add up a score that no report had before."""
        place = self._metrics[name] = len(self._sums)
        self._sums.append(0.0)
        self._weights.append(0)
        more = _of_metric(place)
        self._archive.widen(more)
        if self._held is not None:
            self._held |= dict.fromkeys(more, 0.0)
        return place

    def _advance(self, now: float, taken: float) -> None:
        """Make the rows that are due before a report of this time is added up."""
        if self._newest - self._rowed >= self._interval:
            self._keep(self._newest, self._state())
        if now - self._newest > self._interval:
            waited = time.monotonic() - taken
            self._lag_most = max(self._lag_most, waited)
            if now - waited - self._newest > self._interval:
                self._rest(now - waited)
        self._newest = now

    def _rest(self, until: float) -> None:
        """Make the rows of a stretch in which there was nothing to learn."""
        state = {**self._state(), "backlog": 0, "lag": 0.0}
        if self._newest > self._rowed:
            self._keep(self._newest, state)
        count = int((until - self._newest) / self._interval)
        for moment in np.linspace(
            self._newest, until, min(max(count, 1), self._idle_rows) + 1
        )[1:]:
            self._keep(float(moment), state)

    def _keep(self, moment: float, state: Mapping[str, float]) -> None:
        """Make a row; it goes into the archive when it is sure to stay as it is."""
        *done, self._held = self._joined(self._row(moment, state))
        for row in done:
            self._archive.add(row)
        self._rowed = moment
        self._forget_extremes()

    def _joined(self, row: dict[str, float]) -> list[dict[str, float]]:
        """Return the row that is held, and this one; one row of both if this is short.

        A message that came just after the last row was made would otherwise look as
        if all that is in it had been learned in that moment.
        """
        held = self._held
        if held is None:
            return [row]
        short = row["time"] - held["time"] < self._interval / 2
        if not short or math.isnan(held["loss_min"]):
            return [held, row]
        both = [held, row]
        for name, consolidate in _EXTREMES.items():
            row = {**row, name: consolidate(np.array([each[name] for each in both]))}
        return [row]

    def _row(self, moment: float, state: Mapping[str, float]) -> dict[str, float]:
        """How it stands: counts since the beginning, extremes since the last row."""
        learned = self._loss_least <= self._loss_most
        row: dict[str, float] = {
            "time": moment,
            "steps": self._steps,
            "samples": self._samples,
            "loss": self._loss,
            "loss_min": self._loss_least if learned else math.nan,
            "loss_max": self._loss_most if learned else math.nan,
            "staleness": self._staleness,
            "stale": self._stale,
            "staleness_max": self._staleness_most if learned else math.nan,
            "dead_letters": self._dead_letters,
            **state,
        }
        row["lag"] = max(row["lag"], self._lag_most)
        for place, (total, weight) in enumerate(
            zip(self._sums, self._weights, strict=True)
        ):
            row[f"sum_{place}"] = total
            row[f"weight_{place}"] = weight
        return row

    def _forget_extremes(self) -> None:
        self._loss_least, self._loss_most = math.inf, -math.inf
        self._staleness_most = 0
        self._lag_most = 0.0

    # ---- what is made of it ---------------------------------------------------------

    def frame(self) -> pd.DataFrame:
        """The whole run, at the finest resolution that holds it; see `Trainer.curves`.

        The last row ends now.
        """
        import pandas as pd

        rows, complete = self._rows()
        if complete:
            start = dict.fromkeys(rows, 0.0) | {"time": self._began}
            rows = {
                name: np.concatenate([[start[name]], column])
                for name, column in rows.items()
            }
        grown = {name: np.diff(column) for name, column in rows.items()}
        seconds, samples, steps = grown["time"], grown["samples"], grown["steps"]
        # Nothing is known yet of the mini-batches that are being learned.
        unknown = np.where(rows.pop("open")[1:] == 1, np.nan, 0.0)
        known = {name: column[1:] for name, column in rows.items()}
        scores = {
            name: _ratio(grown[f"sum_{place}"], grown[f"weight_{place}"])
            for name, place in self._metrics.items()
        }
        return pd.DataFrame(
            {
                "time": pd.to_datetime(known["time"], unit="s", utc=True),
                "seconds": seconds,
                "samples_per_second": _ratio(samples, seconds) + unknown,
                "steps_per_second": _ratio(steps, seconds) + unknown,
                "loss": _ratio(grown["loss"], samples),
                "loss_min": known["loss_min"],
                "loss_max": known["loss_max"],
                **scores,
                "staleness": np.where(
                    (grown["stale"] == 0) & (steps > 0),
                    0.0,
                    _ratio(grown["staleness"], grown["stale"]),
                ),
                "staleness_max": known["staleness_max"],
                "backlog": known["backlog"].astype(int),
                "lag": known["lag"],
                "dead_letters": known["dead_letters"].astype(int),
                "replicas": known["replicas"].astype(int),
                "steps": known["steps"].astype(int),
                "samples": known["samples"].astype(int),
            }
        )

    def _rows(self) -> tuple[dict[str, np.ndarray], bool]:
        """Rows that are kept, and those up to now; whether they go back to the start.

        ``open`` is 1 for a row that is not over.
        """
        rows = self._archive.whole()
        tier = self._archive.tiers[self._archive.covering()]
        complete = tier.holds_all
        newest = self._newest_rows()
        for name in rows:
            more = [row[name] for row in newest]
            rows[name] = np.concatenate([rows[name], more])
        kept = np.zeros(len(rows["time"]) - len(newest))
        rows["open"] = np.concatenate([kept, [row["open"] for row in newest]])
        return rows, complete

    def _newest_rows(self) -> list[dict[str, float]]:
        state = self._state() if self._ended is None else self._last_state
        rows = [] if self._held is None else [self._held]
        if self._newest > self._rowed:
            rows = self._joined(self._row(self._newest, state))
        rows = [{**row, "open": 0} for row in rows]
        now = self._ended or time.time()
        if not rows or now - self._newest > self._interval:
            row = self._row(max(now, self._newest), state)
            row |= dict.fromkeys(("loss_min", "loss_max", "staleness_max"), math.nan)
            row["open"] = int(state["backlog"] > 0)
            if not row["open"] and now - self._newest > 2 * self._interval:
                # So that a line through the rows falls as fast as it did.
                rows.append({**row, "time": self._newest + self._interval})
            rows.append(row)
        return rows


def _ratio(count: np.ndarray, of: np.ndarray) -> np.ndarray:
    """One divided by the other; NaN where there was nothing."""
    return np.divide(count, of, out=np.full(len(of), np.nan), where=of > 0)


# Of the stretch that a row is of; all else is as it stands at its end.
_EXTREMES = {
    "loss_min": least,
    "loss_max": most,
    "staleness_max": most,
    "backlog": most,
    "lag": most,
}
_COUNTS = ("steps", "samples", "loss", "staleness", "stale", "dead_letters")


def _consolidations(metrics: int) -> dict[str, Callable[[np.ndarray], float]]:
    """Columns of the rows, and how several rows become one."""
    return {
        "time": latest,
        "replicas": latest,
        **_EXTREMES,
        **dict.fromkeys(_COUNTS, latest),
        **{name: latest for each in range(metrics) for name in _of_metric(each)},
    }


def _of_metric(place: int) -> dict[str, Callable[[np.ndarray], float]]:
    return {f"sum_{place}": latest, f"weight_{place}": latest}
