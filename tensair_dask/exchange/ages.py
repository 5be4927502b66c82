"""How stale, and how old, the gradients of peers are when they are applied."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

__all__ = ["Ages"]

# Messages that the statistics are taken over.
REMEMBERED = 1000

# Messages from one look at the bound to the next; and by how much the mean age may be
# above it.
LOOK = 100
LATE = 1.5


class Ages:
    """Staleness and age of the newest messages.

    Attributes
    ----------
    messages, nbytes
        All that were applied, and their bytes.
    late
        Mean age, in seconds, of the newest `LOOK` messages, if the bound on it did not
        hold; else 0.
    """

    def __init__(self) -> None:
        self.messages = self.nbytes = 0
        self.late = 0.0
        self._stalenesses: deque[int] = deque(maxlen=REMEMBERED)
        self._ages: deque[float] = deque(maxlen=REMEMBERED)

    def add(self, nbytes: int, staleness: int, age: float, bound: float) -> None:
        """Record a message that was applied.

        Parameters
        ----------
        nbytes
            Its size.
        staleness
            Gradients that it did not know of.
        age
            Seconds since the oldest gradient in it was computed.
        bound
            That was asked for, in seconds.
        """
        self._stalenesses.append(staleness)
        self._ages.append(age)
        self.messages += 1
        self.nbytes += nbytes
        if self.messages % LOOK == 0:
            mean = _mean(list(self._ages)[-LOOK:])
            self.late = mean if mean > LATE * bound else 0.0

    @property
    def staleness(self) -> float:
        """Mean staleness of the newest messages."""
        return _mean(list(self._stalenesses))

    def statistics(self) -> dict[str, float]:
        """Means, 95 % quantiles and largest values; from any thread."""
        ages = sorted(self._ages)
        stalenesses = sorted(self._stalenesses)
        return {
            "received": self.messages,
            "received_bytes": self.nbytes,
            "staleness_mean": _mean(stalenesses),
            "staleness_p95": _quantile(stalenesses, 0.95),
            "staleness_max": stalenesses[-1] if stalenesses else 0,
            "age_mean": _mean(ages),
            "age_p95": _quantile(ages, 0.95),
            "age_max": ages[-1] if ages else 0.0,
        }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
