"""Rows of frames (Series, named tuples, frames of one row) are read by name."""

from __future__ import annotations

import functools
from collections import namedtuple

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import linear
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.batches.batch import collate, stack
from tensair_dask.batches.column_names import ColumnNames
from tensair_dask.batches.predictions import as_batch
from tensair_dask.errors import ShapeError

pd = pytest.importorskip("pandas")

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
NAMES = list("abcdef")
FRAME = pd.DataFrame(np.arange(12, dtype="float32").reshape(2, 6), columns=NAMES)
TURNED = FRAME[NAMES[::-1]]
Y = np.zeros((2, 1), "float32")


def rows(frame):
    return list(frame.itertuples(index=False))


def known(first=FRAME):
    names = ColumnNames()
    names.batch(first)
    return names


def values(made):
    return made.leaves[0].tolist()


@pytest.mark.parametrize("first", [FRAME, rows(FRAME)])
@pytest.mark.parametrize("given", [TURNED, rows(TURNED), rows(FRAME)])
def test_named_tuples_of_rows_stand_in_the_order_of_the_first_frame(first, given):
    assert values(known(first).batch(given)) == FRAME.to_numpy().tolist()


def test_named_tuples_of_several_kinds_stand_in_one_order():
    mixed = [rows(FRAME)[0], rows(TURNED)[1]]
    assert values(ColumnNames().batch(mixed)) == FRAME.to_numpy().tolist()


def test_a_row_stands_in_the_order_of_the_first_frame():
    assert values(known().batch(TURNED.iloc[1])) == FRAME.iloc[1].tolist()


def test_a_column_is_no_row():
    column = pd.Series([3.0, 2.0, 1.0])
    assert values(known().batch(column)) == [3, 2, 1]
    assert values(known().batch(column.rename({0: "u", 1: "v", 2: "w"}))) == [3, 2, 1]


@pytest.mark.parametrize(
    "given",
    [
        FRAME.rename(columns={"a": "z"}).iloc[0],
        rows(FRAME.rename(columns={"a": "z"})),
        list(FRAME.itertuples()),  # with the index as its first field
        [rows(FRAME)[0], (1, 2, 3, 4, 5, 6)],
    ],
)
def test_rows_with_other_names_are_refused(given):
    with pytest.raises(ShapeError, match="the first"):
        known().batch(given)


def test_fields_that_stand_for_a_place_are_read_by_place_where_that_is_sound():
    spaced = FRAME.rename(columns={"b": "b b", "c": "class"})
    assert values(known(spaced).batch(rows(spaced))) == FRAME.to_numpy().tolist()
    with pytest.raises(ShapeError, match="fields"):
        known(spaced).batch(rows(spaced[spaced.columns[::-1]]))
    names = known(rows(spaced))  # decides nothing: these are no names of columns
    assert values(names.batch(spaced)) == FRAME.to_numpy().tolist()


@pytest.mark.parametrize("index", [[0, 0], [0, 1]])
def test_frames_of_one_row_are_records(index):
    frame = FRAME.set_axis(index)
    records = [(frame.iloc[[0]], 0.0), (frame.iloc[[1]][NAMES[::-1]], 1.0)]
    x, y = collate(records)
    assert (x.to_numpy() == FRAME.to_numpy()).all()
    assert list(y) == [0, 1]
    assert as_batch(frame.iloc[[1]]).to_numpy().tolist() == [FRAME.iloc[1].tolist()]


def test_targets_may_be_frames_of_one_row():
    target = pd.DataFrame({"y": [1.0, 2.0]})
    _, y = collate([(FRAME.iloc[[at]], target.iloc[[at]]) for at in range(2)])
    assert y.to_numpy().tolist() == [[1], [2]]


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ([FRAME], "is a frame of 2 rows.*for predict"),
        ([FRAME.iloc[[0]], FRAME.iloc[:0]], "is a frame of 0 rows"),
        ([FRAME.iloc[[0]], FRAME.iloc[1]], "is a Series"),
        ([FRAME.iloc[[0]], FRAME.iloc[[1]][["a"]]], "x of record 1 .* it lacks"),
    ],
)
def test_frames_of_other_rows_or_columns_are_refused_as_records(given, why):
    with pytest.raises(ShapeError, match=why):
        stack(given)


@one()
async def test_whatever_form_a_row_has_its_prediction_is_the_same(c, s, a):
    named = namedtuple("Row", NAMES[::-1])
    async with ta.Trainer(c, **linear()) as trainer:
        source = Stream(asynchronous=True)
        reports = source.partition(2).train(trainer).sink_to_list()
        for at in range(2):
            await source.emit((FRAME.iloc[[at]], Y[at]))
        await trainer.drain()
        assert [report.error for report in reports] == [None]
        expected = await trainer.predict(FRAME.to_numpy())
        listed = [named(*row) for row in TURNED.to_numpy().tolist()]
        for given in (TURNED, rows(TURNED), listed):
            assert np.allclose(await trainer.predict(given), expected)
        for given in (TURNED.iloc[0], TURNED.iloc[[0]]):
            assert np.allclose(await trainer.predict_one(given), expected[0])
        assert np.allclose(await trainer.predict(TURNED.iloc[0]), expected[0])
        with pytest.raises(ShapeError, match="for predict"):
            await trainer.predict_one(FRAME)
