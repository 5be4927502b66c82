from __future__ import annotations

import math
import subprocess
import sys

import pytest

from tensair_dask.drift import (
    ADWIN,
    DDM,
    KSWIN,
    OPTWIN,
    PageHinkley,
    Shift,
    make,
    synthetic,
)
from tensair_dask.drift.base import Recent
from tensair_dask.errors import ConfigurationError, DriftError


def test_a_shift_counts_in_deviations_before_it():
    assert Shift.between(1.0, 2.5, 0.25) == Shift(1.0, 2.5, 0.5, 3.0)


def test_a_shift_of_what_never_varied_is_infinite():
    assert Shift.between(1.0, 2.0, 0.0).magnitude == math.inf
    assert Shift.between(1.0, 0.0, 0.0).magnitude == -math.inf
    assert Shift.between(1.0, 1.0, 0.0).magnitude == 0


def test_recent_values_are_kept_apart_from_all_older_ones():
    recent = Recent(size=3)
    for value in (1e9 + 1, 1e9 + 2, 1e9 + 3, 1e9 + 4, 7.0, 8.0, 9.0):
        recent.add(value)
    shift = recent.shift()
    assert shift.before == 1e9 + 2.5
    assert shift.after == 8
    assert shift.spread == pytest.approx((5 / 3) ** 0.5)


def test_few_recent_values_are_compared_by_halves():
    recent = Recent()
    for value in (1.0, 3.0, 8.0, 10.0):
        recent.add(value)
    assert recent.shift() == Shift.between(2.0, 9.0, 2.0)


@pytest.mark.parametrize("name", ["Page-Hinkley", "page_hinkley", "PAGEHINKLEY"])
def test_names_are_read_in_any_case_and_spelling(name):
    assert type(make(name)) is PageHinkley


def test_options_are_passed_on():
    assert make("optwin", window=500).window == 500


@pytest.mark.parametrize("name", ["eddm", "", None])
def test_an_unknown_name_is_refused_with_those_that_are_known(name):
    with pytest.raises(ConfigurationError, match="'optwin', 'adwin', 'pagehinkley'"):
        make(name)


def test_an_unknown_option_is_refused_with_those_that_are_known():
    with pytest.raises(ConfigurationError, match="'windows'; it takes confidence, rho"):
        make("optwin", windows=3)


@pytest.mark.parametrize(
    ("kind", "options", "given"),
    [
        (OPTWIN, {"confidence": 1}, "confidence=1 "),
        (OPTWIN, {"confidence": math.nan}, "confidence=nan"),
        (OPTWIN, {"rho": 0}, "rho=0"),
        (OPTWIN, {"minimum": 9}, "minimum=9"),
        (OPTWIN, {"window": 29}, "window=29"),
        (OPTWIN, {"window": 10**12}, "window=1000000000000"),
        (KSWIN, {"window": 10**12}, "window=1000000000000"),
        (OPTWIN, {"reference": True, "direction": "both"}, "reference=True"),
        (ADWIN, {"delta": 0}, "delta=0"),
        (ADWIN, {"clock": 0}, "clock=0"),
        (ADWIN, {"clock": 10**12}, "clock=1000000000000"),
        (ADWIN, {"minimum": 0}, "minimum=0"),
        (PageHinkley, {"threshold": 0}, "threshold=0"),
        (PageHinkley, {"delta": -1}, "delta=-1"),
        (PageHinkley, {"minimum": 1}, "minimum=1"),
        (PageHinkley, {"forgetting": 1.1}, "forgetting=1.1"),
        (DDM, {"minimum": 0}, "minimum=0"),
        (DDM, {"warning": 4}, "warning=4"),
        (KSWIN, {"alpha": 1}, "alpha=1"),
        (KSWIN, {"newest": 1}, "newest=1"),
        (KSWIN, {"window": 59}, "window=59"),
    ],
)
def test_a_setting_out_of_bounds_is_refused(kind, options, given):
    with pytest.raises(ConfigurationError) as caught:
        kind(**options)
    assert given.strip() in str(caught.value)
    assert "is not allowed; " in str(caught.value)


@pytest.mark.parametrize("value", [-0.1, 1.1, 58])
def test_ddm_takes_error_rates_only(value):
    detector = DDM()
    with pytest.raises(DriftError, match=r"error rates in \[0, 1\].*OPTWIN"):
        detector.update(value)
    assert detector.observed == 0


def test_kswin_draws_by_its_seed():
    values = synthetic.generate("gradual, non-binary", 1)[0].values[1000:1600]

    def found(seed):
        detector = KSWIN(alpha=0.005, seed=seed)
        return [place for place, value in enumerate(values) if detector.update(value)]

    assert found(1) == found(1)
    assert found(1) != found(2)


def test_page_hinkley_counts_in_deviations_by_default():
    values = synthetic.generate("sudden, binary", 1)[0].values

    def found(scale, offset, **options):
        detector = PageHinkley(**options)
        moved = enumerate(values * scale + offset)
        return [place for place, value in moved if detector.update(value)]

    assert found(1, 0) == found(64, 512) == [1012]
    river = {"threshold": 50, "delta": 0.005, "standardize": False}
    assert len(found(1, 0, **river)) == 1
    assert len(found(64, 0, **river)) > 10


def test_page_hinkley_sees_a_change_of_what_never_varied():
    detector = PageHinkley()
    assert not any(detector.update(3.0) for _ in range(200))
    assert any(detector.update(3.1) for _ in range(3))


def test_adwin_compares_the_two_parts_of_its_window():
    detector = ADWIN()
    values = [0.4, 0.6] * 320 + [0.7, 0.9] * 64
    place = [detector.update(value) for value in values].index(True)
    shift = detector.shift
    assert 640 <= place < 704
    # The newer part is whole buckets: here as many values before the change as since.
    assert shift.before == pytest.approx(0.5)
    assert shift.after == pytest.approx(0.65)
    assert shift.spread == pytest.approx(0.1, abs=0.02)


def test_importing_the_package_loads_neither_scipy_nor_river_nor_torch():
    code = (
        "import sys, tensair_dask.drift; print([name for name in "
        "('torch', 'scipy', 'river', 'distributed') if name in sys.modules])"
    )
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "[]\n"
