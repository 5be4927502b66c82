"""Handover: where all replicas leave, another one takes their model over first."""

from __future__ import annotations

import asyncio
import contextlib
import logging

from tensair_dask import config
from tensair_dask.coordinator.membership.usable_workers import UsableWorkers
from tensair_dask.coordinator.replica_group import ReplicaGroup
from tensair_dask.coordinator.replica_handle import Delayed, ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.coordinator.start import Starter
from tensair_dask.errors import ClusterError, ModelError, TensairError
from tensair_dask.pubsub.moments import Moment, reach

__all__ = ["Handover"]

logger = logging.getLogger(__name__)

# Seconds that a worker gets to begin, where there are others that may.
PATIENCE = 3.0


class Handover:
    """Starts an heir, if there is a worker for it, while the last replica waits.

    Belongs to the client's event loop.

    Parameters
    ----------
    starter
        Builds replicas.
    workers
        Those that there are.
    replicas
        Where the heir is added when it takes part.
    events
        Gets an event for it.

    Attributes
    ----------
    is_wanted
        Whether there is to be an heir; not where the client and all workers end.
    """

    def __init__(
        self,
        starter: Starter,
        workers: UsableWorkers,
        replicas: ReplicaGroup,
        events: RunEvents,
    ) -> None:
        self._starter = starter
        self._workers = workers
        self._replicas = replicas
        self._events = events
        self.is_wanted = True

    async def hand_over(self, seeing: dict[ReplicaHandle, asyncio.Task[None]]) -> bool:
        """Start a replica that takes over the model of those that leave; tell if so.

        Parameters
        ----------
        seeing
            Those that leave, and what sees them off.
        """
        heir = None
        source, version = await self._keeper(seeing)
        if source is not None and self.is_wanted:
            refuges = await self._refuges(list(seeing))
            for address in refuges:
                # One that is busy delays the others for no longer than need be.
                is_last = address == refuges[-1]
                heir = await self._bequeath(source, address, is_last)
                if heir is not None or source.is_lost:
                    break
        if heir is not None:
            self._replicas.add(heir)
            self._events.replica_joined(heir)
            text = f"the replica on {heir.place.address}, from the last one that leaves"
            self._events.note("joined", text, heir.name)
        # A model as it was built is no loss.
        elif seeing and version != 0 and self.is_wanted:
            logger.warning("The model could not be handed over to another worker")
        await asyncio.gather(*(self._set_free(each) for each in seeing))
        return heir is not None

    async def _keeper(
        self, seeing: dict[ReplicaHandle, asyncio.Task[None]]
    ) -> tuple[ReplicaHandle | None, int | None]:
        """Let the one that has most of the model keep it; tell how many gradients.

        None and None if all are lost.
        """
        # Those with peers tell them what they learned; the last one has all of it.
        under_way = set(seeing.values())
        while len(under_way) > 1:
            _, under_way = await asyncio.wait(
                under_way, return_when=asyncio.FIRST_COMPLETED
            )
        seconds = config.get_seconds("timeouts.leave")
        versions: dict[ReplicaHandle, int] = {}

        async def keep(handle: ReplicaHandle) -> None:
            with contextlib.suppress(OSError, TensairError):
                try:
                    await handle.call_within(seconds, "keep", True)
                except ModelError as error:
                    self._events.note(
                        "note", f"the model cannot be handed over: {error}"
                    )
                    raise
                status = await handle.call_within(seconds, "status")
                versions[handle] = status.version

        await asyncio.gather(*map(keep, seeing))
        keeper = max(versions, key=lambda each: versions[each], default=None)
        return keeper, None if keeper is None else versions[keeper]

    async def _refuges(self, leaving: list[ReplicaHandle]) -> list[str]:
        """Where an heir may be started: at best on a worker that is free, and fit."""
        going = {each.place.address for each in leaving}
        staying = {each.place.address for each in leaving if each.unwanted}
        fit = await self._workers.usable()
        there = await self._workers.there()
        return sorted(
            (each for each in there if each not in going or each in staying),
            key=lambda each: (each not in fit, each in staying),
        )

    async def _bequeath(
        self, source: ReplicaHandle, address: str, is_last: bool
    ) -> ReplicaHandle | None:
        """Start a replica on this worker that takes over what another has kept."""
        seconds = config.get_seconds("timeouts.start")
        patience = seconds if is_last else min(seconds, PATIENCE)
        heirs: list[ReplicaHandle | Delayed | Exception] = []
        try:
            places = await self._starter.place([address], [], 1)
            if not places:
                raise ClusterError("The worker is paused, or does not answer.")
            heirs = await self._starter.build(places, patience=patience)
            (heir,) = heirs
            if isinstance(heir, Delayed):
                self._starter.release(heir.handle)
                raise ClusterError(f"The worker {heir.why}.")
            if isinstance(heir, Exception):
                raise heir
            await heir.call_within(seconds, "join", True)
            reach(Moment.INHERITING, heir)
            await heir.call_within(seconds, "adopt", source.peer, True)
        except Exception as error:
            message = "The model could not be handed over to %s: %s"
            self._workers.blame(address, error, message)
            for each in heirs:
                if isinstance(each, ReplicaHandle):
                    self._starter.release(each)
            return None
        return heir

    async def _set_free(self, handle: ReplicaHandle) -> None:
        """Let a replica that leaves know that nobody waits for it any more."""
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(OSError, TensairError):
            await handle.call_within(seconds, "set_free")
