"""streamz on Dask: scatter, map, gather. Each worker process has a model of its own."""

from __future__ import annotations

import asyncio
import os

from replicas import cluster_of
from streamz import Stream
from streamz.dask import scatter  # registers Stream.scatter

from open_loop.learner import learn_here
from open_loop.wire import Item, read_from

__all__ = ["scatter"]

BUFFER = 8  # as in streamz's documentation


async def learn_all() -> None:
    """Emit what the socket brings; the buffer is the back-pressure."""
    async with cluster_of(2):
        source = Stream(asynchronous=True)
        source.scatter().map(learned).buffer(BUFFER).gather().sink(lambda _: None)
        port = int(os.environ["OPEN_LOOP_DATA"])
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 20)
        try:
            while True:
                await source.emit(await read_from(reader))
        except asyncio.IncompleteReadError:
            writer.close()


def learned(item: Item) -> None:
    """Learn on a worker."""
    learn_here(*item)


if __name__ == "__main__":
    asyncio.run(learn_all())
