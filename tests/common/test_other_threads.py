"""Items are taken on the trainer's event loop, whatever thread gives them."""

from __future__ import annotations

import asyncio
import functools
import threading

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import EventLoopError, TensairTimeoutError

DATA = class_data(6)
one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def as_mini_batch(item):
    """Ready arrays as they are; records are stacked."""
    if isinstance(item[0], np.ndarray) and item[0].ndim == 2:
        return item
    return ta.batches.collate(item)


BESIDE = {
    "buffer": lambda stream: stream.buffer(10),
    "delay": lambda stream: stream.delay(0.01),
    "latest": lambda stream: stream.latest(),
    "partition": lambda stream: stream.partition(4),
    "sliding window behind a buffer": lambda stream: stream.buffer(3).sliding_window(2),
}


@pytest.mark.parametrize("beside", BESIDE)
def test_of_streams_side_by_side_one_may_have_a_loop(client, beside):
    with ta.Trainer(client, **classes()) as trainer:
        other, source = Stream(), Stream()
        reports = (
            BESIDE[beside](other)
            .union(source)
            .train(trainer, collate=as_mini_batch)
            .sink_to_list()
        )
        for item in DATA:
            source.emit(item)
        trainer.drain()
        assert [report.error for report in reports] == [None] * len(DATA)


def test_streams_that_give_x_and_y_may_have_one_loop_between_them(client):
    with ta.Trainer(client, **classes()) as trainer:
        xs, ys = Stream(), Stream()
        reports = xs.buffer(10).zip(ys).train(trainer).sink_to_list()
        for x, y in DATA:
            xs.emit(x)
            ys.emit(y)
        trainer.drain()
        assert len(reports) == len(DATA)


def test_a_stream_that_is_connected_later_is_learned(client):
    with ta.Trainer(client, **classes()) as trainer:
        source, late = Stream(), Stream()
        union = source.union(Stream())
        reports = union.train(trainer).sink_to_list()
        late.connect(union)
        for item in DATA:
            late.emit(item)
        trainer.drain()
        assert len(reports) == len(DATA)


@pytest.mark.parametrize("node", ["train", "predict", "predict_then_train"])
def test_what_is_collected_may_be_flushed_in_any_thread(client, node):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        collected = source.collect()
        given = collected if node != "predict" else collected.map(first_sides)
        results = getattr(given, node)(trainer).sink_to_list()
        ((x, y),) = class_data(1, samples=5)
        for record in zip(x, y, strict=True):
            source.emit(record)
        collected.flush()
        worker = threading.Thread(target=collected.flush)  # nothing: passed over
        worker.start()
        worker.join()
        trainer.drain()
        assert len(results) == 1


def first_sides(records):
    return np.stack([x for x, _ in records]) if records else ()


def test_the_error_of_an_item_is_raised_to_the_thread_that_gives_it(client):
    with ta.Trainer(client, **classes()) as trainer:
        late, union = Stream(), Stream().union(Stream())
        union.predict(trainer)
        late.connect(union)
        with pytest.raises(ta.errors.BatchError):
            late.emit(np.zeros((2, 77), "float32"))


@pytest.mark.parametrize("node", ["train", "predict"])
def test_an_asynchronous_stream_in_a_plain_script_is_an_error_at_once(client, node):
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        with ta.Trainer(client, **classes()) as trainer:
            source = Stream(asynchronous=True)
            results = getattr(source, node)(trainer).sink_to_list()
            with pytest.raises(
                EventLoopError, match=r"In a plain script .* Stream\(\)"
            ):
                source.emit(DATA[0] if node == "train" else DATA[0][0])
            assert not results
            assert trainer.backlog == 0
            for each in list(trainer.session.intake.nodes):
                each.destroy()
    finally:
        asyncio.set_event_loop(None)
        loop.close()


# ---- waits for a partner -------------------------------------------------------------


@pytest.mark.parametrize("is_first", [True, False])
def test_an_emit_waits_for_a_partner_for_a_while_only(client, is_first):
    with ta.Trainer(client, **classes()) as trainer:
        xs, ys = Stream(stream_name="xs"), Stream(stream_name="ys")
        reports = xs.zip(ys, maxsize=3).train(trainer).sink_to_list()
        one_side, other = (xs, ys) if is_first else (ys, xs)
        with dask.config.set({"tensair.timeouts.room": "100ms"}):
            for pair in DATA[:3]:
                one_side.emit(pair[not is_first])
            with pytest.raises(TensairTimeoutError, match=r"holds 4 items .* maxsize="):
                one_side.emit(DATA[3][not is_first])
        for pair in DATA[:4]:  # the item that was not waited for is there
            other.emit(pair[is_first])
        trainer.drain()
        assert [report.error for report in reports] == [None] * 4


@one()
async def test_an_awaited_emit_waits_for_a_partner_for_a_while_only(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        xs, ys = Stream(asynchronous=True), Stream(asynchronous=True)
        xs.zip(ys, maxsize=1).map(lambda pair: pair).train(trainer)
        await xs.emit(DATA[0][0])
        with (
            dask.config.set({"tensair.timeouts.room": "50ms"}),
            pytest.raises(TensairTimeoutError, match="partner"),
        ):
            await xs.emit(DATA[1][0])
        waits = asyncio.ensure_future(xs.emit(DATA[2][0]))
        for _, y in DATA[:3]:
            await ys.emit(y)
        await waits  # in time
        await trainer.drain()
        assert len(trainer.history) == 3
