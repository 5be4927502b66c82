"""Replicas that learn when a test says so, and what their heartbeats bring."""

from __future__ import annotations

import itertools
from typing import Any

from tensair_dask.observe.telemetry.counters import Counters
from tensair_dask.observe.telemetry.worker import METRIC

_births = itertools.count(1_700_000_000)

EXCHANGE = {
    "sent": 0,
    "received": 0,
    "sent_bytes": 0,
    "received_bytes": 0,
    "conflated": 0,
    "resent": 0,
    "staleness_mean": 0.0,
    "staleness_p95": 0,
    "staleness_max": 0,
    "age_mean": 0.0,
    "age_p95": 0.0,
    "age_max": 0.0,
    "interval": 0.0,
    "cost": 0.0,
}


class Learning:
    """Real counters, with a clock that the test sets."""

    def __init__(self, *metrics: str, clock: float = 5000.0) -> None:
        self.counters = Counters(metrics)
        self.counters.began = float(next(_births))
        self.clock = clock
        self.exchange: dict[str, Any] = dict(EXCHANGE)

    def learn(
        self,
        steps: int = 1,
        samples: int = 4,
        loss: float = 0.5,
        metrics: tuple[float, ...] = (),
        seconds: float = 0.001,
    ) -> None:
        for _ in range(steps):
            self.counters.scored(samples, loss, metrics, seconds)

    def beat(self, seconds: float = 0.5) -> dict[str, Any]:
        """Let time pass; what the heartbeat at its end brings."""
        self.clock += seconds
        return {
            **self.exchange,
            **self.counters.snapshot(),
            "at": self.clock,
            "version": self.counters.steps,
            "device": "cpu",
            "trainer": "model",
        }


class Worker:
    """What the scheduler holds of a worker: the metrics of its newest heartbeat."""

    def __init__(self) -> None:
        self.metrics: dict[str, Any] = {"cpu": 1.0}

    def tell(self, run_id: str, replica: str, snapshot: dict[str, Any]) -> None:
        runs = dict(self.metrics.get(METRIC, {}))
        runs[run_id] = {**runs.get(run_id, {}), replica: snapshot}
        self.metrics = {**self.metrics, METRIC: runs}


class Scheduler:
    """As much of Dask's scheduler as `Telemetry` reads."""

    def __init__(self, workers: int = 1) -> None:
        self.workers = {
            f"tcp://10.0.0.{number}:1": Worker() for number in range(workers)
        }
