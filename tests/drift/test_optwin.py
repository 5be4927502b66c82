from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from scipy import stats

from tensair_dask.drift import OPTWIN, evaluate, optwin_cuts, synthetic


class Naive:
    """OPTWIN as its docstring tells it, with everything computed anew at each value."""

    def __init__(self, window, minimum=30, confidence=0.99, reference=False, f=False):
        self.window, self.minimum, self.reference = window, minimum, reference
        self.f = f or reference
        self.p = confidence**0.25
        self.p_warning = (2 * confidence - 1) ** 0.25
        self.rows = optwin_cuts.cuts_for(confidence, 0.5)
        self.rows.grow(window)
        self.values = []

    def update(self, value):
        self.values = [*self.values, value][-self.window :]
        size = len(self.values)
        if size < self.minimum:
            return "nothing"
        cut = self.rows.cut[size]
        old, new = np.array(self.values[:cut]), np.array(self.values[cut:])
        verdict = (self.published if self.reference else self.welch)(old, new, size)
        if verdict in ("worse", "better"):
            goes_on = verdict == "better" and not self.reference
            self.values = new.tolist() if goes_on else []
        return verdict

    def welch(self, old, new, size):
        ratio = new.var(ddof=1) / old.var(ddof=1) if self.f else 0
        if new.mean() > old.mean() and ratio > self.rows.phi[size]:
            return "worse"
        a, b = old.var(ddof=1) / len(old), new.var(ddof=1) / len(new)
        t = (new.mean() - old.mean()) / math.sqrt(a + b) if a + b else 0.0
        if abs(t) < 2:
            return "nothing"  # at any degrees of freedom
        test = stats.ttest_ind(new, old, equal_var=False)
        assert t == pytest.approx(test.statistic, rel=1e-6)
        p = self.p if t > 0 else 1 - (1 - self.p) / 10
        if abs(t) > stats.t.ppf(p, test.df):
            return "worse" if t > 0 else "better"
        return "warning" if t > stats.t.ppf(self.p_warning, test.df) else "nothing"

    def published(self, old, new, size):
        a, b = old.std(ddof=1) + 1e-6, new.std(ddof=1) + 1e-6
        t = (new.mean() - old.mean()) / math.sqrt(a / len(old) + b / len(new))
        if t > self.rows.t[size]:
            return "worse"
        if (b / a) ** 2 > self.rows.phi[size]:
            return "worse" if new.mean() > old.mean() else "better"
        if t < 2:
            return "nothing"
        near = t > stats.t.ppf(self.p_warning, self.rows.df[size])
        return "warning" if near else "nothing"


def said(detector, value):
    if detector.update(value):
        return "worse"
    if detector.observed == 0:
        return "better"
    return "warning" if detector.warning_detected else "nothing"


def wandering(random, length):
    """Normal values whose level and spread change now and then."""
    pieces = []
    while sum(map(len, pieces)) < length:
        level, spread = random.normal(0, 0.7), random.uniform(0.5, 1.5)
        pieces.append(random.normal(level, spread, random.integers(20, 600)))
    return np.concatenate(pieces)[:length]


DISTRIBUTIONS = {
    "normal": lambda random, n: random.normal(0, 1, n),
    "wandering": wandering,
    "gamma": lambda random, n: random.gamma(0.5, 2, n),
    "binary": lambda random, n: (random.random(n) < 0.3).astype(float),
}


@pytest.mark.parametrize("offset", [0.0, 1e6])
@pytest.mark.parametrize("draw", DISTRIBUTIONS.values(), ids=DISTRIBUTIONS)
@pytest.mark.parametrize(
    ("window", "options", "naive"),
    [
        (60, {}, {}),
        (250, {}, {}),
        (25_000, {}, {}),
        (250, {"variance_test": True}, {"f": True}),
        (60, {"reference": True}, {"reference": True}),
        (250, {"reference": True}, {"reference": True}),
    ],
)
def test_it_says_what_a_naive_one_says(window, options, naive, draw, offset):
    for seed in range(2):
        values = draw(np.random.default_rng(seed), 900) + offset
        detector, slow = OPTWIN(window=window, **options), Naive(window, **naive)
        for place, value in enumerate(values.tolist()):
            assert said(detector, value) == slow.update(value), place


def test_a_window_that_has_been_full_for_long_loses_and_doubles_no_value():
    random = np.random.default_rng(0)
    values = random.normal(1e6, 1, 7000).tolist()
    # At this confidence nothing empties the window.
    detector = OPTWIN(confidence=1 - 1e-9, window=1500)
    for place, value in enumerate(values, start=1):
        detector.update(value)
        if place % 613 == 0:
            kept = np.array(values[max(0, place - 1500) : place])
            parts = detector._parts()
            old, new = kept[: parts.older], kept[parts.older :]
            assert len(new) == parts.newer
            assert parts.before == pytest.approx(old.mean(), rel=1e-14)
            assert parts.after == pytest.approx(new.mean(), rel=1e-14)
            assert parts.var_before == pytest.approx(old.var(ddof=1), rel=1e-9)
            assert parts.var_after == pytest.approx(new.var(ddof=1), rel=1e-9)
    assert detector.size == 1500


