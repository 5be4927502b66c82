"""Scores that go on where others were, by what a checkpoint can hold."""

from __future__ import annotations

import copy
import inspect
import pickle
import time

import numpy as np
import pytest

import tensair_dask as ta
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.format import decode, encode
from tensair_dask.errors import CheckpointError, ConfigurationError
from tensair_dask.prequential import BinaryPrequential, horizons

river = pytest.importorskip("river", reason="needs river")
from river import metrics  # noqa: E402

COUNT = 600
RANDOM = np.random.default_rng(5)
LATE = RANDOM.random(COUNT) < 0.3
CHANCES = np.clip(0.4 * LATE + 0.6 * RANDOM.random(COUNT), 0.01, 0.99)
WORDS = [["ham", "spam", "eggs"][each] for each in RANDOM.integers(0, 3, COUNT)]
SAID = [w if s else "ham" for w, s in zip(WORDS, LATE.tolist(), strict=True)]
NUMBERS = RANDOM.uniform(1, 9, COUNT)
GUESSED = NUMBERS + RANDOM.uniform(-1, 1, COUNT)


def stored(state):
    """Put a state into a file as a checkpoint does, and read it back."""
    return decode(b"".join(encode(Checkpoint({}, scores={"s": state})))).scores["s"]


def shown(scores) -> bytes:
    """All that can be read of it, bit by bit."""
    counts = [scores.records, scores.waiting, scores.forgotten, scores.unmatched]
    return pickle.dumps([counts, scores.get(), scores.curve().to_numpy().tolist()])


def kinds():
    """All metrics of river that Prequential takes, by the stream that they score."""
    for name, kind in vars(metrics).items():
        if not inspect.isclass(kind) or inspect.isabstract(kind):
            continue
        try:
            metric = kind()
            chosen = ta.Prequential(metric)
        except (ConfigurationError, TypeError):
            continue
        regression = chosen._reader.regression
        stream = "numbers" if regression else "labels"
        if chosen._reader.with_chances:
            stream = "shares" if name == "CrossEntropy" else "chances"
        yield name, stream


STREAMS = {
    "numbers": (NUMBERS, GUESSED),
    "labels": (LATE, CHANCES > 0.5),
    "chances": (LATE, CHANCES),
    "shares": (LATE, np.column_stack([1 - CHANCES, CHANCES])),
    "words": (WORDS, SAID),
}
KINDS = list(kinds())


def test_there_are_all_that_are_documented():
    names = {name for name, _ in KINDS}
    wanted = {"Accuracy", "F1", "CohenKappa", "LogLoss", "ROCAUC", "RollingROCAUC"}
    assert wanted | {"MAE", "RMSE", "R2", "MacroF1", "MCC", "CrossEntropy"} <= names
    assert len(names) > 30


def feed(scores, truth, said, start, stop, size=7):
    for at in range(start, stop, size):
        rows = slice(at, min(at + size, stop))
        scores.add(truth[rows], said[rows])


@pytest.mark.parametrize(("name", "stream"), KINDS, ids=[name for name, _ in KINDS])
def test_every_metric_goes_on_where_it_was(name, stream):
    truth, said = STREAMS[stream]
    one = ta.Prequential(getattr(metrics, name)())
    feed(one, truth, said, 0, 300)
    other = ta.Prequential(getattr(metrics, name)())
    feed(other, truth, said, 400, 500)  # it has seen something else
    other.load_state_dict(stored(one.state_dict()))
    assert shown(other) == shown(one)
    feed(one, truth, said, 300, 600)
    feed(other, truth, said, 300, 600)
    assert shown(other) == shown(one)


def several(**options):
    chosen = {
        "accuracy": metrics.Accuracy(),
        "F1": metrics.F1(),
        "of False": metrics.F1(pos_val=False),
        "log loss": metrics.LogLoss(),
        "kappa": metrics.CohenKappa(),
    }
    return ta.Prequential(chosen, **options)


PLACES = [0, 1, 30, 49, 50, 51, 100, 130, 299, 380, 383, 384, 400, 599]


@pytest.mark.parametrize("place", PLACES)
def test_every_horizon_goes_on_where_it_was(place, monkeypatch):
    # So that successors are being filled, and take over, within this stream.
    monkeypatch.setattr(horizons, "_LIFE", 60)
    monkeypatch.setattr(horizons, "_LIFE_IN_WINDOWS", 1)
    options = {"window": 50, "fading": 0.3, "points": 5}
    one, other = several(**options), several(**options)
    feed(one, LATE, CHANCES, 0, place)
    feed(other, LATE, CHANCES, 0, 77)
    other.load_state_dict(stored(one.state_dict()))
    for start in range(place, 600, 50):
        feed(one, LATE, CHANCES, start, min(600, start + 50))
        feed(other, LATE, CHANCES, start, min(600, start + 50))
        assert shown(other) == shown(one)


