"""Count-min sketch: how often things were seen, roughly, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

__all__ = ["CountMin"]

# Odd multipliers that make several hashes of one (multiply-shift).
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], dtype=np.uint64
)


class CountMin:
    """Counts without keeping what is counted: never too few, seldom too many.

    An own one, because those on the package index take one thing at a time: a stream
    of text has 100,000 rare words a second, and a call for each costs more than
    everything else that is done to them. It has the conservative update, which raises
    only the smallest of a thing's counts.

    Parameters
    ----------
    bits
        Each of the three rows has ``2 ** bits`` counts of 4 bytes.

    References
    ----------
    Cormode and Muthukrishnan, "An improved data stream summary: the count-min sketch
    and its applications", J. Algorithms 55 (2005). Estan and Varghese, "New
    directions in traffic measurement and accounting", SIGCOMM 2002, for the
    conservative update.
    """

    def __init__(self, bits: int = 18) -> None:
        self._shift = np.uint64(64 - bits)
        self._rows = [np.zeros(1 << bits, np.uint32) for _ in MULTIPLIERS]

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the counts, as int32."""
        return {"rows": np.stack(self._rows).view(np.int32)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Count on from where that was of which this is the `state_dict`."""
        self._rows = list(np.array(state["rows"]).view(np.uint32))

    def add(self, fingerprints: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Count things.

        Parameters
        ----------
        fingerprints
            uint64, each at most once.
        times
            How often to count each.

        Returns
        -------
        counts
            How often each was seen, these times included. Exact, unless a thing
            shares all of its places with more frequent ones.
        """
        places = [
            (fingerprints * multiplier) >> self._shift for multiplier in MULTIPLIERS
        ]
        known = [row[at] for row, at in zip(self._rows, places, strict=True)]
        counts = np.minimum.reduce(known) + times.astype(np.uint32)
        for row, at in zip(self._rows, places, strict=True):
            np.maximum.at(row, at, counts)
        return counts
