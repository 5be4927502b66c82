from __future__ import annotations

import numpy as np
import pytest

from tensair_dask.text.table import FingerprintTable


def uint64(numbers: list[int]) -> np.ndarray:
    return np.array(numbers, np.uint64)


def filled(size: int, keys: list[int]) -> FingerprintTable:
    table = FingerprintTable(size)
    for row, key in enumerate(keys, start=1):
        table.put(key, row)
    return table


def test_keys_are_found_and_others_are_not():
    table = filled(3, [7 << 30, 1 << 40, (1 << 64) - 1])
    wanted = uint64([(1 << 64) - 1, 8 << 30, 7 << 30, 1 << 40, 7 << 30, 1 << 63])
    assert table.find(wanted).tolist() == [3, 0, 1, 2, 1, 0]


def test_nothing_is_found_in_an_empty_table_or_for_no_keys():
    assert FingerprintTable(5).find(uint64([1 << 24, 1 << 63])).tolist() == [0, 0]
    assert filled(5, [1 << 24]).find(uint64([])).tolist() == []


@pytest.mark.parametrize("top", [0, 0x7F, 0xFF], ids=["first", "middle", "last"])
def test_keys_that_want_the_same_place_are_all_found(top):
    keys = [(top << 56) + (low << 24) for low in range(1, 21)]
    table = filled(20, keys)
    assert table.find(uint64(keys)).tolist() == list(range(1, 21))
    others = [(top << 56) + (low << 24) for low in range(21, 50)]
    assert not table.find(uint64(others)).any()


def test_keys_that_go_on_past_the_end_and_those_that_belong_there_are_found():
    last = [(0xFF << 56) + (low << 24) for low in range(5)]
    first = [low << 24 for low in range(1, 6)]
    keys = [key for pair in zip(last, first, strict=True) for key in pair]
    table = filled(10, keys)
    assert table.find(uint64(keys)).tolist() == list(range(1, 11))
    assert table.find(uint64([(0xFF << 56) + (9 << 24), 9 << 24])).tolist() == [0, 0]


@pytest.mark.parametrize("size", [1, 2, 7, 8, 9, 16, 17, 1000])
@pytest.mark.parametrize("bits", [64, 61, 8])
def test_a_table_filled_to_its_size_knows_its_keys_and_no_others(size, bits):
    random = np.random.default_rng(size)
    # With few random bits the keys crowd at the beginning of the table.
    several = random.integers(1, 1 << 64, 2 * size, np.uint64) >> np.uint64(64 - bits)
    several += np.arange(1, 2 * size + 1, dtype=np.uint64) << np.uint64(24)
    assert len(np.unique(several)) == 2 * size
    table = filled(size, several[:size].tolist())
    found = table.find(several)
    assert found[:size].tolist() == list(range(1, size + 1))
    assert not found[size:].any()


def test_a_key_can_be_asked_for_many_times_at_once():
    keys = [(0xAB << 56) + (low << 24) for low in (1, 2, 3)]
    table = filled(3, keys)
    assert table.find(uint64(keys[::-1] * 1000)).tolist() == [3, 2, 1] * 1000


def test_keys_that_agree_in_their_upper_bits_are_distinguished():
    keys = [(0xABCDEF << 40) + low for low in (1, 2, 3, 1 << 23)]
    table = filled(4, keys)
    assert table.find(uint64(keys)).tolist() == [1, 2, 3, 4]
    assert table.find(uint64([(0xABCDEF << 40) + 4, 0xABCDEF << 40])).tolist() == [0, 0]
