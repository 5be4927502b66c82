from __future__ import annotations

import pytest

from tensair_dask.exchange.pacer import Pacer


def test_a_cheap_exchange_happens_often():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.published(cost=0.001)
    assert pacer.interval == pytest.approx(0.01)


def test_the_bound_on_staleness_wins_over_the_budget():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.published(cost=1.0)
    assert pacer.interval == pytest.approx(0.1)


def test_what_delivery_takes_counts_against_the_bound():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.published(cost=1.0)
    pacer.delivered(0.03)
    assert pacer.interval == pytest.approx(0.07)


def test_what_becomes_due_during_the_next_step_leaves_before_it():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.published(cost=1.0)
    for _ in range(100):
        pacer.stepped(0.04)
    assert pacer.due(7.0, busy=True) == pytest.approx(7.06)
    assert pacer.due(7.0, busy=False) == pytest.approx(7.1)


def test_a_delivery_slower_than_the_bound_does_not_make_every_step_publish():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.published(cost=1.0)
    pacer.delivered(5.0)
    assert pacer.interval == pytest.approx(0.025)


def test_nothing_pending_is_never_due():
    pacer = Pacer(share=0.1, staleness=0.1)
    assert pacer.due(None, busy=True) is None
    assert pacer.due(7.0, busy=False) == 7.0


def test_one_slow_delivery_is_remembered_for_a_while():
    pacer = Pacer(share=0.1, staleness=0.1)
    pacer.delivered(0.05)
    pacer.delivered(0.01)
    assert 0.03 < pacer.delivery < 0.05
