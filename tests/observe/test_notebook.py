"""A trainer shows itself in a notebook."""

from __future__ import annotations

import asyncio
import functools
import math
import re

import numpy as np
import pandas as pd
import pytest
from distributed import Client
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes, linear, linear_data, train_all
from shown import Checked

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.observe import notebook
from tensair_dask.observe.snapshot import look_at, replica_rows

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
accuracy = {"accuracy": ta.metrics.accuracy}


def text_of(page: str) -> str:
    parser = Checked()
    parser.feed(page)
    parser.close()
    assert parser.open == []
    return " ".join(" ".join(parser.text).split())


# ---- the curves of a trainer ---------------------------------------------------------


@two()
async def test_the_curves_cover_the_whole_run(c, s, a, b):
    async with ta.Trainer(c, **classes(metrics=accuracy)) as trainer:
        await train_all(trainer, class_data(300))
        history, curves = trainer.history, trainer.curves
    seconds, speed = curves["seconds"], curves["samples_per_second"]
    assert (speed * seconds).sum() == pytest.approx(300 * 16)
    assert (curves["steps_per_second"] * seconds).sum() == pytest.approx(300)
    weights = speed * seconds
    for name in ("loss", "accuracy"):
        mean = np.average(curves[name].fillna(0.0), weights=weights)
        assert mean == pytest.approx(history[name].mean())
    assert curves["loss_min"].min() == history["loss"].min()
    assert curves["loss_max"].max() == history["loss"].max()
    assert curves["staleness_max"].max() == history["staleness"].max()
    assert curves["replicas"].iloc[-1] == 2
    assert str(curves["time"].dt.tz) == "UTC"


@one()
async def test_the_curves_go_on_while_nothing_comes_and_end_with_the_trainer(c, s, a):
    with dask_config(curves__interval="10ms"):
        async with ta.Trainer(c, **linear()) as trainer:
            await train_all(trainer, linear_data(5))
            while (
                len(trainer.curves) < 2 or trainer.curves["steps_per_second"].iloc[-1]
            ):
                await asyncio.sleep(0.01)
            assert math.isnan(trainer.curves["loss"].iloc[-1])
    pd.testing.assert_frame_equal(trainer.curves, trainer.curves)
    assert trainer.curves["steps"].iloc[-1] == 5


