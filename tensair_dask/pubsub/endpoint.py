"""The half of pubsub that lives in each worker and each client that takes part."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

from distributed.protocol import to_serialize
from distributed.protocol.pickle import dumps
from distributed.utils import sync
from tornado.ioloop import PeriodicCallback

from tensair_dask import config
from tensair_dask.errors import (
    ClusterError,
    PackageMissingError,
    SchedulerLostError,
    TensairError,
    TensairTimeoutError,
    TrainerClosedError,
)
from tensair_dask.pubsub.link import GONE, OK
from tensair_dask.pubsub.neighbours import Neighbours, running_system
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.participant import Participant
from tensair_dask.pubsub.routes import CommRoute, SharedMemoryRoute
from tensair_dask.pubsub.scheduler import NAME, UNKNOWN, UNREACHABLE, PubSubScheduler
from tensair_dask.pubsub.slot import AVAILABLE
from tensair_dask.pubsub.subscription import Subscription
from tensair_dask.pubsub.view import Change, Member, View

__all__ = ["Endpoint", "on_loop"]

logger = logging.getLogger(__name__)

T = TypeVar("T")
E = TypeVar("E", bound="Endpoint")


def on_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Return whether this code runs on that event loop."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


class Endpoint:
    """Connect the publishers and subscriptions of one worker or client.

    The handlers are installed before anything is registered with the scheduler, so
    that neither a view nor a message can reach a process that does not know them.

    All methods run on the event loop of the worker or client, but `run` and `soon`.
    """

    kind: str

    def __init__(self, node: Any) -> None:
        self.node = node
        self.io_loop = node.loop
        self.loop: asyncio.AbstractEventLoop = node.loop.asyncio_loop
        self.closed = False
        self._participants: dict[str, Participant] = {}
        # Those that are not registered yet, by their topics.
        self._joining: dict[str, list[Participant]] = {}
        # Of their topics, the newest that have come; and of topics of which a change
        # was missed, the number of the view that is asked for.
        self._views: dict[str, View] = {}
        self._behind: dict[str, int] = {}
        # Ids have the same beginning, so that many of them are few bytes.
        self._token = secrets.token_hex(8)
        self._count = itertools.count(1)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._installed = False

    @property
    def address(self) -> str:
        """How the scheduler and others name this process."""
        raise NotImplementedError

    @staticmethod
    def at(node: Any, kind: type[E]) -> E:
        """Return the endpoint of a worker or client, made on first use."""
        known = kind.registry(node)
        if NAME not in known:
            endpoint = kind(node)
            endpoint.install()
            known[NAME] = endpoint
        return known[NAME]

    @staticmethod
    def registry(node: Any) -> dict[str, Any]:
        """Return where the worker or client keeps its extensions."""
        raise NotImplementedError

    def install(self) -> None:
        """Install the handlers of this process."""
        raise NotImplementedError

    def new_id(self) -> str:
        """Return an id for a participant, that no other one has or will have."""
        return f"{self._token}-{next(self._count)}"

    # -- Threads and tasks --------------------------------------------------------

    def run(self, function: Callable[..., Coroutine[Any, Any, T]], *args: Any) -> Any:
        """Return a coroutine on the event loop; elsewhere run it and wait for it."""
        if on_loop(self.loop):
            return function(*args)
        return sync(self.io_loop, function, *args)

    def soon(self, function: Callable[[], Any]) -> None:
        """Call a function on the event loop; from any thread."""
        try:
            if on_loop(self.loop):
                self.loop.call_soon(function)
            else:
                self.loop.call_soon_threadsafe(function)
        except RuntimeError as error:
            raise TrainerClosedError(
                f"The event loop of {self.address} is closed"
            ) from error

    def spawn(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """Start a task that ends at the latest with this endpoint."""
        task = self.loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def close(self) -> None:
        """End everything here; the scheduler notices by itself."""
        self.closed = True
        for participant in list(self._participants.values()):
            participant.shut()
        self._participants.clear()
        for task in self._tasks:
            task.cancel()

    # -- Registration -------------------------------------------------------------

    def join(self, participant: Participant) -> None:
        """Begin to register a participant."""
        if self.closed:
            raise TrainerClosedError(f"{self.address} is closed")
        self._participants[participant.id] = participant
        joining = self._joining.setdefault(participant.topic, [])
        joining.append(participant)
        if len(joining) == 1:
            self.spawn(self._register(participant.topic))

    def rejoin(self) -> None:
        """Register everyone again, with new ids: the scheduler has forgotten us."""
        self._installed = False
        participants = list(self._participants.values())
        # A registration with an old id may still be on its way.
        self.spawn(self._send("unregister", ids=list(self._participants)))
        self._participants.clear()
        self._joining.clear()
        self._views.clear()
        for participant in participants:
            participant.renew()
            self.join(participant)

    def begin_close(
        self, participant: Participant, linger: float
    ) -> asyncio.Future[None]:
        """Begin to close a participant, once; the future ends when it is done."""
        if participant.end is None:
            end: asyncio.Future[None] = self.loop.create_future()
            participant.end = end
            participant.closing = True

            def done(_: asyncio.Task[None]) -> None:
                if not end.done():
                    end.set_result(None)

            if self.closed:
                participant.shut()
                end.set_result(None)
            else:
                self.spawn(participant.close(linger)).add_done_callback(done)
        return participant.end

    async def leave(self, participant: Participant) -> None:
        """Unregister a participant."""
        self._forget(participant)
        if self.closed:
            return
        # Also if the registration is still under way: the scheduler then refuses it.
        deadline = self.loop.time() + config.get_seconds("pubsub.timeout")
        while not self.closed and self.loop.time() < deadline:
            if await self._heard("unregister", ids=[participant.id]):
                break

    @property
    def scheduler(self) -> Any:
        """For calls to the scheduler."""
        scheduler = self.node.scheduler
        if scheduler is None:
            raise OSError("not connected to a scheduler")
        return scheduler

    async def _register(self, topic: str) -> None:
        """Register all that have joined in one turn of the event loop, in one call."""
        participants = self._joining.pop(topic, [])
        try:
            await self._register_until_known(participants)
        except TensairError as error:
            self._failed(participants, error)
        except Exception as error:
            failure = ClusterError(
                f"{_named(participants)} could not be registered: {error}"
            )
            failure.__cause__ = error
            self._failed(participants, failure)

    def _forget(self, participant: Participant) -> None:
        self._participants.pop(participant.id, None)
        if not any(self._of(participant.topic)):
            # Nobody is told any more: of who takes part later it would be too old.
            self._views.pop(participant.topic, None)

    def _of(self, topic: str) -> Iterator[Participant]:
        return (one for one in self._participants.values() if one.topic == topic)

    def _failed(self, participants: list[Participant], error: TensairError) -> None:
        failed = [each for each in participants if not each.ready]
        if not all(each.closing for each in failed):
            logger.error("%s", error)
        for participant in failed:
            self._forget(participant)
            participant.fail(error)

    async def _register_until_known(self, participants: list[Participant]) -> None:
        timeout = config.get_seconds("pubsub.timeout")
        deadline = self.loop.time() + timeout
        reason: Any = "it does not answer"
        ids = [participant.id for participant in participants]
        # Not only until one is closing: what was put before still wants to leave. One
        # that has another id by now is registered anew.
        while waiting := [
            each
            for each, identity in zip(participants, ids, strict=True)
            if not each.closed and each.id == identity
        ]:
            try:
                answer = await self._ask(waiting, timeout)
            except (TimeoutError, OSError) as error:
                reason, answer = error, {"status": UNKNOWN}
            if answer["status"] != UNKNOWN:
                if answer["status"] == OK:
                    await self._registered(waiting, answer)
                return
            if self.loop.time() > deadline:
                raise SchedulerLostError(
                    f"{_named(waiting)} could not be registered with the scheduler "
                    f"within {timeout:g} s: {reason}. If it only takes longer, raise "
                    "tensair.pubsub.timeout"
                )
            await asyncio.sleep(config.get_seconds("pubsub.retry"))

    async def _ask(
        self, participants: list[Participant], timeout: float
    ) -> dict[str, Any]:
        await self._install_on_scheduler()
        members: dict[str, list[Any]] = {"publishers": [], "subscribers": []}
        for participant in participants:
            members[participant.role].append(list(participant.identity))
        # The scheduler itself may wait so long for the publishers.
        async with asyncio.timeout(2 * timeout):
            answer = await self.scheduler.tensair_pubsub_register(
                topic=participants[0].topic,
                timeout=timeout,
                together=max(participant.together for participant in participants),
                **members,
            )
        if answer is None:  # another scheduler has taken over: it has no plugin yet
            self._installed = False
            return {"status": UNKNOWN}
        return answer

    async def _registered(
        self, participants: list[Participant], answer: dict[str, Any]
    ) -> None:
        ids = [participant.id for participant in participants]
        for participant in participants:
            await self._until_shown(participant, answer["number"])
        if answer["unheard"]:
            logger.warning(
                "%s: publishers on %s have not confirmed in time that they know of "
                "it; what they put now may not arrive",
                _named(participants),
                ", ".join(answer["unheard"]),
            )
        for participant, identity in zip(participants, ids, strict=True):
            if participant.id == identity:  # else it has to be registered anew
                participant.become_ready()

    async def _install_on_scheduler(self) -> None:
        if self._installed:
            return
        try:
            await self.scheduler.register_scheduler_plugin(
                plugin=dumps(PubSubScheduler()), name=NAME, idempotent=True
            )
        except ImportError as error:
            raise PackageMissingError(
                f"The scheduler at {self.scheduler.address} cannot import what Pub and "
                f"Sub need ({error}). Install tensair-dask in the environment of the "
                "scheduler, in the version used here, and start it again: "
                "pip install tensair-dask"
            ) from error
        self._installed = True

    # -- Views --------------------------------------------------------------------

    def on_pushed_view(self, view: bytes, confirm: bool) -> None:
        """Take a change from the scheduler's stream; never raises."""
        try:
            self._take(Change.from_wire(view), confirm)
        except Exception:
            logger.exception("A view of a topic could not be taken")

    def _take(self, change: Change, confirm: bool) -> None:
        if not any(self._of(change.topic)):
            return  # those that were there have left
        known = self._views.get(change.topic, View(change.topic))
        if change.after and change.after != known.number < change.number:
            self._ask_for(change.topic, change.number)
            return
        if change.number > known.number:
            before = known if change.after else View(change.topic)
            self._show(before.changed(change))
        if confirm:
            self.spawn(self._confirm(change.topic))

    def _show(self, view: View) -> None:
        self._views[view.topic] = view
        for participant in list(self._of(view.topic)):
            participant.see(view)

    async def _confirm(self, topic: str) -> None:
        """Tell the scheduler by which view the publishers here act."""
        view = self._views.get(topic)
        if view is not None and any(
            one.id in view.publishers for one in self._of(topic)
        ):
            await self._send(
                "seen", topic=topic, address=self.address, number=view.number
            )

    async def _until_shown(self, participant: Participant, number: int) -> None:
        """Wait for the view of this number; ask for it if it does not come."""

        def shown() -> bool:
            return participant.closed or participant.view.number >= number

        what = f"{participant!r}: the view of its topic"
        try:
            pause = config.get_seconds("pubsub.retry")
            await participant.pulse.until(shown, pause, what)
        except TensairTimeoutError:
            self._ask_for(participant.topic, number)
            timeout = config.get_seconds("pubsub.timeout")
            await participant.pulse.until(shown, timeout, what)

    def _ask_for(self, topic: str, number: int) -> None:
        """Ask for the whole view, at least of this number."""
        asking = topic in self._behind
        self._behind[topic] = max(number, self._behind.get(topic, 0))
        if not asking:
            self.spawn(self._catch_up(topic))

    async def _catch_up(self, topic: str) -> None:
        timeout = config.get_seconds("pubsub.timeout")
        try:
            async with asyncio.timeout(timeout):
                while any(self._of(topic)) and self._is_behind(topic):
                    await self._ask_once(topic)
        except TimeoutError:  # the next change that comes lets it ask again
            logger.error("%s has no whole view of %r", self.address, topic)
        finally:
            del self._behind[topic]
        # Perhaps one of the changes that were missed was to be confirmed.
        await self._confirm(topic)

    def _is_behind(self, topic: str) -> bool:
        return self._views.get(topic, View(topic)).number < self._behind[topic]

    async def _ask_once(self, topic: str) -> None:
        try:
            answer = await self.scheduler.tensair_pubsub_view(topic=topic)
            view = View(topic) if answer is None else View.from_wire(answer)
        except Exception as error:
            logger.debug("The view of %r did not come: %r", topic, error)
            view = View(topic)
        known = self._views.get(topic, View(topic))
        if view.number > known.number:
            self._show(view)
        if self._is_behind(topic):
            await asyncio.sleep(config.get_seconds("pubsub.retry"))

    async def _send(self, what: str, **arguments: Any) -> None:
        """Send the scheduler something until it has heard."""
        while not self.closed and not await self._heard(what, **arguments):
            pass

    async def _heard(self, what: str, **arguments: Any) -> bool:
        try:
            await getattr(self.scheduler, f"tensair_pubsub_{what}")(**arguments)
        except OSError:
            await asyncio.sleep(config.get_seconds("pubsub.retry"))
            return False
        except Exception:
            logger.exception("The scheduler cannot take %r", what)
        return True

    # -- Messages -----------------------------------------------------------------

    def route(self, sender: Member, destination: Member) -> CommRoute:
        """How deliveries get from a publisher here to a subscription."""
        return CommRoute(self, sender, destination)

    async def send(
        self, sender: Member, destination: Member, number: int, parcels: list[Parcel]
    ) -> str:
        """Bring a delivery to its destination and return the answer.

        Raises
        ------
        OSError
            If it is not known whether it arrived.
        """
        if destination.address == self.address:
            return await self._receive(destination.id, sender, number, parcels)
        delivery: dict[str, Any] = {
            "sender": list(sender),
            "number": number,
            "parcels": [to_serialize(parcel) for parcel in parcels],
        }
        if destination.kind == "worker" and await self.reaches(destination.address):
            worker = self.node.rpc(destination.address)
            answer = await worker.tensair_pubsub_deliver(
                subscription=destination.id, **delivery
            )
            return GONE if answer is None else answer
        answer = await self.scheduler.tensair_pubsub_forward(
            destination=list(destination), **delivery
        )
        if answer is None or answer == UNREACHABLE:
            raise OSError(f"the scheduler could not reach {destination.address}")
        return answer

    async def reaches(self, address: str) -> bool:
        """Return whether this process can connect to that worker."""
        return True

    async def _receive(
        self, subscription: str, sender: Member, number: int, parcels: list[Parcel]
    ) -> str:
        known = self._participants.get(subscription)
        if not isinstance(known, Subscription):
            return GONE
        try:
            return await known.inlet.receive(sender, number, parcels)
        except Exception:
            logger.exception("A delivery to %r could not be handled", known)
            return OK

    async def deliver(
        self, subscription: str, sender: list[Any], number: int, parcels: list[Parcel]
    ) -> str:
        """Handle a delivery that came by a call from a publisher, or the scheduler."""
        return await self._receive(subscription, Member(*sender), number, parcels)