def test_successors_are_part_of_it(monkeypatch):
    monkeypatch.setattr(horizons, "_LIFE", 60)
    monkeypatch.setattr(horizons, "_LIFE_IN_WINDOWS", 1)
    scores = several(window=50, fading=0.3)
    found = set()
    for start in range(0, 600, 10):
        feed(scores, LATE, CHANCES, start, start + 10)
        found.add(tuple(scores.state_dict()["state"]["successors"]))
    assert [set(each) for each in zip(*found, strict=True)] == [
        {False},
        {False, True},  # of the window
        {False, True},  # of the fading factor
    ]


@pytest.mark.parametrize("delay", [5, 200, 30.0])
def test_labels_that_are_held_back_come_as_they_would_have(delay):
    one, other = several(delay=delay), several(delay=delay)
    for scores, stop in ((one, 250), (other, 20)):
        for at in range(stop):
            scores.add(LATE[at], CHANCES[at], time=float(at))
    other.load_state_dict(stored(one.state_dict()))
    for scores in (one, other):
        for at in range(250, 600):
            scores.add(LATE[at], CHANCES[at], time=float(at))
        scores.flush()
    assert shown(other) == shown(one)
    assert one.records == 600


def test_predictions_that_wait_for_their_labels_are_found_again():
    one, other = several(pending=100), several(pending=100)
    for at in range(150):
        key = (f"user {at}".encode(), at) if at % 2 else at
        one.predicted(CHANCES[at], key, time=float(at))
    one.predicted(CHANCES[:5], "a mini-batch", time=200.0)
    one.labelled(148, LATE[148], time=160.0)
    other.load_state_dict(stored(one.state_dict()))
    for scores in (one, other):
        scores.labelled(0, LATE[0])  # forgotten
        scores.labelled((b"user 99", 99), LATE[99], time=200.0)
        scores.labelled("a mini-batch", LATE[:5], time=210.0)
    assert shown(other) == shown(one)
    assert other.lateness == one.lateness > 0
    assert (other.records, other.unmatched) == (7, 1)


@pytest.mark.parametrize("baselines", [["majority"], ["last label"], []])
def test_labels_of_any_kind_stay_what_they_are(baselines):
    made = [
        ta.Prequential(
            [metrics.MacroF1(), metrics.F1(pos_val="spam")],
            window=20,
            baselines=baselines,
        )
        for _ in range(2)
    ]
    one, other = made
    feed(one, WORDS, SAID, 0, 300)
    other.load_state_dict(stored(one.state_dict()))
    for scores in made:
        feed(scores, WORDS, SAID, 300, 600)
    assert shown(other) == shown(one)


def test_records_that_were_not_predicted_are_no_trouble():
    one, other = several(window=30), several(window=30)
    for scores in (one, other):
        scores.add(LATE[:40], None)
    feed(one, LATE, CHANCES, 40, 90)
    other.load_state_dict(stored(one.state_dict()))
    for scores in (one, other):
        scores.add(LATE[90:100], None)
        feed(scores, LATE, CHANCES, 100, 200)
    assert shown(other) == shown(one)


