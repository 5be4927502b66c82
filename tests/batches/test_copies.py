"""What is given is taken in as it is at that moment, and is left as it was."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest
import torch
from distributed import Client, LocalCluster
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, Linear, expected_weight, linear, linear_data
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask.batches.batch import Block, MiniBatch, as_pair
from tensair_dask.batches.copies import as_values
from tensair_dask.replica.learner import to_tensors

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
DATA = linear_data(60)
ARRAY = np.arange(6.0).reshape(2, 3)


class Named(collections.namedtuple("Named", "left right")):
    pass


@dataclasses.dataclass(frozen=True)
class Record:
    values: np.ndarray
    label: int


@pytest.mark.parametrize(
    "item",
    [
        ARRAY.copy(),
        (ARRAY.copy(), [ARRAY.copy(), 3], {"a": ARRAY.copy()}),
        Named(ARRAY.copy(), "text"),
        collections.OrderedDict(a=ARRAY.copy()),
        torch.from_numpy(ARRAY.copy()),
        np.ma.masked_array(ARRAY.copy(), mask=ARRAY == 2),
        pd.DataFrame(ARRAY.copy()),
        Record(ARRAY.copy(), 3),
        bytearray(b"some"),
        memoryview(bytearray(b"some")),
    ],
    ids=lambda item: type(item).__name__,
)
def test_a_value_is_of_the_same_kind_and_shares_no_memory(item):
    taken = as_values(item)
    assert type(taken) is type(item)
    before = repr(plain(taken))
    assert before == repr(plain(item))
    overwrite(item)
    assert repr(plain(taken)) == before
    assert repr(plain(item)) != before


def plain(item):
    """Values only, so that two can be compared by their text."""
    if isinstance(item, Record):
        return plain(item.values), item.label
    if isinstance(item, (tuple, list)):
        return [plain(each) for each in item]
    if isinstance(item, dict):
        return {key: plain(value) for key, value in item.items()}
    return bytes(item) if isinstance(item, (bytearray, memoryview)) else item


def overwrite(item):
    if isinstance(item, Record):
        item.values[:] = 9
    elif isinstance(item, (tuple, list)):
        for each in item:
            overwrite(each)
    elif isinstance(item, dict):
        for each in item.values():
            overwrite(each)
    elif isinstance(item, (bytearray, memoryview)):
        item[:] = b"else"
    elif not isinstance(item, (str, int)):
        item[:] = 9


def as_arrays(x, y):
    return x, y


def as_tensors(x, y):
    return torch.from_numpy(x), torch.from_numpy(y)


def as_dict(x, y):
    return {"x": x}, y


def as_tuple(x, y):
    return (x,), (y,)


def as_frames(x, y):
    return pd.DataFrame(x, copy=False), pd.DataFrame(y, copy=False)


def tuple_loss(prediction, y):
    y = y[0] if isinstance(y, tuple) else y
    return (prediction * y).sum()


@pytest.mark.parametrize(
    "form",
    [as_arrays, as_tensors, as_dict, as_tuple, as_frames],
    ids=lambda f: f.__name__,
)
def test_a_source_may_use_its_arrays_again(form):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **linear(loss=tuple_loss)) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer)
            buffers = [np.zeros_like(each) for each in DATA[0]]
            item = form(*buffers)
            for pair in DATA:
                for buffer, values in zip(buffers, pair, strict=True):
                    buffer[:] = values
                await source.emit(item)
            await trainer.drain()
            await assert_learned(trainer)

    run()


async def assert_learned(trainer, data=DATA):
    state = await trainer.state_dict()
    assert torch.allclose(state["weight"].double(), expected_weight(data), atol=1e-4)


@pytest.mark.parametrize(
    "build",
    [
        lambda source: source.partition(4),
        lambda source: source.partition(4, key=lambda record: 0),
        lambda source: source.buffer(64).partition(4),
        lambda source: source.timed_window(0.01),
        lambda source: source.filter(lambda record: True).delay(0).partition(4),
    ],
    ids=["partition", "by key", "buffer", "timed window", "delay"],
)
def test_nodes_before_a_trainer_hold_values(build):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **linear()) as trainer:
            source = Stream(asynchronous=True)
            reports = build(source).train(trainer).sink_to_list()
            x, y = np.zeros(FEATURES, "float32"), np.zeros(CLASSES, "float32")
            for pair in DATA:
                for row, target in zip(*pair, strict=True):
                    x[:], y[:] = row, target
                    await source.emit((x, y))
            records = sum(len(y) for _, y in DATA)
            while sum(report.samples for report in reports) < records:
                await asyncio.sleep(0.01)
            await trainer.drain()
            await assert_learned(trainer)

    run()


@two()
async def test_a_function_between_may_use_its_array_again(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        source = Stream(asynchronous=True)
        x = np.zeros(FEATURES, "float32")

        def parse(record):
            x[:] = record[0]
            return x, record[1]

        source.map(parse).partition(4).train(trainer)
        for pair in DATA:
            for record in zip(*pair, strict=True):
                await source.emit(record)
        await trainer.drain()
        await assert_learned(trainer)


@two()
async def test_a_collate_may_use_its_arrays_again(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        source = Stream(asynchronous=True)
        x, y = (np.zeros_like(each) for each in DATA[0])

        def collate(item):
            x[:], y[:] = item["x"], item["y"]
            return x, y

        other = Stream(asynchronous=True)
        source.train(trainer, collate=collate)
        other.predict_then_train(trainer, delay=20, collate=collate)
        for given_x, given_y in DATA:
            await source.emit({"x": given_x, "y": given_y})
            await other.emit({"x": given_x, "y": given_y})
        await next(
            each for each in trainer.session.intake.nodes if hasattr(each, "flush")
        ).flush()
        await trainer.drain()
        await assert_learned(trainer, DATA * 2)


@pytest.mark.parametrize("policy", ["drop-oldest", "sample"])
def test_what_waits_in_an_overload_is_a_value(policy):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **linear(max_in_flight=1)) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer, overload=policy, waiting=len(DATA))
            x, y = (np.zeros_like(each) for each in DATA[0])
            for x[:], y[:] in DATA:
                await source.emit((x, y))
            await trainer.drain()
            await assert_learned(trainer)

    run()


@two()
async def test_calls_take_what_they_are_given_when_they_are_called(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        x, y = (np.zeros_like(each) for each in DATA[0])
        asked, taught = [], []
        for x[:], y[:] in DATA:
            asked.append(trainer.predict(x))
            taught.append(trainer.train(x, y))
        before = await asyncio.gather(*asked)
        await asyncio.gather(*taught)
        sums = [given.sum(1, keepdims=True) for given, _ in DATA]  # weights are 1
        for answer, right in zip(before, sums, strict=True):
            np.testing.assert_allclose(answer, np.repeat(right, CLASSES, 1), rtol=1e-4)
        await trainer.drain()
        await assert_learned(trainer)


@two()
async def test_a_prediction_is_of_what_was_emitted(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        source = Stream(asynchronous=True)
        answers = source.predict(trainer).sink_to_list()
        x = np.zeros_like(DATA[0][0])
        emits = []
        for x[:], _ in DATA[:10]:
            emits.append(source.emit(x))
        await asyncio.gather(*emits)
        for answer, (given, _) in zip(answers, DATA, strict=False):
            np.testing.assert_allclose(answer[:, 0], given.sum(1), rtol=1e-4, atol=1e-5)


@two()
async def test_a_dead_letter_holds_what_was_refused(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer)
        good, bad = np.zeros((4, FEATURES), "float32"), np.zeros((4, 2), "float32")
        y = torch.zeros(4, CLASSES)
        for number in range(5):
            good[:] = bad[:] = number
            y[:] = number
            await source.emit((good, y))
            await source.emit((bad, y))
        await trainer.drain()
        letters = sorted(trainer.dead_letters, key=lambda letter: letter.index)
        assert [letter.item[0][0, 0] for letter in letters] == list(range(5))
        assert [float(letter.item[1][0, 0]) for letter in letters] == list(range(5))
        assert {type(letter.item[1]) for letter in letters} == {torch.Tensor}


class InPlace(Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.mul_(2))


def test_a_model_in_this_process_does_not_change_what_it_is_given():
    with (
        LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster,
        Client(cluster) as client,
        ta.Trainer(client, **linear(model=InPlace)) as trainer,
    ):
        x, y = np.ones((4, FEATURES), "float32"), np.ones((4, CLASSES), "float32")
        tensor = torch.ones(4, FEATURES)
        trainer.train(x, y)
        trainer.train({"x": tensor}, y)
        trainer.predict(x)
        trainer.predict_one(x[0])
        trainer.evaluate([(x, y), (tensor, y)])
        assert (x == 1).all()
        assert (tensor == 1).all()


def test_a_mini_batch_that_is_learned_again_is_what_was_given():
    batch = MiniBatch.of(np.ones((2, 3)), torch.ones(2))
    for _ in range(2):  # in this process: the block is not serialized
        block = Block.join("run", [batch])
        ((x, y, _),) = to_tensors(block.groups[0], torch.device("cpu"))
        assert bool((x == 1).all())
        assert bool((y == 1).all())
        x.zero_()
        y.zero_()


MASKED = np.ma.masked_array(np.ones((2, 3)), mask=[[0, 0, 0], [0, 0, 1]])


@pytest.mark.parametrize(
    "item",
    [
        (MASKED, np.ones(2)),
        (np.ones((2, 3)), MASKED),
        ({"a": MASKED}, np.ones(2)),
        ((MASKED[0], 1), (MASKED[1], 2)),
        ((np.ones(3), 1), (np.ones(3), np.ma.masked)),
        (((MASKED[0], 1.0), 1), ((MASKED[1], 1.0), 2)),
    ],
)
def test_masked_values_are_refused(item):
    with pytest.raises(errors.BatchError, match=r"1 masked values of \d.*filled"):
        MiniBatch.of(*as_pair(item))


def test_a_masked_array_with_nothing_masked_is_an_array():
    whole = np.ma.masked_array(np.ones((2, 3), "float32"), mask=False)
    batch = MiniBatch.of(whole, np.ones(2))
    assert batch.describe() == "x (2, 3) float32, y (2,) float64"
    assert type(batch.leaves[0]) is np.ndarray


@two()
async def test_one_record_with_masked_values_is_not_predicted(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(errors.BatchError, match="masked"):
            await trainer.predict_one(MASKED[1])
