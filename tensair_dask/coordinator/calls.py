"""Calls: questions to replicas, with bounds on the wait, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from distributed.comm import CommClosedError

from tensair_dask import config
from tensair_dask.coordinator.dispatcher import Dispatcher, nobody_alive
from tensair_dask.coordinator.start import ReplicaHandle
from tensair_dask.errors import (
    KilledReplicasError,
    ReplicaLeavingError,
    ReplicaLostError,
    TensairTimeoutError,
    TrainerClosedError,
)

__all__ = ["Calls", "closed_error", "late_error", "may_be_a_crash"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two looks whether a replica has nothing else to do.
PAUSE = 0.005


class Calls:
    """Asks replicas, and gives up those that turn out to be lost.

    A call may be what ends the process that answers it: it runs the user's code, and
    takes memory. So what was lost with a replica is put to another one alone, one after
    the other, and to none after ``tensair.dispatch.allowed-losses`` and one, as
    mini-batches are. The last replica is not risked at all for what another was lost
    with: who calls is told, and nothing that was learned is at stake.

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
        # Held by what was lost with a replica before: one at a time, so that it is
        # known which one was the reason.
        self._suspects = asyncio.Lock()
        # Replicas lost in a row with calls that have no arguments, by function, and
        # when: the next such call is the same one again, also if it is somebody else's,
        # such as the checkpoint of ten seconds later.
        self._losses: dict[str, tuple[int, float]] = {}

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
            (
                handle.lane.reserved,
                self.under_way[handle.key],
                handle.lane.load,
                handle,
            )
            for handle in self._handles
            if handle.lane.open
        ]
        if not alive:
            raise nobody_alive(len(self._handles), "nobody can answer")
        return min(alive, key=lambda each: each[:3])[3]

    async def ask_any(self, function: str, *args: Any) -> Any:
        """Ask the least-loaded replica; another one if that is lost; see `put`."""
        key = "" if args else function
        return await self.put(
            function, lambda handle: self.ask(handle, function, *args), key
        )

    async def put(
        self,
        what: str,
        ask: Callable[[ReplicaHandle], Awaitable[T]],
        same: str = "",
    ) -> T:
        """Let one replica answer a call; another one if that is lost, within bounds.

        Parameters
        ----------
        what
            Names the call, for people.
        ask
            Asks the replica that it is given.
        same
            Calls of which this is the same are the same call made again; empty for
            none.

        Raises
        ------
        KilledReplicasError
            If as many replicas were lost with it as may be.
        NoReplicasError
            If none is alive.
        """
        losses = 0
        while True:
            suspect = max(losses, self._lost_before(same))
            async with self._chosen(suspect, what, losses) as handle:
                try:
                    answer = await ask(handle)
                except ReplicaLostError as error:
                    if handle.lane.leaving or not may_be_a_crash(error):
                        logger.info("Another replica is asked for %s", what)
                        continue
                    losses += 1
                    if same:
                        count = 1 + self._lost_before(same)
                        self._losses[same] = count, time.monotonic()
                else:
                    self._losses.pop(same, None)
                    return answer

    def _lost_before(self, same: str) -> int:
        """How many were lost with the same call, as far as that still counts."""
        count, when = self._losses.get(same, (0, 0.0))
        # Not for ever: they may have been lost for other reasons, and a trainer that
        # has one replica for good shall not be without checkpoints.
        lapsed = time.monotonic() - when > config.get_seconds("replicas.retry")
        return 0 if lapsed else count

    @contextlib.asynccontextmanager
    async def _chosen(
        self, suspect: int, what: str, losses: int
    ) -> AsyncIterator[ReplicaHandle]:
        """Choose who is asked: one that does nothing else, for what may be deadly.

        Parameters
        ----------
        suspect
            Replicas that were lost with it, or with the same call before.
        what
            Names the call.
        losses
            Of these, those that were lost with this call.
        """
        if not suspect:
            yield self.least_loaded()
            return
        seconds = config.get_seconds("timeouts.request")
        deadline = time.monotonic() + seconds
        async with self._one_suspect(what, seconds):
            while True:
                self._judge(suspect, what, losses)
                handle = self.least_loaded()
                async with self._dispatcher.reserved(handle.lane):
                    if await self._is_alone(handle, deadline):
                        # Others may have been lost meanwhile.
                        self._judge(suspect, what, losses)
                        yield handle
                        return
                if time.monotonic() >= deadline:
                    raise late_error(f"A replica for {what} alone", seconds, "request")

    @contextlib.asynccontextmanager
    async def _one_suspect(self, what: str, seconds: float) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(seconds):
                await self._suspects.acquire()
        except TimeoutError:
            raise late_error(
                f"A replica for {what} alone", seconds, "request"
            ) from None
        try:
            yield
        finally:
            self._suspects.release()

    async def _is_alone(self, handle: ReplicaHandle, deadline: float) -> bool:
        """Wait until a replica has nothing to do; False if it goes, or takes long."""
        lane = handle.lane
        while lane.open and (lane.sent or self.under_way[handle.key]):
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(PAUSE)
        return lane.open

    def _judge(self, suspect: int, what: str, losses: int) -> None:
        """Refuse a call that seems to end whoever answers it."""
        alive = len(self.alive())
        allowed = self._dispatcher.allowed_losses
        if not alive or (alive > 1 and losses <= allowed):
            return
        why = (
            "only one replica is left" if alive == 1 else "so many may be lost with it"
        )
        raise KilledReplicasError(
            f"{suspect} replicas were lost while they answered a call ({what}): it is "
            f"not put to another, since {why}. See the logs of their workers (out of "
            "memory, or a crash in an operation?). If they were ended for other "
            "reasons, call again when others have joined, or raise "
            "tensair.dispatch.allowed-losses."
        )

    async def ask_each(self, function: str) -> dict[ReplicaHandle, Any]:
        """Ask all, as `ask_all` does, but one first: it may be lost with the call."""

        async def ask(handle: ReplicaHandle) -> tuple[ReplicaHandle, Any]:
            return handle, await self.ask(handle, function)

        first, answer = await self.put(function, ask, function)
        others = [each for each in self.alive() if each is not first]
        found = {first: answer, **await self._gather(others, function)}
        return {each: found[each] for each in self._handles if each in found}

    async def ask_all(
        self, function: str, *args: Any, timeout: float | None = None
    ) -> dict[ReplicaHandle, Any]:
        """Ask every living replica; those that are lost meanwhile are left out.

        For what runs nothing of the user's; else see `ask_each`.
        """
        return await self._gather(self.alive(), function, *args, timeout=timeout)

    async def _gather(
        self,
        handles: list[ReplicaHandle],
        function: str,
        *args: Any,
        timeout: float | None = None,
    ) -> dict[ReplicaHandle, Any]:
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
        why: BaseException | None = None
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
            why = error
        finally:
            self.under_way[handle.key] -= 1
            call.cancel()
        if self._dispatcher.closed:
            raise closed_error()
        raise ReplicaLostError(
            f"The replica on {handle.place.address} was lost before it had answered "
            f"{function}."
        ) from why


def may_be_a_crash(error: ReplicaLostError) -> bool:
    """Whether the process may have ended of what it was asked.

    Not if it was never reached, nor if it lives, and has dropped the replica.
    """
    while isinstance(error.__cause__, ReplicaLostError):
        error = error.__cause__
    cause = error.__cause__
    return cause is None or isinstance(cause, CommClosedError)


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
