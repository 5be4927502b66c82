"""tensair_dask, as its documentation shows it: a streamz source and `Stream.train`."""

from __future__ import annotations

import asyncio
import os
import sys

from replicas import training
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train
from open_loop.learner import workload
from open_loop.wire import Acks, read_from


async def learn_all(replicas: int) -> None:
    """Emit what the socket brings; an awaited `emit` is the back-pressure."""
    async with training(workload(), replicas) as (_, trainer):
        acks = Acks()

        def learned(report: ta.Report) -> None:
            report.raise_for_error()
            acks.learned(report.index, report.loss)

        source = Stream(asynchronous=True)
        source.train(trainer).sink(learned)
        port = int(os.environ["OPEN_LOOP_DATA"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            while True:
                _, x, y = await read_from(reader)
                await source.emit((x, y))
        except asyncio.IncompleteReadError:
            writer.close()  # the driver has closed the stream


if __name__ == "__main__":
    asyncio.run(learn_all(int(sys.argv[1])))
