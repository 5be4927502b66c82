"""The worker's half: the counts of its replicas ride on its ordinary heartbeat."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from tensair_dask.observe.telemetry.prometheus import export_worker

__all__ = ["METRIC", "WorkerTelemetry"]

# Where heartbeats carry it: `worker.metrics[METRIC]`, `ws.metrics[METRIC]`.
METRIC = "tensair"

Counts = dict[str, Any]


class WorkerTelemetry:
    """What all replicas of one worker tell; called by Dask for every heartbeat.

    A worker without replicas tells nothing: the metric is there only as long as one
    is. Belongs to the worker's event loop.

    Notes
    -----
    Dask closes a worker whose heartbeat fails. So the worker's dict of metrics is
    never changed but replaced: a heartbeat may be going through it. And what is told
    must be what msgpack takes; see `plain`.
    """

    def __init__(self) -> None:
        self._replicas: dict[
            tuple[str, str], weakref.WeakMethod[Callable[[], Counts | None]]
        ] = {}

    @classmethod
    def of(cls, worker: Any) -> WorkerTelemetry:
        """Return that of a Dask worker, made on first use."""
        found = worker.metrics.get(METRIC)
        if not isinstance(found, cls):
            found = cls()
            worker.metrics = {**worker.metrics, METRIC: found}
            export_worker(found, worker)
        return found

    def add(
        self, run_id: str, replica: str, counts: Callable[[], Counts | None]
    ) -> None:
        """Ask this method from now on, as long as its object lives.

        It may answer None: it lives, but does not train any more.
        """
        self._replicas[run_id, replica] = weakref.WeakMethod(counts)

    def counts(self) -> dict[str, dict[str, Counts]]:
        """Counts by run and replica: plain numbers and strings, for msgpack."""
        found: dict[str, dict[str, Counts]] = {}
        for (run_id, replica), reference in list(self._replicas.items()):
            method = reference()
            if method is None:  # Dask has dropped the actor
                del self._replicas[run_id, replica]
                continue
            counts = method()
            if counts is not None:
                found.setdefault(run_id, {})[replica] = counts
        return found

    def __call__(self, worker: Any) -> dict[str, dict[str, Counts]]:
        """What a heartbeat of the worker tells; this ends with the last replica."""
        found = self.counts()
        if not self._replicas and worker.metrics.get(METRIC) is self:
            others = {k: v for k, v in worker.metrics.items() if k != METRIC}
            worker.metrics = others
        return found
