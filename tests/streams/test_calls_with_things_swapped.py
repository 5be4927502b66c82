"""The error for swapped or surplus arguments says how to call the method."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.sources
from tensair_dask.errors import ConfigurationError

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


@one()
async def test_a_try_map_with_the_trainer_first_is_refused(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        with pytest.raises(ConfigurationError, match=r"try_map\(function, trainer\)"):
            Stream().try_map(trainer, len)


@pytest.mark.parametrize("given", [(len, len), (len, "mine"), (3, None)])
def test_a_try_map_without_a_function_or_a_trainer_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"try_map\(function, trainer\)"):
        Stream().try_map(*given)


@pytest.mark.parametrize("y", [np.zeros(4), [1, 2], "label", 1.5, 3])
def test_an_emit_of_two_things_is_refused(y):
    got = []
    source = Stream()
    source.sink(got.append)
    with pytest.raises(ConfigurationError, match=r"emit\(\(x, y\)\)"):
        source.emit(np.zeros((4, 2)), y)
    assert got == []


@pytest.mark.parametrize("asynchronous", [True, False, None])
def test_an_emit_that_says_how_to_wait_is_taken(asynchronous):
    got = []
    source = Stream()
    source.sink(got.append)
    source.emit(1, asynchronous)
    assert got == [1]


@one()
async def test_the_error_for_single_records_advises_partition(c, s, a):
    (x, y), *_ = class_data(1)
    for labels in (y, y.tolist()):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream.from_batches(zip(x, labels), asynchronous=True)  # noqa: B905
            reports = source.train(trainer).sink_to_list()
            async with source:
                await source.ended()
            await trainer.drain()
            assert ".partition(64)" in str(reports[0].error)
