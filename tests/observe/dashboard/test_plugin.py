"""Real trainers on real clusters, and what the scheduler knows of them."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import msgpack
import numpy as np
import pytest
import torch
from distributed import Client, Nanny, Status, Worker
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, linear, linear_data, mlp, train_all
from torch import nn
from tornado.ioloop import PeriodicCallback

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.errors import ReplicaFailedError
from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard
from tensair_dask.observe.telemetry import reporter
from tensair_dask.observe.telemetry.replicas import COUNTS
from tensair_dask.observe.telemetry.worker import METRIC

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Clients tell the scheduler more often than once a second."""
    monkeypatch.setattr(reporter, "INTERVAL", 0.02)


REPLICAS = "tensair_dask.observe.telemetry.replicas"


def plugin(s: Any) -> TrainingDashboard:
    return s.plugins[NAME]


def record(s: Any, trainer: ta.Trainer) -> Any:
    return plugin(s).telemetry.trainers[trainer.run_id]


def handlers(s: Any) -> list[str]:
    return [name for name in s.handlers if "tensair_telemetry" in name]


async def until(predicate) -> None:
    while not predicate():
        await asyncio.sleep(0.005)


def steps(trainer: ta.Trainer) -> int:
    return sum(info.steps for info in trainer.replicas)


# ---- counts -------------------------------------------------------------------------


@two()
async def test_totals_are_what_was_emitted(c, s, a, b):
    async with ta.Trainer(c, **classes(), name="digits") as trainer:
        await train_all(trainer, class_data(200))
        # By heartbeats alone, while it is open.
        await until(lambda: record(s, trainer).totals["steps"] == 200)
        assert record(s, trainer).totals["samples"] == 200 * 16
        await until(lambda: record(s, trainer).reported.get("emitted") == 200)
        known = record(s, trainer)
        assert known.state == "open"
        assert known.name == "digits"
        assert known.reported["target"] == len(known.alive) == 2
        assert {each.address for each in known.alive} == {a.address, b.address}
        await train_all(trainer, class_data(33))
    assert known.state == "closed"
    assert known.totals["steps"] == 233
    assert known.totals["samples"] == 233 * 16
    assert known.dead_letters == 0
    (summary,) = plugin(s).telemetry.read(series=True)["trainers"]
    assert summary["emitted"] == 233
    assert summary["backlog"] == 0
    assert {row["state"] for row in summary["replicas"]} == {"closed"}
    assert sum(row["steps"] for row in summary["replicas"]) == 233
    assert summary["events"] == []
    json.dumps(summary, allow_nan=False)


@one()
async def test_a_training_shorter_than_a_heartbeat_is_counted(c, s, a):
    a.periodic_callbacks["heartbeat"].stop()
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(7))
    assert record(s, trainer).totals["steps"] == 7
    assert record(s, trainer).totals["samples"] == 28


@two()
async def test_what_was_learned_is_counted_also_if_it_was_not_drained(c, s, a, b):
    trainer = await ta.Trainer(c, **classes(max_in_flight=4))
    emitting = [asyncio.ensure_future(trainer.train(x, y)) for x, y in class_data(2000)]
    await until(lambda: record(s, trainer).totals["steps"])
    replicas = [
        worker.state.actors[handle.key]
        for worker in (a, b)
        for handle in trainer.session.replicas.handles
        if handle.key in worker.state.actors
    ]
    await trainer.close()
    await asyncio.gather(*emitting, return_exceptions=True)
    learned = sum(replica.thread.counters.steps for replica in replicas)
    reported = sum(task.exception() is None for task in emitting)
    assert 0 < reported <= learned <= 2000
    assert record(s, trainer).totals["steps"] == learned


