"""The worker's half: all its replicas leave before it does."""

from __future__ import annotations

import asyncio
import logging
import weakref
from collections.abc import Awaitable, Callable
from typing import Any

from tensair_dask import config
from tensair_dask.errors import ClusterError
from tensair_dask.pubsub.endpoint import Endpoint, WorkerEndpoint
from tensair_dask.replica.sigint import ignore_sigint
from tensair_dask.replica.sigterm import close_on_sigterm

__all__ = ["LEAVING_TOPIC", "NAME", "Departures", "expect_replicas"]

logger = logging.getLogger(__name__)

# Among the worker's plugins: Dask tears those down when it closes the worker.
NAME = "tensair-departures"


# Of Dask's event log: in it replicas say that they leave, by run id and name.
LEAVING_TOPIC = "tensair-leaving"

Leave = Callable[[float], Awaitable[Any]]

# What the scheduler asks a worker for.
_HANDLER = "tensair_leave"


def expect_replicas(worker: Any) -> None:
    """Let a worker be asked to see its replicas off, before it has built the first.

    One whose start fails may close while others are still being built on it.
    """

    async def leave(timeout: float) -> list[str]:
        return []

    worker.handlers.setdefault(_HANDLER, leave)


class Departures:
    """The replicas of one worker, and how they leave; on its event loop.

    They leave when the scheduler asks for it (see `ReplicaGuard`), and when the worker
    closes, for whatever reason; in the latter case Dask's nanny gives it little time.

    Notes
    -----
    A nanny kills its worker 4 s after it has told it to close, or 8 s if a signal
    ended ``dask worker``: 0.8 of what `Nanny.close` is given. So
    ``tensair.timeouts.teardown`` is less than that.
    """

    def __init__(self, worker: Any) -> None:
        self._worker = worker
        self._replicas: dict[tuple[str, str], weakref.WeakMethod[Leave]] = {}
        self._end: asyncio.Task[None] | None = None
        self._restore_signal = lambda: None

    @classmethod
    def of(cls, worker: Any) -> Departures:
        """Return those of a Dask worker, made on first use."""
        found = worker.plugins.get(NAME)
        if not isinstance(found, cls):
            found = worker.plugins[NAME] = cls(worker)
            found._install()
        return found

    def _install(self) -> None:
        worker = self._worker
        worker.handlers[_HANDLER] = self.leave
        # Replicas hand over through pubsub, which must not end before them.
        Endpoint.at(worker, WorkerEndpoint).before_end(self.end)
        self._restore_signal = close_on_sigterm(worker)
        ignore_sigint(worker)

    def add(self, run_id: str, replica: str, leave: Leave) -> None:
        """Let this method be called when the worker goes, as long as its object lives.

        Parameters
        ----------
        run_id, replica
            Run and name of the replica.
        leave
            ``await leave(timeout)`` returns when the replica has left.
        """
        self._replicas[run_id, replica] = weakref.WeakMethod(leave)

    def remove(self, run_id: str, replica: str) -> None:
        """Forget a replica that is closed."""
        self._replicas.pop((run_id, replica), None)

    async def leave(self, timeout: float) -> list[str]:
        """Let all replicas leave, at the same time.

        Returns
        -------
        list of str
            Their names.

        Raises
        ------
        ClusterError
            If some could not leave in time; the others have left.
        """
        methods = {}
        for key, reference in list(self._replicas.items()):
            method = reference()
            if method is None:  # Dask has dropped the actor
                self._replicas.pop(key, None)
            else:
                methods[key] = method(timeout)
        answers = await asyncio.gather(*methods.values(), return_exceptions=True)
        failed = [each for each in answers if isinstance(each, BaseException)]
        if failed:
            raise ClusterError(
                f"{len(failed)} of {len(answers)} replicas on {self._worker.address} "
                f"could not leave. {' '.join(map(str, failed))}"
            ) from failed[0]
        return [name for _, name in methods]

    async def end(self) -> None:
        """Let all replicas leave because the worker closes; bounded, done once."""
        if self._end is None:
            timeout = config.get_seconds("timeouts.teardown")
            self._end = asyncio.create_task(self._leave_at_last(timeout))
        await self._end

    async def _leave_at_last(self, timeout: float) -> None:
        try:
            await self.leave(timeout)
        except ClusterError as error:
            # All that it costs: they are lost like those of a worker that is killed.
            logger.warning("%s", error)

    async def teardown(self, worker: Any) -> None:
        """Called by Dask when the worker closes."""
        try:
            await self.end()
        finally:
            self._restore_signal()
