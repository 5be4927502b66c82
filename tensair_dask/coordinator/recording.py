"""What a run leaves to read: the newest reports, and curves of all of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tensair_dask import config
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.run_events import Subscriber
from tensair_dask.observe.telemetry.curves import Curves
from tensair_dask.reports import History, Report

__all__ = ["Recording"]


class Recording(Subscriber):
    """Keeps the newest reports, and curves of the whole run.

    Parameters
    ----------
    metrics
        Names of the columns of metrics.
    now
        Gives backlog, lag and living replicas, for each row of the curves.
    """

    def __init__(
        self, metrics: Sequence[str], now: Callable[[], dict[str, float]]
    ) -> None:
        self.history = History(int(config.get("history")), metrics)
        self.curves = Curves(
            metrics,
            now,
            config.get_seconds("curves.interval"),
            int(config.get("curves.rows")),
        )

    def reported(self, pending: Pending, report: Report) -> None:
        """Keep a report."""
        self.history.append(report)
        self.curves.observe(report, pending.taken)
