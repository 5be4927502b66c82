"""Guesses that need no model: what a score has to be compared with."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

from tensair_dask.prequential.delayed_labels import UntilDue

__all__ = [
    "BASELINES",
    "LAST_LABEL",
    "MAJORITY",
    "MEAN",
    "MODEL",
    "Baselines",
    "LastLabel",
    "Majority",
    "MeanSoFar",
]

MODEL = "model"
MAJORITY = "majority"
LAST_LABEL = "last label"
MEAN = "mean"


class Majority:
    """Guess the label that came most often so far; of equals, the one that came first.

    Its probabilities are the shares of the labels so far.
    """

    def __init__(self) -> None:
        # In the order in which they first came: label to (times, number in that order).
        self._counts: Counter[Hashable] = Counter()
        self._order: dict[Hashable, int] = {}
        self._most: Hashable = None

    def learn(self, labels: Sequence[Hashable]) -> None:
        """Take in labels that have arrived, in their order."""
        new = Counter(labels) if len(labels) > 1 else {labels[0]: 1}
        counts, order = self._counts, self._order
        for label, times in new.items():
            order.setdefault(label, len(order))
            counts[label] += times
            if label == self._most or self._most is None:
                self._most = label
                continue
            lead = counts[label] - counts[self._most]
            if lead > 0 or (not lead and order[label] < order[self._most]):
                self._most = label

    def guess(self) -> Hashable:
        """Guess the next label; None before the first."""
        return self._most

    def chances(self, one_number: bool) -> Any:
        """Probabilities of the labels, or of True alone; None before the first."""
        if not self._order:
            return None
        total = self._counts.total()
        if one_number:
            return self._counts[True] / total if True in self._counts else 0.0
        return {label: times / total for label, times in self._counts.items()}


class LastLabel:
    """Guess the label that arrived last, as if it were certain."""

    def __init__(self) -> None:
        self._last: Any = None

    def learn(self, labels: Sequence[Any]) -> None:
        """Take in labels that have arrived, in their order."""
        self._last = labels[-1]

    def guess(self) -> Any:
        """Guess the next label; None before the first."""
        return self._last

    def chances(self, one_number: bool) -> Any:
        """Give the last label all probability; None before the first."""
        if self._last is None:
            return None
        return float(self._last == True) if one_number else {self._last: 1.0}  # noqa: E712


class MeanSoFar:
    """Guess the mean of the labels so far: what is constant, for a regression."""

    def __init__(self) -> None:
        self._mean = 0.0
        self._count = 0

    def learn(self, labels: Sequence[float]) -> None:
        """Take in labels that have arrived."""
        self._count += len(labels)
        mean = sum(labels) / len(labels)
        self._mean += (mean - self._mean) * len(labels) / self._count

    def guess(self) -> float | None:
        """Guess the next label; None before the first."""
        return self._mean if self._count else None

    def chances(self, one_number: bool) -> None:
        """A regression has no probabilities."""
        return None


# By name, and whether for labels that are numbers (True) or classes (False).
BASELINES: dict[str, tuple[type, tuple[bool, ...]]] = {
    MAJORITY: (Majority, (False,)),
    LAST_LABEL: (LastLabel, (False, True)),
    MEAN: (MeanSoFar, (True,)),
}


class Baselines:
    """All that guess beside a model, from the labels that had come when they guess.

    Parameters
    ----------
    names
        Of `BASELINES`.
    with_chances
        Whether probabilities are asked for besides labels.
    most
        Labels that may be on their way.
    """

    def __init__(self, names: Sequence[str], with_chances: bool, most: int) -> None:
        self._all = [BASELINES[name][0]() for name in names]
        self._with_chances = with_chances
        # Labels that have not come, by when they come.
        self._coming: UntilDue[Any] = UntilDue(most)
        self._now = -math.inf

    def learn(self, labels: Sequence[Any]) -> None:
        """Take in labels that have come, in their order."""
        for one in self._all:
            one.learn(labels)

    def guess(self, count: int, one_number: bool) -> list[list[Any]]:
        """Guess for records at once, all with what is known now: columns of a block."""
        columns = []
        for one in self._all:
            columns.append([one.guess()] * count)
            if self._with_chances:
                columns.append([one.chances(one_number)] * count)
        return columns

    def follow(self, labels: Sequence[Any], one_number: bool) -> list[list[Any]]:
        """Guess for records one by one; the label of each comes before the next.

        Parameters
        ----------
        labels
            Of the records.
        one_number
            Whether a probability is that of True alone.

        Returns
        -------
        columns
            As of `guess`.
        """
        rows = []
        for label in labels:
            rows.append(self._row(one_number))
            self.learn([label])
        return [list(column) for column in zip(*rows, strict=True)]

    def follow_late(
        self,
        labels: Sequence[Any],
        one_number: bool,
        times: Sequence[float],
        later: float,
    ) -> list[list[Any]]:
        """As `follow`, where labels come so much later than their records."""
        rows = []
        for label, time in zip(labels, times, strict=True):
            self.come(time)
            rows.append(self._row(one_number))
            self.expect([label], [time + later])
        return [list(column) for column in zip(*rows, strict=True)]

    def expect(self, labels: Sequence[Any], due: Sequence[float]) -> None:
        """Take note of labels that will come, and of when; learn those that have."""
        come = []
        for number, (label, moment) in enumerate(zip(labels, due, strict=True)):
            if moment <= self._now:
                come.append((moment, number))
            else:
                self._coming.put(moment, 1, label)
        if come:
            self.learn([labels[number] for _, number in sorted(come)])

    def come(self, now: float) -> None:
        """Learn the labels that have come by now; time does not run backwards."""
        self._now = max(self._now, now)
        if come := self._coming.take(self._now):
            self.learn(come)

    def _row(self, one_number: bool) -> list[Any]:
        """What each guesses for one record."""
        if not self._with_chances:
            return [one.guess() for one in self._all]
        return [
            value
            for one in self._all
            for value in (one.guess(), one.chances(one_number))
        ]
