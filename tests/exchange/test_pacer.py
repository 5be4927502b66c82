from __future__ import annotations

import pytest

from tensair_dask.exchange import pacer as module
from tensair_dask.exchange.pacer import LATEST, THRIFT, Pacer


class Clocks:
    """A clock on the wall, and one that stands still where there is no CPU."""

    def __init__(self):
        self.wall = self.work = 100.0

    def work_for(self, seconds):
        self.wall += seconds
        self.work += seconds

    def wait_for_a_cpu(self, seconds):
        self.wall += seconds


@pytest.fixture
def clocks(monkeypatch):
    clocks = Clocks()
    monkeypatch.setattr(module, "work_time", lambda: clocks.work)
    monkeypatch.setattr(module.time, "monotonic", lambda: clocks.wall)
    return clocks


def pacer_that_has_published(cost=0.001, share=0.1, staleness=0.1):
    pacer = Pacer(share=share, staleness=staleness)
    pacer.published(cost)
    return pacer


def test_a_cheap_exchange_happens_often():
    assert pacer_that_has_published(0.0001).interval == pytest.approx(0.001 / THRIFT)


def test_the_bound_on_age_makes_an_exchange_more_frequent_than_is_thrifty():
    assert pacer_that_has_published(0.005).interval == pytest.approx(0.1)


def test_what_delivery_takes_is_not_left_for_gathering():
    pacer = pacer_that_has_published(0.005)
    pacer.delivered(0.03)
    assert pacer.interval == pytest.approx(0.07)


def test_the_budget_wins_over_the_bound_on_age():
    assert pacer_that_has_published(0.03).interval == pytest.approx(0.3)


def test_gradients_leave_in_the_end_however_much_it_costs():
    assert pacer_that_has_published(1e6).interval == pytest.approx(LATEST * 0.1)


def test_a_delivery_that_takes_longer_than_the_bound_does_not_mean_to_publish_always():
    pacer = pacer_that_has_published(0.001)
    pacer.delivered(5.0)
    assert pacer.interval == pytest.approx(0.025)


def test_nothing_is_due_where_nothing_is_pending(clocks):
    assert pacer_that_has_published().due(None, busy=True) is None


def test_what_is_pending_first_is_due_at_once(clocks):
    assert Pacer(share=0.1, staleness=0.1).due(clocks.wall, busy=True) <= clocks.wall


def test_an_idle_replica_publishes_as_soon_as_the_budget_allows_it(clocks):
    pacer = pacer_that_has_published(0.001)
    clocks.work_for(0.004)
    assert pacer.due(clocks.wall, busy=False) == pytest.approx(clocks.wall + 0.006)
    clocks.work_for(0.006)
    assert pacer.due(clocks.wall, busy=False) <= clocks.wall + 1e-9


def test_a_busy_replica_gathers_for_as_long_as_is_thrifty(clocks):
    pacer = pacer_that_has_published(0.001)
    oldest = clocks.wall
    clocks.work_for(0.01)
    expected = oldest + 0.01 / THRIFT
    assert pacer.due(oldest, busy=True) == pytest.approx(expected)


def test_time_without_a_cpu_does_not_count_as_work(clocks):
    pacer = pacer_that_has_published(0.001)
    oldest = clocks.wall
    clocks.wait_for_a_cpu(0.05)
    clocks.work_for(0.01)
    # Of the 40 ms that are thrifty, 30 are left.
    assert pacer.due(oldest, busy=True) == pytest.approx(clocks.wall + 0.03)


def test_old_gradients_leave_before_it_is_thrifty(clocks):
    pacer = pacer_that_has_published(0.005)
    oldest = clocks.wall
    clocks.wait_for_a_cpu(0.05)
    clocks.work_for(0.05)
    assert pacer.due(oldest, busy=True) <= clocks.wall + 1e-9


def test_but_not_before_the_budget_allows_it(clocks):
    pacer = pacer_that_has_published(0.005)
    oldest = clocks.wall
    clocks.wait_for_a_cpu(0.9)
    clocks.work_for(0.02)
    assert pacer.due(oldest, busy=True) == pytest.approx(clocks.wall + 0.03)


def test_what_becomes_due_within_a_step_leaves_before_it(clocks):
    pacer = pacer_that_has_published(0.005)
    for _ in range(100):
        pacer.stepped(0.04)
    oldest = clocks.wall
    assert pacer.due(oldest, busy=True) == pytest.approx(oldest + 0.06)


def test_a_slow_delivery_counts_at_once_and_a_fast_one_gradually():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.delivered(0.05)
    pacer.delivered(0.01)
    assert 0.03 < pacer.delivery < 0.05
