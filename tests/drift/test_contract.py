"""The contract that every public detector keeps."""

from __future__ import annotations

import copy
import functools
import inspect
import math
import pickle
import re
import sys
from dataclasses import dataclass
from decimal import Decimal

import numpy as np
import pytest
import torch

from tensair_dask import drift
from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.format import decode, encode
from tensair_dask.drift import synthetic
from tensair_dask.errors import (
    CheckpointError,
    ConfigurationError,
    DriftError,
    TensairError,
)

BINARY = "sudden, binary"
GRADUAL = "gradual, non-binary"


@dataclass(frozen=True)
class Known:
    # Alarms of the detector as it comes, in the first streams of each kind.
    binary: list[list[int]]
    gradual: list[list[int]]
    # An option, and a value that is not its default.
    other: tuple[str, object]
    warns: bool = False


KNOWN = {
    drift.OPTWIN: Known(
        [[1020, 1469, 1993], [276, 1022], [1018, 1524]],
        [
            [1095, 1288, 1440, 1556, 1759, 1829, 1992],
            [478, 1104, 1260, 1470, 1516, 1683, 1801, 1949, 2552],
            [1090, 1264, 1437, 1543, 1700, 1822, 1947, 2020],
        ],
        ("confidence", 0.95),
        warns=True,
    ),
    drift.ADWIN: Known(
        [[1055], [1055], [1055]],
        [[1215, 1631, 2015], [1215, 1631, 2015], [1247, 1631, 2015]],
        ("delta", 0.5),
    ),
    drift.PageHinkley: Known(
        [[1012], [1013], [1017]],
        [[1095, 1321, 1766], [1110, 1553, 1990], [1144, 1570, 1999]],
        ("threshold", 3.0),
    ),
    drift.DDM: Known(
        [[1037], [279, 1041], [1184]],
        [[1324, 1983], [1341, 1811], [1373, 1965]],
        ("minimum", 7),
        warns=True,
    ),
    # The slow one: two streams of a kind.
    drift.KSWIN: Known([[1024], [1018]], [[1103], []], ("seed", 5)),
}

# What no parameter of a type takes; every parameter of every detector is tried.
WRONG = {
    "float": ["x", None, True, 1j, [0.5], np.array([0.5, 0.6]), math.nan, Decimal("1")],
    "int": ["x", None, True, 30.0, 100.5, np.float64(30), [30], -1],
    "bool": ["yes", 1, 0.0, None, [True]],
    "bool | None": ["yes", 1, 0.0, [True]],
    "Direction": ["down", None, ["up"], 1],
}


def public_detectors():
    """Those of the package: a new one is held to all of this as it is."""
    public = [getattr(drift, name) for name in drift.__all__]
    return [
        one
        for one in public
        if inspect.isclass(one)
        and issubclass(one, drift.Detector)
        and one is not drift.Detector
    ]


KINDS = public_detectors()
TWO_SIDED = [kind for kind in KINDS if "both" in kind.directions]
FROM_RIVER = [kind for kind in KINDS if hasattr(inspect.getmodule(kind), "river")]
every_detector = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
every_parameter = pytest.mark.parametrize(
    ("kind", "parameter"),
    [(kind, each) for kind in KINDS for each in inspect.signature(kind).parameters],
    ids=lambda one: one if isinstance(one, str) else one.name,
)


def alarms(detector, values):
    return [place for place, value in enumerate(values) if detector.update(value)]


def errors_that(fall_or_rise, runs=6):
    # The change is at 1000 in the streams; 500 values before it are enough here.
    found = [values[500:1150] for values, _ in synthetic.generate(BINARY, runs)]
    return [1 - values for values in found] if fall_or_rise == "fall" else found


def test_every_public_detector_has_its_alarms_pinned():
    assert set(KNOWN) == set(KINDS)


@every_detector
def test_alarms_come_at_exactly_these_values(kind):
    known = KNOWN[kind]
    for name, expected in ((BINARY, known.binary), (GRADUAL, known.gradual)):
        labelled = synthetic.generate(name, len(expected))
        result = drift.evaluate(kind(), labelled)
        assert [list(run.alarms) for run in result.runs] == expected


@every_detector
def test_a_stationary_stream_is_quiet(kind):
    result = drift.evaluate(kind(), synthetic.stationary("errors 0.2", 5, length=1500))
    assert result.false_alarms_per_run <= 0.4


@every_detector
def test_an_abrupt_rise_is_found(kind):
    pairs = [(values[:1250], [1000]) for values, _ in synthetic.generate(BINARY, 5)]
    assert drift.evaluate(kind(), pairs).recall == 1


@every_detector
def test_a_fall_is_no_drift(kind):
    for values in errors_that("fall"):
        found = alarms(kind(), values[:560])
        assert not [place for place in found if place >= 500]


