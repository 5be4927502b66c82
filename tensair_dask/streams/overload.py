"""Overload: what is done with items that come faster than they can be learned."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import random
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from tensair_dask._common.checks import whole
from tensair_dask.errors import ConfigurationError, TensairTimeoutError

__all__ = ["POLICIES", "Overload", "WaitingRoom", "check_overload"]

# Let the source wait; drop the oldest that wait; keep a uniform sample.
POLICIES = ("block", "drop-oldest", "sample")


def check_overload(overload: str, waiting: int | None) -> None:
    """See that the policy of a stream is one, and uses the bound that is given.

    Raises
    ------
    ConfigurationError
        If it is not, or the bound is not a whole number from 1, or not used.
    """
    if overload not in POLICIES:
        raise ConfigurationError(
            f"overload={overload!r} was given; allowed are "
            f"{', '.join(map(repr, POLICIES))}."
        )
    if waiting is None:
        return
    whole("waiting", waiting, 1, 100)
    if overload == "block":
        raise ConfigurationError(
            f"waiting={waiting!r} was given with overload='block', where none wait in "
            "the node: emit waits. Give overload='drop-oldest' or 'sample' with it, or "
            "leave it out; max_in_flight= of the trainer says how many are under way."
        )


class WaitingRoom:
    """A bounded queue in the order of arrival, which drops what is too much.

    Parameters
    ----------
    policy
        ``"drop-oldest"`` or ``"sample"``.
    limit
        How many may wait.
    seed
        Of the sample; None for a different one each time.

    Notes
    -----
    Every item gets a tag, and where there are too many the one with the least tag goes.
    With the numbers of arrival as tags, that is the oldest.

    With random tags it is reservoir sampling by the largest tags ([2]_ with all weights
    the same; another way to what [1]_ does): of all that came while nothing was taken
    out, what waits is a sample in which every subset of ``limit`` items is as likely as
    any other. What is taken out no longer competes. A reservoir that counts its
    arrivals instead would, in a long overload, accept hardly anything that is new.
    Tags know no time: under a steady overload early and late items are as likely kept.

    References
    ----------
    .. [1] J. S. Vitter: Random sampling with a reservoir. ACM Transactions on
       Mathematical Software 11(1), 1985.
    .. [2] P. S. Efraimidis, P. G. Spirakis: Weighted random sampling with a reservoir.
       Information Processing Letters 97(5), 2006.
    """

    def __init__(self, policy: str, limit: int, seed: int | None = None) -> None:
        self.policy = policy
        self.limit = limit
        self._numbers = itertools.count()
        self._random = random.Random(seed).random if policy == "sample" else None
        self._items: OrderedDict[int, Any] = OrderedDict()
        # Tags and numbers; also of items that were taken out, until there are many.
        self._tags: list[tuple[float, int]] = []

    def __len__(self) -> int:
        return len(self._items)

    def put(self, item: Any) -> list[Any]:
        """Add an item; give what must go for it, which may be itself."""
        number = next(self._numbers)
        self._items[number] = item
        tag = self._random() if self._random else number
        heapq.heappush(self._tags, (tag, number))
        gone = []
        while len(self._items) > self.limit:
            _, least = heapq.heappop(self._tags)
            if least in self._items:
                gone.append(self._items.pop(least))
        if len(self._tags) > 2 * self.limit + 16:
            self._tags = [each for each in self._tags if each[1] in self._items]
            heapq.heapify(self._tags)
        return gone

    def take(self) -> Any:
        """Take out the one that came first."""
        return self._items.popitem(last=False)[1]

    def first(self) -> Any:
        """Look at the one that came first."""
        return self._items[next(iter(self._items))]


class _Held(NamedTuple):
    item: Any
    since: float


class Overload:
    """Feeds items in their order as there is room, and never lets who gives them wait.

    Belongs to the client's event loop.

    Parameters
    ----------
    room
        Where items wait, and which of them are dropped; empty.
    feed
        ``feed(item)`` gives None if the item was taken at once, or what ends when it
        is; what that raises stops the feeding until `emptied`, or the next `offer`.
    drop
        Called with each item that is dropped.
    failed
        Called with what ``feed`` raised.
    note
        Called with a text where an episode of overload begins, and where it ends:
        when nothing waits any more, and nothing was dropped for a while.
    calm
        Seconds of that while.

    Attributes
    ----------
    dropped
        How many items were dropped.
    """

    def __init__(
        self,
        room: WaitingRoom,
        feed: Callable[[Any], Awaitable[Any] | None],
        drop: Callable[[Any], Any],
        failed: Callable[[Exception], Any],
        note: Callable[[str], Any],
        calm: float,
    ) -> None:
        self._room = room
        self._feed = feed
        self._drop = drop
        self._failed = failed
        self._note = note
        self._calm = calm
        # What is being fed, and could not be yet.
        self._head: _Held | None = None
        self._feeding: asyncio.Task[None] | None = None
        self._watch: asyncio.TimerHandle | None = None
        self._episode: _Episode | None = None
        self._closed = False
        self.dropped = 0

    @property
    def waiting(self) -> int:
        """Items that wait here, besides the one that is being fed."""
        stopped = self._head is not None and self._feeding is None
        return len(self._room) + stopped

    def lag(self) -> float:
        """Seconds that the oldest item has waited; 0 if none waits."""
        oldest = self._head
        if oldest is None and len(self._room):
            oldest = self._room.first()
        return 0.0 if oldest is None else time.monotonic() - oldest.since

    # ---- what comes in, and goes on --------------------------------------------------

    def offer(self, item: Any) -> None:
        """Take an item: feed it, let it wait, or drop what is too much."""
        held = _Held(item, time.monotonic())
        if self._feeding is None and self._head is None and not len(self._room):
            self._head = held
            self._begin()
            return
        for gone in self._room.put(held):
            self._lose(gone)
        self._resume()

    def _begin(self) -> None:
        assert self._head is not None
        try:
            rest = self._feed(self._head.item)
        except Exception as error:
            self._failed(error)
            return
        if rest is None:
            self._head = None
        else:
            self._feeding = asyncio.ensure_future(self._feed_all(rest))

    def _resume(self) -> None:
        if self._feeding is None and (self._head is not None or len(self._room)):
            self._feeding = asyncio.ensure_future(self._feed_all(None))

    async def _feed_all(self, rest: Awaitable[Any] | None) -> None:
        try:
            if rest is not None:
                await rest
                self._head = None
            while self._head is not None or len(self._room):
                self._head = self._head or self._room.take()
                rest = self._feed(self._head.item)
                if rest is not None:
                    await rest
                self._head = None
        except Exception as error:
            self._failed(error)
        finally:
            self._feeding = None
        self._look()

    async def emptied(self, timeout: float) -> None:
        """Wait until nothing waits here, or feeding has failed.

        Raises
        ------
        TensairTimeoutError
            If that takes longer than ``timeout`` seconds.
        """
        self._resume()
        if self._feeding is not None:
            await asyncio.wait([self._feeding], timeout=timeout)
        if self._feeding is not None:
            raise TensairTimeoutError(
                f"{self.waiting} mini-batches waited in a stream for longer than "
                f"{timeout:g} s. Raise tensair.timeouts.drain if the steps are slow; "
                "look at the workers if they are not."
            )

    def end(self) -> None:
        """End an episode at once, where nothing waits any more."""
        if not self.waiting:
            self._end_episode()

    def close(self) -> None:
        """Note no further episode; feeding ends since ``feed`` raises from now on."""
        self._end_episode()
        self._closed = True

    # ---- episodes --------------------------------------------------------------------

    def _lose(self, gone: _Held) -> None:
        now = time.monotonic()
        if self._episode is None and not self._closed:
            self._episode = _Episode(now)
            self._note(
                f"overload: more comes than can be learned, and {self._room.limit} "
                f"mini-batches wait; others are dropped ({self._room.policy})"
            )
        if self._episode is not None:
            self._episode.dropped += 1
            self._episode.newest = now
        self.dropped += 1
        self._drop(gone.item)

    def _look(self) -> None:
        """End the episode if it is over; else look again when that may be."""
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._episode is None or self._feeding is not None or self.waiting:
            return  # looked at again when all that waits has been fed
        rest = self._episode.newest + self._calm - time.monotonic()
        if rest <= 0:
            self._end_episode()
        else:
            loop = asyncio.get_running_loop()
            self._watch = loop.call_later(rest, self._look)

    def _end_episode(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        if self._episode is None:
            return
        episode, self._episode = self._episode, None
        self._note(
            f"overload ended after {episode.newest - episode.began:.1f} s: "
            f"{episode.dropped:,} mini-batches were dropped ({self._room.policy})"
        )


class _Episode:
    """From the first item that was dropped to the last.

    Attributes
    ----------
    began, newest
        When the first was dropped, and the newest one, on the monotonic clock.
    dropped
        How many were.
    """

    def __init__(self, now: float) -> None:
        self.began = self.newest = now
        self.dropped = 0
