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

    It is tried once: the other process is asked, by Dask's comms, how to connect. It
    does not answer that where it runs on another machine, and cannot be connected to
    from another container, or by another user.

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
            return await self._connection.deliver(
                self._destination.id, self._sender, number, parcels
            )
        except (TypeError, ValueError) as error:
            logger.debug("A delivery does not fit into shared memory: %r", error)
            return await super().send(number, parcels)

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
