"""The streamz nodes: reports, back-pressure, references, two event loops."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from test_trainer import Pair, Slow, until
from tornado.ioloop import IOLoop

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)


@pytest.fixture
def slow():
    Slow.gate.clear()
    Slow.entered.clear()
    yield Slow
    Slow.gate.set()


@two()
async def test_every_mini_batch_gives_one_report(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        for item in class_data(200):
            await source.emit(item)
        await trainer.drain()
    assert sorted(report.index for report in reports) == list(range(200))
    assert all(report.error is None for report in reports)


@two()
async def test_partitions_of_records_are_mini_batches(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.partition(8).train(trainer).sink_to_list()
        for x, y in class_data(10):
            for record in zip(x, y, strict=True):
                await source.emit(record)
        await trainer.drain()
    assert [report.samples for report in reports] == [8] * 20


@two()
async def test_several_inputs_stream_too(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Pair)) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        await source.emit(((X, X), Y))
        await source.emit(({"left": X}, Y))
        await source.emit(tuple(((row, row), 0) for row in X))
        await trainer.drain()
    assert [report.error for report in reports] == [None] * 3


@two()
async def test_an_own_collate_takes_the_place_of_the_two_forms(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.train(trainer, collate=lambda table: (table["x"], table["y"]))
        reports = node.sink_to_list()
        await source.emit({"x": X, "y": Y})
        await source.emit({"x": X})
        await trainer.drain()
    assert reports[1].error is None or reports[0].error is None
    (refused,) = [report for report in reports if report.error is not None]
    assert isinstance(refused.error, errors.BatchError)
    assert "KeyError" in str(refused.error)


@two()
async def test_bad_items_leave_the_stream_running(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        nan = np.full_like(X, np.nan)
        for item in [(X, Y), None, (nan, Y), "text", (X[:, :1], Y), (X, Y)]:
            await source.emit(item)
        await trainer.drain()
    bad = {report.index: type(report.error) for report in reports if report.error}
    assert bad == {
        1: errors.BatchError,
        2: errors.NonFiniteError,
        3: errors.BatchError,
        4: errors.ShapeError,
    }
    items = {letter.index: letter.item for letter in trainer.dead_letters}
    assert items[3] == "text"
    assert items[2][0] is nan


def test_references_are_held_until_the_report_has_passed(slow):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes(model=slow, replicas=1)) as trainer:
            source = Stream(asynchronous=True)
            passed = asyncio.Event()
            node = source.train(trainer)

            class Sink(Stream):
                def update(self, x, who=None, metadata=None):
                    return [passed.wait()]

            sink = Sink(node)
            released: list[int] = []
            ref = RefCounter(cb=lambda: released.append(1), loop=IOLoop.current())
            await source.emit((X, Y), metadata=[{"ref": ref}])
            await until(slow.entered.is_set)
            assert ref.count == 1
            slow.gate.set()
            await until(lambda: trainer.history.shape[0] == 1)
            assert ref.count == 1  # the report is still on its way downstream
            passed.set()
            await trainer.drain()
            await until(lambda: released)
            assert ref.count == 0
            assert released == [1]
            assert sink is not None

    run()


@two()
async def test_references_of_every_fate_are_released_once(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).sink(lambda report: None)
        refs = []
        bad = [None, (X[:, :1], Y), (np.full_like(X, np.nan), Y)]
        items = [*class_data(30), *bad]
        for item in items:
            refs.append(RefCounter(loop=IOLoop.current()))
            await source.emit(item, metadata=[{"ref": refs[-1]}])
        await trainer.drain()
        assert [ref.count for ref in refs] == [0] * len(items)


def test_a_slow_receiver_of_reports_stops_the_source():
    @two()
    async def run(c, s, a, b):
        arguments = classes(max_in_flight=2, replicas=1)
        async with ta.Trainer(c, **arguments) as trainer:
            source = Stream(asynchronous=True)
            gate = asyncio.Event()

            class Sink(Stream):
                def update(self, x, who=None, metadata=None):
                    return [gate.wait()]

            sink = Sink(source.train(trainer))
            await source.emit((X, Y))
            await until(lambda: trainer.history.shape[0] == 1)
            with pytest.raises(errors.TensairTimeoutError):
                await trainer.drain(timeout=0.02)
            gate.set()
            await trainer.drain()
            assert sink is not None

    run()


@two()
async def test_a_sink_that_raises_does_not_stop_the_stream(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        seen: list[int] = []

        def sink(report):
            seen.append(report.index)
            raise RuntimeError("a sink that fails")

        source.train(trainer).sink(sink)
        for item in class_data(20):
            await source.emit(item)
        await trainer.drain()
    assert sorted(seen) == list(range(20))


@two()
async def test_predictions_stream_in_order(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        predictions = source.predict(trainer).sink_to_list()
        samples = [x for x, _ in class_data(5)]
        for x in samples:
            await source.emit(x)
        await source.emit(tuple(samples[0]))  # as partition makes them
        for x, prediction in zip([*samples, samples[0]], predictions, strict=True):
            assert np.allclose(prediction, await trainer.predict(x), atol=1e-6)


@two()
async def test_a_prediction_that_cannot_be_made_raises_at_emit(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.predict(trainer).sink(lambda prediction: None)
        ref = RefCounter(loop=IOLoop.current())
        with pytest.raises(errors.ShapeError):
            await source.emit(X[:, :1], metadata=[{"ref": ref}])
        assert ref.count == 0


@pytest.fixture
def client():
    with (
        LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            processes=False,
            dashboard_address=None,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def test_a_synchronous_script(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        for item in class_data(50):
            source.emit(item)
        trainer.drain()
        assert len(reports) == 50
        assert trainer.predict(X).shape == (4, 3)
        assert trainer.train(X, Y).error is None
        assert set(trainer.state_dict()) == set(trainer.state_dicts().popitem()[1])
        assert trainer.evaluate([(X, Y)])["samples"] == 4
    with pytest.raises(errors.TrainerClosedError):
        trainer.train(X, Y)


def test_leaving_the_with_block_drains(client):
    with ta.Trainer(client, **classes()) as trainer:
        source = Stream()
        reports = source.train(trainer).sink_to_list()
        for item in class_data(50):
            source.emit(item)
    assert len(reports) == 50


def test_an_error_in_the_with_block_is_not_covered_up(client):
    with pytest.raises(RuntimeError, match="mine"), ta.Trainer(client, **classes()):
        raise RuntimeError("mine")


def test_a_stream_on_another_event_loop_than_the_clients(client):
    from streamz.core import get_io_loop

    with client.as_current(), ta.Trainer(client, **classes()) as trainer:
        other = IOLoop(make_current=False)
        import threading

        thread = threading.Thread(target=other.start, daemon=True)
        thread.start()
        try:
            assert other is not get_io_loop()
            source = Stream(loop=other, asynchronous=False)
            reports = source.train(trainer).sink_to_list()
            predictions = source.map(lambda item: item[0]).predict(trainer)
            predictions = predictions.sink_to_list()
            for item in class_data(20):
                source.emit(item)
            trainer.drain()
            assert len(reports) == len(predictions) == 20
        finally:
            other.add_callback(other.stop)
            thread.join(10)
            other.close(all_fds=True)
