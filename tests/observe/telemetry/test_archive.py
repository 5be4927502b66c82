"""The archive of series, against plain lists."""

from __future__ import annotations

import math

import numpy as np
import pytest

from tensair_dask.observe.telemetry.archive import (
    TIERS,
    Archive,
    latest,
    least,
    mean,
    most,
)

NAN = float("nan")
COUNTING = {"first": least, "last": most, "mean": mean, "number": latest}


def counted(archive: Archive, number: int) -> None:
    """Add a row that says which one it is in every column."""
    archive.add(dict.fromkeys(COUNTING, float(number)))


@pytest.mark.parametrize(
    ("consolidate", "values", "expected"),
    [
        (mean, [1.0, NAN, 3.0], 2.0),
        (least, [2.0, NAN, 1.0], 1.0),
        (most, [2.0, NAN, 1.0], 2.0),
        (latest, [2.0, 1.0], 1.0),
        (latest, [2.0, NAN], NAN),
        (mean, [NAN, NAN], NAN),
        (least, [NAN], NAN),
        (most, [NAN], NAN),
    ],
)
def test_rows_become_one_of_what_is_known(consolidate, values, expected):
    assert consolidate(np.array(values)) == pytest.approx(expected, nan_ok=True)


def test_coarser_tiers_hold_what_the_finer_rows_were():
    generator = np.random.default_rng(0)
    columns = {"mean": mean, "least": least, "most": most, "latest": latest}
    archive = Archive(columns, length=50, tiers=(1, 4, 12))
    values = generator.normal(size=600)
    values[generator.random(600) < 0.4] = NAN
    values[96:108] = NAN
    for value in values:
        archive.add(dict.fromkeys(columns, value))
    for tier, coarse in ((1, 4), (2, 12)):
        found = archive.since(0, tier)
        chunks = values.reshape(-1, coarse)[-50:]
        with np.errstate(all="ignore"):
            expected = {
                "least": [np.fmin.reduce(chunk) for chunk in chunks],
                "most": [np.fmax.reduce(chunk) for chunk in chunks],
                "latest": [chunk[-1] for chunk in chunks],
            }
        for name, column in expected.items():
            np.testing.assert_allclose(found[name], column)
    quarters = archive.since(0, 1)["mean"]
    np.testing.assert_allclose(
        quarters,
        [
            chunk[~np.isnan(chunk)].mean() if not np.isnan(chunk).all() else NAN
            for chunk in values.reshape(-1, 4)[-50:]
        ],
    )


def check_cover(archive: Archive, added: int, coarsest: int) -> None:
    whole = archive.whole()
    first, last = whole["first"], whole["last"]
    tier = archive.tiers[-1]
    gone = max(0, tier.added - len(tier.since())) * coarsest
    if not added:
        assert not len(first)
        return
    assert first[0] == gone
    assert last[-1] == added - 1
    assert (first[1:] == last[:-1] + 1).all(), "a hole or an overlap"
    widths = last - first + 1
    assert (np.diff(widths) <= 0).all(), "finer rows come before coarser ones"
    assert widths.sum() == added - gone
    np.testing.assert_allclose(whole["mean"], (first + last) / 2)
    np.testing.assert_array_equal(whole["number"], last)


@pytest.mark.parametrize(
    ("length", "tiers"),
    [
        (4, (1, 2, 4)),
        (12, (1, 3, 12)),
        (7, (1, 5, 35)),
        (10, (1, 10, 100)),
        (5, (1,)),
        (6, (1, 6)),
    ],
)
def test_the_whole_covers_a_run_of_any_length_once_and_in_order(length, tiers):
    archive = Archive(COUNTING, length, tiers)
    for added in range(3 * length * tiers[-1]):
        check_cover(archive, added, tiers[-1])
        counted(archive, added)


def test_the_whole_covers_long_runs_at_the_resolutions_that_are_used():
    length = 48
    archive = Archive(COUNTING, length)
    for added in range(length * TIERS[-1] + 3000):
        if not added % 101:
            check_cover(archive, added, TIERS[-1])
        counted(archive, added)


@pytest.mark.parametrize("tier", [0, 1, 2])
def test_polling_gives_every_row_once(tier):
    generator = np.random.default_rng(tier)
    archive = Archive(COUNTING, 20, (1, 3, 6))
    known, seen, added = 0, [], 0
    for _ in range(400):
        for _ in range(generator.integers(0, 20)):
            counted(archive, added)
            added += 1
        seen += archive.since(known, tier)["last"].tolist()
        known = archive.tiers[tier].added
        assert not len(archive.since(known, tier)["last"])
    step = (1, 3, 6)[tier]
    assert (
        seen
        == [float(number + step - 1) for number in range(0, added, step)][: len(seen)]
    )
    assert len(seen) == added // step


def test_a_client_that_polls_too_seldom_gets_the_rows_that_are_left():
    archive = Archive(COUNTING, 20, (1, 3))
    for number in range(1000):
        counted(archive, number)
    assert archive.since(3)["last"].tolist() == [float(n) for n in range(980, 1000)]
    assert archive.since(995)["last"].tolist() == [995.0, 996.0, 997.0, 998.0, 999.0]
    assert archive.since(5000)["last"].tolist() == []


def test_what_was_given_out_does_not_change():
    archive = Archive(COUNTING, 4, (1, 2))
    for number in range(4):
        counted(archive, number)
    given, whole = archive.since(), archive.whole()
    for number in range(4, 20):
        counted(archive, number)
    assert given["last"].tolist() == whole["last"].tolist() == [0, 1, 2, 3]


def test_memory_is_fixed():
    archive = Archive(COUNTING, 60)
    before = [tier._ring.nbytes for tier in archive.tiers]
    for number in range(5000):
        counted(archive, number)
    assert [tier._ring.nbytes for tier in archive.tiers] == before
    assert len(archive.since()["last"]) == 60


def test_a_column_that_is_not_given_is_not_known():
    archive = Archive(COUNTING, 4)
    archive.add({"last": 1.0, "no such column": 2.0})
    row = {name: column[0] for name, column in archive.since().items()}
    assert row.pop("last") == 1.0
    assert all(math.isnan(value) for value in row.values())
    assert set(row) == set(COUNTING) - {"last"}


def test_tiers_are_never_too_short_for_the_next_one():
    archive = Archive(COUNTING, 1)
    for added in range(200):
        check_cover(archive, added, TIERS[-1])
        counted(archive, added)