@one()
async def test_two_replicas_on_one_worker_are_two(c, s, a):
    async with ta.Trainer(c, **classes(replicas=2)) as trainer:
        await train_all(trainer, class_data(100))
        await until(lambda: record(s, trainer).totals["steps"] == 100)
        known = record(s, trainer)
        assert sorted(known.replicas) == ["replica-0", "replica-1"]
        assert {each.slot for each in known.alive} == {0, 1}
        assert all(each.newest["version"] == 100 for each in known.alive)
    assert known.totals["steps"] == 100


@two()
async def test_trainers_at_the_same_time_are_distinguished(c, s, a, b):
    async with (
        ta.Trainer(c, **classes(), name="same") as first,
        ta.Trainer(c, **classes(), name="same") as second,
        ta.Trainer(c, **linear()) as third,
    ):
        await asyncio.gather(
            train_all(first, class_data(50)),
            train_all(second, class_data(70)),
            train_all(third, linear_data(90)),
        )
        for trainer, count in ((first, 50), (second, 70), (third, 90)):
            await until(lambda t=trainer, n=count: record(s, t).totals["steps"] == n)
    known = [record(s, trainer) for trainer in (first, second, third)]
    assert [each.name for each in known] == ["same", "same (2)", "Linear"]
    assert [each.totals["steps"] for each in known] == [50, 70, 90]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_what_a_lost_worker_had_counted_stays(c, s, *workers):
    async with ta.Trainer(c, **classes()) as trainer:
        known = record(s, trainer)
        totals = []
        sample = plugin(s).sample

        def watch() -> None:
            sample()
            totals.append(known.totals["steps"])

        plugin(s).sampling.callback = watch
        emitting = asyncio.ensure_future(train_all(trainer, class_data(3000)))
        await until(lambda: len(known.alive) == 3 and known.totals["steps"])
        (victim,) = (each for each in workers if each.address == known.alive[0].address)
        lost = known.alive[0]
        await victim.close()
        await emitting
        survivors = {
            info.address: info.steps for info in trainer.replicas if info.alive
        }
        await until(
            lambda: (
                {each.address: each.newest["steps"] for each in known.alive}
                == survivors
            )
        )
    assert len(survivors) == 2
    assert lost.state == "left"
    assert totals == sorted(totals)
    kept = [row["steps"] for row in known.summary(2)["replicas"]]
    assert known.totals["steps"] == sum(kept)
    assert sorted(kept) == sorted([*survivors.values(), lost.newest["steps"]])
    assert [event.kind for event in known.events] == ["left"]
    assert trainer.events["kind"].tolist() == ["left"]


@one()
async def test_refused_mini_batches_and_predictions_are_counted(c, s, a):
    data = class_data(5)
    data[1][0][0, 0] = np.nan
    async with ta.Trainer(c, **classes()) as trainer:
        await train_all(trainer, data)
        await trainer.train("no array", 1)  # refused by the client
        await trainer.predict(data[0][0])
        await until(lambda: record(s, trainer).totals["predictions"] == 16)
        assert record(s, trainer).totals["refused"] == 1
        await until(lambda: record(s, trainer).dead_letters == 2)
    assert record(s, trainer).totals["steps"] == 4
    (row,) = record(s, trainer).summary(1)["replicas"]
    assert (row["steps"], row["refused"], row["predictions"]) == (4, 1, 16)


