"""Overview: how a trainer stands at one moment."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tensair_dask.observe.telemetry.events import Event

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Overview", "ReplicaRow", "dashboard_link", "look_at", "replica_rows"]

# What is called "now": the newest stretch of so many seconds.
NOW = 3.0


@dataclass(frozen=True)
class ReplicaRow:
    """One replica, as far as the client knows.

    Attributes
    ----------
    name, address, device
        Of the replica, of its worker, and where its model lies.
    state
        ``"learning"``, ``"predicting"``, ``"waiting"``, ``"left"``, ``"lost"`` or
        ``"closed"``.
    steps, samples, staleness, version
        As `ReplicaInfo` has them.
    sent, received
        Bytes of gradient messages; None until it is closed.
    """

    name: str
    address: str
    device: str
    state: str
    steps: int
    samples: int
    staleness: float
    version: int
    sent: int | None = None
    received: int | None = None


@dataclass(frozen=True)
class Overview:
    """How a trainer stands at one moment.

    Attributes
    ----------
    name, run_id
        Of the trainer.
    status
        ``"starting"``, ``"open"`` or ``"closed"``.
    doing
        Phase and mode, where the mode may stop the learning; else empty.
    share
        ``"gradient"`` or ``"update"``, what the replicas publish; empty at the start.
    time
        Seconds since the epoch.
    replicas
        One row each.
    emitted, backlog, lag, dead_letters, dropped
        As the trainer has them.
    curves
        The whole run.
    now
        Means over the newest three seconds, by column of the curves.
    metrics
        Names of the trainer's metrics.
    events
        The newest ones, in order.
    dashboard, training
        Links to Dask's dashboard and to the training pages on it; None if there are
        none.
    """

    name: str
    run_id: str
    status: str
    doing: str
    share: str
    time: float
    replicas: list[ReplicaRow]
    emitted: int
    backlog: int
    lag: float
    dead_letters: int
    dropped: int
    curves: pd.DataFrame
    now: dict[str, float]
    metrics: list[str]
    events: list[Event]
    dashboard: str | None
    training: str | None

    @property
    def alive(self) -> int:
        """How many replicas are alive."""
        return sum(row.state not in ("lost", "left", "closed") for row in self.replicas)

    @property
    def steps(self) -> int:
        """Mini-batches learned, or only scored."""
        return int(self.curves["steps"].iloc[-1])

    @property
    def samples(self) -> int:
        """Rows in them."""
        return int(self.curves["samples"].iloc[-1])

    @property
    def seconds(self) -> float:
        """How long the run has lasted."""
        return float(self.curves["seconds"].sum())


def look_at(trainer: Any, events: int = 8) -> Overview:
    """Look at a trainer, on its client's event loop.

    Parameters
    ----------
    trainer
        To look at.
    events
        How many of the newest events to take.
    """
    session = trainer.session
    curves = session.recording.curves.frame()
    metrics = session.recording.curves.metrics
    dashboard, training = dashboard_link(trainer)
    return Overview(
        name=trainer.name,
        run_id=trainer.run_id,
        status=trainer.status,
        doing=_doing(trainer),
        share=trainer.share,
        time=time.time(),
        replicas=replica_rows(trainer),
        emitted=trainer.emitted,
        backlog=trainer.backlog,
        lag=trainer.lag,
        dead_letters=trainer.dead_letters.total,
        dropped=trainer.dropped,
        curves=curves,
        now=newest(curves, metrics),
        metrics=metrics,
        events=list(session.events.log)[-events:],
        dashboard=dashboard,
        training=training,
    )


def _doing(trainer: Any) -> str:
    if trainer.mode == "always" or trainer.status != "open":
        return ""
    return f"{trainer.phase} (mode {trainer.mode})"


def replica_rows(trainer: Any) -> list[ReplicaRow]:
    """What is known of each replica; of those that were closed, their last counts."""
    rows = []
    session = trainer.session
    busy = "learning" if trainer.phase == "training" else "predicting"
    for handle, info in zip(session.replicas.handles, trainer.replicas, strict=True):
        last = session.last_counts.get(handle.name, {})
        if info.alive:
            state = busy if handle.lane.batches else "waiting"
        elif handle.name in session.last_counts:
            state = "closed"
        else:
            state = "left" if handle.lane.leaving else "lost"
        rows.append(
            ReplicaRow(
                name=handle.name,
                address=info.address,
                device=info.device,
                state=state,
                steps=last.get("steps", info.steps),
                samples=last.get("samples", info.samples),
                staleness=last.get("staleness_mean", info.staleness),
                version=last.get("version", info.version),
                sent=last.get("sent_bytes"),
                received=last.get("received_bytes"),
            )
        )
    return rows


def newest(curves: pd.DataFrame, metrics: list[str]) -> dict[str, float]:
    """Means over the newest stretch: rates over time, scores over what was learned."""
    left = curves["seconds"].iloc[::-1].cumsum().iloc[::-1]
    # The row that reaches back beyond it counts as a whole.
    rows = curves[left - curves["seconds"] < NOW]
    seconds = rows["seconds"].to_numpy()
    learned = np.nan_to_num(rows["samples_per_second"].to_numpy()) * seconds
    found = {
        name: _mean(rows[name].to_numpy(), seconds)
        for name in ("samples_per_second", "steps_per_second")
    }
    for name in ("loss", "staleness", *metrics):
        found[name] = _mean(rows[name].to_numpy(), learned)
    return found


def _mean(values: np.ndarray, weights: np.ndarray) -> float:
    """Weighted mean of what is known; NaN if nothing is."""
    known = np.isfinite(values) & (weights > 0)
    if not known.any():
        return math.nan
    return float(np.average(values[known], weights=weights[known]))


def dashboard_link(trainer: Any) -> tuple[str | None, str | None]:
    """Links to Dask's dashboard and to the training pages; None where none are."""
    if trainer.client.status in ("closed", "closing"):
        return None, None
    try:
        link = trainer.client.dashboard_link
    except Exception:  # Dask has nothing to build it of
        return None, None
    page = trainer.session.reporter.page
    if not link or page is None:
        return link, None
    base = link.rpartition("/")[0]  # it ends in /status, whatever proxy is before it
    return link, f"{base}/{page.lstrip('/')}"
