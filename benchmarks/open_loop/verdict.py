"""What the times of a trial say: does the backlog grow, how old is what is learned."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["judge"]

SLOPE = 0.015  # of the rate: what a backlog may grow by
# The median latency of the last third: so many times that of the first, and so much.
LATER, ALLOWANCE = 1.25, 0.020
GRID = 400  # moments at which the backlog is looked at


def _backlog(scheduled: np.ndarray, learned: np.ndarray, moments: np.ndarray) -> Any:
    due = np.searchsorted(scheduled, moments, side="right")
    return due - np.searchsorted(np.sort(learned), moments, side="right")


def judge(
    scheduled: np.ndarray, learned: np.ndarray, start: float, end: float, rate: float
) -> dict[str, Any]:
    """Say what happened between two moments: all of it is in seconds.

    What was not learned has NaN as its time.
    """
    learned = np.where(np.isnan(learned), np.inf, learned)
    moments = np.linspace(start, end, GRID)
    slope = np.polyfit(moments - start, _backlog(scheduled, learned, moments), 1)[0]
    inside = (scheduled >= start) & (scheduled < end)
    latency = (learned - scheduled)[inside]
    if not len(latency):
        raise ValueError("No mini-batch is due in the window: it is too short.")
    third = max(1, len(latency) // 3)
    first, last = np.median(latency[:third]), np.median(latency[-third:])
    p50, p99 = np.percentile(latency, [50, 99], method="inverted_cdf")
    return {
        "slope": float(slope / rate),
        "first_third_ms": float(1e3 * first),
        "last_third_ms": float(1e3 * last),
        "p50_ms": float(1e3 * p50),
        "p99_ms": float(1e3 * p99),
        "learned": int(((learned >= start) & (learned < end)).sum()),
        "sustained": bool(slope / rate < SLOPE and last < LATER * first + ALLOWANCE),
    }