@one()
async def test_refused_mini_batches_are_in_the_curves(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        assert (await trainer.train(np.zeros((2, 1), "float32"), 0)).error is not None
        refused = await trainer.train(None, 0)
        assert isinstance(refused.error, errors.BatchError)
        assert trainer.curves["dead_letters"].iloc[-1] == 2
        assert trainer.curves["steps"].iloc[-1] == 0


@one()
async def test_a_metric_may_not_be_named_like_a_column_of_the_curves(c, s, a):
    with pytest.raises(errors.ConfigurationError, match=r"trainer\.curves"):
        ta.Trainer(c, **linear(metrics={"backlog": ta.metrics.accuracy}))


def dask_config(**values: str):
    import dask

    names = {
        f"tensair.{name.replace('__', '.')}": each for name, each in values.items()
    }
    return dask.config.set(names)


# ---- an overview ---------------------------------------------------------------------


@two()
async def test_an_overview_shows_how_a_trainer_stands(c, s, a, b):
    trainer = ta.Trainer(c, **classes(metrics=accuracy, name="digits"))
    assert look_at(trainer).status == trainer.status == "starting"
    async with trainer:
        await train_all(trainer, class_data(100))
        await trainer.mark("half", kind="drift")
        seen = look_at(trainer)
        assert (seen.name, seen.status, seen.alive) == ("digits", "open", 2)
        assert (seen.emitted, seen.steps, seen.samples) == (100, 100, 1600)
        assert (seen.backlog, seen.dead_letters) == (0, 0)
        assert [row.state for row in seen.replicas] == ["waiting", "waiting"]
        assert {row.address for row in seen.replicas} == {a.address, b.address}
        assert [row.sent for row in seen.replicas] == [None, None]
        assert [event.text for event in seen.events] == ["half"]
        assert seen.now["samples_per_second"] > 0
        assert 0 <= seen.now["accuracy"] <= 1
    seen = look_at(trainer)
    assert (seen.status, seen.alive) == ("closed", 0)
    assert [row.state for row in seen.replicas] == ["closed", "closed"]
    assert sum(row.steps for row in seen.replicas) == 100
    assert all(row.sent > 0 and row.received > 0 for row in seen.replicas)


@two()
async def test_a_replica_that_left_is_shown_as_left_also_after_the_end(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(20))
        await a.close()
        while look_at(trainer).alive == 2:
            await asyncio.sleep(0.01)
        states = {row.address: row.state for row in replica_rows(trainer)}
        assert states[a.address] == "left"
        assert states[b.address] in ("waiting", "learning")
        assert "left" in text_of(trainer._repr_html_())
    states = {row.address: row.state for row in replica_rows(trainer)}
    assert states == {a.address: "left", b.address: "closed"}


@two()
async def test_a_lost_replica_is_shown_as_lost(c, s, a, b):
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        lane = trainer.session.replicas.handles[0].lane
        trainer.session.dispatcher.lose(lane, OSError("killed"))
        assert replica_rows(trainer)[0].state == "lost"
        assert "<strong>lost</strong>" in trainer._repr_html_()


@one()
async def test_what_happens_now_is_a_mean_of_the_newest_seconds(c, s, a):
    from tensair_dask.observe.snapshot import newest

    frame = pd.DataFrame(
        {
            "seconds": [10.0, 1.0, 2.0],
            "samples_per_second": [900.0, 30.0, 60.0],
            "steps_per_second": [9.0, 3.0, math.nan],
            "loss": [9.0, 1.0, 2.0],
            "staleness": [math.nan] * 3,
            "accuracy": [0.0, math.nan, 0.5],
        }
    )
    now = newest(frame, ["accuracy"])
    assert now["samples_per_second"] == pytest.approx((30 + 2 * 60) / 3)
    assert now["steps_per_second"] == 3
    assert now["loss"] == pytest.approx((30 * 1 + 120 * 2) / 150)
    assert now["accuracy"] == 0.5
    assert math.isnan(now["staleness"])


@gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 1)],
    timeout=60,
    scheduler_kwargs={"dashboard": True, "dashboard_address": "127.0.0.1:0"},
)
async def test_links_to_the_dashboard(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        trainer.session.reporter.page = None
        assert trainer.dashboard_link == c.dashboard_link
        assert trainer.dashboard_link.endswith("/status")
        trainer.session.reporter.page = "/training"
        base = c.dashboard_link.removesuffix("/status")
        assert trainer.dashboard_link == f"{base}/training"
        page = trainer._repr_html_()
        assert f'href="{base}/training"' in page
        assert f'href="{c.dashboard_link}"' in page
        with dask_link("/user/{ME}/proxy/{port}/status", ME="ada"):
            assert re.fullmatch(r"/user/ada/proxy/\d+/training", trainer.dashboard_link)


def dask_link(link: str, **variables: str):
    import contextlib
    import os
    from unittest import mock

    import dask

    stack = contextlib.ExitStack()
    stack.enter_context(mock.patch.dict(os.environ, variables))
    stack.enter_context(dask.config.set({"distributed.dashboard.link": link}))
    return stack


# ---- as HTML -------------------------------------------------------------------------


@two()
async def test_a_trainer_shows_itself_as_html(c, s, a, b):
    async with ta.Trainer(c, **classes(metrics=accuracy, name="digits")) as trainer:
        await train_all(trainer, class_data(100))
        await trainer.train(np.zeros((2, FEATURES + 1), "float32"), np.zeros(2, int))
        await trainer.mark("the label means something else", kind="drift")
        page = trainer._repr_html_()
        text = text_of(page)
        for part in (
            "Trainer: digits",
            "Replicas alive: 2 of 2",
            "Learned: 100 mini-batches, 1,600 samples",
            "Backlog: 0 mini-batches",
            "Dead letters: 1",
            a.address,
            b.address,
            "drift the label means something else",
        ):
            assert part in text
        assert page.count("<details") == 2
        assert "<details open" not in page
        assert "note Mini-batch 100 was refused (ShapeError)" in text
        assert page.count("<svg") == 4  # two curves, two events
        live = notebook.draw(look_at(trainer), live=True)
        assert "<details" not in live
        assert a.address in text_of(live)
    assert "closed" in text_of(trainer._repr_html_())


@one()
async def test_names_and_events_are_escaped(c, s, a):
    async with ta.Trainer(c, **linear(name="<script>alert(1)</script>")) as trainer:
        await trainer.mark("<b>bold</b> & 'more'")
        page = trainer._repr_html_()
        assert "<script" not in page
        assert "<b>" not in page
        assert "<b>bold</b> & 'more'" in text_of(page)


def test_with_an_ordinary_client_it_is_read_on_the_event_loop(client):
    with ta.Trainer(client, **linear()) as trainer:
        for x, y in linear_data(10):
            trainer.train(x, y)
        assert trainer.curves["steps"].iloc[-1] == 10
        assert "10 mini-batches" in text_of(trainer._repr_html_())
        assert trainer.plot().title == "Linear"
        assert "Linear" in trainer.plot("Of <Linear>").html()
    assert trainer.curves["steps"].iloc[-1] == 10
    client.close()
    assert "10 mini-batches" in text_of(trainer._repr_html_())
    assert trainer.dashboard_link is None


@pytest.fixture
def client():
    with Client(
        processes=False, n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as client:
        yield client


@one()
async def test_it_shows_when_it_only_predicts(c, s, a):
    async with ta.Trainer(c, **linear(mode="never")) as trainer:
        await train_all(trainer, linear_data(5))
        assert look_at(trainer).doing == "predicting (mode never)"
        assert "open, predicting (mode never)" in text_of(trainer._repr_html_())
    assert look_at(trainer).doing == ""
    async with ta.Trainer(c, **linear()) as trainer:
        assert look_at(trainer).doing == ""
