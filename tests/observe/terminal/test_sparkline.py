from __future__ import annotations

import math

from tensair_dask.observe.terminal.sparkline import BLOCKS, PLAIN, sparkline


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
