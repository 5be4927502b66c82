"""The pages in a real browser, on a real scheduler."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from browser import needs_browser, tab
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all

import tensair_dask as ta
from tensair_dask.observe.dashboard.charts import CHARTS

pytestmark = [needs_browser(), pytest.mark.processes]

cluster = gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 1)] * 2,
    scheduler_kwargs={"dashboard": True, "dashboard_address": "127.0.0.1:0"},
    timeout=90,
)

# What the browser holds.
MODELS = "[...Bokeh.documents[0].all_models]"
ROWS = f"{MODELS}.find(m => m.name == 'samples').data_source.get_length()"
MARKS = f"{MODELS}.find(m => m.name == 'marks').data_source.data.text"
HEADLINE = f"{MODELS}.find(m => m.name == 'headline').text"
CHOOSER = f"{MODELS}.find(m => m.name == 'chooser')"
SHADOWED = """(() => {
    const found = []
    const walk = node => {
        if (node.shadowRoot) walk(node.shadowRoot)
        for (const child of node.children) walk(child)
        if (node.tagName == 'CANVAS') found.push(node)
    }
    walk(document.body)
    return found.length
})()"""


def address(scheduler: Any) -> str:
    return f"http://127.0.0.1:{scheduler.http_server.port}"


@contextlib.asynccontextmanager
async def training(client: Any, **overrides: Any) -> AsyncIterator[Any]:
    """Train for as long as the context lasts."""
    arguments = classes(metrics={"accuracy": ta.metrics.accuracy}, **overrides)
    async with ta.Trainer(client, **arguments) as trainer:

        async def feed() -> None:
            while True:
                await asyncio.gather(*(trainer.train(x, y) for x, y in class_data(10)))
                await asyncio.sleep(0.02)

        feeding = asyncio.ensure_future(feed())
        try:
            yield trainer
        finally:
            feeding.cancel()
            await asyncio.wait([feeding])


@cluster
async def test_the_navigation_leads_to_a_page_whose_values_move(client, scheduler, *_):
    async with training(client, name="moving"), tab() as browser:
        await browser.open(f"{address(scheduler)}/status")
        await browser.page.click("text=Training")
        await browser.page.wait_for_url("**/training")
        await browser.until(f"window.Bokeh && Bokeh.documents.length && {ROWS} > 2")
        rows, headline = await browser.read(ROWS), await browser.read(HEADLINE)
        await browser.until(f"{ROWS} > {rows} && {HEADLINE} != `{headline}`")
        assert "moving" in headline
        assert await browser.read(SHADOWED) >= len(CHARTS)
        assert await browser.page.title() == "Dask: Training"
        assert browser.troubles == []


@cluster
async def test_a_mark_appears_across_the_curves(client, scheduler, *_):
    async with training(client) as trainer, tab() as browser:
        await browser.open(f"{address(scheduler)}/training")
        await browser.until(f"{ROWS} > 1")
        await trainer.mark("the labels were swapped", kind="drift")
        await browser.until(f"{MARKS}.length == 1")
        assert list(await browser.read(MARKS)) == ["the labels were swapped"]
        assert browser.troubles == []


@cluster
async def test_two_trainers_are_distinguished(client, scheduler, *_):
    async with (
        training(client, name="first"),
        training(client, name="second"),
        tab() as browser,
    ):
        await browser.open(f"{address(scheduler)}/training")
        await browser.until(f"{CHOOSER}.options.length == 2 && {CHOOSER}.visible")
        await browser.until(f"{HEADLINE}.includes('second')")
        await browser.page.locator("select").select_option("first")
        await browser.until(f"{HEADLINE}.includes('first')")
        await browser.until(f"{ROWS} > 1")
        assert browser.troubles == []


@cluster
async def test_a_closed_trainer_stays_and_the_next_one_is_followed(
    client, scheduler, *_
):
    async with tab() as browser:
        async with training(client, name="first"):
            await browser.open(f"{address(scheduler)}/training")
            await browser.until(f"{ROWS} > 1")
        await browser.until(f"{HEADLINE}.includes('closed')")
        async with training(client, name="second"):
            await browser.until(f"{HEADLINE}.includes('second')")
            await browser.until(f"{ROWS} > 1")
        assert browser.troubles == []


@gen_cluster(
    client=True,
    nthreads=[],
    scheduler_kwargs={"dashboard": True, "dashboard_address": "127.0.0.1:0"},
)
async def test_the_page_opens_without_workers_and_without_trainers(client, scheduler):
    from tensair_dask.preload import dask_setup

    await dask_setup(scheduler)
    async with tab(900, 700) as browser:
        await browser.open(f"{address(scheduler)}/training")
        await browser.until(f"{HEADLINE}.includes('No trainer')")
        assert browser.troubles == []


@cluster
async def test_every_chart_has_a_page_that_jupyterlab_lists(client, scheduler, *_):
    async with training(client), tab(600, 400) as browser:
        listed = await browser.page.goto(f"{address(scheduler)}/individual-plots.json")
        plots = await listed.json()
        assert "Individual Task Stream" in plots
        for chart in CHARTS:
            path = plots[f"Individual Training {chart.title()}"]
            await browser.open(f"{address(scheduler)}{path}")
            await browser.until(
                f"{MODELS}.some(m => m.name == 'time' || m.data_source"
                " && m.data_source.get_length() > 0)"
            )
            assert await browser.read(SHADOWED) >= 1
        assert browser.troubles == []


@cluster
async def test_the_page_survives_a_restart_of_the_workers(client, scheduler, a, b):
    async with tab() as browser:
        trainer = await ta.Trainer(client, **classes())
        await train_all(trainer, class_data(3))
        await browser.open(f"{address(scheduler)}/training")
        await browser.until(f"{ROWS} > 1")
        await a.close()
        await b.close()
        # One on each worker, but one at least, is requested.
        await browser.until(f"{HEADLINE}.includes('0 of 1')")
        await browser.until(f"{MARKS}.length == 2")
        await trainer.close()
        await browser.until(f"{HEADLINE}.includes('closed')")
        assert browser.troubles == []


@cluster
async def test_moments_are_shown_in_the_time_of_the_browser(client, scheduler, *_):
    async with training(client), tab() as browser:
        await browser.open(f"{address(scheduler)}/individual-training-loss")
        formatter = f"{MODELS}.find(m => m.type == 'CustomJSTickFormatter')"
        shown = await browser.read(f"{formatter}.doFormat([0, 60000], {{}})")
        expected = await browser.read(
            "new Date(0).toLocaleTimeString([], {hour12: false})"
        )
        assert shown[0] == expected
