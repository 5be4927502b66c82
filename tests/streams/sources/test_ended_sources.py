"""A source that fails is an event of the trainers behind it, whatever its kind."""

from __future__ import annotations

import functools

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, linear, until
from streamz import Stream
from tornado.ioloop import IOLoop

import tensair_dask as ta
from tensair_dask.errors import SourceError, StreamError
from tensair_dask.streams.downstream import trainers_after
from tensair_dask.streams.sources.source import Source

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)

ROW = ",".join(["1"] * FEATURES) + "\n"


def ends_of(trainer):
    return [text for text in trainer.events["text"] if "source" in text]


def batch(_):
    return np.ones((2, FEATURES), "f4"), np.ones((2, 3), "f4")


async def harmed(path, harm, trainer):
    path.write_text(ROW)
    got = []
    source = Stream.from_lines(
        str(path), name="log", poll=0.001, follow=True, asynchronous=True
    )
    source.sink(got.append)
    source.map(batch).train(trainer)
    async with source:
        await until(lambda: got)
        harm(path)
        with pytest.raises(SourceError) as caught:
            await source.ended()
    return str(caught.value)


def replaced(path):
    new = path.with_suffix(".new")
    new.write_text(ROW.replace("1", "2") * 3)
    new.replace(path)


@one()
@pytest.mark.parametrize(
    "harm",
    [lambda path: path.write_text(""), lambda path: path.unlink(), replaced],
    ids=["truncated", "gone", "replaced"],
)
async def test_a_file_that_is_rotated(c, s, a, harm, tmp_path):
    async with ta.Trainer(c, **linear()) as trainer:
        reported = await harmed(tmp_path / "log.csv", harm, trainer)
        await until(lambda: ends_of(trainer))
        (text,) = ends_of(trainer)
        assert "The source log has failed" in text
        assert reported in text


def raising(start):
    yield 1
    raise OSError("the disk is gone")


class Own(Source):
    async def _run(self):
        raise SourceError("the sensor is silent")


def refuses(item):
    raise KeyError("no such column")


SOURCES = {
    "a function": lambda: Stream.from_batches(raising, asynchronous=True).map(batch),
    "one of one's own": lambda: Own("own", asynchronous=True).map(batch),
    "a map": lambda: Stream.from_batches([1], asynchronous=True).map(refuses),
}


def source_of(node):
    while node.upstreams:
        node = node.upstreams[0]
    return node


@one()
@pytest.mark.parametrize("kind", SOURCES)
async def test_a_failed_source_is_an_event_of_each_trainer_behind_it(c, s, a, kind):
    async with ta.Trainer(c, **linear()) as first, ta.Trainer(c, **linear()) as second:
        stream = SOURCES[kind]()
        stream.train(first)
        stream.map(lambda pair: pair[0]).predict(second)
        source_of(stream).start()
        await until(lambda: ends_of(first) and ends_of(second))
        assert ends_of(first) == ends_of(second)
        if isinstance(source := source_of(stream), Source):
            await source.close()


@one()
async def test_a_failed_source_of_streamz_is_an_event_before_drain_raises(c, s, a):
    trainer = await ta.Trainer(c, **linear())
    source = Stream.from_iterable([1], loop=IOLoop.current())
    source.map(refuses).train(trainer)
    source.start()
    await until(lambda: ends_of(trainer))
    with pytest.raises(StreamError, match="no such column"):
        await trainer.drain()
    await trainer.close()
    assert "no such column" in ends_of(trainer)[0]


@one()
async def test_a_failed_source_that_was_connected_later_is_an_event_too(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        entry = Stream(asynchronous=True)
        entry.map(batch).train(trainer)
        async with Stream.from_batches(raising, asynchronous=True) as source:
            source.connect(entry)
            await until(lambda: ends_of(trainer))
        assert "the disk is gone" in ends_of(trainer)[0]


@one()
async def test_each_failure_is_an_event(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        source = Own("own", asynchronous=True)
        source.map(batch).train(trainer)
        for count in (1, 2):
            source.start()
            with pytest.raises(SourceError):
                await source.ended()
            await until(lambda count=count: len(ends_of(trainer)) == count)
        await source.close()


@one()
async def test_a_source_that_ends_or_is_stopped_has_not_failed(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        async with Stream.from_batches([1, 2], asynchronous=True) as source:
            source.map(batch).train(trainer)
            await source.ended()
        await trainer.drain()
        assert not ends_of(trainer)


def test_trainers_are_found_once_and_past_circles():
    first, second = Stream(), Stream()
    first.connect(second)
    second.connect(first)
    first.hearer = second.hearer = "one"
    second.sink(print).hearer = "two"
    assert trainers_after(first) == ["one", "two"]
