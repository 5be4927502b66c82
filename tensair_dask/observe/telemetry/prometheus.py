"""Prometheus: the counts of trainers and replicas on Dask's own ``/metrics``.

The scheduler tells of trainers, each worker of its replicas. Prometheus' registry is
one for the whole process, which may hold several schedulers and workers: one collector
tells of all, and holds none of them. Without ``prometheus_client``, which is optional,
nothing happens.
"""

from __future__ import annotations

import functools
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from distributed.http.prometheus import PrometheusCollector

from tensair_dask.observe.telemetry.events import KINDS

if TYPE_CHECKING:
    from tensair_dask.observe.telemetry.scheduler import Telemetry
    from tensair_dask.observe.telemetry.trainers import TrainerRecord
    from tensair_dask.observe.telemetry.worker import WorkerTelemetry

__all__ = [
    "FAMILIES",
    "Family",
    "Sample",
    "export_scheduler",
    "export_worker",
    "withdraw",
]

logger = logging.getLogger(__name__)

# Digits of a run id that tell runs apart.
_DIGITS = 8

_TRAINER = ("trainer", "run")
_REPLICA = ("trainer", "run", "replica", "worker")


class Family(NamedTuple):
    """Series that differ by their labels only; a counter if its name ends in _total."""

    name: str
    text: str
    labels: tuple[str, ...] = _TRAINER


class Sample(NamedTuple):
    """One number of a family, and its labels."""

    family: str
    labels: dict[str, str]
    value: float


_OF_TRAINERS = [
    Family("trainer_open", "1 while the trainer is open, 0 once it is closed or lost"),
    Family("trainer_start_time_seconds", "When the trainer started, since the epoch"),
    Family("emitted_total", "Mini-batches that were given to the trainer"),
    Family("steps_total", "Mini-batches learned or only scored, by all replicas"),
    Family("predicted_total", "How many of the steps only predicted and scored"),
    Family("samples_total", "Rows in the mini-batches of the steps"),
    Family("predictions_total", "Records predicted on request"),
    Family("dead_letters_total", "Mini-batches, or records, that were refused"),
    Family("dropped_total", "Mini-batches that streams dropped under overload"),
    Family("busy_seconds_total", "Time spent in steps, by all replicas together"),
    Family("sent_messages_total", "Gradient messages published"),
    Family("received_messages_total", "Gradient messages applied"),
    Family("sent_bytes_total", "Bytes of the gradient messages published"),
    Family("received_bytes_total", "Bytes of the gradient messages applied"),
    Family("events_total", "Drifts, changes of mode and so on", (*_TRAINER, "kind")),
    Family("loss", "Mean loss of the newest samples"),
    Family("metric", "Mean of a metric, newest samples", (*_TRAINER, "metric")),
    Family("staleness_mean", "Gradients the sender lacked; newest messages"),
    Family("staleness_p95", "The same, 95th percentile of the stalest replica"),
    Family("staleness_max", "The same, at most"),
    Family("age_p95_seconds", "Age of gradients when applied, 95th percentile"),
    Family("backlog", "Mini-batches given that have not been reported"),
    Family("lag_seconds", "How long the oldest of these has waited"),
    Family("replicas", "Replicas alive"),
    Family("replicas_target", "Replicas wanted"),
    Family("workers", "Workers of the cluster"),
]

