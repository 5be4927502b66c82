"""The scheduler's half: reads the heartbeats, keeps a record of each trainer."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from typing import Any

from tensair_dask.observe.telemetry.counters import plain
from tensair_dask.observe.telemetry.events import KINDS, LEAVING, Event
from tensair_dask.observe.telemetry.trainers import TrainerRecord
from tensair_dask.observe.telemetry.worker import METRIC

__all__ = ["Telemetry", "finite"]

logger = logging.getLogger(__name__)

# Of an event's text.
_CHARACTERS = 1000


class Telemetry:
    """Records of the trainers of a cluster.

    Parameters
    ----------
    scheduler
        Whose workers' heartbeats are read.
    trainers
        How many records are kept; the oldest of those that are over goes first. If
        none is over, further trainers are not shown.
    length
        Rows of each tier of the series.

    Notes
    -----
    Costs nothing per mini-batch: what comes in is one heartbeat a worker, and one
    message a second from the client of each trainer.
    """

    def __init__(self, scheduler: Any, trainers: int = 16, length: int = 600) -> None:
        self.scheduler = scheduler
        self.trainers: dict[str, TrainerRecord] = {}
        self._most = trainers
        self._length = length

    # ---- from clients ---------------------------------------------------------------

    def open(
        self,
        run_id: str,
        name: str,
        client: str,
        metrics: list[str],
        target: int | None,
    ) -> bool:
        """Begin the record of a trainer; False if there is no room for it.

        Parameters
        ----------
        run_id, name, client, metrics
            As `TrainerRecord` has them.
        target
            How many replicas it wants; None for one on each worker.
        """
        if run_id in self.trainers:
            return True
        if not self._make_room():
            return False
        self.trainers[run_id] = TrainerRecord(
            run_id,
            self._distinct_name(plain(name)),
            client,
            [plain(metric) for metric in metrics],
            target or len(self.scheduler.workers),
            self._length,
        )
        return True

    def _distinct_name(self, name: str) -> str:
        """Return the name, numbered if another trainer on the page has it."""
        taken = {record.name for record in self.trainers.values()}
        number, found = 2, name
        while found in taken:
            found, number = f"{name} ({number})", number + 1
        return found

    def _make_room(self) -> bool:
        over = [run for run, record in self.trainers.items() if record.is_over]
        for run_id in over[: max(0, len(self.trainers) + 1 - self._most)]:
            del self.trainers[run_id]
        return len(self.trainers) < self._most

    def update(self, run_id: str, told: dict[str, Any]) -> bool:
        """Take in what a client says of its trainer; False if that is not known."""
        record = self.trainers.get(run_id)
        if record is not None:
            record.update(told)
        return record is not None

    def close(self, run_id: str, replicas: dict[str, Any]) -> None:
        """Take note that a trainer was closed.

        Parameters
        ----------
        run_id
            Run of the trainer.
        replicas
            Address of the worker, and the last snapshot, of each replica that gave
            one, by name: no heartbeat brings it.
        """
        record = self.trainers.get(run_id)
        if record is None or record.is_over:
            return
        for name, (address, snapshot) in replicas.items():
            record.observe(name, address, snapshot)
        record.sample(len(self.scheduler.workers))
        record.end("closed")

    def event(self, message: Any) -> None:
        """Take in an entry of Dask's event log; anything may have written it."""
        try:
            record = self.trainers.get(message["run_id"])
            if record is not None and message["kind"] == LEAVING:
                record.leave(message["replica"], now=False)
            elif record is not None and message["kind"] in KINDS:
                text = plain(message["text"], _CHARACTERS)
                moment = float(message.get("time", time.time()))
                if math.isfinite(moment):
                    record.events.append(Event(message["kind"], text, moment))
                    if message["kind"] == "left":
                        record.leave(message.get("replica", ""))
        except (TypeError, KeyError, ValueError, OverflowError, AttributeError):
            logger.debug("Not an event of a training: %r", message)

    # ---- from the cluster -----------------------------------------------------------

    def remove_worker(self, address: str) -> None:
        """Take note that a worker is gone, and its replicas with it."""
        for record in self.trainers.values():
            for replica in record.alive:
                if replica.address == address:
                    record.lose(replica)

    def remove_client(self, client: str) -> None:
        """Take note that a client is gone, and its trainers with it."""
        for record in self.trainers.values():
            if record.client == client:
                record.end("lost")

    def sample(self) -> None:
        """Read the newest heartbeats and add a row to each series."""
        self.sample_replicas()
        workers = len(self.scheduler.workers)
        for record in self.trainers.values():
            if not record.is_over:
                record.sample(workers)

    def sample_replicas(self) -> None:
        """Read the newest heartbeats."""
        now = time.monotonic()
        for address, worker in self.scheduler.workers.items():
            for run_id, replicas in (worker.metrics.get(METRIC) or {}).items():
                record = self.trainers.get(run_id)
                if record is None or record.is_over:
                    continue
                for name, snapshot in replicas.items():
                    record.observe(name, address, snapshot, now)
        for record in self.trainers.values():
            if not record.is_over:
                record.listen(now)

    # ---- to whoever asks ------------------------------------------------------------

    def read(self, series: bool = False, recent: Sequence[str] = ()) -> dict[str, Any]:
        """Everything that is known, fit for JSON: what is not a number is None.

        Parameters
        ----------
        series
            With the whole series of each trainer, by column.
        recent
            Columns of the series whose newest rows are wanted, at the finest
            resolution.
        """
        workers = len(self.scheduler.workers)
        trainers = []
        for record in self.trainers.values():
            summary = record.summary(workers)
            if series:
                summary["series"] = {
                    name: column.tolist()
                    for name, column in record.archive.whole().items()
                }
            if recent:
                newest = record.archive.since()
                summary["recent"] = {
                    name: newest[name].tolist() for name in recent if name in newest
                }
            trainers.append(finite(summary))
        return {"time": time.time(), "workers": workers, "trainers": trainers}


def finite(tree: Any) -> Any:
    """Put None in place of NaN and infinity, which JSON does not have."""
    if isinstance(tree, dict):
        return {key: finite(value) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [finite(value) for value in tree]
    if isinstance(tree, float) and not math.isfinite(tree):
        return None
    return tree
