"""Scores without data, of two trainers, or that can never be right, cause a warning."""

from __future__ import annotations

import functools

import numpy as np
import pandas as pd
import pytest
import river.metrics
from distributed.utils_test import gen_cluster
from helpers import class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import ConfigurationError
from tensair_dask.prequential.common_label import CommonLabel

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


def accuracy():
    return ta.Prequential(river.metrics.Accuracy())


def said(trainer, text):
    return sum(text in each for each in trainer.events["text"])


async def learn(trainer, data, *args, **kwargs):
    source = Stream(asynchronous=True)
    node = source.predict_then_train(trainer, *args, **kwargs)
    reports = node.sink_to_list()
    for item in data:
        await source.emit(item)
    await trainer.drain()
    return node, reports


@one()
async def test_scores_that_are_fed_nothing_are_reported_once(c, s, a):
    async with ta.Trainer(c, **classes(), scores={"mine": accuracy()}) as trainer:
        assert said(trainer, "has scored nothing") == 0
        for _ in range(2):
            await learn(trainer, class_data(3))
        assert said(trainer, "scores['mine'] has scored nothing") == 1


@one()
async def test_scores_that_are_fed_nothing_are_reported_at_close(c, s, a, caplog):
    trainer = await ta.Trainer(c, **classes(), scores={"mine": accuracy()})
    await trainer.train(*class_data(1)[0])
    await trainer.close()
    assert "scores['mine'] has scored nothing" in caplog.text


@one()
async def test_scores_that_are_fed_or_that_wait_for_labels_cause_no_warning(c, s, a):
    waiting, by_hand = accuracy(), accuracy()
    scores = {"waiting": waiting, "by hand": by_hand}
    async with ta.Trainer(c, **classes(), scores=scores) as trainer:
        by_hand.add([1], [1])
        node, _ = await learn(trainer, class_data(3), waiting, delay=1_000)
        assert said(trainer, "has scored nothing") == 0
        await node.flush()
        await trainer.drain()


@pytest.mark.parametrize("given", ["node", "trainer"])
@one()
async def test_scores_of_another_trainer_are_reported(c, s, a, given):
    scores = accuracy()
    async with ta.Trainer(c, **classes()) as trainer:
        await learn(trainer, class_data(2), scores)
        await learn(trainer, class_data(2), scores)
        assert said(trainer, "of another trainer") == 0
    known = {"scores": {"mine": scores}} if given == "trainer" else {}
    async with ta.Trainer(c, **classes(), **known) as trainer:
        await learn(trainer, class_data(2), scores)
        assert said(trainer, "hold 64 records of another trainer") == 1


@one()
async def test_scores_that_a_checkpoint_holds_go_on_without_a_word(c, s, a, tmp_path):
    scores, folder = accuracy(), str(tmp_path / "kept")
    kept = {"scores": {"mine": scores}, "checkpoint_to": folder}
    async with ta.Trainer(c, **classes(), **kept) as trainer:
        await learn(trainer, class_data(2), scores)
    async with ta.Trainer(c, **classes(), **kept, restore=folder) as trainer:
        await learn(trainer, class_data(2), scores)
        assert said(trainer, "of another trainer") == 0
        assert scores.records == 64


def returns_nothing(output):
    output.argmax(1)


@pytest.mark.parametrize("at_once", [False, True])
@one()
async def test_a_decide_that_returns_nothing_is_reported(c, s, a, at_once):
    scores = accuracy()
    async with ta.Trainer(c, **classes(), keep_predictions=at_once) as trainer:
        node, reports = await learn(
            trainer, class_data(2), scores, decide=returns_nothing
        )
        assert [report.error for report in reports] == [None, None]
        assert said(trainer, "decide (returns_nothing) returned None") == 1
        assert node.unscored == 32


@pytest.mark.parametrize("at_once", [False, True])
@one()
async def test_names_of_classes_against_numbers_are_reported_once(c, s, a, at_once):
    async with ta.Trainer(c, **classes(), keep_predictions=at_once) as trainer:
        await learn(
            trainer,
            class_data(3),
            accuracy(),
            decide=lambda output: np.array(list("abcdefgh"))[output.argmax(1)],
        )
        assert said(trainer, "none in common") == 1


def test_labels_of_one_kind_are_compared_over_many_records():
    looked = CommonLabel()
    for _ in range(9):
        assert looked.compare(np.full(100, 5), np.full(100, 4)) == ""
    assert "the labels 5, and predicted were 4" in looked.compare(
        pd.Series([5] * 100), np.full(100, 4)
    )
    assert looked.is_settled


@pytest.mark.parametrize(
    ("labels", "guess"),
    [
        ([0, 1], [1, 2]),
        (["a", "b"], ["b", "c"]),
        ([True, False], [1, 1]),
        ([0.5, 1.5], [0.1, 0.2]),
        ([0, 1], [[0.1, 0.9], [0.2, 0.8]]),
    ],
)
def test_labels_with_one_in_common_and_numbers_are_settled_at_once(labels, guess):
    looked = CommonLabel()
    assert looked.compare(labels, guess) == ""
    assert looked.is_settled


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
@one()
async def test_moments_that_are_no_seconds_are_refused(c, s, a, unit):
    now = np.datetime64("2024-01-01").astype(f"datetime64[{unit}]").astype(int)
    async with ta.Trainer(c, **classes()) as trainer:
        _, reports = await learn(
            trainer, class_data(2), delay="3h", moment=lambda item: int(now)
        )
        assert all('unit="ms"' in str(report.error) for report in reports)


@pytest.mark.parametrize(
    "moment", [1.7e9, -1e9, 0, np.array([1.7e9]), pd.Timestamp("2024-01-01")]
)
@one()
async def test_moments_that_are_seconds_or_dates_are_taken(c, s, a, moment):
    async with ta.Trainer(c, **classes()) as trainer:
        node, _ = await learn(
            trainer, class_data(2), delay="3h", moment=lambda item: moment
        )
        assert node.waiting == 32
        await node.flush()
        await trainer.drain()


@pytest.mark.parametrize("delay", [None, 500])
@one()
async def test_moments_without_a_delay_in_time_are_refused(c, s, a, delay):
    async with ta.Trainer(c, **classes()) as trainer:
        with pytest.raises(ConfigurationError, match="would never be called"):
            Stream(asynchronous=True).predict_then_train(
                trainer, delay=delay, moment=lambda item: 0
            )