_OF_REPLICAS = [
    Family("replica_steps_total", "Mini-batches learned or only scored", _REPLICA),
    Family("replica_predicted_total", "Steps that only predicted and scored", _REPLICA),
    Family("replica_samples_total", "Rows in the mini-batches of the steps", _REPLICA),
    Family("replica_predictions_total", "Records predicted on request", _REPLICA),
    Family("replica_refused_total", "Mini-batches that were refused", _REPLICA),
    Family("replica_busy_seconds_total", "Time spent in steps", _REPLICA),
    Family("replica_sent_messages_total", "Gradient messages published", _REPLICA),
    Family("replica_received_messages_total", "Gradient messages applied", _REPLICA),
    Family("replica_sent_bytes_total", "Bytes of those published", _REPLICA),
    Family("replica_received_bytes_total", "Bytes of those applied", _REPLICA),
    # Of a peer that leaves, these are forgotten: no counters, therefore.
    Family("replica_resent_messages", "Sent again, to the present peers", _REPLICA),
    Family("replica_conflated_messages", "Summed while they waited for them", _REPLICA),
    # A mean needs a window, and that is for whoever asks to choose:
    # delta(summed_loss) / increase(samples_total), right for negative losses, too.
    Family("replica_summed_loss", "Sum of loss times samples", _REPLICA),
    Family(
        "replica_summed_metric",
        "Sum of a metric times samples",
        (*_REPLICA, "metric"),
    ),
    Family(
        "replica_metric_samples_total",
        "Samples in the sum of a metric",
        (*_REPLICA, "metric"),
    ),
    Family("replica_staleness_mean", "Gradients the senders lacked", _REPLICA),
    Family("replica_staleness_p95", "The same, 95th percentile", _REPLICA),
    Family("replica_staleness_max", "The same, at most", _REPLICA),
    Family("replica_age_p95_seconds", "Age of gradients when applied", _REPLICA),
    Family("replica_interval_seconds", "How long gradients gather", _REPLICA),
    Family("replica_publishing_seconds", "What publishing costs each time", _REPLICA),
    Family("replica_version", "Gradients that its model holds", _REPLICA),
]

# Everything that is exported.
FAMILIES = {each.name: each for each in _OF_TRAINERS + _OF_REPLICAS}


def export_scheduler(telemetry: Telemetry) -> None:
    """Export the trainers of a scheduler from now on, as long as it lives."""
    _export(telemetry, _trainers)


def export_worker(telemetry: WorkerTelemetry, worker: Any) -> None:
    """Export the replicas of a worker from now on, as long as they live."""
    _export(telemetry, functools.partial(_replicas, reference=weakref.ref(worker)))


def withdraw(telemetry: Telemetry | WorkerTelemetry) -> None:
    """Export it no longer; it need not be known."""
    if _collector is not None:
        _collector.remove(telemetry)


class _Collector(PrometheusCollector):
    """Collects the samples of all that was added and still lives."""

    def __init__(self) -> None:
        super().__init__(None)
        self.subsystem = "tensair"
        self._sources: dict[int, tuple[weakref.ref[Any], Callable[..., Any]]] = {}

    def add(self, source: Any, samples: Callable[[Any], Iterator[Sample]]) -> None:
        """Add what tells, and the function that makes samples of it."""
        key = id(source)

        def forget(_: object) -> None:
            self._sources.pop(key, None)

        self._sources[key] = weakref.ref(source, forget), samples

    def remove(self, source: Any) -> None:
        """Remove what was added."""
        self._sources.pop(id(source), None)

    def describe(self) -> list[Any]:
        """Give all families without samples: what prometheus_client registers."""
        return list(self._families().values())

    def collect(self) -> Iterator[Any]:
        """Give the families that have samples."""
        families = self._families()
        for sample in self._samples():
            family, labels, value = sample
            names = FAMILIES[family].labels
            families[family].add_metric([labels[name] for name in names], value)
        yield from (each for each in families.values() if each.samples)

    def _samples(self) -> Iterator[Sample]:
        for reference, samples in list(self._sources.values()):
            source = reference()
            if source is None:
                continue
            try:
                found = list(samples(source))
            except Exception:  # the other series, Dask's above all, go on
                logger.exception("The telemetry of trainers could not be exported")
                continue
            yield from (each for each in found if math.isfinite(each.value))

    def _families(self) -> dict[str, Any]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        return {
            name: (
                CounterMetricFamily if name.endswith("_total") else GaugeMetricFamily
            )(self.build_name(name), family.text, labels=family.labels)
            for name, family in FAMILIES.items()
        }


_collector: _Collector | None = None
_lock = threading.Lock()


def _export(source: Any, samples: Callable[[Any], Iterator[Sample]]) -> None:
    try:
        from prometheus_client import REGISTRY
    except ImportError:
        return
    global _collector
    with _lock:
        if _collector is None:
            made = _Collector()
            try:
                REGISTRY.register(made)
            except ValueError as error:
                logger.warning("Training is not shown on /metrics: %s", error)
                return
            _collector = made
    _collector.add(source, samples)


