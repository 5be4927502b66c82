"""One replica as the dispatcher sees it, and what may lie there."""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tensair_dask.batches.batch import Block
from tensair_dask.coordinator.pending import Pending

__all__ = ["Lane", "Limits"]

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
    unconfirmed_nbytes
        Bytes of mini-batches that were reported, and that not all replicas are known
        to have applied. Beyond it the oldest ones can no longer be learned again.
    unconfirmed
        Records of them, by what their sources gave with them, which is held all the
        same. Beyond it nothing more is put at the replica.
    message_seconds, message_nbytes
        Work to gather in one message.
    messages
        Messages on their way or being learned.
    rate
        Messages a second to all replicas together, while all are busy.
    losses
        Replicas that may be lost with one mini-batch, before it is refused.
    room
        Seconds that a mini-batch waits for a replica with room.
    """

    batches: int
    nbytes: int
    unconfirmed_nbytes: int
    unconfirmed: int
    seconds: float
    message_seconds: float
    message_nbytes: int
    messages: int
    rate: float
    losses: int
    room: float

    def among(self, replicas: int) -> Limits:
        """Bound what lies at each of so many replicas.

        One client sends all messages, and takes all answers: the more replicas there
        are, the more work each message holds.
        """
        seconds = max(self.message_seconds, replicas / self.rate)
        held = max(self.seconds, self.messages * seconds)
        return replace(self, message_seconds=seconds, seconds=held)


class Lane:
    """One replica as the dispatcher sees it.

    Parameters
    ----------
    address
        Of its worker.
    learn
        Sends a block and returns the replica's `Outcome`; raises if the replica is
        lost.

    Attributes
    ----------
    alive
        False once the replica is lost, or has left.
    leaving
        Whether it takes no more mini-batches, and ends when it has learned those that
        it has.
    unconfirmed
        Mini-batches that were reported, and that some peers may not have applied.
    guarded
        The newest of these: those that can be learned again.
    unresolved
        Of a lost replica: what may have been lost with it, until `resolve`.
    seconds_per_batch
        Work of a mini-batch there, in seconds that do not pass while the replica waits
        for a CPU: what decides how much is sent. Else it would get less in each
        message, and more messages, the less CPU there is.
    pace
        Seconds from one mini-batch to the next, by a clock on the wall: what decides
        which replica gets the next mini-batch.
    judged
        Whether it is known what lives on of it.
    failure
        By which it is known that the replica is lost, if it is.
    lost
        Resolves when the replica is given up.
    reserved
        Whether nothing is sent to it for a while; see `Dispatcher.reserved`.
    """

    def __init__(self, address: str, learn: Callable[[Block], Awaitable[Any]]) -> None:
        self.address = address
        self.learn = learn
        self.gathered: deque[Pending] = deque()
        self._gathered_nbytes = 0
        self.sent: dict[int, list[Pending]] = {}
        self.batches = 0
        self.nbytes = 0
        self.messages = 0
        self.position = 0
        self.unconfirmed: deque[Pending] = deque()
        self.unconfirmed_records = 0
        self.guarded: deque[Pending] = deque()
        self.guarded_nbytes = 0
        self.unresolved: list[Pending] = []
        self.seconds_per_batch = 0.0
        self.pace = 0.0
        self.alive = True
        self.leaving = False
        self.judged = False
        self.failure: BaseException | None = None
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status: Any = None
        self.scheduled = False
        self.reserved = False

    def give_up(self) -> None:
        """Send nothing more; whoever waits for `lost` is told."""
        self.alive = False
        if not self.lost.done():
            self.lost.set_result(None)

    @property
    def open(self) -> bool:
        """Whether mini-batches may be put here."""
        return self.alive and not self.leaving

    @property
    def load(self) -> float:
        """Seconds of work that lies here; mini-batches while the speed is unknown."""
        return self.batches * (self.pace or 1.0)

    def has_room(self, limits: Limits) -> bool:
        """Whether one more mini-batch may be put here."""
        batches = self.batches
        if self.unconfirmed_records >= limits.unconfirmed:
            return False
        if not batches:
            return True
        if batches >= limits.batches or self.nbytes >= limits.nbytes:
            return False
        # As `_most` has it, without the division: this is asked for each mini-batch,
        # of each replica.
        return batches < 2 or 0.0 < batches * self.seconds_per_batch < limits.seconds

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
        return self._gathered_nbytes >= limits.message_nbytes

    def gather(self, pending: Pending) -> None:
        """Put a mini-batch here; it leaves with the next message."""
        nbytes = pending.batch.nbytes
        self.gathered.append(pending)
        self._gathered_nbytes += nbytes
        self.batches += 1
        self.nbytes += nbytes

    def take_back(self) -> list[Pending]:
        """Take all that has gathered, and leaves with no message."""
        waiting = list(self.gathered)
        self.gathered.clear()
        self.batches -= len(waiting)
        self.nbytes -= self._gathered_nbytes
        self._gathered_nbytes = 0
        return waiting

    def take(self, limits: Limits) -> list[Pending]:
        """Take the mini-batches of the next message."""
        taken: list[Pending] = []
        nbytes = 0
        most = math.inf
        if self.seconds_per_batch:
            most = math.ceil(limits.message_seconds / self.seconds_per_batch)
        while self.gathered and (
            not taken
            or (
                len(taken) < most
                and nbytes < limits.message_nbytes
                and not (taken[0].losses or self.gathered[0].losses)
            )
        ):
            pending = self.gathered.popleft()
            nbytes += pending.batch.nbytes
            self._gathered_nbytes -= pending.batch.nbytes
            pending.position = self.position
            self.position += 1
            taken.append(pending)
        return taken

    @property
    def is_apart(self) -> bool:
        """Whether what was sent, and what comes next, must not be here together.

        Of a mini-batch that was at a replica when that was lost it shall be known
        whether it was the reason.
        """
        if not self.sent:
            return False
        suspect = any(taken[0].losses for taken in self.sent.values())
        return suspect or bool(self.gathered[0].losses)

    def measured(self, seconds: Sequence[float], work: float) -> None:
        """Record how long the mini-batches of a message took.

        Parameters
        ----------
        seconds
            Of each, by a clock on the wall.
        work
            Seconds of all, less those in which the replica waited for a CPU.
        """
        self.pace = _smoothed(self.pace, sum(seconds) / len(seconds))
        mean = (work or sum(seconds)) / len(seconds)
        self.seconds_per_batch = _smoothed(self.seconds_per_batch, mean)


def _smoothed(mean: float, value: float) -> float:
    return mean + SMOOTHING * (value - mean) if mean else value
