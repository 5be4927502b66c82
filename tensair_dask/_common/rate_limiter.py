"""Emit records at a steady rate."""

from __future__ import annotations

import asyncio
import time

__all__ = ["Pace"]


class Pace:
    """Open-loop clock: says when the next records are due, at a steady rate.

    Time that back-pressure has taken is not made up for in a burst, except for a small
    slack that hides the coarseness of timers.

    Parameters
    ----------
    rate
        Records per second; None for no limit.
    slack
        Seconds by which records may be late and still keep to their times.
    """

    def __init__(self, rate: float | None, slack: float = 0.05) -> None:
        self.rate = rate
        self.slack = slack
        self._due: float | None = None

    async def wait(self, records: int) -> None:
        """Return when the next ``records`` are due."""
        if self.rate is None:
            # Others need the event loop even if nothing ever makes us wait.
            await asyncio.sleep(0)
            return
        now = time.monotonic()
        due = now if self._due is None else max(self._due, now - self.slack)
        await asyncio.sleep(max(0.0, due - now))
        self._due = due + records / self.rate
