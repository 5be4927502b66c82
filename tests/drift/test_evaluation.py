from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import stable

from tensair_dask import drift
from tensair_dask.drift import synthetic
from tensair_dask.errors import ConfigurationError


class AtOnes(drift.Detector):
    """Raises an alarm at every 1: alarms are where a test wants them."""

    name = "atones"
    bytes = 0

    def _observe(self, value):
        return value == 1

    def _restart(self):
        pass


def stream(length, alarms, changes):
    values = np.zeros(length)
    values[alarms] = 1
    return values, changes


def test_the_first_alarm_after_a_change_finds_it_and_all_others_are_false():
    result = drift.evaluate(AtOnes(), [stream(100, [5, 40, 43, 90], [40, 60])])
    (run,) = result.runs
    assert run.alarms == (5, 40, 43, 90)
    assert run.delays == (1, 31)
    assert run.missed == 0
    assert run.false_alarms == 2
    assert (result.precision, result.recall) == (0.5, 1)
    assert result.f1 == pytest.approx(2 / 3)
    assert (result.delay_mean, result.delay_median) == (16, 16)


def test_an_alarm_beyond_the_horizon_is_false_and_the_change_is_missed():
    one = stream(100, [59, 90], [50, 80])
    assert drift.evaluate(AtOnes(), [one], horizon=10).runs[0].delays == (10,)
    result = drift.evaluate(AtOnes(), [one], horizon=9)
    assert (result.found, result.missed, result.false_alarms) == (0, 2, 2)
    assert math.isnan(result.delay_mean)
    assert result.f1 == 0


def test_an_alarm_after_the_next_change_does_not_find_the_one_before():
    result = drift.evaluate(AtOnes(), [stream(100, [70], [50, 60])])
    assert result.runs[0].delays == (11,)
    assert result.missed == 1


def test_scores_are_of_all_streams_together():
    result = drift.evaluate(
        AtOnes(), [stream(50, [20], [20]), stream(50, [10, 30], [25])]
    )
    assert result.found == 2
    assert result.false_alarms_per_run == 0.5
    assert result.precision == pytest.approx(2 / 3)
    assert result.delay_mean == 3.5
    assert repr(result) == (
        "AtOnes on 2 streams: found 2 of 2 changes, delay 3.5 (median 3.5), 0.50 false "
        "alarms a stream, precision 0.667, recall 1.000, F1 0.800"
    )


def test_without_changes_only_false_alarms_can_be_counted():
    result = drift.evaluate(AtOnes(), [stream(50, [20], [])])
    assert result.false_alarms == 1
    assert math.isnan(result.recall)
    quiet = drift.evaluate(AtOnes(), [stream(50, [], [])])
    assert math.isnan(quiet.precision)
    assert math.isnan(quiet.f1)


def test_every_stream_gets_a_fresh_detector_and_the_given_one_stays_as_it_is():
    detector = drift.OPTWIN()
    detector.update(5.0)
    one = synthetic.generate("sudden, binary", 1)
    result = drift.evaluate(detector, one * 2)
    assert result.runs[0] == result.runs[1]
    assert result.runs[0] == drift.evaluate(drift.OPTWIN(), one).runs[0]
    assert detector.observed == 1


@pytest.mark.parametrize("changes", [[60, 40], [40, 40], [100], [-1]])
def test_change_points_outside_or_out_of_order_are_refused(changes):
    with pytest.raises(ConfigurationError, match="Stream 0 has the change points"):
        drift.evaluate(AtOnes(), [stream(100, [], changes)])


def test_nothing_to_evaluate_on_is_refused():
    with pytest.raises(ConfigurationError, match="no streams"):
        drift.evaluate(AtOnes(), [])
    with pytest.raises(ConfigurationError, match="horizon=0"):
        drift.evaluate(AtOnes(), [stream(10, [], [])], horizon=0)


ONE = ([0, 0, 1], [1])


