"""How items are read is decided once a stream, and never guessed."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes
from streamz import Stream
from streamz.core import RefCounter
from torch import nn
from tornado.ioloop import IOLoop

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.batches.batch import READY, RECORDS, MiniBatch, as_pair
from tensair_dask.errors import BatchError
from tensair_dask.streams.holding import are_groups
from tensair_dask.streams.record_form import Inputs, Pairs

two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
X = np.arange(12, dtype="float32").reshape(4, 3)
Y = np.arange(4)
ROW = X[0]

# Two records of numbers, of arrays, of tuples; or x and y of a mini-batch of two rows.
BOTH = [
    ([4, 40], [5, 50]),
    [[4, 40], [5, 50]],
    ((ROW, ROW), (ROW, ROW)),
    ([ROW, ROW], (ROW, ROW)),
    ((X, X), (X, X)),
]


@pytest.mark.parametrize("item", BOTH)
def test_what_fits_both_readings_is_refused_and_both_are_named(item):
    for read in (as_pair, Pairs()):
        with pytest.raises(BatchError, match=r"ready arrays .* 2 records.*collate="):
            read(item)


@pytest.mark.parametrize("item", BOTH)
def test_what_fits_both_is_read_as_the_others_are(item):
    x, y = Pairs(READY)(item)
    assert x is item[0]
    assert y is item[1]
    x, y = Pairs(RECORDS)(item)
    (first, _), (_, last) = item
    np.testing.assert_array_equal(np.asarray(x)[0], first)
    np.testing.assert_array_equal(np.asarray(y)[1], last)


@pytest.mark.parametrize(
    ("first", "form"),
    [
        ((X, Y), READY),
        (((X, X), Y), READY),
        (((X, X), (Y, Y)), READY),  # no two records: x and y differ in shape
        (([1, 2, 3], [0, 1, 0]), READY),
        (((1, 2), (3, 4), (5, 6)), RECORDS),
        (((ROW, 1), (ROW, 2)), RECORDS),
    ],
)
def test_the_first_item_that_fits_one_reading_decides(first, form):
    pairs = Pairs()
    MiniBatch.of(*pairs(first))
    assert pairs.form == form
    other = ((ROW, 1), (ROW, 2), (ROW, 3)) if form == READY else (X, Y)
    with pytest.raises(BatchError, match=f"items of this stream are {form}"):
        pairs(other)


@pytest.mark.parametrize("item", [(X[:0], Y), (X, Y[:2]), "text", (X, "text")])
def test_what_is_no_mini_batch_decides_nothing(item):
    pairs = Pairs()
    with pytest.raises(BatchError):
        pairs(item)
    assert pairs.form is None
    pairs(((ROW, 1), (ROW, 2), (ROW, 3)))
    assert pairs.form == RECORDS


@pytest.mark.parametrize(
    ("build", "groups"),
    [
        (lambda source: source, None),
        (lambda source: source.map(tuple), None),
        (lambda source: source.partition(2), True),
        (lambda source: source.sliding_window(2), True),
        (lambda source: source.partition(2).map(tuple), None),
        (lambda source: source.timed_window(10).filter(len).buffer(2), True),
        (lambda source: source.zip(source), False),
        (lambda source: source.partition(2).union(source.partition(3)), True),
        (lambda source: source.partition(2).union(source), None),
    ],
)
@two()
async def test_the_node_before_decides_the_form_where_it_can(c, s, a, b, build, groups):
    assert are_groups(build(Stream(asynchronous=True))) is groups


class OneInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)

    def forward(self, x):
        return self.layer(x.float().reshape(-1, 1))[:, 0]


def difference(prediction, y):
    return (prediction - y.float()).square().mean()


NUMBERS = classes(model=OneInput, loss=difference)


@pytest.mark.parametrize("node", ["train", "predict_then_train"])
@pytest.mark.parametrize("count", [2, 6])
def test_two_records_that_are_left_over_are_two_records(node, count):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **NUMBERS) as trainer:
            source = Stream(asynchronous=True)
            grouped = source.partition(4, timeout=0.01)
            groups = grouped.sink_to_list()
            getattr(grouped, node)(trainer)
            for number in range(count):
                await source.emit([number, 10 * number])
            await trainer.drain()
            assert len(groups[-1]) == 2
            assert sum(each.samples for each in trainer.replicas) == count
            before = await trainer.predict(np.arange(count))
            loss = await trainer.evaluate([(np.arange(count), before)])
            assert loss["loss"] == pytest.approx(0, abs=1e-6)
        assert trainer.dead_letters.total == 0

    run()


@two()
async def test_x_and_y_of_two_streams_are_ready_arrays(c, s, a, b):
    async with ta.Trainer(c, **NUMBERS) as trainer:
        xs, ys = Stream(asynchronous=True), Stream(asynchronous=True)
        reports = xs.zip(ys).train(trainer).sink_to_list()
        await asyncio.gather(xs.emit([1, 2]), ys.emit([10, 20]))
        await trainer.drain()
        (report,) = reports
        loss = ((await trainer.evaluate([([1, 2], [10, 20])]))["loss"], report.loss)
        assert report.error is None
        assert loss[0] != loss[1]  # it has learned these


@two()
async def test_an_ambiguous_item_is_a_dead_letter_until_the_stream_decides(c, s, a, b):
    async with ta.Trainer(c, **NUMBERS) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        for item in [([1, 2], [3, 4]), ([1, 2, 3], [4, 5, 6]), ([1, 2], [3, 4])]:
            await source.emit(item)
        await trainer.drain()
        by_index = {report.index: report.error for report in reports}
        assert "two readings" in str(by_index[0])
        assert by_index[1] is by_index[2] is None


# ---- inputs --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "item", [(ROW, ROW), (X, X), ([1, 2], [3, 4]), tuple(X)], ids=str
)
def test_inputs_that_fit_both_readings_are_refused(item):
    with pytest.raises(BatchError, match=r"records, and ready arrays.*collate="):
        Inputs()(item)
    assert Inputs(RECORDS)(item).shape[0] == len(item)
    assert Inputs(READY)(item) is item


@pytest.mark.parametrize(
    ("item", "form"),
    [((X, Y), READY), ((1.0, 2.0), RECORDS), (({"a": 1}, {"a": 2}), RECORDS)],
)
def test_inputs_that_fit_one_reading_are_read_so(item, form):
    inputs = Inputs()
    inputs(item)
    assert inputs.form == form


@two()
async def test_images_from_a_partition_are_predicted_one_by_one(c, s, a, b):
    async with ta.Trainer(c, **classes(model=Flat)) as trainer:
        source = Stream(asynchronous=True)
        answers = source.partition(2).predict(trainer).sink_to_list()
        for image in np.zeros((4, 2, FEATURES // 2), "float32"):
            await source.emit(image)
        assert [answer.shape for answer in answers] == [(2, 3)] * 2


class Flat(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)

    def forward(self, x):
        return self.layer(x.flatten(1))


# ---- nothing -------------------------------------------------------------------------

NOTHING = [
    [],
    (),
    {},
    np.zeros((0, FEATURES), "float32"),
    (np.zeros((0, FEATURES), "float32"), np.zeros(0, int)),
    ({"x": np.zeros((0, FEATURES))}, [np.zeros(0)]),
]


@pytest.mark.parametrize("node", ["train", "predict", "predict_then_train"])
def test_an_item_without_a_row_is_passed_over(node):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            results = getattr(source, node)(trainer).sink_to_list()
            # An array without rows is predicted; its answer has none.
            items = NOTHING[:3] if node == "predict" else NOTHING
            refs = [RefCounter(loop=IOLoop.current()) for _ in items]
            for item, ref in zip(items, refs, strict=True):
                await source.emit(item, metadata=[{"ref": ref}])
            await trainer.drain()
            assert [ref.count for ref in refs] == [0] * len(items)
            assert results == []
            assert (trainer.emitted, trainer.dead_letters.total) == (0, 0)
            assert len(trainer.history) == 0

    run()


@pytest.mark.parametrize("window", ["timed_window", "timed_window_unique"])
def test_windows_in_which_nothing_came_are_passed_over(window):
    @two()
    async def run(c, s, a, b):
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)
            keys = {"key": lambda record: record[0].tobytes()}
            node = getattr(source, window)(0.01, **(keys if "unique" in window else {}))
            windows = node.sink_to_list()
            reports = node.train(trainer).sink_to_list()
            ((x, y),) = class_data(1, samples=5)
            for record in zip(x, y, strict=True):
                await source.emit(record)
            while len(windows) < 20:
                await asyncio.sleep(0.005)
            await trainer.drain()
            assert sum(report.samples for report in reports) == 5
            assert all(report.error is None for report in reports)
            assert trainer.dead_letters.total == 0

    run()


@two()
async def test_one_side_without_rows_is_refused(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.train(trainer).sink_to_list()
        await source.emit((np.zeros((0, FEATURES), "float32"), Y))
        await trainer.drain()
        assert isinstance(reports[0].error, BatchError)
