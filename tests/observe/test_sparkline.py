from __future__ import annotations

import math
import re

import numpy as np
import pytest

from tensair_dask.observe.sparkline import BLOCKS, PLAIN, outline, sparkline


def test_each_value_is_a_block_between_least_and_largest():
    assert sparkline(range(8), 8) == BLOCKS
    assert sparkline([0, 7, 0], 8) == "▁█▁"


def test_many_values_become_as_many_characters_as_there_is_room_for():
    assert sparkline(range(800), 8) == BLOCKS
    assert len(sparkline(range(601), 60)) == 60
    assert sparkline(range(8), 0) == ""


def test_what_is_not_known_is_blank():
    assert sparkline([None, 1, math.nan, 2], 4) == " ▁ █"
    assert sparkline([None, math.nan], 2) == ""
    assert sparkline([], 10) == ""


def test_a_lowest_value_shows_how_far_from_it_a_curve_is():
    assert sparkline([100, 100, 100], 3) == "▁▁▁"
    assert sparkline([100, 100, 100], 3, lowest=0) == "███"
    assert sparkline([0, 0], 2, lowest=0) == "▁▁"
    assert sparkline([-4, 4], 2, lowest=0) == "▁█"


def test_it_can_be_drawn_in_ascii():
    curve = sparkline(range(100), 20, blocks=PLAIN)
    assert curve.isascii()
    assert curve[0] == PLAIN[0]
    assert curve[-1] == PLAIN[-1]


def test_values_that_differ_by_rounding_only_are_all_the_same():
    assert sparkline([0.1] * 50, 7) == "▁" * 7


# ---------------------------------------------------------------------- as an outline


def heights(drawing: dict) -> list[float]:
    """Height above the bottom for each of the strokes, between 0 and 1."""
    ys = re.findall(r"(?:V|M\d+ )(-?[\d.]+)h2", drawing["path"])
    bottom, span = drawing["height"] - 1, drawing["height"] - 2
    return [(bottom - float(y)) / span for y in ys]


def test_an_outline_is_a_mean_over_time():
    drawing = outline([1.0, 10.0], [9.0, 1.0], lowest=0.0)
    drawn = heights(drawing)
    assert (drawing["low"], drawing["high"]) == (0, 10)
    assert drawn[0] == pytest.approx(0.1, abs=0.01)
    assert drawn[-1] == 1
    assert np.mean(drawn) == pytest.approx(0.19, abs=0.01)


def test_an_outline_is_as_short_for_a_long_run():
    rows = 5_000
    drawing = outline(range(rows), np.ones(rows))
    assert len(heights(drawing)) == drawing["width"] / 2
    assert len(drawing["path"]) < 2_000


def test_an_outline_has_a_gap_where_nothing_is_known():
    drawing = outline([1.0, math.nan, 2.0], [1, 1, 2])
    assert len(re.findall("M", drawing["path"])) == 2
    assert len(heights(drawing)) == 3 / 4 * drawing["width"] / 2


@pytest.mark.parametrize("values", [[], [math.nan], [5.0], [5.0, 5.0]])
def test_an_outline_of_next_to_nothing(values):
    drawing = outline(values, [1.0] * len(values))
    known = bool(values) and not math.isnan(values[0])
    assert bool(drawing["path"]) == known
    assert "nan" not in drawing["path"]