def _named(participants: list[Participant]) -> str:
    return " and ".join(map(repr, participants))


class WorkerEndpoint(Endpoint):
    """The endpoint of a worker: can be called by all."""

    kind = "worker"

    @property
    def address(self) -> str:
        """The worker's address."""
        return self.node.contact_address

    @staticmethod
    def registry(node: Any) -> dict[str, Any]:
        """Return the worker's plugins: it tears them down when it closes."""
        return node.plugins

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self._before_end: list[Callable[[], Awaitable[None]]] = []
        # From the first process on that asks for it.
        self.neighbours: Neighbours | None = None
        # None where no memory is shared. Who encrypts what is sent wants nothing of it
        # to lie beside in plain memory.
        self.machine: str | None = None
        encrypts = self.address.startswith("tls://")
        if AVAILABLE and not encrypts and config.get("pubsub.shared-memory"):
            with contextlib.suppress(OSError):
                self.machine = running_system()

    def before_end(self, function: Callable[[], Awaitable[None]]) -> None:
        """Await this when the worker closes, before publishers and subscriptions end.

        Dask tears all plugins of a worker down at once, in no order: this makes one.
        The function bounds its own time, and may be awaited by others, too.
        """
        self._before_end.append(function)

    def install(self) -> None:
        """Install the handlers."""
        self.node.handlers["tensair_pubsub_deliver"] = self.deliver
        self.node.handlers["tensair_pubsub_invite"] = self.invite
        self.node.stream_handlers["tensair-pubsub-view"] = self.on_pushed_view

    def route(self, sender: Member, destination: Member) -> CommRoute:
        """Through shared memory, to other workers of this machine that allow it."""
        if (
            self.machine is None
            or destination.kind != self.kind
            or destination.address == self.address
        ):
            return super().route(sender, destination)
        return SharedMemoryRoute(self, sender, destination, self.machine)

    def invite(self, machine: str) -> dict[str, Any] | None:
        """Tell another process how to connect for deliveries through shared memory.

        Parameters
        ----------
        machine
            Of the one that asks; see `running_system`.

        Returns
        -------
        invitation
            None if it is another machine, or this one has no shared memory to offer.
        """
        if self.closed or machine != self.machine:
            return None
        if self.neighbours is None:
            try:
                self.neighbours = Neighbours(
                    self.loop, self._deliver_borrowed, self.spawn
                )
            except OSError as error:
                logger.debug("No shared memory is offered: %r", error)
                self.machine = None
                return None
        return self.neighbours.invitation

    async def _deliver_borrowed(
        self, subscription: str, sender: list[Any], number: int, parcels: list[Parcel]
    ) -> str:
        """Handle a delivery whose memory is the sender's again afterwards."""
        known = self._participants.get(subscription)
        if isinstance(known, Subscription) and not known.inlet.sealed:
            # What is made of its messages may share their memory.
            parcels = [parcel.copied() for parcel in parcels]
        return await self.deliver(subscription, sender, number, parcels)

    def close(self) -> None:
        """End everything here; the scheduler notices by itself."""
        super().close()
        if self.neighbours is not None:
            self.neighbours.close()
            self.neighbours = None

    async def teardown(self, worker: Any) -> None:
        """End with the worker."""
        for function in self._before_end:
            try:
                await function()
            except Exception:
                logger.exception("What precedes the end of pubsub on a worker raised")
        tasks = set(self._tasks)
        self.close()
        if tasks:
            # Handlers of users may take their time to end.
            await asyncio.wait(tasks, timeout=1)


