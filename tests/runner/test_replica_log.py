"""A line is printed for each replica that comes or goes."""

from __future__ import annotations

import asyncio

from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import classes

from tensair_dask import Trainer
from tensair_dask.runner.replica_log import ReplicaLog
from tensair_dask.runner.resume import Continuation


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2)
async def test_replicas_that_come_and_go_are_printed(c, s, a, b):
    lines: list[str] = []

    async def reported(words: str) -> str:
        while not any(words in line for line in lines):
            await asyncio.sleep(0.01)
        return next(line for line in lines if words in line)

    async with Trainer(c, **classes()) as trainer:
        await trainer.mark("nobody needs to know")
        processes = {a.address: 11, b.address: 12}
        with ReplicaLog(trainer, lines.append, Continuation(), processes):
            await a.close(nanny=False)
            assert await reported("replica left") == (
                f"        0  replica left: the replica on {a.address} (process 11)"
            )
            async with Worker(s.address, nthreads=1) as new:
                line = await reported("replica joined")
                assert f"the replica on {new.address} (process " in line
                await trainer.drain()
    assert not any("nobody" in line for line in lines)