def test_sums_recover_from_values_of_another_size():
    random = np.random.default_rng(0)
    detector = OPTWIN(confidence=1 - 1e-12, window=1500, direction="both")
    values = random.normal(0, 1e-3, 6000)
    values[5] = 1e9
    for value in values.tolist():
        detector.update(value)
    assert detector.size == 1500
    expected = values[-1500:][: detector._parts().older].var(ddof=1)
    assert detector._parts().var_before == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("value", [0.1, 1e6 + 0.1, -1e-300, 0.0])
@pytest.mark.parametrize("reference", [False, True])
def test_a_constant_stream_is_no_drift(value, reference):
    detector = OPTWIN(window=200, reference=reference)
    assert not any(detector.update(value) for _ in range(3000))


def test_a_step_of_what_never_varied_is_found_within_a_few_values():
    detector = OPTWIN()
    for _ in range(2000):
        detector.update(0.1)
    found = [place for place in range(30) if detector.update(0.3)]
    assert found[0] <= 9
    assert detector.shift.magnitude == math.inf


@pytest.mark.parametrize(("scale", "offset"), [(1024.0, 0.0), (2.0**-30, 0.0), (1, 64)])
def test_alarms_do_not_depend_on_the_unit(scale, offset):
    values = synthetic.generate("sudden, binary", 3)
    moved = [(each.values * scale + offset, each.change_points) for each in values]
    assert evaluate(OPTWIN(), moved) == evaluate(OPTWIN(), values)


STATIONARY = [kind for kind in synthetic.STATIONARY if "58" in kind]


@pytest.mark.parametrize("kind", STATIONARY)
def test_stationary_losses_of_any_unit_and_skew_raise_few_alarms(kind):
    result = evaluate(OPTWIN(), synthetic.stationary(kind, 12))
    assert result.false_alarms_per_run <= 1.5


def test_the_published_arithmetic_depends_on_the_unit():
    losses = synthetic.stationary("loss 58, sd 29", 12)
    assert evaluate(OPTWIN(reference=True), losses).false_alarms_per_run > 20
    scaled = [(each.values / 58, ()) for each in losses]
    assert evaluate(OPTWIN(reference=True), scaled).false_alarms_per_run < 1.5


def test_the_f_test_is_what_alarms_on_skewed_losses():
    losses = synthetic.stationary("loss 58, sd 29, lognormal", 12)
    without = evaluate(OPTWIN(), losses).false_alarms_per_run
    with_it = evaluate(OPTWIN(variance_test=True), losses).false_alarms_per_run
    assert with_it > without + 1


def test_the_reference_reproduces_the_published_scores_on_sudden_binary_errors():
    result = evaluate(OPTWIN(reference=True), synthetic.generate("sudden, binary", 30))
    # Published: 0.952, 28.2, 0.10.
    assert result.recall == 1
    assert result.f1 >= 0.90
    assert result.delay_mean <= 35
    assert result.false_alarms_per_run <= 0.3


@pytest.mark.parametrize(
    ("kind", "f1", "delay", "false_alarms"),
    [
        ("sudden, non-binary", 0.912, 1.9, 0.03),
        ("gradual, binary", 0.638, 405.9, 1.13),
        ("gradual, non-binary", 0.526, 236.4, 1.80),
    ],
)
def test_the_reference_on_the_other_kinds_of_streams(kind, f1, delay, false_alarms):
    result = evaluate(OPTWIN(reference=True), synthetic.generate(kind, 30))
    assert result.f1 == pytest.approx(f1, abs=0.001)
    assert result.delay_mean == pytest.approx(delay, abs=0.1)
    assert result.false_alarms_per_run == pytest.approx(false_alarms, abs=0.01)


def test_what_a_model_has_learned_does_not_hide_a_later_rise():
    random = np.random.default_rng(0)
    rate = np.repeat([0.8, 0.2, 0.5], [500, 500, 999])
    labelled = [
        ((random.random(len(rate)) < rate).astype(float), [1000]) for _ in range(12)
    ]
    assert evaluate(OPTWIN(), labelled).recall == 1
    assert evaluate(OPTWIN(reference=True), labelled).recall < 0.3


def test_a_higher_confidence_raises_fewer_alarms():
    labelled = synthetic.generate("sudden, binary", 30)
    strict = evaluate(OPTWIN(confidence=0.998), labelled)
    assert strict.f1 >= 0.9
    assert strict.delay_mean <= 35
    assert strict.false_alarms < evaluate(OPTWIN(), labelled).false_alarms


def test_its_state_is_the_window():
    detector = OPTWIN()
    assert 200_000 <= len(pickle.dumps(detector)) <= detector.bytes + 2048 <= 204_000
