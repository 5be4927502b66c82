"""What deliveries cost is counted once, however many are under way."""

from __future__ import annotations

import asyncio
import gc
import weakref
from typing import Any

import pytest
from distributed.utils_test import gen_test

from tensair_dask.pubsub import cpu_shares
from tensair_dask.pubsub.cpu_shares import CpuShares


class Clock:
    """CPU time that goes on when the test says so."""

    def __init__(self) -> None:
        self.now = 5.0

    def thread_time(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(cpu_shares, "time", found)
    return found


def test_one_delivery_counts_what_passes_meanwhile(clock):
    shares = CpuShares()
    begun = shares.begin()
    clock.now += 3.0
    assert shares.end(begun) == 3.0
    clock.now += 10.0  # of nobody
    begun = shares.begin()
    clock.now += 1.0
    assert shares.end(begun) == 1.0


def test_each_moment_is_divided_among_those_under_way(clock):
    shares = CpuShares()
    first = shares.begin()
    clock.now += 1.0
    second = shares.begin()
    clock.now += 4.0
    assert shares.end(first) == 1.0 + 2.0
    clock.now += 1.0
    assert shares.end(second) == 2.0 + 1.0


@pytest.mark.parametrize("count", [1, 7, 31])
def test_many_deliveries_cost_together_what_passed(clock, count):
    shares = CpuShares()
    begun = []
    for _ in range(count):
        begun.append(shares.begin())
        clock.now += 0.5
    spent = 0.0
    for each in begun:
        clock.now += 0.25
        spent += shares.end(each)
    assert spent == pytest.approx(0.75 * count)


@gen_test()
async def test_all_links_of_a_loop_share_its_time():
    assert CpuShares.of_this_loop() is CpuShares.of_this_loop()


def test_a_loop_that_is_gone_leaves_nothing():
    async def reference() -> Any:
        return weakref.ref(CpuShares.of_this_loop())

    found = asyncio.run(reference())
    gc.collect()
    assert found() is None
