"""Columns of frames: the first frame decides on their names and order."""

from __future__ import annotations

import asyncio
import functools

import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import expected_weight, linear, linear_data
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask.batches.batch import ABSENT, collate, stack
from tensair_dask.batches.column_names import ColumnNames
from tensair_dask.errors import ForwardError, ShapeError

pd = pytest.importorskip("pandas")

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
X_NAMES, Y_NAMES = list("abcdef"), list("uvw")
FRAME = pd.DataFrame(np.arange(6, dtype="float32").reshape(2, 3), columns=list("abc"))
TURNED = FRAME[["c", "a", "b"]]


def leaves(made):
    return [leaf.tolist() for leaf in made.leaves]


def frames(data):
    """The same mini-batches as frames, every second with its columns turned round."""
    for at, (x, y) in enumerate(data):
        x, y = pd.DataFrame(x, columns=X_NAMES), pd.DataFrame(y, columns=Y_NAMES)
        yield (x[X_NAMES[::-1]], y[Y_NAMES[::-1]]) if at % 2 else (x, y)


@pytest.mark.parametrize(
    ("first", "next_one"),
    [
        ((FRAME, FRAME), (TURNED, FRAME)),
        ((FRAME, FRAME), (FRAME, TURNED)),
        (({"k": FRAME}, FRAME), ({"k": TURNED}, FRAME)),
        (((FRAME, TURNED), FRAME), ((TURNED, FRAME), FRAME)),
        (([FRAME, FRAME], FRAME), ([TURNED, TURNED], FRAME)),
    ],
)
def test_frames_are_put_in_the_order_of_the_first(first, next_one):
    names = ColumnNames()
    known = names.batch(*first)
    assert leaves(names.batch(*next_one)) == leaves(known)


def test_columns_that_have_numbers_for_names_are_put_in_order():
    frame = pd.DataFrame(FRAME.to_numpy())
    names = ColumnNames()
    known = names.batch(frame, FRAME)
    assert leaves(names.batch(frame[[2, 0, 1]], FRAME)) == leaves(known)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (
            FRAME.rename(columns={"b": "z"}),
            r"\['a', 'z', 'c'\].*lacks \['b'\].*'z'.*was",
        ),
        (FRAME[["a", "b"]], r"lacks \['c'\]"),
        (FRAME.assign(d=1.0), r"\['d'\] was not there"),
        (FRAME[["a", "b", "b"]], r"lacks \['c'\]"),
    ],
)
def test_other_columns_are_refused_and_named(other, said):
    names = ColumnNames()
    names.batch({"k": FRAME}, FRAME)
    with pytest.raises(ShapeError, match=rf"x\['k'\] has the columns .*{said}"):
        names.batch({"k": other}, FRAME)


def test_columns_of_one_name_cannot_be_put_in_order():
    names = ColumnNames()
    frame = FRAME[["a", "b", "b"]]
    names.batch(frame, FRAME)
    names.batch(frame, FRAME)
    with pytest.raises(ShapeError, match="a name of its own"):
        names.batch(frame.iloc[:, [1, 0, 2]], FRAME)


def test_many_columns_make_a_short_message():
    names = ColumnNames()
    wide = pd.DataFrame(np.zeros((1, 5000)), columns=[f"c{at}" for at in range(5000)])
    names.batch(wide, FRAME.iloc[:1])
    with pytest.raises(ShapeError, match="and 4992 more") as caught:
        names.batch(wide.add_prefix("d"), FRAME.iloc[:1])
    assert len(str(caught.value)) < 1500


def test_arrays_have_no_names_before_and_after_frames():
    names, array = ColumnNames(), FRAME.to_numpy()[:, ::-1]
    for x in (array, FRAME, array, pd.DataFrame(array), array.tolist()):
        names.batch(x, FRAME)
    assert leaves(names.batch(pd.DataFrame(array), FRAME))[0] == array.tolist()
    assert leaves(names.batch(TURNED, FRAME))[0] == FRAME.to_numpy().tolist()


def test_what_is_no_mini_batch_decides_nothing():
    names = ColumnNames()
    with pytest.raises(ShapeError):
        names.batch(TURNED, FRAME.iloc[:1])
    assert leaves(names.batch(FRAME, FRAME))[0] == FRAME.to_numpy().tolist()


def test_columns_that_do_not_fit_the_model_are_forgotten():
    names = ColumnNames()
    names.batch(FRAME, FRAME)
    names.refused(ForwardError("one column too many"))
    names.batch(FRAME[["a", "b"]], FRAME)


@pytest.mark.parametrize("kind", ["x", "dict", "tuple"])
def test_records_that_are_rows_are_stacked_by_name(kind):
    wrap = {"x": lambda r: r, "dict": lambda r: {"k": r}, "tuple": lambda r: (r, r)}
    rows = [wrap[kind](FRAME.iloc[0]), wrap[kind](TURNED.iloc[1])]
    stacked = stack(rows)
    frame = {"x": lambda s: s, "dict": lambda s: s["k"], "tuple": lambda s: s[1]}
    pd.testing.assert_frame_equal(frame[kind](stacked), FRAME)


