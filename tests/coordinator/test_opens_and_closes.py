"""Trainers close as they open: many of them leave nothing on any machine."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections import Counter
from typing import Any

import pytest
import torch
from distributed import Worker
from distributed.utils_test import gen_cluster
from helpers import class_data, classes, train_all, until
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import ModelError
from tensair_dask.pubsub.neighbours import Neighbours

DATA = class_data(4)
X = DATA[0][0]


def broken() -> torch.nn.Module:
    raise MemoryError("no room")


async def learned_by_hand(client: Any, folder: Any) -> Any:
    async with ta.Trainer(client, **classes(mode="auto")) as trainer:
        await train_all(trainer, DATA)
        await trainer.predict(X)
        await trainer.state_dicts()
    return trainer


async def learned_from_a_stream(client: Any, folder: Any) -> Any:
    metrics = {"accuracy": ta.metrics.accuracy}
    async with ta.Trainer(client, **classes(metrics=metrics)) as trainer:
        source = Stream(asynchronous=True)
        parsed = source.try_map(lambda item: item, trainer)
        parsed.train(trainer).sink(lambda report: None)
        source.predict(trainer, collate=lambda item: item[0]).sink(lambda x: None)
        for item in DATA:
            await source.emit(item)
    return trainer


async def saved_and_scaled(client: Any, folder: Any) -> Any:
    arguments = classes(checkpoint_to=folder, checkpoint_every=2)
    trainer = await ta.Trainer.restore(folder, client, or_begin=True, **arguments)
    async with trainer:
        await train_all(trainer, DATA)
        await trainer.scale(1)
        await trainer.apply(lambda model, optimizers: None)
    return trainer


async def failed_to_start(client: Any, folder: Any) -> Any:
    trainer = ta.Trainer(client, **classes(model=broken))
    with pytest.raises(ModelError):
        await trainer
    return trainer


async def closed_without_a_drain(client: Any, folder: Any) -> Any:
    trainer = await ta.Trainer(client, **classes())
    asking = [asyncio.ensure_future(trainer.train(*item)) for item in DATA]
    await asyncio.sleep(0)
    await trainer.close()
    await asyncio.gather(*asking, return_exceptions=True)
    return trainer


def _census() -> Counter[str]:
    """How many objects of this package there are, by type."""
    gc.collect()
    kinds = (type(each) for each in gc.get_objects())
    return Counter(
        f"{kind.__module__}.{kind.__qualname__}"
        for kind in kinds
        if str(kind.__module__).startswith("tensair_dask")
        # What the scheduler remembers of the newest runs, as much as each has told.
        and not kind.__module__.startswith("tensair_dask.observe.telemetry")
        # One a worker, from its first delivery through shared memory on.
        and kind is not Neighbours
    )


def _held(client: Any, scheduler: Any, workers: Any) -> dict[str, int]:
    """How much each table holds that a trainer writes into."""
    tables: dict[str, Any] = {
        "futures": client.futures,
        "topics of the client": client._event_handlers,
        "tasks": scheduler.tasks,
        "plugins": scheduler.plugins,
        "handlers": scheduler.handlers,
        "streams": scheduler.stream_handlers,
        "extensions": scheduler.extensions,
        "topics": scheduler._broker._topics,
        "periodic": scheduler.periodic_callbacks,
    }
    for number, worker in enumerate(workers):
        tables |= {
            f"tasks {number}": worker.state.tasks,
            f"actors {number}": worker.state.actors,
            f"plugins {number}": worker.plugins,
            f"handlers {number}": worker.handlers,
            f"streams {number}": worker.stream_handlers,
            f"heartbeat {number}": worker.periodic_callbacks,
            f"extensions {number}": worker.extensions,
        }
    return {name: len(table) for name, table in tables.items()}


def _threads() -> list[str]:
    return [each.name for each in threading.enumerate() if "tensair" in each.name]


WAYS = [
    learned_by_hand,
    learned_from_a_stream,
    saved_and_scaled,
    failed_to_start,
    closed_without_a_drain,
]


@pytest.mark.parametrize("way", WAYS)
def test_many_trainers_leave_nothing_behind(way, tmp_path):
    # The scheduler remembers so many that are over.
    config = {"tensair.dashboard.trainers": 2}

    @gen_cluster(
        client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60, config=config
    )
    async def run(c, s, a, b):
        async def cycles(count: int) -> None:
            gone.extend([weakref.ref(await way(c, tmp_path)) for _ in range(count)])

        def is_gone() -> bool:
            gc.collect()
            return not any(each() is not None for each in gone)

        gone: list[Any] = []
        await cycles(3)
        await until(is_gone)
        before, held = _census(), Counter(_held(c, s, (a, b)))
        await cycles(5)
        await until(is_gone)
        await until(lambda: not _threads())
        await until(lambda: not Counter(_held(c, s, (a, b))) - held)

        # streamz keeps sinks, and these the nodes before them.
        if way is not learned_from_a_stream:
            await until(lambda: not _census() - before)

    run()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_worker_that_has_had_many_replicas_ends_at_once(c, s, a):
    async with Worker(s.address, nthreads=1) as b:
        for _ in range(10):
            async with ta.Trainer(c, **classes()) as trainer:
                await train_all(trainer, DATA)
        await asyncio.wait_for(b.close(), 5)
    await asyncio.wait_for(a.close(), 5)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_trainers_of_one_client_hear_of_their_own_replicas_only(c, s, a, b):
    async with ta.Trainer(c, **classes()) as first:
        async with ta.Trainer(c, **classes()) as second:
            key = first.session.replicas.handles[0].key
            (replica,) = (w.state.actors[key] for w in (a, b) if key in w.state.actors)
            await replica.leave(5)
            await until(lambda: first.session.replicas.handles[0].lane.leaving)
            assert not any(
                each.lane.leaving for each in second.session.replicas.handles
            )
        # The first one still hears, though the second has closed.
        await until(lambda: first.session.membership.settled)


def test_a_node_of_a_closed_trainer_that_nobody_holds_says_so():
    @gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
    async def run(c, s, a):
        source = Stream(asynchronous=True)
        trainer = await ta.Trainer(c, **classes())
        node = source.train(trainer)
        await trainer.close()
        assert node.trainer is trainer
        del trainer
        gc.collect()
        with pytest.raises(ta.errors.TrainerClosedError):
            await source.emit(DATA[0])

    run()
