"""The scheduler's half: who is in which topic, told as numbered changes."""

from __future__ import annotations

import asyncio
import itertools
import logging
import time
from collections import OrderedDict, defaultdict
from collections.abc import Iterable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from tensair_dask.errors import TensairTimeoutError
from tensair_dask.pubsub.link import GONE
from tensair_dask.pubsub.topic import Topic
from tensair_dask.pubsub.view import Member

__all__ = ["NAME", "UNKNOWN", "UNREACHABLE", "PubSubScheduler", "dask_setup"]

logger = logging.getLogger(__name__)

NAME = "tensair-pubsub"

# Answers besides those of a destination.
UNKNOWN = "unknown"  # this worker or client is not connected (yet)
UNREACHABLE = "unreachable"  # the connection to the destination broke

# Ids that were unregistered, kept so that a registration which the network held back
# does not bring a member back to life.
_REMEMBERED = 10_000


class PubSubScheduler(SchedulerPlugin):
    """Keep the topics of a cluster.

    Every change gives the topic a view with a larger number. The change is pushed to
    all its members over the connections that Dask keeps anyway; the whole view only to
    processes that had no member before, and to those that ask, since they have missed a
    change. Messages pass here only on their way to or from a client that cannot be
    reached directly.

    Notes
    -----
    Nothing here may raise into Dask: an exception in a stream handler would end the
    connection to a worker or a client.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.topics: dict[str, Topic] = {}

    async def start(self, scheduler: Any) -> None:
        """Install the handlers; only once.

        Waits for nothing: of two processes that register this plugin at the same time,
        both would otherwise get theirs started.
        """
        if self.scheduler is not None:  # a scheduler starts what was preloaded again
            return
        self.scheduler = scheduler
        # One count for all topics, that goes on from the time: neither a topic that was
        # empty for a while, nor a scheduler that has started again, may begin below the
        # numbers that its members remember.
        self._numbers = itertools.count(time.time_ns() // 1000)
        self._tokens = itertools.count(1)
        self._topic_of: dict[str, str] = {}
        self._ids_at: defaultdict[str, set[str]] = defaultdict(set)
        self._gone: OrderedDict[str, None] = OrderedDict()
        # Topics that have changed, until the end of this turn of the event loop.
        self._changed: dict[str, None] = {}
        self._forwarded: dict[int, tuple[Member, asyncio.Future[str]]] = {}
        scheduler.handlers.update(
            tensair_pubsub_register=self.register,
            tensair_pubsub_unregister=self.unregister,
            tensair_pubsub_seen=self.seen,
            tensair_pubsub_view=self.view,
            tensair_pubsub_forward=self.forward,
            tensair_pubsub_acknowledge=self.acknowledge,
        )

    # -- Membership ---------------------------------------------------------------

    async def register(
        self,
        topic: str,
        publishers: list[list[Any]],
        subscribers: list[list[Any]],
        timeout: float,
        together: int = 1,
    ) -> dict[str, Any]:
        """Add publishers and subscribers of one process.

        With subscribers this returns when all publishers of the topic know them, or
        when the timeout is over; publishers that vanish meanwhile do not count.

        Parameters
        ----------
        topic
            Its name.
        publishers, subscribers
            `Member` as lists.
        timeout
            Seconds.
        together
            Nobody is told of them before so many wait to be told of, or something else
            changes, or the timeout is over.

        Returns
        -------
        dict
            ``status`` (``"ok"``, `GONE` or `UNKNOWN`), ``number``: of the first view
            that they are in, and ``unheard``: the processes with publishers that did
            not answer in time. Members that have left already are passed over.
        """
        members = [
            (role, one)
            for role, those in (
                ("publishers", publishers),
                ("subscribers", subscribers),
            )
            for one in itertools.starmap(Member, those)
            if one.id not in self._gone
        ]
        if not members:
            return {"status": GONE}
        if not all(self._connected(one.kind, one.address) for _, one in members):
            return {"status": UNKNOWN}
        known = self.topics.get(topic)
        if known is None:
            known = self.topics[topic] = Topic(topic)
        for role, one in members:
            if one.id not in known:
                known.add(role, one)
                self._topic_of[one.id] = topic
                self._ids_at[one.address].add(one.id)
        ids = [one.id for _, one in members]
        if known.untold >= together:
            self._tell_soon(topic)
        try:
            await known.pulse.until(
                lambda: known.is_settled(ids), timeout, "publishers informed"
            )
        except TensairTimeoutError:
            self._changed[topic] = None
            self._tell_all()
        number = known.number_of(ids)
        if number is None:  # the process is gone, or they are
            gone = all(one in self._gone for one in ids)
            return {"status": GONE if gone else UNKNOWN}
        unheard = sorted(known.unheard(ids))
        return {"status": "ok", "number": number, "unheard": unheard}

    async def seen(self, topic: str, address: str, number: int) -> None:
        """Take note that a process acts by this view, or a later one."""
        if topic in self.topics:
            self.topics[topic].seen(address, number)

    async def view(self, topic: str) -> bytes | None:
        """Return the whole view that was told last; None if nobody is there."""
        known = self.topics.get(topic)
        return None if known is None else known.view.to_wire()

    async def unregister(self, ids: list[str]) -> None:
        """Remove members; ids that are not known (yet) stay out for ever."""
        for one in ids:
            self._gone[one] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        self._remove(ids)
        await asyncio.sleep(0)  # the others are told when this is answered

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Remove the members of a worker that is gone."""
        self._remove(list(self._ids_at.get(worker, ())))

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Remove the members of a client that is gone."""
        self._remove(list(self._ids_at.get(client, ())))

    async def close(self) -> None:
        """Let go whoever still waits for an answer."""
        self._remove(list(self._topic_of))

    def _remove(self, ids: Iterable[str]) -> None:
        for one in ids:
            topic = self._topic_of.pop(one, None)
            if topic is not None:
                self._remove_from(topic, one)
        gone = [
            future
            for member, future in self._forwarded.values()
            if member.id not in self._topic_of
        ]
        for future in gone:
            if not future.done():
                future.set_result(GONE)

    def _remove_from(self, topic: str, one: str) -> None:
        known = self.topics[topic]
        address = known.remove(one)
        self._ids_at[address].discard(one)
        if not self._ids_at[address]:
            del self._ids_at[address]
        if known.is_empty:
            del self.topics[topic]
        else:
            self._tell_soon(topic)

    def _connected(self, kind: str, address: str) -> bool:
        if kind == "worker":
            return address in self.scheduler.stream_comms
        return address in self.scheduler.client_comms

    def _tell_soon(self, topic: str) -> None:
        """Tell all changes of one turn of the event loop together."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._tell_all)
        self._changed[topic] = None

    def _tell_all(self) -> None:
        changed, self._changed = self._changed, {}
        for topic in changed:
            known = self.topics.get(topic)
            if known is not None and known.has_changed:
                self._tell(known)

    def _tell(self, known: Topic) -> None:
        """Number what has changed, and push it to all members of the topic."""
        informed = known.processes()
        change = known.tell(next(self._numbers))
        delta, whole = change.to_wire(), None
        for address, kind in known.processes().items():
            if not self._connected(kind, address):
                continue  # it has just gone: Dask is about to tell us
            view = delta
            if address not in informed:
                view = whole = whole or known.view.to_wire()
            message = {
                "op": "tensair-pubsub-view",
                "view": view,
                "confirm": known.waits_for(address, change.number),
            }
            if kind == "worker":
                self.scheduler.worker_send(address, message)
            else:
                self.scheduler.client_send(address, message)

    # -- Messages that cannot go directly -----------------------------------------

    async def forward(
        self, destination: list[Any], sender: list[Any], number: int, parcels: list[Any]
    ) -> str:
        """Pass a delivery on, and answer when its destination has acknowledged it."""
        one = Member(*destination)
        if one.id not in self._topic_of:
            return GONE
        delivery: dict[str, Any] = {
            "subscription": one.id,
            "sender": sender,
            "number": number,
            "parcels": parcels,
        }
        if one.kind == "client":
            return await self._forward_to_client(one, delivery)
        try:
            worker = self.scheduler.rpc(one.address)
            answer = await worker.tensair_pubsub_deliver(**delivery)
        except Exception as error:
            logger.debug("Delivery to %s: %r", one.address, error)
            return UNREACHABLE
        return GONE if answer is None else answer

    async def _forward_to_client(self, one: Member, delivery: dict[str, Any]) -> str:
        token = next(self._tokens)
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._forwarded[token] = (one, future)
        try:
            self.scheduler.client_send(
                one.address,
                {"op": "tensair-pubsub-deliver", "token": token, **delivery},
            )
            return await future
        finally:
            del self._forwarded[token]

    async def acknowledge(self, token: int, answer: str) -> None:
        """Take a client's answer to a delivery."""
        _, future = self._forwarded.get(token, (None, None))
        if future is not None and not future.done():
            future.set_result(answer)


async def dask_setup(scheduler: Any) -> None:
    """Install the plugin by ``dask scheduler --preload tensair_dask.pubsub.scheduler``.

    Needed only where clients must not register plugins.
    """
    await scheduler.register_scheduler_plugin(PubSubScheduler(), idempotent=True)
