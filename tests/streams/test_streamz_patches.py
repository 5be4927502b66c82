"""streamz nodes with a loop of their own: what ends them is raised, not swallowed."""

from __future__ import annotations

import asyncio
import logging
import subprocess
import sys
import threading

import numpy as np
import pytest
from distributed.utils_test import gen_cluster, gen_test
from helpers import FEATURES, classes
from streamz import Stream
from streamz.core import RefCounter
from tornado.ioloop import IOLoop
from trainers import until

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.streams.streamz_patches import mend, raise_upstream

SHORT = 0.005
NODES = {
    "buffer": lambda stream: stream.buffer(2),
    "delay": lambda stream: stream.delay(SHORT),
    "latest": lambda stream: stream.latest(),
    "timed_window": lambda stream: stream.timed_window(SHORT).flatten(),
    "timed_window_unique": lambda stream: stream.timed_window_unique(SHORT).flatten(),
    "map_async": lambda stream: stream.map_async(itself),
}


async def itself(record):
    return record


def parse(record):
    if record == "poison":
        raise ValueError("no number at all")
    return record


async def fails_later(record):
    if record == "poison":
        raise ValueError("no number at all")


async def look_until_raised(node) -> None:
    for _ in range(10_000):
        raise_upstream(node)
        await asyncio.sleep(0.001)


def emit_many(source) -> None:
    for _ in range(1000):
        source.emit(1)


async def emit_until_refused(source, most=1000) -> errors.StreamError:
    """Emit poison until it raises; a bounded number of times, and none may block."""
    for _ in range(most):
        try:
            await asyncio.wait_for(source.emit("poison"), 10)
        except errors.StreamError as error:
            return error
        await asyncio.sleep(0.001)
    raise AssertionError("the node takes items, and has ended")


@pytest.mark.parametrize("name", NODES)
@gen_test()
async def test_a_node_that_has_ended_raises_what_ended_it(name):
    source = Stream(asynchronous=True)
    node = NODES[name](source)
    passed = node.map(parse).sink_to_list()
    await source.emit(1)
    await until(lambda: passed == [1])
    error = await emit_until_refused(source)
    assert name in str(error)
    assert "ValueError: no number at all" in str(error)
    assert "try_map" in str(error)
    assert isinstance(error.__cause__, ValueError)
    with pytest.raises(errors.StreamError):  # and again
        await source.emit(1)


@pytest.mark.parametrize("name", NODES)
@gen_test()
async def test_what_is_raised_only_when_awaited_is_noticed_too(name):
    source = Stream(asynchronous=True)
    node = NODES[name](source)

    class Later(Stream):
        def update(self, x, who=None, metadata=None):
            return fails_later(x)

    later = Later(node)
    error = await emit_until_refused(source)
    assert name in str(error)
    assert later is not None


@gen_test()
async def test_an_emit_that_waits_for_room_is_woken_by_the_end_of_the_node():
    source = Stream(asynchronous=True)
    gate = asyncio.Event()

    class Gate(Stream):
        async def update(self, x, who=None, metadata=None):
            await gate.wait()
            raise ValueError("no number at all")

    gated = Gate(source.buffer(1))
    emits = [asyncio.ensure_future(source.emit(number)) for number in range(5)]
    await until(lambda: sum(emit.done() for emit in emits) == 2)
    gate.set()
    outcomes = await asyncio.wait_for(
        asyncio.gather(*emits, return_exceptions=True), 10
    )
    assert [type(outcome) for outcome in outcomes[2:]] == [errors.StreamError] * 3
    assert gated is not None


@gen_test()
async def test_the_end_of_a_node_passes_upstream_through_others():
    source = Stream(asynchronous=True)
    source.buffer(1).map(parse).buffer(1).map(parse).sink(
        lambda record: parse("poison")
    )
    error = await emit_until_refused(source)
    assert isinstance(error.__cause__, ValueError)


def test_a_synchronous_emit_raises_what_ended_a_node():
    loop = IOLoop(make_current=False)
    thread = threading.Thread(target=loop.start, daemon=True)
    thread.start()
    try:
        source = Stream(loop=loop, asynchronous=False)
        node = source.buffer(1)
        node.map(parse).sink(lambda record: None)
        source.emit("poison")
        with pytest.raises(errors.StreamError, match="no number at all"):
            emit_many(source)
    finally:
        loop.add_callback(loop.stop)
        thread.join(10)
        loop.close(all_fds=True)


