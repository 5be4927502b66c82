"""The exchange of one replica: publish what it learned, apply what its peers did."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tensair_dask._common.notices import Notices
from tensair_dask._wording import in_words
from tensair_dask.errors import (
    ReplicaFailedError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.ages import Ages
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.compression import make_compressor
from tensair_dask.exchange.gate import Gate
from tensair_dask.exchange.gradient_sum import GradientSum
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.inbox import Arrival, Inbox
from tensair_dask.exchange.message import GradientMessage
from tensair_dask.exchange.movement import Movement
from tensair_dask.exchange.pacer import Pacer
from tensair_dask.exchange.settings import ExchangeConfig, Share
from tensair_dask.pubsub import Conflate, Pub, Sub
from tensair_dask.pubsub.link import LinkStats
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.view import Member, View

__all__ = ["Exchange", "Holding"]

logger = logging.getLogger(__name__)

# How often what has arrived is tried to be applied, before a peer's model is taken over
# in its place; and how often that, before a replica ends that cannot apply anything.
ATTEMPTS = 3
TAKEOVERS = 3

# Seconds that the eldest waits where its exchange raises: do all others end as well?
PATIENCE = 5.0

# Publications that peers have not confirmed, before they are counted less finely.
UNCONFIRMED = 1000


@dataclass(frozen=True)
class Holding:
    """Whose gradients a replica's parameters hold.

    Attributes
    ----------
    clock
        Gradients by origin.
    taken
        By origin, mini-batches that it had dealt with by the newest of these.
    sealed
        Lost origins: nothing more of theirs may be applied.
    """

    clock: dict[str, int]
    taken: dict[str, int]
    sealed: frozenset[str] = frozenset()


class Exchange:
    """Decentralized exchange over a topic that all replicas of a run publish to.

    Two threads meet here. The thread that trains calls `learned`, `apply_arrived`
    and `publish`; the event loop of the worker moves bytes and calls `_receive`. They
    share the inbox and the outboxes of the publisher, which are safe for that.

    Parameters
    ----------
    run_id
        Names the topic; messages of other runs are refused (by the `Gate`).
    origin
        Name of this replica.
    arena
        Its parameters.
    apply
        Called with the sum of what has arrived.
    wake
        Called from the event loop when a message has arrived.
    settings
        What is exchanged, and how; None for the configured.
    prepare
        Called before the parameters are looked at to publish how they have changed.
    token
        Of the run; see `GradientMessage`.
    """

    def __init__(
        self,
        run_id: str,
        origin: str,
        arena: Arena,
        apply: Callable[[Gradients], None],
        wake: Callable[[], None],
        settings: ExchangeConfig | None = None,
        prepare: Callable[[], None] = lambda: None,
        token: str = "",
    ) -> None:
        self.origin = origin
        self.clock = VectorClock()
        self.samples = 0
        # Mini-batches that were sent to this replica and it has dealt with; and of
        # each peer those that it had dealt with when it sent what is applied here.
        self.taken = 0
        self._taken_by: dict[str, int] = {}
        # Replaced, never changed: both threads look at it.
        self._sealed: frozenset[str] = frozenset()
        self._adopting = False
        # Published and not acknowledged by all: marks of the publisher, and `taken`.
        self._unconfirmed: deque[tuple[int, int]] = deque()
        self._confirmed = self._latest_published = 0
        # When the parameters last changed, on the monotonic clock.
        self.changed = time.monotonic()
        self._run_id = run_id
        self._token = token
        self._apply = apply
        self._wake = wake
        self._prepare = prepare
        self._arena = arena
        settings = settings or ExchangeConfig()
        self.accumulator = self._gathering(settings.share)
        self._settings = settings
        self._compression = settings.compression
        self._compressor = make_compressor(settings.compression)
        self.gate = Gate(run_id, origin, arena, token)
        self._inbox = Inbox()
        # How often nothing of what had arrived could be applied, one after the other.
        self._failures = 0
        self._pacer = Pacer(settings.share_of_time, settings.staleness)
        self.pub: Pub | None = None
        self.sub: Sub | None = None
        self._peers = 0
        self._sharing = False
        # CPU seconds for what was applied since the last publication.
        self._applying = 0.0
        self._ages = Ages()
        self._sent = self._sent_bytes = 0

    # ---- on the event loop ------------------------------------------------------

    async def join(
        self, worker: Any, adopting: bool = False, replicas: int = 1
    ) -> None:
        """Subscribe and publish: nothing that a peer says to us can be missed.

        Parameters
        ----------
        worker
            Of Dask.
        adopting
            Whether the model of a peer has still to be taken over (`adopted`): what
            arrives until then waits.
        replicas
            How many join at the same time: each gets one view of all of them.
        """
        self._adopting = adopting
        self._loop = asyncio.get_running_loop()
        topic = f"tensair/{self._run_id}/gradients"
        self.sub = Sub(
            topic,
            worker=worker,
            handler=self._receive,
            member=self.origin,
            on_view=self.gate.see,
            sealed=True,
            together=2 * replicas,
        )
        self.pub = Pub(
            topic,
            worker=worker,
            policy=Conflate(GradientMessage.merge),
            member=self.origin,
            on_view=self._view_changed,
        )
        await self.sub  # they are registered in one call
        await self.pub
        self._view_changed(self.pub.view)

    async def wait_for_peers(self, replicas: int, timeout: float) -> None:
        """Wait until so many replicas, this one included, subscribe and publish."""
        assert self.pub is not None
        await self.pub.wait_for(
            lambda view: (
                len(view.subscribers) >= replicas and len(view.publishers) >= replicas
            ),
            timeout=timeout,
        )

    def _view_changed(self, view: View) -> None:
        not_peers = {self.origin, *self._sealed}
        self._peers = sum(
            member.member not in not_peers for member in view.subscribers.values()
        )
        # They may be in the view for as long as their process is there, and would be
        # waited for: one that never took part applies nothing.
        if self.pub is not None:
            for origin in self._sealed:
                self.pub.forget(origin)

    def _receive(self, parcel: Parcel, sender: Member) -> Any:
        """Take in a message; it is acknowledged when it is applied, or refused."""
        message = self.gate.open(parcel, sender)
        if message is None:
            return None
        if not self.gate.knows(message.origin):
            return self._receive_early(message, sender)
        return self._take_in(message)

    async def _receive_early(self, message: GradientMessage, sender: Member) -> None:
        """Wait for the view that tells of its origin: a message may overtake it."""
        sub = self.sub
        if sub is None:  # this replica is leaving
            return
        try:
            await sub.wait_for(lambda view: self.gate.knows(message.origin))
        except TensairTimeoutError:
            self.gate.refuse("origin", sender, repr(message.origin))
        except TrainerClosedError:  # this replica has left meanwhile
            pass
        else:
            await self._take_in(message)

    def _take_in(self, message: GradientMessage) -> asyncio.Future[None]:
        loop = asyncio.get_running_loop()
        applied: asyncio.Future[None] = loop.create_future()

        def acknowledge() -> None:
            loop.call_soon_threadsafe(_resolve, applied)

        self._inbox.put(message, acknowledge)
        self._wake()
        return applied

    def forget_sealed(self) -> None:
        """Wait no more for peers that are lost to apply anything."""
        if self.pub is not None:
            self._view_changed(self.pub.view)

    async def flushed(self, timeout: float) -> None:
        """Wait until everything published has been applied by every peer."""
        if self.pub is not None:
            await self.pub.flushed(timeout=timeout)

    async def leave(self) -> None:
        """Unsubscribe and stop publishing."""
        # Let go of both: they hold this exchange through their callbacks. Unsubscribe
        # first: what comes is not applied any more, and a peer that leaves as well
        # would wait for it.
        ends = (self.sub, self.pub)
        self.pub = self.sub = None
        self._peers = 0
        for end in ends:
            if end is not None:
                closing = end.close()
                if closing is not None:
                    await closing
        # It may be memory of a peer.
        self._inbox.drop()

    def abandon(self) -> None:
        """Leave without waiting for it; from any thread."""
        if self.pub is not None or self.sub is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(
                    lambda: asyncio.ensure_future(self.leave())
                )

    # ---- on the thread that trains ----------------------------------------------

    @property
    def has_arrivals(self) -> bool:
        """Whether messages wait to be applied."""
        return bool(self._inbox) and not self._adopting

    @property
    def steps(self) -> int:
        """Steps of this replica."""
        return self.clock[self.origin]

    def before_step(self) -> None:
        """Decide whether the next step is shared; call it before each."""
        self._sharing = self._peers > 0
        if self._sharing:
            self.accumulator.prepare()
        else:
            self._drop()

    def learned(self, samples: int, seconds: float, changes: Changes) -> None:
        """Record one local step, how long it took, and its gradients."""
        self._pacer.stepped(seconds)
        step = self.steps + 1
        try:
            if self._sharing:
                self.accumulator.add(step, samples, changes, self.clock, self.taken + 1)
        except BaseException as error:
            self._part(error)
        self.clock.advance(self.origin, step)
        self.changed = time.monotonic()
        self.samples += samples

    def dealt(self) -> None:
        """Record that a mini-batch is done with: learned, scored or refused."""
        self.taken += 1

    def confirmed(self) -> int:
        """How many of the mini-batches dealt with are in the models of all peers.

        On the training thread only: between a message and the note of what is in it,
        nothing would seem to be under way.
        """
        pub = self.pub
        unconfirmed = self._unconfirmed
        while unconfirmed and (pub is None or pub.reached(unconfirmed[0][0])):
            self._confirmed = unconfirmed.popleft()[1]
        if not unconfirmed and self.accumulator.oldest is None:
            self._confirmed = self.taken
        return self._confirmed

    def seal(self, origins: Iterable[str]) -> Holding:
        """Apply nothing more of peers that are lost; tell what is applied.

        One that was only cut off may live on, and publish; with its peers agreed on
        what they have of it, that must not reach some of them.
        """
        self.apply_arrived()
        self._sealed = self._sealed.union(origins)
        return self.holding()

    def holding(self) -> Holding:
        """Whose gradients are in the parameters."""
        taken = {**self._taken_by, self.origin: self.taken}
        return Holding(self.clock.snapshot(), taken, self._sealed)

    def adopted(self, holding: Holding) -> None:
        """Record that the model of a peer was taken over, and what it holds."""
        steps = self.steps
        self.clock.set_to(holding.clock)
        self.clock.advance(self.origin, max(steps, self.steps))
        self._taken_by = {
            origin: count
            for origin, count in holding.taken.items()
            if origin != self.origin
        }
        self._sealed |= holding.sealed
        self._inbox.caught_up()
        self._adopting = False
        self.replaced()

    def publish_as(self, share: Share) -> None:
        """Publish gradients, or updates, from now on; all peers must do so, too.

        There must be no gradient under way: call it where the model is `replaced` or
        `adopted`, before that.
        """
        if share != self.share:
            self.accumulator.drop()
            self.accumulator = self._gathering(share)

    @property
    def share(self) -> Share:
        """What is published."""
        return "update" if isinstance(self.accumulator, Movement) else "gradient"

    def _gathering(self, share: Share | None) -> Movement | GradientSum:
        gathering = Movement if share == "update" else GradientSum
        return gathering(self._run_id, self.origin, self._arena, self._token)

    def restructured(self, arena: Arena) -> None:
        """Exchange gradients of other parameters from now on; all peers must, too.

        There must be no gradient under way, nor any until all peers have done so: what
        is of the other structure would be refused.
        """
        share = self.share
        self._arena = arena
        self.accumulator = self._gathering(share)
        self._compressor = make_compressor(self._compression)
        self.gate.fit(arena)

    def replaced(self) -> None:
        """Record that the parameters were set on all replicas, to be the same.

        There must be no gradient under way: call it after a drain.
        """
        self._drop()
        self.changed = time.monotonic()

    def overlook(self, clock: dict[str, int]) -> None:
        """Go on without gradients that were missed, where nobody has them all.

        Parameters
        ----------
        clock
            Gradients by origin, as many as there are.
        """
        for origin in self._inbox.missed:
            self.clock.advance(origin, max(clock.get(origin, 0), self.clock[origin]))
        self._inbox.caught_up()

    @property
    def is_behind(self) -> bool:
        """Whether something of a peer has not arrived, so that no more of it fits."""
        return bool(self._inbox.missed)

    def missed(self) -> bool:
        """Whether it `is_behind`, for one who tells the client.

        So what was refused for it is acknowledged now.
        """
        for arrival in self._inbox.announced():
            arrival.applied()
        return self.is_behind

    def _drop(self) -> None:
        """Forget all that is not published: all who will ever be there know it.

        A replica that joins takes over a model that holds it already.
        """
        self.accumulator.drop()
        if self._compressor is not None:
            self._compressor.drop()

    def apply_arrived(self) -> int:
        """Apply all that has arrived, as one sum.

        Returns
        -------
        staleness
            The largest staleness among the messages; 0 if there were none.
        """
        if self._adopting:
            return 0
        fresh, repeated = self._inbox.take(self.clock, self._sealed)
        worst = 0
        if fresh:
            start = time.thread_time()
            try:
                worst = self._apply_all(fresh)
                self._failures = 0
            except BaseException as error:
                self._not_applied(fresh, error)
            self._applying += time.thread_time() - start
        for arrival in repeated:
            arrival.applied()
        return worst

    def _apply_all(self, arrivals: list[Arrival]) -> int:
        if self._apply_sum([each.message.gradients for each in arrivals]):
            return max([self._note_applied(each) for each in arrivals])
        # One is not finite, or the sum of all is not: each by itself.
        worst = 0
        for each in arrivals:
            message = each.message
            if message.origin in self._inbox.missed:
                self._inbox.leave_out(each)
            elif self._apply_sum([message.gradients]):
                worst = max(worst, self._note_applied(each))
            else:
                told = f"steps {message.first} to {message.last}"
                self.gate.refuse("values", message.origin, told)
                self._inbox.leave_out(each)
        return worst

    def _apply_sum(self, parts: list[Gradients]) -> bool:
        """Apply a sum, unless it would make the parameters NaN or infinite."""
        total = Gradients.total(parts)
        if not total.is_finite():
            return False
        total = total.to(self._arena.device)
        self._apply(total)
        try:
            self.accumulator.applied(total)
        except BaseException as error:  # it is in the parameters: no second time
            raise _failed(error) from error
        self.changed = time.monotonic()
        return True

    def _note_applied(self, arrival: Arrival) -> int:
        """Write down what is applied now, and acknowledge it; give its staleness."""
        message = arrival.message
        staleness = self.clock.ahead_of(message.clock)
        # What arrives within a step waits for its end: no fault of the exchange.
        bound = self._settings.staleness + 2 * self._pacer.step
        age = self.changed - message.oldest
        self._ages.add(message.nbytes, staleness, age, bound)
        self.clock.advance(message.origin, message.last)
        before = self._taken_by.get(message.origin, 0)
        self._taken_by[message.origin] = max(before, message.taken)
        arrival.applied()
        return staleness

    def report_to(self, notices: Notices) -> None:
        """Tell the user what was refused of what came."""
        for key, text in self.gate.news():
            notices.say(key, text)
        if self._ages.late:
            notices.say("bound on age", self._tell_of_ages())

    def _tell_of_ages(self) -> str:
        pacer, settings = self._pacer, self._settings
        return (
            f"Gradients of peers are {1e3 * self._ages.late:.0f} ms old when they are "
            f"applied, in the mean; {1e3 * settings.staleness:.0f} ms were asked for "
            "(staleness=). There is too little CPU for a higher rate: an exchange with "
            f"{self._peers} peers takes {1e3 * pacer.cost:.1f} ms of it, and may take "
            f"{settings.share_of_time:.0%} of a replica's time "
            "(tensair.exchange.share-of-time); or others use the machine. Free CPUs, "
            "take fewer replicas, or accept older gradients with a higher staleness=."
        )

    def _not_applied(self, arrivals: list[Arrival], error: BaseException) -> None:
        """Try again, or wait for the model of a peer that holds what cannot be applied.

        Where applying raises nothing has changed; what came before is written down.
        """
        if isinstance(error, ReplicaFailedError):
            raise error
        self._failures += 1
        messages = [(each, each.message) for each in arrivals]
        left = [
            each
            for each, message in messages
            if message.first > self.clock[message.origin]
            and message.origin not in self._inbox.missed
        ]
        if self._failures % ATTEMPTS:
            self._inbox.put_back(left)
            return
        for each in left:
            self._inbox.leave_out(each)
        if self._failures >= ATTEMPTS * TAKEOVERS:
            self._part(error)

    def _part(self, error: BaseException) -> None:
        """End since the exchange raises; or go on alone, where all others end, too.

        What raises here may do so at every replica, and with it the model would end. So
        the eldest waits whether there are any that do without it.

        Raises
        ------
        ReplicaFailedError
            If this one ends.
        """
        if isinstance(error, ReplicaFailedError):
            raise error
        if not self._outlives_peers():
            raise _failed(error) from error
        logger.warning("All peers of %s have ended: it goes on alone", self.origin)
        self._failures = 0
        self._drop()

    def _outlives_peers(self) -> bool:
        pub = self.pub
        if pub is not None:
            members = pub.view.subscribers.values()
            names = {each.member for each in members if each.member}
            others = names - self._sealed
            if any(_age(each) < _age(self.origin) for each in others):
                return False
        end = time.monotonic() + PATIENCE
        while self._peers and time.monotonic() < end:
            time.sleep(0.02)
        return not self._peers

    def due(self, busy: bool) -> float | None:
        """When `publish` should be called next, on the monotonic clock.

        Parameters
        ----------
        busy
            Whether a mini-batch is there to be learned next.
        """
        return self._pacer.due(self.accumulator.oldest, busy)

    def publish(self) -> None:
        """Hand what has gathered to the outboxes of the peers."""
        try:
            self._publish()
        except BaseException as error:
            self._part(error)

    def _publish(self) -> None:
        start = time.thread_time()
        self._prepare()
        message = self.accumulator.take()
        if message is None:
            return
        content = message.gradients.to(torch.device("cpu"))
        if self._compressor is None:
            message.content = content
        else:
            message.content = (self._compressor.compress(content),)
        self._send(message, start)

    def publish_all(self) -> None:
        """Publish all that peers do not know: what rounding has left out, too."""
        if not self._peers:
            # Kept, it would go to one that joins now, who knows it: to that one it
            # would not fit, nor would anything after it.
            self._drop()
            return
        if self._compressor is None and not self.accumulator.leaves_out:
            self.publish()
            return
        try:
            self._publish_everything()
        except BaseException as error:
            self._part(error)

    def _publish_everything(self) -> None:
        start = time.thread_time()
        self._prepare()
        message = self.accumulator.take_everything(self.steps, self.clock)
        content = message.gradients.to(torch.device("cpu"))
        if self._compressor is not None:
            content = self._compressor.remainder(content)
        message.content = content
        self._send(message, start)

    def _send(self, message: GradientMessage, start: float) -> None:
        pub = self.pub
        if pub is None or not self._peers:
            return
        pub.put(message)
        self._note_unconfirmed(pub.mark, message.taken)
        self._sent += 1
        links = pub.links.values()
        self._sent_bytes += message.nbytes * len(links)
        self._pacer.published(self._spent(time.thread_time() - start, links))
        last = [link.last_rtt_seconds or 0.0 for link in links]
        self._pacer.delivered(max(last, default=0.0))

    def _spent(self, publishing: float, links: Iterable[LinkStats]) -> float:
        """CPU seconds of a round: here, on the event loop, and for what has come."""
        applying, self._applying = self._applying, 0.0
        # To receive takes about as much as to send, and as many messages come as leave.
        delivering = 2 * sum(link.cpu_seconds for link in links)
        return publishing + applying + delivering

    def _note_unconfirmed(self, mark: int, taken: int) -> None:
        if len(self._unconfirmed) >= UNCONFIRMED:  # a peer hangs: count less finely
            self._unconfirmed.pop()
        self._unconfirmed.append((mark, max(taken, self._latest_published)))
        self._latest_published = self._unconfirmed[-1][1]

    # ---- from either ------------------------------------------------------------

    def statistics(self) -> dict[str, float]:
        """Messages, bytes, staleness and ages since the start; see the docs."""
        pub = self.pub
        links = pub.links.values() if pub is not None else ()
        refused = {**self.gate.refused}
        if self._inbox.refused:
            refused["gap"] = self._inbox.refused
        return {
            "sent": self._sent,
            "sent_bytes": self._sent_bytes,
            "refused": sum(refused.values()),
            **{f"refused_{reason}": count for reason, count in refused.items()},
            "conflated": sum(link.conflated for link in links),
            "resent": sum(link.resent for link in links),
            "shared_memory": sum(link.shared_memory for link in links),
            **self._ages.statistics(),
            "interval": self._pacer.interval,
            "cost": self._pacer.cost,
        }

    @property
    def peers(self) -> int:
        """Replicas that get what this one publishes."""
        return self._peers

    @property
    def staleness(self) -> float:
        """Mean staleness of the newest messages that were applied."""
        return self._ages.staleness


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _failed(error: BaseException) -> ReplicaFailedError:
    return ReplicaFailedError(
        f"The exchange with the other replicas raised {in_words(error)}"
    )


def _age(name: str) -> tuple[int, str]:
    """By what replicas are ordered: their names end in a number."""
    return len(name), name
