"""Start replicas on a Dask cluster."""

from __future__ import annotations

import asyncio
import logging
import pickle
import uuid
from collections.abc import Awaitable, Collection, Mapping, Sequence
from typing import Any, TypeVar

from distributed import Client, Future

from tensair_dask import config
from tensair_dask.coordinator.code_transfer import UserModules
from tensair_dask.coordinator.copying import spread
from tensair_dask.coordinator.replica_handle import Delayed, ReplicaHandle
from tensair_dask.coordinator.scheduler_plugin import install
from tensair_dask.coordinator.worker_facts import (
    SHOWN,
    address_of,
    inspect,
    why_not_begun,
)
from tensair_dask.errors import (
    ClusterError,
    ReplicaLostError,
    SchedulerLostError,
    TensairError,
    TensairTimeoutError,
)
from tensair_dask.exchange.settings import ExchangeConfig
from tensair_dask.pubsub.moments import Moment, reach
from tensair_dask.replica.actor import RECIPE, Change, ReplicaPlan
from tensair_dask.replica.entry import start_replica
from tensair_dask.replica.learner import Recipe
from tensair_dask.replica.placement import (
    Place,
    ReplicaCount,
    WorkerFacts,
    place_more,
    place_replicas,
)
from tensair_dask.replica.randomness import this_process

__all__ = ["Starter"]

logger = logging.getLogger(__name__)

T = TypeVar("T")

# Seconds for replicas of an attempt to start that failed: to leave before the next.
CLOSING = 2.0

# Seconds that those which are ready wait for one whose worker is known to be busy.
GRACE = 1.0


