"""The state of a run, as the curves and the scheduler get it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from tensair_dask._common.score_columns import columns
from tensair_dask.observe.telemetry.counters import plain

if TYPE_CHECKING:
    from tensair_dask.coordinator.session import Session

__all__ = ["Status"]


class Status:
    """Looks at a run, at one moment.

    Parameters
    ----------
    session
        The run.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def now(self) -> dict[str, float]:
        """Give what each row of the curves gets besides the reports."""
        session = self._session
        return {
            "backlog": session.intake.backlog,
            "lag": session.intake.lag(),
            "replicas": sum(lane.alive for lane in session.dispatcher.lanes),
        }

    def about(self) -> dict[str, Any]:
        """Give what the scheduler gets at the start."""
        session = self._session
        most = session.membership.wanted.most
        names = columns(session.options.recipe.metrics)
        return {
            "run_id": session.run_id,
            "name": plain(session.name),
            "client": session.client.id,
            "metrics": [plain(each) for each in names],
            "target": None if most == math.inf else int(most),
        }

    def state(self) -> dict[str, Any]:
        """Give what the scheduler gets once a second."""
        session, intake = self._session, self._session.intake
        modes = session.drift_response.modes
        state = {
            "state": "starting" if session.state == "new" else "open",
            "emitted": intake.emitted,
            "backlog": intake.backlog,
            "lag": intake.lag(),
            "dead_letters": intake.dead_letters.total,
            "dropped": intake.dropped,
            "mode": modes.mode,
            "phase": modes.phase,
            "metrics": [plain(each) for each in session.recording.curves.metrics],
            "share": session.share,
        }
        if session.replicas.handles:
            state["target"] = session.membership.target
        return state
