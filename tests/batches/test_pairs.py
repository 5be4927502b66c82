"""Pairs, inputs and named tuples: y is no input, and fields count by their names."""

from __future__ import annotations

import functools
from collections import namedtuple
from typing import Any, NamedTuple

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import CLASSES, FEATURES, class_data, classes
from streamz import Stream
from torch import nn

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.batches.batch import READY, RECORDS, collate, stack
from tensair_dask.batches.column_names import ColumnNames
from tensair_dask.errors import BatchError, ShapeError
from tensair_dask.streams.record_form import Pairs

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)


class Masked(nn.Module):
    """Takes a mask, and does without one as well."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Any, mask: Any = None) -> Any:
        scores = self.linear(x)
        return scores if mask is None else scores * 0.0


masked = functools.partial(classes, model=Masked)
# How pairs (x, y) may come, and how inputs are said to be some.
NODES = {
    "ready": (lambda source: source, lambda item: item),
    "records": (lambda source: source.flatten().partition(16), stack),
    "a window": (
        lambda source: source.flatten().sliding_window(16, return_partial=False),
        stack,
    ),
}


def reported(trainer):
    texts = trainer.events["text"]
    return [text for text in texts if "argument" in text]


@pytest.mark.parametrize("name", NODES)
def test_y_is_not_taken_for_an_input_of_the_model(name):
    @one()
    async def run(c, s, a):
        build, as_inputs = NODES[name]
        x, y = class_data(1)[0]
        item = (x, y[:, None]) if name == "ready" else list(zip(x, y, strict=True))
        async with ta.Trainer(c, **masked()) as trainer:
            await trainer.train(x, y)
            source = Stream(asynchronous=True)
            build(source).predict(trainer, on_error="dead-letter")
            await source.emit(item)
            (letter,) = trainer.dead_letters
            assert "whose x is one array" in str(letter.error)
            assert "put .pluck(0) before predict" in str(letter.error)
            other = Stream(asynchronous=True)
            says = other if name == "ready" else build(other)
            answers = says.predict(trainer, collate=as_inputs).sink_to_list()
            item = [(x, np.float32(1)) for x, _ in item] if name != "ready" else item
            await other.emit(item)
            assert len(answers) == 1

    run()


@one()
async def test_what_the_advice_says_is_predicted(c, s, a):
    async with ta.Trainer(c, **masked()) as trainer:
        source = Stream(asynchronous=True)
        source.train(trainer)
        ready = source.pluck(0).predict(trainer).sink_to_list()
        records = source.map(lambda pair: list(pair[0])).flatten().partition(16)
        batched = records.predict(trainer).sink_to_list()
        await source.emit(class_data(1)[0])
        assert [answers[0].shape for answers in (ready, batched)] == [(16, CLASSES)] * 2
        assert all(answers[0].any() for answers in (ready, batched))


@one()
async def test_a_model_of_several_inputs_is_asked_with_as_many(c, s, a):
    async with ta.Trainer(c, **masked()) as trainer:
        x, y = class_data(1)[0]
        ones = np.ones((len(x), 1), "float32")
        source = Stream(asynchronous=True)
        answers = source.predict(trainer).sink_to_list()
        await source.emit((x, ones))  # nothing was learned yet: it is said
        await trainer.drain()
        assert len(reported(trainer)) == 1
        await trainer.train((x, ones), y)
        await source.emit((x, ones))
        assert len(answers) == 2
        assert len(reported(trainer)) == 1


@pytest.mark.parametrize("call", ["predict", "predict_one"])
def test_predicting_a_pair_by_a_call_is_reported(call):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **masked()) as trainer:
            x, y = class_data(1)[0]
            await trainer.train(x, y)
            ask = getattr(trainer, call)
            x, mask = (x, y[:, None]) if call == "predict" else (x[0], 1.0)
            await ask(x)
            await ask({"x": x, "mask": mask})
            assert not reported(trainer)
            await ask((x, mask))
            (text,) = reported(trainer)
            assert "a dict by their names says so" in text

    run()


# ---- named tuples --------------------------------------------------------------------

XY = namedtuple("XY", "x y")
YX = namedtuple("YX", "y x")
Sample = namedtuple("Sample", "features label")
Turned = namedtuple("Turned", "label features")
Target = namedtuple("Target", "Target data")


class Row(NamedTuple):
    age: float
    income: float


class Other(NamedTuple):
    income: float
    age: float


class Third(NamedTuple):
    income: float
    height: float


X, Y = np.ones((4, 2), "float32"), np.zeros(4, int)


@pytest.mark.parametrize("item", [XY(X, Y), YX(y=Y, x=X), Sample(X, Y)])
@pytest.mark.parametrize("form", [None, READY])
def test_x_and_y_of_ready_arrays_are_read_by_name(item, form):
    x, y = Pairs(form)(item)
    assert x is X
    assert y is Y


@pytest.mark.parametrize("kind", [XY, YX])
@pytest.mark.parametrize("form", [None, RECORDS])
def test_x_and_y_of_records_are_read_by_name(kind, form):
    x, y = Pairs(form)(tuple(kind(x=[1.0, 2.0], y=3) for _ in range(4)))
    assert x.shape == (4, 2)
    assert y.tolist() == [3] * 4


@pytest.mark.parametrize("item", [Turned(Y, X), Target(Y, X)])
@pytest.mark.parametrize("form", [READY, RECORDS])
def test_a_target_in_the_place_of_x_is_refused(item, form):
    given = item if form == READY else (item, item)
    with pytest.raises(
        BatchError, match=rf"\.map\(lambda item: \(item\.{item._fields[1]}"
    ):
        Pairs(form)(given)


def test_fields_of_records_stand_in_the_order_of_the_first():
    x, _ = collate([(Row(1.0, 2.0), 0), (Other(income=2.0, age=1.0), 0)])
    assert type(x) is Row
    assert (x.age.tolist(), x.income.tolist()) == ([1, 1], [2, 2])
    with pytest.raises(ShapeError, match=r"lacks \['age'\] and \['height'\] was"):
        collate([(Row(1.0, 2.0), 0), (Third(2.0, 1.0), 0)])


def test_fields_of_mini_batches_stand_in_the_order_of_the_first():
    names = ColumnNames()
    age, income = X * 1, X * 2
    names.batch(Row(age, income), Y)
    later = names.batch(Other(income=income, age=age), Y)
    assert [leaf[0, 0] for leaf in later.leaves[:2]] == [1, 2]
    assert names.batch((age, income), Y).kind == later.kind  # by place
    with pytest.raises(ShapeError, match="Fields may stand in any order"):
        names.batch(Third(age, income), Y)


def test_fields_of_mini_batches_stand_in_the_order_of_the_checkpoint():
    names, later = ColumnNames(), ColumnNames()
    names.batch(Row(X * 1, X * 2), Y)
    later.load_state_dict(names.state_dict())
    batch = later.batch(Other(income=X * 2, age=X * 1), Y)
    assert [leaf[0, 0] for leaf in batch.leaves[:2]] == [1, 2]
    with pytest.raises(ShapeError, match="Fields may stand in any order"):
        later.batch(Third(X, X), Y)
