"""The speed of a replica is computed from its heartbeats."""

from __future__ import annotations

import math

import pytest
from heartbeats import Learning

from tensair_dask.observe.telemetry.replicas import (
    LONGEST,
    PARTS,
    SILENCE,
    ReplicaRecord,
)


class Watch:
    """A replica, its record, and the scheduler's clock."""

    def __init__(self, *metrics: str, gap: float = 0.5) -> None:
        self.replica = Learning(*metrics)
        self.record = ReplicaRecord("replica-0", "tcp://a:1", 0)
        self.gap = gap
        self.now = 100.0
        self.spent = 0.0  # of the step that goes on

    def beat(self) -> dict[str, float]:
        self.now += self.gap
        growth = self.record.observe(self.replica.beat(self.gap), self.now)
        assert self.record.listen(self.now)
        return growth

    def learn(self, seconds: float, every: float) -> list[float]:
        """Take so long for each step; the rates that are seen meanwhile."""
        rates = []
        for _ in range(round(seconds / self.gap)):
            self.spent += self.gap
            steps = math.floor(self.spent / every + 1e-6)
            self.spent -= steps * every
            self.replica.learn(steps, seconds=every)
            self.beat()
            rates.append(self.record.rate("steps"))
        return rates

    def idle(self, seconds: float) -> None:
        self.spent = 0.0
        for _ in range(round(seconds / self.gap)):
            self.beat()

    def stop(self, seconds: float) -> None:
        """No heartbeat comes; the last one is still seen."""
        last = self.record.newest
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            assert self.record.observe(last, self.now) == {}
            assert self.record.listen(self.now)


@pytest.mark.parametrize("gap", [0.1, 0.5, 1.0, 2.0, 6.0])
def test_the_rate_of_fast_steps(gap):
    watch = Watch(gap=gap)
    watch.learn(60, every=0.001)
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.01)
    assert watch.record.rate("samples") == pytest.approx(4000, rel=0.01)
    assert watch.record.rate("busy") == pytest.approx(1, rel=0.01)
    assert watch.record.state == "learning"


def test_a_rate_is_known_after_two_heartbeats():
    watch = Watch()
    assert watch.learn(0.5, every=0.001) == [0]
    assert watch.learn(0.5, every=0.001) == [pytest.approx(1000, rel=0.01)]


@pytest.mark.parametrize("gap", [0.5, 2.0])
@pytest.mark.parametrize("every", [1.5, 3.0, 10.0, 14.0])
def test_the_rate_of_slow_steps_is_steady(every, gap):
    watch = Watch(gap=gap)
    watch.learn(8 * every, every)
    rates = watch.learn(6 * every, every)
    assert min(rates) > 0.7 / every
    assert max(rates) < 1.35 / every
    assert sum(rates) / len(rates) == pytest.approx(1 / every, rel=0.1)
    assert watch.record.state == "learning"


def test_when_steps_become_slow_the_rate_is_never_overrated():
    watch = Watch()
    watch.learn(30, every=0.001)
    watch.learn(4, every=10.0)
    rates = watch.learn(100, every=10.0)
    assert max(rates) < 1.35 / 10
    assert min(rates[12:]) > 0.7 / 10


def test_when_steps_become_fast_the_rate_follows_within_seconds():
    watch = Watch()
    watch.learn(100, every=10.0)
    watch.learn(4, every=0.001)
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.1)


def test_a_slow_first_step_is_soon_forgotten():
    watch = Watch()
    watch.learn(20, every=20.0)
    watch.learn(4, every=0.001)
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.1)


@pytest.mark.parametrize("gap", [0.5, 1.0, 2.0])
def test_the_rate_of_an_idle_replica_is_zero_within_seconds(gap):
    watch = Watch("accuracy", gap=gap)
    for _ in range(20):
        watch.replica.learn(100, metrics=(1.0,))
        watch.beat()
    assert watch.record.metric("accuracy")[1] > 0
    watch.idle(max(3.0, 2 * gap))
    record = watch.record
    assert record.rate("samples") == record.rate("busy") == 0
    assert record.state == "waiting"
    assert math.isnan(record.loss())
    assert record.metric("accuracy") == (0, 0)


def test_an_idle_replica_of_slow_steps_does_not_go_on_for_ever():
    watch = Watch()
    watch.learn(1000, every=100.0)
    watch.idle(LONGEST + LONGEST / PARTS + 1)
    assert watch.record.rate("steps") == 0


@pytest.mark.parametrize("gap", [0.5, 2.0, 6.0])
def test_a_replica_whose_heartbeats_stop_has_no_rate_any_more(gap):
    watch = Watch(gap=gap)
    watch.learn(60, every=0.001)
    watch.stop(max(SILENCE, 3 * gap) - 1)
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.01)
    watch.stop(2)
    assert watch.record.rate("steps") == 0
    assert math.isnan(watch.record.loss())
    assert watch.record.state == "silent"
    assert watch.record.row()["steps"] == watch.replica.counters.steps


