from __future__ import annotations

import asyncio

import pytest

from tensair_dask._common import rate_limiter


class Clock:
    """Time that passes only in sleep, and when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(rate_limiter, "time", clock)
    monkeypatch.setattr(rate_limiter, "asyncio", clock)
    return clock


def times(clock, paced, batches, stall=None):
    async def emit():
        start, out = clock.now, []
        for number in range(batches):
            await paced.wait(50)
            out.append(clock.now - start)
            if stall is not None and number == stall[0]:
                clock.now += stall[1]
        return out

    return asyncio.run(emit())


def test_records_come_evenly(clock):
    assert times(clock, rate_limiter.Pace(1_000), 5) == pytest.approx(
        [0, 0.05, 0.1, 0.15, 0.2]
    )


def test_a_short_delay_is_made_up_for(clock):
    late = times(clock, rate_limiter.Pace(1_000), 5, stall=(1, 0.07))
    assert late == pytest.approx([0, 0.05, 0.12, 0.15, 0.2])


def test_back_pressure_gives_no_burst(clock):
    late = times(clock, rate_limiter.Pace(1_000), 6, stall=(1, 1.0))
    # One mini-batch is late, one keeps to its time; then they come evenly again.
    assert late[2:] == pytest.approx([1.05, 1.05, 1.10, 1.15])


def test_no_limit_waits_for_nothing(clock):
    assert times(clock, rate_limiter.Pace(None), 3) == [0, 0, 0]
