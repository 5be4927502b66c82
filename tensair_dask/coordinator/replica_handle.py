"""One replica, as the client calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Any

from distributed import Client, Future
from distributed.actor import ProxyRPC
from distributed.protocol import to_serialize

from tensair_dask import config
from tensair_dask._wording import in_words
from tensair_dask.batches.batch import Block
from tensair_dask.coordinator.lane import Lane
from tensair_dask.errors import ReplicaLostError, TensairTimeoutError
from tensair_dask.replica.actor import Peer
from tensair_dask.replica.placement import Place
from tensair_dask.replica.thread import Outcome

__all__ = ["Delayed", "ReplicaHandle"]


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
    unwanted
        Whether it leaves because there are too many: its worker stays.
    begun
        Whether its worker has begun to start it.
    """

    def __init__(
        self, client: Client, name: str, place: Place, future: Future, direct: bool
    ) -> None:
        self.name = name
        self.place = place
        self.key = future.key
        self.future = future
        self.lane = Lane(place.address, self.learn)
        self.unwanted = False
        self.begun = False
        # Of the structure of the model, that it has made when it was built.
        self.changes = 0
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
                f"Worker {address} cannot be reached: {in_words(error)}."
            ) from error
        if answer["status"] != "OK":
            raise answer["exception"]
        return answer["result"]

    async def call_within(self, seconds: float, function: str, *args: Any) -> Any:
        """Call a method; wait for so many seconds, and no longer than its worker lives.

        For a replica that is no lane yet, or not any more; else see `ReplicaGroup`.

        Raises
        ------
        OSError, ReplicaLostError
            If the worker cannot be reached, or is lost.
        TensairTimeoutError
            If it does not answer in time.
        """
        call = asyncio.ensure_future(self.call(function, *args))
        pause = config.get_seconds("replicas.watch")
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        try:
            while not call.done():
                left = end - loop.time()
                what = f"{function} on {self.place.address}"
                if self.is_lost:
                    raise ReplicaLostError(f"The worker was lost before {what} ended.")
                if left <= 0:
                    raise TensairTimeoutError(f"{what} took longer than {seconds:g} s.")
                await asyncio.wait({call}, timeout=min(pause, left))
            return call.result()
        finally:
            call.cancel()

    @property
    def _through_scheduler(self) -> Any:
        return ProxyRPC(self._client.scheduler, self.place.address)

    def learn(self, block: Block) -> Awaitable[Outcome]:
        """Send a block; see `Replica.learn`."""
        return self.call("learn", block)

    def release(self) -> None:
        """Let Dask drop the actor."""
        self.future.release()


@dataclass(frozen=True)
class Delayed:
    """A replica that its worker has not begun to start, and why, as far as is known."""

    handle: ReplicaHandle
    why: str
