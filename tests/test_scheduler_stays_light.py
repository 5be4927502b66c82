"""The scheduler and a monitor import no torch."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    "module",
    [
        "tensair_dask",
        "tensair_dask.coordinator.scheduler_plugin",
        "tensair_dask.dashboard.preload",
        "tensair_dask.observe.terminal.program",
        "tensair_dask.preload",
        "tensair_dask.prequential",
        "tensair_dask.pubsub",
        "tensair_dask.pubsub.scheduler",
        "tensair_dask.replica.entry",
        "tensair_dask.streams.streamz_patches",
    ],
)
def test_what_schedulers_and_monitors_load_does_not_load_torch(module):
    code = f"import sys, {module}; print('torch' in sys.modules)"
    output = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert output.stdout == "False\n"
