"""Reports of many replicas as one stream."""

from __future__ import annotations

import random

import pytest

from tensair_dask.drift.reorder import InOrder


def pass_through(order: InOrder[str], indices) -> list[str]:
    return [each for index in indices for each in order.put(index, f"{index}")]


def test_what_comes_in_order_passes_at_once():
    order = InOrder(10)
    assert order.put(0, "a") == ["a"]
    assert order.put(1, "b") == ["b"]


def test_what_comes_too_early_waits():
    order = InOrder(10)
    assert order.put(2, "c") == []
    assert order.put(1, "b") == []
    assert order.put(0, "a") == ["a", "b", "c"]


@pytest.mark.parametrize("seed", range(5))
def test_any_order_becomes_the_order_of_submission(seed):
    indices = list(range(200))
    random.Random(seed).shuffle(indices)
    assert pass_through(InOrder(200), indices) == [str(i) for i in range(200)]


def test_what_has_nothing_to_pass_on_holds_nothing_up():
    order = InOrder(10)
    assert order.put(1, "b") == []
    assert order.put(0, None) == ["b"]
    assert order.put(2, None) == []
    assert order.put(3, "d") == ["d"]


def test_a_gap_that_stays_is_given_up():
    order = InOrder(3)
    assert pass_through(order, [1, 2, 3]) == []
    assert order.put(4, "4") == ["1", "2", "3", "4"]
    assert order.put(5, "5") == ["5"]


def test_what_comes_after_its_gap_was_given_up_passes_late():
    order = InOrder(1)
    pass_through(order, [1, 2])
    assert order.late == 0
    assert order.put(0, "a") == ["a"]
    assert order.late == 1
    assert order.put(3, "d") == ["d"]


def test_no_more_than_allowed_are_held_back():
    order = InOrder(50)
    passed = 0
    for index in range(1, 10_000):
        passed += len(order.put(2 * index, "x"))  # every other one never comes
        assert index - passed <= 50


def test_it_may_begin_later():
    order = InOrder(10, start=5)
    assert order.put(5, "a") == ["a"]
    assert order.put(3, "b") == ["b"]
