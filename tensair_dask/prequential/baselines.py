"""Guesses that need no model: what a score has to be compared with."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from typing import Any

__all__ = [
    "BASELINES",
    "LAST_LABEL",
    "MAJORITY",
    "MEAN",
    "MODEL",
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
