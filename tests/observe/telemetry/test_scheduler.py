"""Telemetry from heartbeats and clients' messages, without a cluster."""

from __future__ import annotations

import json
import math
import sys

import pytest
from heartbeats import Learning, Scheduler

from tensair_dask.observe.telemetry.scheduler import Telemetry, finite
from tensair_dask.observe.telemetry.worker import METRIC


class Bench:
    """Telemetry of a scheduler whose workers hold a replica each."""

    def __init__(self, workers: int = 2, **options: int) -> None:
        self.scheduler = Scheduler(workers)
        self.telemetry = Telemetry(self.scheduler, **options)
        self.replicas: dict[tuple[str, str, str], Learning] = {}

    def open(self, run_id: str = "run", name: str = "model", *metrics: str) -> bool:
        opened = self.telemetry.open(run_id, name, "client", list(metrics), None)
        for number, address in enumerate(self.scheduler.workers):
            replica = Learning(*metrics)
            self.replicas[run_id, address, f"replica-{number}"] = replica
        return opened

    def beat(self) -> None:
        for (run_id, address, name), replica in self.replicas.items():
            if address in self.scheduler.workers:
                snapshot = replica.beat()
                self.scheduler.workers[address].tell(run_id, name, snapshot)
        self.telemetry.sample()

    def remove(self, address: str) -> None:
        del self.scheduler.workers[address]
        self.telemetry.remove_worker(address)

    def last(self, run_id: str = "run") -> dict[str, tuple[str, dict]]:
        """What replicas answer when they are closed."""
        return {
            name: (address, replica.beat())
            for (run, address, name), replica in self.replicas.items()
            if run == run_id
        }

    def steps(self, run_id: str = "run") -> int:
        return sum(
            replica.counters.steps
            for (run, *_), replica in self.replicas.items()
            if run == run_id
        )

    def __getitem__(self, run_id: str):
        return self.telemetry.trainers[run_id]


@pytest.mark.parametrize("beats", [0, 1, 7])
def test_totals_are_exact_after_closing_however_few_heartbeats_came(beats):
    bench = Bench()
    bench.open()
    for _ in range(beats):
        for replica in bench.replicas.values():
            replica.learn(5)
        bench.beat()
    for replica in bench.replicas.values():
        replica.learn(3)
    bench.telemetry.close("run", bench.last())
    assert bench["run"].totals["steps"] == bench.steps() > 0
    assert bench["run"].state == "closed"
    assert bench["run"].archive.whole()["replicas"][-1] == 2
    states = {row["state"] for row in bench["run"].summary(2)["replicas"]}
    assert states == {"closed"}


def test_what_comes_after_closing_changes_nothing():
    bench = Bench()
    bench.open()
    bench.beat()
    bench.telemetry.close("run", bench.last())
    rows = len(bench["run"].archive.whole()["time"])
    for replica in bench.replicas.values():
        replica.learn(100)
    bench.beat()
    bench.telemetry.close("run", bench.last())
    assert bench["run"].totals["steps"] == 0
    assert len(bench["run"].archive.whole()["time"]) == rows


def test_a_worker_that_leaves_takes_its_replicas_of_all_trainers_along():
    bench = Bench()
    bench.open("run")
    bench.open("other")
    first, second = bench.scheduler.workers
    for replica in bench.replicas.values():
        replica.learn(10)
    bench.beat()
    bench.remove(first)
    for replica in bench.replicas.values():
        replica.learn(10)
    bench.beat()
    for run_id in ("run", "other"):
        assert [each.address for each in bench[run_id].alive] == [second]
        assert bench[run_id].totals["steps"] == 30
        assert [event.kind for event in bench[run_id].events] == ["lost"]
    answered = {"replica-1": bench.last()["replica-1"]}
    bench.telemetry.close("run", answered)
    assert bench["run"].totals["steps"] == 30


