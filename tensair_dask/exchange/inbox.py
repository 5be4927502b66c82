"""What has arrived from the peers and waits to be applied."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass

from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.message import GradientMessage

__all__ = ["Arrival", "Inbox"]


@dataclass(slots=True)
class Arrival:
    """One message in the inbox and what to call once it has been applied."""

    message: GradientMessage
    applied: Callable[[], None]


class Inbox:
    """Messages between their arrival and their application, in order by origin.

    Bounded without a limit of its own: a peer's message is acknowledged only when it
    has been applied, and a peer has one unacknowledged message at a time. So the
    inbox holds at most one message for each peer, and a slow replica makes its peers
    conflate instead of filling its memory.

    Arrivals are put by the event loop and taken by the thread that trains; a deque's
    append and popleft are atomic, so no lock is needed.

    Attributes
    ----------
    refused
        How many messages were not those that came next from their origin.
    missed
        Origins of which something was not received that was said to others, or before:
        nothing more of them fits, until a peer's model is taken over.
    """

    def __init__(self) -> None:
        self._arrivals: deque[Arrival] = deque()
        self.refused = 0
        self.missed: set[str] = set()
        self._withheld: list[Arrival] = []
        self._told = False

    def __bool__(self) -> bool:
        return bool(self._arrivals)

    def put(self, message: GradientMessage, applied: Callable[[], None]) -> None:
        """Take in a message that the gate has let in."""
        self._arrivals.append(Arrival(message, applied))

    def take(
        self, clock: VectorClock, sealed: Container[str] = ()
    ) -> tuple[list[Arrival], list[Arrival]]:
        """Take all that has arrived.

        Parameters
        ----------
        clock
            What has been applied.
        sealed
            Origins of which nothing more is to be applied.

        Returns
        -------
        fresh, repeated
            Arrivals to apply, and those whose range of steps has been applied
            already (to acknowledge only). A range of a sealed origin, or one that would
            leave a gap, is counted in `refused` and returned with the repeated ones;
            the latter not before it is `told` of.
        """
        fresh: list[Arrival] = []
        repeated: list[Arrival] = []
        next_step: dict[str, int] = {}
        arrivals = self._arrivals
        while arrivals:
            arrival = arrivals.popleft()
            message = arrival.message
            expected = next_step.get(message.origin, clock[message.origin] + 1)
            if message.first == expected and message.origin not in sealed:
                fresh.append(arrival)
                next_step[message.origin] = message.last + 1
            else:
                if message.last >= expected:
                    self.refused += 1
                    if message.origin not in sealed:
                        self.missed.add(message.origin)
                        if not self._told:
                            self._withheld.append(arrival)
                            continue
                repeated.append(arrival)
        return fresh, repeated

    def drop(self) -> None:
        """Forget what has arrived, and will not be applied; from any thread."""
        self._arrivals = deque()
        self._withheld = []

    def leave_out(self, arrival: Arrival) -> None:
        """Do without a message that came next: it leaves a gap, as a lost one does."""
        self.missed.add(arrival.message.origin)
        if self._told:
            arrival.applied()
        else:
            self._withheld.append(arrival)

    def put_back(self, arrivals: Sequence[Arrival]) -> None:
        """Take in again, before all others, what could not be applied just now."""
        self._arrivals.extendleft(reversed(arrivals))

    def announced(self) -> list[Arrival]:
        """Say that others get to know now whether anything is `missed`.

        An origin takes what is acknowledged for applied, and what it learned for safe
        with this replica. So nothing that would leave a gap is acknowledged before;
        from now on it is, at once, or who waits for a flush would wait for nothing.

        Returns
        -------
        withheld
            Arrivals that would have left a gap, to acknowledge.
        """
        self._told = bool(self.missed)
        withheld, self._withheld = self._withheld, []
        return withheld

    def caught_up(self) -> None:
        """Say that nothing is missed any more."""
        self.missed.clear()
        self._told = False
