"""What benchmarks/simulate.py takes from a file of benchmarks/scaling.py."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

BENCHMARKS = str(Path(__file__).parents[2] / "benchmarks")
with mock.patch.object(sys, "path", [BENCHMARKS, *sys.path]):
    from scale_out.costs import Line, fitted
    from scale_out.figures import figures

LOOP, THREAD = Line(0.4e-3, 0.6e-3), Line(0.1e-3, 0.2e-3)
MINIBATCHES = 100


def measured(
    model: str, mb: float, transport: str, replicas: int, cores: float = 1.0
) -> dict[str, Any]:
    """A measurement in which messages cost what the lines say, and a step 5 ms."""
    messages = 0 if transport == "none" else (replicas - 1) * MINIBATCHES
    return {
        "model": model,
        "transport": transport,
        "replicas": replicas,
        "step": 0.095,
        "gradient_bytes": round(1e6 * mb),
        "exchange_memory": 1e6 * (4 + mb * (messages > 0)),
        "learning": {
            "minibatches": MINIBATCHES,
            "seconds": 10.0,
            "received": messages,
            "received_bytes": 1e6 * mb * messages,
            "conflated": 0,
            "loop_cpu": 0.002 * MINIBATCHES + messages * LOOP(mb),
            "threads_cpu": 0.003 * MINIBATCHES + messages * THREAD(mb),
            "client_cpu": 0.1,
            "scheduler_cpu": 0.01,
            "cores": cores,
            "other_cores": 0.0,
        },
    }


def both(model: str, mb: float, replicas: int, cores: float = 1.0) -> list[Any]:
    return [
        measured(model, mb, transport, replicas, cores) for transport in ("none", "tcp")
    ]


def test_the_exchange_is_what_a_minibatch_takes_more_than_without():
    _, figure = figures(both("small", 0.5, 5), cores=2)
    assert figure.delivered == 4
    assert figure.exchange_loop == pytest.approx(4 * LOOP(0.5))
    assert figure.exchange_threads == pytest.approx(4 * THREAD(0.5))
    assert figure.delivery_cpu == pytest.approx(LOOP(0.5) + THREAD(0.5))
    assert figure.replica_cpu == pytest.approx(0.005 + figure.exchange_cpu)
    assert figure.share == pytest.approx(0.0036 / (0.095 + 0.005 + 0.0036))
    assert figure.received_bytes == 2e6
    assert figure.exchange_memory == 0.5e6


def test_figures_need_a_measurement_without_an_exchange():
    with pytest.raises(ValueError, match="without an exchange"):
        figures([measured("small", 0.5, "tcp", 2)], cores=2)


def test_costs_are_those_that_the_measurements_were_made_of():
    rows = [*both("small", 0.5, 2), *both("small", 0.5, 8), *both("large", 5.0, 4)]
    costs = fitted(figures(rows, cores=2), "tcp")
    assert costs.loop.fixed == pytest.approx(LOOP.fixed)
    assert costs.loop.per_mb == pytest.approx(LOOP.per_mb)
    assert costs.thread.fixed == pytest.approx(THREAD.fixed)
    assert costs.thread.per_mb == pytest.approx(THREAD.per_mb)
    assert costs.end(5.0) == pytest.approx(LOOP(5.0) / 2)


def test_a_full_machine_says_nothing_of_costs():
    rows = [*both("small", 0.5, 2), *both("large", 5.0, 2, cores=1.9)]
    with pytest.raises(ValueError, match="two sizes"):
        fitted(figures(rows, cores=2), "tcp")
