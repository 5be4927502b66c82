"""The record of one trainer on the scheduler."""

from __future__ import annotations

import json
import math
import random
import time

import pytest
from heartbeats import Learning

from tensair_dask.observe.telemetry.scheduler import finite
from tensair_dask.observe.telemetry.trainers import (
    COLUMNS,
    METRICS,
    SLOTS,
    TrainerRecord,
)


class Run:
    """A trainer's record and its replicas, each on a worker of its own."""

    def __init__(self, replicas: int = 2, *metrics: str) -> None:
        self.metrics = metrics
        self.record = TrainerRecord("run", "model", "client", metrics, replicas)
        self.replicas: dict[str, Learning] = {}
        for _ in range(replicas):
            self.add()

    def add(self) -> Learning:
        replica = Learning(*self.metrics)
        self.replicas[f"replica-{len(self.replicas)}"] = replica
        return replica

    def beat(self, *names: str) -> None:
        for name in names or self.replicas:
            self.observe(name)

    def observe(self, name: str) -> None:
        snapshot = self.replicas[name].beat()
        self.record.observe(name, f"tcp://{name}:1", snapshot)

    def lose(self, name: str) -> None:
        self.record.lose(self.record.replicas[name])

    def kinds(self) -> list[str]:
        return [event.kind for event in self.record.events]

    @property
    def steps(self) -> int:
        return sum(each.counters.steps for each in self.replicas.values())


def test_totals_are_exact_whichever_heartbeats_are_lost():
    generator = random.Random(0)
    run = Run(5)
    before = 0.0
    for _ in range(300):
        for name, replica in run.replicas.items():
            replica.learn(generator.randrange(5), generator.randrange(1, 9))
            if generator.random() < 0.3:
                run.beat(name)
        assert before <= run.record.totals["steps"] <= run.steps
        before = run.record.totals["steps"]
    run.beat()
    totals = run.record.totals
    assert totals["steps"] == run.steps
    samples = sum(each.counters.samples for each in run.replicas.values())
    assert totals["samples"] == samples
    busy = sum(each.counters.busy for each in run.replicas.values())
    assert totals["busy"] == pytest.approx(busy)


def test_what_a_lost_replica_had_counted_stays():
    run = Run(2)
    run.replicas["replica-0"].learn(10)
    run.replicas["replica-1"].learn(5)
    run.beat()
    run.lose("replica-0")
    run.replicas["replica-1"].learn(5)
    run.beat("replica-1")
    assert run.record.totals["steps"] == 20
    assert [each.name for each in run.record.alive] == ["replica-1"]
    states = {row["replica"]: row["state"] for row in run.record.summary(2)["replicas"]}
    assert states == {"replica-0": "lost", "replica-1": "learning"}
    assert run.kinds() == ["lost"]


def test_a_replica_that_was_given_up_too_early_comes_back():
    run = Run(2)
    run.beat()
    run.lose("replica-0")
    run.replicas["replica-0"].learn(7)
    run.beat()
    assert run.record.totals["steps"] == 7
    assert len(run.record.alive) == 2
    assert {each.slot for each in run.record.alive} == {0, 1}
    assert run.kinds() == ["lost", "joined"]


def test_a_replica_that_comes_back_leaves_its_line_to_the_one_that_has_it_now():
    run = Run(SLOTS)
    run.beat()
    run.lose("replica-0")
    run.add()
    run.beat(*(f"replica-{number}" for number in range(1, SLOTS + 1)))
    run.beat()
    slots = {each.name: each.slot for each in run.record.alive}
    assert slots["replica-1"] == 1
    assert slots[f"replica-{SLOTS}"] == 0
    assert slots["replica-0"] is None


def test_an_old_report_of_a_lost_replica_does_not_bring_it_back():
    run = Run(1)
    snapshot = run.replicas["replica-0"].beat()
    run.record.observe("replica-0", "tcp://replica-0:1", snapshot)
    run.lose("replica-0")
    run.record.observe("replica-0", "tcp://replica-0:1", snapshot)
    assert not run.record.alive


def test_one_replica_is_not_counted_on_two_workers():
    run = Run(1)
    run.replicas["replica-0"].learn(3)
    run.beat()
    impostor = Learning()
    impostor.learn(50)
    run.record.observe("replica-0", "tcp://elsewhere:1", impostor.beat())
    assert run.record.totals["steps"] == 3
    run.lose("replica-0")
    run.record.observe("replica-0", "tcp://elsewhere:1", impostor.beat())
    assert run.record.totals["steps"] == 53
    assert run.record.alive[0].address == "tcp://elsewhere:1"


def test_replicas_beyond_the_first_are_said_to_join():
    run = Run(2)
    run.beat()
    assert run.kinds() == []
    run.add()
    run.beat()
    assert run.kinds() == ["joined"]


def test_a_replica_that_leaves_is_not_said_to_be_lost():
    run = Run(2)
    run.beat()
    run.record.leave("replica-1")
    run.replicas["replica-1"].learn(7)
    run.beat()  # the last heartbeat comes later
    run.record.leave("unknown")
    assert [each.name for each in run.record.alive] == ["replica-0"]
    assert run.record.replicas["replica-1"].state == "left"
    assert run.record.totals["steps"] == 7
    assert run.kinds() == []


def test_a_replica_that_was_about_to_leave_when_its_worker_went_is_not_lost():
    run = Run(2)
    run.beat()
    run.record.leave("replica-1", now=False)
    assert len(run.record.alive) == 2
    run.lose("replica-1")
    run.record.leave("replica-1")  # its client says so a little later
    assert run.record.replicas["replica-1"].state == "left"
    assert run.kinds() == []


