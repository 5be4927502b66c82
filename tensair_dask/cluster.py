"""Start replicas on a Dask cluster, and call them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import pickle
from collections.abc import Awaitable, Sequence
from typing import Any

from distributed import Client, Future
from distributed.actor import ProxyRPC
from distributed.protocol import to_serialize

from tensair_dask import config
from tensair_dask.batches import Block
from tensair_dask.dispatch import Lane
from tensair_dask.errors import (
    ClusterError,
    NoWorkersError,
    PackageMissingError,
    ReplicaLostError,
    SchedulerLostError,
    TensairError,
    TensairTimeoutError,
)
from tensair_dask.exchange.settings import Settings
from tensair_dask.guard.scheduler import install
from tensair_dask.learner import Recipe
from tensair_dask.placement import (
    Place,
    Wish,
    WorkerFacts,
    place_more,
    place_replicas,
)
from tensair_dask.replica import RECIPE, Peer, ReplicaPlan
from tensair_dask.starting import start_replica
from tensair_dask.training_thread import Outcome
from tensair_dask.transfer import dumps, missing_modules, user_modules
from tensair_dask.waiting import within

__all__ = ["ReplicaHandle", "Starter"]

logger = logging.getLogger(__name__)

# Where batch systems tell a job its id.
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


class ReplicaHandle:
    """One replica, as the client calls it.

    Parameters
    ----------
    client
        Of the trainer.
    name
        Of the replica in its run.
    place
        Where the replica runs.
    future
        Of the actor; holding it keeps the replica alive.
    direct
        Whether the client can connect to the worker; otherwise the scheduler passes
        messages on.

    Attributes
    ----------
    lane
        The replica as the dispatcher sees it.
    """

    def __init__(
        self, client: Client, name: str, place: Place, future: Future, direct: bool
    ) -> None:
        self.name = name
        self.place = place
        self.key = future.key
        self.future = future
        self.lane = Lane(place.address, self.learn)
        self._client = client
        self._direct = direct

    @property
    def peer(self) -> Peer:
        """How other replicas find it."""
        return Peer(self.place.address, self.key)

    @property
    def is_lost(self) -> bool:
        """Whether Dask has declared its worker lost."""
        return self.future.status not in ("finished", "pending")

    async def call(self, function: str, *args: Any) -> Any:
        """Call a method of the replica.

        Raises
        ------
        ReplicaLostError
            If it does not answer: its worker cannot be reached, or has dropped it.
        Exception
            What the method raises, an OSError of the user's code, too.
        """
        # An actor proxy would do the same, with a future and a thread hop more.
        address = self.place.address
        rpc = self._client.rpc(address) if self._direct else self._through_scheduler
        try:
            answer = await rpc.actor_execute(
                function=function,
                actor=self.key,
                args=[to_serialize(arg) for arg in args],
                kwargs={},
            )
        except KeyError as error:  # the worker lives, and has dropped the actor
            raise ReplicaLostError(
                f"Worker {address} holds no replica {self.key} any more. Start a new "
                "trainer."
            ) from error
        except OSError as error:
            raise ReplicaLostError(
                f"Worker {address} cannot be reached: {type(error).__name__}: {error}."
            ) from error
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    @property
    def _through_scheduler(self) -> Any:
        return ProxyRPC(self._client.scheduler, self.place.address)

    def learn(self, block: Block) -> Awaitable[Outcome]:
        """Send a block; see `Replica.learn`."""
        return self.call("learn", block)

    def release(self) -> None:
        """Let Dask drop the actor."""
        self.future.release()


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
    missing
        Modules of the user's that the workers lack; known when `look` has been called.
    """

    def __init__(
        self,
        client: Client,
        run_id: str,
        recipe: Recipe,
        device: str,
        settings: Settings | None = None,
        name: str | None = None,
    ) -> None:
        self.client = client
        self.run_id = run_id
        self.missing: list[str] = []
        self._recipe = recipe
        self.device = device
        self.settings = settings
        self._name = name
        self._count = 0
        self._releasing: set[asyncio.Task[None]] = set()

    async def look(self) -> list[WorkerFacts]:
        """Ask every worker of the cluster for its facts.

        Raises
        ------
        NoWorkersError, SchedulerLostError, PackageMissingError
            If the cluster cannot hold replicas.
        """
        facts, missing = await _inspect(self.client, user_modules())
        self.missing = sorted({*self.missing, *missing})
        return facts

    async def start(self, wish: Wish) -> list[ReplicaHandle]:
        """Start the first replicas: they know each other and hold the same parameters.

        Raises
        ------
        NoWorkersError, SchedulerLostError, PackageMissingError, TensairTimeoutError
            If the cluster cannot hold them.
        ModelError, OptimizerError, ConfigurationError
            If the recipe cannot be built.
        """
        started: list[ReplicaHandle] = []

        async def start() -> list[ReplicaHandle]:
            facts = await self.look()
            await install(self.client)
            places = place_replicas(facts, wish.count(len(facts)), self.device)
            await self._build(places, started)
            # The seed makes most factories agree already; this makes all of them.
            first, *others = started
            await _all(others, "adopt", first.peer)
            await _all(started, "join")
            seconds = config.get_seconds("timeouts.start")
            await _all(started, "wait_for_peers", len(started), seconds)
            return started

        return await self._within_bounds(start(), started)

    async def build(self, places: Sequence[Place]) -> list[ReplicaHandle]:
        """Build further replicas, which do not take part yet.

        Raises
        ------
        TensairError
            As `start` does.
        """
        started: list[ReplicaHandle] = []
        return await self._within_bounds(self._build(places, started), started)

    def place(
        self, facts: Sequence[WorkerFacts], present: Sequence[Place], count: int
    ) -> list[Place]:
        """Place further replicas beside those that there are."""
        return place_more(facts, present, count, self.device)

    async def _build(
        self, places: Sequence[Place], started: list[ReplicaHandle]
    ) -> list[ReplicaHandle]:
        payload = dumps(self._recipe, self.missing, RECIPE)
        direct = await _can_connect(self.client, places)
        for place in places:
            number = self._count
            self._count += 1
            name = f"replica-{number}"
            plan = ReplicaPlan(
                self.run_id, name, place, payload, self.settings, self._name
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
            started.append(ReplicaHandle(self.client, name, place, future, direct))
        await asyncio.gather(*(handle.future for handle in started))
        await _all(started, "build")
        return started

    def release(self, handle: ReplicaHandle) -> None:
        """Let Dask drop an actor, once it is there.

        The scheduler would go on to count one that is dropped before it was made.
        """
        if handle.future.status != "pending":
            handle.release()
            return

        async def when_made() -> None:
            with contextlib.suppress(Exception):
                await handle.future
            handle.release()

        task = asyncio.ensure_future(when_made())
        self._releasing.add(task)
        task.add_done_callback(self._releasing.discard)

    async def _within_bounds(
        self, work: Awaitable[list[ReplicaHandle]], started: list[ReplicaHandle]
    ) -> list[ReplicaHandle]:
        seconds = config.get_seconds("timeouts.start")
        try:
            return await within(work, seconds)
        except BaseException as error:
            for handle in started:
                self.release(handle)
            if isinstance(error, TensairError):
                raise
            if isinstance(error, asyncio.TimeoutError):
                raise TensairTimeoutError(
                    f"The replicas were not ready within {seconds:g} s. If building "
                    "the model takes that long, raise it: "
                    "dask.config.set({'tensair.timeouts.start': '5 minutes'})."
                ) from None
            if isinstance(error, OSError):
                raise SchedulerLostError(
                    f"The cluster at {_address(self.client)} cannot be reached: "
                    f"{error}. See that the scheduler and its workers run."
                ) from error
            raise


async def _all(handles: Sequence[ReplicaHandle], function: str, *args: Any) -> None:
    await asyncio.gather(*(handle.call(function, *args) for handle in handles))


async def _inspect(
    client: Client, modules: list[str]
) -> tuple[list[WorkerFacts], list[str]]:
    """Ask every worker for its facts and for the modules that it lacks."""
    if client.status != "running":
        raise SchedulerLostError(
            f"The client is {client.status}, not running: the scheduler at "
            f"{_address(client)} cannot be reached. Connect a new client."
        )
    await _wait_for_a_worker(client)
    try:
        answers = await client.run(look_around, modules, on_error="return")
    except ImportError as error:
        raise _package_missing("A worker", error) from error
    facts: list[WorkerFacts] = []
    missing: set[str] = set()
    for address, answer in answers.items():
        if isinstance(answer, ImportError):
            raise _package_missing(f"Worker {address}", answer)
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"Worker {address} cannot be used: {type(answer).__name__}: {answer}"
            ) from answer
        facts.append(answer[0])
        missing.update(answer[1])
    return facts, sorted(missing)


