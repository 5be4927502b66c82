"""Prequential evaluation: any metric, over any horizon, beside what needs no model."""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from tensair_dask._common.checks import shown, whole
from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import (
    BatchError,
    CheckpointError,
    ConfigurationError,
    ShapeError,
)
from tensair_dask.prequential import horizons
from tensair_dask.prequential.baselines import (
    BASELINES,
    LAST_LABEL,
    MAJORITY,
    MEAN,
    MODEL,
    Baselines,
)
from tensair_dask.prequential.bounded_curve import Thinning
from tensair_dask.prequential.delayed_labels import ByKey, Delay, UntilDue
from tensair_dask.prequential.inputs import Reader, as_seconds
from tensair_dask.prequential.river_metrics import Chosen
from tensair_dask.prequential.scorecard import Block, cut

__all__ = ["Prequential"]

logger = logging.getLogger(__name__)

# Labels without a prediction, and none with one: that is said then.
_UNMATCHED = 20

# Attributes, here and in what is held, that are what it was made with.
_NO_STATE = ("_lock", "_new", "_parameters", "_reader", "delay")


class Prequential:
    """Score predictions along a stream, each before its record is learned.

    Parameters
    ----------
    metrics
        Metrics of river, for a classification or for a regression: one, a list or a sum
        of them, or a dict from name to metric. What is given stays as it is; fresh
        ones are made for every horizon and baseline.
    window
        Score also the newest so many records.
    fading
        Score also with a fading factor: a record counts so much if the next one counts
        1. 0.999 looks back about 1,000 records.
    delay
        `add` simulates labels that come so much later than their records: a whole
        number of records, or a time (``"2h"``, a timedelta, seconds as a float). They
        are scored, and known to the baselines, no earlier.
    baselines
        What is scored beside the model: ``"majority"`` guesses the label that came most
        often so far, and the shares of the labels as probabilities, ``"last label"``
        the label that came last, ``"mean"`` the mean of the labels. None for the last
        label with the majority, or with the mean if it is a regression.
    pending
        Predictions that may wait for their labels. Beyond, the oldest are forgotten,
        and counted.
    points
        Rows that are kept for `curve`.

    Attributes
    ----------
    records
        Predictions of the model that were scored.
    unmatched
        Labels that were brought and had no prediction that waits (any more).

    Raises
    ------
    ConfigurationError
        If something is not allowed: the message says what is.

    Notes
    -----
    A baseline guesses for one record after the other, also within a mini-batch, and
    knows the labels that had come before that record: the last label is what is called
    persistence. A model that predicts a mini-batch at once knows less, and is shown as
    what it is; see ``together`` of `add` for baselines that know as little. A baseline
    is scored from the first record on for which it knows a label.

    The *whole stream* says how it went all in all; late in a long stream it hardly
    moves. The *window* forgets at once, the *fading factor* gradually, without keeping
    records. Where a binary classifier is scored in mini-batches of thousands,
    `BinaryPrequential` is many times faster, and its AUC is exact (that of river is
    read from ten thresholds).

    Metrics that only read a confusion matrix (accuracy, F1, kappa) share one. Give
    mini-batches rather than single records where it matters.

    May be pickled at any time, and read from another thread than the one that adds. For
    checkpoints there is `state_dict`, which holds plain values only.

    References
    ----------
    Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms",
    Machine Learning 90, 2013. Grzenda, Gomes and Bifet, "Delayed labelling evaluation
    for data streams", Data Mining and Knowledge Discovery 34, 2020.
    """

    def __init__(
        self,
        metrics: Any,
        *,
        window: int | None = None,
        fading: float | None = None,
        delay: Any = None,
        baselines: Iterable[str] | None = None,
        pending: int = 100_000,
        points: int = 1_000,
    ) -> None:
        chosen = Chosen(metrics)
        pending = whole("pending", pending, 1, 100_000)
        points = whole("points", points, 2, 1_000)
        window = horizons.as_window(window)
        fading = horizons.as_fading(fading)
        names = _baselines(baselines, chosen.regression)
        self.window = window
        self.fading = fading
        self.delay = None if delay is None else Delay.of(delay)
        if self.delay and not self.delay.in_time and self.delay.amount > pending:
            raise ConfigurationError(
                f"delay={delay!r} records was given, and pending={pending} of them may "
                f"wait; give pending={delay} or more."
            )
        self._names = [MODEL, *names]
        self._metrics = chosen.names
        self._parameters = {
            "metrics": chosen.describe(),
            "window": window,
            "fading": fading,
            "delay": self.delay and (self.delay.amount, self.delay.in_time),
            "baselines": names,
            "pending": pending,
            "points": points,
        }
        self._reader = Reader(chosen.regression, chosen.takes_chances, chosen.bounded)
        self._baselines = Baselines(names, chosen.takes_chances, pending)
        self._horizons = horizons.build(chosen, len(self._names), window, fading)
        self._columns = [
            (metric, horizon.name, whose)
            for metric in self._metrics
            for horizon in self._horizons
            for whose in self._names
        ]
        self._curve = Thinning(len(self._columns), points)
        # With them whether the baselines learn the labels by themselves.
        self._by_key: ByKey[tuple[Block, list[float] | None, bool]] = ByKey(pending)
        self._simulated: UntilDue[Block] = UntilDue(pending)
        self._now = -math.inf
        self._come = 0
        self._lateness = (0.0, 0)
        self._lock = threading.RLock()
        self.records = 0
        self.unmatched = 0

    # ---- labels that are there ----------------------------------------------------

    def add(
        self, y_true: Any, y_pred: Any, *, time: Any = None, together: bool = False
    ) -> None:
        """Score predictions whose labels are there (or come after the delay).

        Parameters
        ----------
        y_true
            The label of a record, or a sequence of shape (records,).
        y_pred
            What was predicted: as many labels, or numbers for a regression. If some
            metric takes probabilities: the probability of the label True, or a dict
            from label to probability, for each record; or for classes 0, 1, 2 ... an
            array of shape (records, classes). None for a record that the model did not
            predict: the baselines learn its label, and nothing is scored.
        time
            When the records came, one time for all or one for each: seconds or dates.
            Needed for a delay in time.
        together
            Whether the baselines guess a mini-batch at once, before any of its labels
            is known, as a model does that predicts it at once; False for one record
            after the other, each knowing the labels that had come before it. It
            matters to the baselines only.

        Raises
        ------
        ShapeError
            If the lengths differ, or there is no record.
        DtypeError
            If something is no label, no number or no probability.
        NonFiniteError
            If something is NaN or infinite. Nothing of the mini-batch is then scored.
        """
        with self._lock:
            target, _ = self._reader.labels(y_true)
            count = len(target)
            if y_pred is None or (isinstance(y_pred, dict) and not y_pred):
                labels, chances = None, None
            else:
                labels, chances, _ = self._reader.predictions(y_pred, count)
            times = self._times(time, count)
            later = None if self.delay is None else self.delay.amount
            one_number = chances is None or not isinstance(chances[0], dict)
            guesses = self._guess(target, one_number, times, later, together)
            self._add(target, self._predicted(labels, chances, count), guesses, times)

    def _times(self, time: Any, count: int) -> list[float]:
        """When each record came, on the clock of the delay."""
        if self.delay is None or not self.delay.in_time:
            return [float(self._come + at) for at in range(count)]
        if time is None:
            raise ConfigurationError(
                "The delay is a time, so each record needs its own: give "
                "add(..., time=...), or the delay in records, for example delay=500."
            )
        return as_seconds(time, count)

    def _guess(
        self,
        target: list[Any],
        one_number: bool,
        times: list[float],
        later: float | None,
        together: bool = False,
    ) -> Block:
        """What the baselines guess for records; they learn the labels when these come.

        Parameters
        ----------
        target
            The labels.
        one_number
            Whether a probability is that of True alone.
        times, later
            When each record came, and how much later its label; None for at once.
        together
            As in `add`.
        """
        baselines = self._baselines
        if not together and later is None:
            return [*baselines.follow(target, one_number)]
        if not together:
            return [*baselines.follow_late(target, one_number, times, later or 0.0)]
        if later is not None:
            baselines.come(max(times))
        guesses: Block = [*baselines.guess(len(target), one_number)]
        if later is None:
            baselines.learn(target)
        else:
            baselines.expect(target, [time + later for time in times])
        return guesses

    def _predicted(
        self, labels: list[Any] | None, chances: list[Any] | None, count: int
    ) -> Block:
        """Columns of what the model predicted; of None if it did not."""
        if not self._reader.with_chances:
            return [labels if labels is not None else [None] * count]
        if labels is None or chances is None:
            return [[None] * count, [None] * count]
        return [labels, chances]

    def _add(
        self, target: list[Any], predicted: Block, guesses: Block, times: list[float]
    ) -> None:
        count = len(target)
        self._come += count
        if self.delay is not None:
            self._now = max(self._now, *times)
            self._arrive(self._now)
        block: Block = [target, *predicted, *guesses]
        if self.delay is None:
            self._settle(block)
            return
        before = self._simulated.forgotten
        come = []  # with the mini-batch: these do not wait, and need no room
        for at, time in enumerate(times):
            due = time + self.delay.amount
            if due <= self._now:
                come.append((due, at))
            else:
                self._simulated.put(due, 1, cut(block, at, at + 1))
        self._warn(self._simulated.forgotten - before, self._simulated.forgotten)
        if come:
            self._settle([[column[at] for _, at in sorted(come)] for column in block])

    def _arrive(self, now: float) -> int:
        """Score what has its label by now."""
        due = self._simulated.take(now)
        if due:
            columns = zip(*due, strict=True)
            block: Block = [[part[0] for part in column] for column in columns]
            self._settle(block)
        return len(due)

    def flush(self) -> int:
        """Let all labels come that the delay holds back, as at the end of a stream.

        Returns
        -------
        records
            How many.
        """
        with self._lock:
            self._baselines.come(math.inf)
            return self._arrive(math.inf)

    # ---- labels that come later ---------------------------------------------------

    def predicted(self, y_pred: Any, key: Any, *, time: Any = None) -> None:
        """Keep predictions until their labels come.

        Parameters
        ----------
        y_pred
            As in `add`.
        key
            By which `labelled` finds them: anything hashable; or for several records a
            list or an array with a key for each.
        time
            When they were made, for `lateness`.

        Raises
        ------
        BatchError
            If a prediction with that key waits already, or a key is not hashable;
            besides, the errors of `add`.
        """
        if self.delay is not None:
            raise ConfigurationError(
                "With delay= the labels come by themselves: use add(y_true, y_pred). "
                "To bring labels when they come, leave delay= out."
            )
        with self._lock:
            labels, chances, _ = self._reader.predictions(y_pred)
            count = len(labels)
            keys = _keys(key, count)
            if keys is not None and len(set(keys)) < count:
                raise BatchError(
                    "The same key is given twice; give each prediction its own."
                )
            for one in [key] if keys is None else keys:
                self._by_key.check_new(one)
            times = None if time is None else as_seconds(time, count)
            one_number = chances is None or not isinstance(chances[0], dict)
            block = [
                *self._predicted(labels, chances, count),
                *self._baselines.guess(count, one_number),
            ]
            before = self._by_key.forgotten
            self._come += count
            if keys is None:
                self._by_key.put(key, count, (block, times, False))
            else:
                for at, one in enumerate(keys):
                    part = None if times is None else times[at : at + 1]
                    self._by_key.put(one, 1, (cut(block, at, at + 1), part, False))
            self._warn(self._by_key.forgotten - before, self._by_key.forgotten)

    def foreseen(
        self, y_true: Any, y_pred: Any, key: Any, times: list[float], later: float
    ) -> None:
        """As `predicted`, where it is known already which labels will come, and when.

        For who simulates that labels come late: the baselines then guess for one record
        after the other, each with the labels that come before it.

        Parameters
        ----------
        y_true
            Labels, which `labelled` will bring.
        y_pred, key
            As in `predicted`, with one key. None for a mini-batch that the model did
            not predict: the baselines learn its labels when they come.
        times
            When each record came.
        later
            How much later its label comes.
        """
        with self._lock:
            target, _ = self._reader.labels(y_true)
            count = len(target)
            labels = chances = None
            if y_pred is not None:
                labels, chances, _ = self._reader.predictions(y_pred, count)
                self._by_key.check_new(key)
            one_number = chances is None or not isinstance(chances[0], dict)
            guesses = self._guess(target, one_number, times, later)
            if labels is None:
                return
            before = self._by_key.forgotten
            self._come += count
            block = [*self._predicted(labels, chances, count), *guesses]
            self._by_key.put(key, count, (block, None, True))
            self._warn(self._by_key.forgotten - before, self._by_key.forgotten)

    def labelled(self, key: Any, y_true: Any, *, time: Any = None) -> int:
        """Score predictions whose labels have come.

        Parameters
        ----------
        key
            As given to `predicted`. One that is unknown, or forgotten, is counted in
            `unmatched`; the baselines learn its label all the same.
        y_true
            As in `add`: as many labels as were predicted.
        time
            When the labels came, for `lateness`.

        Returns
        -------
        records
            How many were scored.
        """
        with self._lock:
            target, _ = self._reader.labels(y_true)
            count = len(target)
            keys = _keys(key, count)
            found = []
            known: list[Any] = []
            if keys is None:
                kept = self._by_key.peek(key)
                if kept is not None and len(kept[0][0]) != count:
                    raise ShapeError(
                        f"{len(kept[0][0])} predictions wait with key={key!r}, and "
                        f"y_true has {count} labels; give one for each."
                    )
            times = None if time is None else as_seconds(time, count)
            if keys is None:
                kept = self._by_key.take(key)
                if kept is not None:
                    found, known = [kept], target
            else:
                for one, label in zip(keys, target, strict=True):
                    kept = self._by_key.take(one)
                    if kept is not None:
                        found.append(kept)
                        known.append(label)
            before = self.unmatched
            self.unmatched += count - len(known)
            if before < _UNMATCHED <= self.unmatched and not self.records:
                self._warn_of_no_match(key)
            if found:
                self._measure(found, times if len(known) == count else None)
                columns = [
                    [value for part, *_ in found for value in part[at]]
                    for at in range(self._width)
                ]
                self._score([known, *columns])
            if not any(knows for _, _, knows in found):
                self._baselines.learn(target)
            return len(known)

    @property
    def touched(self) -> bool:
        """Whether it was given any prediction, or any label."""
        return bool(self._come or self.records or self.unmatched)

    @property
    def waiting(self) -> int:
        """Predictions that wait for their labels."""
        return self._by_key.waiting + self._simulated.waiting

    @property
    def forgotten(self) -> int:
        """Predictions that were dropped while they waited, beyond ``pending``."""
        return self._by_key.forgotten + self._simulated.forgotten

    @property
    def lateness(self) -> float:
        """Mean seconds from a prediction to its label; NaN if no times were given."""
        total, count = self._lateness
        return total / count if count else float("nan")

    def _measure(self, found: list[Any], times: list[float] | None) -> None:
        asked = [kept for _, kept, _ in found]
        if times is None or None in asked:
            return
        total, count = self._lateness
        made = [at for kept in asked for at in kept]
        self._lateness = (total + sum(times) - sum(made), count + len(made))

    def _warn_of_no_match(self, key: Any) -> None:
        waiting = self.waiting
        if waiting:
            logger.warning(
                "None of %d labels had a key for which a prediction waits, and %d "
                "predictions wait. The last key was %.80r. Give predicted(y_pred, key) "
                "and labelled(key, y_true) the same keys; mind the order of their "
                "arguments.",
                self.unmatched,
                waiting,
                key,
            )

    def _warn(self, gone: int, total: int) -> None:
        if gone and gone == total:
            logger.warning(
                "More than %d predictions wait for their labels; the oldest are "
                "forgotten (see .forgotten, or give a larger pending=)",
                self._by_key.most,
            )

    # ---- scoring ------------------------------------------------------------------

    @property
    def _width(self) -> int:
        """Columns of a block besides the labels."""
        return len(self._names) * (2 if self._reader.with_chances else 1)

    def _settle(self, block: Block) -> None:
        """Score what the model has predicted."""
        if None in block[1]:
            made = [at for at, label in enumerate(block[1]) if label is not None]
            block = [[column[at] for at in made] for column in block]
        self._score(block)

    def _score(self, block: Block) -> None:
        curve = self._curve
        count = len(block[0])
        start = 0
        while start < count:
            stop = min(count, start + curve.room(self.records))
            piece = cut(block, start, stop)
            for horizon in self._horizons:
                horizon.take(piece)
            self.records += stop - start
            if curve.due(self.records):
                curve.add(self._row())
            start = stop

    # ---- reading ------------------------------------------------------------------

    def _row(self) -> list[float]:
        """All values, in the order of the columns of the curve."""
        values = [horizon.values() for horizon in self._horizons]
        return [
            values[place][who][metric]
            for metric in range(len(self._metrics))
            for place in range(len(self._horizons))
            for who in range(len(self._names))
        ]

    def get(self) -> dict[str, dict[str, dict[str, float]]]:
        """Read the scores now.

        Returns
        -------
        scores
            By whose they are (``"model"``, ``"majority"``, ``"last label"``), the
            name of the metric, and the horizon (``"whole"``, ``"window"``,
            ``"fading"``); NaN while there is none.
        """
        with self._lock:
            row = self._row()
        scores: dict[str, dict[str, dict[str, float]]]
        scores = {whose: {name: {} for name in self._metrics} for whose in self._names}
        for (metric, horizon, whose), value in zip(self._columns, row, strict=True):
            scores[whose][metric][horizon] = value
        return scores

    def frame(self) -> pd.DataFrame:
        """Read the scores now: a row each for model and baselines.

        Returns
        -------
        frame
            Columns are pairs: the metric and the horizon.
        """
        scores = self.get()
        columns = pd.MultiIndex.from_product(
            [self._metrics, [horizon.name for horizon in self._horizons]],
            names=["metric", "horizon"],
        )
        rows = [
            [scores[name][metric][horizon] for metric, horizon in columns]
            for name in self._names
        ]
        return pd.DataFrame(rows, index=self._names, columns=columns)

    def curve(self, every: int | None = None) -> pd.DataFrame:
        """Read the scores along the stream, in bounded memory.

        Parameters
        ----------
        every
            Records between two rows, rounded up to a multiple of the distance that is
            kept: that of ``points`` rows over the stream, at least `thinning.FINEST`.
            None for all that are kept.

        Returns
        -------
        frame
            The index is the number of records scored; the last row is now. Columns are
            triples: the metric, the horizon, and whose it is. One horizon of it,
            ``curve().xs("window", axis=1, level="horizon")``, has the columns of
            ``BinaryPrequential.curves()``.
        """
        if every is not None:
            every = whole("every", every, 1, 100)
        with self._lock:
            records, rows = self._curve.rows(every)
            index = [*records.tolist()]
            values = rows.tolist()
            if self.records and (not index or index[-1] != self.records):
                index.append(self.records)
                values.append(self._row())
        columns = pd.MultiIndex.from_tuples(
            self._columns, names=["metric", "horizon", "whose"]
        )
        return pd.DataFrame(
            values, index=pd.Index(index, name="records", dtype=int), columns=columns
        )

    def __repr__(self) -> str:
        counted = [f"{self.records:,} records"]
        words = ("waiting", "forgotten", "unmatched")
        counted += [f"{number:,} {w}" for w in words if (number := getattr(self, w))]
        return f"<Prequential: {', '.join(counted)}>\n{self._shown().to_string()}"

    def _repr_html_(self) -> str:
        head, _, _ = repr(self).partition("\n")
        return f"<p>{head.strip('<>')}</p>{self._shown().to_html()}"

    def _shown(self) -> pd.DataFrame:
        """The scores in figures that can be read."""
        frame = self.frame()
        said = {
            horizons.WINDOW: f"last {self.window:,}" if self.window else "",
            horizons.FADING: f"fading {self.fading:g}" if self.fading else "",
        }
        frame = frame.rename(columns=said, level="horizon").rename_axis(
            columns=[None, None]
        )
        return frame.apply(lambda column: column.map("{:.4g}".format))

    # ---- travelling ---------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Copy the state as plain values, for a checkpoint.

        Raises
        ------
        CheckpointError
            If a metric, or a key that was given to `predicted`, cannot be saved as
            plain values: the message names it.

        Notes
        -----
        With a window of 10,000 records this takes some milliseconds, for which other
        threads wait that want to add.
        """
        with self._lock:
            try:
                values = plain_state.take(self, _NO_STATE)
            except CheckpointError:
                self._name_the_metric()
                raise
            successors = [horizon.has_successor for horizon in self._horizons]
            state = {"values": values, "successors": successors}
            return plain_state.describe(self, self._parameters, state)

    def _name_the_metric(self) -> None:
        """Raise for the metric that cannot be saved as plain values, if it is one."""
        for horizon in self._horizons:
            for name, metric in horizon.metrics(self._metrics):
                plain_state.take(metric, where=f"The metric {name!r}")

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where that was of which this is the `state_dict`.

        Raises
        ------
        CheckpointError
            If it is one of other metrics or of other parameters; this one is then as
            it was.
        """
        with self._lock:
            found = plain_state.check(self, self._parameters, state)
            new = copy.deepcopy(self)
            horizons.prepare(new._horizons, found["successors"])
            plain_state.put(new, found["values"])
            changed = {name: v for name, v in vars(new).items() if name != "_lock"}
            self.__dict__.update(changed)

    def __getstate__(self) -> dict[str, Any]:
        # A copy, since what is pickled afterwards must not change meanwhile.
        with self._lock:
            state = {name: v for name, v in self.__dict__.items() if name != "_lock"}
            return copy.deepcopy(state)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._lock = threading.RLock()


