"""Deliveries from other processes of this machine, through memory that is shared."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

from tensair_dask.pubsub.link import GONE, OK
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.slot import Slot, pack

__all__ = ["Connection", "Neighbours", "running_system"]

logger = logging.getLogger(__name__)

# A delivery: its number, and the bytes of the header in the slot. Where the slot is a
# new one, its file comes with it.
_TOKEN = struct.Struct("<QQ")
# An answer: the number of the delivery, and whether the subscription is gone.
_ANSWER = struct.Struct("<Q?")
_KEY_BYTES = 16
_CREDENTIALS = struct.Struct("3i")  # of Linux: process, user, group

Deliver = Callable[[str, "list[Any]", int, "list[Parcel]"], Awaitable[str]]
Spawn = Callable[[Coroutine[Any, Any, None]], "asyncio.Task[None]"]


def running_system() -> str:
    """Name the running system: containers on it have the same, and other machines not.

    Raises
    ------
    OSError
        If the system does not tell.
    """
    return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()


class Neighbours:
    """Takes deliveries of other processes of the same user, on the same machine.

    A neighbour asks for name and key by Dask's comms (`invitation`), so that only those
    can connect who may call this process; the kernel says whose process it is. The
    socket is an abstract one of Linux: no file is left of it.

    Parameters
    ----------
    loop
        On which deliveries are taken.
    deliver
        Takes a delivery, and returns the answer. The frames are memory of the sender,
        which it uses again once it has the answer.
    spawn
        Starts a task that its owner cancels when the process goes.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, deliver: Deliver, spawn: Spawn
    ) -> None:
        self._loop = loop
        self._deliver = deliver
        self._spawn = spawn
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._name = f"\0tensair-{secrets.token_hex(16)}"
        self._guests: set[_Guest] = set()
        self._socket = _socket()
        try:
            self._socket.bind(self._name)
            self._socket.listen()
            loop.add_reader(self._socket, self._accept)
        except BaseException:
            self._socket.close()
            raise

    @property
    def invitation(self) -> dict[str, Any]:
        """What a neighbour needs to connect."""
        return {"name": self._name, "key": self._key}

    def _accept(self) -> None:
        try:
            connection, _ = self._socket.accept()
        except OSError:
            return
        connection.setblocking(False)
        if not _is_own(connection):
            connection.close()
            return
        self._guests.add(_Guest(self, connection))

    @property
    def connections(self) -> int:
        """How many neighbours are connected."""
        return len(self._guests)

    def hang_up(self) -> None:
        """End all connections: deliveries under way are repeated by new ones."""
        for guest in list(self._guests):
            guest.close()

    def close(self) -> None:
        """Take no more deliveries, and answer none of those that were taken."""
        if self._socket.fileno() >= 0:
            self._loop.remove_reader(self._socket)
            self._socket.close()
        self.hang_up()


class _Guest:
    """The receiving end of one connection."""

    def __init__(self, host: Neighbours, connection: socket.socket) -> None:
        self._host = host
        self._socket = connection
        self._slot: Slot | None = None
        self._knows_key = False
        host._loop.add_reader(connection, self._read)

    def _read(self) -> None:
        try:
            packet, files, _, _ = socket.recv_fds(self._socket, _TOKEN.size, 1)
        except BlockingIOError:
            return
        except OSError:
            packet, files = b"", []
        try:
            self._take(packet, files)
        except Exception as error:
            if packet:
                logger.debug("A neighbour is not understood: %r", error)
            self.close()

    def _take(self, packet: bytes, files: list[int]) -> None:
        if files:
            self._slot = Slot.received(files[0])
        if not self._knows_key:
            if not hmac.compare_digest(packet, self._host._key):
                raise OSError("it does not know the key")
            self._knows_key = True
            return
        number, length = _TOKEN.unpack(packet)
        assert self._slot is not None
        header, frames = self._slot.read(length)
        parcels = [
            Parcel.sealed(sealed, found)
            for (sealed, _), found in zip(header["parcels"], frames, strict=True)
        ]
        self._host._spawn(
            self._handle(header["subscription"], header["sender"], number, parcels)
        )

    async def _handle(
        self, subscription: str, sender: Any, number: int, parcels: list[Parcel]
    ) -> None:
        answer = await self._host._deliver(subscription, sender, number, parcels)
        try:
            self._socket.send(_ANSWER.pack(number, answer == GONE))
        except OSError:  # it is asked again, by another connection
            self.close()

    def close(self) -> None:
        """Hang up; what is being handled is handled."""
        self._host._guests.discard(self)
        if self._socket.fileno() >= 0:
            self._host._loop.remove_reader(self._socket)
            self._socket.close()


class Connection:
    """The sending end: one delivery at a time.

    Parameters
    ----------
    loop
        On which answers are taken.
    name, key
        Of the neighbour's `invitation`.

    Raises
    ------
    OSError
        If it cannot be reached, or belongs to another user.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str, key: bytes) -> None:
        self._loop = loop
        self._slot: Slot | None = None
        self._answer: asyncio.Future[tuple[int, bool]] | None = None
        self._socket = _socket()
        try:
            self._socket.connect(name)
            if not _is_own(self._socket):
                raise OSError("The neighbour is of another user.")
            self._socket.send(key)
            loop.add_reader(self._socket, self._read)
        except BaseException:
            self._socket.close()
            raise

    async def deliver(
        self, subscription: str, sender: Any, number: int, parcels: list[Parcel]
    ) -> str:
        """Bring a delivery to its subscription, and return the answer.

        Raises
        ------
        OSError
            If it is not known whether it arrived. The connection is closed then.
        TypeError, ValueError
            If its headers cannot be packed; nothing was sent.
        """
        header, frames, nbytes = pack(
            [parcel.seal() for parcel in parcels],
            subscription=subscription,
            sender=list(sender),
        )
        answer = self._answer = self._loop.create_future()
        try:
            self._send(number, header, frames, nbytes)
            answered, is_gone = await answer
            if answered != number:
                raise OSError("A neighbour has answered to another delivery.")
        except BaseException:
            # The slot may be the neighbour's still: it is not written to again.
            self.close()
            raise
        return GONE if is_gone else OK

    def _send(self, number: int, header: bytes, frames: list[Any], nbytes: int) -> None:
        token = _TOKEN.pack(number, len(header))
        if self._slot is not None and nbytes <= self._slot.nbytes:
            self._slot.write(header, frames)
            self._socket.send(token)
            return
        self._slot, file = Slot.made(nbytes)
        try:
            self._slot.write(header, frames)
            socket.send_fds(self._socket, [token], [file])
        finally:
            os.close(file)

    def _read(self) -> None:
        try:
            packet = self._socket.recv(_ANSWER.size)
            answered = _ANSWER.unpack(packet)
        except BlockingIOError:
            return
        except (OSError, struct.error):
            self.close()
            return
        if self._answer is not None and not self._answer.done():
            self._answer.set_result(answered)

    @property
    def closed(self) -> bool:
        """Whether it is of no more use."""
        return self._socket.fileno() < 0

    def close(self) -> None:
        """Hang up; a delivery under way raises OSError."""
        if self.closed:
            return
        self._loop.remove_reader(self._socket)
        self._socket.close()
        self._slot = None
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(OSError("The neighbour has hung up."))
            # Whoever waited for it may have been cancelled.
            self._answer.exception()


def _socket() -> socket.socket:
    made = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    made.setblocking(False)
    return made


def _is_own(connection: socket.socket) -> bool:
    """Whether the other end is a process of the same user."""
    told = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size
    )
    _, user, _ = _CREDENTIALS.unpack(told)
    return user == os.geteuid()
