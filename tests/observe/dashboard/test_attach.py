"""Pages come to a dashboard that runs already, and go without a trace."""

from __future__ import annotations

import logging
from typing import Any

from distributed.dashboard.scheduler import template_variables
from distributed.utils_test import async_poll_for, gen_cluster
from helpers import class_data, classes, train_all
from tornado.httpclient import AsyncHTTPClient, HTTPClientError

import tensair_dask as ta
from tensair_dask.observe.dashboard.charts import CHARTS
from tensair_dask.observe.dashboard.plugin import NAME, TrainingDashboard

WITH_PAGES = {"dashboard": True, "dashboard_address": "127.0.0.1:0"}
PAGES = ["training", *(f"individual-training-{chart}" for chart in CHARTS)]


async def get(scheduler: Any, path: str) -> tuple[int, str]:
    url = f"http://127.0.0.1:{scheduler.http_server.port}/{path}"
    try:
        answer = await AsyncHTTPClient().fetch(url)
    except HTTPClientError as error:
        return error.code, ""
    return answer.code, answer.body.decode()


@gen_cluster(client=True, scheduler_kwargs=WITH_PAGES)
async def test_a_trainer_brings_the_pages_to_a_cluster_that_runs(client, scheduler, *_):
    assert (await get(scheduler, "training"))[0] == 404
    async with ta.Trainer(client, **classes()) as trainer:
        await train_all(trainer, class_data(3))
        for page in PAGES:
            assert (await get(scheduler, page))[0] == 200, page
        # Dask's own pages are still there, and lead to this one.
        code, status = await get(scheduler, "status")
        assert code == 200
        assert '<a href="training">Training</a>' in status
        assert "Training Loss" in status
        _, plots = await get(scheduler, "individual-plots.json")
        assert "Individual Training Loss" in plots
        assert "Individual Task Stream" in plots
        assert "individual-cluster-map" in plots


@gen_cluster(client=True, scheduler_kwargs=WITH_PAGES | {"http_prefix": "my/prefix"})
async def test_the_pages_are_below_the_prefix_of_the_dashboard(client, scheduler, *_):
    async with ta.Trainer(client, **classes()):
        for page in PAGES:
            assert (await get(scheduler, f"my/prefix/{page}"))[0] == 200, page
        _, plots = await get(scheduler, "my/prefix/individual-plots.json")
        assert "Individual Training Loss" in plots


@gen_cluster(client=True, scheduler_kwargs={"dashboard": False})
async def test_training_works_without_a_dashboard_and_says_once_that_pages_are_off(
    client, scheduler, *_
):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    logger = logging.getLogger("tensair_dask.observe.telemetry.reporter")
    logger.addHandler(handler)
    try:
        async with ta.Trainer(client, **classes()) as trainer:
            await train_all(trainer, class_data(3))
            read = await client.scheduler.tensair_telemetry_read()
    finally:
        logger.removeHandler(handler)
    assert len(records) == 1
    assert "bokeh is not installed" in records[0].getMessage()
    assert read["trainers"][0]["name"] == trainer.name


@gen_cluster(client=True, scheduler_kwargs=WITH_PAGES)
async def test_unregistering_takes_the_pages_away_and_a_trainer_brings_them_back(
    client, scheduler, *_
):
    async with ta.Trainer(client, **classes()):
        pass
    applications = len(scheduler.http_application.applications)
    rules = len(scheduler.http_application.default_router.rules)
    for _ in range(3):
        plugin = scheduler.plugins[NAME]
        await client.unregister_scheduler_plugin(NAME)
        await async_poll_for(
            lambda plugin=plugin: plugin.attachment.page is None, timeout=10
        )
        assert len(scheduler.http_application.applications) == applications - 1
        assert len(scheduler.http_application.default_router.rules) < rules
        for page in PAGES:
            assert (await get(scheduler, page))[0] == 404, page
        code, status = await get(scheduler, "status")
        assert code == 200
        assert "Training" not in status
        async with ta.Trainer(client, **classes()):
            assert (await get(scheduler, "training"))[0] == 200
        assert len(scheduler.http_application.applications) == applications
        assert len(scheduler.http_application.default_router.rules) == rules


@gen_cluster(client=True, scheduler_kwargs=WITH_PAGES)
async def test_a_second_trainer_adds_nothing_to_the_dashboard(client, scheduler, *_):
    async with ta.Trainer(client, **classes()):
        _, before = await get(scheduler, "status")
        applications = list(scheduler.http_application.applications)
        async with ta.Trainer(client, **classes()):
            _, after = await get(scheduler, "status")
            assert after.count("raining") == before.count("raining")
            assert scheduler.http_application.applications == applications


@gen_cluster(client=True, scheduler_kwargs=WITH_PAGES)
async def test_a_dashboard_that_cannot_be_extended_does_not_stop_training(
    client, scheduler, *_
):
    # As a future version of Dask might have it.
    template_variables(scheduler)["pages"] = None
    async with ta.Trainer(client, **classes()) as trainer:
        await train_all(trainer, class_data(3))
        assert scheduler.plugins[NAME].attachment.page is None
        assert len(scheduler.http_application.applications) == 1
    assert isinstance(scheduler.plugins[NAME], TrainingDashboard)
