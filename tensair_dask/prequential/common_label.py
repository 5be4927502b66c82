"""Whether predicted labels can be those of the stream at all."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["CommonLabel"]

# So many records without a common label are no chance any more.
ENOUGH = 1_000

# Kinds of numpy's dtypes: texts, and numbers that may be labels.
_TEXTS, _NUMBERS = "UST", "iub"


class CommonLabel:
    """Looks at labels and predictions until one label is in both.

    Names of classes against their numbers, or numbers from 1 on against those from 0
    on, are scored as wrong throughout, and look like a model that learns nothing.

    Attributes
    ----------
    is_settled
        Whether nothing more has to be looked at.
    """

    def __init__(self) -> None:
        self.is_settled = False
        self._records = 0
        self._labels: set[Any] = set()
        self._guesses: set[Any] = set()

    def compare(self, labels: Any, guess: Any) -> str:
        """Look at some records; what is to be said of them, empty for nothing."""
        labels, guess = np.asarray(labels), np.asarray(guess)
        kinds = _kind(labels), _kind(guess)
        if "" in kinds or guess.shape != labels.shape:  # probabilities, numbers
            self.is_settled = True
            return ""
        self._labels.update(labels.tolist())
        self._guesses.update(guess.tolist())
        self._records += len(labels)
        if self._labels & self._guesses:
            self.is_settled = True
            return ""
        if kinds[0] == kinds[1] and self._records < ENOUGH:
            return ""
        self.is_settled = True
        return (
            f"The first {self._records:,} records have the labels "
            f"{_shown(self._labels)}, and predicted were {_shown(self._guesses)}: none "
            "in common, so that each prediction is scored as wrong. If these are "
            "names of the same classes, let decide= return what the labels of the "
            "stream are."
        )


def _kind(array: np.ndarray) -> str:
    """Describe labels that are texts, or numbers; empty where they are neither."""
    if array.ndim != 1:
        return ""
    if array.dtype.kind in _NUMBERS:
        return "numbers"
    if array.dtype.kind in _TEXTS or (
        array.dtype.kind == "O" and all(isinstance(each, str) for each in array)
    ):
        return "texts"
    return ""


def _shown(labels: set[Any]) -> str:
    first = sorted(labels, key=repr)[:5]
    return ", ".join(f"{each!r}"[:40] for each in first) + ", ..." * (len(labels) > 5)
