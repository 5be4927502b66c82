from __future__ import annotations

import asyncio
import builtins
import gc
import math
import sys
import weakref
from typing import Any

import pytest
from distributed import Client, Scheduler, Worker
from distributed.utils_test import async_poll_for, gen_cluster
from helpers import class_data, classes, train_all
from tornado.httpclient import AsyncHTTPClient

import tensair_dask as ta
from tensair_dask.observe.dashboard.plugin import NAME
from tensair_dask.observe.telemetry import prometheus
from tensair_dask.observe.telemetry.scheduler import Telemetry
from tensair_dask.observe.telemetry.worker import WorkerTelemetry

parser = pytest.importorskip("prometheus_client.parser")

NAMESPACE = "dask_tensair_"


async def scrape(server) -> dict[tuple[str, ...], float]:
    """Value by name and labels, without the run, as one scrape of a server gives it."""
    url = f"http://127.0.0.1:{server.http_server.port}/metrics"
    text = (await AsyncHTTPClient().fetch(url)).body.decode()
    found = {}
    for family in parser.text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith(NAMESPACE):
                name = sample.name.removeprefix(NAMESPACE)
                labels = {k: v for k, v in sample.labels.items() if k != "run"}
                key = (name, *(labels[label] for label in sorted(labels)))
                assert key not in found, f"{key} is there twice"
                found[key] = sample.value
    return found


async def until(condition):
    """Ask again and again until it holds; the timeout of the test is the bound."""
    while not (found := await condition()):
        await asyncio.sleep(0.05)
    return found


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_scheduler_and_workers_export_a_training(c, s, a, b):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, name="flowers", **classes(metrics=metrics)) as trainer:
        await train_all(trainer, class_data(40))
        refused = await trainer.train([[1.0]], [0])
        assert refused.error is not None
        await trainer.predict(class_data(1)[0][0])
        await trainer.mark("less rain", "drift")

        async def reported():
            found = await scrape(s)
            complete = (
                found.get(("steps_total", "flowers")) == 40
                and found.get(("predictions_total", "flowers")) == 16
                and found.get(("dead_letters_total", "flowers")) == 1
                and found.get(("emitted_total", "flowers")) == 41
            )
            return found if complete else None

        found = await until(reported)
        assert found["samples_total", "flowers"] == 40 * 16
        assert found["events_total", "drift", "flowers"] == 1
        assert found["trainer_open", "flowers"] == 1
        assert found["replicas", "flowers"] == found["replicas_target", "flowers"] == 2
        assert found["workers", "flowers"] == 2
        assert found["sent_bytes_total", "flowers"] > 0
        assert found["received_bytes_total", "flowers"] > 0
        assert found["busy_seconds_total", "flowers"] > 0
        assert found["staleness_max", "flowers"] >= found["staleness_mean", "flowers"]
        assert found["age_p95_seconds", "flowers"] > 0
        assert found["backlog", "flowers"] == found["lag_seconds", "flowers"] == 0

        replicas = {
            key[1:]: value
            for key, value in (await scrape(a)).items()
            if key[0] == "replica_steps_total"
        }
        assert {key[0] for key in replicas} == {"replica-0", "replica-1"}
        assert {key[2] for key in replicas} == {a.address, b.address}
        assert sum(replicas.values()) == 40


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_the_mean_of_a_metric_can_be_computed_from_its_sums(c, s, a):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, name="m", **classes(metrics=metrics)) as trainer:
        reports = await train_all(trainer, class_data(30))
        found = await scrape(a)
        labels = ("accuracy", "replica-0", "m", a.address)
        mean = (
            found[("replica_summed_metric", *labels)]
            / found[("replica_metric_samples_total", *labels)]
        )
        truth = sum(one.metrics["accuracy"] for one in reports) / len(reports)
        assert mean == pytest.approx(truth)
        loss = found[("replica_summed_loss", *labels[1:])] / (30 * 16)
        assert loss == pytest.approx(sum(one.loss for one in reports) / len(reports))


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_loss_and_metrics_are_exported_while_it_learns(c, s, a):
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, name="m", **classes(metrics=metrics)) as trainer:
        data = class_data(50)

        async def reported():
            await train_all(trainer, data)
            found = await scrape(s)
            return found if ("loss", "m") in found else None

        found = await until(reported)
        assert 0 < found["loss", "m"] < 2
        assert 0 < found["metric", "accuracy", "m"] <= 1


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_of_a_closed_trainer_the_totals_remain(c, s, a):
    async with ta.Trainer(c, name="m", **classes()) as trainer:
        await train_all(trainer, class_data(20))

    async def without_replicas():  # they are told of until Dask has dropped them
        found = await scrape(s)
        return None if any(key[0].startswith("replica_") for key in found) else found

    found = await until(without_replicas)
    assert found["steps_total", "m"] == 20
    assert found["trainer_open", "m"] == 0
    assert not {"loss", "backlog", "replicas", "staleness_mean"} & {k[0] for k in found}


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_two_clusters_of_one_process_are_exported_once_and_apart(c, s, a):
    async with (
        Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as other,
        Worker(other.address, host="127.0.0.1", nthreads=1) as worker,
        Client(other.address, asynchronous=True) as client,
        ta.Trainer(c, name="one", **classes()) as first,
        ta.Trainer(client, name="two", **classes()) as second,
    ):
        await train_all(first, class_data(10))
        await train_all(second, class_data(20))

        async def reported():
            found = await scrape(other)
            steps = {key[1:]: v for key, v in found.items() if key[0] == "steps_total"}
            return found if steps == {("one",): 10, ("two",): 20} else None

        found = await until(reported)
        assert found["replica_steps_total", "replica-0", "one", a.address] == 10
        assert found["replica_steps_total", "replica-0", "two", worker.address] == 20