def _keys(key: Any, count: int) -> list[Any] | None:
    """Keys of several records; None if there is one for all of them."""
    keys = key.tolist() if hasattr(key, "tolist") else key
    if not isinstance(keys, list):
        _check_key(key)
        return None
    for one in keys:
        _check_key(one)
    if len(keys) != count:
        raise ShapeError(
            f"key has {len(keys)} values for {count} records; give one for each of "
            "them, or one (not in a list) for all."
        )
    return keys


def _check_key(key: Any) -> None:
    try:
        hash(key)
    except TypeError as error:
        raise BatchError(
            f"The key {shown(key)} is a {type(key).__name__}, by which nothing can be "
            "found; give a number, text, or a tuple of such."
        ) from error


def _baselines(given: Iterable[str] | None, regression: bool) -> list[str]:
    if given is None:
        return [MEAN if regression else MAJORITY, LAST_LABEL]
    allowed = [name for name, (_, kinds) in BASELINES.items() if regression in kinds]
    names = [given] if isinstance(given, str) else list(given)
    if set(names) - set(allowed) or len(set(names)) < len(names):
        kind = "regression" if regression else "classification"
        raise ConfigurationError(
            f"baselines={names!r} was given; for a {kind} these are allowed, each "
            f"once: {', '.join(map(repr, allowed))}."
        )
    return names
