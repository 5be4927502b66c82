"""Items that wait in the nodes before a trainer are learned, too."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap

import pytest
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster, gen_test
from helpers import class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from tornado.ioloop import IOLoop
from trainers import until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.streams.holding import count_held, pass_on_held

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
LONG = 1000.0
RECORDS = [
    record for x, y in class_data(7, samples=5) for record in zip(x, y, strict=True)
]


def by_label(record):
    return int(record[1])


def by_values(record):
    return record[0].tobytes()


NODES = {
    "partition": lambda stream: stream.partition(16),
    "timed partition": lambda stream: stream.partition(16, timeout=LONG),
    "partition by key": lambda stream: stream.partition(16, timeout=LONG, key=by_label),
    "partition of unique": lambda stream: stream.partition_unique(16, key=by_values),
    "timed window": lambda stream: stream.timed_window(LONG),
    "window of unique": lambda stream: stream.timed_window_unique(LONG, key=by_values),
    "behind a map": lambda stream: stream.partition(16).map(tuple),
    "behind a buffer": lambda stream: stream.buffer(99).partition(16),
    "before a buffer": lambda stream: stream.partition(16).buffer(9),
    "behind a delay": lambda stream: stream.delay(0.001).partition(16),
    "two branches": lambda stream: (
        stream.filter(by_label)
        .union(
            stream.filter(lambda record: not by_label(record)).partition(4).flatten()
        )
        .partition(16)
    ),
}


@pytest.mark.parametrize("end", ["drain", "with", "close"])
@pytest.mark.parametrize("name", NODES)
def test_records_that_wait_for_others_are_learned_at_the_end(name, end):
    @two()
    async def run(c, s, a, b):
        trainer = await ta.Trainer(c, **classes())
        source = Stream(asynchronous=True)
        node = NODES[name](source)
        reports = node.train(trainer).sink_to_list()
        refs = []
        for record in RECORDS:
            refs.append(RefCounter(loop=IOLoop.current()))
            await source.emit(record, metadata=[{"ref": refs[-1]}])
        if end == "drain":
            await trainer.drain()
            assert sum(each.samples for each in trainer.replicas) == len(RECORDS)
        if end == "with":
            async with trainer:
                pass
        await trainer.close()
        learned = [report for report in reports if report.error is None]
        assert sum(report.samples for report in learned) == len(RECORDS)
        if end != "close" and "unique" not in name:  # which keeps no references
            assert {ref.count for ref in refs} == {0}

    run()


@two()
async def test_a_group_that_was_passed_on_is_not_passed_on_again_at_its_time(
    c, s, a, b
):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        node = source.partition(16, timeout=0.05)
        groups = node.sink_to_list()
        node.train(trainer)
        await source.emit(RECORDS[0])
        await trainer.drain()
        await asyncio.sleep(0.1)  # beyond its time
        assert [len(group) for group in groups] == [1]
        await asyncio.gather(*(source.emit(each) for each in RECORDS[:16]))
        assert [len(group) for group in groups] == [1, 16]
    assert trainer.dead_letters.total == 0


@two()
async def test_predictions_come_before_the_end_as_well(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        answers = source.partition(16).predict(trainer).sink_to_list()
        for x, _ in RECORDS[:5]:
            await source.emit(x)
        await trainer.drain()
        assert [len(answer) for answer in answers] == [5]


def test_a_script_loses_no_record_of_a_partition():
    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **classes()) as trainer,
    ):
        source = Stream()
        reports = source.partition(16, timeout=LONG).train(trainer).sink_to_list()
        for record in RECORDS:
            source.emit(record)
        trainer.drain()
        assert sum(report.samples for report in reports) == len(RECORDS)
        source.emit(RECORDS[0])
    assert sum(report.samples for report in reports) == len(RECORDS) + 1


@two()
async def test_what_is_refused_when_it_is_passed_on_is_raised_by_drain(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.partition(16).train(trainer, on_error="raise")
        await source.emit("no record")
        with pytest.raises(errors.StreamError, match="partition"):
            await trainer.drain()
        await trainer.drain()  # it was raised


@gen_test()
async def test_a_queue_that_does_not_get_empty_is_waited_for_in_vain():
    source = Stream(asynchronous=True)
    gate = asyncio.Event()

    class Gate(Stream):
        def update(self, x, who=None, metadata=None):
            return [gate.wait()]

    gated = Gate(source.buffer(5))
    for number in range(3):
        await source.emit(number)
    assert count_held([gated]) == 3
    with pytest.raises(errors.TensairTimeoutError, match=r"3 items .*buffer"):
        await pass_on_held([gated], 0.05)
    gate.set()
    await pass_on_held([gated], 10)
    assert count_held([gated]) == 0


@two()
async def test_records_that_come_after_the_end_leave_no_traceback(c, s, a, b):
    reported: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = reported.append
    logging.getLogger().addHandler(handler)
    logging.getLogger("tornado").addHandler(handler)
    try:
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            node = source.partition(16, timeout=0.01)
            node.train(trainer)
        await source.emit(RECORDS[0])
        await until(lambda: not node._buffer[None])
        await until(lambda: node._tensair_missed)
        with pytest.raises(errors.StreamError, match="trainer is closed"):
            await source.emit(RECORDS[0])
    finally:
        logging.getLogger().removeHandler(handler)
        logging.getLogger("tornado").removeHandler(handler)
    assert not [each.getMessage() for each in reported if each.exc_info]


async def itself(item):
    await asyncio.sleep(0.01)
    return item


QUEUES = {
    "map_async": lambda stream: stream.map_async(itself, parallelism=8),
    "map_async before a partition": lambda stream: (
        stream.map_async(itself, parallelism=8).flatten().partition(2)
    ),
    "map_async behind a buffer": lambda stream: stream.buffer(8).map_async(itself),
}


@pytest.mark.parametrize("name", QUEUES)
def test_what_map_async_works_on_is_waited_for(name):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            flat = "partition" in name
            reports = QUEUES[name](source).train(trainer).sink_to_list()
            for item in class_data(5, samples=4):
                # One that is flattened gives two records.
                x, y = item
                given = list(zip(x, y, strict=True)) if flat else item
                await source.emit(given)
            await trainer.drain()
            assert sum(report.samples for report in reports) == 20
            assert {report.error for report in reports} == {None}
            assert not reported(trainer)

    run()


def reported(trainer):
    return [text for text in trainer.events["text"] if "has not passed on" in text]


@two()
async def test_items_for_which_an_asynchronous_function_raises_are_counted(c, s, a, b):
    async def odd(item):
        if item[1] % 2:
            raise ValueError(item[1])
        return item

    def at_once(item):
        raise TypeError(item)

    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        refs = [RefCounter(loop=IOLoop.current()) for _ in range(6)]
        node = source.map_async(odd, parallelism=4)
        reports = node.map(lambda item: item[0]).train(trainer).sink_to_list()
        for number, pair in enumerate(class_data(6)):
            await source.emit((pair, number), metadata=[{"ref": refs[number]}])
        await trainer.drain()
        assert len(reports) == 3
        (text,) = reported(trainer)
        assert "3 items for which its function has raised" in text
        other = Stream(asynchronous=True)
        other.map_async(at_once).train(trainer)
        with pytest.raises(TypeError):
            await other.emit(1)
        await trainer.drain()
        assert "1 items for which its function" in reported(trainer)[1]


@two()
async def test_the_newest_item_of_latest_is_learned_and_dropped_ones_are_counted(
    c, s, a, b
):
    gate = asyncio.Event()

    class Gate(Stream):
        def update(self, x, who=None, metadata=None):
            return [gate.wait(), *self._emit(x, metadata=metadata)]

    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        got = []
        gated = Gate(source.latest())
        gated.sink(lambda pair: got.append(pair[2]))
        gated.map(lambda item: item[:2]).train(trainer)
        pairs = class_data(6)
        for number, pair in enumerate(pairs):
            await source.emit((*pair, number))
            await until(lambda: got)
        # streamz would wake it at the next item only.
        draining = asyncio.ensure_future(trainer.drain())
        await asyncio.sleep(0)
        gate.set()
        await draining
        assert got == [0, 5]
        (text,) = reported(trainer)
        assert "4 of 6 items, for which newer ones came" in text
        for number, pair in enumerate(pairs):
            await source.emit((*pair, number))
            await trainer.drain()
        assert got == [0, 5, *range(6)]


# What keeps 3 pairs, and what is said of it.
KEEPERS = {
    "collect": (lambda source, other: source.collect(), r"3 items.* flush\(\)"),
    "zip": (lambda source, other: source.zip(other), "3 items, whose partners from"),
    "three in a zip": (
        lambda source, other: source.zip(source.map(tuple), other),
        "6 items, whose partners",
    ),
    "combine_latest": (
        lambda source, other: source.combine_latest(other),
        "3 items, since none has come from",
    ),
    "zip_latest": (
        lambda source, other: source.zip_latest(other),
        "3 items, since none has come from",
    ),
    "sliding_window": (
        lambda source, other: source.sliding_window(9, return_partial=False),
        "3 items, since a window has 9",
    ),
    "before a map": (lambda source, other: source.collect().map(list), "3 items"),
}


@pytest.mark.parametrize("kind", ["train", "predict", "predict_then_train"])
@pytest.mark.parametrize("name", KEEPERS)
def test_what_is_kept_is_said_with_its_number(name, kind):
    @two()
    async def run(c, s, a, b):
        build, text = KEEPERS[name]
        async with ta.Trainer(c, **classes()) as trainer:
            source, other = Stream(asynchronous=True), Stream(asynchronous=True)
            getattr(build(source, other), kind)(trainer)
            for pair in class_data(3):
                await source.emit(pair)
            for _ in range(2):
                await trainer.drain()
            (said,) = reported(trainer)
            assert re.search(text, said)
            assert ("predicted by" in said) == (kind == "predict")
        assert len(reported(trainer)) == 2  # at the end, too

    run()


@two()
async def test_nothing_is_said_of_nodes_that_have_passed_all_on(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        xs, ys = source.pluck(0), source.pluck(1)
        collected = source.collect()
        window = source.sliding_window(2, return_partial=False)
        xs.zip(ys).train(trainer)
        xs.combine_latest(ys).sink(print)
        collected.flatten().train(trainer)
        window.flatten().train(trainer)
        for pair in class_data(3):
            await source.emit(pair)
        collected.flush()
        await trainer.drain()
        assert reported(trainer) == []


SCRIPT = """
    import functools
    import numpy, torch
    from dask.distributed import Client, LocalCluster
    from streamz import Stream
    import tensair_dask as ta
    import tensair_dask.streams

    def endless(source):
        record = numpy.zeros(6, "float32"), 0
        source.emit(record)
        print("ready", flush=True)
        while True:
            source.emit(record)

    if __name__ == "__main__":
        cluster = LocalCluster(
            n_workers=1, threads_per_worker=1, dashboard_address=None
        )
        client = Client(cluster)
        trainer = ta.Trainer(
            client,
            model=functools.partial(torch.nn.Linear, 6, 3),
            loss=torch.nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=0.1),
        )
        source = Stream()
        reports = source.partition(64, timeout=0.1).train(trainer).sink_to_list()
        try:
            endless(source)
        except KeyboardInterrupt:
            trainer.drain()
            trainer.close()
            print("learned", sum(report.samples for report in reports) > 0)
        client.close()
        cluster.close()
"""


@pytest.mark.processes
def test_a_script_that_is_interrupted_ends_as_it_says(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    process = subprocess.Popen(
        [sys.executable, script],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        assert any(line == "ready\n" for line in lines)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
        rest, _ = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 0
    assert "learned True" in rest
    assert "Traceback" not in rest
