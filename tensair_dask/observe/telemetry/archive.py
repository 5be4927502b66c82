"""Archive: a series of any length in a bounded memory, finer the newer it is."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["TIERS", "Archive", "Tier", "latest", "least", "mean", "most"]

# Seconds between rows, as multiples of the finest: five minutes, an hour and two days
# of rows half a second apart, if a tier holds 600 of them.
TIERS = (1, 12, 576)

Consolidation = Callable[[np.ndarray], float]


def mean(values: np.ndarray) -> float:
    """Mean of what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")


def least(values: np.ndarray) -> float:
    """Smallest of what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.min()) if known.size else float("nan")


def most(values: np.ndarray) -> float:
    """Largest of what is known; NaN if nothing is."""
    known = values[~np.isnan(values)]
    return float(known.max()) if known.size else float("nan")


def latest(values: np.ndarray) -> float:
    """Newest value, known or not."""
    return float(values[-1])


class Tier:
    """The newest rows of one resolution, in a ring.

    Parameters
    ----------
    columns
        How many numbers a row has.
    length
        How many rows are kept.

    Attributes
    ----------
    length
        As given.
    added
        Rows added so far: the number of the next one.
    """

    def __init__(self, columns: int, length: int) -> None:
        self._ring = np.full((length, columns), np.nan)
        self.length = length
        self.added = 0

    def add(self, row: Sequence[float] | np.ndarray) -> None:
        """Add a row; the oldest one goes where there is no room."""
        self._ring[self.added % self.length] = row
        self.added += 1

    @property
    def holds_all(self) -> bool:
        """Whether no row has gone yet."""
        return self.added <= len(self._ring)

    def widen(self, columns: int) -> None:
        """Add so many columns, 0 in the rows that there are."""
        more = np.zeros((len(self._ring), columns))
        self._ring = np.concatenate([self._ring, more], axis=1)

    def since(self, number: int = 0) -> np.ndarray:
        """Rows from that number on, as far as they are kept: shape (rows, columns)."""
        first = max(number, self.added - self.length, 0)
        return self._ring[np.arange(first, max(first, self.added)) % self.length]


class Archive:
    """Rows of named numbers at several resolutions.

    Every row goes into the finest tier; the next tier gets one row for several of
    them, and so on, as round-robin databases do (RRDtool). Memory is reserved at once.

    Parameters
    ----------
    columns
        Names, each with how rows become one: `mean`, `least`, `most` or `latest`.
    length
        Rows of each tier; at least as many as make one row of the next tier.
    tiers
        How many of the finest rows make one row of each tier; the first is 1, and
        each is a multiple of the one before.
    """

    def __init__(
        self,
        columns: Mapping[str, Consolidation],
        length: int = 600,
        tiers: Sequence[int] = TIERS,
    ) -> None:
        self.columns = list(columns)
        self._consolidations = list(columns.values())
        # How many rows of the tier below make one of each tier.
        self._steps = [1] + [
            coarse // fine for fine, coarse in itertools.pairwise(tiers)
        ]
        length = max(length, *self._steps)
        self.tiers = [Tier(len(columns), length) for _ in tiers]

    def add(self, row: Mapping[str, float]) -> None:
        """Add a row; a column that is not given is NaN."""
        missing = float("nan")
        self.tiers[0].add([row.get(name, missing) for name in self.columns])
        for finer, coarser, step in zip(
            self.tiers, self.tiers[1:], self._steps[1:], strict=False
        ):
            if finer.added % step:
                break
            coarser.add(self._consolidated(finer.since(finer.added - step)))

    def widen(self, columns: Mapping[str, Consolidation]) -> None:
        """Add columns, with how rows become one; 0 in the rows that there are."""
        self.columns += columns
        self._consolidations += columns.values()
        for tier in self.tiers:
            tier.widen(len(columns))

    def _consolidated(self, rows: np.ndarray) -> list[float]:
        return [
            consolidate(rows[:, position])
            for position, consolidate in enumerate(self._consolidations)
        ]

    def since(self, number: int = 0, tier: int = 0) -> dict[str, np.ndarray]:
        """Columns of a tier's rows from that number on; see `Tier.since`."""
        rows = self.tiers[tier].since(number)
        return {name: rows[:, place] for place, name in enumerate(self.columns)}

    def covering(self) -> int:
        """Return the finest tier that still holds the first row."""
        for number, tier in enumerate(self.tiers):
            if tier.holds_all:
                return number
        return len(self.tiers) - 1

    def whole(self) -> dict[str, Any]:
        """Columns from the first row on, at the finest resolution that has it.

        What the coarser tiers have not taken in yet comes from the finer ones.
        """
        tier = self.covering()
        parts = [self.tiers[tier].since()]
        while tier:
            step, tier = self._steps[tier], tier - 1
            finer = self.tiers[tier]
            parts.append(finer.since(finer.added - finer.added % step))
        rows = np.concatenate(parts)
        return {name: rows[:, place] for place, name in enumerate(self.columns)}
