"""A vocabulary that grows with the stream and never beyond its bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from tensair_dask._common.plain_values import plain_state
from tensair_dask.errors import ConfigurationError
from tensair_dask.text.sketch import CountMin
from tensair_dask.text.table import FingerprintTable
from tensair_dask.text.tokens import Tokens, fingerprints_of, tokenize

__all__ = ["NOTHING", "Read", "Vocabulary"]

# Row of an embedding table that no word has: padding.
NOTHING = 0


class Read(NamedTuple):
    """Words of a text as rows of an embedding table.

    Attributes
    ----------
    rows
        int32, (words,).
    lines
        How many line ends come before each word, int64, (words,).
    line_ends
        In the whole text.
    """

    rows: np.ndarray
    lines: np.ndarray
    line_ends: int


class Vocabulary:
    """Gives words rows of an embedding table.

    A word gets a row of its own when it has been seen ``min_count`` times, until
    there are ``size`` such rows. All other words share ``hashed`` rows behind those,
    by their hash: what is rare still is context to what is not, and memory is
    bounded. How often a word without a row was seen is kept in a count-min sketch.

    Parameters
    ----------
    size
        Words that can get a row of their own.
    hashed
        Rows that rare words share; with 0 rare words are left out.
    min_count
        How often a word must be seen.

    Attributes
    ----------
    words
        Those with a row of their own: ``words[i]`` has row ``i + 1``.
    counts
        How often the words of each row were seen, int64, of shape (rows,).
    total
        Words that were counted.
    left_out
        The row of words that are left out, if there are no hashed rows; else None.
    frozen
        While set, nothing is counted and no word gets a row: for repeated passes over
        one text, which make no word more frequent.
    """

    def __init__(
        self, size: int = 50_000, hashed: int = 5_000, min_count: int = 5
    ) -> None:
        if size < 1 or hashed < 0 or min_count < 1:
            raise ConfigurationError(
                f"A vocabulary of size={size}, hashed={hashed}, min_count={min_count} "
                "was asked for; size and min_count must be at least 1, hashed 0."
            )
        self.size = size
        self.hashed = hashed
        self.min_count = min_count
        self.left_out = None if hashed else 1 + size
        self.words: list[str] = []
        self.rows = 1 + size + max(hashed, 1)
        self.counts = np.zeros(self.rows, np.int64)
        self.total = 0
        self.frozen = False
        self._table = FingerprintTable(size)
        self._seen = CountMin()

    def read(self, text: str) -> Read:
        """Find the words of a text and count them; new ones may get rows."""
        tokens = tokenize(text)
        rows = self._table.find(tokens.fingerprints)
        unknown = np.flatnonzero(rows == 0)
        if not self.frozen and len(self.words) < self.size and len(unknown):
            self._count_unknown(tokens, unknown)
            rows[unknown] = self._table.find(tokens.fingerprints[unknown])
            unknown = unknown[rows[unknown] == 0]
        rows[unknown] = self._shared(tokens.fingerprints[unknown])
        if not self.frozen:
            np.add.at(self.counts, rows, 1)
            self.total += len(rows)
        return Read(rows, tokens.lines, tokens.line_ends)

    def _count_unknown(self, tokens: Tokens, unknown: np.ndarray) -> None:
        """Count words without a row; give one to those that are seen often enough."""
        fingerprints, first, times = np.unique(
            tokens.fingerprints[unknown], return_index=True, return_counts=True
        )
        counts = self._seen.add(fingerprints, times)
        often = np.flatnonzero(counts >= self.min_count)
        often = often[np.argsort(first[often])]  # in the order of the text
        for at in often[: self.size - len(self.words)].tolist():
            self.words.append(tokens.word(unknown[first[at]]))
            row = len(self.words)
            self._table.put(int(fingerprints[at]), row)
            # What came before this text was counted at the row that it shared, where
            # there may be less: the sketch can count too many.
            shared = self._shared(fingerprints[at : at + 1])[0]
            before = min(int(counts[at] - times[at]), int(self.counts[shared]))
            self.counts[row] += before
            self.counts[shared] -= before

    def state_dict(self) -> dict[str, Any]:
        """Copy the state as numpy arrays and plain values."""
        state = {
            "words": list(self.words),
            "counts": self.counts.copy(),
            "total": self.total,
            "frozen": self.frozen,
            "seen": self._seen.state_dict(),
        }
        return plain_state.describe(self, self._parameters, state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where that was of which this is the `state_dict`.

        Raises
        ------
        CheckpointError
            If it has other sizes; this one is then as it was.
        """
        found = plain_state.check(self, self._parameters, state)
        self.words = list(found["words"])
        self.counts = np.array(found["counts"])
        self.total = int(found["total"])
        self.frozen = bool(found["frozen"])
        self._table = FingerprintTable(self.size)
        fingerprints = fingerprints_of(self.words).tolist()
        for row, fingerprint in enumerate(fingerprints, start=1):
            self._table.put(fingerprint, row)
        self._seen.load_state_dict(found["seen"])

    @property
    def _parameters(self) -> dict[str, int]:
        return {
            "size": self.size,
            "hashed": self.hashed,
            "min_count": self.min_count,
        }

    def _shared(self, fingerprints: np.ndarray) -> np.ndarray:
        places = fingerprints % np.uint64(max(self.hashed, 1))
        return 1 + self.size + places.astype(np.int64)

    def __len__(self) -> int:
        """Words with a row of their own."""
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return bool(self.find([word])[0])

    def find(self, words: Sequence[str]) -> np.ndarray:
        """Give the own row of each word, int64, (words,); 0 where it has none."""
        found = np.zeros(len(words), np.int64)
        tokens = tokenize("\n".join(words))
        one_each = np.array_equal(tokens.lines, np.arange(len(words)))
        if one_each and tokens.line_ends == len(words) - 1:
            found[tokens.lines] = self._table.find(tokens.fingerprints)
        else:  # some are no words, or several
            for at, word in enumerate(words):
                fingerprints = tokenize(word).fingerprints
                if len(fingerprints) == 1:
                    found[at] = self._table.find(fingerprints)[0]
        return found

    def rows_of(self, words: Sequence[str]) -> np.ndarray:
        """Like `find`, but all must have one.

        Raises
        ------
        KeyError
            For a word that has none.
        """
        found = self.find(words)
        for word, row in zip(words, found.tolist(), strict=True):
            if not row:
                raise KeyError(
                    f"{word!r} has no row of its own: it was seen fewer than "
                    f"{self.min_count} times, or after the vocabulary of {self.size:,} "
                    "words was full."
                )
        return found
