"""The scheduler plugin: telemetry, pages and routes, on a cluster that runs already."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin
from tornado.ioloop import PeriodicCallback

from tensair_dask import config
from tensair_dask.observe.dashboard.attach import Attachment
from tensair_dask.observe.dashboard.routes import add_routes, remove_routes
from tensair_dask.observe.telemetry.events import TOPIC
from tensair_dask.observe.telemetry.prometheus import export_scheduler, withdraw
from tensair_dask.observe.telemetry.scheduler import Telemetry

__all__ = ["NAME", "TrainingDashboard"]

logger = logging.getLogger(__name__)

NAME = "tensair-dashboard"

_FULL = (
    "as many trainers are open as the scheduler keeps (tensair.dashboard.trainers in "
    "its configuration)"
)


class TrainingDashboard(SchedulerPlugin):
    """Watches the trainers of a cluster, and shows them.

    Registered by every `Trainer` when it starts; the first one counts. Nothing here
    may raise into Dask: training goes on whether it is watched or not.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.telemetry: Telemetry | None = None
        self._scheduler: Any = None
        self.sampling: PeriodicCallback | None = None
        self.attachment: Attachment | None = None
        self._failed = False

    async def start(self, scheduler: Any) -> None:
        """Install the handlers, attach the pages, begin to sample; only once.

        Waits for nothing: of two clients that register this plugin at the same time,
        both would otherwise get theirs started.
        """
        if self.telemetry is not None:  # a scheduler starts what was preloaded again
            return
        self._scheduler = scheduler
        milliseconds = 1000 * config.get_seconds("dashboard.interval")
        self.sampling = PeriodicCallback(self.sample, milliseconds)
        self.telemetry = Telemetry(
            scheduler,
            int(config.get("dashboard.trainers")),
            int(config.get("dashboard.rows")),
        )
        self.attachment = Attachment(scheduler, self.telemetry)
        self._show_to_programs()
        # Last: if anything above raises, nobody can call what is not there.
        scheduler.handlers.update(
            tensair_telemetry_open=self.open,
            tensair_telemetry_tell=self.update,
            tensair_telemetry_close=self.close_trainer,
            tensair_telemetry_read=self.read,
        )
        self.sampling.start()

    def _show_to_programs(self) -> None:
        assert self.telemetry is not None
        try:
            export_scheduler(self.telemetry)
            add_routes(self._scheduler, self.telemetry)
        except Exception:
            logger.exception("Training is not shown on /metrics or as JSON")

    async def close(self) -> None:
        """End with the scheduler."""
        self.stop()

    def stop(self) -> None:
        """Stop sampling and take the pages away."""
        if self.sampling is not None:
            self.sampling.stop()
        if self.attachment is not None:
            self.attachment.detach()
        if self.telemetry is not None:
            withdraw(self.telemetry)
            remove_routes(self._scheduler, self.telemetry)
        for name in ("open", "tell", "close", "read"):
            handler = f"tensair_telemetry_{name}"
            if getattr(self._scheduler.handlers.get(handler), "__self__", None) is self:
                del self._scheduler.handlers[handler]

    def sample(self) -> None:
        """Read the heartbeats; called twice a second."""
        if self._scheduler.plugins.get(NAME) is not self:
            # Dask forgets a plugin that is unregistered without telling it.
            self.stop()
            return
        assert self.telemetry is not None
        try:
            self.telemetry.sample()
        except Exception:
            # Once: what is wrong (another version on a worker, say) stays so.
            level = logging.DEBUG if self._failed else logging.ERROR
            logger.log(level, "Trainers' heartbeats cannot be read", exc_info=True)
            self._failed = True

    # ---- handlers, called by clients ------------------------------------------------

    async def open(
        self,
        run_id: str,
        name: str,
        client: str,
        metrics: list[str],
        target: int | None,
    ) -> dict[str, Any]:
        """Begin to watch a trainer; where its pages are, or why there are none.

        Returns
        -------
        answer
            ``page`` and ``reason`` as of `Attachment`; ``known`` is whether the
            trainer is watched at all.
        """
        assert self.telemetry is not None
        assert self.attachment is not None
        if not self.telemetry.open(run_id, name, client, metrics, target):
            return {"page": None, "reason": _FULL, "known": False}
        page, reason = self.attachment.page, self.attachment.reason
        return {"page": page, "reason": reason, "known": True}

    async def update(self, run_id: str, told: dict[str, Any]) -> bool:
        """Take in what a client says of its trainer; see `Telemetry.update`."""
        assert self.telemetry is not None
        return self.telemetry.update(run_id, told)

    async def close_trainer(self, run_id: str, replicas: dict[str, Any]) -> None:
        """Take note that a trainer was closed; see `Telemetry.close`."""
        assert self.telemetry is not None
        self.telemetry.close(run_id, replicas)

    async def read(
        self, series: bool = False, recent: Sequence[str] = ()
    ) -> dict[str, Any]:
        """Give everything, see `Telemetry.read`, and where the pages are."""
        assert self.telemetry is not None
        assert self.attachment is not None
        page = {"page": self.attachment.page}
        return {**page, **self.telemetry.read(series, recent)}

    # ---- hooks, called by the scheduler ---------------------------------------------

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Its replicas are lost."""
        assert self.telemetry is not None
        self.telemetry.remove_worker(worker)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Its trainers are over."""
        assert self.telemetry is not None
        self.telemetry.remove_client(client)

    def log_event(self, topic: str, msg: Any) -> None:
        """Draw what was logged as an event of a training across the curves."""
        if topic == TOPIC and self.telemetry is not None:
            self.telemetry.event(msg)
