from __future__ import annotations

import math
from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest

from tensair_dask._common.checks import flag, number, shown, whole
from tensair_dask.errors import ConfigurationError


def share(value):
    return number("share", value, lambda given: 0 < given < 1, "give a share")


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), Fraction(1, 2)])
def test_a_number_is_taken_as_a_float(value):
    assert type(share(value)) is float
    assert share(value) == 0.5


@pytest.mark.parametrize(
    "value",
    [
        *(1, 0, math.nan, 10**400),
        *(True, None, "0.5", 1j, [0.5], Decimal("0.5"), np.array([0.5, 0.6])),
        Fraction(10**20 - 1, 10**20),  # as a float it is 1
    ],
    ids=str,
)
def test_what_is_no_number_within_the_bounds_is_refused(value):
    with pytest.raises(ConfigurationError, match=r"^share=.* not allowed; give a sh"):
        share(value)


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3)])
def test_a_whole_number_is_taken_as_an_int(value):
    assert type(whole("count", value, 1, 10)) is int
    assert whole("count", value, 3, 10, most=3) == 3


@pytest.mark.parametrize("value", [0, 3.0, True, None, "3", [3], np.array([3, 4])])
def test_what_is_no_whole_number_is_refused(value):
    said = r"^count=.* is not allowed; give a whole number from 1, for example 10\.$"
    with pytest.raises(ConfigurationError, match=said):
        whole("count", value, 1, 10)


def test_the_error_names_an_upper_bound():
    with pytest.raises(ConfigurationError, match="from 1 to 5,000, for example 10"):
        whole("count", 5001, 1, 10, most=5000)


def test_the_error_names_what_else_is_allowed():
    with pytest.raises(ConfigurationError, match="for example 10, or None for all"):
        whole("count", "all", 1, 10, otherwise="None for all")


@pytest.mark.parametrize("value", [True, np.True_])
def test_truth_values_are_taken_and_nothing_else(value):
    assert flag("exact", value) is True
    with pytest.raises(ConfigurationError, match=r"exact='yes' .* give True or False"):
        flag("exact", "yes")
    with pytest.raises(ConfigurationError, match="exact=1 "):
        flag("exact", 1)


def test_what_was_given_is_shown_in_a_line():
    assert shown([1, 2]) == "[1, 2]"
    assert shown(np.eye(2)) == "array([[1., 0.], [0., 1.]])"
    assert len(shown("a" * 1000)) == 60