def sometimes(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return torch.where(y.sum() % 2 == 0, torch.tensor(0.25), torch.tensor(torch.nan))


def error(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return prediction.sum() * 0 + 1e20


@one()
async def test_any_metrics_are_reported(c, s, a):
    metrics = {
        "accuracy": ta.metrics.accuracy,
        "größe <b>%": sometimes,
        "\udc80": error,
        "x" * 500: error,
        "fifth": error,
        "sixth": sometimes,
    }
    async with ta.Trainer(c, **classes(metrics=metrics), name="y" * 5000) as trainer:
        known = record(s, trainer)
        data = class_data(400)
        for item in data[:20]:
            await trainer.train(*item)
        await until(lambda: known.totals["steps"] == 20)
        await train_all(trainer, data)
        await until(lambda: known.totals["steps"] == 420)
        event_text = known.summary(1)["now"]["metrics"]
        assert event_text["größe <b>%"] == event_text["sixth"] == 0.25
        assert event_text["fifth"] == event_text["x" * 200] == pytest.approx(1e20)
        assert 0 <= event_text["accuracy"] <= 1
        assert len(event_text) == 6
        assert a.status is Status.running
        json.dumps(plugin(s).telemetry.read(series=True), allow_nan=False)


@two()
async def test_heartbeats_carry_little_and_only_what_is_plain(c, s, a, b):
    metrics = {"accuracy": ta.metrics.accuracy, "sometimes": sometimes}
    async with ta.Trainer(c, **classes(metrics=metrics), name="model") as trainer:
        await train_all(trainer, class_data(300))
        event_text = (await a.get_metrics())[METRIC]
        (counts,) = event_text[trainer.run_id].values()
        assert set(COUNTS) <= set(counts)
        assert counts["trainer"] == "model"
        assert counts["device"] == "cpu"
        assert {type(leaf) for leaf in leaves(event_text)} <= {int, float, str}
        assert len(msgpack.dumps(event_text)) < 900
        assert msgpack.loads(msgpack.dumps(event_text)) == event_text


def leaves(tree: Any) -> Iterator[Any]:
    if isinstance(tree, (dict, list)):
        for each in tree.values() if isinstance(tree, dict) else tree:
            yield from leaves(each)
    else:
        yield tree


# ---- how it begins and ends ---------------------------------------------------------


@two()
async def test_trainers_that_start_together_register_one_plugin(c, s, a, b):
    trainers = [ta.Trainer(c, **linear()) for _ in range(3)]
    await asyncio.gather(*trainers)
    telemetry = plugin(s).telemetry
    assert {each.run_id for each in trainers} == set(telemetry.trainers)
    for trainer in trainers:
        await train_all(trainer, linear_data(10))
        await trainer.close()
    assert plugin(s).telemetry is telemetry
    assert [each.totals["steps"] for each in telemetry.trainers.values()] == [10] * 3


@one(config={"distributed.scheduler.preload": ["tensair_dask.preload"]})
async def test_a_preloaded_plugin_serves_the_trainers(c, s, a):
    preloaded = plugin(s)
    telemetry = preloaded.telemetry
    assert preloaded.sampling.is_running()
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(5))
    assert plugin(s) is preloaded
    assert preloaded.telemetry is telemetry  # was started once
    assert record(s, trainer).totals["steps"] == 5


@one(config={"tensair.dashboard.interval": "50ms"})
async def test_a_plugin_that_is_unregistered_is_gone(c, s, a, caplog):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(5))
        gone = plugin(s)
        known = record(s, trainer)
        await until(lambda: known.archive.tiers[0].added)
        caplog.clear()
        await c.unregister_scheduler_plugin(NAME)
        await until(lambda: not gone.sampling.is_running())
        assert handlers(s) == []
        rows = known.archive.tiers[0].added
        await until(trainer.session.reporter.reporting.done)
        await train_all(trainer, linear_data(5))  # it goes on
        async with ta.Trainer(c, **linear()) as later:
            await train_all(later, linear_data(3))
            assert plugin(s) is not gone
            assert len(handlers(s)) == 4
        assert record(s, later).totals["steps"] == 3
        assert known.archive.tiers[0].added == rows
        assert not gone.sampling.is_running()
    warnings = [
        entry.getMessage()
        for entry in caplog.records
        if entry.name == reporter.__name__ and "not affected" in entry.getMessage()
    ]
    assert sum(NAME in warning for warning in warnings) == 1
    assert steps(trainer) == 10


