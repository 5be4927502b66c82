"""The scheduler's half: workers with replicas are not scaled away; they are emptied."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from distributed import Client
from distributed.diagnostics.plugin import SchedulerPlugin
from distributed.protocol.pickle import dumps

from tensair_dask import config
from tensair_dask.errors import PackageMissingError

__all__ = ["NAME", "PREFIX", "ReplicaGuard", "install"]

logger = logging.getLogger(__name__)

NAME = "tensair-guard"
# Of the keys of our actors; others' are left to Dask.
PREFIX = "tensair-"

# Seconds that a worker's answer may take longer than what it was asked to do.
MARGIN = 5.0
POLL = 0.01


class ReplicaGuard(SchedulerPlugin):
    """Let replicas leave a worker before the scheduler retires it.

    `Adaptive`, and whoever else asks which workers are not needed, is not told of one
    that holds a replica. Who retires certain workers (`Client.retire_workers`,
    ``cluster.scale``, ``--lifetime``) waits until their replicas have handed over
    what they learned; then their actors are dropped, which Dask could not move.

    Notes
    -----
    Dask refuses to retire a worker with an actor. So replicas that cannot leave stay,
    and so do those beside an actor that is not ours.

    `Client.unregister_scheduler_plugin` does not close a plugin. So it looks whether
    it is still registered, and takes itself out if not.
    """

    name = NAME
    idempotent = True

    def __init__(self) -> None:
        self.scheduler: Any = None
        self._draining: dict[str, int] = {}
        self._original: Any = None
        self._wrapper: Any = None

    async def start(self, scheduler: Any) -> None:
        """Wrap the retirement of workers; waits for nothing."""
        if self.scheduler is not None:  # a scheduler starts what was preloaded again
            return
        self.scheduler = scheduler
        self._original = scheduler.handlers["retire_workers"]
        self._wrapper = self._wrapped(self._original)
        scheduler.handlers["retire_workers"] = self._wrapper
        # Its HTTP interface calls the method, not the handler.
        scheduler.retire_workers = self._wrapper

    async def close(self) -> None:
        """Take the wrapper out."""
        self._unwrap()

    def _unwrap(self) -> None:
        scheduler = self.scheduler
        if scheduler.handlers.get("retire_workers") is self._wrapper:
            scheduler.handlers["retire_workers"] = self._original
        if scheduler.__dict__.get("retire_workers") is self._wrapper:
            del scheduler.retire_workers

    @property
    def _registered(self) -> bool:
        return self.scheduler.plugins.get(NAME) is self

    # ---- which workers are not needed --------------------------------------------

    def valid_workers_downscaling(
        self, scheduler: Any, workers: list[Any]
    ) -> list[Any]:
        """Leave out the workers that hold a replica and are not being emptied."""
        return [
            worker
            for worker in workers
            if worker.address in self._draining or not _replicas(worker)
        ]

    # ---- workers that shall go ---------------------------------------------------

    def _wrapped(
        self, original: Callable[..., Coroutine[Any, Any, Any]]
    ) -> Callable[..., Coroutine[Any, Any, Any]]:
        async def retire_workers(*args: Any, **kwargs: Any) -> Any:
            if not self._registered:
                self._unwrap()
                return await original(*args, **kwargs)
            chosen: list[Any] = []
            try:
                chosen = self._chosen(*args, **kwargs)
                self._mark(chosen)
                await self._empty(chosen)
            except Exception:
                logger.exception("Replicas could not be asked to leave their workers")
            try:
                return await original(*args, **kwargs)
            finally:
                self._unmark(chosen)

        return retire_workers

    def _chosen(
        self,
        workers: Iterable[Any] | None = None,
        *,
        names: Iterable[Any] | None = None,
        **kwargs: Any,
    ) -> list[Any]:
        """Return the states of the workers that are named, and hold replicas.

        With none named Dask chooses itself, from `valid_workers_downscaling`.
        """
        known = self.scheduler.workers
        if names is not None:
            texts = {str(name) for name in names}
            found = [each for each in known.values() if str(each.name) in texts]
        else:
            # Dask's clusters give their workers' names as addresses, which Dask's
            # scheduler does not find; they close these workers all the same.
            addresses = {self.scheduler.aliases.get(one, one) for one in workers or ()}
            found = [known[one] for one in addresses if one in known]
        return [worker for worker in found if _replicas(worker)]

    def _mark(self, chosen: Iterable[Any]) -> None:
        for worker in chosen:
            count = self._draining.get(worker.address, 0)
            self._draining[worker.address] = count + 1

    def _unmark(self, chosen: Iterable[Any]) -> None:
        for worker in chosen:
            self._draining[worker.address] -= 1
            if not self._draining[worker.address]:
                del self._draining[worker.address]

    async def _empty(self, chosen: Iterable[Any]) -> None:
        await asyncio.gather(*(self._empty_one(worker) for worker in chosen))

    async def _empty_one(self, worker: Any) -> None:
        """Let all replicas of a worker leave, and drop their actors."""
        replicas = _replicas(worker)
        if len(replicas) < len(worker.actors):
            logger.warning(
                "%s holds actors besides its replicas, so that Dask will not retire "
                "it; its replicas stay",
                worker.address,
            )
            return
        timeout = config.get_seconds("timeouts.leave")
        try:
            async with asyncio.timeout(timeout + MARGIN):
                rpc = self.scheduler.rpc(worker.address)
                left = await rpc.tensair_leave(timeout=timeout)
        except Exception as error:  # it is gone, or hangs: others still leave theirs
            logger.warning(
                "Replicas on %s have not left, so that Dask will not retire it: %s. "
                "Try again, with a longer tensair.timeouts.leave",
                worker.address,
                error or repr(error),
            )
            return
        remaining = await self._unreleased(worker, replicas)
        if left is None or len(left) < len(remaining):
            logger.warning(
                "Of the replicas on %s some are still being built, so that Dask will "
                "not retire it. Try again",
                worker.address,
            )
            return
        self._drop(worker, remaining)

    async def _unreleased(self, worker: Any, replicas: list[Any]) -> list[Any]:
        """Give clients time to release these actors; return those that are left."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + config.get_seconds("timeouts.release")
        while remaining := [task for task in replicas if task in worker.actors]:
            if loop.time() >= deadline:
                break
            await asyncio.sleep(POLL)
        return remaining

    def _drop(self, worker: Any, replicas: list[Any]) -> None:
        """Drop actors: clients that hold their futures see these cancelled."""
        for task in replicas:
            if task.who_wants:
                self.scheduler.stimulus_cancel(
                    keys=[task.key],
                    client=next(iter(task.who_wants)).client_key,
                    force=True,
                    reason="replica-left",
                    msg=f"The replica has left with its worker {worker.address}.",
                )


def _replicas(worker: Any) -> list[Any]:
    """Return the task states of our actors on a worker."""
    return [
        task
        for task in worker.actors
        if isinstance(task.key, str)
        and task.key.startswith(PREFIX)
        # Dask leaves those among them that were dropped before they were made.
        and task.state in ("memory", "processing")
    ]


async def install(client: Client) -> None:
    """Register the guard with the scheduler of an asynchronous client, once.

    Raises
    ------
    PackageMissingError
        If the scheduler cannot import this package.
    """
    scheduler = client.scheduler
    try:
        await scheduler.register_scheduler_plugin(
            plugin=dumps(ReplicaGuard()), name=NAME, idempotent=True
        )
    except ImportError as error:
        raise PackageMissingError(
            f"The scheduler at {scheduler.address} cannot import what protects "
            f"replicas ({error}). Install tensair-dask in the environment of the "
            "scheduler, in the version used here, and start it again: "
            "pip install tensair-dask"
        ) from error
