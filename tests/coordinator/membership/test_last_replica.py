"""The model of the last replica goes to another worker, if there is one."""

from __future__ import annotations

import asyncio

import pytest
import torch
from helpers import expected_weight, feed, linear, linear_data, until
from lab import EXACT, cluster

import tensair_dask as ta
from tensair_dask.errors import NoReplicasError


@cluster(2)
@pytest.mark.parametrize("how", ["retire", "close"])
async def test_the_last_replica_hands_its_model_to_another_worker(c, s, a, b, how):
    data = linear_data(400)
    workers = {a.address: a, b.address: b}
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (first,) = trainer.session.replicas.handles
        worker = workers[first.place.address]
        reports = feed(trainer, data[:200])
        await until(lambda: len(reports) > 50)
        if how == "retire":
            going = asyncio.ensure_future(c.retire_workers([worker.address]))
        else:
            going = asyncio.ensure_future(worker.close(reason="test"))
        feed(trainer, data[200:], reports)
        await until(lambda: len(reports) == 400)
        await going
        await trainer.drain()
        assert sorted(report.index for report in reports) == list(range(400))
        assert all(report.error is None for report in reports)
        assert trainer.session.dispatcher.relearned == 0
        (state,) = (await trainer.state_dicts()).values()
        weight = state["weight"].double()
        assert torch.allclose(weight, expected_weight(data), **EXACT)


@cluster(1)
async def test_the_last_replica_of_the_last_worker_takes_its_model_along(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        reports = feed(trainer, linear_data(20))
        await until(lambda: len(reports) == 20)
        await a.close(reason="test")
        with pytest.raises(NoReplicasError):
            await trainer.train(*linear_data(1)[0])
