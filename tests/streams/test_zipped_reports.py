"""A zip of items with reports pairs by order, and a warning says so."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, classes
from streamz import Stream
from trainers import until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import BatchError

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X = np.zeros((4, FEATURES), "float32")


def said(trainer):
    return [text for text in trainer.events["text"] if "<zip> pairs" in text]


@pytest.mark.parametrize(
    ("pair", "text"),
    [
        (lambda s, t: s.zip(s.train(t)), "order in which replicas are done"),
        (lambda s, t: s.train(t).map(str).zip(s.map(str)), "reports of <train>"),
        (lambda s, t: s.zip(s.predict_then_train(t)), "reports of <predict_then_"),
        (lambda s, t: s.zip(s.predict(t, on_error="skip")), "on_error='skip'"),
        (lambda s, t: s.zip(s.predict(t).zip(s.train(t))), "reports of <train>"),
    ],
)
@one()
async def test_pairs_that_may_shift_are_reported_once(c, s, a, pair, text):
    async with ta.Trainer(c, **classes()) as trainer:
        node = pair(Stream(asynchronous=True), trainer)
        await until(lambda: any(text in each for each in said(trainer)))
        assert len({*said(trainer)}) == len(said(trainer))
        assert list(node.upstreams)


@one()
async def test_a_stream_that_is_connected_to_a_zip_later_is_seen(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        pairs = source.zip(Stream(asynchronous=True))
        source.train(trainer).connect(pairs)
        await until(lambda: said(trainer))


@pytest.mark.parametrize(
    "pair",
    [
        lambda s, t: s.zip(s.predict(t)),
        lambda s, t: s.train(t).zip(Stream(asynchronous=True)),
        lambda s, t: (n := s.train(t)).map(str).zip(n.map(len)),
    ],
)
@one()
async def test_pairs_that_do_not_shift_cause_no_warning(c, s, a, pair):
    async with ta.Trainer(c, **classes()) as trainer:
        node = pair(Stream(asynchronous=True), trainer)
        await trainer.predict(X)
        assert said(trainer) == []
        assert list(node.upstreams)


@one()
async def test_a_prediction_that_is_left_out_is_reported_where_it_is_raised_too(
    c, s, a
):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        pairs = source.zip(source.predict(trainer)).sink_to_list()
        await source.emit(X)
        assert (len(pairs), said(trainer)) == (1, [])
        for _ in range(2):
            with pytest.raises(BatchError):
                await source.emit(X.astype("float64"))
        await until(lambda: said(trainer))
        assert len(said(trainer)) == 1
        assert "has just left out" in said(trainer)[0]
