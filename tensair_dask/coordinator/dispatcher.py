"""The dispatcher: which replica gets the next mini-batch, and when it leaves.

Lives on the client's event loop and is used from there only. A mini-batch is held
until its report has come back, and its gradient is in the models of all replicas: if
its own is lost before, another one gets it.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import itertools
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from tensair_dask.batches.batch import Block
from tensair_dask.batches.predictions import unknown_type
from tensair_dask.coordinator.lane import Lane, Limits
from tensair_dask.coordinator.pending import Pending
from tensair_dask.coordinator.roomy_lanes import RoomyLanes
from tensair_dask.coordinator.run_events import RunEvents
from tensair_dask.errors import (
    KilledReplicasError,
    NoReplicasError,
    RaisedError,
    ReplicaLeavingError,
    TensairError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.exchange.wire import Packed, unpack
from tensair_dask.reports import Report

__all__ = ["Dispatcher", "nobody_alive"]

logger = logging.getLogger(__name__)


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
    events
        Hears of each report before it is delivered, of replicas that are given up or
        have left, and what replicas have to say. A subscriber must see to it that
        `resolve` is called, with what the others have of such a replica. None: the
        others have nothing of it.
    """

    def __init__(
        self,
        run_id: str,
        limits: Limits,
        events: RunEvents | None = None,
    ) -> None:
        self._run_id = run_id
        self._bounds = limits
        # The same, for as many replicas as there are.
        self._limits = limits.among(0)
        self.events = events
        self.lanes: list[Lane] = []
        self._roomy = RoomyLanes(self._limits)
        # Those that have missed gradients, by their newest status.
        self._behind: set[Lane] = set()
        # Those that wait for room, as a heap by their tickets: who was waked in vain
        # comes back to its place.
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []
        self._tickets = itertools.count()
        # When the first of these was given, on the monotonic clock.
        self._waiting_since: dict[asyncio.Future[None], float] = {}
        # Seconds for which replicas have learned, all together.
        self.busy = 0.0
        self._unassigned: deque[Pending] = deque()
        self._tasks: set[asyncio.Future[Any]] = set()
        self._unreported = 0
        self._idle: list[asyncio.Future[None]] = []
        # While it is held: resolves when nothing is at the replicas any more.
        self.held: asyncio.Future[None] | None = None
        self.redispatched = 0
        # Of these, learned a second time since they were lost with a replica; and
        # those of which it was known that they were not.
        self.relearned = 0
        self.survived = 0
        # Reported, and not to be learned again since too many waited for a peer; and
        # those that were lost with their replica, and were not learned again.
        self.unguarded = 0
        self.missing = 0
        self.closed = False

    def admit(self, lane: Lane) -> None:
        """Send mini-batches to a further replica from now on."""
        self.lanes.append(lane)
        self._share_the_rate()
        self._roomy.put(lane)
        self._reassign()

    def _share_the_rate(self) -> None:
        among = self._bounds.among(sum(lane.open for lane in self.lanes))
        self._limits = self._roomy.limits = among

    @property
    def expecting(self) -> bool:
        """Whether mini-batches wait for one that takes over from those that leave."""
        lanes = self.lanes
        if any(lane.open for lane in lanes):
            return False
        return any(lane.leaving and not lane.judged for lane in lanes)

    @property
    def is_delivering(self) -> bool:
        """Whether the current task is one that hands a report over."""
        return asyncio.current_task() in self._tasks

    # ---- taking mini-batches in ----------------------------------------------------

    @property
    def backlog(self) -> int:
        """Mini-batches taken in and not reported, and those that wait for room."""
        # One that was waked is in the second of these until it is taken in.
        return self._unreported + len(self._waiting_since)

    def lag(self) -> float:
        """Seconds that the oldest mini-batch has waited for its report; 0 if none."""
        now = time.monotonic()
        waiting: list[Iterable[Pending]] = [self._unassigned]
        for lane in self.lanes:
            waiting += (lane.gathered, *lane.sent.values())
        taken = [pending.taken for queue in waiting for pending in queue]
        taken += self._waiting_since.values()
        return now - min(taken, default=now)

    def offer(self, pending: Pending) -> bool:
        """Take in a mini-batch if a replica has room at once."""
        if self._waiting_since:  # also one that was waked, and is not here yet
            return False
        return self._take_in(pending)

    def _take_in(self, pending: Pending) -> bool:
        lane = None if self._unassigned else self._roomy.best()
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
        if self.offer(pending):
            return
        ticket = next(self._tickets)
        while True:
            self._check_alive()
            await self._room(ticket, pending)
            if self.waiting and self.waiting[0][0] < ticket:
                self._wake()  # who comes before it was waked in vain
            elif self._take_in(pending):
                self._wake()
                return

    async def _room(self, ticket: int, pending: Pending) -> None:
        """Wait until there may be room, behind all with lower tickets."""
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (ticket, room)
        heapq.heappush(self.waiting, entry)
        self._waiting_since[room] = pending.taken
        try:
            # Unlike asyncio.timeout, this loses no room that comes at the last moment.
            await asyncio.wait({room}, timeout=self._limits.room)
            if not room.done():
                raise TensairTimeoutError(
                    f"No replica had room for a mini-batch within "
                    f"{self._limits.room:g} s ({self.backlog} mini-batches wait). The "
                    "replicas are stopped, or a step takes longer than that: look at "
                    "the workers, or raise tensair.timeouts.room."
                )
            room.result()
        except asyncio.CancelledError:
            self._wake()  # the room may have been ours
            raise
        finally:
            del self._waiting_since[room]
            if entry in self.waiting:
                self.waiting.remove(entry)
                heapq.heapify(self.waiting)

    def _put(self, lane: Lane, pending: Pending) -> None:
        lane.gather(pending)
        if not lane.scheduled and self._may_send(lane):
            # At the loop's next turn: what is emitted in one go leaves in one message.
            lane.scheduled = True
            asyncio.get_running_loop().call_soon(self._send, lane)

    def _may_send(self, lane: Lane) -> bool:
        if (
            self.held is not None
            or lane.reserved
            or not lane.gathered
            or len(lane.sent) >= self._limits.messages
            or lane.is_apart
        ):
            return False
        return not lane.sent or lane.message_is_full(self._limits)

    # ---- sending, and what comes back ----------------------------------------------

    def _send(self, lane: Lane) -> None:
        lane.scheduled = False
        while lane.alive and self._may_send(lane):
            taken = lane.take(self._limits)
            number = lane.messages
            lane.messages += 1
            lane.sent[number] = taken
            self._track(self._exchange(lane, number, taken))

    async def _exchange(self, lane: Lane, number: int, taken: list[Pending]) -> None:
        block = Block.join(self._run_id, [pending.batch for pending in taken], number)
        try:
            outcome = await lane.learn(block)
        except ReplicaLeavingError:
            self._return(lane, number)
            return
        except Exception as error:
            # Whatever the reason, this replica gives no reports.
            self.lose(lane, error)
            return
        if lane.sent.pop(number, None) is None:  # lost meanwhile, sent to another
            return
        lane.batches -= len(taken)
        lane.nbytes -= sum(pending.batch.nbytes for pending in taken)
        self.note_status(lane, outcome.status)
        self.hear(outcome.status)
        learned = [seconds for seconds in outcome.seconds if seconds]
        self.busy += sum(learned)
        if learned:
            lane.measured(learned, outcome.work)
        self._roomy.put(lane)
        leaves = outcome.status is not None and outcome.status.leaving
        if not leaves:
            self._send(lane)
            self._wake()
        self._report(lane, outcome, taken)
        self.confirm(lane)
        self._unguard(lane)
        if leaves:  # not before: a lane that has ended guards nothing more
            self.dismiss(lane)
            self._wake()
        self._notice_rest()
        self._notice_departure(lane)

    def note_status(self, lane: Lane, status: Any) -> None:
        """Take note of how a replica stands."""
        lane.status = status
        if status is not None and status.missed:
            self._behind.add(lane)
        else:
            self._behind.discard(lane)

    def hear(self, status: Any) -> None:
        """Pass on what a replica has to tell the user."""
        for key, text in getattr(status, "notices", {}).items():
            self._say_once(key, text)

    def _say_once(self, key: str, text: str) -> None:
        if self.events is not None:
            self.events.say_once(key, text)

    def _report(self, lane: Lane, outcome: Any, taken: list[Pending]) -> None:
        now = time.time()
        names = outcome.metric_names
        for position, pending in enumerate(taken):
            pending.losses = 0
            error = outcome.errors.get(position)
            if pending.batch.learn and error is None:
                self._guard(lane, pending)
            else:
                pending.confirmed = True  # there is no gradient to lose
            if pending.reported:  # learned once more
                self._pass(pending)
                continue
            pending.reported = True
            values = outcome.metrics[position]
            kept = outcome.predictions[position]
            report = Report(
                pending.index,
                outcome.losses[position],
                _by_name(names, values) if names else {},
                pending.batch.samples,
                outcome.seconds[position],
                outcome.stalenesses[position],
                lane.address,
                error,
                kept if type(kept) is not Packed else self._unpacked(kept),
                now,
                (pending.batch.learn or pending.survived) and error is None,
            )
            self._deliver(pending, report)

    def _unpacked(self, kept: Packed) -> Any:
        return unpack(kept, lambda name: self._say_once(name, unknown_type(name)))

    def _deliver(self, pending: Pending, report: Report) -> None:
        try:
            if self.events is not None:
                self.events.reported(pending, report)
        except BaseException as error:  # who waits for the report gets it all the same
            logger.error(
                "What looks at the reports raised; the stream goes on",
                exc_info=RaisedError.unless_fit(RaisedError.caught(error)),
            )
        rest = pending.hand_over(report)
        if rest is None:
            self._pass(pending)
        else:
            self._track(self._finish(pending, rest))

    async def _finish(self, pending: Pending, rest: Awaitable[None]) -> None:
        try:
            await rest
        finally:
            self._pass(pending)

    # ---- holding what only its own replica may have ----------------------------------

    def _guard(self, lane: Lane, pending: Pending) -> None:
        """Keep a mini-batch until all replicas have applied its gradient."""
        lane.unconfirmed.append(pending)
        lane.unconfirmed_records += len(pending.metadata) or 1
        lane.guarded.append(pending)
        lane.guarded_nbytes += pending.batch.nbytes

    def _unguard(self, lane: Lane) -> None:
        """Keep no more bytes than may be; what is let go of is not settled by that."""
        while lane.guarded_nbytes > self._limits.unconfirmed_nbytes:
            pending = lane.guarded.popleft()
            lane.guarded_nbytes -= pending.batch.nbytes
            pending.forget()
            self.unguarded += 1

    def confirm(self, lane: Lane) -> None:
        """Let go of what all replicas have applied, by the lane's newest status."""
        if not lane.alive or lane.status is None:
            return
        # Who has missed something acknowledges what it could not apply.
        if any(each.open for each in self._behind):
            return
        full = lane.unconfirmed_records >= self._limits.unconfirmed
        while lane.unconfirmed and lane.unconfirmed[0].position < lane.status.confirmed:
            self._confirm_first(lane)
        if full:
            self._roomy.put(lane)
            self._wake()

    def _confirm_first(self, lane: Lane) -> None:
        pending = lane.unconfirmed.popleft()
        lane.unconfirmed_records -= len(pending.metadata) or 1
        if lane.guarded and lane.guarded[0] is pending:
            lane.guarded.popleft()
            lane.guarded_nbytes -= pending.batch.nbytes
        pending.confirmed = True
        self._settle(pending)

    def _settle(self, pending: Pending) -> None:
        if pending.passed and pending.confirmed:
            pending.let_go()

    def _pass(self, pending: Pending) -> None:
        pending.passed = True
        self._settle(pending)
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
        while self.waiting:
            if self._roomy.best() is None:
                return
            _, waiter = heapq.heappop(self.waiting)
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
        held = self.held = asyncio.get_running_loop().create_future()
        self._notice_rest()
        await asyncio.wait({held}, timeout=timeout)
        if not held.done():
            count = sum(len(sent) for lane in self.lanes for sent in lane.sent.values())
            raise TensairTimeoutError(
                f"{count} mini-batches at the replicas were not reported within "
                f"{timeout:g} s. Raise tensair.timeouts.drain if the steps are slow; "
                "look at the workers if they are not."
            )
        held.result()

    def go_on(self) -> None:
        """End `hold`."""
        self.held = None
        for lane in self.lanes:
            self._send(lane)

    def _notice_rest(self) -> None:
        if self.held is None or self.held.done():
            return
        if not any(lane.sent for lane in self.lanes):
            self.held.set_result(None)

    @property
    def allowed_losses(self) -> int:
        """Replicas that may be lost with one piece of work, before it is refused."""
        return self._limits.losses

    @asynccontextmanager
    async def reserved(self, lane: Lane) -> AsyncIterator[None]:
        """Send nothing more to one replica; what is put there gathers meanwhile."""
        lane.reserved = True
        try:
            yield
        finally:
            lane.reserved = False
            self._send(lane)

    # ---- replicas that leave, and that are lost --------------------------------------

    def dismiss(self, lane: Lane) -> None:
        """Send a replica nothing more; it ends when it has learned what it has."""
        if not lane.open:
            return
        lane.leaving = True
        self._share_the_rate()
        waiting = lane.take_back()
        self._reassign_soon(waiting)
        self._notice_departure(lane)

    def _return(self, lane: Lane, number: int) -> None:
        """Take back a message of which a leaving replica has learned nothing."""
        taken = lane.sent.pop(number, None)
        self.dismiss(lane)
        if taken is None:  # lost meanwhile
            return
        lane.batches -= len(taken)
        lane.nbytes -= sum(pending.batch.nbytes for pending in taken)
        self._reassign_soon(taken)
        self._notice_rest()
        self._notice_departure(lane)

    def _notice_departure(self, lane: Lane) -> None:
        if lane.alive and lane.leaving and not lane.sent:
            self._end(lane)

    def lose(self, lane: Lane, error: BaseException) -> None:
        """Give up a replica; what it had and did not report goes to the others.

        What nobody knows to be learned waits for `resolve`.
        """
        if not lane.alive:
            return
        lane.failure = error
        waiting = lane.take_back()
        doubtful = sum(len(sent) for sent in lane.sent.values())
        if not lane.leaving:  # else its worker may have been ended
            for pending in (each for sent in lane.sent.values() for each in sent):
                pending.losses += 1
        if not self.closed:
            logger.warning(
                "Replica on %s is lost (%s: %s); %d mini-batches go to others",
                lane.address,
                type(error).__name__,
                error,
                doubtful + len(waiting),
            )
        self._end(lane)
        self._reassign_soon(waiting)

    def _end(self, lane: Lane) -> None:
        lane.give_up()
        self._roomy.drop(lane)
        self._share_the_rate()
        self._behind.discard(lane)
        doubtful = [pending for sent in lane.sent.values() for pending in sent]
        lane.unresolved = [*doubtful, *lane.unconfirmed]
        self._unreported += len(lane.unconfirmed)
        lane.sent.clear()
        lane.unconfirmed.clear()
        lane.guarded.clear()
        lane.batches = lane.nbytes = lane.guarded_nbytes = 0
        lane.unconfirmed_records = 0
        self._notice_rest()
        if self.closed:
            return
        if self.events is None:
            self.resolve(lane, 0)
        else:
            self.events.replica_lost(lane)

    def resolve(self, lane: Lane, taken: int | None) -> None:
        """Say what the others have of a replica that is lost, or has left.

        What they do not have is learned by one of them; what cannot be, since too many
        waited, is never settled, so that its source gives it again after a restart.
        What they have, and was not reported, is scored by one of them.

        Parameters
        ----------
        lane
            Of the lost replica.
        taken
            The gradients of how many of the mini-batches that were sent to it, in the
            order of sending, all the others have applied; None if there are no others.
        """
        lane.judged = True
        unresolved, lane.unresolved = lane.unresolved, []
        again: list[Pending] = []
        missing = 0
        for pending in unresolved:
            lives = taken is not None and pending.position < taken
            if lives:
                pending.losses = 0  # it was learned
            if pending.reported and lives:
                pending.confirmed = True
            if pending.reported and (lives or taken is None or pending.batch is None):
                # Where it was lost, nobody settles it.
                missing += not lives
                self._pass(pending)
                continue
            if lives and pending.batch.learn:
                pending.survived = True
                pending.batch = replace(pending.batch, learn=False)
                self.survived += 1
            self.relearned += pending.reported
            again.append(pending)
        self.missing += missing
        if missing and taken is not None:
            logger.warning(
                "%d mini-batches are lost with the replica on %s: a peer has not "
                "applied them, and more than tensair.dispatch.max-unconfirmed-bytes "
                "waited. Sources with positions give them again after a restart",
                missing,
                lane.address,
            )
        self._reassign_soon(again)

    def _reassign_soon(self, pendings: list[Pending]) -> None:
        self.redispatched += len(pendings)
        self._unassigned.extend(sorted(pendings, key=lambda pending: pending.index))
        # At the loop's next turn: all replicas of a lost machine are then known.
        asyncio.get_running_loop().call_soon(self._reassign)

    def _reassign(self) -> None:
        # Beyond the bounds of the lanes if need be: they were within the bounds of
        # the cluster when they were taken in, and nothing new is taken in meanwhile.
        open_lanes = [lane for lane in self.lanes if lane.open]
        if not open_lanes and self.expecting:
            return
        # The last one is risked once less for what others were lost with.
        allowed = max(0, self._limits.losses - (len(open_lanes) == 1))
        while self._unassigned:
            pending = self._unassigned.popleft()
            if pending.losses > allowed:
                self._quarantine(pending)
            elif open_lanes:
                self._put(min(open_lanes, key=lambda lane: lane.load), pending)
            else:
                error = nobody_alive(len(self.lanes), "the mini-batch was not learned")
                self._refuse(pending, error)
        if open_lanes:
            self._wake()
        else:
            for _, waiter in self.waiting:
                if not waiter.done():
                    waiter.set_result(None)

    def _quarantine(self, pending: Pending) -> None:
        """Refuse a mini-batch that seems to end whoever learns it."""
        error = KilledReplicasError(
            f"{pending.losses} replicas were lost one after the other while they had "
            f"mini-batch {pending.index} ({pending.batch.samples} samples), in the end "
            "nothing else: it is not given to another. See the logs of their workers "
            "(out of memory, or a crash in an operation?). If they were ended for "
            "other reasons, raise tensair.dispatch.allowed-losses."
        )
        logger.error("%s", error)
        pending.confirmed = True  # there is no gradient that could be lost
        self._refuse(pending, error)

    def _refuse(self, pending: Pending, error: TensairError) -> None:
        if pending.reported:
            self._pass(pending)
            return
        pending.reported = True
        report = Report.refused(pending.index, pending.batch.samples, error)
        self._deliver(pending, report)

    def _check_alive(self) -> None:
        if not self.expecting and not any(lane.open for lane in self.lanes):
            raise nobody_alive(len(self.lanes), "the mini-batch was not taken")

    # ---- the end -------------------------------------------------------------------

    async def drained(self, timeout: float) -> None:
        """Wait until everything that was taken in has been reported.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                while self._unreported or self._waiting_since:
                    await self._next_rest()
        if self._unreported or self._waiting_since:
            raise TensairTimeoutError(
                f"{self.backlog} mini-batches were not reported within {timeout:g} s. "
                "Raise tensair.timeouts.drain if the steps are slow; look at the "
                "workers if they are not."
            )

    async def _next_rest(self) -> None:
        if not self._unreported:  # those that wait for room are about to be taken in
            await asyncio.sleep(0)
            return
        idle: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._idle.append(idle)
        await idle

    async def close(self) -> None:
        """Stop sending; what has not been reported is given up."""
        self.closed = True
        for lane in self.lanes:
            lane.give_up()
        held = [] if self.held is None else [self.held]
        waiting = [room for _, room in self.waiting]
        for waiter in (*waiting, *self._idle, *held):
            if not waiter.done():
                waiter.set_exception(
                    TrainerClosedError("The trainer was closed meanwhile.")
                )
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _by_name(names: Sequence[str], values: Sequence[float | None]) -> dict[str, float]:
    """Scores of one mini-batch; the newest names may have no values in it."""
    return {
        name: value
        for name, value in zip(names, values, strict=False)
        if value is not None
    }


def nobody_alive(replicas: int, so: str) -> NoReplicasError:
    """Say that all of so many replicas are lost, what that means, and what to do."""
    return NoReplicasError(
        f"None of the {replicas} replicas is alive: {so}. Start workers, and go on "
        "from the last checkpoint with Trainer.restore, or begin with a new trainer."
    )
