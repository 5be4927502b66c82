"""A hash table of numbers that is asked for thousands of keys at once."""

from __future__ import annotations

import numpy as np

__all__ = ["FingerprintTable"]

# An entry is one number: the upper bits of the fingerprint, and the row below them. So
# a look-up touches memory once, which beside busy processes is nearly all that it
# costs: what tells the lower bits is a small array.
ROW_BITS = 24
ROW = np.uint64((1 << ROW_BITS) - 1)
SMALLEST = 10  # bits


class FingerprintTable:
    """Maps fingerprints to rows, by open addressing; it grows as it is filled.

    Parameters
    ----------
    rows
        The largest row, below 2**24.
    """

    def __init__(self, rows: int) -> None:
        assert rows <= int(ROW)
        self._count = 0
        # By row, how its entry and its fingerprint differ: in the lower bits only.
        self._rest = np.zeros(rows + 1, np.uint64)
        self._allocate(SMALLEST)

    def _allocate(self, bits: int) -> None:
        self._shift = np.uint64(64 - bits)
        self._last = np.uint64((1 << bits) - 1)
        self._entries = np.zeros(1 << bits, np.uint64)

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """Give the row of each fingerprint, 0 for those that are not in the table.

        Parameters
        ----------
        fingerprints
            uint64.

        Returns
        -------
        rows
            int32.
        """
        places = fingerprints >> self._shift
        entries = self._entries[places]
        rows = (entries & ROW).astype(np.int32)
        right = (entries ^ fingerprints) == self._rest[rows]
        rows *= right
        # Most are where they should be; the others go on, ever fewer.
        astray = np.flatnonzero(right < (entries != 0))
        places = places[astray]
        while len(astray):
            places = (places + np.uint64(1)) & self._last
            entries = self._entries[places]
            found = (entries & ROW).astype(np.int32)
            right = (entries ^ fingerprints[astray]) == self._rest[found]
            rows[astray] = np.where(right, found, 0)
            on = ~right & (entries != 0)
            astray, places = astray[on], places[on]
        return rows

    def put(self, fingerprint: int, row: int) -> None:
        """Add a fingerprint that is not in the table."""
        self._count += 1
        if 2 * self._count > len(self._entries):  # at most half full
            entries = self._entries[self._entries != 0].tolist()
            self._allocate(len(self._entries).bit_length())
            for entry in entries:
                self._place(entry)
        entry = fingerprint & ~int(ROW) | row
        self._rest[row] = entry ^ fingerprint
        self._place(entry)

    def _place(self, entry: int) -> None:
        place = entry >> int(self._shift)
        while self._entries[place]:
            place = (place + 1) & int(self._last)
        self._entries[place] = entry
