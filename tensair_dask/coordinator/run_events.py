"""What happens in a run: where it is said, and who hears it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tensair_dask._common.notices import Notices
from tensair_dask._common.serial_queue import OneByOne
from tensair_dask.observe.telemetry.events import TOPIC, Event, Events

if TYPE_CHECKING:
    from collections.abc import Callable

    from distributed import Client

    from tensair_dask.coordinator.lane import Lane
    from tensair_dask.coordinator.pending import Pending
    from tensair_dask.coordinator.replica_handle import ReplicaHandle
    from tensair_dask.errors import TensairError
    from tensair_dask.reports import Report

__all__ = ["RunEvents", "Subscriber"]

logger = logging.getLogger(__name__)

# The scheduler sees these itself, and shows them.
_SEEN_BY_SCHEDULER = ("joined", "lost")


class Subscriber:
    """Hears what happens in a run. Override the methods that matter to you.

    All of them are called on the client's event loop, and must not wait.
    """

    def reported(self, pending: Pending, report: Report) -> None:
        """Take in a report, before it is delivered."""

    def replica_joined(self, handle: ReplicaHandle) -> None:
        """Take note of a replica that learns from now on."""

    def replica_lost(self, lane: Lane) -> None:
        """Take note of a replica that is lost, or has left."""

    def prediction_refused(self, error: TensairError) -> None:
        """Take note of inputs that a replica could not predict."""


class RunEvents:
    """The events of one run: kept, sent to the dashboard, and told to subscribers.

    Belongs to the client's event loop.

    Parameters
    ----------
    client
        Of the trainer.
    run_id
        Of the trainer.

    Attributes
    ----------
    index
        Number of the next mini-batch: when an event happens that is said now.
    log
        The newest events.
    """

    def __init__(self, client: Client, run_id: str) -> None:
        self.index = 0
        self.log = Events()
        self._client = client
        self._run_id = run_id
        self._notices = Notices()
        self._sending = OneByOne("Telling the scheduler")
        self._subscribers: list[Subscriber] = []
        # Called for each mini-batch: those only that do something.
        self._reported: list[Callable[[Pending, Report], None]] = []

    def subscribe(self, subscriber: Subscriber) -> None:
        """Let an object hear what happens from now on, behind the earlier ones."""
        self._subscribers.append(subscriber)
        if type(subscriber).reported is not Subscriber.reported:
            self._reported.append(subscriber.reported)

    # ---- what subscribers hear -------------------------------------------------------

    def reported(self, pending: Pending, report: Report) -> None:
        """Say that a mini-batch was learned, scored or refused."""
        for hear in self._reported:
            hear(pending, report)

    def replica_joined(self, handle: ReplicaHandle) -> None:
        """Say that a replica learns from now on."""
        for each in self._subscribers:
            each.replica_joined(handle)

    def replica_lost(self, lane: Lane) -> None:
        """Say that a replica is lost, or has left."""
        for each in self._subscribers:
            each.replica_lost(lane)

    def prediction_refused(self, error: TensairError) -> None:
        """Say that a replica could not predict what it was given."""
        for each in self._subscribers:
            each.prediction_refused(error)

    # ---- what people read ------------------------------------------------------------

    def note(
        self, kind: str, text: str, replica: str = "", index: int | None = None
    ) -> None:
        """Keep an event, and send it to the dashboard in its turn.

        Parameters
        ----------
        kind
            One of `KINDS`.
        text
            For people.
        replica
            Name of the replica that it is about.
        index
            Number of the mini-batch at which it happened; None for now.
        """
        event = self.keep(kind, text, replica, index)
        if kind not in _SEEN_BY_SCHEDULER:
            self._sending.do(lambda: self._send(event))

    def keep(
        self, kind: str, text: str, replica: str = "", index: int | None = None
    ) -> Event:
        """Keep an event, and send it nowhere; parameters as in `note`."""
        when = self.index if index is None else index
        event = Event(kind, text, index=when, replica=replica)
        self.log.append(event)
        return event

    def say_once(self, key: str, text: str) -> None:
        """Warn, and note it, unless the same key was said before.

        Parameters
        ----------
        key
            What it is about.
        text
            What was given, what is allowed, and what to do.
        """
        if self._notices.say(key, text):
            for said in self._notices.take().values():
                logger.warning("%s", said)
                self.note("note", said)

    async def mark(self, kind: str, text: str) -> None:
        """Keep an event; return when the dashboard has it."""
        await self._send(self.keep(kind, text))

    async def _send(self, event: Event) -> None:
        """Write an event into Dask's event log, where the dashboard reads it."""
        content: dict[str, Any] = {"run_id": self._run_id, **event.plain()}
        await self._client.log_event(TOPIC, content)

    async def sent(self, timeout: float) -> None:
        """Wait until the dashboard has all events.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        await self._sending.settled(timeout)

    async def close(self) -> None:
        """Send no more."""
        await self._sending.close()
