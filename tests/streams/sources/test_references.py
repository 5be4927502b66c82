"""Which nodes of streamz keep references: what the docstring of `Source` says."""

from __future__ import annotations

import asyncio

import pytest
from distributed.utils_test import gen_test
from streamz import Stream

import tensair_dask.sources  # noqa: F401  gives Stream its sources

COUNT = 12


class Gate(Stream):
    """Holds the references of all that comes until it is opened."""

    def __init__(self, upstream: Stream) -> None:
        super().__init__(upstream)
        self.held: list = []

    def update(self, x, who=None, metadata=None):
        self._retain_refs(metadata)
        self.held.append(metadata)

    def open(self) -> None:
        while self.held:
            self._release_refs(self.held.pop())


async def run(make, patience=0.12):
    """Items that were released while the gate was shut, and in the end."""
    source = Stream.from_batches(range(COUNT), asynchronous=True)
    node = make(source)
    gate = Gate(node)
    async with source:
        await source.ended()

        async def settled() -> int:
            """Number of released items once nothing has moved for a while."""
            quiet, before = 0.0, -1
            while quiet < patience:
                now = COUNT - source.tracker.outstanding()
                quiet = quiet + 0.02 if now == before else 0.0
                before = now
                await asyncio.sleep(0.02)
            return before

        shut = await settled()
        if hasattr(node, "flush"):
            node.flush()
        gate.open()
        await settled()
        gate.open()
        return shut, COUNT - source.tracker.outstanding()


async def later(item):
    await asyncio.sleep(0)
    return item


async def fail(item):
    raise ValueError(item)


KEEP = {
    "map": lambda s: s.map(str),
    "starmap": lambda s: s.map(lambda x: (x,)).starmap(str),
    "pluck": lambda s: s.map(lambda x: (x,)).pluck(0),
    "unique": lambda s: s.unique(),
    "accumulate": lambda s: s.accumulate(max, start=0),
    "union": lambda s: s.union(s.map(str)),
    "zip": lambda s: s.zip(s.map(str)),
    "partition": lambda s: s.partition(3),
    "partition, timeout": lambda s: s.partition(5, timeout=0.05),
    "timed_window": lambda s: s.timed_window(0.05),
    "buffer": lambda s: s.buffer(3),
    "delay": lambda s: s.delay(0.001),
    "collect": lambda s: s.collect(),
    "rate_limit": lambda s: s.rate_limit(0.001),
    "partition, rate_limit": lambda s: s.partition(3).rate_limit(0.01),
    "buffer, rate_limit": lambda s: s.buffer(3).rate_limit(0.01),
    "map_async": lambda s: s.map_async(later),
    "partition, map_async": lambda s: s.partition(3).map_async(later),
}


@pytest.mark.parametrize("node", KEEP)
@gen_test()
async def test_nodes_that_keep_references_until_all_downstream_let_go(node):
    assert await run(KEEP[node]) == (0, COUNT)


@gen_test()
async def test_what_a_filter_drops_is_done():
    assert await run(lambda s: s.filter(lambda x: x % 3 == 0)) == (8, COUNT)


TOO_EARLY = {
    "timed_window, rate_limit": lambda s: s.timed_window(0.02).rate_limit(0.1),
    "timed_window, map_async": lambda s: s.timed_window(0.02).map_async(later),
    "map_async that raises": lambda s: s.map_async(fail),
}


@pytest.mark.parametrize("node", TOO_EARLY)
@gen_test()
async def test_nodes_that_let_go_too_early(node):
    """If this fails, streamz has become better: say so where sources are described."""
    shut, _ = await run(TOO_EARLY[node])
    assert shut == COUNT


@gen_test()
async def test_flatten_gives_the_reference_to_every_element():
    source = Stream.from_batches([[1, 2, 3]], asynchronous=True)
    gate = Gate(source.flatten())
    async with source:
        await source.ended()
    assert [len(metadata) for metadata in gate.held] == [1, 1, 1]
    for metadata in gate.held:
        assert source.tracker.outstanding() == 1
        gate._release_refs(metadata)
    assert source.tracker.outstanding() == 0


HOLD = {
    "sliding_window": (lambda s: s.sliding_window(3), 2),
    "latest": (lambda s: s.latest(), 1),
    "combine_latest": (lambda s: s.combine_latest(s.map(str)), 1),
    "zip_latest": (lambda s: s.zip_latest(s.map(str)), 1),
    "partition_unique": (lambda s: s.partition_unique(3), COUNT),
    "timed_window_unique": (
        lambda s: s.timed_window_unique(0.05, key=lambda x: x // 2),
        COUNT // 2,
    ),
}


@pytest.mark.parametrize("node", HOLD)
@gen_test()
async def test_nodes_that_hold_references_for_ever(node):
    make, held = HOLD[node]
    _, released = await run(make)
    assert released == COUNT - held