# ---- samples -------------------------------------------------------------------------


def _trainers(telemetry: Telemetry) -> Iterator[Sample]:
    workers = len(telemetry.scheduler.workers)
    for record in list(telemetry.trainers.values()):
        labels = {"trainer": record.name, "run": record.run_id[:_DIGITS]}
        numbers = _counted(record)
        if not record.is_over:
            numbers |= _now(record, workers)
            for name in record.metrics:
                value = record.metric(name)
                yield Sample("metric", {**labels, "metric": str(name)}, value)
        for family, value in numbers.items():
            yield Sample(family, labels, float(value))
        for kind in KINDS:  # also those at 0: the first one is to be seen as a growth
            count = record.events.counts[kind]
            yield Sample("events_total", {**labels, "kind": kind}, count)


def _counted(record: TrainerRecord) -> dict[str, float]:
    totals = record.totals
    return {
        "trainer_open": not record.is_over,
        "trainer_start_time_seconds": record.started,
        "emitted_total": record.reported.get("emitted", 0),
        "steps_total": totals["steps"],
        "predicted_total": totals["predicted"],
        "samples_total": totals["samples"],
        "predictions_total": totals["predictions"],
        "dead_letters_total": record.dead_letters,
        "dropped_total": record.dropped,
        "busy_seconds_total": totals["busy"],
        "sent_messages_total": totals["sent"],
        "received_messages_total": totals["received"],
        "sent_bytes_total": totals["sent_bytes"],
        "received_bytes_total": totals["received_bytes"],
    }


def _now(record: TrainerRecord, workers: int) -> dict[str, float]:
    row = record.row(workers)
    return {
        "loss": row["loss"],
        "staleness_mean": row.get("staleness", math.nan),
        "staleness_p95": row.get("staleness_p95", math.nan),
        "staleness_max": row.get("staleness_most", math.nan),
        "age_p95_seconds": row.get("age", math.nan),
        "backlog": row["backlog"],
        "lag_seconds": row["lag"],
        "replicas": row["replicas"],
        "replicas_target": row["target"],
        "workers": workers,
    }


def _replicas(
    telemetry: WorkerTelemetry, reference: weakref.ref[Any]
) -> Iterator[Sample]:
    worker = reference()
    # Dask may keep a closed worker, and its actors, for as long as the process lives.
    if worker is None or worker.status.name in ("closing", "closed", "failed"):
        return
    for run_id, replicas in telemetry.counts().items():
        for replica, counts in replicas.items():
            labels = {
                "trainer": str(counts.get("trainer", "")),
                "run": run_id[:_DIGITS],
                "replica": replica,
                "worker": str(worker.address),
            }
            for family, count in _COUNTS.items():
                if count in counts:
                    yield Sample(family, labels, float(counts[count]))
            for name, (total, rest, weight) in counts.get("metrics", {}).items():
                named = {**labels, "metric": str(name)}
                yield Sample("replica_summed_metric", named, total + rest)
                yield Sample("replica_metric_samples_total", named, weight)


# Families of a replica, and what its counts are called in a heartbeat.
_COUNTS = {
    "replica_steps_total": "steps",
    "replica_predicted_total": "predicted",
    "replica_samples_total": "samples",
    "replica_predictions_total": "predictions",
    "replica_refused_total": "refused",
    "replica_busy_seconds_total": "busy",
    "replica_sent_messages_total": "sent",
    "replica_received_messages_total": "received",
    "replica_sent_bytes_total": "sent_bytes",
    "replica_received_bytes_total": "received_bytes",
    "replica_resent_messages": "resent",
    "replica_conflated_messages": "conflated",
    "replica_summed_loss": "loss",
    "replica_staleness_mean": "staleness_mean",
    "replica_staleness_p95": "staleness_p95",
    "replica_staleness_max": "staleness_max",
    "replica_age_p95_seconds": "age_p95",
    "replica_interval_seconds": "interval",
    "replica_publishing_seconds": "cost",
    "replica_version": "version",
}
