"""Vector clocks: how many gradients of each origin a replica has applied."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["VectorClock"]


class VectorClock:
    """Count of the gradients that have been applied, by origin.

    The sum of the entries is the model's version. The difference between two clocks
    is the gradient-set difference by which arXiv 2309.03754 defines staleness.
    """

    def __init__(self, counts: Mapping[str, int] | None = None) -> None:
        self._counts: dict[str, int] = dict(counts or {})

    def __getitem__(self, origin: str) -> int:
        return self._counts.get(origin, 0)

    def advance(self, origin: str, to: int) -> None:
        """Record that all gradients of ``origin`` up to step ``to`` are applied.

        Raises
        ------
        ValueError
            If the clock would go backwards.
        """
        if to < self[origin]:
            raise ValueError(
                f"The clock of {origin!r} stands at {self[origin]} and cannot go back "
                f"to {to}."
            )
        self._counts[origin] = to

    def set_to(self, counts: Mapping[str, int]) -> None:
        """Stand as another clock does, also where that goes backwards."""
        self._counts = dict(counts)

    def ahead_of(self, other: Mapping[str, int]) -> int:
        """Count the gradients applied here that ``other`` had not applied."""
        known = other.get
        return sum(
            max(0, count - known(origin, 0)) for origin, count in self._counts.items()
        )

    @property
    def version(self) -> int:
        """Gradients applied in all."""
        return sum(self._counts.values())

    def snapshot(self) -> dict[str, int]:
        """Copy the counts."""
        return dict(self._counts)

    def __repr__(self) -> str:
        return f"VectorClock({self._counts})"
