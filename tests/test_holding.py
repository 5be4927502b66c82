"""What waits in the nodes of a stream before its trainer is learned, too."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
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
from test_trainer import until
from tornado.ioloop import IOLoop

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.holding import count_held, pass_on_held

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
    told: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = told.append
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
    assert not [each.getMessage() for each in told if each.exc_info]


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