@one(config={"tensair.dashboard.interval": "50ms"})
async def test_a_plugin_that_is_replaced_leaves_the_handlers_of_the_new_one(c, s, a):
    async with ta.Trainer(c, **linear()):
        old = plugin(s)
        await c.unregister_scheduler_plugin(NAME)
        await c.register_plugin(TrainingDashboard())
        await until(lambda: not old.sampling.is_running())
        assert len(handlers(s)) == 4
        assert plugin(s).sampling.is_running()


@one(config={"tensair.dashboard.interval": 0})
async def test_a_plugin_that_cannot_start_leaves_nothing_behind(c, s, a, caplog):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(5))
    assert NAME not in s.plugins
    assert handlers(s) == []
    (warning,) = [
        entry.getMessage()
        for entry in caplog.records
        if entry.name == reporter.__name__ and entry.levelno >= logging.WARNING
    ]
    assert "not affected" in warning


@one()
async def test_an_unreadable_report_is_logged_once_and_stops_nothing(c, s, a, caplog):
    async with ta.Trainer(c, **linear()) as trainer:
        await until(lambda: record(s, trainer).alive)
        s.workers[a.address].metrics = {METRIC: {trainer.run_id: {"replica-0": 3}}}
        a.periodic_callbacks["heartbeat"].stop()
        for _ in range(3):
            plugin(s).sample()
        await train_all(trainer, linear_data(3))
    said = [entry for entry in caplog.records if "heartbeats" in entry.getMessage()]
    assert [entry.levelno >= logging.WARNING for entry in said].count(True) == 1
    assert record(s, trainer).totals["steps"] == 3


@one(config={"tensair.dashboard.enabled": False})
async def test_a_trainer_that_is_not_to_be_shown_reports_nothing(c, s, a):
    metrics = set(a.metrics)
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(5))
        assert set(a.metrics) == metrics
        assert METRIC not in await a.get_metrics()
        await trainer.mark("lunch")
        assert trainer.events["text"].tolist() == ["lunch"]
    assert NAME not in s.plugins
    assert handlers(s) == []


@one()
async def test_one_trainer_may_be_shown_and_another_not(c, s, a):
    import dask

    with dask.config.set({"tensair.dashboard.enabled": False}):
        hidden = await ta.Trainer(c, **linear())
    async with ta.Trainer(c, **linear()) as shown:
        await train_all(hidden, linear_data(5))
        await train_all(shown, linear_data(3))
        assert list((await a.get_metrics())[METRIC]) == [shown.run_id]
        assert list(plugin(s).telemetry.trainers) == [shown.run_id]
    await hidden.close()


@one()
async def test_a_trainer_that_cannot_start_is_over(c, s, a):
    def broken() -> nn.Module:
        raise ValueError("no such file")

    with pytest.raises(errors.ModelError):
        await ta.Trainer(c, **linear(model=broken))
    (known,) = plugin(s).telemetry.trainers.values()
    assert known.state == "closed"
    assert known.replicas == {}


class Gate(nn.Module):
    """Is built when the test lets it."""

    entered = threading.Event()
    go_on = threading.Event()

    def __init__(self) -> None:
        super().__init__()
        self.layer = mlp()
        Gate.entered.set()
        Gate.go_on.wait(30)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


@one()
async def test_a_trainer_that_is_closed_while_it_starts_is_over(c, s, a):
    trainer = ta.Trainer(c, **classes(model=Gate))
    starting = asyncio.ensure_future(trainer.session.start())
    await until(Gate.entered.is_set)
    assert record(s, trainer).state == "starting"
    closing = asyncio.ensure_future(trainer.close())
    Gate.go_on.set()
    await closing
    await asyncio.wait([starting])
    await until(lambda: record(s, trainer).state == "closed")


