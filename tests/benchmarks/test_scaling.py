"""benchmarks/scaling.py measures what it says, on a cluster of emulated workers."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "scaling.py"
PARTS = ("start", "learning", "join", "drain")


@pytest.mark.processes
@pytest.mark.timeout(300)
def test_a_gradient_goes_to_each_peer_once_by_the_transport_that_is_named(tmp_path):
    file = tmp_path / "measured.json"
    options = {
        "models": "85k",
        "replicas": "3",
        "transports": "shm,tcp",
        "processes": "2",
        "step": "20",
        "warmup": ".2",
        "seconds": ".5",
        "json": str(file),
    }
    done = subprocess.run(
        [sys.executable, str(PROGRAM), *(f"--{k}={v}" for k, v in options.items())],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "While replicas learn" in done.stdout

    silent, *exchanging = json.loads(file.read_text("utf-8"))["measured"]
    assert silent["transport"] == "none"
    assert silent["learning"]["minibatches"] > 0
    assert silent["learning"]["received"] == 0
    assert [each["transport"] for each in exchanging] == ["shm", "tcp"]
    for each in exchanging:
        assert_gradients_went_to_each_peer_once(each)


def assert_gradients_went_to_each_peer_once(measured: dict[str, Any]) -> None:
    learning = measured["learning"]
    assert learning["shared_memory"] == (2 if measured["transport"] == "shm" else 0)
    assert learning["refused"] == 0
    # What was learned before the window may arrive in it: of each replica to each peer
    # what it had gathered, and what was under way.
    assert 0 < learning["received"] <= 2 * learning["minibatches"] + 3 * 2 * 2
    gradient = measured["gradient_bytes"]
    each = learning["received_bytes"] / learning["received"]
    assert gradient <= each < gradient + 64 * 6  # aligned, six parameters
    assert measured["start"]["scheduler_bytes"] > 0
    assert all(measured[part]["seconds"] > 0 for part in PARTS)