def test_rows_of_other_names_are_refused_with_their_place():
    rows = [FRAME.iloc[0], FRAME.iloc[1], FRAME.add_prefix("z").iloc[0]]
    with pytest.raises(ShapeError, match=r"x of record 2 has .*za"):
        collate([(row, 1) for row in rows])
    with pytest.raises(ShapeError, match=r"record 1 .* is a ndarray without"):
        collate([(FRAME.iloc[0], 1), (FRAME.iloc[1].to_numpy(), 1)])


@one()
async def test_a_stream_learns_frames_by_the_names_of_their_columns(c, s, a):
    data = linear_data(10)
    states = []
    for items in (data, list(frames(data))):
        async with ta.Trainer(c, **linear()) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer)
            for item in items:
                await source.emit(item)
            await trainer.drain()
            states.append(await trainer.state_dict())
            answers = [await trainer.predict(x) for x, _ in items[:2]]
            scores = await trainer.evaluate(items)
            states.append((answers, scores["loss"]))
    plain, (answers, loss), named, (same_answers, same_loss) = states
    np.testing.assert_allclose(named["weight"], plain["weight"], rtol=1e-6)
    np.testing.assert_allclose(same_answers, answers, rtol=1e-6)
    assert same_loss == pytest.approx(loss, rel=1e-6)


