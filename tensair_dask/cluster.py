"""Start replicas on a Dask cluster, and call them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

from distributed import Client, Future
from distributed.actor import ProxyRPC
from distributed.protocol import to_serialize

from tensair_dask import config
from tensair_dask.batches import Block
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
from tensair_dask.learner import Recipe
from tensair_dask.placement import Place, WorkerFacts, place_replicas
from tensair_dask.replica import RECIPE, Peer, Replica, ReplicaPlan
from tensair_dask.training_thread import Outcome
from tensair_dask.transfer import dumps, missing_modules, user_modules

__all__ = ["ReplicaHandle", "Started", "start_replicas"]

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
    """

    def __init__(
        self, client: Client, name: str, place: Place, future: Future, direct: bool
    ) -> None:
        self.name = name
        self.place = place
        self.key = future.key
        self._client = client
        self._future = future
        self._direct = direct

    @property
    def peer(self) -> Peer:
        """How other replicas find it."""
        return Peer(self.place.address, self.key)

    @property
    def is_lost(self) -> bool:
        """Whether Dask has declared its worker lost."""
        return self._future.status not in ("finished", "pending")

    async def call(self, function: str, *args: Any) -> Any:
        """Call a method of the replica.

        Raises
        ------
        OSError
            If the worker cannot be reached.
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
        self._future.release()


class Started(NamedTuple):
    """Replicas that have started, and which modules of the user their workers lack."""

    handles: list[ReplicaHandle]
    missing: list[str]


async def start_replicas(
    client: Client,
    run_id: str,
    recipe: Recipe,
    replicas: int | None,
    device: str,
    settings: Settings | None = None,
    name: str | None = None,
) -> Started:
    """Build replicas that know each other and hold the same parameters.

    Raises
    ------
    NoWorkersError, SchedulerLostError, PackageMissingError, TensairTimeoutError
        If the cluster cannot hold them.
    ModelError, OptimizerError, ConfigurationError
        If the recipe cannot be built.
    """
    seconds = config.get_seconds("timeouts.start")
    started: list[Future] = []
    try:
        return await asyncio.wait_for(
            _start(
                client,
                run_id,
                recipe,
                replicas,
                device,
                settings,
                name,
                seconds,
                started,
            ),
            seconds,
        )
    except BaseException as error:
        for future in started:
            future.release()
        if isinstance(error, TensairError):
            raise
        if isinstance(error, asyncio.TimeoutError):
            raise TensairTimeoutError(
                f"The replicas were not ready within {seconds:g} s. If building the "
                "model takes that long, raise it: "
                "dask.config.set({'tensair.timeouts.start': '5 min'})."
            ) from None
        if isinstance(error, OSError):
            raise SchedulerLostError(
                f"The cluster at {_address(client)} cannot be reached: {error}. See "
                "that the scheduler and its workers run."
            ) from error
        raise


async def _start(
    client: Client,
    run_id: str,
    recipe: Recipe,
    replicas: int | None,
    device: str,
    settings: Settings | None,
    name: str | None,
    seconds: float,
    started: list[Future],
) -> Started:
    modules = user_modules()
    facts, missing = await _inspect(client, modules)
    places = place_replicas(facts, replicas, device)
    payload = dumps(recipe, missing, RECIPE)
    direct = await _can_connect(client, places)
    for number, place in enumerate(places):
        plan = ReplicaPlan(run_id, f"replica-{number}", place, payload, settings, name)
        started.append(
            client.submit(
                Replica,
                plan,
                actor=True,
                workers=[place.address],
                allow_other_workers=False,
                key=f"tensair-{run_id[:8]}-{number}",
                pure=False,
            )
        )
    await asyncio.gather(*started)
    handles = [
        ReplicaHandle(client, f"replica-{number}", place, future, direct)
        for number, (place, future) in enumerate(zip(places, started, strict=True))
    ]
    await _build(handles, seconds)
    return Started(handles, missing)


async def _build(handles: Sequence[ReplicaHandle], seconds: float) -> None:
    """Build all, give all the first one's parameters, introduce them to each other."""
    await asyncio.gather(*(handle.call("build") for handle in handles))
    # The seed makes most factories agree already; this makes all of them.
    first, *others = handles
    await asyncio.gather(*(handle.call("adopt", first.peer) for handle in others))
    await asyncio.gather(*(handle.call("join") for handle in handles))
    await asyncio.gather(
        *(handle.call("wait_for_peers", len(handles), seconds) for handle in handles)
    )


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
        await asyncio.wait_for(asyncio.gather(*map(connect, addresses)), seconds)
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
