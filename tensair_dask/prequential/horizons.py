"""Horizons: over which records a score is taken, and how much each of them counts.

A sliding window takes out again what went in, and a fading factor makes each record
weigh a little more than the one before. Both go on without end only with care:
what is taken out leaves its rounding behind, and weights that grow run over. So
every now and then a successor is filled beside, from new, with the same records, and
takes over when it knows all that counts.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from tensair_dask._common.checks import number, whole
from tensair_dask.prequential.river_metrics import Chosen
from tensair_dask.prequential.scorecard import Block, Cards, cut

__all__ = [
    "FADING",
    "WHOLE",
    "WINDOW",
    "Fading",
    "Sliding",
    "Whole",
    "as_fading",
    "as_window",
    "build",
    "prepare",
]

WHOLE = "whole"
WINDOW = "window"
FADING = "fading"

# Records after which the next window is filled from new, and windows likewise.
_LIFE = 10_000
_LIFE_IN_WINDOWS = 8

# A weight grows up to the first; what weighs less than the second of what is newest
# is lost in the rounding of double precision. Squares of labels have room above.
_HEAVIEST = 1e200
_LIGHTEST = 1e-17


class _Horizon:
    """What all horizons have: cards, and at times those that will take over."""

    _cards: Cards
    _successor: Cards | None = None

    @property
    def has_successor(self) -> bool:
        """Whether cards are being filled beside."""
        return self._successor is not None

    def values(self) -> list[list[float]]:
        """For each contestant the value of each metric."""
        return self._cards.values()

    def metrics(self, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Metrics of all contestants, with their names."""
        yield from self._cards.metrics(names)


class Whole(_Horizon):
    """All records, which count the same.

    Parameters
    ----------
    chosen
        Which metrics.
    contestants
        How many make predictions.
    """

    name = WHOLE

    def __init__(self, chosen: Chosen, contestants: int) -> None:
        self._cards = Cards(chosen, contestants)

    def take(self, block: Block) -> None:
        """Score records."""
        self._cards.update(block)


class Sliding(_Horizon):
    """The newest records, which count the same.

    Parameters
    ----------
    chosen, contestants
        As in `Whole`.
    window
        How many records.

    Notes
    -----
    Metrics that are means (of errors, of losses) carry the rounding of what has left;
    after a value of 1e20 they would be off by thousands for ever. Here for so long as
    `_LIFE` records or `_LIFE_IN_WINDOWS` windows, whichever is longer.
    """

    name = WINDOW

    def __init__(self, chosen: Chosen, contestants: int, window: int) -> None:
        self._new = (chosen, contestants)
        self._window = window
        self._cards = Cards(chosen, contestants)
        self._successor: Cards | None = None
        self._ring: deque[tuple[Any, ...]] = deque()
        # In whole windows, since a successor knows all after one.
        self._life = window * max(_LIFE_IN_WINDOWS, math.ceil(_LIFE / window))
        self._age = 0

    def take(self, block: Block) -> None:
        """Score records."""
        count = len(block[0])
        start = 0
        while start < count:
            stop = start + self._window - self._age % self._window
            piece = cut(block, start, min(stop, count))
            self._take(piece)
            start = stop

    def _take(self, block: Block) -> None:
        count = len(block[0])
        ring = self._ring
        surplus = len(ring) + count - self._window
        if surplus > 0:
            leaving = [ring.popleft() for _ in range(surplus)]
            self._cards.revert(list(zip(*leaving, strict=True)))
        ring.extend(zip(*block, strict=True))
        self._cards.update(block)
        self._age += count
        if self._successor is not None:
            self._successor.update(block)
            if self._age == self._life + self._window:
                self._cards, self._successor = self._successor, None
                self._age = 0
        elif self._age == self._life:
            self._successor = Cards(*self._new)


class Fading(_Horizon):
    """All records, each counting less than the next by a factor.

    Parameters
    ----------
    chosen, contestants
        As in `Whole`.
    factor
        What a record counts, if the next one counts 1.

    Notes
    -----
    Weights grow instead of fading, which comes to the same in every metric that is
    a ratio of weighted sums. Before they run over, a successor has been filled with
    so many records that what it does not know would be lost in rounding.

    A metric that counts *which* classes there are, such as MacroF1, counts a class for
    as long as its last record has any weight at all.

    References
    ----------
    Gama, Sebastião and Rodrigues, "On evaluating stream learning algorithms",
    Machine Learning 90, 2013.
    """

    name = FADING

    def __init__(self, chosen: Chosen, contestants: int, factor: float) -> None:
        self._new = (chosen, contestants)
        self._growth = -math.log(factor)
        self._cards = Cards(chosen, contestants)
        self._successor: Cards | None = None
        self._age = 0
        # In records: how long one serves, and how long its successor is filled before.
        self._life = max(2, int(math.log(_HEAVIEST) / self._growth))
        lost = math.ceil(-math.log(_LIGHTEST) / self._growth)
        self._overlap = min(lost, self._life // 2)

    def take(self, block: Block) -> None:
        """Score records."""
        count = len(block[0])
        start = 0
        while start < count:
            until = self._life - (0 if self._successor else self._overlap)
            stop = min(start + until - self._age, count)
            self._take(cut(block, start, stop))
            start = stop

    def _take(self, block: Block) -> None:
        count = len(block[0])
        self._cards.update(block, self._weights(self._age, count))
        self._age += count
        if self._successor is not None:
            behind = self._life - self._overlap
            weights = self._weights(self._age - count - behind, count)
            self._successor.update(block, weights)
            if self._age == self._life:
                self._cards, self._successor = self._successor, None
                self._age = self._overlap
        if self._age == self._life - self._overlap and self._successor is None:
            self._successor = Cards(*self._new)

    def _weights(self, age: int, count: int) -> list[float]:
        growth = self._growth
        return [math.exp(growth * at) for at in range(age, age + count)]


def as_window(given: Any) -> int | None:
    """Take the number of records of a window, or None.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    return None if given is None else whole("window", given, 1, 1_000)


def as_fading(given: Any) -> float | None:
    """Take a fading factor, or None.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    if given is None:
        return None
    return number(
        "fading",
        given,
        lambda factor: 0.01 <= factor < 1,
        "it is what a record counts if the next one counts 1: give a number from 0.01 "
        "to below 1, for example 0.999, which looks back about 1000 records",
    )


def build(
    chosen: Chosen, contestants: int, window: int | None, fading: float | None
) -> list[Whole | Sliding | Fading]:
    """Make the horizons that are asked for.

    Parameters
    ----------
    chosen, contestants
        As in `Whole`.
    window, fading
        As `as_window` and `as_fading` take them.

    Raises
    ------
    ConfigurationError
        If a metric does not allow the horizon.
    """
    horizons: list[Whole | Sliding | Fading] = [Whole(chosen, contestants)]
    if window is not None:
        chosen.check_window(window)
        horizons.append(Sliding(chosen, contestants, window))
    if fading is not None:
        chosen.check_fading()
        horizons.append(Fading(chosen, contestants, fading))
    return horizons


def prepare(
    horizons: Sequence[Whole | Sliding | Fading], successors: Sequence[bool]
) -> None:
    """Have successors where a state that is to be put into them has some.

    Parameters
    ----------
    horizons
        As `build` has made them.
    successors
        For each of them what `has_successor` was.
    """
    for horizon, successor in zip(horizons, successors, strict=True):
        if not isinstance(horizon, Whole):
            horizon._successor = Cards(*horizon._new) if successor else None
