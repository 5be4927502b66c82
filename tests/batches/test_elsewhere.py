"""Items that are computed later or lie on the cluster raise an error with advice."""

from __future__ import annotations

import concurrent.futures
import functools

import dask
import dask.array
import dask.bag
import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.batches.batch import READY, RECORDS, MiniBatch
from tensair_dask.errors import BatchError
from tensair_dask.streams.record_form import Inputs, Pairs

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X, Y = np.zeros((4, FEATURES), "float32"), np.zeros(4, int)


async def coroutine():
    return X


def closed(awaitable):
    awaitable.close()  # or Python warns that nobody has awaited it
    return awaitable


# What stands for values, and what is said of it.
LATER = {
    "Delayed": (lambda: dask.delayed(np.zeros)(4), r"Delayed of Dask.*\.compute\(\)"),
    "part of a Delayed": (lambda: dask.delayed((X, Y))[0], "Delayed of Dask"),
    "Array": (lambda: dask.array.zeros((4, 6)), r"an Array of Dask.*map_async"),
    "Bag": (lambda: dask.bag.from_sequence([1, 2]), "a Bag of Dask"),
    "coroutine": (lambda: closed(coroutine()), r"\.map_async\(function\)"),
    "generator": (lambda: (n for n in range(4)), r"\.flatten\(\)"),
    "Future of Python": (concurrent.futures.Future, r"\.result\(\)"),
}
# Where it is given.
PLACES = {
    "item": (lambda later: later, Pairs),
    "x": (lambda later: (later, Y), Pairs),
    "y": (lambda later: (X, later), Pairs),
    "both": (lambda later: [later, later], Pairs),
    "x of a dict": (lambda later: ({"a": later}, Y), Pairs),
    "ready item": (lambda later: later, lambda: Pairs(READY)),
    "records": (lambda later: (later, later), lambda: Pairs(RECORDS)),
    "three records": (lambda later: (later, later, later), lambda: Pairs(RECORDS)),
    "x of records": (lambda later: ((later, 1), (later, 2)), lambda: Pairs(RECORDS)),
    "one of the records": (lambda later: ((X, 1), (later, 2)), lambda: Pairs(RECORDS)),
    "y of records": (lambda later: ((X, later), (X, later)), lambda: Pairs(RECORDS)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("kind", LATER)
def test_what_is_not_here_is_named_with_what_to_do(kind, place):
    make, text = LATER[kind]
    item, read = PLACES[place]
    with pytest.raises(BatchError, match=text):
        MiniBatch.of(*read()(item(make())))


@pytest.mark.parametrize("form", [READY, RECORDS])
@pytest.mark.parametrize("kind", LATER)
def test_nor_is_it_predicted(kind, form):
    make, text = LATER[kind]
    item = make() if form == READY else (make(), make())
    with pytest.raises(BatchError, match=text):
        MiniBatch.of(Inputs(form)(item))


@one()
async def test_futures_of_the_cluster_are_refused_with_what_works(c, s, a):
    pairs = class_data(3)
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer)
        (future,) = await c.scatter([pairs[0]])
        for item in (future, (future, Y), (X, future)):
            await source.emit(item)
        await trainer.drain()
        assert trainer.dead_letters.total == 3
        for letter in trainer.dead_letters:
            assert ".map_async(client.gather, asynchronous=True)" in str(letter.error)


# What the texts say to do.
WAYS = {
    "gather": lambda source, c: source.scatter().gather(),
    "futures": lambda source, c: source.map(
        functools.partial(c.submit, lambda pair: pair, pure=False)
    ).map_async(c.gather, asynchronous=True),
    "delayed": lambda source, c: (
        source.map(dask.delayed)
        .map(c.compute)
        .map_async(c.gather, asynchronous=True)
        .map(tuple)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_the_texts_say_works(way):
    @one()
    async def run(c, s, a):
        pairs = class_data(3)
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            reports = WAYS[way](source, c).train(trainer).sink_to_list()
            for pair in pairs:
                await source.emit(pair)
            await trainer.drain()
            assert [report.error for report in reports] == [None] * len(pairs)

    run()
