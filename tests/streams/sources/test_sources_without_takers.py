"""A source emits nothing before somebody takes its items; it fails otherwise."""

from __future__ import annotations

import asyncio
import functools

import dask
import pytest
from distributed.utils_test import gen_cluster, gen_test
from helpers import class_data, classes
from streamz import Stream
from trainers import until

import tensair_dask as ta
import tensair_dask.sources
from tensair_dask.errors import SourceError
from tensair_dask.streams.downstream import Takers, takers_of


def soon(test):
    """Wait 10 ms for a node; set within `gen_test`, which sets the defaults anew."""

    @functools.wraps(test)
    async def run(*args, **kwargs):
        with dask.config.set({"tensair.timeouts.source": "10ms"}):
            await test(*args, **kwargs)

    return run


class Mine(Stream):
    """A node of which nobody knows what it does with an item."""

    def update(self, x, who=None, metadata=None):
        return []


def sources(tmp_path):
    path = tmp_path / "lines"
    path.write_text("0\n1\n2\n")
    yield Stream.from_batches(["0", "1", "2"], start=True, asynchronous=True)
    yield Stream.from_batches(iter(["0", "1", "2"]), start=True, asynchronous=True)
    yield Stream.from_lines(str(path), chunk=1, start=True, asynchronous=True)


@pytest.mark.parametrize("which", range(3))
@gen_test()
async def test_a_source_that_is_started_first_waits_for_a_node(tmp_path, which):
    source = list(sources(tmp_path))[which]
    for _ in range(10):
        await asyncio.sleep(0)
    got = source.map(lambda item: item).sink_to_list()
    await source.ended()
    assert len(got) == 3


@pytest.mark.parametrize("which", range(3))
@gen_test()
@soon
async def test_a_source_with_nothing_behind_it_fails_and_loses_no_item(tmp_path, which):
    source = list(sources(tmp_path))[which]
    with pytest.raises(SourceError, match=r"go nowhere.*call source.start\(\) then"):
        await source.ended()
    assert source.tracker.outstanding() == 0
    got = source.sink_to_list()
    source.start()
    await source.ended()
    assert len(got) == 3


@gen_test()
@soon
async def test_nodes_that_only_pass_on_take_nothing():
    source = Stream.from_batches([1, 2], asynchronous=True)
    node = source.partition(2).flatten()
    source.start()
    with pytest.raises(SourceError, match="nothing was put behind it"):
        await source.ended()
    assert list(node.upstreams)


@gen_test()
@soon
async def test_a_function_at_the_end_is_called_and_reported(caplog):
    seen = []
    source = Stream.from_batches([1, 2], asynchronous=True)
    node = source.map(seen.append)
    source.start()
    await source.ended()
    assert seen == [1, 2]
    assert caplog.text.count("ends at a function") == 1
    assert list(node.upstreams)


@gen_test()
@soon
async def test_a_node_that_is_taken_out_is_waited_for():
    source = Stream.from_batches(range(4), asynchronous=True)
    got = []

    def take(item):
        got.append(item)
        if item == 1:
            node.destroy()

    node = source.sink(take)
    source.start()
    with pytest.raises(SourceError, match="nothing is behind it any more"):
        await source.ended()
    rest = source.sink_to_list()
    source.start()
    await source.ended()
    assert (got, rest) == ([0, 1], [2, 3])


@gen_test()
@soon
async def test_a_source_that_is_stopped_while_it_waits_ends():
    with dask.config.set({"tensair.timeouts.source": "1h"}):
        source = Stream.from_batches([1, 2], start=True, asynchronous=True)
        source.loop.add_callback(source.stop)
        await source.ended()
    got = source.sink_to_list()
    source.start()
    await source.ended()
    assert got == [1, 2]


@gen_test()
async def test_the_end_of_a_source_that_was_not_started_is_an_error_at_once():
    source = Stream.from_batches([1], asynchronous=True)
    with pytest.raises(SourceError, match=r"was not started.*call start\(\)"):
        await source.ended()


@pytest.mark.parametrize("timeout", [None, 5])
def test_joining_a_source_that_was_not_started_is_an_error_at_once(timeout):
    source = Stream.from_batches([1])
    with pytest.raises(SourceError, match=r"was not started.*call start\(\)"):
        source.join(timeout)


def test_the_takers_of_a_node_are_found():
    source = Stream()
    assert takers_of(source) is Takers.NOBODY
    window = source.partition(2)
    assert takers_of(source) is Takers.NOBODY
    function = source.map(str)
    assert takers_of(source) is Takers.FUNCTIONS
    kept = Mine(window)
    assert takers_of(source) is Takers.SOMEBODY
    kept.destroy()
    function.sink(print)
    assert takers_of(source) is Takers.SOMEBODY


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_trainer_that_comes_later_learns_all_items(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream.from_batches(class_data(6), start=True, asynchronous=True)
        await asyncio.sleep(0)
        reports = source.train(trainer).sink_to_list()
        await source.ended()
        await trainer.drain()
    assert len(reports) == 6


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_a_trainer_that_comes_too_late_is_reported(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        with dask.config.set({"tensair.timeouts.source": "10ms"}):
            source = Stream.from_batches(class_data(6), start=True, asynchronous=True)
            with pytest.raises(SourceError):
                await source.ended()
        reports = source.train(trainer).sink_to_list()
        await until(lambda: "go nowhere" in str(trainer.events["text"].tolist()))
        source.start()
        await source.ended()
        await trainer.drain()
    assert len(reports) == 6