@pytest.mark.parametrize("kind", TWO_SIDED, ids=lambda kind: kind.name)
def test_a_fall_is_a_drift_in_both_directions(kind):
    for values in errors_that("fall"):
        detector = kind(direction="both")
        found = alarms(detector, values[:560])
        assert len([place for place in found if place >= 500]) == 1
        assert detector.shift.after < detector.shift.before
        assert detector.shift.magnitude < 0


@every_parameter
def test_an_argument_of_the_wrong_type_is_refused(kind, parameter):
    annotation = inspect.signature(kind).parameters[parameter].annotation
    for value in WRONG[annotation]:
        for build in (kind, functools.partial(drift.make, kind.name)):
            with pytest.raises(ConfigurationError) as caught:
                build(**{parameter: value})
            assert str(caught.value).startswith(f"{parameter}=")
            assert re.search("is not allowed.*; give ", str(caught.value))


@every_parameter
def test_numbers_of_numpy_are_taken_for_those_of_python(kind, parameter):
    default = inspect.signature(kind).parameters[parameter].default
    for of_numpy in {bool: [np.bool_], int: [np.int32, np.uint64]}.get(
        type(default), [np.float64]
    ):
        if isinstance(default, (int, float)):
            detector = kind(**{parameter: of_numpy(default)})
            assert pickle.dumps(detector) == pickle.dumps(kind())


@every_detector
@pytest.mark.parametrize("place", [17, 700, 1010])
def test_a_pickle_goes_on_where_the_stream_was(kind, place):
    (values, _), *_ = synthetic.generate(BINARY, 1, seed=1)
    values = values[:1250]
    original = kind()
    before = alarms(original, values[:place])
    copied = pickle.loads(pickle.dumps(original))
    assert copied.observed == original.observed
    assert copied.shift == original.shift
    after = [place + each for each in alarms(copied, values[place:])]
    assert after == [place + each for each in alarms(original, values[place:])]
    assert before + after == alarms(kind(), values)


@every_detector
def test_a_reset_detector_is_as_new(kind):
    values = errors_that("rise", 1)[0]
    detector = kind()
    expected = alarms(detector, values)
    detector.update(values[0])
    detector.reset()
    assert detector.observed == 0
    assert detector.shift is None
    assert not detector.drift_detected
    assert not detector.warning_detected
    assert alarms(detector, values) == expected


@every_detector
def test_after_a_drift_it_starts_afresh(kind):
    values = errors_that("rise", 1)[0].tolist()
    detector, place = kind(), 0
    while not detector.update(values[place]):
        place += 1
        assert detector.observed == place
    assert detector.drift_detected
    assert detector.observed == 0
    rest = values[place + 1 :]
    detector.update(rest[0])
    assert not detector.drift_detected
    assert detector.observed == 1
    assert alarms(detector, rest[1:]) == [
        each - 1 for each in alarms(kind(), rest) if each
    ]


@pytest.mark.parametrize("kind", [drift.OPTWIN, drift.ADWIN, drift.KSWIN])
def test_values_are_counted_from_a_fall_that_makes_it_forget(kind):
    values = np.repeat([0.8, 0.2], 500) + np.random.default_rng(0).normal(0, 0.1, 1000)
    detector = kind()
    assert alarms(detector, values) == []
    assert 0 < detector.observed < 500


@every_detector
def test_the_shift_describes_what_has_changed(kind):
    (values, _), *_ = synthetic.generate(BINARY, 1)
    detector = kind()
    assert detector.shift is None
    for value in values[:1000]:
        detector.update(value)
    place = 1000
    while not detector.update(values[place]):
        place += 1
    shift = detector.shift
    assert shift.before == pytest.approx(0.2, abs=0.05)
    assert 0.35 < shift.after <= 0.95
    assert shift.spread == pytest.approx(0.4, abs=0.05)
    assert shift.magnitude == (shift.after - shift.before) / shift.spread
    detector.update(0.0)
    assert detector.shift is shift


@every_detector
@pytest.mark.parametrize(
    "value",
    [
        *(math.nan, math.inf, -math.inf, np.float64("nan"), torch.tensor(math.nan)),
        *(None, "0.5", b"1", 1j, 10**400),
        *([0.5], np.array([0.1, 0.2]), torch.tensor([0.1, 0.2])),
    ],
    ids=str,
)
def test_what_is_no_finite_number_is_refused_and_changes_nothing(kind, value):
    values = errors_that("rise", 1)[0]
    detector = kind()
    for each in values[:505]:
        detector.update(each)
    before = pickle.dumps(detector)
    with pytest.raises(DriftError, match="not a finite number") as caught:
        detector.update(value)
    assert isinstance(caught.value, (TensairError, ValueError))
    assert pickle.dumps(detector) == before


@every_detector
@pytest.mark.parametrize(
    "value",
    [
        *(1, True, 0.5, Decimal("0.5")),
        *(np.float32(0.5), np.int64(1), np.bool_(True), np.array(0.5)),
        *(torch.tensor(0.5), torch.tensor([0.5])),
    ],
    ids=repr,
)
def test_all_kinds_of_numbers_are_taken(kind, value):
    detector = kind()
    assert detector.update(value) is False
    assert detector.observed == 1