def sources() -> set[int]:
    """Who is asked for samples; Dask keeps some closed workers of other tests alive."""
    gc.collect()
    collector = prometheus._collector
    return set(collector._sources) if collector else set()


def families() -> list[Any]:
    """What prometheus_client asks for, of all that is registered there."""
    from prometheus_client.core import REGISTRY

    return [each for each in REGISTRY.collect() if each.name.startswith(NAMESPACE)]


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_nothing_is_kept_of_what_is_gone(c, s, a):
    before = sources()
    async with ta.Trainer(c, **classes()) as trainer:
        await train_all(trainer, class_data(5))
        replicas = weakref.ref(WorkerTelemetry.of(a))
        assert len(sources() - before) == 2
    assert [key for key in await scrape(s) if key[0] == "steps_total"]
    await async_poll_for(lambda: replicas() is None, timeout=10)
    await c.unregister_scheduler_plugin(NAME)

    async def forgotten():
        return await scrape(s) == {}

    await until(forgotten)
    assert sources() <= before


def test_an_exported_object_is_not_kept_alive():
    before = sources()
    telemetry = Telemetry(None)
    prometheus.export_scheduler(telemetry)
    gone = weakref.ref(telemetry)
    del telemetry
    gc.collect()
    assert gone() is None
    assert sources() <= before


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_telemetry_that_fails_costs_the_other_series_nothing(c, s, a, caplog):
    async with ta.Trainer(c, name="m", **classes()) as trainer:
        await train_all(trainer, class_data(5))
        broken = Telemetry(None)  # it has no scheduler to ask
        prometheus.export_scheduler(broken)
        url = f"http://127.0.0.1:{s.http_server.port}/metrics"
        text = (await AsyncHTTPClient().fetch(url)).body.decode()
        assert "dask_scheduler_workers" in text
        assert "dask_tensair_replica_steps_total" in text
        assert "could not be exported" in caplog.text
        prometheus.withdraw(broken)


def test_every_name_has_its_unit_and_counters_end_in_total():
    from prometheus_client.core import REGISTRY

    prometheus.export_scheduler(telemetry := Telemetry(None))
    described = {each.name: each for each in prometheus._collector.describe()}
    assert len(described) == len(prometheus.FAMILIES)
    for name, family in prometheus.FAMILIES.items():
        assert family.text
        kind = described[NAMESPACE + name.removesuffix("_total")].type
        assert kind == ("counter" if name.endswith("_total") else "gauge")
    assert REGISTRY._names_to_collectors["dask_tensair_loss"] is prometheus._collector
    prometheus.withdraw(telemetry)


def test_what_is_not_a_number_is_left_out(monkeypatch):
    def samples(_):
        yield prometheus.Sample("loss", {"trainer": "m", "run": "1"}, math.nan)
        yield prometheus.Sample("backlog", {"trainer": "m", "run": "1"}, 3.0)

    reported = Telemetry(None)
    prometheus._export(reported, samples)
    assert [each.name for each in families()] == ["dask_tensair_backlog"]
    prometheus.withdraw(reported)


def test_without_prometheus_client_nothing_happens(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.partition(".")[0] == "prometheus_client":
            raise ModuleNotFoundError("No module named 'prometheus_client'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(prometheus, "_collector", None)
    for name in [each for each in sys.modules if each.startswith("prometheus_client")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", missing)
    telemetry = Telemetry(None)
    prometheus.export_scheduler(telemetry)
    prometheus.withdraw(telemetry)
    assert prometheus._collector is None
