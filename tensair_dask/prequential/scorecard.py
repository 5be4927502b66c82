"""Score cards: the metrics of each set of predictions, over one horizon."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from tensair_dask.prequential.river_metrics import Chosen

__all__ = ["Block", "Card", "Cards", "cut"]

# Records that are scored together, as columns: the labels that came true; then for
# each contestant (the model, then each baseline) the labels that it predicted and,
# if some metric takes them, the probabilities. None where it made no guess.
Block: TypeAlias = "list[Sequence[Any]]"

_NAN = float("nan")


def cut(block: Block, start: int, stop: int) -> Block:
    """Take the records from ``start`` to ``stop``."""
    if start == 0 and stop >= len(block[0]):
        return block
    return [column[start:stop] for column in block]


class Card:
    """The metrics of one contestant over one horizon.

    Metrics that only read a confusion matrix share one, into which equal records go
    together: a mini-batch costs as much as it has kinds of pairs (label, prediction).

    Parameters
    ----------
    chosen
        Which metrics.

    Attributes
    ----------
    records
        How many are in it.
    """

    def __init__(self, chosen: Chosen) -> None:
        self.records = 0
        self._matrices, self._alone, self._metrics = chosen.instances()

    def update(
        self,
        target: Sequence[Any],
        labels: Sequence[Any],
        chances: Sequence[Any] | None,
        weights: Sequence[float] | None = None,
    ) -> None:
        """Score records.

        Parameters
        ----------
        target
            What came true.
        labels, chances
            What was predicted.
        weights
            One for each record; None for 1.
        """
        self.records += len(target)
        if self._matrices:
            self._count(target, labels, weights)
        for metric, takes_chances in self._alone:
            predicted = chances if takes_chances else labels
            update = metric.update
            if weights is None:
                for pair in zip(target, predicted, strict=True):  # type: ignore[arg-type]
                    update(*pair)
            else:
                for one in zip(target, predicted, weights, strict=True):  # type: ignore[arg-type]
                    update(*one)

    def revert(
        self,
        target: Sequence[Any],
        labels: Sequence[Any],
        chances: Sequence[Any] | None,
    ) -> None:
        """Take records out again that went in with weight 1."""
        self.records -= len(target)
        if self._matrices:
            self._count(target, labels, None, out=True)
        for metric, takes_chances in self._alone:
            revert = metric.revert
            predicted = chances if takes_chances else labels
            for pair in zip(target, predicted, strict=True):  # type: ignore[arg-type]
                revert(*pair)

    def _count(
        self,
        target: Sequence[Any],
        labels: Sequence[Any],
        weights: Sequence[float] | None,
        out: bool = False,
    ) -> None:
        if len(target) == 1:
            weight = 1.0 if weights is None else weights[0]
            for positive, matrix in self._matrices:
                change = matrix.revert if out else matrix.update
                if positive is None:
                    change(target[0], labels[0], weight)
                else:
                    value = positive[0]
                    change(target[0] == value, labels[0] == value, weight)
            return
        sums: Mapping[tuple[Any, Any], float] = (
            Counter(zip(target, labels, strict=True))
            if weights is None
            else _sums(target, labels, weights)
        )
        for positive, matrix in self._matrices:
            change = matrix.revert if out else matrix.update
            for (true, label), weight in sums.items():
                if positive is None:
                    change(true, label, weight)
                else:
                    change(true == positive[0], label == positive[0], weight)
            # It has counted one record for each kind of pair.
            missed = len(target) - len(sums)
            matrix.n_samples += -missed if out else missed

    @property
    def metrics(self) -> list[Any]:
        """In the order in which they were chosen."""
        return self._metrics

    def values(self) -> list[float]:
        """Value of each metric; NaN while there is none."""
        if not self.records:
            return [_NAN] * len(self._metrics)
        return [_value(metric) for metric in self._metrics]


def _sums(
    target: Sequence[Any], labels: Sequence[Any], weights: Sequence[float]
) -> dict[tuple[Any, Any], float]:
    """Sum of the weights of each kind of pair."""
    sums: dict[tuple[Any, Any], float] = defaultdict(float)
    for true, label, weight in zip(target, labels, weights, strict=True):
        sums[true, label] += weight
    return sums


def _value(metric: Any) -> float:
    try:
        return float(metric.get())
    except (ZeroDivisionError, ValueError):
        return _NAN  # not defined yet, for example because one class has come only


class Cards:
    """The cards of all contestants over one horizon.

    Parameters
    ----------
    chosen
        Which metrics.
    contestants
        How many.
    """

    def __init__(self, chosen: Chosen, contestants: int) -> None:
        self._cards = [Card(chosen) for _ in range(contestants)]
        self._width = 2 if chosen.takes_chances else 1

    def update(self, block: Block, weights: Sequence[float] | None = None) -> None:
        """Score records."""
        for place, card in enumerate(self._cards):
            target, labels, chances, kept = self._columns(block, place, weights)
            if target:
                card.update(target, labels, chances, kept)

    def revert(self, block: Block) -> None:
        """Take records out again."""
        for place, card in enumerate(self._cards):
            target, labels, chances, _ = self._columns(block, place, None)
            if target:
                card.revert(target, labels, chances)

    def _columns(
        self, block: Block, place: int, weights: Sequence[float] | None
    ) -> tuple[Sequence[Any], Sequence[Any], Sequence[Any] | None, Any]:
        """What concerns one contestant, without the records it made no guess for."""
        target = block[0]
        labels = block[1 + place * self._width]
        chances = block[2 + place * self._width] if self._width == 2 else None
        if not place or None not in labels:
            return target, labels, chances, weights
        known = [at for at, label in enumerate(labels) if label is not None]
        return (
            [target[at] for at in known],
            [labels[at] for at in known],
            None if chances is None else [chances[at] for at in known],
            None if weights is None else [weights[at] for at in known],
        )

    def values(self) -> list[list[float]]:
        """For each contestant the value of each metric."""
        return [card.values() for card in self._cards]

    def metrics(self, names: Sequence[str]) -> Iterator[tuple[str, Any]]:
        """Metrics of all contestants, with their names."""
        for card in self._cards:
            yield from zip(names, card.metrics, strict=True)
