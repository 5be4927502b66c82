"""Calls: questions to replicas, with bounds on the wait, whatever becomes of them."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from typing import Any

from tensair_dask import config
from tensair_dask.cluster import ReplicaHandle
from tensair_dask.dispatch import Dispatcher, nobody_alive
from tensair_dask.errors import (
    ReplicaLeavingError,
    ReplicaLostError,
    TensairTimeoutError,
    TrainerClosedError,
)

__all__ = ["Calls", "closed_error", "late_error"]

logger = logging.getLogger(__name__)


class Calls:
    """Asks replicas, and gives up those that turn out to be lost.

    Belongs to the client's event loop.

    Parameters
    ----------
    handles
        All replicas; the caller adds them when they have started.
    dispatcher
        Gives up those that are lost.

    Attributes
    ----------
    under_way
        Questions that a replica has not answered, by its actor key.
    """

    def __init__(self, handles: list[ReplicaHandle], dispatcher: Dispatcher) -> None:
        self._handles = handles
        self._dispatcher = dispatcher
        self.under_way: Counter[str] = Counter()

    def alive(self) -> list[ReplicaHandle]:
        """Give those that are not lost, and do not leave: they hear their peers."""
        return [handle for handle in self._handles if handle.lane.open]

    def least_loaded(self) -> ReplicaHandle:
        """Choose the replica that will answer first.

        Raises
        ------
        NoReplicasError
            If none is alive.
        """
        # Questions first: a replica answers them before what it has to learn.
        alive = [
            (self.under_way[handle.key], handle.lane.load, handle)
            for handle in self._handles
            if handle.lane.open
        ]
        if not alive:
            raise nobody_alive(len(self._handles), "nobody can answer")
        return min(alive, key=lambda each: each[:2])[2]

    async def ask_any(self, function: str, *args: Any) -> Any:
        """Ask the least-loaded replica; the next one if that is lost."""
        while True:
            handle = self.least_loaded()
            try:
                return await self.ask(handle, function, *args)
            except ReplicaLostError:
                logger.info("Another replica is asked for %s", function)

    async def ask_all(
        self, function: str, *args: Any, timeout: float | None = None
    ) -> dict[ReplicaHandle, Any]:
        """Ask every living replica; those that are lost meanwhile are left out."""
        handles = self.alive()
        answers = await asyncio.gather(
            *(self.ask(each, function, *args, timeout=timeout) for each in handles),
            return_exceptions=True,
        )
        found = {}
        for handle, answer in zip(handles, answers, strict=True):
            if isinstance(answer, ReplicaLostError):
                continue
            if isinstance(answer, BaseException):
                raise answer
            found[handle] = answer
        return found

    async def ask(
        self,
        handle: ReplicaHandle,
        function: str,
        *args: Any,
        timeout: float | None = None,
    ) -> Any:
        """Ask one replica.

        Parameters
        ----------
        handle
            Of the replica.
        function
            Name of its method.
        args
            Of the method.
        timeout
            Seconds; None for ``tensair.timeouts.request``.

        Raises
        ------
        ReplicaLostError
            If it is lost before it has answered.
        TensairTimeoutError
            If it does not answer in time.
        Exception
            What the method raises.
        """
        lane = handle.lane
        seconds = config.get_seconds("timeouts.request", timeout)
        call = asyncio.ensure_future(handle.call(function, *args))
        self.under_way[handle.key] += 1
        try:
            # A call to a worker that is gone may take long to find that out.
            done, _ = await asyncio.wait(
                (call, lane.lost),
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            if call in done:
                answer = call.result()
                self._dispatcher.hear(answer)
                return answer
            if not done:
                setting = "request" if timeout is None else "drain"
                what = f"{function} on {handle.place.address}"
                raise late_error(what, seconds, setting)
        except ReplicaLeavingError:
            self._dispatcher.dismiss(lane)
            raise
        except (ReplicaLostError, TrainerClosedError) as error:
            # The last one: its worker is closing, and has closed what publishes.
            self._dispatcher.lose(lane, error)
        finally:
            self.under_way[handle.key] -= 1
            call.cancel()
        if self._dispatcher.closed:
            raise closed_error()
        raise ReplicaLostError(
            f"The replica on {handle.place.address} was lost before it had answered."
        )


def late_error(what: str, seconds: float, setting: str) -> TensairTimeoutError:
    """Say what did not come in time, and which setting of ``timeouts`` bounds it."""
    return TensairTimeoutError(
        f"{what} did not come within {seconds:g} s. Raise tensair.timeouts.{setting} "
        "if the work is that long; look at the worker if it is not."
    )


def closed_error() -> TrainerClosedError:
    """Say that the trainer is closed, and what to do."""
    return TrainerClosedError(
        "The trainer is closed. Make a new one with Trainer(client, ...); to go on "
        "from what this one learned, take its state_dict() before closing it."
    )
