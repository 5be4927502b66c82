"""Recovery: what becomes of what replicas had learned that are lost, or have left."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable

from tensair_dask import config
from tensair_dask._common.background import Background
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.lane import Lane
from tensair_dask.coordinator.membership.last_replica import Handover
from tensair_dask.coordinator.membership.usable_workers import UsableWorkers
from tensair_dask.coordinator.replica_group import ReplicaGroup
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.errors import (
    ReplicaFailedError,
    TensairError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.exchange.exchange import Holding
from tensair_dask.pubsub.moments import Moment, reach

__all__ = ["Recovery"]

logger = logging.getLogger(__name__)

# Replicas that are gone, and that are still told of.
REMEMBERED = 50


class Recovery:
    """Finds out what lives on of replicas that are gone.

    *A replica is lost*: the others go on at once. They are asked how much they have of
    it; if they differ, the stream is held for a moment while all take over the model of
    the one that has most. Then it is known of each mini-batch that the lost one had
    whether its gradient lives on, and those are learned again whose gradient does not.

    *A replica leaves*: it gets nothing more, learns what it has, and publishes it. What
    follows is as if it were lost, but that nothing is. If it is the last one, another
    inherits its model; the stream waits meanwhile.

    Belongs to the client's event loop.

    Parameters
    ----------
    workers
        Told of those that go.
    handover
        Where none is left that stays.
    replicas
        All of them; those that are gone for long are forgotten here.
    barrier
        Holds the stream.
    background
        Where this is done.
    events
        Gets an event for each replica that is lost or has left.
    """

    def __init__(
        self,
        workers: UsableWorkers,
        handover: Handover,
        replicas: ReplicaGroup,
        barrier: Barrier,
        background: Background,
        events: RunEvents,
    ) -> None:
        self._workers = workers
        self._handover = handover
        self._replicas = replicas
        self._barrier = barrier
        self._background = background
        self._events = events
        self._recovering: asyncio.Task[None] | None = None

    def lost(self, lane: Lane) -> None:
        """Take note of a replica that is lost, or has left; `recovered` tells when."""
        handle = next(each for each in self._replicas.handles if each.lane is lane)
        kind = "left" if lane.leaving else "lost"
        if lane.leaving and not handle.unwanted:
            # Its worker is about to go, and may still be there for a while.
            self._workers.avoid(lane.address)
        text = f"the replica on {lane.address}"
        if isinstance(lane.failure, ReplicaFailedError):
            # What raised there would do so again at once.
            self._workers.avoid(lane.address)
            text += f": {lane.failure}"
        self._events.note(kind, text, handle.name)
        if self.settled:
            self._recovering = self._background.go_on_with(self._recover())

    @property
    def settled(self) -> bool:
        """Whether it is known of all that was lost what lives on."""
        return self._recovering is None or self._recovering.done()

    async def recovered(self, timeout: float) -> None:
        """Wait until what was lost is known.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        if self._recovering is None:
            return
        done, _ = await asyncio.wait({self._recovering}, timeout=timeout)
        if not done:
            raise TensairTimeoutError(
                f"The other replicas did not tell within {timeout:g} s what they have "
                "of one that was lost. Raise tensair.timeouts.drain if the steps are "
                "slow; look at the workers if they are not."
            )

    async def _recover(self) -> None:
        while not self._background.closed and self._replicas.unjudged:
            try:
                await self._last_reports()
                async with self._barrier.alone:
                    await self._judge(self._replicas.unjudged)
            except TrainerClosedError:
                return
            except Exception as error:
                known = isinstance(error, (OSError, TensairError))
                logger.warning(
                    "A replica's loss is not made good yet: %s",
                    error or repr(error),
                    exc_info=None if known else error,
                )
                await asyncio.sleep(config.get_seconds("replicas.watch"))
        self._replicas.forget(REMEMBERED)

    async def _last_reports(self) -> None:
        """Where all that are left leave: wait for what these still learn.

        They have the model, and are asked what they have of those that are lost.
        """
        while not self._alive:
            ending = [
                each.lane.lost for each in self._replicas.handles if each.lane.alive
            ]
            if not ending:
                return
            await asyncio.wait(ending)

    async def _judge(self, gone: list[ReplicaHandle]) -> None:
        """Find out what lives on of replicas that are gone."""
        await self._see_all_off([each for each in gone if each.lane.leaving])
        names = [handle.name for handle in gone]
        holdings = await self._replicas.ask_all("seal", names)
        for handle in holdings:
            reach(Moment.SEALED, handle)
        if _agree(holdings.values(), names):
            holding = next(iter(holdings.values()), None)
        else:
            holding = await self._reconcile(names)
        if len(self._replicas.unjudged) > len(gone) or (
            holding is None and self._alive
        ):
            return  # more were lost meanwhile: ask again
        for handle in gone:
            taken = None if holding is None else holding.taken.get(handle.name, 0)
            self._replicas.dispatcher.resolve(handle.lane, taken)
            handle.release()

    async def _see_all_off(self, leaving: list[ReplicaHandle]) -> None:
        """See off those that leave, and let their model be inherited if none stays."""
        seeing = {each: asyncio.ensure_future(self._see_off(each)) for each in leaving}
        hand_over = self._handover.hand_over
        try:
            # The last one waits for its heir before it goes.
            orphaned = not self._alive and not await hand_over(seeing)
            await asyncio.gather(*seeing.values())
        finally:
            for task in seeing.values():
                task.cancel()
        if not self._alive and not orphaned:  # who stayed was lost meanwhile
            await hand_over(seeing)

    async def _see_off(self, handle: ReplicaHandle) -> None:
        """Let a replica publish what it has learned, and end."""
        seconds = config.get_seconds("timeouts.leave")
        try:
            await handle.call_within(seconds, "leave", seconds)
        except (OSError, TensairError) as error:
            logger.info(
                "The replica on %s left at once: %s", handle.lane.address, error
            )
        reach(Moment.SEEN_OFF, handle)

    async def _reconcile(self, names: list[str]) -> Holding | None:
        """Let all take over the model of the one that has most of those that are gone.

        Returns
        -------
        holding
            Of all; None if one was lost meanwhile.
        """
        async with self._barrier.rest():
            holdings = await self._replicas.ask_all("seal", names)
            if not holdings:
                return None

            def held(handle: ReplicaHandle) -> int:
                return sum(holdings[handle].clock.get(name, 0) for name in names)

            source = max(holdings, key=held)
            behind = [
                each
                for each in holdings
                if not _agree((holdings[source], holdings[each]), names)
            ]
            copied = await self._barrier.copy(source, behind) if behind else []
            settled = {source, *copied, *(set(holdings) - set(behind))}
            if any(handle not in settled for handle in self._replicas.alive()):
                return None
        self._events.note(
            "note", f"{len(behind)} replicas took over a model that holds more"
        )
        return holdings[source]

    @property
    def _alive(self) -> bool:
        return bool(self._replicas.alive())


def _agree(holdings: Iterable[Holding], names: list[str]) -> bool:
    """Whether all hold the same of these."""
    counts = {tuple(each.clock.get(name, 0) for name in names) for each in holdings}
    return len(counts) <= 1