class _Watch(PeriodicCallback):
    """Look after the client's connection; stopped by Dask when the client closes."""

    def __init__(self, endpoint: ClientEndpoint) -> None:
        super().__init__(endpoint.check_connection, 200)
        self._endpoint = endpoint

    def stop(self) -> None:
        super().stop()
        # Client.close stops its callbacks in the thread of the caller and then again
        # on the event loop.
        if on_loop(self._endpoint.loop):
            self._endpoint.close()


class ClientEndpoint(Endpoint):
    """The endpoint of a client: cannot be called, so messages come on its stream."""

    kind = "client"

    def __init__(self, node: Any) -> None:
        super().__init__(node)
        self._stream = node.scheduler_comm
        self._reaches: dict[str, bool] = {}

    @property
    def address(self) -> str:
        """The client's id."""
        return self.node.id

    @staticmethod
    def registry(node: Any) -> dict[str, Any]:
        """Return the client's extensions."""
        return node.extensions

    def install(self) -> None:
        """Install the handlers."""
        self.node._stream_handlers.update(
            {
                "tensair-pubsub-view": self.on_pushed_view,
                "tensair-pubsub-deliver": self.on_pushed_delivery,
            }
        )
        watch = _Watch(self)
        self.node._periodic_callbacks[NAME] = watch
        watch.start()

    def check_connection(self) -> None:
        """Register again after the client has lost and found its scheduler."""
        stream = self.node.scheduler_comm
        if stream is None or stream is self._stream or self.node.status != "running":
            return
        had_one = self._stream is not None
        self._stream = stream
        self._reaches.clear()
        if had_one:
            self.rejoin()

    async def reaches(self, address: str) -> bool:
        """Try once to connect to a worker, and remember whether it went."""
        if self.node.direct_to_workers is False:
            return False
        if address not in self._reaches:
            pool = self.node.rpc
            self._reaches[address] = False
            with contextlib.suppress(TimeoutError, OSError):
                async with asyncio.timeout(config.get_seconds("pubsub.connect")):
                    comm = await pool.connect(address)
                pool.reuse(address, comm)
                self._reaches[address] = True
        return self._reaches[address]

    def on_pushed_delivery(
        self,
        token: int,
        subscription: str,
        sender: list[Any],
        number: int,
        parcels: list[Parcel],
    ) -> None:
        """Take a delivery from the scheduler's stream; never raises, never waits."""
        self.spawn(
            self._deliver_and_answer(token, subscription, sender, number, parcels)
        )

    async def _deliver_and_answer(
        self,
        token: int,
        subscription: str,
        sender: list[Any],
        number: int,
        parcels: list[Parcel],
    ) -> None:
        answer = await self.deliver(subscription, sender, number, parcels)
        await self._send("acknowledge", token=token, answer=answer)
