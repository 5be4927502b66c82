from __future__ import annotations

import asyncio
import json
import logging

import pytest
from distributed import Client, Scheduler, Worker
from distributed.utils_test import captured_logger, gen_cluster
from helpers import class_data, classes, train_all
from tornado.httpclient import AsyncHTTPClient

import tensair_dask as ta
from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard
from tensair_dask.observe.dashboard.routes import TARGETS, TRAINING


async def fetch(scheduler, path, prefix=""):
    """Status and, if there is any, what the JSON says; NaN is an error."""
    url = f"http://127.0.0.1:{scheduler.http_server.port}{prefix}{path}"
    answer = await AsyncHTTPClient().fetch(url, raise_error=False)
    if answer.code != 200:
        return answer.code, None
    assert answer.headers["Content-Type"] == "application/json"

    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return 200, json.loads(answer.body, parse_constant=refuse)


async def register(client):
    await client.register_plugin(TrainingDashboard(), name=NAME)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_scripts_read_how_training_stands(c, s, a, b):
    code, _ = await fetch(s, TRAINING)
    assert code == 404
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(c, name="flowers", **classes(metrics=metrics)) as trainer:
        await train_all(trainer, class_data(30))
        while True:
            code, reported = await fetch(s, TRAINING)
            assert code == 200
            if reported["trainers"][0]["totals"]["steps"] == 30:
                break
            await asyncio.sleep(0.05)
        assert reported["tensair_dask"] == ta.__version__
        assert reported["workers"] == 2
        (one,) = reported["trainers"]
        assert one["name"] == "flowers"
        assert one["run_id"] == trainer.run_id
        assert {each["address"] for each in one["replicas"]} == {a.address, b.address}
        assert "series" not in one

        _, reported = await fetch(s, f"{TRAINING}?series=1")
        series = reported["trainers"][0]["series"]
        assert len(series["time"]) == len(series["loss"]) > 0
        for wanted in ("0", "false", "no"):
            _, reported = await fetch(s, f"{TRAINING}?series={wanted}")
            assert "series" not in reported["trainers"][0]


@pytest.mark.parametrize("prefix", ["", "/my/prefix"])
@pytest.mark.parametrize("dashboard", [True, False])
def test_it_is_below_the_prefix_with_bokeh_and_without(prefix, dashboard):
    async def main():
        async with (
            Scheduler(
                host="127.0.0.1",
                port=0,
                dashboard=dashboard,
                dashboard_address="127.0.0.1:0",
                http_prefix=prefix or None,
            ) as s,
            Client(s.address, asynchronous=True) as c,
        ):
            # A cluster that has answered requests before.
            assert (await fetch(s, TRAINING, prefix))[0] == 404
            await register(c)
            code, reported = await fetch(s, TRAINING, prefix)
            assert code == 200
            assert reported["trainers"] == []
            if prefix:
                assert (await fetch(s, TRAINING))[0] == 404

    asyncio.run(asyncio.wait_for(main(), 30))


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_it_goes_with_the_plugin_and_comes_back_with_it(c, s):
    await register(c)
    for _ in range(2):
        assert (await fetch(s, TRAINING))[0] == 200
        rules = len(s.http_application.default_router.rules)
        await c.unregister_scheduler_plugin(NAME)
        # A second one may be registered before the first has seen that it is not any
        # more: what the first then takes away must be its own.
        await register(c)
        assert (await fetch(s, TRAINING))[0] == 200
        assert len(s.http_application.default_router.rules) == rules
    first = s.plugins[NAME]
    await c.unregister_scheduler_plugin(NAME)
    await register(c)
    first.sample()
    assert (await fetch(s, TRAINING))[0] == 200
    last = s.plugins[NAME]
    await c.unregister_scheduler_plugin(NAME)
    last.sample()
    assert (await fetch(s, TRAINING))[0] == 404


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_what_json_lacks_does_not_break_it(c, s):
    await register(c)
    telemetry = s.plugins[NAME].telemetry
    telemetry.open("r", "odd", c.id, ["m"], None)
    telemetry.update("r", {"lag": float("nan"), "backlog": 2 + 1j, "emitted": [1, 2]})
    code, reported = await fetch(s, f"{TRAINING}?series=1")
    assert code == 200
    assert reported["trainers"][0]["lag"] is None
    assert reported["trainers"][0]["backlog"] == "(2+1j)"


@gen_cluster(client=True, nthreads=[], timeout=60)
async def test_a_scheduler_without_a_server_is_none_the_worse(c, s):
    http, s.http_application = s.http_application, None
    try:
        with captured_logger("tensair_dask", level=logging.ERROR) as log:
            await register(c)
        assert log.getvalue() == ""
        assert s.plugins[NAME].telemetry is not None
    finally:
        s.http_application = http


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_prometheus_finds_the_workers(c, s, a):
    await register(c)
    _, reported = await fetch(s, TARGETS)
    assert reported == [{"targets": [f"127.0.0.1:{a.http_server.port}"]}]
    url = f"http://{reported[0]['targets'][0]}/metrics"
    assert b"dask_worker" in (await AsyncHTTPClient().fetch(url)).body
    async with Worker(s.address, host="127.0.0.1", nthreads=1):
        _, reported = await fetch(s, TARGETS)
        assert len(reported[0]["targets"]) == 2
