from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from tensair_dask.errors import ShapeError
from tensair_dask.observe.telemetry import curves
from tensair_dask.observe.telemetry.curves import COLUMNS, Curves
from tensair_dask.reports import Report

START = 1_700_000_000.0


class Clock:
    """Wall clock and monotonic clock that stand still until they are moved."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def time(self) -> float:
        return START + self.seconds

    def monotonic(self) -> float:
        return self.seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(curves, "time", clock)
    return clock


class Run:
    """Curves, and a trainer's end of them."""

    def __init__(self, clock: Clock, metrics: tuple[str, ...] = (), rows: int = 100):
        self.clock = clock
        self.state = {"backlog": 0, "lag": 0.0, "replicas": 2}
        self.curves = Curves(metrics, lambda: dict(self.state), 0.25, rows)

    def report(self, at: float, waited: float = 0.01, **values) -> None:
        self.clock.seconds = at
        values = {"loss": 1.0, "metrics": {}, "samples": 10, **values}
        report = Report(0, time=self.clock.time(), **values)
        self.curves.observe(report, taken=at - waited)

    def frame(self, at: float | None = None) -> pd.DataFrame:
        if at is not None:
            self.clock.seconds = at
        return self.curves.frame()


def since_start(frame: pd.DataFrame) -> np.ndarray:
    return (frame["time"] - pd.Timestamp(START, unit="s", tz="UTC")).dt.total_seconds()


def learned(frame: pd.DataFrame) -> float:
    return (frame["samples_per_second"] * frame["seconds"]).sum()


def test_a_row_now_and_then_and_nothing_is_missing_between_them(clock):
    run = Run(clock)
    for number in range(1, 1001):
        run.report(at=number * 0.01, samples=3)
    frame = run.frame()
    assert len(frame) == 40
    assert frame["seconds"].min() >= 0.249
    assert frame["seconds"].sum() == pytest.approx(10)
    assert frame["samples_per_second"].to_numpy() == pytest.approx(300, rel=0.05)
    assert frame["steps_per_second"].to_numpy() == pytest.approx(100, rel=0.05)
    assert learned(frame) == pytest.approx(3000)
    assert frame["steps"].iloc[-1] == 1000
    assert frame["samples"].iloc[-1] == 3000


def test_columns_and_times_in_utc(clock):
    run = Run(clock, metrics=("accuracy",))
    run.report(at=0.1, metrics={"accuracy": 0.5})
    frame = run.frame()
    assert [name for name in frame if name != "accuracy"] == list(COLUMNS)
    assert frame.columns.get_loc("accuracy") == frame.columns.get_loc("loss_max") + 1
    assert str(frame["time"].dt.tz) == "UTC"
    assert since_start(frame).iloc[-1] == pytest.approx(0.1)


def test_loss_and_metrics_are_means_over_samples(clock):
    run = Run(clock, metrics=("accuracy", "share"))
    run.report(0.1, loss=1.0, samples=10, metrics={"accuracy": 0.2, "share": math.nan})
    run.report(0.2, loss=4.0, samples=30, metrics={"accuracy": 0.6, "share": 0.7})
    row = run.frame().iloc[-1]
    assert row["loss"] == pytest.approx((1.0 * 10 + 4.0 * 30) / 40)
    assert (row["loss_min"], row["loss_max"]) == (1.0, 4.0)
    assert row["accuracy"] == pytest.approx((0.2 * 10 + 0.6 * 30) / 40)
    assert row["share"] == pytest.approx(0.7), "what is no number does not count"


def test_extremes_are_those_of_a_row_not_of_the_run(clock):
    run = Run(clock)
    run.report(0.1, loss=9.0, staleness=7)
    run.report(0.3, loss=1.0, staleness=1)
    run.report(0.5, loss=2.0, staleness=3)
    frame = run.frame()
    assert frame["loss_max"].tolist() == [9.0, 2.0]
    assert frame["loss_min"].tolist() == [1.0, 2.0]
    assert frame["staleness_max"].tolist() == [7, 3]
    assert frame["staleness"].tolist() == [4, 3]