def test_lines_are_handed_on():
    run = Run(SLOTS + 2)
    run.beat()
    slots = [each.slot for each in run.record.alive]
    assert slots == [*range(SLOTS), None, None]
    run.lose("replica-3")
    run.add()
    run.beat(f"replica-{SLOTS + 2}")
    assert run.record.replicas[f"replica-{SLOTS + 2}"].slot == 3
    used = [each.slot for each in run.record.alive if each.slot is not None]
    assert sorted(used) == list(range(SLOTS))


def test_a_bounded_number_of_lost_replicas_is_kept():
    run = Run(0)
    for number in range(150):
        run.add().learn()
        run.beat(f"replica-{number}")
        run.lose(f"replica-{number}")
    assert len(run.record.replicas) == 100
    assert run.record.totals["steps"] == 150
    assert "replica-149" in run.record.replicas


def test_a_row_is_the_sum_and_the_extremes_of_the_replicas():
    run = Run(3)
    run.beat()
    for number, replica in enumerate(run.replicas.values()):
        replica.learn(100 * (number + 1), samples=2, loss=float(number))
        replica.exchange |= {
            "sent_bytes": 1000,
            "staleness_mean": float(number),
            "staleness_p95": 2 * number,
            "staleness_max": 3 * number,
            "age_p95": number / 10,
        }
    run.beat()
    run.record.update({"backlog": 7, "lag": 0.25, "dead_letters": 2, "target": 4})
    row = run.record.row(workers=5)
    assert set(row) <= set(COLUMNS)
    expected = {
        "steps": 1200,
        "samples": 2400,
        "sent": 6000,
        "loss": (0 * 100 + 1 * 200 + 2 * 300) / 600,
        "loss_least": 0,
        "loss_most": 2,
        "speed": 800,
        "speed_least": 400,
        "speed_most": 1200,
        "staleness": 1,
        "staleness_p95": 4,
        "staleness_most": 6,
        "age": 0.2,
        "backlog": 7,
        "lag": 0.25,
        "dead_letters": 2,
        "replicas": 3,
        "target": 4,
        "workers": 5,
        "speed_2": 1200,
        "loss_1": 1,
        "staleness_2": 2,
    }
    for name, value in expected.items():
        assert row[name] == pytest.approx(value), name


def test_a_stopped_replica_adds_nothing_to_a_row():
    run = Run(2)
    for _ in range(4):
        for replica in run.replicas.values():
            replica.learn(50)
        run.beat()
    assert run.record.row(2)["steps"] == pytest.approx(200)
    first = run.record.replicas["replica-0"]
    first.listen(time.monotonic() + 6)
    assert run.record.row(2)["steps"] == pytest.approx(100)
    assert run.record.row(2)["replicas"] == 2


def test_more_metrics_than_lines_are_all_reported():
    names = [f"metric {number}" for number in range(METRICS + 3)]
    run = Run(2, *names)
    run.beat()
    values = tuple(number / 10 for number in range(len(names)))
    for replica in run.replicas.values():
        replica.learn(metrics=values)
    run.beat()
    row, now = run.record.row(2), run.record.summary(2)["now"]
    assert now["metrics"] == pytest.approx(dict(zip(names, values, strict=True)))
    for number in range(METRICS):
        assert row[f"metric_{number}"] == pytest.approx(values[number])


def test_a_metric_is_the_mean_over_the_samples_that_had_it():
    run = Run(2, "a")
    run.beat()
    first, second = run.replicas.values()
    first.learn(samples=6, metrics=(0.5,))
    second.learn(samples=2, metrics=(1.0,))
    second.learn(samples=100, metrics=(math.nan,))
    run.beat()
    assert run.record.row(2)["metric_0"] == pytest.approx((3 + 2) / 8)
    second.learn(metrics=(math.nan,))
    run.beat()
    run.record.sample(2)
    json.dumps(finite(run.record.summary(2)), allow_nan=False)


def test_nothing_is_known_before_replicas_report():
    run = Run(0)
    row = run.record.row(0)
    assert row["samples"] == row["replicas"] == 0
    assert math.isnan(row["loss"])
    json.dumps(finite(run.record.summary(0)), allow_nan=False)


def test_when_it_is_over_replicas_are_closed_and_nobody_is_lost():
    run = Run(2)
    run.beat()
    run.lose("replica-0")
    run.record.end("closed")
    rows = {row["replica"]: row["state"] for row in run.record.summary(2)["replicas"]}
    assert rows == {"replica-0": "lost", "replica-1": "closed"}
    assert run.kinds() == ["lost"]
    assert run.record.is_over
    run.record.update({"state": "open"})
    run.record.end("lost")
    assert run.record.state == "closed"


def test_a_silent_client_ends_it_once_it_has_no_replicas():
    run = Run(1)
    run.beat()
    now = time.monotonic()
    late = now + 61
    run.record.replicas["replica-0"].observe(run.replicas["replica-0"].beat(), late)
    run.record.listen(late)
    assert not run.record.is_over
    run.lose("replica-0")
    run.record.listen(now + 1)
    assert not run.record.is_over
    run.record.listen(late)
    assert run.record.state == "lost"


def test_the_summary_has_mode_and_phase():
    record = TrainerRecord("run", "m", "client", target=1)
    assert (record.summary(1)["mode"], record.summary(1)["phase"]) == (
        "always",
        "training",
    )
    record.update({"mode": "auto", "phase": "predicting"})
    assert record.summary(1)["phase"] == "predicting"


def test_the_summary_has_what_the_replicas_share():
    record = TrainerRecord("run", "m", "client", target=1)
    assert record.summary(1)["share"] == ""  # not known at the start
    record.update({"share": "update"})
    assert record.summary(1)["share"] == "update"
