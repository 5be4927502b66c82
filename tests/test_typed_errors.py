"""Every error is typed, whatever is given and whatever a model returns."""

from __future__ import annotations

import functools

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import FEATURES, classes
from streamz import Stream
from torch import nn

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.errors import BatchError, TensairError

one = functools.partial(
    gen_cluster,
    client=True,
    nthreads=[("127.0.0.1", 1)],
    timeout=60,
    config={"tensair.timeouts.request": "20s"},
)
X = np.zeros((2, FEATURES), "float32")
Y = np.zeros(2, int)


class FailingArray:
    def __array__(self, dtype=None, copy=None):
        raise StopIteration


class FailingShape:
    @property
    def shape(self):
        raise KeyError("no shape")


class FailingDetach:
    @property
    def detach(self):
        raise ValueError("no tensor")


class StoppingDetach:
    def detach(self):
        raise StopIteration


class FailingTable(dict):
    def items(self):
        raise StopIteration

    values = items


class FailingTuple(tuple):
    def __iter__(self):
        raise StopIteration


class FailingText:
    def __repr__(self):
        raise KeyError("no text")

    __str__ = __repr__


def endless() -> list:
    value: list = []
    value.append(value)
    return value


GIVEN = {
    "array": FailingArray,
    "shape": FailingShape,
    "detach": FailingDetach,
    "stopping detach": StoppingDetach,
    "table": lambda: FailingTable(a=1),
    "tuple": lambda: FailingTuple((1, 2)),
    "list of these": lambda: [FailingText(), FailingText()],
    "key": lambda: {FailingText(): X},
    "part": lambda: (X, FailingArray()),
    "itself": endless,
    "number beyond": lambda: [10**400],
    "sparse": lambda: torch.eye(FEATURES).to_sparse(),
    "quantized": lambda: torch.quantize_per_tensor(
        torch.zeros(2, FEATURES), 0.1, 0, torch.quint8
    ),
    "nested": lambda: torch.nested.nested_tensor(
        [torch.zeros(2, 3), torch.zeros(3, 3)], layout=torch.jagged
    ),
    "meta": lambda: torch.empty(2, FEATURES, device="meta"),
    "objects": lambda: np.array([FailingText()], dtype=object),
    "function": lambda: len,
    "nothing": lambda: None,
}


@pytest.mark.parametrize("name", GIVEN)
def test_whatever_is_given_is_refused_with_a_typed_error(name):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            make = GIVEN[name]
            with pytest.raises(BatchError):
                await trainer.predict(make())
            with pytest.raises(BatchError):
                await trainer.predict_one(make())
            with pytest.raises(BatchError):
                await trainer.evaluate([(make(), Y)])
            assert isinstance((await trainer.train(make(), Y)).error, BatchError)
            source = Stream(asynchronous=True)
            source.predict(trainer, collate=lambda item: item).sink(lambda value: None)
            with pytest.raises(BatchError):
                await source.emit(make())
            assert (await trainer.predict(X)).shape == (2, 3)  # it goes on
            await trainer.drain()

    run()


class Answers(nn.Module):
    def __init__(self, answer):
        super().__init__()
        self.layer = nn.Linear(FEATURES, 3)
        self.answer = answer

    def forward(self, x):
        return self.answer(self.layer(x))


def stops(y):
    raise StopIteration


class Unpacks:
    def __reduce__(self):
        raise StopIteration


@pytest.mark.parametrize(
    "answer",
    [
        lambda y: y.to_sparse(),
        lambda y: torch.nested.nested_tensor(list(y)),
        lambda y: torch.quantize_per_tensor(y, 0.1, 0, torch.quint8),
        lambda y: {"logits": y.to("meta")},
        lambda y: torch.distributions.Categorical(logits=y),
        lambda y: (row for row in y),
        lambda y: Unpacks(),
        stops,
    ],
)
def test_whatever_a_model_answers_with_is_given_or_a_typed_error(answer):
    @one()
    async def run(c, s, a):
        model = functools.partial(Answers, answer)
        async with ta.Trainer(c, **classes(model=model)) as trainer:
            for x in (X, torch.from_numpy(X)):
                with pytest.raises(TensairError):
                    await trainer.predict(x)
            with pytest.raises(TensairError):
                await trainer.predict_one(X[0])
            with pytest.raises(BatchError):
                await trainer.evaluate([(X, Y)])

    run()


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        (lambda y: y.to(torch.float8_e5m2), "float32"),
        (lambda y: y.bfloat16(), "float32"),
        (lambda y: torch.complex(y, y).conj(), "complex64"),
    ],
)
def test_what_numpy_lacks_comes_as_what_it_has(answer, kind):
    @one()
    async def run(c, s, a):
        model = functools.partial(Answers, answer)
        async with ta.Trainer(c, **classes(model=model)) as trainer:
            assert (await trainer.predict(X)).dtype == kind
            assert (await trainer.predict_one(X[0])).shape == (3,)

    run()


class FailingIterator:
    def __iter__(self):
        raise StopIteration


@one()
async def test_what_cannot_be_iterated_is_no_set_of_mini_batches(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        for batches in (3, None, FailingIterator()):
            with pytest.raises(BatchError):
                await trainer.evaluate(batches)


@one()
async def test_what_a_collate_raises_is_typed_and_names_its_cause(c, s, a):
    def collate(item):
        raise item

    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.predict(trainer, collate=collate).sink(lambda value: None)
        for error in (StopIteration(), ValueError("no inputs")):
            with pytest.raises(BatchError, match=type(error).__name__) as caught:
                await source.emit(error)
        assert caught.value.__cause__ is error
