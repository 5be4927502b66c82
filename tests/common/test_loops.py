"""Calls that would wait for their own event loop, and emits from many threads."""

from __future__ import annotations

import asyncio
import collections
import functools
import threading

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import EventLoopError

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
DATA = class_data(12)


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


# ---- a loop in this thread, the client's in another ----------------------------------


def test_a_call_that_holds_up_a_stream_is_an_error_at_once(client):
    async def cell():
        trainer = ta.Trainer(client, **classes())
        source = Stream(asynchronous=True)
        node = source.predict_then_train(trainer, delay=10)
        reports = node.sink_to_list()
        for item in DATA:
            await source.emit(item)
        for call in (trainer.drain, node.flush, lambda: trainer.__exit__(None)):
            with pytest.raises(EventLoopError, match=r"asyncio.to_thread"):
                call()
        assert trainer.status == "closed"  # the last one closes in any case
        return reports

    asyncio.run(cell())


def test_the_same_call_in_another_thread_is_none(client):
    async def cell():
        trainer = ta.Trainer(client, **classes())
        source = Stream(asynchronous=True)
        reports = source.partition(16).train(trainer).sink_to_list()
        x, y = DATA[0]
        for record in zip(x[:5], y[:5], strict=True):
            await source.emit(record)
        await asyncio.to_thread(trainer.drain)
        assert sum(report.samples for report in reports) == 5
        await source.emit((x[0], y[0]))
        trainer.close()  # ends at once: what waits is given up
        assert trainer.status == "closed"

    asyncio.run(cell())


def test_a_loop_in_this_thread_on_which_no_stream_runs_is_no_matter(client):
    async def cell():
        with ta.Trainer(client, **classes()) as trainer:
            source = Stream()
            reports = source.train(trainer).sink_to_list()
            for item in DATA:
                source.emit(item)
            trainer.drain()
            assert len(reports) == len(DATA)

    asyncio.run(cell())


# ---- the client's loop, in a plain function ------------------------------------------


def score(trainer, *_):
    return trainer.evaluate(DATA[:1])


CALLS = {
    "evaluate": score,
    "drain": lambda trainer, _: trainer.drain(),
    "predict in a list": lambda trainer, _: [trainer.predict(x) for x, _ in DATA],
    "save in a generator": lambda trainer, _: list(trainer.save() for _ in DATA),
}


@pytest.mark.parametrize(
    ("place", "call"),
    [("map", "drain"), ("filter", "evaluate"), ("dead letters", "evaluate")]
    + [("sink", call) for call in CALLS],
)
def test_a_call_in_a_plain_function_of_the_loop_is_an_error_at_once(
    client, place, call
):
    with ta.Trainer(client, **classes()) as trainer:
        raised: list[BaseException] = []

        def use(given):
            try:
                CALLS[call](trainer, given)
            except EventLoopError as error:
                raised.append(error)

        source = Stream()
        reports = source.train(trainer)
        if place == "dead letters":
            trainer.dead_letters.subscribe(use)
        else:
            node = getattr(reports, place)(use)
            assert node in reports.downstreams
        source.emit(DATA[0] if place != "dead letters" else "no mini-batch")
        trainer.drain()
        assert len(raised) == 1
        assert "Await it in a coroutine" in str(raised[0])


def test_a_sink_that_is_a_coroutine_has_its_answer(client):
    with ta.Trainer(client, **classes()) as trainer:
        scores, many = [], []

        async def use(report):
            scores.append(await trainer.evaluate(DATA[:1]))
            many.extend(await asyncio.gather(*(trainer.predict(x) for x, _ in DATA)))

        source = Stream()
        source.train(trainer).sink(use)
        source.emit(DATA[0])
        trainer.drain()
        assert scores[0]["samples"] == 16
        assert len(many) == len(DATA)


@two()
async def test_draining_where_the_reports_are_taken_is_an_error_at_once(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        raised = []

        async def use(report):
            try:
                await trainer.drain()
            except EventLoopError as error:
                raised.append(error)

        source = Stream(asynchronous=True)
        source.train(trainer).sink(use)
        for item in DATA:
            await source.emit(item)
        await trainer.drain()
        assert len(raised) == len(DATA)
        assert "where the stream is fed" in str(raised[0])


# ---- emits from many threads ---------------------------------------------------------


def in_threads(function, count=8):
    threads = [threading.Thread(target=function, args=(each,)) for each in range(count)]
    for thread in threads:
        thread.start()
    return threads


def emitting(source, errors, **options):
    def produce(number):
        for each in range(25):
            x, y = DATA[each % len(DATA)]
            try:
                source.emit((x, y), **options)
            except Exception as error:
                errors[repr(error)] += 1

    return produce


@pytest.mark.parametrize("kind", ["plain", "two streams", "partition"])
def test_every_item_that_threads_emit_is_taken_once(client, kind):
    with ta.Trainer(client, **classes()) as trainer:
        errors: collections.Counter[str] = collections.Counter()
        source, other = Stream(), Stream()
        if kind == "two streams":
            source.train(trainer)
            other.train(trainer)
            produce = emitting(source, errors), emitting(other, errors)
            threads = [thread for each in produce for thread in in_threads(each, 4)]
        else:
            node = source.partition(1) if kind == "partition" else source
            collate = (lambda item: item[0]) if kind == "partition" else None
            node.train(trainer, collate=collate)
            threads = in_threads(emitting(source, errors))
        for thread in threads:
            thread.join()
        trainer.drain()
        assert errors == {}
        assert trainer.emitted == sum(each.steps for each in trainer.replicas) == 200
        assert trainer.dead_letters.total == 0


@pytest.mark.parametrize("options", [{}, {"asynchronous": True}], ids=str)
def test_threads_may_emit_into_a_stream_of_a_loop(options):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes()) as trainer:
            errors: collections.Counter[str] = collections.Counter()
            source = Stream(asynchronous=True)
            homes = set()
            source.map(lambda item: homes.add(threading.get_ident())).sink(print)
            source.train(trainer)
            threads = in_threads(emitting(source, errors, **options))
            for thread in threads:
                await asyncio.to_thread(thread.join)
            while trainer.emitted < 200:
                await asyncio.sleep(0.005)
            await trainer.drain()
            assert errors == {}
            assert homes == {threading.get_ident()}
            assert sum(each.steps for each in trainer.replicas) == 200

    run()


def test_what_an_item_raises_is_raised_to_the_thread_that_emitted_it(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()

        def parse(item):
            if isinstance(item, int):
                raise ValueError(item)
            return item

        source.map(parse).train(trainer)
        own: dict[int, set[str]] = {}

        def produce(number):
            raised = set()
            for _ in range(10):
                source.emit(DATA[0])
                try:
                    source.emit(number)
                except ValueError as error:
                    raised.add(str(error))
            own[number] = raised

        for thread in in_threads(produce):
            thread.join()
        assert own == {number: {str(number)} for number in range(8)}
        trainer.drain()
        assert trainer.emitted == 80


def test_a_sink_may_emit_into_another_stream_of_its_loop(client):
    with ta.Trainer(client, **classes()) as trainer:
        source, other = Stream(), Stream(loop=client.loop)
        reports = other.train(trainer).sink_to_list()
        source.buffer(2).sink(other.emit)
        source.partition(2).train(trainer, collate=np.asarray).sink(print)
        for item in DATA:
            source.emit(item)
        trainer.drain()
        while len(reports) < len(DATA):
            trainer.drain()
        assert all(report.error is None for report in reports)