def test_a_replica_that_is_heard_again_is_as_before():
    watch = Watch()
    watch.learn(10, every=0.001)
    watch.stop(60)
    watch.replica.clock += 60
    watch.learn(3, every=0.001)
    assert watch.record.state == "learning"
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.1)


def test_a_replica_that_its_worker_does_not_report_is_given_up_after_a_while():
    watch = Watch()
    watch.learn(5, every=0.001)
    assert watch.record.listen(watch.now + SILENCE)
    assert not watch.record.listen(watch.now + SILENCE + 0.1)


def test_growth_is_exact_whichever_heartbeats_are_lost():
    watch = Watch()
    grown = dict.fromkeys(("steps", "samples"), 0.0)
    for number in range(100):
        watch.replica.learn(number % 7, samples=3)
        snapshot = watch.replica.beat()
        if number % 3 and number != 99:
            continue
        for _ in range(2):  # read twice
            growth = watch.record.observe(snapshot)
            for name in grown:
                grown[name] += growth.get(name, 0)
    assert grown["steps"] == watch.replica.counters.steps
    assert grown["samples"] == watch.replica.counters.samples


def test_an_older_heartbeat_changes_nothing():
    watch = Watch()
    old = watch.replica.beat()
    watch.learn(5, every=0.01)
    before = watch.record.row()
    assert watch.record.observe(old, watch.now) == {}
    assert watch.record.row() == before


@pytest.mark.parametrize("clock", [0.0, 1e6])
def test_a_replica_that_begins_anew_counts_from_zero(clock):
    watch = Watch()
    watch.learn(5, every=0.001)
    watch.replica = Learning(clock=clock)
    watch.replica.learn(7)
    assert watch.beat()["steps"] == 7
    assert watch.record.rate("steps") == 0
    watch.learn(1, every=0.001)
    assert watch.record.rate("steps") == pytest.approx(1000, rel=0.01)


def test_the_loss_is_that_of_the_samples_of_the_window():
    watch = Watch()
    for loss in (9.0, 8.0, 1.0, 2.0, 3.0, 4.0, 5.0):
        watch.replica.learn(loss=loss, samples=4)
        watch.beat()
    assert watch.record.loss() == pytest.approx((2 + 3 + 4 + 5) / 4)


def test_after_an_outlier_the_loss_is_right_again():
    watch = Watch("error")
    watch.learn(3, every=0.01)
    watch.replica.learn(loss=1e21, metrics=(1e22,))
    watch.beat()
    assert watch.record.loss() > 1e18
    for _ in range(8):
        watch.replica.learn(50, loss=0.7, metrics=(0.3,))
        watch.beat()
    assert watch.record.loss() == pytest.approx(0.7)
    total, samples = watch.record.metric("error")
    assert total / samples == pytest.approx(0.3)


def test_a_metric_counts_only_where_it_was_a_number():
    watch = Watch("a", "b")
    watch.beat()
    watch.replica.learn(metrics=(math.nan, 1.0), samples=6)
    watch.replica.learn(metrics=(0.5, 0.0), samples=2)
    watch.beat()
    assert watch.record.metric("a") == (1.0, 2)
    assert watch.record.metric("b") == (6.0, 8)
    assert watch.record.metric("no such metric") == (0, 0)


@pytest.mark.parametrize("every", [0.001, 1.0, 30.0])
def test_few_snapshots_are_kept(every):
    watch = Watch()
    for _ in range(20):
        watch.learn(30, every)
        assert len(watch.record._snapshots) < PARTS + 4
    watch.record.lose()
    assert len(watch.record._snapshots) == 1


def test_a_lost_replica_keeps_its_counts_and_has_no_rate():
    watch = Watch()
    watch.learn(5, every=0.001)
    watch.record.lose()
    row = watch.record.row()
    assert row["state"] == "lost"
    assert row["steps"] == watch.replica.counters.steps
    assert row["samples_per_second"] == row["busy"] == 0
    watch.record.lose(closed=True)
    assert watch.record.state == "closed"


def test_nothing_is_known_before_the_first_heartbeat():
    record = ReplicaRecord("replica-0", "tcp://a:1", None)
    row = record.row()
    assert row["state"] == "waiting"
    assert row["steps"] == row["samples_per_second"] == 0
    assert record.metric("a") == (0, 0)


def test_a_replica_that_only_scores_is_predicting():
    watch = Watch()
    watch.beat()
    for learned, state in ((False, "predicting"), (True, "learning")):
        watch.replica.counters.scored(4, 0.5, (), 0.001, learned)
        watch.beat()
        assert watch.record.state == state
    assert watch.record.grown("predicted") == 1
    assert watch.record.losses() == (4.0, 8)
