"""What deliveries cost: CPU time of their event loop, which counts once for all."""

from __future__ import annotations

import asyncio
import time
import weakref

__all__ = ["CpuShares"]


class CpuShares:
    """Divides the CPU time of an event loop among the deliveries under way on it.

    A delivery waits for its answer, and meanwhile the loop works for others. If each
    counted all of that, then of many deliveries at a time each would seem to cost as
    much as all together. So each moment counts for those that are under way then, in
    equal parts: the sum of all is no more than what the loop has used.

    Belongs to the thread of its loop; see `of_this_loop`.
    """

    def __init__(self) -> None:
        self._under_way = 0
        # Seconds that one would have got that was under way all the time.
        self._share = 0.0
        self._last = 0.0

    @classmethod
    def of_this_loop(cls) -> CpuShares:
        """Those of the event loop that runs here."""
        loop = asyncio.get_running_loop()
        shares = _shares.get(loop)
        if shares is None:
            shares = _shares[loop] = cls()
        return shares

    def begin(self) -> float:
        """Begin a delivery; what is returned is for `end`."""
        self._advance()
        self._under_way += 1
        return self._share

    def end(self, begun: float) -> float:
        """End a delivery; its CPU seconds are returned."""
        self._advance()
        self._under_way -= 1
        return self._share - begun

    def _advance(self) -> None:
        now = time.thread_time()
        if self._under_way:
            self._share += (now - self._last) / self._under_way
        self._last = now


_shares: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, CpuShares] = (
    weakref.WeakKeyDictionary()
)
