"""The least of the newest measurements: what something costs without the rest."""

from __future__ import annotations

from collections import deque

__all__ = ["Least"]

# Measurements that are remembered.
_REMEMBERED = 16


class Least:
    """The smallest of the newest values.

    What is measured together with whatever happened to run beside it, such as the CPU
    time of a call on an event loop, costs by itself at most the least of these.
    """

    def __init__(self) -> None:
        self._values: deque[float] = deque(maxlen=_REMEMBERED)

    def add(self, value: float) -> None:
        """Take in a measurement."""
        self._values.append(value)

    @property
    def value(self) -> float:
        """The least; 0 before the first."""
        # A copy: another thread may add one meanwhile.
        return min(self._values.copy(), default=0.0)