@pytest.mark.parametrize(
    "given",
    [
        *(5, None),
        *(ONE, [np.zeros(10)], [np.zeros(2)], [np.zeros((2, 5))], [ONE[0]]),
        *([([1, 2, 3], 1)], [([1, 2, 3], None)], [(7, [1])], [("123", [1])]),
        *([([1, 2, 3], [1.7])], [([1, 2, 3], [1.0])], [([1, 2, 3], [True])]),
        *([([1, 2, 3], ["1"])], [([1, 2, 3], [1], 4)]),
    ],
    ids=stable,
)
def test_what_are_no_streams_is_refused_with_what_they_look_like(given):
    with pytest.raises(ConfigurationError, match=r"pair.*\[\(losses, \[1000\]\)\]"):
        drift.evaluate(AtOnes(), given)


def test_a_stream_that_is_no_pair_is_named_by_its_number():
    with pytest.raises(ConfigurationError, match=r"^Stream 1, \[0, 1, 0\], is not"):
        drift.evaluate(AtOnes(), [ONE, [0, 1, 0]])


@pytest.mark.parametrize(
    "given",
    [
        iter([ONE]),
        [(iter(ONE[0]), iter(ONE[1]))],
        [(np.array(ONE[0]), np.array(ONE[1]))],
        [(torch.tensor(ONE[0]), (np.int32(1),))],
        [(pd.Series(ONE[0]), pd.Series(ONE[1]))],
    ],
    ids=stable,
)
def test_values_and_change_points_may_be_anything_that_has_them_in_order(given):
    (run,) = drift.evaluate(AtOnes(), given).runs
    assert (run.alarms, run.delays) == ((2,), (2,))


def test_a_detector_may_be_given_by_its_name():
    one = synthetic.generate("sudden, binary", 1)
    assert drift.evaluate("optwin", one) == drift.evaluate(drift.OPTWIN(), one)
    with pytest.raises(ConfigurationError, match="There is no detector 'opt'"):
        drift.evaluate("opt", one)


@pytest.mark.parametrize("given", [drift.OPTWIN, None, 3, [drift.OPTWIN()]], ids=str)
def test_what_is_no_detector_is_refused(given):
    with pytest.raises(ConfigurationError, match=r"detector=.* give .*OPTWIN\(\)"):
        drift.evaluate(given, [ONE])


@pytest.mark.parametrize("horizon", ["a", 1.5, True, -1])
def test_a_horizon_that_is_no_number_of_values_is_refused(horizon):
    with pytest.raises(ConfigurationError, match=r"horizon=.* a whole number from 1"):
        drift.evaluate(AtOnes(), [ONE], horizon=horizon)
    assert drift.evaluate(AtOnes(), [ONE], horizon=np.int64(2)).found == 1


@pytest.mark.parametrize("kind", synthetic.KINDS)
def test_streams_are_labelled_where_they_change(kind):
    found = synthetic.generate(kind, runs=20)
    assert len(found) == 20
    for one in found:
        values, changes = one
        assert changes == (1000,)
        assert len(values) == (1999 if kind.startswith("sudden") else 2999)
        assert values.min() >= 0
        assert values.max() <= 1
        assert set(values) == {0, 1} or "non-binary" in kind
    values = np.stack([one.values for one in found])
    assert values[:, :1000].mean() == pytest.approx(0.2, abs=0.01)
    assert values[:, -900:].mean() == pytest.approx(0.8, abs=0.01)
    middle = 0.8 if kind.startswith("sudden") else 0.5
    assert values[:, 1450:1550].mean() == pytest.approx(middle, abs=0.03)


def test_streams_come_from_their_seeds():
    (one, two), (again,) = (
        synthetic.generate("gradual, binary", 2, seed=4),
        synthetic.generate("gradual, binary", 1, seed=5),
    )
    assert (two.values == again.values).all()
    assert not (one.values == two.values).all()


@pytest.mark.parametrize(
    "kind", [each for each in synthetic.STATIONARY if "58" in each]
)
def test_stationary_losses_have_the_mean_and_the_deviation_of_their_name(kind):
    values = np.concatenate([one.values for one in synthetic.stationary(kind, 30)])
    assert values.mean() == pytest.approx(58, rel=0.02)
    assert values.std() == pytest.approx(29, rel=0.03)


def test_an_unknown_kind_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigurationError, match="'gradual, binary'"):
        synthetic.generate("sudden")
