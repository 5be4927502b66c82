from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from tensair_dask.text.sketch import CountMin


def random_fingerprints(number: int, seed: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    return np.unique(random.integers(1, 1 << 64, number, np.uint64))


def ones(fingerprints: np.ndarray) -> np.ndarray:
    return np.ones(len(fingerprints), np.int64)


@pytest.mark.parametrize("bits", [1, 4, 8])
def test_a_crowded_sketch_never_counts_too_few(bits):
    things = random_fingerprints(500)
    random = np.random.default_rng(1)
    truth = Counter()
    for _ in range(50):
        some = random.choice(things, 40, replace=False)
        times = random.integers(1, 10, 40)
        for thing, n in zip(some.tolist(), times.tolist(), strict=True):
            truth[thing] += n
        counts = CountMin.add(sketch, some, times) if _ else None
        if counts is None:
            sketch = CountMin(bits)
            counts = sketch.add(some, times)
        assert all(
            count >= truth[thing]
            for thing, count in zip(some.tolist(), counts.tolist(), strict=True)
        )
