"""Scaling: as many workers as the stream needs, by its lag."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from distributed import Client

from tensair_dask import config
from tensair_dask._wording import in_words
from tensair_dask.coordinator.membership.keep import Membership
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.errors import ConfigurationError, TrainerClosedError
from tensair_dask.replica.placement import ReplicaCount

__all__ = ["Demand", "LagScaling", "cluster_of"]

logger = logging.getLogger(__name__)

# So many looks in a row must agree before anything is done.
LOOKS = 2
# Of the target: below this share of it the cluster may be too large.
IDLE = 0.25
# With one replica fewer, the others may be busy for this share of their time.
BUSY = 0.7


@dataclass
class Demand:
    """Decides how many replicas a stream needs; knows no cluster.

    Parameters
    ----------
    least, most
        Bounds.
    target
        Lag in seconds that is wanted.
    patience
        Seconds for which there must be too many, before one goes.
    """

    least: int
    most: int
    target: float
    patience: float
    _late: int = 0
    _idle_since: float | None = None

    def count(self, replicas: int, lag: float, busy: float, now: float) -> int:
        """How many there should be.

        Parameters
        ----------
        replicas
            How many there are.
        lag
            In seconds.
        busy
            Share of their time for which they learn.
        now
            On the monotonic clock.
        """
        if lag > self.target:
            self._idle_since = None
            self._late += 1
            if self._late < LOOKS:
                return replicas
            self._late = 0
            # Twice as many at most: new ones take a while to be of use.
            wanted = math.ceil(replicas * min(2.0, lag / self.target))
            return max(self.least, min(self.most, max(wanted, replicas + 1)))
        self._late = 0
        spare = replicas > self.least and busy * replicas < BUSY * (replicas - 1)
        if lag > IDLE * self.target or not spare:
            self._idle_since = None
            return max(self.least, min(self.most, replicas))
        if self._idle_since is None:
            self._idle_since = now
        if now - self._idle_since < self.patience:
            return replicas
        self._idle_since = None
        return replicas - 1


def cluster_of(client: Client, cluster: Any) -> Any:
    """Give the cluster that can be scaled.

    Raises
    ------
    ConfigurationError
        If there is none.
    """
    cluster = cluster or client.cluster
    if cluster is None or not hasattr(cluster, "scale"):
        raise ConfigurationError(
            "The client was connected to an address, so nothing is known that can be "
            "scaled. Give adapt the cluster, for example trainer.adapt(cluster="
            "SLURMCluster(...)), or start workers yourself and use trainer.scale()."
        )
    return cluster


class LagScaling:
    """Starts workers when the stream lags, and ends some when they idle.

    Only workers whose replica has handed over what it learned are ended.

    Belongs to the client's event loop.

    Parameters
    ----------
    membership
        Of the trainer.
    cluster
        Has ``scale(n)`` and ``scale_down(names)``, as Dask's clusters do.
    demand
        How many are needed.
    lag
        Gives the lag in seconds.
    events
        Gets an event for what is done.
    """

    def __init__(
        self,
        membership: Membership,
        cluster: Any,
        demand: Demand,
        lag: Callable[[], float],
        events: RunEvents,
    ) -> None:
        self._membership = membership
        self._cluster = cluster
        self._demand = demand
        self._lag = lag
        self._events = events
        self._dispatcher = membership.replicas.dispatcher
        self._closed = False
        # Whether the newest attempt failed: a row of failures is noted once.
        self._failing = False
        membership.wanted = ReplicaCount(demand.least, demand.most)
        self._task = asyncio.ensure_future(self._run())

    async def close(self) -> None:
        """Leave the cluster as it is."""
        self._closed = True
        self._task.cancel()
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        interval = config.get_seconds("replicas.adapt")
        await self._attempt(self._begin())
        busy, then = self._dispatcher.busy, time.monotonic()
        while not self._closed:
            await asyncio.sleep(interval)
            now = time.monotonic()
            learned, busy, then = (
                (self._dispatcher.busy - busy) / (now - then),
                self._dispatcher.busy,
                now,
            )
            await self._attempt(self._look(learned, now))

    async def _attempt(self, work: Awaitable[None]) -> None:
        """Await it; note what it raises, such as the lag of the user, and go on."""
        try:
            await work
        except TrainerClosedError:
            self._closed = True
        except Exception as error:
            if self._closed:
                return
            logger.warning("The cluster could not be scaled: %s", error, exc_info=error)
            if not self._failing:
                self._events.note("note", f"not scaled, {in_words(error)}")
            self._failing = True
        else:
            self._failing = False

    async def _begin(self) -> None:
        self._cluster.scale(max(self._demand.least, await self._workers()))

    async def _workers(self) -> int:
        identity = await self._membership.client.scheduler.identity(n_workers=-1)
        return len(identity["workers"])

    async def _look(self, learned: float, now: float) -> None:
        replicas = self._membership.count
        if not replicas:
            return
        lag = float(self._lag())
        wanted = self._demand.count(replicas, lag, learned / replicas, now)
        if wanted > replicas:
            workers = await self._workers()
            if workers < wanted:
                self._events.note(
                    "note",
                    f"the stream lags by {lag:.1f} s: {wanted} workers, not {workers}",
                )
                self._cluster.scale(wanted)
        elif wanted < replicas:
            self._events.note("note", f"{replicas} replicas are not needed: one leaves")
            await self._end(wanted)

    async def _end(self, wanted: int) -> None:
        """Let replicas leave, and end their workers."""
        seconds = config.get_seconds("timeouts.start")
        gone = await self._membership.shrink(wanted, seconds)
        identity = await self._membership.client.scheduler.identity(n_workers=-1)
        names = {
            identity["workers"][address]["name"]
            for address in gone
            if address in identity["workers"]
        }
        await self._on_its_loop(names)

    async def _on_its_loop(self, names: set[Any]) -> None:
        loop = self._cluster.loop.asyncio_loop
        with contextlib.suppress(asyncio.CancelledError):
            if loop is asyncio.get_running_loop():
                await self._cluster.scale_down(names)
            else:
                work = asyncio.run_coroutine_threadsafe(
                    self._cluster.scale_down(names), loop
                )
                await asyncio.wrap_future(work)