def test_staleness_is_that_of_the_steps_before_which_gradients_came(clock):
    run = Run(clock)
    run.report(0.1, staleness=0)
    run.report(0.3, staleness=0)
    run.report(0.31, staleness=6)
    run.report(0.56, staleness=2)
    assert run.frame()["staleness"].tolist() == [0, 4]


def test_a_message_that_comes_just_after_a_row_does_not_look_like_a_burst(clock):
    run = Run(clock)
    for number in range(1, 26):
        run.report(0.01 * number, loss=2.0)
    run.report(0.251, loss=5.0, staleness=3)
    last = run.frame()
    assert last["samples_per_second"].tolist() == pytest.approx([1036], rel=0.01)
    assert last["loss_max"].tolist() == [5.0]
    # The same where nothing comes after it.
    run.report(3.0)
    frame = run.frame()
    assert frame["samples_per_second"].iloc[0] == pytest.approx(1036, rel=0.01)
    assert frame["loss_max"].iloc[0] == 5.0
    assert frame["staleness_max"].iloc[0] == 3
    assert frame["samples_per_second"].iloc[1] == 0
    assert learned(frame) == pytest.approx(270)


def test_a_short_burst_after_a_rest_is_a_row_of_its_own(clock):
    run = Run(clock)
    run.report(0.1)
    run.report(10.0, waited=0.02)
    row = run.frame().iloc[-1]
    assert row["seconds"] == pytest.approx(0.02)
    assert row["samples_per_second"] == pytest.approx(500)


def test_refused_mini_batches_are_dead_letters_and_nothing_else(clock):
    run = Run(clock)
    run.report(0.1)
    run.report(0.2, loss=math.nan, error=ShapeError("no"))
    row = run.frame().iloc[-1]
    assert row["dead_letters"] == 1
    assert row["steps"] == 1
    assert row["loss"] == 1.0


def test_a_stretch_with_nothing_to_learn_shows_as_one(clock):
    run = Run(clock)
    for number in range(1, 101):
        run.report(number * 0.01)
    for number in range(1, 101):
        run.report(5 + number * 0.01)
    frame = run.frame()
    ends = since_start(frame)
    idle = frame[(ends > 1.01) & (ends <= 5.0)]
    assert len(idle) >= 10
    assert (idle["samples_per_second"] == 0).all()
    assert idle["loss"].isna().all()
    assert idle["loss_max"].isna().all()
    assert (idle["backlog"] == 0).all()
    assert idle["seconds"].sum() == pytest.approx(4.0, abs=0.02)
    busy = frame[(ends <= 1.01) | (ends > 5.01)]
    assert busy["samples_per_second"].min() > 900
    assert learned(frame) == pytest.approx(2000)


def test_long_rests_do_not_push_out_what_was_learned(clock):
    run = Run(clock, rows=100)
    run.report(0.1)
    run.report(100_000.0)
    frame = run.frame()
    assert len(frame) < 20
    assert frame["seconds"].sum() == pytest.approx(100_000)
    assert frame["steps"].iloc[-1] == 2


def test_a_slow_step_is_no_idle_stretch(clock):
    run = Run(clock)
    for number in range(1, 6):
        run.report(at=4.0 * number, waited=8.0, samples=2)
    frame = run.frame()
    assert frame["seconds"].tolist() == pytest.approx([4.0] * 5)
    assert frame["samples_per_second"].tolist() == pytest.approx([0.5] * 5)
    assert (frame["lag"].iloc[1:] == 8.0).all(), "as long as the mini-batch waited"


def test_the_newest_row_ends_now(clock):
    run = Run(clock)
    run.report(0.1)
    frame = run.frame(at=3.1)
    assert since_start(frame).tolist() == pytest.approx([0.1, 0.35, 3.1])
    assert frame["samples_per_second"].tolist() == pytest.approx([100, 0, 0])
    # Looking changes nothing.
    run.report(3.2, waited=0.1)
    assert learned(run.frame()) == pytest.approx(20)


