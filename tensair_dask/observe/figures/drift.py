"""How a model trained, predicted and met drifts along a stream."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from tensair_dask.drift.run_record import Detections
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures.chart import (
    Axis,
    Band,
    Chart,
    Line,
    Mark,
    MarkStyle,
    Panel,
    Readout,
    Shade,
)
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.palette import BLACK, BLUE, GREEN, GREY, ORANGE

__all__ = ["Course", "chart", "stretches"]

# Names of what is drawn, as the legend has them.
TRAINED, PREDICTED = "training", "predicting only"
BAND = "loss of nine in ten mini-batches"
CHANGE = "the stream truly changed"
ALARM = "drift detected"
ALARM_AFTER = "drift detected, after so many mini-batches"
FALSE_ALARM = "false alarm"
MISSED = "change that was missed"

COLOURS = {TRAINED: ORANGE, PREDICTED: BLUE}
_DRIFT = MARKS["drift"]
_ALARM = MarkStyle(ALARM, _DRIFT.colour, sign=_DRIFT.sign, width=1)
STYLES = {
    CHANGE: MarkStyle(CHANGE, BLACK, MARKS["note"].dash),
    ALARM: _ALARM,
    ALARM_AFTER: replace(_ALARM, label=ALARM_AFTER),
    FALSE_ALARM: replace(_ALARM, label=FALSE_ALARM, filled=False),
    # It has the line of its change.
    MISSED: MarkStyle(MISSED, _DRIFT.colour, sign="x", line=False),
}

AXIS = Axis(
    "index",
    "mini-batches of the stream",
    place=("mini-batch", "0,0"),
    readouts=[Readout("mini-batches", "which"), Readout("phase", "phase")],
)

# Stretches of a curve: more cannot be seen on a screen, and would make pages large.
MOST = 500
# Changes and alarms that are drawn: the first ones. With more than a few, words beside
# them would cover each other.
MARKED, NAMED = 200, 24

COLUMNS = ["first", "last", "index", "learned", "loss", "low", "high"]


@dataclass(frozen=True)
class Course:
    """What happened along a stream.

    Attributes
    ----------
    rows
        One row a mini-batch, in any order: ``index`` (its number), ``loss``,
        ``learned`` (False where it was predicted and not learned), and a column for
        each of the metrics.
    metrics
        Names of those that are drawn, below the loss.
    changes
        Mini-batches at which the stream truly changed, and what changed; empty where
        nobody knows: no alarm is then called false.
    alarms
        Mini-batches at which a drift was detected.
    references
        Lines to compare a metric with: for its name the label and the values, one for
        each mini-batch from 0.
    """

    rows: pd.DataFrame
    metrics: Sequence[str] = ("accuracy",)
    changes: Mapping[int, str] = field(default_factory=dict)
    alarms: Sequence[int] = ()
    references: Mapping[str, tuple[str, np.ndarray]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        needed = {"index", "loss", "learned", *self.metrics}
        if missing := needed - set(self.rows.columns):
            raise ConfigurationError(
                f"rows have no column {', '.join(sorted(missing))}; needed are "
                f"{', '.join(sorted(needed))}, as trainer.history has them."
            )

    def marks(self) -> Iterator[tuple[int, str, str]]:
        """Place, kind and words of each change and each alarm that is drawn.

        A change that was missed is there as that, too.
        """
        detections = Detections(self.changes, self.alarms)
        for text, place, alarm, _ in detections.rows()[:MARKED]:
            yield place, CHANGE, text
            if alarm is None:
                yield place, MISSED, "missed"
        delays = dict(zip(detections.found, detections.delays, strict=True))
        for place in detections.alarms[:MARKED]:
            if not self.changes:
                yield place, ALARM, ""
            elif (delay := delays.get(place)) is not None:
                yield place, ALARM_AFTER, f"after {delay:,}"
            else:
                yield place, FALSE_ALARM, "nothing had changed"

    @property
    def named(self) -> bool:
        """Whether there is room for words beside the marks."""
        return len(self.changes) + len(self.alarms) <= NAMED


def stretches(
    rows: pd.DataFrame, metrics: Iterable[str] = (), most: int = MOST
) -> pd.DataFrame:
    """Sum up mini-batches that follow each other, so that few enough are drawn.

    Parameters
    ----------
    rows, metrics
        As a `Course` has them. Rows without a loss are left out.
    most
        How many stretches there may be.

    Returns
    -------
    frame
        One row a stretch: ``first`` and ``last`` mini-batch, ``index`` (the mean),
        ``learned`` (of most of them), means of ``loss`` and metrics, and ``low`` and
        ``high``, between which nine in ten of the losses lie.
    """
    metrics = list(metrics)
    rows = rows[np.isfinite(rows["loss"].to_numpy(dtype=float))]
    if not len(rows):
        return pd.DataFrame(columns=[*COLUMNS, *metrics], dtype=float)
    index = rows["index"].to_numpy()
    width = -(-int(index.max() - index.min() + 1) // most)
    groups = rows.groupby((index - index.min()) // width)
    loss = groups["loss"]
    made = {
        "first": groups["index"].min(),
        "last": groups["index"].max(),
        "index": groups["index"].mean(),
        "learned": groups["learned"].mean() >= 0.5,
        "loss": loss.mean(),
        "low": loss.quantile(0.05),
        "high": loss.quantile(0.95),
    }
    made |= {name: groups[name].mean() for name in metrics}
    return pd.DataFrame(made).reset_index(drop=True)


def chart(course: Course, title: str = "", subtitle: str = "") -> Chart:
    """Describe the loss, and the metrics below it.

    Parameters
    ----------
    course
        What happened.
    title, subtitle
        Above the panels.
    """
    seen = stretches(course.rows, course.metrics)
    names = ["loss", *course.metrics]
    readouts = [Readout(name, name, "0.000") for name in names]
    return Chart(
        AXIS,
        [_panel(course, name, readouts) for name in names],
        _data(seen, names),
        [
            Mark(place, STYLES[kind], text, course.named and kind != FALSE_ALARM)
            for place, kind, text in course.marks()
        ],
        [Shade(*ends) for ends in _trained(seen)],
        title,
        subtitle,
    )


def _panel(course: Course, name: str, readouts: Sequence[Readout]) -> Panel:
    lines = [
        Line(f"{name}, {phase}", phase, colour) for phase, colour in COLOURS.items()
    ]
    if name in course.references:
        words, values = course.references[name]
        # The corners of the steps are all that there is to see.
        corners = _corners(values)
        points = {"index": corners, words: values[corners]}
        lines.append(Line(words, words, GREEN, (7, 4), 1.8, points=points))
    first = name == "loss"
    return Panel(
        lines,
        [Band("low", "high", BAND, GREY, 0.25)] if first else (),
        label=f"{name} (mean)",
        readouts=readouts,
        pointer=name,
        height=340 if first else 220,
        from_zero=first,
        signs=first,
    )


def _data(seen: pd.DataFrame, names: Sequence[str]) -> dict[str, Any]:
    phases = np.where(seen["learned"].astype(bool), TRAINED, PREDICTED)
    data: dict[str, Any] = {"which": _which(seen), "phase": phases}
    for name in ("index", "low", "high", *names):
        data[name] = seen[name].to_numpy(dtype=float)
    for name in names:
        for phase, line in _lines(seen, name).items():
            data[f"{name}, {phase}"] = line
    return data


def _lines(seen: pd.DataFrame, name: str) -> dict[str, np.ndarray]:
    """Values of a column in the one phase and in the other, NaN elsewhere.

    Where the phase changes, the point before belongs to both, so that no gap is left.
    """
    values = seen[name].to_numpy(dtype=float)
    learned = seen["learned"].to_numpy(dtype=bool)
    lines = {}
    for phase, inside in ((TRAINED, learned), (PREDICTED, ~learned)):
        begins_next = np.append(inside[1:], False)
        lines[phase] = np.where(inside | begins_next, values, np.nan)
    return lines


def _trained(seen: pd.DataFrame) -> list[tuple[float, float]]:
    """First and last mini-batch of each time in which it trained."""
    learned = seen["learned"].to_numpy(dtype=bool)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], learned, [0]])))
    first, last = seen["first"].to_numpy(), seen["last"].to_numpy()
    return [
        (float(first[begin]), float(last[end - 1]) + 1)
        for begin, end in zip(edges[::2], edges[1::2], strict=True)
    ]


def _which(seen: pd.DataFrame) -> list[str]:
    return [
        f"{first:,.0f}" if first == last else f"{first:,.0f} to {last:,.0f}"
        for first, last in zip(seen["first"], seen["last"], strict=True)
    ]


def _corners(values: np.ndarray) -> np.ndarray:
    steps = np.flatnonzero(np.diff(values))
    ends = [0, len(values) - 1] if len(values) else []
    return np.unique(np.concatenate([steps, steps + 1, ends]).astype(int))
