"""`Pub` and `Sub`, as Dask once had them, and what they can do besides."""

from __future__ import annotations

import asyncio
import contextlib
import math
import weakref
from collections.abc import Awaitable, Callable, Generator, Mapping
from datetime import timedelta
from typing import Any, TypeVar

from dask.utils import parse_timedelta
from distributed import get_client, get_worker
from distributed.utils import sync

from tensair_dask import config
from tensair_dask._common.checks import whole
from tensair_dask.errors import ClusterError, ConfigurationError, TrainerClosedError
from tensair_dask.pubsub.endpoint import (
    ClientEndpoint,
    Endpoint,
    WorkerEndpoint,
    on_loop,
)
from tensair_dask.pubsub.link import LinkStats
from tensair_dask.pubsub.participant import Participant
from tensair_dask.pubsub.policies import Policy
from tensair_dask.pubsub.publisher import Publisher
from tensair_dask.pubsub.subscription import Handler, Subscription
from tensair_dask.pubsub.view import Member, View

__all__ = ["Pub", "Sub"]

Timeout = str | float | timedelta | None
OnView = Callable[[View], Any]
S = TypeVar("S", bound="_Handle")


def _seconds(timeout: Timeout) -> float | None:
    if timeout is None:
        return None
    try:
        seconds = float(parse_timedelta(timeout, default="s"))
    except (AttributeError, KeyError, TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise ConfigurationError(
            f"timeout={timeout!r} was given; allowed are a number of seconds from 0, a "
            "text with a unit ('500ms'), a timedelta, and None, which waits for ever."
        )
    return seconds


class _Done:
    """An awaitable that need not be awaited."""

    def __init__(self, wait: Callable[[], Awaitable[Any]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, Any]:
        return self._wait().__await__()


class _Handle:
    """What `Pub` and `Sub` share: they hold a participant and let it go."""

    _core: Participant

    def _open(
        self,
        worker: Any,
        client: Any,
        on_view: OnView | None,
        build: Callable[[Endpoint], Participant],
    ) -> None:
        node, kind = _resolve(worker, client)

        def join() -> Participant:
            participant = build(Endpoint.at(node, kind))
            if on_view is not None:
                participant.on_view.append(on_view)
            participant.endpoint.join(participant)
            return participant

        async def join_and_wait() -> Participant:
            participant = join()
            try:
                await participant.until_ready()
            except BaseException:
                # Nobody will ever hold it.
                participant.endpoint.begin_close(participant, 0)
                raise
            return participant

        if on_loop(node.loop.asyncio_loop):
            self._core = join()
        else:
            self._core = sync(node.loop, join_and_wait)
        # Runs when nobody holds this handle any more, in whatever thread that is.
        finalizer = weakref.finalize(self, _let_go, self._core)
        finalizer.atexit = False

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.name}, {self._core.endpoint.address}>"

    @property
    def name(self) -> str:
        """The topic."""
        return self._core.topic

    @property
    def id(self) -> str:
        """The id by which this appears in the view."""
        return self._core.id

    @property
    def view(self) -> View:
        """The newest view of the topic that has come; number 0 before the first."""
        return self._core.view

    @property
    def on_view(self) -> list[OnView]:
        """Functions called on the event loop with each new view; add yours."""
        return self._core.on_view

    def __await__(self: S) -> Generator[Any, None, S]:
        async def ready() -> S:
            await self._core.until_ready()
            return self

        return ready().__await__()

    def wait_for(
        self, predicate: Callable[[View], bool], timeout: Timeout = None
    ) -> Any:
        """Wait until the view is as wanted; on the event loop, await the result.

        Parameters
        ----------
        predicate
            ``predicate(view)`` tells whether it is.
        timeout
            A number of seconds, a string such as ``"100ms"``, or a timedelta.
            Default: ``tensair.pubsub.timeout``.

        Raises
        ------
        TensairTimeoutError
            If it is not in time.
        TrainerClosedError
            If this is closed meanwhile.
        """
        core = self._core
        return core.endpoint.run(
            core.until,
            lambda: predicate(core.view),
            config.get_seconds("pubsub.timeout", timeout),
            "the view that was waited for",
        )

    def close(self, timeout: Timeout = None) -> Any:
        """Leave the topic; on the event loop, the result may be awaited.

        Closing twice is allowed. Afterwards ``put`` and ``get`` raise
        `TrainerClosedError`.

        Parameters
        ----------
        timeout
            How long what was put before may still take to arrive; 0 drops it.
            Default: ``tensair.pubsub.linger``.
        """
        core = self._core
        linger = config.get_seconds("pubsub.linger", timeout)
        if on_loop(core.endpoint.loop):
            return core.endpoint.begin_close(core, linger)

        async def close() -> None:
            await core.endpoint.begin_close(core, linger)

        if core.closed or core.endpoint.loop.is_closed():
            return None
        return sync(core.endpoint.io_loop, close)

    def __enter__(self: S) -> S:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    async def __aenter__(self: S) -> S:
        return await self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


class Pub(_Handle):
    """Publish messages in a topic, to all who have a `Sub` of the same name.

    Messages go straight from worker to worker. All that one publisher puts arrives
    at each subscriber in the order put, once.

    Parameters
    ----------
    name
        The topic.
    worker
        Of this worker. Default: the worker that runs the task, if it is made in one.
    client
        Of this client. Default: the current client, if there is no worker.
    policy
        What happens to messages for a subscriber that does not keep up: `Block`
        (default), `DropOldest` or `Conflate`.
    member
        A name. What a publisher puts does not go to subscribers of the same name.
    on_view
        Called on the event loop with each new `View` of the topic.

    Raises
    ------
    PackageMissingError
        If the scheduler does not have tensair_dask.
    SchedulerLostError
        If the scheduler does not answer within ``tensair.pubsub.timeout``.

    Notes
    -----
    In a thread (a task, a script) the constructor returns when the publisher is
    registered. On the event loop it returns at once and registration goes on; ``await
    pub`` waits for it. What is put meanwhile is kept and leaves then.

    A publisher that nobody holds any more leaves the topic, as if it were closed.

    A message counts as arrived when the subscriber has room for it in its queue. A
    message to a subscriber that leaves, or whose worker dies, is dropped; so is a
    message for which there is no subscriber.

    Messages must not be changed after they were put. They are pickled once for all
    subscribers; on the same worker the very object is handed over.

    Examples
    --------
    >>> pub = Pub("temperatures")  # doctest: +SKIP
    >>> pub.put({"sensor": 3, "celsius": 21.5})  # doctest: +SKIP
    """

    _core: Publisher

    def __init__(
        self,
        name: str,
        worker: Any = None,
        client: Any = None,
        *,
        policy: Policy | None = None,
        member: str | None = None,
        on_view: OnView | None = None,
    ) -> None:
        if policy is not None and not isinstance(policy, Policy):
            raise ConfigurationError(
                f"policy is {policy!r}: give Block(...), DropOldest(...) or "
                "Conflate(merge)"
            )
        self._open(
            worker,
            client,
            on_view,
            lambda endpoint: Publisher(endpoint, name, member, policy),
        )

    @property
    def subscribers(self) -> Mapping[str, Member]:
        """The subscribers of the topic, by their ids."""
        return self._core.view.subscribers

    @property
    def links(self) -> dict[str, LinkStats]:
        """How the flow to each subscriber is doing, by the subscriber's id."""
        return {key: link.stats for key, link in self._core.links.items()}

    def busy(self, destination: str | Member) -> bool:
        """Return whether something is waiting for, or on its way to, a subscriber.

        Parameters
        ----------
        destination
            The subscriber, or its id. One that is gone is not busy.
        """
        key = destination.id if isinstance(destination, Member) else destination
        link = self._core.links.get(key)
        return link is not None and bool(link.outbox.pending or link.outbox.in_flight)

    def put(self, msg: Any, timeout: Timeout = None) -> Any:
        """Publish a message; from any thread.

        Parameters
        ----------
        msg
            Any object that can be pickled.
        timeout
            With policy `Block`: how long to wait for room. Default: as long as it
            takes.

        Returns
        -------
        None or awaitable
            On the event loop, which must not be blocked, the message is taken in any
            case, and the result may be awaited until there is room. Who does not
            await it can exceed the bound of `Block`.

        Raises
        ------
        TensairTimeoutError
            If there was no room in time: the message was not published. (When
            awaited: it was, and there is still too much on the way.)
        TrainerClosedError
            If this publisher, its worker or its client is closed.
        """
        core = self._core
        seconds = _seconds(timeout)
        if on_loop(core.endpoint.loop):
            core.put(msg, wait=False)
            return _Done(lambda: core.room(seconds))
        core.put(msg, wait=core.policy.blocks, deadline=core.deadline(seconds))
        return None

    def forget(self, member: str) -> None:
        """Send nothing more to the subscribers of this name; on the event loop.

        What waits for them, or is on its way, counts as given up, as if they had left.
        """
        for link in self._core.links.values():
            if link.destination.member == member:
                link.close()

    @property
    def mark(self) -> int:
        """Stands for everything that has been put so far; see `reached`."""
        return self._core.mark

    def reached(self, mark: int) -> bool:
        """Return whether all up to a mark is acknowledged, or its destination gone.

        Does not wait; from any thread.

        Parameters
        ----------
        mark
            What `mark` was when the messages in question had been put.
        """
        return self._core.reached(mark)

    def flushed(self, timeout: Timeout = None) -> Any:
        """Wait until all that was put before is acknowledged, or its destination gone.

        On the event loop, await the result.

        Parameters
        ----------
        timeout
            Default: ``tensair.pubsub.timeout``.

        Raises
        ------
        TensairTimeoutError
            If that takes longer.
        TrainerClosedError
            If this publisher is closed meanwhile.
        """
        core = self._core
        return core.endpoint.run(
            core.flushed, config.get_seconds("pubsub.timeout", timeout)
        )


class Sub(_Handle):
    """Get the messages that are published in a topic.

    Parameters
    ----------
    name
        The topic.
    worker
        Of this worker. Default: the worker that runs the task, if it is made in one.
    client
        Of this client. Default: the current client, if there is no worker. Messages
        to a client pass the scheduler.
    handler
        ``handler(message, sender)`` is called on the event loop for each message, in
        the order put by each publisher, instead of queueing; ``sender`` is a
        `Member`. If it returns an awaitable or a future, the acknowledgement (and so
        the next message of this publisher) waits for it. If it raises, the error is
        logged and counted in `errors`, and the message counts as handled.
    member
        A name. What publishers of the same name put does not come here.
    maxsize
        Messages that wait to be got; publishers hold back what is beyond.
        Default: ``tensair.pubsub.queue``.
    on_view
        Called on the event loop with each new `View` of the topic.
    sealed
        Give the handler each message as it came, as a `Parcel`: for a handler that
        must look at it before it is opened. The memory of the message may be used
        again once it is handled: what is kept must be copied.
    together
        How many subscriptions and publishers of the topic begin at about the same time:
        this one, those that are made here beside it, and others elsewhere. Nobody is
        told of them before all are there, or before ``tensair.pubsub.timeout`` is over:
        so one view is enough for all.

    Raises
    ------
    PackageMissingError
        If the scheduler does not have tensair_dask.
    SchedulerLostError
        If the scheduler does not answer within ``tensair.pubsub.timeout``.
    ConfigurationError
        If ``handler`` is no function, or there is none for what is sealed.

    Notes
    -----
    In a thread the constructor returns when all publishers of the topic know of this
    subscription: what they put from then on arrives. On the event loop it returns at
    once, and ``await sub`` waits for that.

    A subscription that nobody holds any more leaves the topic, as if it were closed.

    Examples
    --------
    >>> sub = Sub("temperatures")  # doctest: +SKIP
    >>> sub.get(timeout="5s")  # doctest: +SKIP
    {'sensor': 3, 'celsius': 21.5}
    """

    _core: Subscription

    def __init__(
        self,
        name: str,
        worker: Any = None,
        client: Any = None,
        *,
        handler: Handler | None = None,
        member: str | None = None,
        maxsize: int | None = None,
        on_view: OnView | None = None,
        sealed: bool = False,
        together: int = 1,
    ) -> None:
        if handler is not None and not callable(handler):
            raise ConfigurationError(
                f"handler is {handler!r}: give a function handler(message, sender)"
            )
        if sealed and handler is None:
            raise ConfigurationError(
                "sealed=True without a handler: give a function handler(parcel, sender)"
            )
        whole("together", together, 1, 16)

        def build(endpoint: Endpoint) -> Subscription:
            core = Subscription(endpoint, name, member, handler, maxsize, sealed)
            core.together = together
            return core

        self._open(worker, client, on_view, build)

    @property
    def publishers(self) -> Mapping[str, Member]:
        """The publishers of the topic, by their ids."""
        return self._core.view.publishers

    @property
    def errors(self) -> int:
        """Messages that could not be opened, or whose handler raised."""
        return self._core.inlet.errors

    def get(self, timeout: Timeout = None) -> Any:
        """Return the next message; on the event loop, await the result.

        Parameters
        ----------
        timeout
            A number of seconds, a string such as ``"100ms"``, or a timedelta.
            Default: as long as it takes.

        Raises
        ------
        TensairTimeoutError
            If no message comes in time.
        TrainerClosedError
            If this subscription, its worker or its client is closed.
        """
        core = self._core
        core.check_queue()
        if not on_loop(core.endpoint.loop):
            core.check_open()
            try:
                return core.take()
            except IndexError:
                pass
        return core.endpoint.run(core.get, _seconds(timeout))

    next = get

    def __iter__(self) -> Sub:
        return self

    def __next__(self) -> Any:
        try:
            return self.get()
        except TrainerClosedError:
            raise StopIteration from None

    def __aiter__(self) -> Sub:
        return self

    async def __anext__(self) -> Any:
        core = self._core
        try:
            if on_loop(core.endpoint.loop):
                return await core.get(None)
            # A client that runs its own loop in another thread, as in a notebook.
            other = asyncio.run_coroutine_threadsafe(core.get(None), core.endpoint.loop)
            return await asyncio.wrap_future(other)
        except TrainerClosedError:
            raise StopAsyncIteration from None


def _resolve(worker: Any, client: Any) -> tuple[Any, type[Endpoint]]:
    if worker is None and client is None:
        try:
            worker = get_worker()
        except ValueError:
            try:
                client = get_client()
            except ValueError as error:
                raise ClusterError(
                    "There is neither a Dask worker nor a Dask client here: give one, "
                    "for example: Pub(name, client=Client('tcp://scheduler:8786'))"
                ) from error
    if worker is not None:
        if worker.status.name in ("stopping", "stopped", "closing", "closed", "failed"):
            raise TrainerClosedError(f"{worker!r} is {worker.status.name}")
        return worker, WorkerEndpoint
    if client.status in ("closing", "closed"):
        raise TrainerClosedError(f"{client!r} is {client.status}")
    return client, ClientEndpoint


def _let_go(core: Participant) -> None:
    if core.end is not None or core.closed:
        return
    endpoint = core.endpoint
    linger = config.get_seconds("pubsub.linger")
    # If its worker or client is gone, so is the registration.
    with contextlib.suppress(TrainerClosedError):
        endpoint.soon(lambda: endpoint.begin_close(core, linger))
