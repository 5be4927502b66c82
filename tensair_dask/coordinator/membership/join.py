"""Joining: replicas that join while the others learn."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from tensair_dask import config
from tensair_dask.coordinator.barrier import Barrier
from tensair_dask.coordinator.copying import spread
from tensair_dask.coordinator.membership.usable_workers import UsableWorkers
from tensair_dask.coordinator.replica_group import ReplicaGroup
from tensair_dask.coordinator.replica_handle import Delayed, ReplicaHandle
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.coordinator.start import Starter
from tensair_dask.errors import (
    ModelError,
    NoReplicasError,
    TensairError,
    TrainerClosedError,
)
from tensair_dask.pubsub.moments import Moment, reach
from tensair_dask.replica.placement import Place

__all__ = ["Joining"]

logger = logging.getLogger(__name__)


class Joining:
    """Lets further replicas join a run.

    The new one is built while the others learn. Then the stream is held for a moment,
    until no gradient is under way: the new one subscribes, and one of the others keeps
    a copy of its model. The stream goes on while the new one takes the copy over; what
    is published meanwhile waits for it.

    Belongs to the client's event loop.

    Parameters
    ----------
    starter
        Builds replicas.
    workers
        Told of those on which none can be started.
    replicas
        Those that take part.
    barrier
        Holds the stream.
    events
        Gets an event for each replica that has joined.
    delay
        Called with each that its worker has not begun to start.
    """

    def __init__(
        self,
        starter: Starter,
        workers: UsableWorkers,
        replicas: ReplicaGroup,
        barrier: Barrier,
        events: RunEvents,
        delay: Callable[[Delayed], None],
    ) -> None:
        self._starter = starter
        self._workers = workers
        self._replicas = replicas
        self._barrier = barrier
        self._events = events
        self._delay = delay

    async def start(
        self, workers: list[str], present: list[ReplicaHandle], count: int
    ) -> int:
        """Start replicas on some of these workers; give how many take part."""
        there = [each.place for each in present]
        places = await self._starter.place(workers, there, count)
        start = time.perf_counter()
        return await self.introduce(await self._build(places), start)

    async def introduce(self, joining: list[ReplicaHandle], start: float) -> int:
        """Let replicas that are built take part; give how many do.

        Parameters
        ----------
        joining
            They.
        start
            When this began, on the performance counter, for people.
        """
        joined, held = await self._join(joining)
        seconds = time.perf_counter() - start
        for handle in joined:
            self._events.note(
                "joined",
                f"the replica on {handle.place.address}, after {seconds:.2f} s "
                f"(the stream was held for {held:.3f} s)",
                handle.name,
            )
        return len(joined)

    async def _build(self, places: list[Place]) -> list[ReplicaHandle]:
        """Build replicas; give those that could be."""
        answers: list[ReplicaHandle | Delayed | Exception]
        seconds = config.get_seconds("timeouts.begin")
        try:
            answers = await self._starter.build(places, patience=seconds)
        except Exception as error:
            answers = [error] * len(places)
        for place, answer in zip(places, answers, strict=True):
            if isinstance(answer, Exception):
                self._workers.blame(place.address, answer)
            elif isinstance(answer, Delayed):
                self._delay(answer)
        return [each for each in answers if isinstance(each, ReplicaHandle)]

    async def _join(
        self, joining: list[ReplicaHandle]
    ) -> tuple[list[ReplicaHandle], float]:
        """Introduce built replicas, and drop those that do not take part.

        Returns
        -------
        joined, held
            See `_introduce`.
        """
        joined: list[ReplicaHandle] = []
        held = 0.0
        if not joining:
            return joined, held
        try:
            joined, held = await self._introduce(joining)
        except TrainerClosedError:
            raise
        except ModelError as error:  # not now, and not soon
            self._blame(dict.fromkeys(joining, error))
        except (OSError, TensairError) as error:
            logger.warning("No replica can join now: %s", error)
        finally:
            rest = [each for each in joining if each not in joined]
            for handle in rest:
                self._starter.release(handle)
        if rest:
            await self._disown(rest)
        return joined, held

    async def _introduce(
        self, joining: list[ReplicaHandle]
    ) -> tuple[list[ReplicaHandle], float]:
        """Let built replicas subscribe, and take over the model of that moment.

        Returns
        -------
        joined
            Those that take part from now on.
        held
            For how long the stream was held, in seconds.
        """
        joined: list[ReplicaHandle] = []
        async with self._barrier.alone:
            await asyncio.gather(*map(self._starter.bring_up, joining))
            # Most of the way without holding anything.
            await self._barrier.flush()
            start = time.perf_counter()
            async with self._barrier.rest():
                source = self._source()
                keeping = asyncio.ensure_future(self._replicas.ask(source, "keep"))
                failed = await _each(joining, "timeouts.join", "join", True)
                await keeping
                for handle in joining:
                    reach(Moment.SUBSCRIBED, handle)
            held = time.perf_counter() - start
            reach(Moment.KEPT, source)
            self._blame(failed)
            subscribed = [each for each in joining if each not in failed]
            joined = await self._take_over(source, subscribed)
        return joined, held

    async def _take_over(
        self, source: ReplicaHandle, joining: list[ReplicaHandle]
    ) -> list[ReplicaHandle]:
        """Let new replicas take over what the source has kept; give those that have."""
        failed, givers = await _copy_kept(source, joining)
        joined = [each for each in joining if each not in failed]
        for handle in joined:
            self._replicas.add(handle)
            self._events.replica_joined(handle)
        await _each(givers, "timeouts.join", "let_go", False)
        seconds = config.get_seconds("timeouts.join")
        try:
            await self._replicas.ask(source, "let_go", bool(joined), timeout=seconds)
        except TensairError as error:
            # No fault of the new replicas: the next ones have another source.
            logger.warning("A replica was lost from which others joined: %s", error)
        else:
            self._blame(failed)
        return joined

    def _blame(self, failed: Mapping[ReplicaHandle, Exception]) -> None:
        for handle, error in failed.items():
            self._workers.blame(handle.place.address, error)

    async def _disown(self, handles: list[ReplicaHandle]) -> None:
        """Let nobody wait for new replicas that take no part, or are silent."""
        names = [handle.name for handle in handles]
        seconds = config.get_seconds("timeouts.join")
        with contextlib.suppress(OSError, TensairError):
            await self._replicas.ask_all("seal", names, timeout=seconds)

    def _source(self) -> ReplicaHandle:
        """Choose whose model a new replica takes over, if possible one that stays."""
        alive = [handle for handle in self._replicas.handles if handle.lane.alive]
        if not alive:
            raise NoReplicasError(
                "No replica is alive whose model a new one could take over."
            )
        return min(alive, key=lambda each: (each.lane.leaving, each.lane.load))


async def _copy_kept(
    source: ReplicaHandle, joining: Sequence[ReplicaHandle]
) -> tuple[dict[ReplicaHandle, Exception], list[ReplicaHandle]]:
    """Copy what the source has kept to new replicas.

    Returns
    -------
    failed, givers
        Those that do not have it, and why; and those that keep it for others.
    """
    failed: dict[ReplicaHandle, Exception] = {}
    givers: list[ReplicaHandle] = []

    async def give(giver: ReplicaHandle, taker: ReplicaHandle, gives_on: bool) -> bool:
        failed.pop(taker, None)
        arguments = giver.peer, True, gives_on
        failed.update(await _each([taker], "timeouts.start", "adopt", *arguments))
        if gives_on and taker not in failed:
            givers.append(taker)
        return taker not in failed

    await spread(source, joining, give)
    return failed, givers


async def _each(
    handles: Iterable[ReplicaHandle], setting: str, function: str, *args: Any
) -> dict[ReplicaHandle, Exception]:
    """Call a method of replicas that are no lanes yet; give what failed, and why."""
    seconds = config.get_seconds(setting)
    failed: dict[ReplicaHandle, Exception] = {}

    async def call(handle: ReplicaHandle) -> None:
        try:
            await handle.call_within(seconds, function, *args)
        except Exception as error:
            failed[handle] = error

    await asyncio.gather(*map(call, handles))
    return failed
