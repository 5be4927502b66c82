from __future__ import annotations

import math
import time
from pathlib import Path

import dask
import numpy as np
import pytest
from scipy import optimize, stats

from tensair_dask.drift import OPTWIN, optwin_cuts


@pytest.fixture
def folder(tmp_path):
    optwin_cuts.forget()
    with dask.config.set({"tensair.drift.cache": str(tmp_path / "cache")}):
        yield tmp_path / "cache"
    optwin_cuts.forget()


@pytest.fixture
def computed(monkeypatch):
    """Sizes of the first row of every chunk that is computed."""
    firsts = []
    compute = optwin_cuts.compute

    def counting(sizes, *rest):
        firsts.append(int(sizes[0]))
        return compute(sizes, *rest)

    monkeypatch.setattr(optwin_cuts, "compute", counting)
    return firsts


@pytest.mark.parametrize(
    ("size", "cut", "phi", "t"),
    [
        (30, 16, "5.1679", "3.2416"),
        (100, 51, "2.27", "2.898"),
        (200, 120, "1.814", "2.839"),
        (1000, 938, "1.789", "2.877"),
        (5000, 4939, "1.779", "2.905"),
    ],
)
def test_the_rows_are_those_of_the_published_table(size, cut, phi, t):
    rows = optwin_cuts.cuts_for(0.99, 0.5)
    rows.grow(size)
    assert rows.cut[size] == cut
    assert f"{rows.phi[size]:.{len(phi) - 2}f}" == phi
    assert f"{rows.t[size]:.{len(t) - 2}f}" == t


def one_row(size, confidence, rho):
    """The same by scipy's distributions, and a search of all sizes one by one."""
    p = confidence**0.25

    def excess(newer):
        older = size - newer
        phi = stats.f.ppf(p, older - 1, newer - 1)
        a, b = 1 / older, 1 / phi**2 / newer
        df = (a + b) ** 2 / (a**2 / (older - 1) + b**2 / (newer - 1))
        return stats.t.ppf(p, df) * np.sqrt(1 / older + phi / newer) - rho

    newer = np.linspace(3, size - 3, 4000)
    below = np.flatnonzero(excess(newer) <= 0)
    if not len(below):
        return size // 2 + 1
    root = optimize.brentq(excess, newer[below[0] - 1], newer[below[0]])
    return math.floor(size - root)


@pytest.mark.parametrize(
    ("confidence", "rho", "sizes"),
    [
        (0.99, 0.5, [10, 31, 150, *range(178, 190), 400, 1023, 1024, 3000, 24999]),
        (0.998, 0.5, [100, *range(205, 240, 3), 2500]),
        (0.99, 1.0, [40, *range(46, 60), 1500]),
        (0.9, 0.3, [*range(200, 320, 7), 6000]),
    ],
)
def test_every_cut_is_where_a_slow_search_finds_it(confidence, rho, sizes):
    found = optwin_cuts.compute(np.array(sizes), confidence, rho)[0]
    assert found.tolist() == [one_row(size, confidence, rho) for size in sizes]


@pytest.mark.parametrize("rho", [0.01, 0.1, 3.0, 50.0])
def test_both_parts_always_hold_enough_for_a_variance(rho):
    sizes = np.arange(optwin_cuts.SMALLEST, 3000)
    cut, phi, t, df = optwin_cuts.compute(sizes, 0.99, rho)
    assert (cut >= 2).all()
    assert (sizes - cut >= 3).all()
    assert np.isfinite([phi, t, df]).all()


def test_the_whole_table_takes_seconds_at_most():
    start = time.perf_counter()
    optwin_cuts.Cuts(0.99, 0.5).grow(25_000)
    # 0.5 s; with room for a machine that does other things.
    assert time.perf_counter() - start < 5


def test_a_short_run_computes_only_what_it_needs(folder, computed):
    detector = OPTWIN()
    for value in np.random.default_rng(0).normal(size=500):
        detector.update(value)
    assert computed == [0]
    assert len(list(folder.iterdir())) == 1


def test_a_second_process_reads_what_the_first_has_computed(folder, computed):
    first = optwin_cuts.cuts_for(0.99, 0.5)
    first.grow(2000)
    assert computed == [0, 1024]
    optwin_cuts.forget()
    second = optwin_cuts.cuts_for(0.99, 0.5)
    second.grow(2000)
    assert second is not first
    assert computed == [0, 1024]
    assert second.cut == first.cut
    assert second.t[10:] == first.t[10:]


def test_detectors_of_a_process_share_their_rows(computed):
    optwin_cuts.forget()
    values = np.random.default_rng(0).normal(size=40)
    for _ in range(3):
        detector = OPTWIN()
        for value in values:
            detector.update(value)
    assert computed == [0]


def test_other_settings_have_other_files(folder, computed):
    optwin_cuts.cuts_for(0.99, 0.5).grow(100)
    optwin_cuts.cuts_for(0.99, 0.25).grow(100)
    assert computed == [0, 0]
    assert len(list(folder.iterdir())) == 2


def torn(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


def longer(data: bytes) -> bytes:
    return data + b"\0" * 8


def of_another_confidence(data: bytes) -> bytes:
    return data.replace(b"confidence 0.99", b"confidence 0.98")


@pytest.mark.parametrize(
    "harm",
    [torn, flipped, longer, of_another_confidence, lambda data: b"", lambda data: b"x"],
)
def test_a_torn_or_foreign_file_is_computed_again(folder, computed, harm):
    optwin_cuts.cuts_for(0.99, 0.5).grow(100)
    (path,) = folder.iterdir()
    good = path.read_bytes()
    path.write_bytes(harm(good))
    optwin_cuts.forget()
    rows = optwin_cuts.cuts_for(0.99, 0.5)
    rows.grow(100)
    assert rows.cut[100] == 51
    assert computed == [0, 0]
    assert path.read_bytes() == good
    assert list(folder.iterdir()) == [path]


def test_a_folder_that_cannot_be_written_only_costs_time(tmp_path, computed):
    (tmp_path / "file").write_text("in the way")
    optwin_cuts.forget()
    with dask.config.set({"tensair.drift.cache": str(tmp_path / "file")}):
        rows = optwin_cuts.cuts_for(0.99, 0.5)
        rows.grow(100)
    optwin_cuts.forget()
    assert rows.cut[100] == 51
    assert computed == [0]
    assert (tmp_path / "file").read_text() == "in the way"


def test_null_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    optwin_cuts.forget()
    with dask.config.set({"tensair.drift.cache": None}):
        assert optwin_cuts.cache_folder() is None
        optwin_cuts.cuts_for(0.99, 0.5).grow(100)
    optwin_cuts.forget()
    assert list(tmp_path.iterdir()) == []


def test_the_folder_is_in_the_users_cache(tmp_path, monkeypatch):
    with dask.config.set({"tensair.drift.cache": "auto"}):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert optwin_cuts.cache_folder() == tmp_path / "tensair-dask"
        for nothing in ("", "relative/path"):
            monkeypatch.setenv("XDG_CACHE_HOME", nothing)
            assert (
                optwin_cuts.cache_folder() == Path("~/.cache/tensair-dask").expanduser()
            )
    with dask.config.set({"tensair.drift.cache": "~/mine"}):
        assert optwin_cuts.cache_folder() == Path("~/mine").expanduser()