def test_nodes_that_were_made_before_the_package_was_imported_are_mended():
    code = """
import asyncio
from streamz import Stream

async def main():
    source = Stream(asynchronous=True)
    source.buffer(1).sink(lambda record: 1 / record)
    await source.emit(1)
    await asyncio.sleep(0)
    import tensair_dask.streams
    from tensair_dask.errors import StreamError
    try:
        for _ in range(100):
            await asyncio.wait_for(source.emit(0), 10)
    except StreamError as error:
        print("raised", type(error.__cause__).__name__)

asyncio.run(main())
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert run.stdout == "raised ZeroDivisionError\n"


@gen_test()
async def test_what_a_partition_loses_at_its_timeout_is_raised_once():
    source = Stream(asynchronous=True)
    passed = []

    def take(records):
        if "poison" in records:
            raise ValueError("no number at all")
        passed.append(records)

    node = source.partition(2, timeout=SHORT)
    node.sink(take)
    await source.emit("poison")
    with pytest.raises(errors.StreamError, match="partition"):
        await look_until_raised(node)
    raise_upstream(node)
    await asyncio.gather(source.emit(1), source.emit(2))  # it goes on
    assert passed == [(1, 2)]
    with pytest.raises(ValueError, match="no number"):  # as without this package
        await asyncio.gather(source.emit("poison"), source.emit(2))
    raise_upstream(node)


@gen_test()
async def test_a_partition_that_lost_records_raises_to_the_next_emit():
    source = Stream(asynchronous=True)
    source.partition(2, timeout=SHORT).map(parse_all).sink(lambda records: None)
    await source.emit("poison")
    error = None
    for _ in range(1000):
        try:
            await source.emit(1)
        except errors.StreamError as raised:
            error = raised
            break
        except ValueError:  # it was in a whole partition
            await source.emit("poison")
        await asyncio.sleep(2 * SHORT)
    assert error is not None


def parse_all(records):
    return [parse(record) for record in records]


@gen_test()
async def test_a_source_that_has_ended_is_noticed():
    source = Stream.from_iterable([1, "poison", 2], loop=IOLoop.current())
    node = source.map(parse)
    node.sink(lambda record: None)
    source.start()
    with pytest.raises(errors.StreamError, match="from_iterable"):
        await look_until_raised(node)


@gen_test()
async def test_an_own_class_of_nodes_can_be_mended():
    @mend
    class Later(Stream):
        def __init__(self, upstream, **kwargs):
            super().__init__(upstream, ensure_io_loop=True, **kwargs)
            self.items = asyncio.Queue(1)
            self.loop.add_callback(self.cb)

        def update(self, x, who=None, metadata=None):
            return asyncio.ensure_future(self.items.put(x))

        async def cb(self):
            while True:
                await asyncio.gather(*self._emit(await self.items.get()))

    assert mend(Later) is Later
    source = Stream(asynchronous=True)
    node = Later(source)
    node.map(parse).sink(lambda record: None)
    error = await emit_until_refused(source)
    assert "Later" in str(error)


@gen_test()
async def test_the_end_is_logged_once_and_names_the_node():
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    log = logging.getLogger("tensair_dask.streams.streamz_patches")
    log.addHandler(handler)
    try:
        source = Stream(asynchronous=True)
        source.buffer(1, stream_name="before parsing").map(parse).sink(print)
        await source.emit("poison")
        await emit_until_refused(source)
        assert len(records) == 1
        assert "before parsing" in records[0].getMessage()
    finally:
        log.removeHandler(handler)


@gen_test()
async def test_streams_without_such_nodes_raise_as_they_did():
    source = Stream(asynchronous=True)
    passed = source.map(parse).sink_to_list()
    with pytest.raises(ValueError, match="no number"):
        await source.emit("poison")
    await source.emit(1)
    assert passed == [1]


@gen_test()
async def test_every_element_of_an_item_carries_what_the_item_does():
    source = Stream(asynchronous=True)
    passed = source.flatten().partition(3)
    groups = passed.sink_to_list()
    ref = RefCounter(loop=IOLoop.current())
    counts = []
    passed.sink(lambda group: counts.append(ref.count))
    await source.emit([1, 2, 3, 4], metadata=[{"ref": ref}])
    assert groups == [(1, 2, 3)]
    assert counts[0] > 1
    assert ref.count == 1  # the last one waits for others
    await source.emit(each for each in [5, 6])
    assert groups == [(1, 2, 3), (4, 5, 6)]
    assert ref.count == 0
    await source.emit([], metadata=[{"ref": ref}])
    assert ref.count == 0


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_draining_raises_if_a_node_before_the_trainer_has_ended(c, s, a):
    x, y = np.zeros((4, FEATURES), "float32"), np.zeros(4, int)
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)

        def load(item):
            if item is None:
                raise ValueError("no number at all")
            return item

        reports = source.buffer(4).map(load).train(trainer).sink_to_list()
        ref = RefCounter(loop=IOLoop.current())
        await source.emit((x, y))
        await source.emit(None, metadata=[{"ref": ref}])
        await until(lambda: reports)
        with pytest.raises(errors.StreamError, match="buffer"):
            await trainer.drain()
        assert len(reports) == 1
        assert ref.count > 0  # to be read again
        for node in list(trainer.session.intake.nodes):
            node.destroy()
        await trainer.drain()
