"""The worker's half: the counts of its replicas ride on its ordinary heartbeat."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tensair_dask.telemetry.prometheus import export_worker

__all__ = ["METRIC", "WorkerTelemetry"]

# Where heartbeats carry it: `worker.metrics[METRIC]`, `ws.metrics[METRIC]`.
METRIC = "tensair"

Counts = dict[str, Any]


class WorkerTelemetry:
    """What all replicas of one worker tell; called by Dask for every heartbeat.

    A worker without replicas tells nothing: the metric is there only as long as one
    is. Belongs to the worker's event loop.

    Parameters
    ----------
    worker
        A Dask worker.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._replicas: dict[tuple[str, str], weakref.WeakMethod[Any]] = {}

    @classmethod
    def of(cls, worker: Any) -> WorkerTelemetry:
        """Return that of a worker, made on first use."""
        found = worker.metrics.get(METRIC)
        if not isinstance(found, cls):
            found = worker.metrics[METRIC] = cls(worker)
            export_worker(found, worker)
        return found

    def add(self, run_id: str, replica: str, counts: Callable[[], Counts]) -> None:
        """Ask this method from now on, as long as its object lives."""
        self._replicas[run_id, replica] = weakref.WeakMethod(counts)

    def remove(self, run_id: str, replica: str) -> None:
        """Forget a replica; it need not be known."""
        self._replicas.pop((run_id, replica), None)
        if not self._replicas and self._worker.metrics.get(METRIC) is self:
            del self._worker.metrics[METRIC]

    def __call__(self, worker: Any = None) -> dict[str, dict[str, Counts]]:
        """Counts by run and replica: plain numbers and strings, for msgpack."""
        told: dict[str, dict[str, Counts]] = {}
        for (run_id, replica), reference in list(self._replicas.items()):
            counts = reference()
            if counts is not None:  # else Dask has dropped the actor
                told.setdefault(run_id, {})[replica] = counts()
        return told
