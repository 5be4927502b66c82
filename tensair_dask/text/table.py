"""A hash table of numbers that is asked for thousands of keys at once."""

from __future__ import annotations

import numpy as np

__all__ = ["FingerprintTable"]


class FingerprintTable:
    """Maps fingerprints to rows: open addressing in two arrays.

    Parameters
    ----------
    size
        How many keys it can hold.
    """

    def __init__(self, size: int) -> None:
        bits = max(4, (2 * size - 1).bit_length())  # at most half full
        self._shift = np.uint64(64 - bits)
        self._last = np.uint64((1 << bits) - 1)
        self._keys = np.zeros(1 << bits, np.uint64)
        self._rows = np.zeros(1 << bits, np.int32)

    def find(self, fingerprints: np.ndarray) -> np.ndarray:
        """Give the row of each fingerprint, 0 for those that are not in the table.

        Parameters
        ----------
        fingerprints
            uint64, none of them 0.
        """
        places = fingerprints >> self._shift
        keys = self._keys[places]
        rows = self._rows[places]  # 0 at an empty place
        # Most are where they should be; the others go on, ever fewer.
        astray = np.flatnonzero((keys != fingerprints) & (keys != 0))
        places = places[astray]
        while len(astray):
            places = (places + np.uint64(1)) & self._last
            wanted, keys = fingerprints[astray], self._keys[places]
            rows[astray] = np.where(keys == wanted, self._rows[places], 0)
            on = (keys != wanted) & (keys != 0)
            astray, places = astray[on], places[on]
        return rows

    def put(self, fingerprint: int, row: int) -> None:
        """Add one key that is not in the table; there must be room."""
        place = fingerprint >> int(self._shift)
        while self._keys[place]:
            place = (place + 1) & int(self._last)
        self._keys[place] = fingerprint
        self._rows[place] = row
