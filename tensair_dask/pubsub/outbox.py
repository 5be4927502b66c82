"""A bounded, thread-safe queue of what waits for one destination."""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import Any

from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.policies import Policy

__all__ = ["Outbox"]


class Outbox:
    """Messages for one destination, from `put` until they are settled.

    Any thread may `put`; one consumer takes. Each message has the publisher's ordinal
    of the first put that it stands for, so that one can ask what has been `settled`.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.dropped = 0
        self.conflated = 0
        self.closed = False
        self._putting = threading.Lock()
        # Held for a moment only, never while messages are merged: the event loop,
        # which takes, must not wait for a merge in another thread.
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, Parcel]] = deque()
        self._merging: tuple[int, Parcel] | None = None
        self._leaving: list[tuple[int, Parcel]] = []
        self._asleep = True

    @property
    def pending(self) -> int:
        """Messages that have not left."""
        # Both at one moment: a merge that ends in between would seem to be gone, and
        # a link that is woken for it would find nothing, and sleep for ever.
        with self._changed:
            return len(self._waiting) + (self._merging is not None)

    @property
    def in_flight(self) -> int:
        """Messages that have left and are not acknowledged."""
        return len(self._leaving)

    @property
    def has_room(self) -> bool:
        """Whether one more may be put without waiting."""
        if self.closed or not self.policy.blocks:
            return True
        return self.pending + self.in_flight < self.policy.maxsize

    @property
    def within_bound(self) -> bool:
        """Whether no more is held than the policy allows."""
        if self.closed or not self.policy.blocks:
            return True
        return self.pending + self.in_flight <= self.policy.maxsize

    def settled(self, ordinal: int) -> bool:
        """Whether everything up to this ordinal has been acknowledged or given up."""
        with self._changed:
            if self._leaving:
                return self._leaving[0][0] > ordinal
            if self._merging is not None:
                return self._merging[0] > ordinal
            return not self._waiting or self._waiting[0][0] > ordinal

    def put(
        self,
        ordinal: int,
        parcel: Parcel,
        merged: dict[int, tuple[Parcel, Parcel]] | None = None,
    ) -> bool:
        """Add a message and apply the policy; never waits.

        Parameters
        ----------
        ordinal
            Grows with every put.
        parcel
            The message.
        merged
            What this parcel has already been merged into, by the identity of the
            waiting parcel: outboxes that hold the same parcel share one merge.

        Returns
        -------
        bool
            Whether the consumer sleeps and has to be woken.
        """
        with self._putting:
            with self._changed:
                if self.closed:
                    return False
                policy = self.policy
                if policy.blocks or len(self._waiting) < policy.maxsize:
                    self._waiting.append((ordinal, parcel))
                    return self._wake()
                old = self._merging = self._waiting.popleft()
            item = old
            try:
                item = self._combine(old, ordinal, parcel, merged)
            finally:
                with self._changed:
                    self._merging = None
                    if not self.closed:
                        self._waiting.append(item)
                        woken = self._wake()
                    else:
                        woken = False
            return woken

    def _combine(
        self,
        old: tuple[int, Parcel],
        ordinal: int,
        parcel: Parcel,
        merged: dict[int, tuple[Parcel, Parcel]] | None,
    ) -> tuple[int, Parcel]:
        first, waiting = old
        if self.policy.lossy:
            self.dropped += 1
            return ordinal, parcel
        self.conflated += 1
        if merged is None or id(waiting) not in merged:
            result = Parcel(self.policy.combine(waiting.open(), parcel.open()))
            if merged is None:
                return first, result
            # The waiting parcel stays beside the result, so that no other parcel can
            # get its identity meanwhile.
            merged[id(waiting)] = (waiting, result)
        return first, merged[id(waiting)][1]

    def _wake(self) -> bool:
        asleep, self._asleep = self._asleep, False
        return asleep

    def take(self) -> Parcel | None:
        """Return the next message, now in flight, or None and fall asleep."""
        with self._changed:
            if not self._waiting:
                self._asleep = not self._leaving
                return None
            item = self._waiting.popleft()
            self._leaving.append(item)
            return item[1]

    def settle(self) -> None:
        """Forget what is in flight: it has been acknowledged or given up."""
        with self._changed:
            self._leaving.clear()
            self._changed.notify_all()

    def wait_for_room(self, deadline: float | None = None) -> bool:
        """Block this thread until there is room, or until ``time.monotonic()``.

        Returns
        -------
        bool
            False if the deadline came first.
        """
        with self._changed:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            return self._changed.wait_for(lambda: self.has_room, left)

    def hand_over(self) -> list[tuple[int, Parcel]]:
        """Close, and return what was waiting."""
        with self._putting, self._changed:
            items = list(self._waiting)
            self._close()
            return items

    def close(self) -> None:
        """Drop everything and refuse more; who waits for room goes on."""
        with self._changed:
            self._close()

    def _close(self) -> None:
        self.closed = True
        self._waiting.clear()
        self._leaving.clear()
        self._changed.notify_all()

    def __repr__(self) -> str:
        state: Any = "closed" if self.closed else f"{self.pending} waiting"
        return f"<Outbox: {state}, {self.in_flight} in flight>"