@one()
async def test_a_client_that_vanishes_leaves_nothing_behind(c, s, a):
    metrics = set(a.metrics)
    other = await Client(s.address, asynchronous=True)
    trainer = await ta.Trainer(other, **linear())
    await train_all(trainer, linear_data(20))
    await until(lambda: record(s, trainer).totals["steps"] == 20)
    (replica,) = a.state.actors.values()
    replica = weakref.ref(replica)
    await other.close()
    await until(lambda: record(s, trainer).state == "lost")
    assert record(s, trainer).totals["steps"] == 20
    await until(lambda: not a.state.actors)
    await until(lambda: set(a.metrics) == metrics)
    while replica() is not None:
        gc.collect()
        await asyncio.sleep(0.01)
    await trainer.close()


@one()
async def test_after_many_trainers_nothing_is_left(c, s, a):
    def left() -> dict[str, int]:
        gc.collect()
        return {
            "handlers": len(s.handlers),
            "plugins": len(s.plugins),
            "metrics": len(a.metrics),
            "callbacks": sum(
                each.is_running()
                for each in gc.get_objects()
                if type(each) is PeriodicCallback
            ),
            "replicas": len(a.state.actors),
        }

    before = {}
    for number in range(20):
        async with ta.Trainer(c, **linear()) as trainer:
            await train_all(trainer, linear_data(2))
        while a.state.actors:
            await asyncio.sleep(0.005)
        await a.heartbeat()
        if number == 1:
            before = left()
    assert METRIC not in a.metrics
    assert left() == before
    assert len(plugin(s).telemetry.trainers) == 16


# ---- the cluster changes ------------------------------------------------------------


@one()
async def test_workers_that_come_later_are_seen(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        async with Worker(s.address) as later:
            await train_all(trainer, linear_data(5))
            await until(lambda: record(s, trainer).totals["steps"] == 5)
            plugin(s).sample()
            assert plugin(s).telemetry.read()["workers"] == 2
            async with ta.Trainer(c, **linear()) as another:
                await train_all(another, linear_data(5))
                await until(lambda: len(record(s, another).alive) == 2)
                assert {each.address for each in record(s, another).alive} == {
                    a.address,
                    later.address,
                }
        assert record(s, trainer).archive.whole()["workers"].max() == 2
    # The trainer that was there first has got a replica on it, too.
    assert [event.kind for event in record(s, trainer).events] == ["joined", "left"]


@two()
async def test_a_replica_that_cannot_go_on_is_lost(c, s, a, b, monkeypatch):
    monkeypatch.setattr(f"{REPLICAS}.SILENCE", 0.5)
    monkeypatch.setattr(f"{REPLICAS}.HEARTBEATS", 0)
    async with ta.Trainer(c, **linear()) as trainer:
        await until(lambda: len(record(s, trainer).alive) == 2)
        replica = a.state.actors[
            next(
                h.key
                for h in trainer.session.replicas.handles
                if h.place.address == a.address
            )
        ]

        def fail() -> None:
            raise ReplicaFailedError("no memory")

        with pytest.raises(ReplicaFailedError):
            await replica.thread.call(fail)
        await until(lambda: replica.thread.has_ended)

        async def beat() -> None:
            while True:
                await asyncio.gather(a.heartbeat(), b.heartbeat())
                await asyncio.sleep(0.05)

        beating = asyncio.ensure_future(beat())
        known = record(s, trainer)
        await until(lambda: len(known.alive) == 1)
        assert known.alive[0].address == b.address
        beating.cancel()
        await asyncio.wait([beating])


@one()
async def test_a_worker_whose_heartbeats_stop_is_shown_as_silent(c, s, a, monkeypatch):
    monkeypatch.setattr(f"{REPLICAS}.SILENCE", 0.5)
    monkeypatch.setattr(f"{REPLICAS}.HEARTBEATS", 0)
    async with ta.Trainer(c, **classes()) as trainer:
        known = record(s, trainer)
        a.periodic_callbacks["heartbeat"].stop()
        for _ in range(3):
            await train_all(trainer, class_data(50))
            await a.heartbeat()
            plugin(s).sample()
        assert known.row(1)["samples"] > 0
        await until(lambda: known.alive[0].state == "silent")
        assert known.row(1)["samples"] == 0
        await train_all(trainer, class_data(50))
        await a.heartbeat()
        plugin(s).sample()
        assert known.alive[0].state == "learning"
    assert known.totals["steps"] == 200


@pytest.mark.processes
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, Worker=Nanny, timeout=120)
async def test_a_restart_loses_the_replicas_and_nothing_else(c, s, a, b, caplog):
    trainer = await ta.Trainer(c, **linear())
    await train_all(trainer, linear_data(30))
    known = record(s, trainer)
    await until(lambda: known.totals["steps"] == 30)
    await c.restart()
    assert known.alive == []
    assert [each.state for each in known.replicas.values()] == ["lost", "lost"]
    await trainer.close()
    assert known.state == "closed"
    assert known.totals["steps"] == 30
    async with ta.Trainer(c, **linear()) as later:
        await train_all(later, linear_data(5))
        await until(lambda: record(s, later).totals["steps"] == 5)
    assert not [
        entry
        for entry in caplog.records
        if entry.levelno >= logging.ERROR and entry.name.startswith("tensair")
    ]


