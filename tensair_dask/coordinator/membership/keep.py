"""Membership: keep the requested number of replicas while workers come and go."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from tensair_dask import config
from tensair_dask._common.background import Background
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.dispatcher import nobody_alive
from tensair_dask.coordinator.lane import Lane
from tensair_dask.coordinator.membership.departures import Hearing
from tensair_dask.coordinator.membership.join import Joining
from tensair_dask.coordinator.membership.last_replica import Handover
from tensair_dask.coordinator.membership.recovery import Recovery
from tensair_dask.coordinator.membership.resync import Resync
from tensair_dask.coordinator.membership.usable_workers import UsableWorkers
from tensair_dask.coordinator.replica_group import ReplicaGroup
from tensair_dask.coordinator.replica_handle import Delayed, ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents, Subscriber
from tensair_dask.coordinator.start import Starter
from tensair_dask.errors import TensairTimeoutError, TrainerClosedError
from tensair_dask.replica.placement import ReplicaCount

__all__ = ["Membership"]

logger = logging.getLogger(__name__)

# Workers that a message names.
SHOWN = 5


class Membership(Subscriber):
    """Keeps the requested number of replicas.

    *A replica is lost*: Dask says so, no timeout of ours. The others go on at once; see
    `Recovery`, which also knows what follows where *a replica leaves*.

    *A replica joins*, where there are fewer: see `Joining`.

    Belongs to the client's event loop.

    Parameters
    ----------
    starter
        Starts replicas.
    replicas
        All of them; kept up to date here.
    barrier
        Holds the stream.
    wanted
        How many there shall be.
    events
        Gets an event for each replica that joins, leaves or is lost.
    """

    def __init__(
        self,
        starter: Starter,
        replicas: ReplicaGroup,
        barrier: Barrier,
        wanted: ReplicaCount,
        events: RunEvents,
    ) -> None:
        self.client = starter.client
        self.wanted = wanted
        self.replicas = replicas
        self._starter = starter
        self._events = events
        self._background = Background()
        self.workers = workers = UsableWorkers(self.client, events)
        self._joining = Joining(
            starter, workers, replicas, barrier, events, self._delay
        )
        self.resync = Resync(replicas, barrier, events)
        self._handover = Handover(starter, workers, replicas, events)
        self._recovery = Recovery(
            workers, self._handover, replicas, barrier, self._background, events
        )
        self._fitting = asyncio.Lock()
        # Replicas that their workers have not begun to start.
        self._delayed: list[Delayed] = []
        # Since when there have been too few workers for the requested replicas.
        self._short_since: float | None = None
        self._target = 0

    @property
    def target(self) -> int:
        """How many replicas are requested, for the workers there are; pages show it."""
        return self._target

    @property
    def count(self) -> int:
        """How many there are that learn."""
        return sum(handle.lane.open for handle in self.replicas.handles)

    # ---- the start, and the end -----------------------------------------------------

    async def start(self) -> None:
        """Start the first replicas; see `Starter.start`."""
        handles, delayed = await self._starter.start(self.wanted)
        for handle in handles:
            self.replicas.add(handle)
            self._events.replica_joined(handle)
        for each in delayed:
            self._delay(each)
        for address in await self.workers.paused():
            self._note_delay(address, await self._starter.why_not_begun(address))
        Hearing.begin(self.client, self._starter.run_id, self._hear_of_leaving)
        self._target = len(handles) + len(delayed)

    def watch(self) -> None:
        """Begin to keep the requested number of replicas."""
        # Apart, since a replica that is silent must not keep any from being given up.
        for care in (self._give_up_the_lost, self._confirm_the_idle, self._provide):
            self._background.go_on_with(self._watch(care))

    def expect_the_end(self) -> None:
        """Take note that all workers may go now, and none inherits the model."""
        self._handover.is_wanted = False

    async def close(self) -> None:
        """Stop watching; what is under way is given up."""
        Hearing.end(self.client, self._starter.run_id)
        await self._background.close()

    async def _watch(self, care: Callable[[], Awaitable[None]]) -> None:
        interval = config.get_seconds("replicas.watch")
        while not (
            self._background.closed or self.client.status in ("closed", "closing")
        ):
            try:
                await care()
            except TrainerClosedError:
                return
            except Exception as error:
                if not self._background.closed:
                    logger.warning("Watching the replicas failed: %s", error)
            await asyncio.sleep(interval)

    async def _provide(self) -> None:
        """See to it that those that there are have all, and that there are enough."""
        await self.resync.complete()
        await self.fit()

    async def _give_up_the_lost(self) -> None:
        """Give up those that Dask has declared lost, whatever their comms say."""
        for handle in self.replicas.handles:
            if handle.lane.alive and handle.is_lost:
                gone = OSError("its worker left the cluster")
                self.replicas.dispatcher.lose(handle.lane, gone)

    def _hear_of_leaving(self, name: str) -> None:
        """Send nothing more to a replica that says that it leaves."""
        for handle in self.replicas.handles:
            if handle.name == name:
                self.replicas.dispatcher.dismiss(handle.lane)

    async def _confirm_the_idle(self) -> None:
        """Ask those that report nothing, if anything waits for what they have."""
        waiting = any(each.lane.unconfirmed for each in self.replicas.alive())
        if waiting or self.replicas.unjudged:
            await self.resync.confirm_the_idle()

    # ---- what becomes of what they have learned -------------------------------------

    def replica_lost(self, lane: Lane) -> None:
        """Take note of a replica that is lost, or has left; `recovered` tells when."""
        self._recovery.lost(lane)

    @property
    def settled(self) -> bool:
        """Whether it is known of all that was lost what lives on."""
        return self._recovery.settled

    async def recovered(self, timeout: float) -> None:
        """Wait until what was lost is known; see `Recovery.recovered`."""
        await self._recovery.recovered(timeout)

    async def look(self) -> None:
        """Ask all how they stand; those that have missed gradients catch up."""
        await self.resync.look()

    async def hear(self) -> None:
        """Ask those that report nothing how they stand, and what they have to say."""
        await self.resync.confirm_the_idle()

    # ---- the requested number --------------------------------------------------------

    async def fit(self, patience: float | None = None, asked: bool = False) -> None:
        """Start or end replicas until there are as many as requested.

        Parameters
        ----------
        patience
            Seconds that a replica waits for a worker of its own, before it shares
            one; None for ``tensair.replicas.patience``.
        asked
            Whether somebody asks for so many just now. Else none is ended because there
            are fewer workers than before: one on each that is left would be too few.
        """
        async with self._fitting:
            workers = await self.workers.usable()
            present = [each for each in self.replicas.handles if each.lane.open]
            target = self._target = self.wanted.count(len(workers))
            most = self.wanted.most
            if asked:
                most = self.wanted.count(len(await self.workers.there()))
            if len(present) > target and most < len(present):
                self._dismiss(_superfluous(present, int(most)))
            elif len(present) < target and present:
                await self._grow(workers, present, target, patience)
            else:
                self._short_since = None
                await self._spread(workers, present)

    def _dismiss(self, handles: list[ReplicaHandle]) -> None:
        """Let replicas leave that are too many."""
        for handle in handles:
            handle.unwanted = True
            self.replicas.dispatcher.dismiss(handle.lane)

    async def _grow(
        self,
        workers: list[str],
        present: list[ReplicaHandle],
        target: int,
        patience: float | None,
    ) -> None:
        # One that is delayed has its worker already, and takes none from the others.
        delayed = self._delayed_on
        workers = [address for address in workers if address not in delayed]
        load = Counter(handle.place.address for handle in present)
        free = [address for address in workers if not load[address]]
        count = min(target - len(present), len(free))
        if not count:
            if not workers or len(present) >= self.wanted.least:
                return
            # Rather one worker of its own, even if it comes a little later.
            now = time.monotonic()
            if self._short_since is None:
                self._short_since = now
            limit = config.get_seconds("replicas.patience", patience)
            if now - self._short_since < limit:
                return
            count = self.wanted.least - len(present)
        self._short_since = None
        await self._joining.start(workers, present, count)

    async def _spread(self, workers: list[str], present: list[ReplicaHandle]) -> None:
        """Let replicas that share a worker have those that have come since.

        A new one joins first, and then one that shares leaves: so there are never
        fewer, and nothing is lost.
        """
        load = Counter(handle.place.address for handle in present)
        free = [
            address
            for address in workers
            if not load[address] and address not in self._delayed_on
        ]
        sharing: list[ReplicaHandle] = []
        for handle in reversed(present):
            if len(sharing) < len(free) and load[handle.place.address] > 1:
                load[handle.place.address] -= 1
                sharing.append(handle)
        if sharing:
            joined = await self._joining.start(free, present, len(sharing))
            self._dismiss(sharing[:joined])

    # ---- those whose workers have no time --------------------------------------------

    @property
    def _delayed_on(self) -> set[str]:
        return {each.handle.place.address for each in self._delayed}

    def _delay(self, delayed: Delayed) -> None:
        """Go on without a replica whose worker has not begun to start it."""
        self._delayed.append(delayed)
        handle = delayed.handle
        self._note_delay(handle.place.address, delayed.why, handle.name)
        self._background.go_on_with(self._await(delayed))

    def _note_delay(self, address: str, why: str, replica: str = "") -> None:
        text = (
            f"no replica is on {address} yet: it {why}. One joins when it has time; "
            "the others go on without it"
        )
        logger.warning("%s", text)
        self._events.note("note", text, replica)

    async def _await(self, delayed: Delayed) -> None:
        """Let one that was delayed join, if it is still requested."""
        handle = delayed.handle
        answer: ReplicaHandle | Exception | None = None
        try:
            answer = await self._starter.built(handle)
            async with self._fitting:
                self._delayed.remove(delayed)
                if isinstance(answer, Exception):
                    self.workers.blame(handle.place.address, answer)
                elif self.count < self._target:
                    answer = None  # from here on it is looked after
                    start = time.perf_counter()
                    await self._joining.introduce([handle], start)
        finally:
            if delayed in self._delayed:
                self._delayed.remove(delayed)
                self._starter.release(handle)
            elif answer is handle:
                self._starter.release(handle)

    async def shrink(self, count: int, timeout: float) -> list[str]:
        """Let replicas leave until so many are left; the wanted stays as it is.

        Returns
        -------
        addresses
            Of the workers on which there is no replica any more. None is started there
            for ``tensair.replicas.retry``.
        """
        async with self._fitting:
            present = [each for each in self.replicas.handles if each.lane.open]
            leaving = present[count:]
            self._dismiss(leaving)
            for each in leaving:
                self.workers.avoid(each.place.address)
        deadline = time.monotonic() + timeout
        while any(handle.lane.alive for handle in leaving):
            if time.monotonic() > deadline:
                raise TensairTimeoutError(
                    f"Replicas had not learned what they had within {timeout:g} s. "
                    "Raise tensair.timeouts.start if the steps are that long."
                )
            await asyncio.sleep(0.02)
        await self.recovered(max(0.0, deadline - time.monotonic()))
        used = {each.place.address for each in self.replicas.handles if each.lane.alive}
        return sorted({each.place.address for each in leaving} - used)

    async def scale(self, wanted: ReplicaCount, timeout: float) -> None:
        """Change the wanted, and wait until it is fulfilled.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        ClusterError
            If the cluster has no workers for it.
        """
        self.wanted = wanted
        deadline = time.monotonic() + timeout
        while True:
            # What it began goes on, also if that takes too long.
            fitting = self._background.go_on_with(self.fit(patience=0, asked=True))
            left = max(0.0, deadline - time.monotonic())
            await asyncio.wait({fitting}, timeout=left)
            if fitting.done():
                fitting.result()
            least = self._clamped(len(await self.workers.usable()))
            most = max(least, self._clamped(len(await self.workers.there())))
            # All of one moment: while the workers are asked an heir may take over, and
            # those that are gone be judged.
            open_now = sum(handle.lane.open for handle in self.replicas.handles)
            ended = not any(
                each.lane.alive and each.lane.leaving for each in self.replicas.handles
            )
            if ended and least <= open_now <= most:
                break
            if not (open_now or self.replicas.dispatcher.expecting):
                raise nobody_alive(len(self.replicas.handles), "no more can be started")
            if time.monotonic() > deadline:
                raise TensairTimeoutError(
                    f"{open_now} replicas are there after {timeout:g} s, not "
                    f"{least if open_now < least else most}: "
                    + await self._why_not(open_now, least)
                )
            await asyncio.sleep(0.05)
        await self.recovered(max(0.0, deadline - time.monotonic()))

    def _clamped(self, workers: int) -> int:
        return int(min(max(self.wanted.count(workers), 1), self.wanted.most))

    async def _why_not(self, open_now: int, least: int) -> str:
        """Say why there are fewer replicas than requested, and what to do."""
        if open_now >= least:
            return (
                "those that leave have not learned what they have. Wait a little, or "
                "raise tensair.timeouts.start; look at their workers if steps are not "
                "that long."
            )
        said = []
        for address in [*self._delayed_on, *await self.workers.paused()]:
            why = await self._starter.why_not_begun(address)
            said.append(f"{address} {why}")
        said += [f"{worker}: {why}" for worker, why in self.workers.why.items()]
        able = len(set(await self.workers.usable()) - self._delayed_on)
        because = f" ({'; '.join(said[:SHOWN])})" if said else ""
        return (
            f"{able} workers can hold them{because}. Start workers, free those that "
            "are named, or raise tensair.timeouts.start if building takes that long."
        )


def _superfluous(present: list[ReplicaHandle], count: int) -> list[ReplicaHandle]:
    """Choose who leaves so that so many stay: the newest of those that share most."""
    staying = list(present)
    while len(staying) > count:
        load = Counter(each.place.address for each in staying)
        most = max(load.values())
        crowded = [each for each in staying if load[each.place.address] == most]
        staying.remove(crowded[-1])
    return [each for each in present if each not in staying]