async def _wait_for_a_worker(client: Client) -> None:
    seconds = config.get_seconds("timeouts.workers")
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        identity = await client.scheduler.identity()
        if identity["workers"]:
            return
        if asyncio.get_running_loop().time() >= deadline:
            raise NoWorkersError(
                f"The cluster at {_address(client)} has no workers (waited "
                f"{seconds:g} s). Start some, for example: cluster.scale(2), or on the "
                f"command line: dask worker {_address(client)}."
            )
        await asyncio.sleep(0.1)


def _package_missing(who: str, error: BaseException) -> PackageMissingError:
    return PackageMissingError(
        f"{who} cannot import what it needs: {error}. Install tensair_dask there, in "
        "the version that the client has: pip install tensair-dask."
    )


async def look_around(modules: list[str], dask_worker: Any) -> Any:
    """Run on a worker: its facts, and which of the modules it lacks."""

    def look() -> tuple[WorkerFacts, list[str]]:
        import os
        import socket

        import torch  # about a second, the first time: not on the event loop

        facts = WorkerFacts(
            dask_worker.address,
            socket.gethostname(),
            dask_worker.state.nthreads,
            torch.cuda.device_count(),
            os.environ.get("CUDA_VISIBLE_DEVICES"),
            next((os.environ[name] for name in JOB_IDS if name in os.environ), None),
        )
        return facts, missing_modules(modules)

    return await asyncio.get_running_loop().run_in_executor(None, look)


async def _can_connect(client: Client, places: Sequence[Place]) -> bool:
    """Whether the client reaches the workers itself, as on most networks."""
    seconds = config.get_seconds("timeouts.connect")

    async def connect(address: str) -> None:
        await client.rpc(address).identity()

    try:
        addresses = {place.address for place in places}
        await within(asyncio.gather(*map(connect, addresses)), seconds)
    except (OSError, asyncio.TimeoutError) as error:
        logger.warning(
            "The client cannot connect to the workers (%s): mini-batches go through "
            "the scheduler, which is slower",
            error or f"not within {seconds:g} s",
        )
        return False
    return True


def _address(client: Client) -> str:
    return client.scheduler.address if client.scheduler else "(no scheduler)"
