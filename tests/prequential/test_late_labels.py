"""Labels that come late: simulated, or brought by key."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import numpy as np
import pandas as pd
import pytest

import tensair_dask as ta
from tensair_dask import errors
from tensair_dask.prequential import Answer, Question, questions_and_answers
from tensair_dask.prequential.delayed_labels import Delay
from tensair_dask.prequential.inputs import as_seconds

river = pytest.importorskip("river", reason="needs river")
from river import metrics, stream  # noqa: E402


def accuracy(scores, whose="model"):
    return scores.get()[whose]["Accuracy"]["whole"]


# ---------------------------------------------------------------- simulated with add


def test_a_record_is_scored_when_so_many_records_have_come_after_it():
    scores = ta.Prequential(metrics.Accuracy(), delay=3)
    scored = []
    for label in range(6):
        scores.add(label, label)
        scored.append((scores.records, scores.waiting))
    assert scored == [(0, 1), (0, 2), (0, 3), (1, 3), (2, 3), (3, 3)]
    assert scores.flush() == 3
    assert (scores.records, scores.waiting) == (6, 0)
    assert scores.flush() == 0


@pytest.mark.parametrize("size", [1, 4, 64])
@pytest.mark.parametrize("delay", [0, 1, 10, 100])
def test_baselines_that_guess_at_once_know_only_what_had_come_then(delay, size):
    labels = np.random.default_rng(1).integers(0, 3, 640)
    scores = ta.Prequential(metrics.Accuracy(), delay=delay)
    right = []
    for start in range(0, len(labels), size):
        batch = labels[start : start + size]
        scores.add(batch, batch, together=True)
        # When the mini-batch comes, its last record comes, and the labels with it.
        come = min(start, start + size - delay)
        if come > 0:
            right += (labels[come - 1] == labels[start : start + size]).tolist()
    scores.flush()
    assert accuracy(scores, "last label") == pytest.approx(np.mean(right))
    assert accuracy(scores) == 1


@pytest.mark.parametrize("size", [1, 7, 64])
@pytest.mark.parametrize("delay", [None, 0, 1, 24, 100])
def test_the_last_label_is_persistence_whatever_the_mini_batches(delay, size):
    """Beside an oracle that is computed record by record."""
    hours = np.arange(960)
    load = 5 * np.sin(hours / 24 * 2 * np.pi) + np.random.default_rng(0).normal(
        size=960
    )
    scores = ta.Prequential(metrics.MAE(), delay=delay)
    for start in range(0, len(load), size):
        batch = load[start : start + size]
        scores.add(batch, batch)
    scores.flush()
    back = delay or 1  # the label of a record itself comes after it was guessed
    persistence = np.abs(load[back:] - load[:-back]).mean()
    means = np.array([load[: at - back + 1].mean() for at in range(back, len(load))])
    got = scores.get()
    assert got["last label"]["MAE"]["whole"] == pytest.approx(persistence)
    assert got["mean"]["MAE"]["whole"] == pytest.approx(
        np.abs(load[back:] - means).mean()
    )
    assert got["model"]["MAE"]["whole"] == 0
    assert scores.records == len(load)


@pytest.mark.parametrize("size", [1, 5, 40])
def test_baselines_go_by_the_time_of_each_record(size):
    random = np.random.default_rng(2)
    times = np.cumsum(random.exponential(size=400))
    labels = random.integers(0, 3, 400)
    one, other = (ta.Prequential(metrics.Accuracy(), delay=6.5) for _ in range(2))
    for start in range(0, 400, size):
        rows = slice(start, start + size)
        one.add(labels[rows], labels[rows], time=times[rows])
    for label, time in zip(labels.tolist(), times.tolist(), strict=True):
        other.add(label, label, time=time)
    assert one.flush() == other.flush() or size > 1
    assert one.get() == other.get()
    come = np.searchsorted(times, times - 6.5, side="right")
    known = come > 0
    right = labels[come[known] - 1] == labels[known]
    assert accuracy(one, "last label") == pytest.approx(right.mean())


TWO_HOURS = [
    "2h",
    "120 min",
    timedelta(hours=2),
    np.timedelta64(2, "h"),
    pd.Timedelta("2h"),
    7200.0,
    np.float64(7200),
]


@pytest.mark.parametrize("delay", TWO_HOURS, ids=repr)
def test_a_delay_in_time_goes_by_the_times_of_the_records(delay):
    scores = ta.Prequential(metrics.Accuracy(), delay=delay)
    start = datetime(2013, 1, 1, 5)
    for minutes, expected in [(0, 0), (119, 0), (120, 1), (200, 1), (500, 4)]:
        scores.add(1, 1, time=start + timedelta(minutes=minutes))
        assert scores.records == expected
    scores.flush()
    assert scores.records == 5


def test_records_that_come_out_of_order_wait_their_own_time():
    scores = ta.Prequential(metrics.Accuracy(), delay=10.0, baselines=["last label"])
    scores.add(1, 1, time=100)
    scores.add(2, 2, time=95)  # its label comes first
    scores.add(3, 3, time=105)
    assert scores.records == 1
    scores.add(3, 2, time=106)  # guessed from the label 2
    scores.flush()
    assert accuracy(scores) == 0.75


def test_a_mini_batch_may_have_a_time_for_each_record_or_one_for_all():
    one, other = (ta.Prequential(metrics.Accuracy(), delay="60s") for _ in range(2))
    times = pd.date_range("2013-01-01", periods=4, freq="30s")
    one.add([1, 1, 1, 1], [1, 1, 0, 0], time=times)
    assert (one.records, one.waiting) == (2, 2)
    other.add([1, 1, 1, 1], [1, 1, 0, 0], time=times[0])
    assert (other.records, other.waiting) == (0, 4)
    with pytest.raises(errors.ShapeError, match="2 values for 3 records"):
        one.add([1, 1, 1], [1, 1, 1], time=times[:2])
    assert one.records + one.waiting == 4


def test_a_delay_in_time_needs_times():
    scores = ta.Prequential(metrics.Accuracy(), delay="2h")
    with pytest.raises(errors.ConfigurationError, match="time="):
        scores.add(1, 1)
    with pytest.raises(errors.NonFiniteError):
        scores.add(1, 1, time=pd.NaT)
    with pytest.raises(errors.DtypeError, match="is no time"):
        scores.add(1, 1, time="noon")
    assert scores.waiting == 0


@pytest.mark.parametrize(
    "delay", [-1, "500", "soon", float("nan"), float("inf"), True, [1], timedelta(-1)]
)
def test_a_delay_that_is_none_is_refused(delay):
    with pytest.raises(errors.ConfigurationError, match=r"delay='2h'"):
        ta.Prequential(metrics.Accuracy(), delay=delay)


def test_whole_numbers_are_records_and_all_else_is_time():
    assert Delay.of(500) == Delay.of(np.int64(500)) == Delay(500, in_time=False)
    assert Delay.of(500.0) == Delay(500, in_time=True)
    assert Delay.of("1 day") == Delay(86_400, in_time=True)


@pytest.mark.parametrize(
    "time",
    [
        datetime(2013, 1, 1, tzinfo=UTC),
        datetime(2013, 1, 1),
        pd.Timestamp("2013-01-01"),
        pd.Timestamp("2013-01-01 01:00", tz="Europe/Berlin"),
        np.datetime64("2013-01-01"),
        np.datetime64("2013-01-01", "ns"),
        [datetime(2013, 1, 1)],
        [pd.Timestamp("2013-01-01 01:00", tz="Europe/Berlin")],
        pd.Series(pd.to_datetime(["2013-01-01"])),
        pd.Series(pd.to_datetime(["2013-01-01 01:00"])).dt.tz_localize("Europe/Berlin"),
        pd.DatetimeIndex(["2013-01-01 01:00"], tz="Europe/Berlin"),
        1_356_998_400,
        [1_356_998_400.0],
        np.array([1_356_998_400]),
    ],
    ids=repr,
)
def test_times_are_read_in_whatever_form_they_come(time):
    assert as_seconds(time, 1) == [1_356_998_400.0]


def test_what_waits_is_bounded_and_what_is_forgotten_counted(caplog):
    scores = ta.Prequential(metrics.Accuracy(), delay="1 day", pending=10)
    with caplog.at_level(logging.WARNING):
        scores.add([1] * 30, [1] * 30, time=0.0)
        scores.add(1, 1, time=1.0)
    assert (scores.waiting, scores.forgotten, scores.records) == (10, 21, 0)
    assert len(caplog.records) == 1
    assert "21 forgotten" in repr(scores)
    with pytest.raises(errors.ConfigurationError, match="pending=500"):
        ta.Prequential(metrics.Accuracy(), delay=500, pending=100)


@pytest.mark.parametrize("size", [1, 100, 1_000])
def test_labels_that_have_come_need_no_room(size):
    y = np.random.default_rng(3).integers(0, 3, 3_000)
    p = np.roll(y, 1)
    bounded = ta.Prequential(metrics.Accuracy(), delay=500, pending=500)
    unbounded = ta.Prequential(metrics.Accuracy(), delay=500, pending=10**6)
    for start in range(0, len(y), size):
        rows = slice(start, start + size)
        for scores in (bounded, unbounded):
            scores.add(y[rows], p[rows])
        assert bounded.records == unbounded.records == max(0, start + size - 500)
        assert (bounded.waiting, bounded.forgotten) == (min(start + size, 500), 0)
        if not (start + size) % 100:
            assert bounded.frame().equals(unbounded.frame())


def test_labels_that_come_with_their_mini_batch_are_scored_in_the_order_they_come():
    scores = ta.Prequential(
        metrics.Accuracy(), delay=10.0, baselines=["last label"], pending=2
    )
    labels = [1, 2, 3, 4]
    scores.add(labels, labels, time=[5.0, 3.0, 40.0, 35.0], together=True)
    assert (scores.records, scores.waiting, scores.forgotten) == (2, 2, 0)
    scores.add(1, 0, time=41.0)  # the label 1 came last, at 15
    scores.flush()
    assert accuracy(scores, "last label") == 1


# -------------------------------------------------------------------- brought by key


@pytest.mark.parametrize("key", [{"id": 1}, {1}, ("batch", [7])])
def test_a_key_by_which_nothing_can_be_found_is_refused(key):
    scores = ta.Prequential(metrics.Accuracy())
    for given in (key, [5, key]):
        count = 2 if isinstance(given, list) else 1
        with pytest.raises(errors.BatchError, match="a number, text, or a tuple"):
            scores.predicted([1] * count, key=given)
        with pytest.raises(errors.BatchError, match="a number, text, or a tuple"):
            scores.labelled(given, [1] * count)
    with pytest.raises(errors.BatchError, match=r"The key \[1, 2\] is a list"):
        scores.predicted([1, 1], key=np.array([[1, 2], [3, 4]]))
    assert (scores.waiting, scores.unmatched) == (0, 0)


def test_a_prediction_is_kept_until_its_label_comes():
    scores = ta.Prequential(metrics.Accuracy())
    scores.predicted(1, key="first")
    scores.predicted(0, key="second")
    assert (scores.waiting, scores.records) == (2, 0)
    assert scores.labelled("second", 0) == 1
    assert scores.labelled("first", 0) == 1
    assert (scores.waiting, scores.records, accuracy(scores)) == (0, 2, 0.5)


def test_what_was_brought_late_scores_as_the_same_delay_simulated():
    random = np.random.default_rng(2)
    y, p = random.random(1_000) < 0.3, random.random(1_000)
    chosen = {"accuracy": metrics.Accuracy(), "log loss": metrics.LogLoss()}
    options = {"window": 100, "fading": 0.99}
    simulated = ta.Prequential(chosen, delay=20, **options)
    brought = ta.Prequential(chosen, **options)
    for at in range(1_000):
        simulated.add(y[at], p[at])
        if at >= 20:
            brought.labelled(at - 20, y[at - 20])
        brought.predicted(p[at], key=at)
    assert brought.get() == simulated.get()
    assert brought.waiting == simulated.waiting == 20


def test_mini_batches_have_a_key_for_each_record_or_one_for_all():
    scores = ta.Prequential(metrics.Accuracy())
    scores.predicted([1, 2, 3], key=["a", "b", "c"])
    assert scores.labelled(["c", "a"], [3, 0]) == 2
    scores.predicted([1, 2], key=("batch", 7))
    assert scores.waiting == 3
    with pytest.raises(errors.ShapeError, match="2 predictions wait"):
        scores.labelled(("batch", 7), [1])
    assert scores.labelled(("batch", 7), [1, 2]) == 2
    assert scores.labelled(np.array(["b"]), np.array([2])) == 1
    assert (scores.records, accuracy(scores), scores.waiting) == (5, 0.8, 0)


def test_a_key_that_waits_is_not_taken_twice():
    scores = ta.Prequential(metrics.Accuracy())
    scores.predicted(1, key=5)
    with pytest.raises(errors.BatchError, match="key=5"):
        scores.predicted(1, key=5)
    with pytest.raises(errors.BatchError, match="key=5"):
        scores.predicted([1, 1], key=[4, 5])
    with pytest.raises(errors.BatchError, match="given twice"):
        scores.predicted([1, 1], key=[6, 6])
    with pytest.raises(errors.ShapeError, match="3 values for 2"):
        scores.predicted([1, 1], key=[6, 7, 8])
    assert scores.waiting == 1
    scores.labelled(5, 1)
    scores.predicted(1, key=5)


def test_labels_without_a_prediction_are_counted_and_known_to_the_baselines():
    scores = ta.Prequential(metrics.Accuracy(), pending=2)
    for key in range(4):
        scores.predicted(1, key=key)
    assert (scores.waiting, scores.forgotten) == (2, 2)
    assert scores.labelled(0, 7) == 0
    assert scores.labelled(["never", 3], [7, 7]) == 1
    assert (scores.unmatched, scores.records) == (2, 1)
    scores.predicted(1, key="next")
    scores.labelled("next", 7)
    assert accuracy(scores, "majority") == 1


def test_a_label_that_cannot_be_scored_leaves_the_prediction_waiting():
    scores = ta.Prequential(metrics.Accuracy())
    scores.predicted(1, key=1)
    with pytest.raises(errors.NonFiniteError):
        scores.labelled(1, float("nan"))
    assert scores.labelled(1, 1) == 1


def test_times_show_how_late_the_labels_were():
    scores = ta.Prequential(metrics.Accuracy())
    assert np.isnan(scores.lateness)
    scores.predicted(1, key="a", time=datetime(2013, 1, 1, 5))
    scores.predicted([1, 1], key="b", time=[0.0, 60.0])
    scores.predicted(1, key="c")
    scores.labelled("a", 1, time=datetime(2013, 1, 1, 7))
    assert scores.lateness == 7_200
    scores.labelled("b", [1, 1], time=120)
    scores.labelled("c", 1, time=5)
    assert scores.lateness == (7_200 + 120 + 60) / 3


def test_a_delay_and_keys_exclude_each_other():
    scores = ta.Prequential(metrics.Accuracy(), delay=5)
    with pytest.raises(errors.ConfigurationError, match="leave delay= out"):
        scores.predicted(1, key=1)


# ---------------------------------------------------------------- questions and answers


def plain(events):
    return [
        (event.number, event.x, event.y if isinstance(event, Answer) else None)
        for event in events
    ]


@pytest.mark.parametrize("delay", [None, 1, 2, 7, 1_000])
def test_questions_and_answers_come_in_rivers_order(delay):
    data = [({"at": at}, at * 10) for at in range(20)]
    ours = plain(questions_and_answers(data, delay))
    assert ours == list(stream.simulate_qa(data, None, delay))


def test_labels_may_overtake_each_other_where_a_function_says_when_they_come():
    random = np.random.default_rng(3)
    start = datetime(2020, 1, 1)
    data = [
        ({"date": start + timedelta(minutes=float(at))}, float(wait))
        for at, wait in zip(
            np.sort(random.random(200) * 600),
            random.integers(1, 9_000, 200),
            strict=True,
        )
    ]

    def wait(x, y):
        return timedelta(seconds=y)

    theirs = list(stream.simulate_qa(data, "date", wait))
    for moment in ("date", lambda x: x["date"]):
        ours = list(questions_and_answers(data, wait, moment))
        assert plain(ours) == theirs
    times = [event.time for event in ours]
    assert times == sorted(times)
    assert isinstance(ours[0], Question)


def test_records_may_bring_their_time_with_them():
    data = [("a", 1, 0.0), ("b", 2, 5.0), ("c", 3, 12.0)]
    events = list(questions_and_answers(data, 10.0))
    assert [(type(event).__name__[0], event.x, event.time) for event in events] == [
        ("Q", "a", 0),
        ("Q", "b", 5),
        ("A", "a", 10),
        ("Q", "c", 12),
        ("A", "b", 15),
        ("A", "c", 22),
    ]


def test_a_function_may_give_seconds_as_whole_numbers():
    events = questions_and_answers([("a", 1, 0), ("b", 2, 5)], lambda x, y: 3)
    assert [event.x for event in events] == ["a", "a", "b", "b"]


def test_a_stream_without_end_is_gone_through_as_it_comes():
    endless = (({}, at) for at in iter(int, 1))
    events = questions_and_answers(endless, 5)
    kinds = [type(next(events)) for _ in range(9)]
    assert kinds == [Question] * 5 + [Answer, Question] * 2


def test_streams_that_cannot_be_gone_through_say_why():
    with pytest.raises(errors.BatchError, match="has no time"):
        list(questions_and_answers([(1, 2)], "2h"))
    with pytest.raises(errors.BatchError, match="has no 'date'"):
        list(questions_and_answers([({}, 2)], "2h", "date"))
    with pytest.raises(errors.BatchError, match="Record 1 of the stream is a int"):
        list(questions_and_answers([(1, 2), 3], 5))
    with pytest.raises(errors.ConfigurationError, match="pending=3"):
        list(questions_and_answers([(1, 2)] * 9, 8, pending=3))


def test_labels_of_which_none_has_a_prediction_are_reported_once(caplog):
    scores = ta.Prequential({"accuracy": metrics.Accuracy()})
    for number in range(30):
        scores.predicted(1, ("order", number))
    for number in range(30):
        assert scores.labelled(f"order {number}", 1) == 0
    assert caplog.text.count("None of 20 labels") == 1
    assert scores.labelled(("order", 3), 1) == 1
