"""Annotations of Dask around a trainer: their effect, and the warnings about them."""

from __future__ import annotations

import dask
import pytest
from distributed.utils_test import gen_cluster
from helpers import linear, linear_data, train_all

import tensair_dask as ta
from tensair_dask.errors import TensairError


@pytest.mark.parametrize("allowed", ["one", "a list", "a function"])
@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_workers_of_dask_annotations_do_not_place_replicas_and_a_warning_says_so(
    c, s, a, b, allowed
):
    given = {"one": a.address, "a list": [a.address], "a function": lambda key: a}
    with dask.annotate(workers=given[allowed]):
        trainer = await ta.Trainer(c, **linear())
    async with trainer:
        texts = [text for text in trainer.events.text if "annotate(workers=" in text]
        assert len(texts) == 1
        assert {info.address for info in trainer.replicas} == {a.address, b.address}


@gen_cluster(
    client=True, nthreads=[("127.0.0.1", 1)], worker_kwargs={"resources": {"A": 1}}
)
async def test_resources_that_the_workers_have_are_taken(c, s, a):
    with dask.annotate(resources={"A": 1}):
        trainer = await ta.Trainer(c, **linear())
    async with trainer:
        await train_all(trainer, linear_data(3))
        assert not any("annotate" in text for text in trainer.events.text)


@pytest.mark.parametrize("resources", [{"GPU": 1}, {"A": 2}])
@gen_cluster(
    client=True,
    nthreads=[("127.0.0.1", 1)],
    worker_kwargs={"resources": {"A": 1}},
    config={
        "tensair.timeouts.start": "2s",
        "tensair.timeouts.begin": "500ms",
        "tensair.timeouts.release": "100ms",
    },
)
async def test_resources_that_no_worker_has_are_named(c, s, a, resources):
    with (
        dask.annotate(resources=resources),
        pytest.raises(TensairError, match="--resources") as raised,
    ):
        await ta.Trainer(c, **linear())
    assert str(resources) in str(raised.value)
