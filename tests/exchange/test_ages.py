from __future__ import annotations

import pytest

from tensair_dask.exchange.ages import LOOK, Ages


def ages_of(*seconds, bound=0.1):
    ages = Ages()
    for each in seconds:
        ages.add(100, 3, each, bound)
    return ages


def test_messages_are_counted_and_summed_up():
    statistics = ages_of(0.01, 0.02, 0.06).statistics()
    assert statistics["received"] == 3
    assert statistics["received_bytes"] == 300
    assert statistics["age_mean"] == pytest.approx(0.03)
    assert statistics["age_max"] == 0.06
    assert statistics["staleness_mean"] == 3


def test_without_messages_all_is_nothing():
    assert set(Ages().statistics().values()) == {0}


def test_ages_that_stay_above_the_bound_are_late():
    assert ages_of(*[0.2] * LOOK).late == pytest.approx(0.2)


def test_a_single_old_message_is_not_late():
    assert not ages_of(*[0.01] * (LOOK - 1), 2.0).late


def test_ages_are_late_no_more_once_the_bound_holds_again():
    assert not ages_of(*[0.2] * LOOK, *[0.05] * LOOK).late