VANISHING = """
    import functools, os, signal, sys
    import numpy as np, torch
    from distributed import Client
    import tensair_dask as ta

    client = Client(sys.argv[1])
    trainer = ta.Trainer(
        client,
        model=functools.partial(torch.nn.Linear, 6, 3),
        loss=torch.nn.functional.mse_loss,
        optimizer=functools.partial(torch.optim.SGD, lr=0.01),
    )
    for _ in range(10):
        trainer.train(np.zeros((4, 6), "float32"), np.zeros((4, 3), "float32"))
    print("trained", flush=True)
    sys.stdin.read(1)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.processes
@one()
async def test_a_client_that_is_killed_leaves_nothing_behind(c, s, a):
    metrics = set(a.metrics)
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(VANISHING),
        s.address,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert (await process.stdout.readline()).strip() == b"trained"
    (known,) = plugin(s).telemetry.trainers.values()
    assert known.name == "Linear"
    await until(lambda: known.totals["steps"] == 10)
    process.stdin.write(b"x")
    await process.wait()
    await until(lambda: known.state == "lost")
    await until(lambda: not a.state.actors)
    await until(lambda: set(a.metrics) == metrics)
    assert known.totals["samples"] == 40


# ---- events -------------------------------------------------------------------------


@one()
async def test_what_is_marked_is_an_event_everywhere(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        await trainer.mark("new shop", kind="drift")
        await trainer.mark("lunch")
        with pytest.raises(errors.ConfigurationError, match="'note'"):
            await trainer.mark("what", kind="no such kind")
        known = [(event.kind, event.text) for event in record(s, trainer).events]
        assert known == [("drift", "new shop"), ("note", "lunch")]
        frame = trainer.events
        assert frame[["kind", "text"]].to_numpy().tolist() == [list(k) for k in known]
        logged = await c.get_events("tensair")
        assert [message["text"] for _, message in logged] == ["new shop", "lunch"]
    with pytest.raises(errors.TrainerClosedError):
        await trainer.mark("too late")
    assert len(trainer.events) == 2


@one()
async def test_lag_is_how_long_the_oldest_has_waited(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        assert trainer.lag == 0
        emitting = asyncio.ensure_future(train_all(trainer, linear_data(300)))
        await until(lambda: trainer.backlog)
        assert trainer.lag > 0
        await emitting
        assert trainer.lag == 0


@one()
async def test_the_scheduler_answers_requests(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        await train_all(trainer, class_data(5))
        await a.heartbeat()
        plugin(s).sample()
        event_text = await c.scheduler.tensair_telemetry_read(series=True)
        (known,) = event_text["trainers"]
        assert known["run_id"] == trainer.run_id
        assert len(known["series"]["time"]) >= 1
