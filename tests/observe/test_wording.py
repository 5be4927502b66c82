from __future__ import annotations

import math

import numpy as np
import pytest

from tensair_dask.observe import wording


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (12, "12"),
        (0.034, "0.03"),
        (31.24, "31.2"),
        (1994.3, "1,994"),
        (1_580_800, "1,580,800"),
        (12_345_678, "12.3 M"),
        (2.5e9, "2.5 G"),
        (7.1e12, "7.1 T"),
        (None, "-"),
        (math.nan, "-"),
        (math.inf, "-"),
    ],
)
def test_amounts(number, text):
    assert wording.amount(number) == text


def test_numbers_with_all_their_digits():
    assert wording.number(1234567) == "1,234,567"
    assert wording.number(1234.56) == "1,234.6"
    assert wording.number(0.12345, 4) == "0.1235"
    assert wording.number(np.float32(0.12345), 4) == "0.1235"
    assert wording.number(np.int64(1234567)) == "1,234,567"
    for unknown in (math.nan, math.inf, None):
        assert wording.number(unknown) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.101, "101 ms"),
        (0.9996, "1.0 s"),
        (2.34, "2.3 s"),
        (9.99, "10 s"),
        (59.7, "1 min"),
        (72, "1 min 12 s"),
        (3_600, "1 h"),
        (7_520, "2 h 5 min"),
        (273_700, "3 d 4 h"),
        (None, "-"),
    ],
)
def test_durations(seconds, text):
    assert wording.duration(seconds) == text


def test_others():
    assert wording.value(0.51234) == "0.5123"
    assert wording.value(12345.6) == "1.235e+04"
    assert wording.short(1.24) == "1.2"
    assert wording.short(147.4) == "147"
    assert wording.share(0.431) == "43 %"
    assert wording.rate_of_bytes(0) == "0 B/s"
    assert wording.rate_of_bytes(870_000) == "870.0 kB/s"
    assert wording.rate_of_bytes(1.23e6) == "1.2 MB/s"
    assert wording.rate_of_bytes(2e9) == "2.0 GB/s"
    unknown = (wording.value, wording.short, wording.share, wording.rate_of_bytes)
    assert [each(None) for each in unknown] == ["-"] * 4


def test_both_ends_of_what_is_cut_stay():
    address = "tcp://ip-10-0-113-245.ec2.internal:34567"
    for width in range(len(address)):
        assert len(wording.clipped(address, width)) == width
    assert wording.clipped(address, len(address)) == address
    cut = wording.clipped(address, 20)
    assert cut.startswith("tcp://")
    assert cut.endswith(":34567")
