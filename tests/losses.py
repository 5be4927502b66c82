"""Lose replicas as SIGKILL, or a stopped process, would."""

from __future__ import annotations

import asyncio
from typing import Any

from distributed import Worker
from distributed.utils_test import gen_cluster
from lab import silence

from tensair_dask.errors import ReplicaLostError


def cluster(workers: int, **overrides: Any) -> Any:
    config = {
        "tensair.replicas.watch": "20ms",
        "tensair.replicas.patience": "0s",
        # Two are lost soon after each other here, which is no mini-batch's fault.
        "tensair.dispatch.allowed-losses": 10,
    }
    return gen_cluster(
        client=True,
        nthreads=[("127.0.0.1", 1)] * workers,
        timeout=60,
        config={**config, **overrides},
    )


def worker_of(workers: Any, handle: Any) -> Worker:
    return next(each for each in workers if each.address == handle.place.address)


def take_away(worker: Worker, handle: Any) -> Any:
    """Let a worker hold a replica no more, which nobody has noticed."""
    worker.state.validate = False  # Dask would notice in its tests
    return worker.state.actors.pop(handle.key, None)


def kill(trainer: Any, handle: Any, workers: Any) -> None:
    """Lose a replica as SIGKILL would, whether it takes part or not."""
    handle.call = dead
    replica = take_away(worker_of(workers, handle), handle)
    if replica is not None and replica._exchange is not None:
        if (pub := replica.exchange.pub) is not None:
            silence(pub)
        # Its subscription ends, as the scheduler would see to it.
        asyncio.ensure_future(replica.close())
    if handle in trainer.session.replicas.handles:
        trainer.session.dispatcher.lose(handle.lane, OSError("killed"))


async def dead(function: str, *args: Any) -> Any:
    raise ReplicaLostError("killed")
