from __future__ import annotations

from collections.abc import Iterator

import dask
import pytest


@pytest.fixture(autouse=True)
def nothing_in_the_users_cache() -> Iterator[None]:
    with dask.config.set({"tensair.drift.cache": None}):
        yield