def test_a_state_is_a_copy():
    one, other = several(window=30), several(window=30)
    feed(one, LATE, CHANCES, 0, 300)
    state, expected = one.state_dict(), shown(one)
    feed(one, LATE, CHANCES, 300, 600)
    other.load_state_dict(state)
    assert shown(other) == expected
    feed(other, LATE, CHANCES, 300, 600)
    assert shown(other) == shown(one)
    again = several(window=30)
    again.load_state_dict(state)
    assert shown(again) == expected


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"window": 20}, r"window=10 \(here 20\)"),
        ({"fading": 0.9}, r"fading=None \(here 0\.9\)"),
        ({"delay": 4}, r"delay=None \(here \(4\.0, False\)\)"),
        ({"baselines": []}, "baselines="),
        ({"pending": 7}, "pending=100000 "),
        ({"metrics": metrics.F1()}, r"metrics=\{'Accuracy'"),
        ({"metrics": metrics.Accuracy(), "points": 9}, "points=1000"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_state_of_other_parameters_is_refused(options, said):
    one = ta.Prequential(metrics.Accuracy(), window=10)
    arguments = {"metrics": metrics.Accuracy(), "window": 10, **options}
    other = ta.Prequential(**arguments)
    with pytest.raises(CheckpointError, match=said):
        other.load_state_dict(one.state_dict())


def test_a_metric_of_other_parameters_is_refused():
    one = ta.Prequential({"f": metrics.FBeta(beta=2.0)})
    other = ta.Prequential({"f": metrics.FBeta(beta=0.5)})
    with pytest.raises(CheckpointError, match=r"'beta': 2\.0.*'beta': 0.5"):
        other.load_state_dict(one.state_dict())


def test_a_broken_state_changes_nothing():
    scores = several(window=10)
    feed(scores, LATE, CHANCES, 0, 100)
    before = shown(scores)
    for name in scores.state_dict()["state"]["values"]["attributes"]:
        state = copy.deepcopy(scores.state_dict())
        state["state"]["values"]["attributes"][name] = {"class": "Strange"}
        with pytest.raises(CheckpointError):
            scores.load_state_dict(state)
        assert shown(scores) == before
    for nonsense in (None, {}, BinaryPrequential().state_dict()):
        with pytest.raises(CheckpointError):
            scores.load_state_dict(nonsense)


class Own(metrics.base.MultiClassMetric):
    """A metric of a user's, with state of its own."""

    def __init__(self, thing=None):
        super().__init__()
        self.thing = thing
        self.right = 0
        self.of: dict[str, list[int]] = {}

    def update(self, y_true, y_pred, w=1.0):
        self.right += y_true == y_pred
        self.of.setdefault(str(y_true), []).append(int(y_true == y_pred))

    def get(self):
        return self.right + sum(map(len, self.of.values()))


def test_a_custom_metric_with_plain_state_goes_on():
    one, other = ta.Prequential(Own()), ta.Prequential(Own())
    feed(one, LATE, CHANCES > 0.5, 0, 100)
    other.load_state_dict(stored(one.state_dict()))
    for scores in (one, other):
        feed(scores, LATE, CHANCES > 0.5, 100, 200)
    assert shown(other) == shown(one)


def test_a_metric_that_cannot_be_saved_is_refused_by_name():
    scores = ta.Prequential({"mine": Own(thing=object())})
    with pytest.raises(CheckpointError, match=r"metric 'mine'\.thing is a .*object"):
        scores.state_dict()


def test_a_key_that_cannot_be_saved_is_refused():
    scores = several()
    scores.predicted(CHANCES[0], frozenset([1]))
    with pytest.raises(CheckpointError, match=r"key of .* is a builtins.frozenset"):
        scores.state_dict()


def test_a_large_window_is_saved_quickly():
    scores = several(window=10_000)
    many = np.random.default_rng(0).random(12_000)
    scores.add(many < 0.3, np.clip(many, 0.01, 0.99))
    start = time.perf_counter()
    state = scores.state_dict()
    assert time.perf_counter() - start < 1.0  # 10 ms on an idle machine
    size = sum(each.nbytes for each in encode(Checkpoint({}, scores={"s": state})))
    assert size < 1_000_000  # 9 columns of 10,000 records
    other = several(window=10_000)
    other.load_state_dict(stored(state))
    assert shown(other) == shown(scores)


# ---- binary -------------------------------------------------------------------------


@pytest.mark.parametrize("done", [0, 1, 5, 9])
def test_binary_scores_go_on_where_they_were(done):
    def run(scores, first, last):
        for index in range(first, last):
            rows = slice(index * 60, (index + 1) * 60)
            scores.expect(LATE[rows])
            if index != 3:  # never comes back
                scores.add(index, CHANCES[rows])

    one, other = BinaryPrequential(window=100), BinaryPrequential(window=100)
    run(one, 0, done)
    run(other, 0, 2)
    other.load_state_dict(stored(one.state_dict()))
    for scores in (one, other):
        run(scores, done, 10)
    assert other.overall() == one.overall()
    assert other.recent() == one.recent()
    assert other.records == one.records == 540
    assert other.curves().equals(one.curves())


def test_binary_scores_of_another_window_are_refused():
    one = BinaryPrequential(window=100)
    one.expect(LATE[:10])
    with pytest.raises(CheckpointError, match=r"window=100 \(here 10000\)"):
        BinaryPrequential().load_state_dict(one.state_dict())
    other = BinaryPrequential(window=100)
    state = copy.deepcopy(one.state_dict())
    state["state"]["target"] = LATE[:5]
    with pytest.raises(CheckpointError, match="has 5 labels, 10 predictions"):
        other.load_state_dict(state)
    del state["state"]["target"]
    with pytest.raises(CheckpointError, match="not that of a BinaryPrequential"):
        other.load_state_dict(state)
    assert other.overall().records == 0