def test_of_mini_batches_that_are_being_learned_nothing_is_known(clock):
    run = Run(clock)
    run.report(0.1)
    run.state |= {"backlog": 3, "lag": 9.0}
    row = run.frame(at=10.0).iloc[-1]
    assert math.isnan(row["samples_per_second"])
    assert row["backlog"] == 3
    assert row["lag"] == 9.0
    assert row["replicas"] == 2


def test_before_the_first_report_there_is_one_empty_row(clock):
    run = Run(clock)
    frame = run.frame(at=0.1)
    assert len(frame) == 1
    assert frame["samples"].tolist() == [0]
    assert frame["loss"].isna().all()


def test_a_run_that_began_later_shows_nothing_of_before(clock):
    run = Run(clock)
    clock.seconds = 50.0
    run.curves.begin()
    run.report(50.1)
    frame = run.frame()
    assert frame["seconds"].sum() == pytest.approx(0.1)


def test_after_the_end_nothing_changes(clock):
    run = Run(clock)
    run.report(0.1)
    run.state["replicas"] = 1
    clock.seconds = 2.0
    run.curves.end()
    run.state["replicas"] = 0
    before = run.frame()
    clock.seconds = 100.0
    run.curves.end()
    pd.testing.assert_frame_equal(run.frame(), before)
    assert before["replicas"].iloc[-1] == 1
    assert before["seconds"].sum() == pytest.approx(2.0)


def test_a_clock_that_is_set_back_gives_one_long_row(clock):
    run = Run(clock)
    run.report(1.0, waited=1.0)
    run.report(0.2)
    run.report(0.3)
    run.report(1.1)
    frame = run.frame()
    assert (frame["seconds"] > 0).all()
    assert frame["steps"].iloc[-1] == 4


def test_a_long_run_is_kept_from_its_beginning_in_bounded_memory(clock):
    run = Run(clock, metrics=("accuracy",), rows=50)
    loss = np.random.default_rng(0).random(20_000)
    for number, value in enumerate(loss, start=1):
        run.report(
            number * 0.3, waited=0.3, loss=value, metrics={"accuracy": value}, samples=2
        )
    frame = run.frame()
    assert 50 / 4 <= len(frame) <= 50 + 9 * 3
    assert frame["seconds"].sum() == pytest.approx(6_000)
    assert learned(frame) == pytest.approx(40_000)
    weights = frame["seconds"] * frame["samples_per_second"]
    assert (frame["loss"] * weights).sum() / 40_000 == pytest.approx(loss.mean())
    assert (frame["accuracy"] * weights).sum() / 40_000 == pytest.approx(loss.mean())
    assert frame["loss_max"].max() == loss.max()
    assert frame["loss_min"].min() == loss.min()


def test_of_a_run_longer_than_is_kept_the_newest_is_shown(clock):
    run = Run(clock, rows=1)
    for number in range(1, 4**8 * 2 + 100):
        run.report(number * 0.3, waited=0.3)
    frame = run.frame()
    assert frame["samples_per_second"].to_numpy() == pytest.approx(10 / 0.3, rel=0.01)


@pytest.mark.parametrize("rows", [8, 1000])
def test_a_score_that_comes_later_has_a_column_which_is_empty_before(clock, rows):
    run = Run(clock, ("a",), rows=rows)
    for number in range(1, 201):
        late = {"b.c": 3.0} if number > 100 else {}
        run.report(at=number * 0.1, metrics={"a": 1.0, **late})
    assert run.curves.metrics == ["a", "b.c"]
    frame = run.frame()
    assert (frame["a"].dropna() == 1).all()
    before = since_start(frame) <= 10
    assert frame["b.c"][before].isna().all()
    assert (frame["b.c"][~before].dropna() == 3).all()
    assert frame["b.c"][~before].notna().any()


def test_no_more_scores_are_added_up_than_may(clock, monkeypatch):
    monkeypatch.setattr(curves, "MOST_METRICS", 3)
    run = Run(clock, ("a",))
    for number in range(1, 21):
        run.report(at=number * 0.1, metrics={f"key {number}": 1.0})
    assert len(run.curves.metrics) == 3
    assert len(run.frame())
