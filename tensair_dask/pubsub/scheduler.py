"""The scheduler's half: who is in which topic, told in numbered views."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from distributed.diagnostics.plugin import SchedulerPlugin

from tensair_dask.errors import TensairTimeoutError
from tensair_dask.pubsub.link import GONE
from tensair_dask.pubsub.pulse import Pulse
from tensair_dask.pubsub.view import Member, View

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

    Every change gives the topic a view with a larger number, which is pushed to all
    its members over the connections that Dask keeps anyway. Messages pass here only
    on their way to or from a client that cannot be reached directly.

    Notes
    -----
    Nothing here may raise into Dask: an exception in a stream handler would end the
    connection to a worker or a client.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Any = None
        self.topics: dict[str, dict[str, dict[str, Member]]] = {}
        self.views: dict[str, View] = {}

    async def start(self, scheduler: Any) -> None:
        """Install the handlers; only once.

        Waits for nothing: of two processes that register this plugin at the same time,
        both would otherwise get theirs started.
        """
        if self.scheduler is not None:  # a scheduler starts what was preloaded again
            return
        self.scheduler = scheduler
        # One count for all topics, so that a topic that was empty for a while does
        # not begin anew below the numbers that its members remember.
        self._numbers = itertools.count(1)
        self._tokens = itertools.count(1)
        self._topic_of: dict[str, str] = {}
        self._gone: OrderedDict[str, None] = OrderedDict()
        self._seen: dict[tuple[str, str], int] = {}
        self._news = Pulse()
        self._forwarded: dict[int, tuple[Member, asyncio.Future[str]]] = {}
        scheduler.handlers.update(
            tensair_pubsub_register=self.register,
            tensair_pubsub_unregister=self.unregister,
            tensair_pubsub_seen=self.seen,
            tensair_pubsub_forward=self.forward,
            tensair_pubsub_acknowledge=self.acknowledge,
        )

    # -- Membership ---------------------------------------------------------------

    async def register(
        self, topic: str, role: str, member: list[Any], timeout: float
    ) -> dict[str, Any]:
        """Add a publisher or a subscriber.

        For a subscriber this returns when all publishers of the topic know it, or
        when the timeout is over; publishers that vanish meanwhile do not count.

        Returns
        -------
        dict
            ``status`` (``"ok"``, `GONE` or `UNKNOWN`), ``view``, and ``unheard``: the
            processes with publishers that did not answer in time.
        """
        one = Member(*member)
        if one.id in self._gone:
            return {"status": GONE}
        if not self._connected(one):
            return {"status": UNKNOWN}
        known = self.topics.setdefault(topic, {"publishers": {}, "subscribers": {}})
        if one.id not in known[role]:
            known[role][one.id] = one
            self._topic_of[one.id] = topic
            self._publish(topic, confirm=role == "subscribers")
        view = self.views[topic]
        unheard: list[str] = []
        if role == "subscribers":
            unheard = await self._wait_until_heard(one, view, timeout)
        return {"status": "ok", "view": view.to_wire(), "unheard": unheard}

    async def _wait_until_heard(
        self, subscriber: Member, view: View, timeout: float
    ) -> list[str]:
        def unheard() -> list[str]:
            present = self.topics.get(view.topic)
            if present is None or subscriber.id not in present["subscribers"]:
                return []
            return [
                one.address
                for one in view.publishers.values()
                if one.id in present["publishers"]
                and self._seen.get((view.topic, one.address), 0) < view.number
            ]

        with contextlib.suppress(TensairTimeoutError):
            await self._news.until(
                lambda: not unheard(), timeout, "publishers informed"
            )
        return sorted(set(unheard()))

    async def seen(self, topic: str, address: str, number: int) -> None:
        """Take note that a process acts by this view, or a later one."""
        key = (topic, address)
        if topic in self.topics:
            self._seen[key] = max(number, self._seen.get(key, 0))
        self._news.beat()

    async def unregister(self, ids: list[str]) -> None:
        """Remove members; ids that are not known (yet) stay out for ever."""
        for one in ids:
            self._gone[one] = None
        while len(self._gone) > _REMEMBERED:
            self._gone.popitem(last=False)
        self._remove(ids)

    def remove_worker(self, scheduler: Any, worker: str, **kwargs: Any) -> None:
        """Remove the members of a worker that is gone."""
        self._remove_address(worker)

    def remove_client(self, scheduler: Any, client: str) -> None:
        """Remove the members of a client that is gone."""
        self._remove_address(client)

    async def close(self) -> None:
        """Let go whoever still waits for an answer."""
        self._remove(list(self._topic_of))

    def _remove_address(self, address: str) -> None:
        self._remove(
            [
                one.id
                for known in self.topics.values()
                for members in known.values()
                for one in members.values()
                if one.address == address
            ]
        )
        for key in [key for key in self._seen if key[1] == address]:
            del self._seen[key]

    def _remove(self, ids: Iterable[str]) -> None:
        changed = set()
        for one in ids:
            topic = self._topic_of.pop(one, None)
            if topic is None:
                continue
            changed.add(topic)
            for members in self.topics[topic].values():
                members.pop(one, None)
        gone = [
            future
            for member, future in self._forwarded.values()
            if member.id not in self._topic_of
        ]
        for future in gone:
            if not future.done():
                future.set_result(GONE)
        for topic in changed:
            if any(self.topics[topic].values()):
                self._publish(topic)
            else:
                del self.topics[topic], self.views[topic]
                for key in [key for key in self._seen if key[0] == topic]:
                    del self._seen[key]
        self._news.beat()

    def _connected(self, one: Member) -> bool:
        if one.kind == "worker":
            return one.address in self.scheduler.stream_comms
        return one.address in self.scheduler.client_comms

    def _publish(self, topic: str, confirm: bool = False) -> None:
        """Number the change and tell all members of the topic."""
        known = self.topics[topic]
        view = View.of(
            topic,
            next(self._numbers),
            known["publishers"].values(),
            known["subscribers"].values(),
        )
        self.views[topic] = view
        message = {
            "op": "tensair-pubsub-view",
            "view": view.to_wire(),
            "confirm": confirm,
        }
        processes = {
            one.address: one
            for members in (view.publishers, view.subscribers)
            for one in members.values()
        }
        for one in processes.values():
            if not self._connected(one):
                continue  # it has just gone: Dask is about to tell us
            if one.kind == "worker":
                self.scheduler.worker_send(one.address, dict(message))
            else:
                self.scheduler.client_send(one.address, dict(message))

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
