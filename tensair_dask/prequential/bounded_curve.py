"""A curve of bounded length along a stream without end: it gets coarser, not longer."""

from __future__ import annotations

import numpy as np

__all__ = ["Thinning"]

# Records between two rows, at first.
FINEST = 50


class Thinning:
    """Rows of numbers at equal distances; every other one goes when there are too many.

    Parameters
    ----------
    columns
        Numbers in a row.
    most
        Rows that are kept.

    Attributes
    ----------
    step
        Records between two rows.
    """

    def __init__(self, columns: int, most: int) -> None:
        self.step = FINEST
        self._columns = columns
        self._most = most
        self._rows: list[list[float]] = []

    def room(self, records: int) -> int:
        """How many records may come after so many before a row is due."""
        return self.step - records % self.step

    def due(self, records: int) -> bool:
        """Whether there is a row after so many records."""
        return records % self.step == 0

    def add(self, row: list[float]) -> None:
        """Keep the row that is due."""
        self._rows.append(row)
        if len(self._rows) >= self._most:
            # The rows stand at 1, 2, 3 ... steps: those at even ones remain.
            self._rows = self._rows[1::2]
            self.step *= 2

    def rows(self, every: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Give the rows.

        Parameters
        ----------
        every
            Records between two rows; it is rounded up to a multiple of `step`.

        Returns
        -------
        records, rows
            After how many records; shapes (rows,) and (rows, columns).
        """
        steps = 1 if every is None else max(1, -(-every // self.step))
        rows = self._rows[steps - 1 :: steps]
        records = (1 + np.arange(len(rows))) * steps * self.step
        return records, np.array(rows, dtype=float).reshape(len(rows), self._columns)
