"""The verdict of benchmarks/open_loop: whether a rate was sustained."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

_FILE = Path(__file__).parents[1] / "benchmarks" / "open_loop" / "verdict.py"
_spec = importlib.util.spec_from_file_location("verdict", _FILE)
assert _spec is not None
assert _spec.loader is not None
verdict = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(verdict)

RATE = 100.0
SCHEDULED = np.arange(0.0, 30.0, 1 / RATE)


def judged(latency: np.ndarray | float) -> dict:
    return verdict.judge(SCHEDULED, SCHEDULED + latency, 5.0, 25.0, RATE)


def test_a_rate_with_an_even_latency_is_sustained():
    result = judged(0.03)
    assert result["sustained"]
    assert result["p50_ms"] == pytest.approx(30)
    assert result["learned"] == pytest.approx(20 * RATE, abs=1)


def test_a_backlog_that_grows_is_not_sustained():
    # One that learns 97 of 100.
    result = judged(0.03 * SCHEDULED)
    assert not result["sustained"]
    assert result["slope"] == pytest.approx(0.03, rel=0.1)


def test_a_latency_that_grows_slowly_is_not_sustained():
    result = judged(0.01 + 0.005 * SCHEDULED)
    assert result["slope"] < verdict.SLOPE
    assert not result["sustained"]


def test_what_is_never_learned_is_not_sustained():
    learned = np.where(SCHEDULED < 15, SCHEDULED + 0.01, np.nan)
    assert not verdict.judge(SCHEDULED, learned, 5.0, 25.0, RATE)["sustained"]


def test_a_burst_that_is_caught_up_with_is_sustained():
    late = np.where((SCHEDULED > 14) & (SCHEDULED < 15), 15 - SCHEDULED, 0.01)
    result = judged(late)
    assert result["sustained"]
    assert result["p99_ms"] > 500


def test_a_window_in_which_nothing_is_due_is_an_error():
    with pytest.raises(ValueError, match="too short"):
        verdict.judge(SCHEDULED, SCHEDULED, 40.0, 50.0, RATE)
