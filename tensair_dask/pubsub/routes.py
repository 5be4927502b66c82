"""The ways that deliveries take from a publisher to a subscription."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from tensair_dask.pubsub.neighbours import Connection
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.view import Member

if TYPE_CHECKING:
    from tensair_dask.pubsub.endpoint import Endpoint

__all__ = ["CommRoute", "SharedMemoryRoute"]

logger = logging.getLogger(__name__)

# Deliveries through shared memory that fail one after the other, before it is given up.
ATTEMPTS = 3


class CommRoute:
    """By Dask's comms, whatever they are; or within this process.

    Parameters
    ----------
    endpoint
        Of the publisher.
    sender, destination
        From whom to whom.
    """

    def __init__(self, endpoint: Endpoint, sender: Member, destination: Member) -> None:
        self._endpoint = endpoint
        self._sender = sender
        self._destination = destination

    @property
    def is_shared(self) -> bool:
        """Whether deliveries go through memory that both processes share."""
        return False

    async def send(self, number: int, parcels: list[Parcel]) -> str:
        """Bring a delivery to its destination and return the answer.

        Raises
        ------
        OSError
            If it is not known whether it arrived.
        """
        return await self._endpoint.send(
            self._sender, self._destination, number, parcels
        )

    def close(self) -> None:
        """Send nothing more."""


class SharedMemoryRoute(CommRoute):
    """Through shared memory where that can be had, else by Dask's comms.

    The other process is asked once, by Dask's comms, how to connect. It does not answer
    that where it runs on another machine, and cannot be connected to from another
    container, or by another user. Where the system does not give the memory, on either
    side, deliveries fail; after some in a row they go by Dask's comms.

    Parameters
    ----------
    endpoint, sender, destination
        As of a `CommRoute`.
    machine
        What the processes of this machine call it.
    """

    def __init__(
        self, endpoint: Endpoint, sender: Member, destination: Member, machine: str
    ) -> None:
        super().__init__(endpoint, sender, destination)
        self._machine = machine
        self._connection: Connection | None = None
        self._is_possible = True
        self._failures = 0
        self._closed = False

    @property
    def is_shared(self) -> bool:
        """Whether deliveries go through memory that both processes share."""
        return self._connection is not None and not self._connection.closed

    async def send(self, number: int, parcels: list[Parcel]) -> str:
        """As by Dask's comms; raises what those do."""
        if self._is_possible and not self.is_shared:
            self._connection = await self._connected()
        if self._connection is None:
            return await super().send(number, parcels)
        try:
            answer = await self._connection.deliver(
                self._destination.id, self._sender, number, parcels
            )
        except OSError as error:
            self._failed(error)
            raise
        except (TypeError, ValueError) as error:
            logger.debug("A delivery does not fit into shared memory: %r", error)
            return await super().send(number, parcels)
        self._failures = 0
        return answer

    def _failed(self, error: OSError) -> None:
        self._failures += 1
        if self._failures < ATTEMPTS or self._closed:
            return
        logger.warning(
            "Messages to %s go by Dask's comms from now on: %d deliveries through "
            "shared memory have failed, the last one with %r. If that is how it shall "
            "be, set tensair.pubsub.shared-memory: false",
            self._destination.address,
            self._failures,
            error,
        )
        self._connection, self._is_possible = None, False

    async def _connected(self) -> Connection | None:
        invitation: dict[str, Any] | None
        endpoint = self._endpoint
        worker = endpoint.node.rpc(self._destination.address)
        invitation = await worker.tensair_pubsub_invite(machine=self._machine)
        if invitation is not None and not self._closed:
            try:
                return Connection(endpoint.loop, invitation["name"], invitation["key"])
            except OSError as error:
                logger.debug("No shared memory with %s: %r", self._destination, error)
        self._is_possible = False
        return None

    def close(self) -> None:
        """Hang up."""
        self._closed = True
        if self._connection is not None:
            self._connection.close()
