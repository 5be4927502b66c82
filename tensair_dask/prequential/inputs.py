"""What is given as labels and predictions, checked and made Python's own values.

river's metrics take one record at a time, and Python's numbers are what they are
fastest with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from tensair_dask.errors import BatchError, DtypeError, NonFiniteError, ShapeError

__all__ = ["Reader", "as_seconds"]

# Probabilities are often float32, whose sums go a little beyond 1.
_SLACK = 1e-6


class Reader:
    """Reads labels and predictions for one set of metrics.

    Parameters
    ----------
    regression
        Whether labels are numbers; else they are classes.
    chances
        Whether some of the metrics take probabilities: what the model predicts is
        then read as such.
    bounded
        Whether these have to lie between 0 and 1.
    """

    def __init__(self, regression: bool, chances: bool, bounded: bool) -> None:
        self.regression = regression
        self.with_chances = chances
        self._bounded = bounded

    def labels(self, values: Any, name: str = "y_true") -> tuple[list[Any], bool]:
        """Read labels.

        Returns
        -------
        labels, single
            Whether it was one record, given without an axis.

        Raises
        ------
        ShapeError, DtypeError, NonFiniteError
            If there is none, or what is given is no label.
        """
        given, single = _read(values, name)
        self._check_labels(given, name)
        return (given.tolist() if isinstance(given, np.ndarray) else given), single

    def predictions(
        self, values: Any, count: int | None = None
    ) -> tuple[list[Any], list[Any] | None, bool]:
        """Read what a model predicted.

        Parameters
        ----------
        values
            Of one record: a label or a number; a probability (of the label True) or a
            dict from label to probability. Of several: a sequence of these, or an array
            of shape (records,), or of shape (records, classes) with the score of each
            class.
        count
            How many records there are labels for; None if that is not known yet.

        Returns
        -------
        labels, chances, single
            The second is None unless some metric takes probabilities.
        """
        _check_one_output(values)
        given, single = _read(values, "y_pred", classes=not self.regression)
        if count is not None and len(given) != count:
            raise ShapeError(
                f"y_true has {count} records and y_pred has {len(given)}; give one "
                "prediction for each label."
            )
        if isinstance(given, np.ndarray) and given.ndim == 2:
            return *self._from_scores(given), single
        if isinstance(given[0], Mapping):
            return *self._from_dicts(given), single
        if not self.with_chances:
            self._check_labels(given, "y_pred", _NO_LABEL)
            if isinstance(given, np.ndarray):
                given = given.tolist()
            return given, None, single
        self._check_chances(given)
        chances = given.tolist() if isinstance(given, np.ndarray) else list(given)
        return [chance > 0.5 for chance in chances], chances, single

    def _from_scores(self, scores: np.ndarray) -> tuple[list[Any], list[Any] | None]:
        _check_finite(scores, "y_pred")
        labels = scores.argmax(1).tolist()
        if not self.with_chances:
            return labels, None
        self._check_chances(scores)
        return labels, [dict(enumerate(row)) for row in scores.tolist()]

    def _from_dicts(self, given: Any) -> tuple[list[Any], list[Any] | None]:
        for one in given:
            if not isinstance(one, Mapping) or not one:
                raise DtypeError(
                    f"y_pred holds {one!r} among dicts of probabilities; give a dict "
                    "from label to probability for each record."
                )
            if self.regression:
                raise DtypeError(
                    "y_pred is a dict, and the metrics are those of a regression; give "
                    "a number for each record."
                )
            self._check_chances(list(one.values()))
        labels = [max(one, key=one.__getitem__) for one in given]
        return labels, [dict(one) for one in given] if self.with_chances else None

    def _check_labels(self, given: Any, name: str, hint: str = "") -> None:
        if not isinstance(given, np.ndarray):
            for value in given:
                self._check_label(value, name, hint)
            return
        if given.ndim > 1:
            raise ShapeError(
                f"{name} has shape {given.shape}; one label for each record is "
                f"allowed, shape ({len(given)},)."
            )
        if given.dtype.kind in "bi" or (given.dtype.kind in "uU"):
            if given.dtype.kind == "U" and self.regression:
                self._check_label(given[0].item(), name, hint)
            return
        if given.dtype.kind == "f":
            _check_finite(given, name)
            if not self.regression and (broken := given % 1 != 0).any():
                self._check_label(given[broken][0].item(), name, hint)
            return
        raise DtypeError(f"{name} has dtype {given.dtype}; {self._allowed}.")

    def _check_label(self, value: Any, name: str, hint: str) -> None:
        kind = type(value)
        if kind is int or kind is bool or (kind is str and not self.regression):
            return
        if kind is float:
            if not math.isfinite(value):
                raise NonFiniteError(_NOT_FINITE.format(name=name, value=value))
            if self.regression or value % 1 == 0:
                return
        raise DtypeError(f"{name} holds {value!r}; {self._allowed}.{hint}")

    @property
    def _allowed(self) -> str:
        if self.regression:
            return "the metrics are those of a regression, which take finite numbers"
        return (
            "the metrics are those of a classification, which take labels: whole "
            "numbers, booleans or strings"
        )

    def _check_chances(self, given: Any) -> None:
        try:
            values = np.asarray(given, dtype=float)
        except (TypeError, ValueError) as error:
            raise DtypeError(
                f"y_pred holds what is no probability ({error}); some of the metrics "
                "take probabilities: give that of the label True, or a dict from label "
                "to probability, for each record."
            ) from error
        _check_finite(values, "y_pred")
        if self._bounded and not (
            values.min() >= -_SLACK and values.max() <= 1 + _SLACK
        ):
            raise BatchError(
                f"y_pred goes from {values.min():g} to {values.max():g}, and some of "
                "the metrics take probabilities, from 0 to 1. Put scores through the "
                "logistic function or softmax first"
                " (in predict_then_train by decide=, for example decide=lambda logits: "
                "1 / (1 + numpy.exp(-logits)))."
            )


_NO_LABEL = (
    " One logit or probability for each record, as BCEWithLogitsLoss takes it, is no "
    "label: say above what it is class 1, y_pred > 0 for logits, y_pred > 0.5 for "
    "probabilities (in predict_then_train decide=lambda output: output > 0)."
    " For probabilities, give a metric that takes them as well (LogLoss, ROCAUC), or "
    "a dict from label to probability for each record."
)
_NOT_FINITE = "{name} holds {value}; labels and predictions must be finite."


def _read(
    values: Any, name: str, classes: bool = False
) -> tuple[np.ndarray | list[Any], bool]:
    """Make a list or an array of what is given; whether it was one value."""
    kind = type(values)
    if kind is float or kind is int or kind is bool or kind is str:
        return [values], True
    if hasattr(values, "detach"):  # a torch tensor, told without importing torch
        values = values.detach().cpu().numpy()
    if isinstance(values, np.generic):
        return [values.item()], True
    if values is None or isinstance(values, (Mapping, bytes)):
        if isinstance(values, Mapping) and name == "y_pred":
            return [values], True
        raise DtypeError(
            f"{name} is {'None' if values is None else type(values).__name__}; give a "
            "value, or a list or an array of one for each record."
        )
    if isinstance(values, (list, tuple)):
        given: Any = [
            value.item() if hasattr(value, "item") and not _shape(value) else value
            for value in values
        ]
        if given and (isinstance(given[0], (list, tuple)) or _shape(given[0])):
            given = _array(given, name)
    else:
        given = _array(values, name)
        if given.ndim == 0:
            return [given.item()], True
        if given.dtype == object:
            given = given.tolist()
    if isinstance(given, np.ndarray):
        if given.ndim == 2 and given.shape[1] == 1:
            given = given[:, 0]
        if given.ndim > (2 if classes else 1):
            raise ShapeError(
                f"{name} has shape {given.shape}; a value for each record is allowed, "
                f"shape ({len(given)},)"
                + (f", or ({len(given)}, classes)." if classes else ".")
            )
    if not len(given):
        raise ShapeError(f"{name} is empty; at least 1 record is needed.")
    return given, False


def _check_one_output(values: Any) -> None:
    """Refuse what models return that have several outputs.

    A dict would be read as the probabilities of one record, of which the names of the
    outputs are the labels.
    """
    if isinstance(values, Mapping):
        several = [name for name, value in values.items() if _shape(value)]
        choice = f"y_pred[{several[0]!r}]" if several else ""
    elif isinstance(values, tuple) and len({_shape(each) for each in values}) > 1:
        several, choice = list(values), "y_pred[0]"
    else:
        return
    if several:
        raise DtypeError(
            f"y_pred is a {type(values).__name__} of several outputs; the labels, "
            f"numbers or probabilities of one of them are needed: give {choice}, or "
            "what is decided by it."
        )


def _shape(value: Any) -> tuple[int, ...]:
    return getattr(value, "shape", ())


def _array(values: Any, name: str) -> np.ndarray:
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ShapeError(f"{name} cannot be made an array: {error}.") from error
    if array.ndim == 0 and array.dtype == object:
        raise DtypeError(
            f"{name} is a {type(values).__name__}; give a value, or a list or an array "
            "of one for each record."
        )
    return array


def _check_finite(values: np.ndarray, name: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        value = values[~np.isfinite(values)][0]
        raise NonFiniteError(_NOT_FINITE.format(name=name, value=value))


# In seconds since the epoch.
_YEAR_10000 = 253_402_300_800


def as_seconds(time: Any, count: int) -> list[float]:
    """Read the times of records.

    Parameters
    ----------
    time
        Of all of them, or of each: seconds, or dates of Python, numpy or pandas. Dates
        without a time zone are taken as UTC.
    count
        How many records there are.

    Returns
    -------
    seconds
        One for each record, since the epoch if dates are given.
    """
    if isinstance(time, (int, float)) and not isinstance(time, bool):
        seconds = [float(time)]
    else:
        array = np.asarray(time)
        if array.dtype.kind in "iuf":
            seconds = np.atleast_1d(array).astype(float).tolist()
        elif array.dtype.kind in "OM":
            seconds = _since_epoch([time] if array.ndim == 0 else time)
        else:
            raise _no_time(time)
    if not all(map(math.isfinite, seconds)):
        raise NonFiniteError(_NOT_FINITE.format(name="time", value=time))
    if max(map(abs, seconds), default=0) > _YEAR_10000:
        raise DtypeError(
            f"time={time!r} is in seconds a date behind the year 10000: perhaps it "
            "is in ms or ns. Give seconds, or a date: pandas.to_datetime(time, "
            'unit="ms"), as of Kafka and JavaScript, or unit="ns".'
        )
    if len(seconds) == 1:
        return seconds * count
    if len(seconds) != count:
        raise ShapeError(
            f"time has {len(seconds)} values for {count} records; give one for all of "
            "them, or one for each."
        )
    return seconds


def _since_epoch(dates: Any) -> list[float]:
    try:
        stamps = pd.DatetimeIndex(pd.to_datetime(dates, utc=True))
    except (TypeError, ValueError) as error:
        raise _no_time(dates) from error
    return ((stamps - pd.Timestamp(0, tz="UTC")) / pd.Timedelta("1s")).tolist()


def _no_time(time: Any) -> DtypeError:
    return DtypeError(
        f"time={time!r} is no time; give seconds, or a date of Python, numpy or pandas."
    )