@one()
async def test_train_predict_and_evaluate_refuse_other_columns(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        (x, y), *_ = frames(linear_data(1))
        other = x.rename(columns={"a": "A"})
        await trainer.train(x, y)
        assert isinstance((await trainer.train(other, y)).error, ShapeError)
        with pytest.raises(ShapeError, match="'A'"):
            await trainer.predict(other)
        with pytest.raises(ShapeError, match="'A'"):
            await trainer.predict_one(other.iloc[0])
        with pytest.raises(ShapeError, match="'A'"):
            await trainer.evaluate([(other, y)])
        turned = await trainer.predict_one(x[X_NAMES[::-1]].iloc[0])
        np.testing.assert_allclose(turned, await trainer.predict_one(x.iloc[0]))


@one()
async def test_a_first_frame_that_the_model_cannot_take_does_not_decide(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        (x, y), *_ = frames(linear_data(1))
        assert (await trainer.train(x.assign(label=1.0), y)).error is not None
        assert (await trainer.train(x[X_NAMES[::-1]], y)).error is None
        turned = x.to_numpy()[:, ::-1].copy()
        expected = await trainer.predict(turned)
        np.testing.assert_allclose(await trainer.predict(x), expected, rtol=1e-6)


@pytest.mark.parametrize("one_pass", [True, False])
def test_what_is_scored_is_in_order_as_well(one_pass):
    @one()
    async def run(c, s, a):
        data = linear_data(4)
        seen = []
        async with ta.Trainer(c, **linear(keep_predictions=one_pass)) as trainer:
            source = Stream(asynchronous=True)
            node = source.predict_then_train(trainer)
            take = node.intake.feed

            def feed(item, collate, *rest):
                def look(given):
                    pair = collate(given)
                    seen.append(pair[1])
                    return pair

                return take(item, look, *rest)

            node.intake.feed = feed
            for item in frames(data):
                await source.emit(item)
            await trainer.drain()
        assert [list(y) for y in seen] == [Y_NAMES] * 4

    run()


async def saved(c, tmp_path, items):
    path = str(tmp_path / "model.tensair")
    async with ta.Trainer(c, **linear()) as trainer:
        for x, y in items:
            assert (await trainer.train(x, y)).error is None
        await trainer.save(path)
    return path


@one()
async def test_a_checkpoint_keeps_the_names_of_the_columns(c, s, a, tmp_path):
    data = list(frames(linear_data(6)))
    path = await saved(c, tmp_path, data[:3])
    async with ta.Trainer.restore(path, c, **linear()) as trainer:
        for x, y in data[3:]:
            report = await trainer.train(x[X_NAMES[::-1]], y[Y_NAMES[::-1]])
            assert report.error is None
        went_on = await trainer.state_dict()
    async with ta.Trainer(c, **linear()) as trainer:
        for x, y in data:
            await trainer.train(x, y)
        whole = await trainer.state_dict()
    np.testing.assert_allclose(went_on["weight"], whole["weight"], rtol=1e-6)


@one()
async def test_other_columns_than_those_of_the_checkpoint_are_refused(
    c, s, a, tmp_path
):
    data = list(frames(linear_data(2)))
    path = await saved(c, tmp_path, data[:1])
    async with ta.Trainer.restore(path, c, **linear()) as trainer:
        x, y = data[1]
        for _ in range(2):  # that one was refused decides nothing
            report = await trainer.train(x.rename(columns={"a": "A"}), y)
            assert isinstance(report.error, ShapeError)
        with pytest.raises(ShapeError, match="'A'"):
            await trainer.predict(x.rename(columns={"a": "A"}))
        assert (await trainer.train(x[X_NAMES[::-1]], y)).error is None


@one()
async def test_a_checkpoint_without_names_leaves_the_first_frame_to_decide(
    c, s, a, tmp_path
):
    data = linear_data(2)
    path = await saved(c, tmp_path, data[:1])
    async with ta.Trainer.restore(path, c, **linear()) as trainer:
        (x, y), *_ = frames(data[1:])
        assert (await trainer.train(x[X_NAMES[::-1]], y)).error is None
        assert isinstance(
            (await trainer.train(x.rename(columns={"a": "A"}), y)).error, ShapeError
        )


@pytest.mark.parametrize(
    "columns",
    [
        ["a", "b"],
        pd.Index([3, 1], dtype="int64"),
        pd.MultiIndex.from_tuples([("a", 1), ("b", 2)]),
    ],
)
def test_names_of_columns_are_kept_as_plain_values(columns):
    known = ColumnNames()
    frame = pd.DataFrame(np.eye(2), columns=columns)
    known.batch(frame)
    kept = known.state_dict()
    assert all(type(name) in (str, int, tuple) for name in kept["x"])
    again = ColumnNames()
    again.load_state_dict(kept)
    expected = leaves(known.batch(frame))
    assert leaves(again.batch(frame[list(frame.columns)[::-1]])) == expected
    assert leaves(again.batch(frame)) == expected


def test_names_that_cannot_be_kept_are_left_out():
    known = ColumnNames()
    days = pd.date_range("2026-01-01", periods=2)
    known.batch(pd.DataFrame(np.eye(2), columns=days))
    assert known.state_dict() == {}


@pytest.mark.parametrize("make_y", [lambda y: y, lambda y: y.to_frame()])
def test_rows_whose_labels_are_in_another_order_are_refused(make_y):
    frame = pd.DataFrame({"a": np.arange(4.0), "b": np.ones(4)}, index=list("wxyz"))
    y = make_y(pd.Series(np.arange(4.0), index=frame.index))
    shuffled = frame.iloc[[2, 0, 3, 1]]
    with pytest.raises(ShapeError, match=r"y = y\.loc\[x\.index\]"):
        ColumnNames().batch(shuffled, y)
    for x, target in [
        (shuffled, y.loc[shuffled.index]),
        (shuffled, y.to_numpy()),
        (shuffled.reset_index(drop=True), y),
        (shuffled, y.set_axis([0, 0, 1, 1])),
    ]:
        assert ColumnNames().batch(x, target).samples == 4


@one()
async def test_a_frame_that_is_refused_does_not_make_the_first_one_forgotten(c, s, a):
    data = linear_data(3)
    names = list("abcdef")
    frames = [pd.DataFrame(x, columns=names) for x, _ in data]
    other = frames[1].rename(columns={"a": "z"})
    turned = frames[2][names[::-1]]
    async with ta.Trainer(c, **linear()) as trainer:
        # In one go: the first is under way when the second is refused.
        reports = await asyncio.gather(
            trainer.train(frames[0], data[0][1]),
            trainer.train(other, data[1][1]),
            trainer.train(turned, data[2][1]),
        )
        await trainer.drain()
        assert [each.error is None for each in reports] == [True, False, True]
        (weight,) = [each["weight"] for each in (await trainer.state_dicts()).values()]
    expected = expected_weight([data[0], data[2]])
    assert torch.allclose(weight.double(), expected, atol=1e-5)


TABLE = pd.DataFrame({"a": [1.0, 2.0, 3.0], "b": [4.0, 5.0, 6.0]})
LABELS = pd.Series([0, 1, 2])


@pytest.mark.parametrize(
    ("x", "y", "places"),
    [
        (TABLE, LABELS[::-1], "x and y"),
        ({"num": TABLE, "cat": TABLE[::-1]}, LABELS, r"x\['num'\] and x\['cat'\]"),
        ((TABLE, TABLE[::-1]), LABELS, r"x\[0\] and x\[1\]"),
        ({"num": TABLE}, LABELS[::-1], r"x\['num'\] and y"),
        (TABLE, {"k": LABELS, "w": LABELS[::-1]}, r"x and y\['w'\]"),
        ((TABLE, TABLE[::-1]), ABSENT, r"x\[0\] and x\[1\]"),
    ],
)
def test_rows_in_another_order_are_refused_wherever_they_are(x, y, places):
    with pytest.raises(ShapeError, match=f"The rows of {places} have the same labels"):
        ColumnNames().batch(x, y)


def test_rows_that_agree_or_have_other_labels_are_taken_by_place():
    later = TABLE.set_index(TABLE.index + 3)
    for x in ({"num": TABLE, "cat": TABLE}, (TABLE, later), (TABLE, TABLE.to_numpy())):
        assert ColumnNames().batch(x, LABELS).samples == 3
