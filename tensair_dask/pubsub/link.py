"""The ordered, acknowledged flow from one publisher to one destination."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, Protocol

from tensair_dask._common.least import Least
from tensair_dask.pubsub import faults
from tensair_dask.pubsub.cpu_shares import CpuShares
from tensair_dask.pubsub.outbox import Outbox
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.policies import Policy
from tensair_dask.pubsub.view import Member

__all__ = ["GONE", "OK", "Link", "LinkStats", "Route"]

logger = logging.getLogger(__name__)

# What a destination answers to a delivery.
OK = "ok"
GONE = "gone"


class Route(Protocol):
    """How deliveries get to one destination."""

    @property
    def is_shared(self) -> bool:
        """Whether they go through memory that both processes share."""

    async def send(self, number: int, parcels: list[Parcel]) -> str:
        """Return `OK` or `GONE`.

        Raises
        ------
        OSError
            If it is not known whether the delivery arrived.
        """

    def close(self) -> None:
        """Send nothing more."""


# Small messages that wait behind one another leave together, up to this size.
_BATCH_BYTES = 2**20
# Weight of the newest round trip in the moving average, as TCP has it (RFC 6298).
_EWMA = 0.125


@dataclass(frozen=True)
class LinkStats:
    """How the flow to one destination is doing.

    Attributes
    ----------
    destination
        The subscriber.
    pending
        Messages that wait.
    in_flight
        Messages that have left and are not acknowledged.
    messages
        Messages acknowledged.
    bytes
        Bytes acknowledged; messages within one process count 0.
    last_rtt_seconds
        Duration of the last delivery, from sending to acknowledgement; None before.
    ewma_rtt_seconds
        Its exponentially weighted moving average (weight 1/8); None before the first.
    cpu_seconds
        CPU time that a delivery takes of the event loop here; 0 before the first.
    resent
        Deliveries that were repeated after a connection error.
    dropped
        Messages that gave way to newer ones (`DropOldest`).
    conflated
        Messages that were merged into a waiting one (`Conflate`).
    failed
        Messages that could not be serialized or sent.
    shared_memory
        Whether messages go through memory that both processes share.
    """

    destination: Member
    pending: int = 0
    in_flight: int = 0
    messages: int = 0
    bytes: int = 0
    last_rtt_seconds: float | None = None
    ewma_rtt_seconds: float | None = None
    cpu_seconds: float = 0.0
    resent: int = 0
    dropped: int = 0
    conflated: int = 0
    failed: int = 0
    shared_memory: bool = False


class Link:
    """Deliver what is in an outbox, one numbered delivery at a time.

    A delivery that ends in a connection error is repeated with the same number, so
    that the receiver can tell; this goes on until the link is closed, which happens
    when the destination leaves the view.

    Parameters
    ----------
    destination
        To whom.
    policy
        Of the outbox.
    route
        How deliveries get there; closed with this.
    retry
        Seconds before a delivery is repeated.
    changed
        Called when something has been settled.
    spawn
        Starts a task that its owner cancels when the process goes.
    local
        Whether the destination is in this process, so that nothing is serialized.
    """

    def __init__(
        self,
        destination: Member,
        policy: Policy,
        route: Route,
        *,
        retry: float,
        changed: Callable[[], None],
        spawn: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]],
        local: bool = False,
    ) -> None:
        self.destination = destination
        self.outbox = Outbox(policy)
        self._policy = policy
        self._route = route
        self._retry = retry
        self._changed = changed
        self._spawn = spawn
        self._local = local
        self._task: asyncio.Task[None] | None = None
        self._number = 0
        self._messages = 0
        self._bytes = 0
        self._last_rtt: float | None = None
        self._ewma_rtt: float | None = None
        # Other things than deliveries run on the loop while an answer is waited for.
        self._cpu = Least()
        self._resent = 0
        self._failed = 0

    @property
    def closed(self) -> bool:
        """Whether the destination is gone."""
        return self.outbox.closed

    @property
    def stats(self) -> LinkStats:
        """The counters of now."""
        return LinkStats(
            destination=self.destination,
            pending=self.outbox.pending,
            in_flight=self.outbox.in_flight,
            messages=self._messages,
            bytes=self._bytes,
            last_rtt_seconds=self._last_rtt,
            ewma_rtt_seconds=self._ewma_rtt,
            cpu_seconds=self._cpu.value,
            resent=self._resent,
            dropped=self.outbox.dropped,
            conflated=self.outbox.conflated,
            failed=self._failed,
            shared_memory=self._route.is_shared,
        )

    def wake(self) -> None:
        """Start delivering, if there is something and nobody does so already."""
        if self._task is None and not self.closed and self.outbox.pending:
            self._task = self._spawn(self._run())

    def close(self) -> None:
        """Give up everything that waits or is in flight."""
        if self.closed:
            return
        self.outbox.close()
        if self._task is not None:
            self._task.cancel()
        self._route.close()
        self._changed()

    async def _run(self) -> None:
        try:
            while parcels := self._load():
                await self._deliver(parcels)
                self.outbox.settle()
                self._changed()
        finally:
            self._task = None

    def _load(self) -> list[Parcel]:
        """Take what leaves next; what cannot be serialized is left out."""
        parcels: list[Parcel] = []
        size = 0
        while len(parcels) < self._policy.batch and size < _BATCH_BYTES:
            parcel = self.outbox.take()
            if parcel is None:
                if parcels or not self.outbox.in_flight:
                    break
                # Nothing but failures so far: what was taken is done with.
                self.outbox.settle()
                self._changed()
                continue
            try:
                if not self._local:
                    parcel.seal()
            except Exception:
                self._failed += 1
                logger.exception("A message cannot be serialized, and is dropped")
                continue
            size += parcel.nbytes
            parcels.append(parcel)
        return parcels

    async def _deliver(self, parcels: list[Parcel]) -> None:
        self._number += 1
        while not self.closed:
            start = time.perf_counter()
            try:
                answer, spent = await self._send_counted(parcels)
            except (TimeoutError, OSError) as error:
                self._resent += 1
                logger.debug("Delivery to %s: %r", self.destination, error)
                await asyncio.sleep(self._retry)
                continue
            except Exception:
                self._failed += len(parcels)
                logger.exception("%d messages could not be sent", len(parcels))
                return
            if answer == GONE:
                self._task = None
                self.close()
                return
            self._cpu.add(spent)
            self._count(parcels, time.perf_counter() - start)
            return

    async def _send_counted(self, parcels: list[Parcel]) -> tuple[str, float]:
        """Send, and count the CPU seconds of it."""
        shares = CpuShares.of_this_loop()
        begun = shares.begin()
        try:
            answer = await self._send_once(parcels)
        finally:
            spent = shares.end(begun)
        return answer, spent

    async def _send_once(self, parcels: list[Parcel]) -> str:
        if faults.injected:
            await faults.strike(faults.Fault.DELAY, self.destination)
            await faults.strike(faults.Fault.CONNECT_FAILS, self.destination)
        answer = await self._route.send(self._number, parcels)
        if faults.injected:
            await faults.strike(faults.Fault.SENT_ACK_LOST, self.destination)
        return answer

    def _count(self, parcels: list[Parcel], seconds: float) -> None:
        self._messages += len(parcels)
        if not self._local:
            self._bytes += sum(parcel.nbytes for parcel in parcels)
        self._last_rtt = seconds
        if self._ewma_rtt is None:
            self._ewma_rtt = seconds
        else:
            self._ewma_rtt += _EWMA * (seconds - self._ewma_rtt)