@every_detector
def test_the_state_is_bounded(kind):
    detector = kind()
    sizes = []
    for seed in range(4):
        values = np.random.default_rng(seed).uniform(0, 1, 700)
        for value in values:
            detector.update(value)
        sizes.append(len(pickle.dumps(detector)))
    # Names of classes and attributes come on top.
    assert max(sizes) <= detector.bytes + 2048


@every_detector
def test_a_warning_comes_before_an_alarm_or_never(kind):
    warned = []
    for values in errors_that("rise"):
        detector = kind()
        for place, value in enumerate(values):
            if detector.update(value):
                assert not detector.warning_detected
                break
            if detector.warning_detected:
                warned.append(place)
    assert bool(warned) is KNOWN[kind].warns


@every_detector
def test_copies_do_not_share_their_state(kind):
    values = errors_that("rise", 1)[0]
    detector = kind()
    alarms(detector, values[:300])
    copied = copy.deepcopy(detector)
    alarms(copied, values[300:])
    assert detector.observed == 300
    assert [300 + each for each in alarms(detector, values[300:])] == [
        each for each in alarms(kind(), values) if each >= 300
    ]


@every_detector
def test_a_detector_is_built_by_name(kind):
    for name in (kind.name, kind.name.upper()):
        assert type(drift.make(name)) is kind


@every_detector
def test_it_says_what_it_is(kind):
    detector = kind()
    detector.update(0.0)
    assert repr(detector) == (f"<{kind.__name__} observed=1, drift_detected=False>")


@pytest.mark.parametrize("kind", FROM_RIVER, ids=lambda kind: kind.name)
def test_the_error_for_a_missing_river_has_the_line_to_type(kind, monkeypatch):
    monkeypatch.setitem(sys.modules, "river.drift", None)
    with pytest.raises(ConfigurationError) as caught:
        kind()
    assert 'pip install "tensair-dask[drift]"' in str(caught.value)


def stored(state):
    """Put a state into a file as a checkpoint does, and read it back."""
    return decode(b"".join(encode(Checkpoint({}, adaptation=state)))).adaptation


def reported(detector, values):
    return [
        (detector.update(value), detector.warning_detected, detector.observed)
        for value in values
    ]


@every_detector
@pytest.mark.parametrize("place", [0, 17, 700, 1010])
def test_a_state_goes_on_where_the_stream_was(kind, place):
    (values, _), *_ = synthetic.generate(BINARY, 1, seed=1)
    values = values[:1250]
    original = kind()
    alarms(original, values[:place])
    state = stored(original.state_dict())
    # Into a new one, and into one that has seen something else.
    used = kind()
    alarms(used, 1 - values[:300])
    for other in (kind(), used):
        other.load_state_dict(state)
        goes_on = copy.deepcopy(original)
        assert other.shift == goes_on.shift
        assert other.observed == goes_on.observed
        assert reported(other, values[place:]) == reported(goes_on, values[place:])
        assert other.shift == goes_on.shift


@every_detector
def test_a_state_is_a_copy(kind):
    values = errors_that("rise", 1)[0]
    detector, other = kind(), kind()
    alarms(detector, values[:300])
    state = detector.state_dict()
    alarms(detector, values[300:])
    other.load_state_dict(state)
    alarms(other, values[300:])
    again = kind()
    again.load_state_dict(state)
    assert again.observed == 300
    assert alarms(again, values[300:]) == [
        place - 300 for place in alarms(kind(), values) if place >= 300
    ]


@every_detector
def test_a_state_of_another_detector_is_refused(kind):
    other = drift.ADWIN if kind is not drift.ADWIN else drift.OPTWIN
    values = errors_that("rise", 1)[0]
    detector = kind()
    alarms(detector, values[:505])
    before = pickle.dumps(detector)
    with pytest.raises(CheckpointError, match=rf"of an {other.__name__}, and this is"):
        detector.load_state_dict(other().state_dict())
    for nonsense in (None, {}, [], {"class": kind.__name__}):
        with pytest.raises(CheckpointError, match="was given a state that is none"):
            detector.load_state_dict(nonsense)
    assert pickle.dumps(detector) == before


@every_detector
def test_a_state_of_other_parameters_is_refused(kind):
    name, value = KNOWN[kind].other
    state = kind(**{name: value}).state_dict()
    with pytest.raises(CheckpointError, match=rf"with {name}={value} \(here .*\);"):
        kind().load_state_dict(state)


@every_detector
def test_a_state_that_is_broken_changes_nothing(kind):
    values = errors_that("rise", 1)[0]
    detector = kind()
    alarms(detector, values[:505])
    before = pickle.dumps(detector)
    attributes = detector.state_dict()["state"]["values"]["attributes"]
    for name in attributes:
        state = copy.deepcopy(detector.state_dict())
        state["state"]["values"]["attributes"][name] = {"class": "Strange"}
        with pytest.raises(CheckpointError):
            detector.load_state_dict(state)
        assert pickle.dumps(detector) == before
