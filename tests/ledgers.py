"""Ledgers, and marks of sources that count what was learned."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from tensair_dask.coordinator.ledger import Entry


class Source:
    """Counts what is learned and released of it, as a tracker does."""

    def __init__(self, name: str = "source") -> None:
        self.name = name
        self.closed = False
        self.is_learned: set[int] = set()
        self.is_released: set[int] = set()

    def begun(self) -> set[str]:
        return {"0"}

    def learned(self) -> dict[str, int]:
        done = self.is_learned | self.is_released
        return {"0": next(n for n in range(1000) if n not in done)}

    def record(self, number: int, holders: int = 1) -> dict[str, Any]:
        """Metadata of a record that so many hold."""
        mark = SimpleNamespace(
            tracker=self, learned=lambda: self.is_learned.add(number)
        )
        return {"mark": mark, "ref": SimpleNamespace(count=holders)}

    def entry(self, number: int) -> Entry:
        return Entry([self.record(number)], lambda: self.is_released.add(number))
