"""Texts of errors of user code are bounded, and asking for one never raises."""

from __future__ import annotations

import asyncio
import functools
import logging

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, class_data, classes, mlp, until
from streamz import Stream
from torch import nn

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask._wording import LONGEST, bounded, in_words
from tensair_dask.errors import BatchError, RaisedError, RecordError
from tensair_dask.observe.telemetry.events import Event

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)
HUGE = "begins " + "x" * 10_000_000 + " ends"


class Silent(Exception):
    def __str__(self):
        raise RuntimeError("no text")


class NoText(Exception):
    def __str__(self):
        return None


def test_a_short_text_is_left_as_it_is():
    assert bounded("as it is") == "as it is"
    assert bounded("x" * LONGEST) == "x" * LONGEST


def test_of_a_long_text_start_and_end_are_kept_and_the_rest_is_counted():
    text = bounded(HUGE)
    assert len(text) <= LONGEST
    assert text.startswith("begins")
    assert text.endswith("ends")
    left_out = int(text.partition("[... ")[2].partition(" char")[0].replace(",", ""))
    assert len(HUGE) - left_out == len(text) - len(
        f" [... {left_out:,} characters left out ...] "
    )
    assert bounded(text) == text


def test_an_error_without_a_readable_text_is_named_all_the_same():
    assert in_words(ValueError("why")) == "ValueError: why"
    assert (
        in_words(Silent()) == "Silent: (no text, since its __str__ raised RuntimeError)"
    )
    assert "NoText: (no text" in in_words(NoText())


def test_every_typed_error_and_event_is_bounded():
    assert len(str(BatchError(HUGE))) <= LONGEST
    assert len(Event("note", HUGE).text) <= LONGEST


def test_an_error_that_cannot_be_kept_has_a_stand_in_that_names_it():
    short = ValueError("why")
    assert RaisedError.unless_fit(short) is short
    for error in (
        ValueError(HUGE),
        Silent(),
        StopIteration(3),
        UnicodeDecodeError("ascii", HUGE.encode(), 0, 1, "why"),
    ):
        stand_in = RaisedError.unless_fit(error)
        assert type(stand_in) is RaisedError
        assert type(error).__name__ in str(stand_in)
        assert len(str(stand_in)) <= LONGEST


class Raises(nn.Module):
    error: Exception = ValueError(HUGE)

    def __init__(self):
        super().__init__()
        self.inner = mlp()

    def forward(self, x):
        raise self.error


class RaisesSilently(Raises):
    error = Silent()


class RaisesStopIteration(Raises):
    error = StopIteration()


@pytest.mark.parametrize("model", [Raises, RaisesSilently, RaisesStopIteration])
def test_whatever_a_model_raises_comes_back_typed_and_bounded(model):
    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes(model=model)) as trainer:
            report = await trainer.train(X, Y)
            assert isinstance(report.error, BatchError)
            assert type(model.error).__name__ in str(report.error)
            (letter,) = trainer.dead_letters
            for text in (str(report.error), str(letter.error)):
                assert len(text) <= LONGEST
                assert "Given: x" in text  # advice is not what is left out
            assert trainer.history["error"].str.len().max() <= LONGEST + 100
            with pytest.raises(BatchError) as caught:
                await trainer.predict(X)
            assert len(str(caught.value)) <= LONGEST

    run()


@pytest.mark.parametrize("error", [StopIteration(), Silent(), ValueError(HUGE)])
def test_whatever_an_applied_function_raises_comes_back(error):
    def fails(model, optimizers):
        raise error

    @one()
    async def run(c, s, a):
        async with ta.Trainer(c, **classes()) as trainer:
            with pytest.raises(RaisedError, match=type(error).__name__):
                await trainer.apply(fails)
            assert (await trainer.train(X, Y)).error is None

    run()


@one()
async def test_what_a_map_raises_is_kept_in_bounded_length(c, s, a):
    def parse(record):
        raise record

    async with ta.Trainer(c, **classes()) as trainer:
        source = Stream(asynchronous=True)
        source.try_map(parse, trainer).sink(lambda pair: None)
        for record in (ValueError(HUGE), Silent()):
            await source.emit(record)
        for letter in trainer.dead_letters:
            assert isinstance(letter.error, RecordError)
            assert isinstance(letter.error.__cause__, RaisedError)
            assert len(str(letter.error)) + len(str(letter.error.__cause__)) < 8000


@one()
async def test_what_a_sink_raises_is_logged_in_bounded_length(c, s, a):
    lines: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record):
            lines.append(self.format(record))

    kept = Kept()
    logging.getLogger("tensair_dask").addHandler(kept)
    try:
        async with ta.Trainer(c, **classes()) as trainer:
            source = Stream(asynchronous=True)

            def sink(report):
                raise ValueError(HUGE)

            source.train(trainer).sink(sink)
            for pair in class_data(2):
                await source.emit(pair)
            await asyncio.wait_for(until(lambda: len(lines) > 1), 30)
    finally:
        logging.getLogger("tensair_dask").removeHandler(kept)
    assert max(map(len, lines)) < 20_000
