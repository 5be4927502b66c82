"""What travels between the driver and a contender: mini-batches, and acknowledgements.

A mini-batch is a frame: a header, then x as float32 and y as int64. Systems that read
only text get the same frame in base64, a line each. An acknowledgement says which
mini-batch was learned, when (`time.monotonic`, which all processes of a host share),
and with which loss.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
import threading
import time
from collections.abc import Iterator

import numpy as np

__all__ = [
    "ACK",
    "Acks",
    "Item",
    "data_socket",
    "frames",
    "from_frame",
    "from_line",
    "head",
    "line_of",
    "payload",
    "read_from",
    "sizes",
    "stream",
]

# Index, scheduled time, records, features.
_HEADER = struct.Struct("<QdII")
# Index, time when it was learned, loss.
ACK = struct.Struct("<Qdd")

Item = tuple[int, np.ndarray, np.ndarray]


def payload(x: np.ndarray, y: np.ndarray) -> bytes:
    """Return the part of a frame that depends on the mini-batch alone."""
    return x.astype("<f4").tobytes() + y.astype("<i8").tobytes()


def head(index: int, scheduled: float, x: np.ndarray) -> bytes:
    """Return the header of a frame."""
    return _HEADER.pack(index, scheduled, *x.shape)


def line_of(frame_part: bytes) -> bytes:
    """Encode a header or a payload for a line of text; headers need no padding."""
    return base64.b64encode(frame_part)


def sizes(header: bytes) -> tuple[int, int]:
    """Return the index of a header's mini-batch, and the bytes that follow it."""
    index, _, records, features = _HEADER.unpack(header)
    return index, records * (4 * features + 8)


def _item(header: bytes, body: bytearray | memoryview) -> Item:
    index, _, records, features = _HEADER.unpack(header)
    x = np.frombuffer(body, "<f4", records * features).reshape(records, features)
    return index, x, np.frombuffer(body, "<i8", records, 4 * records * features)


def from_frame(frame: bytes) -> Item:
    """Decode a whole frame."""
    return _item(frame[: _HEADER.size], memoryview(bytearray(frame))[_HEADER.size :])


def from_line(line: str | bytes) -> Item:
    """Decode a line of text."""
    return from_frame(base64.b64decode(line))


def _connect(name: str) -> socket.socket:
    """Connect to a port of the driver, which the environment names."""
    made = socket.create_connection(("127.0.0.1", int(os.environ[name])))
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return made


def data_socket() -> socket.socket:
    """Connect to where the driver sends mini-batches."""
    return _connect("OPEN_LOOP_DATA")


def _filled(source: socket.socket, size: int) -> bytearray | None:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        got = source.recv_into(view)
        if not got:
            return None
        view = view[got:]
    return buffer


def frames(source: socket.socket) -> Iterator[tuple[bytes, bytearray]]:
    """Read headers and what follows them until the driver closes the connection."""
    while (header := _filled(source, _HEADER.size)) is not None:
        body = _filled(source, sizes(bytes(header))[1])
        if body is None:
            return
        yield bytes(header), body


def stream(source: socket.socket) -> Iterator[Item]:
    """Read mini-batches until the driver closes the connection."""
    for header, body in frames(source):
        yield _item(header, body)


async def read_from(reader: asyncio.StreamReader) -> Item:
    """Read one mini-batch on an event loop."""
    header = await reader.readexactly(_HEADER.size)
    body = await reader.readexactly(sizes(header)[1])
    return _item(header, bytearray(body))


class Acks:
    """Tells the driver what was learned; may be used by several threads."""

    def __init__(self) -> None:
        self._socket = _connect("OPEN_LOOP_ACKS")
        self._lock = threading.Lock()

    def learned(self, index: int, loss: float) -> None:
        """Say that a mini-batch was learned just now."""
        with self._lock:
            self._socket.sendall(ACK.pack(index, time.monotonic(), loss))
