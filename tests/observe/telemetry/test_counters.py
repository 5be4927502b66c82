"""A replica counts its steps."""

from __future__ import annotations

import math
import random
import threading
from fractions import Fraction

import msgpack
import pytest

from tensair_dask.observe.telemetry.counters import Counters, Total, plain

NAN = float("nan")


def test_counts_are_sums():
    counters = Counters(["accuracy"])
    counters.scored(4, 0.5, [1.0], 0.25)
    counters.scored(12, 1.5, [0.5], 0.5)
    counters.refused += 1
    reported = counters.snapshot()
    assert reported["steps"] == 2
    assert reported["samples"] == 16
    assert reported["refused"] == 1
    assert reported["busy"] == 0.75
    assert reported["loss"] == 20.0
    assert reported["metrics"] == {"accuracy": [10.0, 0.0, 16]}


@pytest.mark.parametrize("bad", [NAN, math.inf, -math.inf])
def test_a_metric_that_is_not_finite_does_not_count(bad):
    counters = Counters(["a", "b"])
    counters.scored(4, 1.0, [bad, 1.0], 0.0)
    counters.scored(2, 1.0, [0.5, bad], 0.0)
    assert counters.snapshot()["metrics"] == {"a": [1.0, 0.0, 2], "b": [4.0, 0.0, 4]}


@pytest.mark.parametrize("bad", [NAN, math.inf, 1e308])
def test_a_loss_that_cannot_be_summed_spoils_nothing(bad):
    counters = Counters()
    counters.scored(4, 1.0, [], 0.0)
    counters.scored(4, bad, [], 0.0)
    counters.scored(4, 1.0, [], 0.0)
    assert counters.snapshot()["loss"] == 8.0
    assert counters.steps == 3


def test_what_comes_after_an_outlier_is_counted_as_before():
    total = Total()
    total.add(1e22)
    before = total.value, total.rest
    for _ in range(1000):
        total.add(0.7)
    grown = (total.value - before[0]) + (total.rest - before[1])
    assert grown == pytest.approx(700)


def test_totals_are_those_of_exact_arithmetic():
    generator = random.Random(0)
    total, exact = Total(), Fraction(0)
    for _ in range(5000):
        summand = generator.choice([1e20, -1e20, 1.0, 1e-5]) * generator.random()
        assert total.add(summand)
        exact += Fraction(summand)
    assert float(Fraction(total.value) + Fraction(total.rest) - exact) < 1e-6


def test_a_snapshot_is_small_plain_and_fit_for_msgpack():
    counters = Counters([f"metric number {number}" for number in range(4)])
    counters.scored(4, 0.1, [0.1] * 4, 0.1)
    reported = counters.snapshot()
    packed = msgpack.dumps(reported)
    assert msgpack.loads(packed) == reported
    assert len(packed) < 500
    numbers = [value for name, value in reported.items() if name != "metrics"]
    assert {type(value) for value in numbers} == {int, float}


@pytest.mark.parametrize(
    "name", ["größe", "%&<b>", "", " ", "a\n", "\0", "\udc80", 7, ("a", 1), None]
)
def test_any_name_of_a_metric_can_be_reported(name):
    counters = Counters([name])
    counters.scored(1, 1.0, [0.5], 0.0)
    reported = msgpack.loads(msgpack.dumps(counters.snapshot()))
    assert reported["metrics"] == {plain(name): [0.5, 0.0, 1]}


def test_a_long_name_is_cut():
    assert plain("x" * 1000) == "x" * 200
    assert plain("x" * 1000, 5) == "xxxxx"
    assert plain("übung") == "übung"


def test_two_counters_are_distinguished():
    first = Counters()
    while (second := Counters()).began == first.began:
        pass
    assert first.snapshot()["began"] != second.snapshot()["began"]


def test_counts_that_are_read_while_a_thread_writes_them_never_go_back():
    counters = Counters(["a"])
    rounds = 20_000

    def learn() -> None:
        for _ in range(rounds):
            counters.scored(2, 1.0, [1.0], 0.5)

    thread = threading.Thread(target=learn)
    thread.start()
    before = counters.snapshot()
    while thread.is_alive():
        reported = counters.snapshot()
        for name in ("at", "steps", "samples", "busy", "loss"):
            assert reported[name] >= before[name]
        assert abs(reported["samples"] - 2 * reported["steps"]) <= 2
        before = reported
    thread.join()
    reported = counters.snapshot()
    assert reported["steps"] == rounds
    assert reported["samples"] == reported["loss"] == 2 * rounds
    assert reported["metrics"]["a"] == [2.0 * rounds, 0.0, 2 * rounds]


def test_scores_that_get_a_name_later_are_counted_from_there():
    names = ["a"]
    counters = Counters(names)
    counters.scored(4, 1.0, [1.0], 0.0)
    names.append("b.c")
    counters.scored(2, 1.0, [None, 0.5], 0.0)
    counters.scored(2, 1.0, [1.0, 1.5], 0.0)
    assert counters.snapshot()["metrics"] == {"a": [6.0, 0.0, 6], "b.c": [4.0, 0.0, 4]}