def test_all_workers_may_leave_at_once():
    bench = Bench()
    bench.open()
    bench.beat()
    for address in list(bench.scheduler.workers):
        bench.remove(address)
    bench.telemetry.sample()
    assert bench["run"].alive == []
    assert bench["run"].state == "starting"
    json.dumps(bench.telemetry.read(series=True), allow_nan=False)


def test_one_heartbeat_that_lacks_the_counts_loses_no_replica():
    bench = Bench()
    bench.open()
    bench.beat()
    for worker in bench.scheduler.workers.values():
        worker.metrics = {"cpu": 1.0}
    bench.telemetry.sample()
    assert len(bench["run"].alive) == 2
    bench.beat()
    assert [event.kind for event in bench["run"].events] == []


def test_a_replica_that_its_worker_has_dropped_is_lost_in_the_end(monkeypatch):
    bench = Bench()
    bench.open()
    bench.beat()
    first = next(iter(bench.scheduler.workers.values()))
    first.metrics = {"cpu": 1.0}
    from tensair_dask.observe.telemetry import replicas

    monkeypatch.setattr(replicas, "SILENCE", -1.0)
    monkeypatch.setattr(replicas, "HEARTBEATS", -1)
    bench.telemetry.sample()
    assert [each.name for each in bench["run"].alive] == ["replica-1"]
    assert [event.kind for event in bench["run"].events] == ["lost"]


def test_workers_that_come_later_are_counted():
    bench = Bench(workers=1)
    bench.open()
    bench.beat()
    more = Scheduler(3).workers
    bench.scheduler.workers |= {
        address: worker
        for address, worker in more.items()
        if address not in bench.scheduler.workers
    }
    bench.beat()
    assert bench.telemetry.read()["workers"] == 3
    assert bench["run"].archive.whole()["workers"].tolist() == [1, 3]


def test_a_client_that_goes_ends_its_trainers_and_no_others():
    bench = Bench()
    bench.open("run")
    bench.telemetry.open("other", "model", "another client", [], 2)
    bench.telemetry.open("third", "model", "client", [], 2)
    bench.telemetry.close("third", {})
    bench.beat()
    bench.telemetry.remove_client("client")
    states = {run: record.state for run, record in bench.telemetry.trainers.items()}
    assert states == {"run": "lost", "other": "starting", "third": "closed"}


def test_trainers_of_one_name_are_distinguished():
    bench = Bench()
    for number in range(3):
        bench.open(f"run-{number}", "model")
    bench.open("run-3", "model (2)")
    names = [record.name for record in bench.telemetry.trainers.values()]
    assert names == ["model", "model (2)", "model (3)", "model (2) (2)"]


def test_names_are_distinguished_and_bounded_however_long():
    bench = Bench()
    bench.open("run-0", "x" * 100_000)
    bench.open("run-1", "x" * 100_000)
    first, second = (record.name for record in bench.telemetry.trainers.values())
    assert first != second
    assert max(len(first), len(second)) < 300


def test_opening_twice_is_opening_once():
    bench = Bench()
    assert bench.open()
    bench.beat()
    record = bench["run"]
    assert bench.telemetry.open("run", "model", "client", [], None)
    assert bench["run"] is record


def test_trainers_are_opened_and_closed_in_bounded_memory():
    bench = Bench(trainers=3)
    for number in range(20):
        assert bench.open(f"run-{number}")
        bench.telemetry.close(f"run-{number}", {})
    assert list(bench.telemetry.trainers) == ["run-17", "run-18", "run-19"]


def test_open_trainers_do_not_make_room():
    bench = Bench(trainers=2)
    assert bench.open("run-0")
    assert bench.open("run-1")
    assert not bench.open("run-2")
    assert not bench.telemetry.update("run-2", {})
    bench.telemetry.close("run-2", {})
    bench.beat()
    assert list(bench.telemetry.trainers) == ["run-0", "run-1"]
    bench.telemetry.close("run-0", {})
    assert bench.open("run-2")
    assert list(bench.telemetry.trainers) == ["run-1", "run-2"]


