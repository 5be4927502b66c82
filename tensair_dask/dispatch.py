"""The dispatcher: which replica gets the next mini-batch, and when it leaves.

Lives on the client's event loop and is used from there only. A mini-batch is held
until its report has come back; if its replica is lost, another one gets it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensair_dask.batches import Block, MiniBatch
from tensair_dask.errors import (
    NoReplicasError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.reports import Report

__all__ = ["Dispatcher", "Lane", "Limits", "Pending"]

logger = logging.getLogger(__name__)

# Weight of a new measurement of a replica's speed.
SMOOTHING = 0.2


@dataclass(frozen=True)
class Limits:
    """Bounds on what lies at one replica; see the ``dispatch`` section of the config.

    Attributes
    ----------
    batches, nbytes
        Mini-batches, and bytes of them, that have not been reported.
    seconds
        Work that has not been reported, by the replica's measured speed; at least
        two mini-batches are allowed, so that one is there when the other ends.
    message_seconds, message_nbytes
        Work to gather in one message.
    messages
        Messages on their way or being learned.
    room
        Seconds that a mini-batch waits for a replica with room.
    """

    batches: int
    nbytes: int
    seconds: float
    message_seconds: float
    message_nbytes: int
    messages: int
    room: float


@dataclass(slots=True)
class Pending:
    """One mini-batch on its way to being learned.

    Attributes
    ----------
    index
        Number in order of submission.
    batch
        What is to be learned.
    item
        The same as it was given, for the dead letters.
    deliver
        Called once with the report; may return an awaitable, which then holds the
        mini-batch's place until it is done (back-pressure from downstream).
    taken
        When it was given, on the monotonic clock.
    """

    index: int
    batch: MiniBatch
    item: Any
    deliver: Callable[[Report], Awaitable[Any] | None]
    taken: float = field(default_factory=time.monotonic)


class Lane:
    """One replica as the dispatcher sees it.

    Parameters
    ----------
    address
        Of its worker.
    learn
        Sends a block and returns the replica's `Outcome`; raises `OSError` if the
        replica is lost.

    Attributes
    ----------
    alive
        Whether mini-batches may be put here.
    lost
        Resolves when the replica is given up.
    """

    def __init__(self, address: str, learn: Callable[[Block], Awaitable[Any]]) -> None:
        self.address = address
        self.learn = learn
        self.gathered: deque[Pending] = deque()
        self.sent: dict[int, list[Pending]] = {}
        self.batches = 0
        self.nbytes = 0
        self.seconds_per_batch = 0.0
        self.alive = True
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status: Any = None
        self.scheduled = False

    def give_up(self) -> None:
        """Send nothing more; whoever waits for `lost` is told."""
        self.alive = False
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def load(self) -> float:
        """Seconds of work that lies here; mini-batches while the speed is unknown."""
        return self.batches * (self.seconds_per_batch or 1.0)

    def has_room(self, limits: Limits) -> bool:
        """Whether one more mini-batch may be put here."""
        if not self.batches:
            return True
        return self.batches < self._most(limits) and self.nbytes < limits.nbytes

    def _most(self, limits: Limits) -> int:
        if not self.seconds_per_batch:
            return min(limits.batches, 2)
        return min(
            limits.batches, max(2, math.ceil(limits.seconds / self.seconds_per_batch))
        )

    def message_is_full(self, limits: Limits) -> bool:
        """Whether what has gathered is worth a message while others are under way."""
        count = len(self.gathered)
        # A share of all that may lie here, or tight bounds would never fill a message.
        if count >= max(1, self._most(limits) // limits.messages):
            return True
        if count * self.seconds_per_batch >= limits.message_seconds:
            return True
        return sum(each.batch.nbytes for each in self.gathered) >= limits.message_nbytes

    def take(self, limits: Limits) -> list[Pending]:
        """Take the mini-batches of the next message."""
        taken: list[Pending] = []
        nbytes = 0
        most = math.inf
        if self.seconds_per_batch:
            most = math.ceil(limits.message_seconds / self.seconds_per_batch)
        while self.gathered and (
            not taken or (len(taken) < most and nbytes < limits.message_nbytes)
        ):
            pending = self.gathered.popleft()
            nbytes += pending.batch.nbytes
            taken.append(pending)
        return taken

    def measured(self, seconds: Sequence[float]) -> None:
        """Record how long the mini-batches of a message took."""
        mean = sum(seconds) / len(seconds)
        if not self.seconds_per_batch:
            self.seconds_per_batch = mean
        self.seconds_per_batch += SMOOTHING * (mean - self.seconds_per_batch)


class Dispatcher:
    """Sends mini-batches to the least-loaded replica, several in one message.

    While messages are on their way to a replica, further mini-batches for it gather
    and leave together. So a message costs the same at any speed, and a fast stream
    of small mini-batches pays for few of them.

    Parameters
    ----------
    run_id
        Written into the blocks.
    limits
        Bounds on what lies at one replica.
    observe
        Called with each mini-batch and its report, before it is delivered.
    lost
        Called with each replica that is given up while the trainer is open.
    """

    def __init__(
        self,
        run_id: str,
        limits: Limits,
        observe: Callable[[Pending, Report], None] = lambda pending, report: None,
        lost: Callable[[Lane], None] = lambda lane: None,
    ) -> None:
        self._run_id = run_id
        self._limits = limits
        self._observe = observe
        self._lost = lost
        self.lanes: list[Lane] = []
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._homeless: deque[Pending] = deque()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._messages = 0
        self._unreported = 0
        self._idle: list[asyncio.Future[None]] = []
        self._turn = 0
        # While it is held: resolves when nothing is at the replicas any more.
        self._held: asyncio.Future[None] | None = None
        self.redispatched = 0
        self.closed = False

    # ---- taking mini-batches in ----------------------------------------------------

    @property
    def backlog(self) -> int:
        """Mini-batches taken in and not reported, and those that wait for room."""
        return self._unreported + len(self._waiting)

    def lag(self) -> float:
        """Seconds that the oldest mini-batch has waited for its report; 0 if none."""
        now = time.monotonic()
        waiting: list[Iterable[Pending]] = [self._homeless]
        for lane in self.lanes:
            waiting += (lane.gathered, *lane.sent.values())
        taken = (pending.taken for queue in waiting for pending in queue)
        return now - min(taken, default=now)

    def offer(self, pending: Pending) -> bool:
        """Take in a mini-batch if a replica has room at once."""
        if self._waiting or self._homeless:
            return False
        lane = self._choose()
        if lane is None:
            return False
        self._unreported += 1
        self._put(lane, pending)
        return True

    async def submit(self, pending: Pending) -> None:
        """Take in a mini-batch, waiting for a replica with room (back-pressure).

        Raises
        ------
        NoReplicasError
            If no replica is alive.
        TensairTimeoutError
            If none has had room for ``tensair.timeouts.room``.
        """
        while not self.offer(pending):
            self._check_alive()
            room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(room)
            try:
                await asyncio.wait_for(room, self._limits.room)
            except asyncio.TimeoutError:
                raise TensairTimeoutError(
                    f"No replica had room for a mini-batch within "
                    f"{self._limits.room:g} s ({self.backlog} mini-batches wait). The "
                    "replicas are stopped, or a step takes longer than that: look at "
                    "the workers, or raise tensair.timeouts.room."
                ) from None
            except asyncio.CancelledError:
                self._wake()  # the room may have been ours
                raise
            finally:
                if room in self._waiting:
                    self._waiting.remove(room)
            # The one that was waked goes first, before any that waits behind it.
            lane = self._choose()
            if lane is not None and not self._homeless:
                self._unreported += 1
                self._put(lane, pending)
                self._wake()
                return

    def _choose(self) -> Lane | None:
        best: Lane | None = None
        lanes = self.lanes
        count = len(lanes)
        for position in range(count):
            lane = lanes[(self._turn + position) % count]
            if (
                lane.alive
                and lane.has_room(self._limits)
                and (best is None or lane.load < best.load)
            ):
                best = lane
        self._turn += 1
        return best

    def _put(self, lane: Lane, pending: Pending) -> None:
        lane.gathered.append(pending)
        lane.batches += 1
        lane.nbytes += pending.batch.nbytes
        if not lane.scheduled and self._may_send(lane):
            # At the loop's next turn: what is emitted in one go leaves in one message.
            lane.scheduled = True
            asyncio.get_running_loop().call_soon(self._send, lane)

    def _may_send(self, lane: Lane) -> bool:
        if (
            self._held is not None
            or not lane.gathered
            or len(lane.sent) >= self._limits.messages
        ):
            return False
        return not lane.sent or lane.message_is_full(self._limits)

    # ---- sending, and what comes back ----------------------------------------------

    def _send(self, lane: Lane) -> None:
        lane.scheduled = False
        while lane.alive and self._may_send(lane):
            taken = lane.take(self._limits)
            number = self._messages = self._messages + 1
            lane.sent[number] = taken
            self._track(self._exchange(lane, number, taken))

    async def _exchange(self, lane: Lane, number: int, taken: list[Pending]) -> None:
        block = Block.join(self._run_id, [pending.batch for pending in taken])
        try:
            outcome = await lane.learn(block)
        except Exception as error:
            # Not only OSError: whatever the reason, this replica gives no reports.
            self.lose(lane, error)
            return
        if lane.sent.pop(number, None) is None:  # lost meanwhile, sent to another
            return
        lane.batches -= len(taken)
        lane.nbytes -= sum(pending.batch.nbytes for pending in taken)
        lane.status = outcome.status
        learned = [seconds for seconds in outcome.seconds if seconds]
        if learned:
            lane.measured(learned)
        self._send(lane)
        self._wake()
        self._report(lane, outcome, taken)
        self._notice_rest()

    def _report(self, lane: Lane, outcome: Any, taken: list[Pending]) -> None:
        now = time.time()
        names = outcome.metric_names
        for position, pending in enumerate(taken):
            values = outcome.metrics[position]
            error = outcome.errors.get(position)
            report = Report(
                pending.index,
                outcome.losses[position],
                dict(zip(names, values, strict=True)) if values else {},
                pending.batch.samples,
                outcome.seconds[position],
                outcome.stalenesses[position],
                lane.address,
                error,
                outcome.predictions[position],
                now,
                pending.batch.learn and error is None,
            )
            self._deliver(pending, report)

    def _deliver(self, pending: Pending, report: Report) -> None:
        try:
            self._observe(pending, report)
            rest = pending.deliver(report)
        except Exception:
            logger.exception("What receives the reports raised; the stream goes on")
            rest = None
        if rest is None:
            self._reported()
        else:
            self._track(self._finish(rest))

    async def _finish(self, rest: Awaitable[Any]) -> None:
        try:
            await rest
        except Exception:
            logger.exception("What receives the reports raised; the stream goes on")
        finally:
            self._reported()

    def _reported(self) -> None:
        self._unreported -= 1
        if not self._unreported:
            for waiter in self._idle:
                if not waiter.done():
                    waiter.set_result(None)
            self._idle.clear()

    def _track(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _wake(self) -> None:
        """Wake one that waits for room; it wakes the next one."""
        while self._waiting:
            if self._choose() is None:
                return
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                return

    # ---- holding -------------------------------------------------------------------

    async def hold(self, timeout: float) -> None:
        """Send nothing more, and wait until all that was sent has been reported.

        What is offered meanwhile gathers, within the limits of the lanes. Call
        `go_on` in any case.

        Raises
        ------
        TensairTimeoutError
            If the replicas take longer than ``timeout`` seconds.
        """
        self._held = asyncio.get_running_loop().create_future()
        self._notice_rest()
        try:
            await asyncio.wait_for(asyncio.shield(self._held), timeout)
        except asyncio.TimeoutError:
            count = sum(len(sent) for lane in self.lanes for sent in lane.sent.values())
            raise TensairTimeoutError(
                f"{count} mini-batches at the replicas were not reported within "
                f"{timeout:g} s. Raise tensair.timeouts.drain if the steps are slow; "
                "look at the workers if they are not."
            ) from None

    def go_on(self) -> None:
        """End `hold`."""
        self._held = None
        for lane in self.lanes:
            self._send(lane)

    def _notice_rest(self) -> None:
        if self._held is None or self._held.done():
            return
        if not any(lane.sent for lane in self.lanes):
            self._held.set_result(None)

    # ---- losing replicas -----------------------------------------------------------

    def lose(self, lane: Lane, error: BaseException) -> None:
        """Give up a replica; what it had and did not report goes to the others."""
        if not lane.alive:
            return
        lane.give_up()
        stranded = [pending for sent in lane.sent.values() for pending in sent]
        stranded += lane.gathered
        stranded.sort(key=lambda pending: pending.index)
        lane.sent.clear()
        lane.gathered.clear()
        lane.batches = lane.nbytes = 0
        self._notice_rest()
        if self.closed:
            return
        logger.warning(
            "Replica on %s is lost (%s: %s); %d mini-batches go to others",
            lane.address,
            type(error).__name__,
            error,
            len(stranded),
        )
        self._lost(lane)
        self.redispatched += len(stranded)
        self._homeless.extend(stranded)
        # At the loop's next turn: all replicas of a lost machine are then known.
        asyncio.get_running_loop().call_soon(self._rehouse)

    def _rehouse(self) -> None:
        # Beyond the bounds of the lanes if need be: they were within the bounds of
        # the cluster when they were taken in, and nothing new is taken in meanwhile.
        alive = [lane for lane in self.lanes if lane.alive]
        while self._homeless:
            pending = self._homeless.popleft()
            if alive:
                self._put(min(alive, key=lambda lane: lane.load), pending)
            else:
                error = NoReplicasError(
                    "All replicas are lost; the mini-batch was not learned. Start "
                    "workers and a new trainer."
                )
                report = Report.refused(pending.index, pending.batch.samples, error)
                self._deliver(pending, report)
        if alive:
            self._wake()
        else:
            for waiter in self._waiting:
                if not waiter.done():
                    waiter.set_result(None)

    def _check_alive(self) -> None:
        if not any(lane.alive for lane in self.lanes):
            raise NoReplicasError(
                f"None of the {len(self.lanes)} replicas is alive; the mini-batch was "
                "not taken. Start workers and a new trainer."
            )

    # ---- the end -------------------------------------------------------------------

    async def drained(self, timeout: float) -> None:
        """Wait until everything that was taken in has been reported.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        deadline = time.monotonic() + timeout
        while self._unreported or self._waiting:
            idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            if self._unreported:
                self._idle.append(idle)
            else:  # those that wait for room are just about to be taken in
                idle.get_loop().call_soon(idle.set_result, None)
            try:
                await asyncio.wait_for(idle, max(0.0, deadline - time.monotonic()))
            except asyncio.TimeoutError:
                raise TensairTimeoutError(
                    f"{self.backlog} mini-batches were not reported within "
                    f"{timeout:g} s. Raise tensair.timeouts.drain if the steps are "
                    "slow; look at the workers if they are not."
                ) from None

    async def close(self) -> None:
        """Stop sending; what has not been reported is given up."""
        self.closed = True
        for lane in self.lanes:
            lane.give_up()
        for waiter in (*self._waiting, *self._idle):
            if not waiter.done():
                waiter.set_exception(
                    TrainerClosedError("The trainer was closed meanwhile.")
                )
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
