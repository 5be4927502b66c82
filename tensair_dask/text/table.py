"""A hash table of numbers that is asked for thousands of keys at once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["FingerprintTable"]

# An entry is one number: the upper bits of the fingerprint, and the row below them. So
# a look-up touches memory once, which beside busy processes is all that it costs.
ROW_BITS = 24
ROW = np.uint64((1 << ROW_BITS) - 1)
SMALLEST = 10  # bits


class FingerprintTable:
    """Maps fingerprints to rows, by open addressing; it grows as it is filled.

    A fingerprint that is not in the table is taken for one that is with a chance of
    less than 1 in 10 million.

    Parameters
    ----------
    rows
        The largest row, below 2**24.
    """

    def __init__(self, rows: int) -> None:
        assert rows <= int(ROW)
        self._count = 0
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
        right = (entries ^ fingerprints) <= ROW  # the tags are the same
        rows = (entries & ROW).astype(np.int32)
        rows *= right
        # Most are where they should be; the others go on, ever fewer.
        astray = np.flatnonzero(right < (entries != 0))
        places = places[astray]
        while len(astray):
            places = (places + np.uint64(1)) & self._last
            entries = self._entries[places]
            right = (entries ^ fingerprints[astray]) <= ROW
            rows[astray] = np.where(right, entries & ROW, 0)
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
        self._place(fingerprint & ~int(ROW) | row)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the entries, as int64."""
        return {"entries": self._entries[self._entries != 0].view(np.int64)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Hold what that held of which this is the `state_dict`."""
        entries = np.array(state["entries"]).view(np.uint64).tolist()
        self._count = len(entries)
        self._allocate(max(SMALLEST, (2 * self._count).bit_length()))
        for entry in entries:
            self._place(entry)

    def _place(self, entry: int) -> None:
        place = entry >> int(self._shift)
        while self._entries[place]:
            place = (place + 1) & int(self._last)
        self._entries[place] = entry
