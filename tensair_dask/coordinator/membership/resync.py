"""Catching up: who has missed gradients takes over a model that holds them."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from tensair_dask import config
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.replica_group import ReplicaGroup
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.errors import ReplicaLostError, TensairTimeoutError

__all__ = ["Resync"]

logger = logging.getLogger(__name__)


class Resync:
    """Asks replicas what they have of each other, and makes good what they lack.

    Belongs to the client's event loop.

    Parameters
    ----------
    replicas
        Those that are asked.
    barrier
        Holds the stream.
    events
        Gets an event for what they missed.
    """

    def __init__(
        self, replicas: ReplicaGroup, barrier: Barrier, events: RunEvents
    ) -> None:
        self._replicas = replicas
        self._barrier = barrier
        self._events = events
        self._mending = asyncio.Lock()

    async def confirm_the_idle(self) -> None:
        """Ask those that report nothing what their peers have applied meanwhile.

        And what they have missed themselves.
        """
        idle = [each for each in self._replicas.alive() if not each.lane.sent]
        await asyncio.gather(*map(self._confirm, idle))

    async def _confirm(self, handle: ReplicaHandle) -> None:
        # One that is silent is asked again; till then it keeps the others waiting.
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(ReplicaLostError, TensairTimeoutError):
            status = await self._replicas.ask(handle, "status", timeout=seconds)
            self._replicas.dispatcher.note_status(handle.lane, status)
            self._replicas.dispatcher.confirm(handle.lane)

    async def look(self) -> None:
        """Ask all how they stand, and `complete` them."""
        for handle, status in (await self._replicas.ask_all("status")).items():
            self._replicas.dispatcher.note_status(handle.lane, status)
            self._replicas.dispatcher.confirm(handle.lane)
        await self.complete()

    async def complete(self) -> None:
        """Let replicas that have missed gradients take over a model that holds them.

        Whatever the reason: a replica whose peers go on without it would else drift
        away from them unnoticed.
        """
        await self._mend_the_inexact()
        statuses = [each.lane.status for each in self._replicas.alive()]
        if not any(status is not None and status.missed for status in statuses):
            return
        # Most of the way without holding anything.
        await self._barrier.flush()
        await self._barrier.undisturbed(self._catch_up)
        for handle, status in (await self._replicas.ask_all("status")).items():
            self._replicas.dispatcher.note_status(handle.lane, status)

    async def _mend_the_inexact(self) -> None:
        """Let replicas share updates where gradients do not tell all."""
        async with self._mending:
            statuses = [each.lane.status for each in self._replicas.alive()]
            if any(status is not None and status.inexact for status in statuses):
                await self._share_updates()

    async def _share_updates(self) -> None:
        await self._barrier.flush()
        await self._barrier.share_updates()
        self._events.note(
            "note",
            "The model changes its own parameters when it is called, which gradients "
            "do not tell: from here on the replicas share updates, and began again "
            "with the model of one of them. Give share='update' to begin with that.",
        )
        for handle, status in (await self._replicas.ask_all("status")).items():
            self._replicas.dispatcher.note_status(handle.lane, status)

    async def _catch_up(self) -> None:
        answers = await self._replicas.ask_all("status")
        behind = [each for each, status in answers.items() if status.missed]
        if not behind:
            return
        # Who has refused what is NaN or infinite is behind one whose model is that.
        finite = await self._replicas.ask_all("is_finite")
        sound = [each for each in answers if finite.get(each)] or list(answers)
        source = max(
            sound, key=lambda each: (each not in behind, answers[each].version)
        )
        others = [
            each
            for each in answers
            if each is not source and (each in behind or each not in sound)
        ]
        if source in behind:
            # None holds all: what the source has missed is lost. Before it is copied,
            # or those that take it over would still wait for that.
            clock = {each.name: status.steps for each, status in answers.items()}
            await self._replicas.ask(source, "overlook", clock)
        copied = await self._barrier.copy(source, others) if others else []
        if others and not copied:
            return  # one of both ends is gone: the next round knows
        text = f"{len(copied)} replicas had missed gradients: took over a peer's model"
        poisoned = len(set(copied).difference(sound))
        if poisoned:
            text = (
                f"{len(copied)} replicas took over a peer's model: that of {poisoned} "
                "was NaN or infinite, and the others had refused what it sent"
            )
        if source in behind:
            text += ", which had missed some, too"
            logger.warning("Gradients were lost: %s", text)
        self._events.note("note", text)
