"""Scores of a binary classifier on a stream, vectorised."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from tensair_dask._common.checks import whole
from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import CheckpointError, ConfigurationError
from tensair_dask.prequential.baselines import LAST_LABEL, MAJORITY, MODEL

__all__ = [
    "BinaryPrequential",
    "Scores",
    "last_label",
    "majority_so_far",
    "share_so_far",
]

# Probabilities are float32: closer to 0 or 1 than this they cannot be distinguished.
_EPSILON = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Scores:
    """Scores of one set of predictions of a binary label.

    Attributes
    ----------
    records
        How many predictions were scored.
    accuracy
        Share of predictions on the right side of one half.
    log_loss
        Mean negative logarithm of the probability given to what came true, in nats;
        NaN for a guess that gives no probability.
    auc
        Area under the ROC curve; NaN while only one class has come.
    """

    records: int
    accuracy: float
    log_loss: float
    auc: float


class BinaryPrequential:
    """Score a binary classifier on a stream, overall and over a sliding window.

    Mini-batches are announced in the order of the stream, with their labels
    (`expect`), and scored in whatever order their predictions come back (`add`).
    The scores are those of the stream's own order, whichever replica was faster.

    Parameters
    ----------
    window
        Records in the sliding window.

    Notes
    -----
    Every label and prediction is kept, 9 bytes a record, so that the overall AUC is
    exact and the curves can be drawn at any resolution. On a stream without end,
    score it in pieces: a new `BinaryPrequential` every few hundred million records.

    The label is taken to be known at the moment at which the record is learned. Where
    labels come hours later than records, as arrivals do after departures, these
    scores are an upper bound.

    References
    ----------
    Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms",
    Machine Learning 90, 2013.
    """

    def __init__(self, window: int = 10_000) -> None:
        self.window = whole("window", window, 1, 10_000)
        self._ends: list[int] = []
        self._target = np.empty(1024, dtype=bool)
        # NaN marks a record whose prediction has not come (or never will).
        self._probability = np.full(1024, np.nan, dtype=np.float32)
        self._newest = 0
        self.records = 0

    def expect(self, target: np.ndarray) -> None:
        """Announce the next mini-batch of the stream by its labels.

        Parameters
        ----------
        target
            Shape (samples,): 0 or 1, or False or True.
        """
        target = np.asarray(target)
        start = self.expected
        end = start + len(target)
        if end > len(self._target):
            room = max(end, 2 * len(self._target))
            self._target = np.concatenate(
                [self._target, np.empty(room - len(self._target), dtype=bool)]
            )
            more = np.full(room - len(self._probability), np.nan, dtype=np.float32)
            self._probability = np.concatenate([self._probability, more])
        self._target[start:end] = target > 0.5
        self._ends.append(end)

    def add(self, index: int, probability: np.ndarray) -> None:
        """Score one mini-batch that `expect` has announced.

        Parameters
        ----------
        index
            Number of the mini-batch in the order in which they were announced, from
            0: the index of its report.
        probability
            Shape (samples,): the predicted probability of label 1. NaN where there is
            no prediction.
        """
        start = self._ends[index - 1] if index else 0
        end = self._ends[index]
        probability = np.asarray(probability, dtype=np.float32)
        if probability.shape != (end - start,):
            raise ConfigurationError(
                f"Mini-batch {index} was announced with {end - start} labels and has "
                f"predictions of shape {probability.shape}; give one probability for "
                f"each label, shape ({end - start},)."
            )
        before = np.isfinite(self._probability[start:end]).sum()
        self._probability[start:end] = probability
        self.records += int(np.isfinite(probability).sum() - before)
        self._newest = max(self._newest, end)

    @property
    def expected(self) -> int:
        """Records that were announced."""
        return self._ends[-1] if self._ends else 0

    def rewind(self, batches: int) -> None:
        """Forget all mini-batches but the first so many: they come again."""
        del self._ends[batches:]
        end = self.expected
        self._probability[end:] = np.nan
        self._newest = min(self._newest, end)
        self.records = int(np.isfinite(self._probability[:end]).sum())

    def overall(self, start: int = 0) -> Scores:
        """Score all predictions so far, of the record ``start`` and those after it."""
        return self._scores(min(start, self._newest), self._newest)

    def recent(self) -> Scores:
        """Score the newest ``window`` records of the stream."""
        return self._scores(max(0, self._newest - self.window), self._newest)

    def baselines(self) -> dict[str, Scores]:
        """Score what needs no model, on the records that the model was scored on.

        Returns
        -------
        name to scores
            ``"majority"`` guesses the label that was more frequent so far; its
            log loss is that of the share so far, taken as the probability.
            ``"last label"`` guesses the label of the previous record and gives
            no probability. Both know the past of the stream only.
        """
        scored, target = self._scored(0, self._newest)
        stream = self._target[: self._newest]
        majority = majority_so_far(stream)[scored]
        share = share_so_far(stream)[scored]
        previous = last_label(stream)[scored]
        return {
            MAJORITY: Scores(
                len(target),
                _mean(majority == target),
                _mean(_losses(target, share)),
                # A constant guess ranks nothing; the few first guesses are noise.
                _auc(target, np.zeros(len(target))),
            ),
            LAST_LABEL: Scores(
                len(target),
                _mean(previous == target),
                float("nan"),
                _auc(target, previous),
            ),
        }

    def curves(self, points: int = 300) -> pd.DataFrame:
        """Scores over the sliding window, along the stream.

        Parameters
        ----------
        points
            How many places of the stream to score at, evenly spread.

        Returns
        -------
        frame
            One row a place. The index is the number of records before it. Columns
            are pairs: the score (accuracy, AUC, log loss), and whose it is (model,
            majority, last label). While the stream is shorter than the
            window, the window is what there is.
        """
        total = self._newest
        stream = self._target[:total]
        scored, target = self._scored(0, total)
        positions = np.flatnonzero(scored)
        probability = self._probability[:total][scored]
        # The first places would show the noise of a handful of records.
        first = min(max(1, self.window // 10), total)
        stops = np.unique(np.linspace(first, total, num=points).astype(int))
        low = np.searchsorted(positions, np.maximum(stops - self.window, 0))
        high = np.searchsorted(positions, stops)

        def windowed(values: np.ndarray) -> np.ndarray:
            sums = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
            with np.errstate(invalid="ignore"):
                return (sums[high] - sums[low]) / (high - low)

        majority = majority_so_far(stream)[scored]
        share = share_so_far(stream)[scored]
        previous = last_label(stream)[scored]

        def ranked(values: np.ndarray) -> np.ndarray:
            windows = [slice(a, b) for a, b in zip(low, high, strict=True)]
            return np.array([_auc(target[rows], values[rows]) for rows in windows])

        columns = {
            ("accuracy", MODEL): windowed((probability > 0.5) == target),
            ("accuracy", MAJORITY): windowed(majority == target),
            ("accuracy", LAST_LABEL): windowed(previous == target),
            ("AUC", MODEL): ranked(probability),
            ("AUC", LAST_LABEL): ranked(previous),
            ("log loss", MODEL): windowed(_losses(target, probability)),
            ("log loss", MAJORITY): windowed(_losses(target, share)),
        }
        frame = pd.DataFrame(columns, index=pd.Index(stops, name="records"))
        return frame.dropna(how="all")

    def state_dict(self) -> dict[str, Any]:
        """Copy the state as numpy arrays and plain values: 9 bytes a record."""
        end = self.expected
        state = {
            "ends": np.array(self._ends, dtype=np.int64),
            "target": self._target[:end].copy(),
            "probability": self._probability[:end].copy(),
            "newest": self._newest,
            "records": self.records,
        }
        return plain_state.describe(self, {"window": self.window}, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where that was of which this is the `state_dict`.

        Raises
        ------
        CheckpointError
            If it has another window; this one is then as it was.
        """
        found = plain_state.check(self, {"window": self.window}, state)
        try:
            ends = found["ends"].tolist()
            target = np.array(found["target"], dtype=bool)
            probability = np.array(found["probability"], dtype=np.float32)
            newest, records = int(found["newest"]), int(found["records"])
            fits = target.shape == probability.shape == (ends[-1] if ends else 0,)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"The state is not that of a BinaryPrequential ({error!r}); give what "
                "its state_dict() has returned."
            ) from error
        if not fits:
            raise CheckpointError(
                f"The state has {len(target)} labels, {len(probability)} predictions "
                f"and mini-batches up to record {ends[-1:]}; these must be equal: give "
                "what BinaryPrequential.state_dict() has returned."
            )
        self._ends, self._target, self._probability = ends, target, probability
        self._newest, self.records = newest, records

    def _scored(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """Which records of a stretch have a prediction, and the labels of those."""
        scored = np.isfinite(self._probability[start:end])
        return scored, self._target[start:end][scored]

    def _scores(self, start: int, end: int) -> Scores:
        scored, target = self._scored(start, end)
        probability = self._probability[start:end][scored]
        return Scores(
            len(target),
            _mean((probability > 0.5) == target),
            _mean(_losses(target, probability)),
            _auc(target, probability),
        )


def majority_so_far(target: np.ndarray) -> np.ndarray:
    """Guess for each record the label that is more frequent before it (0 if equal)."""
    target = np.asarray(target, dtype=bool)
    ones = np.cumsum(target) - target
    return 2 * ones > np.arange(len(target))


def share_so_far(target: np.ndarray) -> np.ndarray:
    """Share of label 1 before each record, counting one record of each label extra."""
    target = np.asarray(target, dtype=bool)
    ones = np.cumsum(target) - target
    return (ones + 1) / (np.arange(len(target)) + 2)


def last_label(target: np.ndarray) -> np.ndarray:
    """Label of the record before each record; 0 before the first."""
    target = np.asarray(target, dtype=bool)
    return np.concatenate([[False], target[:-1]])[: len(target)]


def _losses(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
    """Negative logarithm of the probability given to what came true."""
    given = np.where(target, probability, 1.0 - probability.astype(np.float64))
    return -np.log(np.clip(given, _EPSILON, 1.0 - _EPSILON))


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _auc(target: np.ndarray, score: np.ndarray) -> float:
    """Area under the ROC curve from the ranks of the scores; ties share their rank."""
    positives = int(np.count_nonzero(target))
    negatives = len(target) - positives
    if not positives or not negatives:
        return float("nan")
    _, places, counts = np.unique(score, return_inverse=True, return_counts=True)
    ranks = np.cumsum(counts) - (counts - 1) / 2
    above = ranks[places][target].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))
