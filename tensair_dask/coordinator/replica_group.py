"""The replicas of a run, and calls to them that end, whatever becomes of them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import Any, NamedTuple, TypeVar

from distributed.comm import CommClosedError

from tensair_dask import config
from tensair_dask.coordinator.dispatcher import Dispatcher, nobody_alive
from tensair_dask.coordinator.replica_handle import ReplicaHandle
from tensair_dask.errors import (
    KilledReplicasError,
    ReplicaLeavingError,
    ReplicaLostError,
    TensairTimeoutError,
    TrainerClosedError,
)

__all__ = [
    "ReplicaGroup",
    "ReplicaInfo",
    "closed_error",
    "late_error",
    "may_be_a_crash",
    "names_of",
]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds between two looks whether a replica has nothing else to do.
PAUSE = 0.005


class ReplicaInfo(NamedTuple):
    """One replica, as the client knew it at its latest report.

    Attributes
    ----------
    address
        Of its worker.
    steps
        Mini-batches that it has learned itself.
    samples
        Rows in them.
    staleness
        Mean over the newest gradient messages that it applied.
    alive
        False once its worker was lost.
    version
        Gradients that its model holds, its own and its peers'.
    device
        Name of the torch device.
    """

    address: str
    steps: int
    samples: int
    staleness: float
    alive: bool
    version: int
    device: str


class ReplicaGroup:
    """Owns the handles of all replicas; calls them, and gives up those that are lost.

    A call may be what ends the process that answers it: it runs the user's code, and
    takes memory. So what was lost with a replica is put to another one alone, one after
    the other, and to none after ``tensair.dispatch.allowed-losses`` and one, as
    mini-batches are. The last replica is not risked at all for what another was lost
    with: the caller gets the error, and nothing that was learned is at stake.

    Belongs to the client's event loop.

    Parameters
    ----------
    dispatcher
        Sends mini-batches to them, and gives up those that are lost.

    Attributes
    ----------
    handles
        All replicas, in order of their start; those that are gone for long are left
        out.
    under_way
        Questions that a replica has not answered, by its actor key.
    """

    def __init__(self, dispatcher: Dispatcher) -> None:
        self.dispatcher = dispatcher
        self.handles: list[ReplicaHandle] = []
        self.under_way: Counter[str] = Counter()
        # Held by what was lost with a replica before: one at a time, so that it is
        # known which one was the reason.
        self._suspects = asyncio.Lock()
        # Replicas lost in a row with calls that have no arguments, by function, and
        # when: the next such call is the same one again, also if it is somebody else's,
        # such as the checkpoint of ten seconds later.
        self.losses: dict[str, tuple[int, float]] = {}

    def add(self, handle: ReplicaHandle) -> None:
        """Let a replica that has started learn from now on."""
        self.handles.append(handle)
        self.dispatcher.admit(handle.lane)

    def forget(self, most: int) -> None:
        """Forget replicas that are gone, for the longest time, beyond so many."""
        gone = [handle for handle in self.handles if not handle.lane.alive]
        for handle in gone[: max(0, len(gone) - most)]:
            self.handles.remove(handle)
            self.dispatcher.lanes.remove(handle.lane)

    @property
    def unjudged(self) -> list[ReplicaHandle]:
        """Those that are gone of which it is not known yet what lives on."""
        return [
            each for each in self.handles if not (each.lane.alive or each.lane.judged)
        ]

    def infos(self) -> list[ReplicaInfo]:
        """Describe all replicas, as of their latest reports."""
        return [_info(handle) for handle in self.handles]

    @property
    def share(self) -> str:
        """What they publish: ``"gradient"`` or ``"update"``; empty at the start."""
        known = (each.lane.status for each in self.handles if each.lane.alive)
        return next((each.share for each in known if each is not None), "")

    def alive(self) -> list[ReplicaHandle]:
        """Give those that are not lost, and do not leave: they hear their peers."""
        return [handle for handle in self.handles if handle.lane.open]

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
            for handle in self.handles
            if handle.lane.open
        ]
        if not alive:
            raise nobody_alive(len(self.handles), "nobody can answer")
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
                        self.losses[same] = count, time.monotonic()
                else:
                    self.losses.pop(same, None)
                    return answer

    def _lost_before(self, same: str) -> int:
        """How many were lost with the same call, as far as that still counts."""
        count, when = self.losses.get(same, (0, 0.0))
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
                async with self.dispatcher.reserved(handle.lane):
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
        allowed = self.dispatcher.allowed_losses
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
        return {each: found[each] for each in self.handles if each in found}

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
                self.dispatcher.hear(answer)
                return answer
            if not done:
                setting = "request" if timeout is None else "drain"
                what = f"{function} on {handle.place.address}"
                raise late_error(what, seconds, setting)
        except ReplicaLeavingError:
            self.dispatcher.dismiss(lane)
            raise
        except (ReplicaLostError, TrainerClosedError) as error:
            # The last one: its worker is closing, and has closed what publishes.
            self.dispatcher.lose(lane, error)
            why = error
        finally:
            self.under_way[handle.key] -= 1
            call.cancel()
        if self.dispatcher.closed:
            raise closed_error()
        raise ReplicaLostError(
            f"The replica on {handle.place.address} was lost before it had answered "
            f"{function}."
        ) from why


def _info(handle: ReplicaHandle) -> ReplicaInfo:
    status = handle.lane.status
    return ReplicaInfo(
        handle.place.address,
        status.steps if status else 0,
        status.samples if status else 0,
        status.staleness if status else 0.0,
        handle.lane.alive and not handle.is_lost,
        status.version if status else 0,
        handle.place.device,
    )


def names_of(handles: Iterable[ReplicaHandle]) -> list[str]:
    """Name replicas by the addresses of their workers; further ones have a number."""
    names: list[str] = []
    for handle in handles:
        address = handle.place.address
        same = sum(name.partition("#")[0] == address for name in names)
        names.append(f"{address}#{same + 1}" if same else address)
    return names


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