def test_what_the_client_says_is_shown():
    bench = Bench()
    bench.open()
    reported = {"state": "open", "emitted": 9, "backlog": 2, "lag": 0.5, "target": 2}
    assert bench.telemetry.update("run", reported)
    (summary,) = bench.telemetry.read()["trainers"]
    assert {name: summary[name] for name in reported} == reported
    assert not bench.telemetry.update("no such run", reported)


@pytest.mark.parametrize(
    "message",
    [
        None,
        3,
        "text",
        [],
        {},
        {"run_id": "run"},
        {"run_id": [], "kind": "note", "text": ""},
        {"run_id": "run", "kind": [], "text": ""},
        {"run_id": "run", "kind": "no such kind", "text": ""},
        {"run_id": "no such run", "kind": "note", "text": ""},
        {"run_id": "run", "kind": "note", "text": "", "time": "noon"},
        {"run_id": "run", "kind": "note", "text": "", "time": None},
        {"run_id": "run", "kind": "note", "text": "", "time": math.nan},
        {"run_id": "run", "kind": "note", "text": "", "time": 10**400},
    ],
)
def test_what_is_no_event_is_passed_over(message):
    bench = Bench()
    bench.open()
    bench.telemetry.event(message)
    assert len(bench["run"].events) == 0


def test_an_event_is_kept_in_bounded_length():
    bench = Bench()
    bench.open()
    message = {"run_id": "run", "kind": "drift", "text": "x" * 10**6, "time": 7.0}
    bench.telemetry.event(message)
    (event,) = bench["run"].events
    assert (event.kind, event.time) == ("drift", 7.0)
    assert len(event.text) == 1000


def test_everything_is_json_also_what_is_no_number():
    bench = Bench()
    bench.open("run", "größe <b>", "a", "%")
    bench.telemetry.update("run", {"lag": math.inf, "backlog": math.nan})
    bench.beat()
    for replica in bench.replicas.values():
        replica.learn(metrics=(math.nan, 1.0))
        replica.exchange["age_p95"] = math.inf
    bench.beat()
    reported = json.loads(
        json.dumps(bench.telemetry.read(series=True), allow_nan=False)
    )
    (trainer,) = reported["trainers"]
    assert trainer["lag"] is None
    assert trainer["now"]["metrics"] == {"a": None, "%": 1.0}
    assert trainer["series"]["metric_0"] == [None, None]
    assert len(trainer["series"]["time"]) == 2


def test_finite_leaves_all_else_alone():
    tree = {"a": [1, 2.5, "x", None, True, (math.nan, -math.inf)], "b": {"c": 1e300}}
    assert finite(tree) == {
        "a": [1, 2.5, "x", None, True, [None, None]],
        "b": {"c": 1e300},
    }


def test_many_replicas_of_many_trainers_keep_apart():
    bench = Bench(workers=20)
    for number in range(5):
        bench.open(f"run-{number}", "model")
    for position, replica in enumerate(bench.replicas.values()):
        replica.learn(position % 7)
    bench.beat()
    bench.beat()
    for number in range(5):
        record = bench[f"run-{number}"]
        assert record.totals["steps"] == bench.steps(f"run-{number}")
        assert len(record.alive) == 20


def test_an_archive_of_a_trainer_has_a_fixed_size():
    bench = Bench(length=50)
    bench.open()

    def size() -> int:
        tiers = bench["run"].archive.tiers
        return sum(sys.getsizeof(tier._ring) for tier in tiers)

    before = size()
    for _ in range(200):
        bench.beat()
    assert size() == before
    assert len(bench["run"].archive.since()["time"]) == 50


def test_another_metric_of_that_name_is_passed_over_if_it_is_empty():
    bench = Bench()
    bench.open()
    next(iter(bench.scheduler.workers.values())).metrics[METRIC] = None
    bench.telemetry.sample()