class Starter:
    """Starts the replicas of one run: the first ones, and those that join later.

    Parameters
    ----------
    client
        Of the trainer.
    run_id
        Of the trainer.
    recipe
        What the replicas are built from.
    device
        See `place_replicas`.
    settings
        Of the exchange; None for what the workers have configured.
    name
        What people call the trainer; None if heartbeats shall not tell of it.

    Attributes
    ----------
    modules
        Of the user's; known when `look` has been called.
    changes
        Of the structure of the model, which new replicas repeat.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        recipe: Recipe,
        device: str,
        settings: ExchangeConfig | None = None,
        name: str | None = None,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.modules = UserModules()
        self.changes: list[Change] = []
        self.recipe = recipe
        self.device = device
        self.settings = settings
        self._name = name
        # What only replicas of this run know: others may publish to its topic, too.
        self._token = uuid.uuid4().hex
        self._count = 0
        self.releasing: set[asyncio.Task[None]] = set()
        # What was built last, for people.
        self._waited_for: list[ReplicaHandle] = []
        # Workers on which none can be started: Dask cannot even queue an actor there.
        self._paused: list[str] = []

    async def look(self, addresses: Collection[str] | None = None) -> list[WorkerFacts]:
        """Ask workers of the cluster for their facts; all of them by default.

        Raises
        ------
        NoWorkersError, SchedulerLostError, PackageMissingError
            If the cluster cannot hold replicas.
        """
        return await inspect(self.client, self.modules, addresses)

    async def start(
        self, wanted: ReplicaCount
    ) -> tuple[list[ReplicaHandle], list[Delayed]]:
        """Start the first replicas: they know each other and hold the same parameters.

        Where a worker is lost meanwhile, it goes on with those that are left; where
        one does not begin, since it is busy or paused, with those that have.

        Returns
        -------
        handles, delayed
            Those that take part, and those that have not begun.

        Raises
        ------
        NoWorkersError, SchedulerLostError, PackageMissingError, TensairTimeoutError
            If the cluster cannot hold them.
        ModelError, OptimizerError, ConfigurationError
            If the recipe cannot be built.
        """

        async def start() -> tuple[list[ReplicaHandle], list[Delayed]]:
            while True:
                facts = await self._running()
                await install(self.client)
                count = wanted.count(len(facts))
                busy = {each.address for each in facts if not each.ready}
                try:
                    places = place_replicas(facts, count, self.device)
                    return await self._first(places, busy)
                except Exception as error:
                    if not _is_loss(error):
                        raise
                    logger.warning("Starting again, without a worker: %s", error)
                await asyncio.sleep(config.get_seconds("replicas.watch"))

        seconds = config.get_seconds("timeouts.start")
        return await self._within_bounds(start(), seconds)

    async def _running(self) -> list[WorkerFacts]:
        """Look at the workers that are not paused; wait for one, if all are."""
        while True:
            facts = await self.look()
            running = [each for each in facts if not each.paused]
            self._paused = [each.address for each in facts if each.paused]
            if running or not facts:
                return running
            await asyncio.sleep(config.get_seconds("replicas.watch"))

    async def _first(
        self, places: Sequence[Place], busy: Collection[str] = ()
    ) -> tuple[list[ReplicaHandle], list[Delayed]]:
        """Build replicas that know each other; all that have begun, or none."""
        answers = await self.build(places, busy)
        built = [each for each in answers if isinstance(each, ReplicaHandle)]
        delayed = [each for each in answers if isinstance(each, Delayed)]
        try:
            for answer in answers:
                if isinstance(answer, Exception):
                    raise answer
            # The seed makes most factories agree already; this makes all of them.
            first, *others = built
            await spread(first, others, _copy)
            await _all(built, "join", False, len(built))
            seconds = config.get_seconds("timeouts.start")
            await _all(built, "wait_for_peers", len(built), seconds)
        except BaseException:
            # They unsubscribe first, or those of the next attempt would know them.
            for each in delayed:
                self.release(each.handle)
            await asyncio.gather(*map(self.release, built))
            raise
        return built, delayed

    async def build(
        self,
        places: Sequence[Place],
        busy: Collection[str] = (),
        patience: float | None = None,
    ) -> list[ReplicaHandle | Delayed | Exception]:
        """Build further replicas, which do not take part yet.

        Parameters
        ----------
        places
            Where.
        busy
            Addresses of workers that are known to have no time.
        patience
            Seconds after which those whose workers have not begun are given back as
            they are; None for ``tensair.timeouts.begin`` after the first one is built,
            and so never where none is.

        Returns
        -------
        built
            For each place the replica, or why there is none.

        Raises
        ------
        PackageMissingError, ModelError
            If the recipe cannot be sent.
        """
        payload = self.modules.dumps(self.recipe, RECIPE)
        reached = await _reached(self.client, places)
        handles = [
            self._submit(place, payload, place.address in reached) for place in places
        ]
        self._waited_for = handles
        building = {each: asyncio.ensure_future(self.built(each)) for each in handles}
        try:
            await self._wait(building, busy, patience)
            # At once, before any of them begins.
            late = {each for each, work in building.items() if work.cancel()}
            return [
                await self._delayed(handle) if handle in late else work.result()
                for handle, work in building.items()
            ]
        except BaseException:
            # Interrupted: nobody gets any of them, nor those that are built already.
            for handle, work in building.items():
                work.cancel()
                self.release(handle)
            raise

    async def _wait(
        self,
        building: Mapping[ReplicaHandle, asyncio.Future[ReplicaHandle | Exception]],
        busy: Collection[str],
        patience: float | None,
    ) -> None:
        """Wait for all that have begun; for those that have not as long as is set."""
        loop = asyncio.get_running_loop()
        pause = config.get_seconds("replicas.watch")
        begin = config.get_seconds("timeouts.begin")
        grace = {
            each: min(GRACE, begin) if each.place.address in busy else begin
            for each in building
        }
        since = None if patience is None else loop.time() + patience - begin
        pending = set(building.values())
        while pending:
            if since is not None:
                now = loop.time()
                left = [
                    now - since < grace[handle]
                    for handle, work in building.items()
                    if not work.done()
                ]
                begun = [
                    each.begun for each, work in building.items() if not work.done()
                ]
                if not any(left) and not any(begun):
                    return
            done, pending = await asyncio.wait(
                pending, timeout=pause, return_when=asyncio.FIRST_COMPLETED
            )
            there = any(isinstance(work.result(), ReplicaHandle) for work in done)
            if since is None and there:
                since = loop.time()

    async def _delayed(self, handle: ReplicaHandle) -> Delayed:
        return Delayed(handle, await self.why_not_begun(handle.place.address))

    async def why_not_begun(self, address: str) -> str:
        """Say why a worker begins nothing, as far as the scheduler knows."""
        try:
            return await why_not_begun(self.client, address)
        except (OSError, KeyError, AttributeError) as error:
            return f"it cannot be asked why ({type(error).__name__})"

    async def place(
        self, addresses: Collection[str], present: Sequence[Place], count: int
    ) -> list[Place]:
        """Place further replicas on some of these workers, beside those present.

        On those that can begin at once, if there are so many.

        Raises
        ------
        TimeoutError
            If the workers do not answer in time.
        NoWorkersError, SchedulerLostError, PackageMissingError
            If they cannot hold replicas.
        """
        seconds = config.get_seconds("timeouts.start")
        async with asyncio.timeout(seconds):
            facts = await self.look(addresses)
        running = [each for each in facts if not each.paused]
        return place_more(running, present, count, self.device)

    def _submit(self, place: Place, payload: bytes, direct: bool) -> ReplicaHandle:
        number = self._count
        self._count += 1
        name = f"replica-{number}"
        plan = ReplicaPlan(
            self.run_id,
            name,
            place,
            payload,
            self.settings,
            self._name,
            self._token,
            tuple(self.changes),
            this_process(),
        )
        future = self.client.submit(
            start_replica,
            pickle.dumps(plan),
            actor=True,
            workers=[place.address],
            allow_other_workers=False,
            key=f"tensair-{self.run_id[:8]}-{number}",
            pure=False,
        )
        handle = ReplicaHandle(self.client, name, place, future, direct)
        handle.changes = len(plan.changes)
        return handle

    async def bring_up(self, handle: ReplicaHandle) -> None:
        """Let a replica make the changes of the structure since it was begun.

        Call it while none can be made.
        """
        if missing := self.changes[handle.changes :]:
            seconds = config.get_seconds("timeouts.start")
            await handle.call_within(seconds, "repeat", missing)
            handle.changes = len(self.changes)

    async def built(self, handle: ReplicaHandle) -> ReplicaHandle | Exception:
        """Build a replica when its worker has begun; give why, if that fails."""
        seconds = config.get_seconds("timeouts.start")

        async def build() -> None:
            try:
                await handle.call_within(seconds, "build")
            except TensairError:
                raise
            except OSError as error:
                raise ReplicaLostError(
                    f"Worker {handle.place.address} was lost while the replica was "
                    f"built there: {error}"
                ) from error

        try:
            await self._within_bounds(self._made(handle), None)
            handle.begun = True
            await self._within_bounds(build(), seconds, [handle])
        except Exception as error:
            self.release(handle)
            return error
        reach(Moment.BUILT, handle)
        return handle

    async def _made(self, handle: ReplicaHandle) -> None:
        """Wait until an actor is there: Dask would wait for ever for a lost worker.

        Raises
        ------
        ReplicaLostError
            If its worker is lost before.
        """
        made = asyncio.ensure_future(_finish(handle.future))
        pause = config.get_seconds("replicas.watch")
        try:
            while not (await asyncio.wait({made}, timeout=pause))[0]:
                address = handle.place.address
                if address not in await self.client.scheduler.ncores():
                    raise ReplicaLostError(
                        f"Worker {address} was lost before a replica was there."
                    )
            made.result()
        finally:
            made.cancel()

    def release(self, handle: ReplicaHandle) -> asyncio.Task[None]:
        """Let a replica end that takes no part, and Dask drop its actor.

        Dask alone would do so whenever Python finds that nothing refers to it any more:
        till then its peers would wait for what it does not apply. And not before it was
        made: the scheduler would go on to count it.
        """

        async def end() -> None:
            try:
                await self._made(handle)
                await handle.call_within(CLOSING, "close")
            except Exception as error:
                logger.debug("A replica cannot be ended: %s", error)
            finally:
                handle.release()

        task = asyncio.ensure_future(end())
        self.releasing.add(task)
        task.add_done_callback(self.releasing.discard)
        return task

    async def released(self, timeout: float) -> None:
        """Wait until what was let go of has ended, so long at most."""
        if self.releasing:
            await asyncio.wait(set(self.releasing), timeout=timeout)

    async def _within_bounds(
        self,
        work: Awaitable[T],
        seconds: float | None,
        waiting: Sequence[ReplicaHandle] = (),
    ) -> T:
        try:
            async with asyncio.timeout(seconds):
                return await work
        except TensairError:
            raise
        except TimeoutError:
            advice = await self._advice(waiting or self._waited_for)
            raise TensairTimeoutError(
                f"The replicas were not ready within {seconds:g} s. {advice}"
            ) from None
        except OSError as error:
            raise SchedulerLostError(
                f"The cluster at {address_of(self.client)} cannot be reached: "
                f"{error}. See that the scheduler and its workers run."
            ) from error

    async def _advice(self, handles: Sequence[ReplicaHandle]) -> str:
        """Say why replicas were not ready, and what to do."""
        waiting = [each.place.address for each in handles if not each.begun]
        waiting += self._paused
        if not waiting:
            return (
                "If building the model takes that long, raise it: "
                "dask.config.set({'tensair.timeouts.start': '5 minutes'})."
            )
        why = [f"{each} {await self.why_not_begun(each)}" for each in waiting[:SHOWN]]
        return (
            f"{len(waiting)} workers have not begun: {'; '.join(why)}. Wait until they "
            "have time, or start other workers."
        )


async def _finish(future: Future) -> None:
    """Wait until a task is done, and raise what it raised.

    Not for its result: an actor proxy holds its actor, and is itself held by the frames
    of an exception, by Ctrl-C say, until Python's collector comes by.
    """
    error = await future.exception()
    if error is not None:
        raise error


def _is_loss(error: Exception) -> bool:
    """Whether it tells of a worker that was lost, and of nothing else."""
    if isinstance(error, TensairError):
        return type(error) in (ClusterError, ReplicaLostError)
    return isinstance(error, OSError) and not isinstance(error, TimeoutError)


async def _copy(giver: ReplicaHandle, taker: ReplicaHandle, gives_on: bool) -> bool:
    await taker.call("adopt", giver.peer)
    return True


async def _all(handles: Sequence[ReplicaHandle], function: str, *args: Any) -> None:
    await asyncio.gather(*(handle.call(function, *args) for handle in handles))


async def _reached(client: Client, places: Sequence[Place]) -> set[str]:
    """Which workers the client connects to itself: all of them, on most networks."""
    seconds = config.get_seconds("timeouts.connect")
    addresses = sorted({place.address for place in places})

    async def connect(address: str) -> None:
        async with asyncio.timeout(seconds):
            await client.rpc(address).identity()

    answers = await asyncio.gather(*map(connect, addresses), return_exceptions=True)
    failed = {
        address: answer
        for address, answer in zip(addresses, answers, strict=True)
        if isinstance(answer, BaseException)
    }
    for error in failed.values():
        if not isinstance(error, (TimeoutError, OSError)):
            raise error
    if failed:
        logger.warning(
            "The client cannot connect to the workers (%s): mini-batches go through "
            "the scheduler, which is slower",
            ", ".join(
                f"{address}: {error or f'not within {seconds:g} s'}"
                for address, error in failed.items()
            ),
        )
    return set(addresses) - set(failed)
