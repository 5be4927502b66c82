from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tensair_dask.text.sketch import CountMin


def things(number: int) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.integers(1, 1 << 64, number, np.uint64)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_crowded_sketch_never_counts_too_few(bits):
    sketch, random, truth = CountMin(bits), np.random.default_rng(1), Counter()
    several = things(500)
    for _ in range(50):
        some = random.choice(several, 40, replace=False)
        times = random.integers(1, 10, 40)
        truth.update(dict(zip(some.tolist(), times.tolist(), strict=True)))
        known = [truth[thing] for thing in some.tolist()]
        assert (sketch.add(some, times) >= known).all()


def test_a_sparse_sketch_is_exact():
    sketch, random, truth = CountMin(), np.random.default_rng(1), Counter()
    several = things(2000)
    for _ in range(20):
        some = random.choice(several, 500, replace=False)
        times = random.integers(1, 10, 500)
        truth.update(dict(zip(some.tolist(), times.tolist(), strict=True)))
        assert sketch.add(some, times).tolist() == [truth[x] for x in some.tolist()]


def test_only_the_smallest_counts_are_raised():
    # 100 things in 3 x 256 places, each seen 10 times: a sketch that adds to all
    # places of a thing counts far more of them too often.
    sketch, several = CountMin(bits=8), things(100)
    for thing in np.split(np.tile(several, 10), 1000):
        counts = sketch.add(thing, np.ones(1, np.int64))
        assert counts >= 1
    counts = sketch.add(several, np.zeros(100, np.int64))
    assert (counts == 10).mean() > 0.95


def test_nothing_can_be_counted():
    assert len(CountMin().add(things(0), np.zeros(0, np.int64))) == 0
