"""The process that emits mini-batches on a schedule, and notes when they were learned.

It has a session of its own, so that no contender shares its scheduling group. It sends
what is due whether or not the contender keeps up: what the sockets do not take waits
here, and its scheduled time stands.
"""

from __future__ import annotations

import os
import select
import socket
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from open_loop import wire

__all__ = ["Driver", "serve"]

LEAD = 0.05  # seconds between the command and the first mini-batch
# A trial is given up when so many seconds of the stream wait, but not before so many
# mini-batches of each connection.
HOPELESS_SECONDS, HOPELESS_COUNT = 3.0, 96
SENDING = 256 * 1024  # bytes of the kernel's buffer; it holds some ten mini-batches


def _listening() -> socket.socket:
    made = socket.create_server(("127.0.0.1", 0))
    made.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SENDING)
    return made


class Outlet:
    """One connection to a contender, and what waits for it."""

    def __init__(self, accepted: socket.socket) -> None:
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        accepted.setblocking(False)
        self.socket = accepted
        self.waiting: deque[int] = deque()
        self._rest = memoryview(b"")

    @property
    def idle(self) -> bool:
        """Whether nothing waits."""
        return not self.waiting and not self._rest

    def send(self, frame: Any) -> None:
        """Send what waits, as far as the socket takes it."""
        try:
            while not self.idle:
                if not self._rest:
                    self._rest = memoryview(frame(self.waiting.popleft()))
                self._rest = self._rest[self.socket.send(self._rest) :]
        except BlockingIOError:
            pass


@dataclass
class Trial:
    """One schedule: what was due when, and when it was learned."""

    base: int
    rate: float
    size: int
    outstanding: int | None  # a closed loop: at most so many at once
    start: float = field(default_factory=lambda: time.monotonic() + LEAD)
    due: int = 0
    settled: int = 0
    twice: int = 0
    given_up: bool = False

    def __post_init__(self) -> None:
        self.learned = np.full(self.size, np.nan)
        self.loss = np.full(self.size, np.nan)

    def scheduled(self, index: int) -> float:
        """Return when a mini-batch is due."""
        return self.start + (index - self.base) / self.rate

    def due_at(self, now: float) -> int:
        """Return how many are due."""
        if self.outstanding is not None:
            return self.settled + self.outstanding
        return int((now - self.start) * self.rate) + 1 if now > self.start else 0

    def settle(self, index: int, learned: float, loss: float) -> None:
        """Note that a mini-batch was learned."""
        at = index - self.base
        if not 0 <= at < self.size:
            self.twice += 1
            return
        self.twice += bool(np.isfinite(self.learned[at]))
        self.settled += 1
        self.learned[at], self.loss[at] = learned, loss

    def result(self) -> dict[str, Any]:
        """Return all that was noted."""
        return {
            "start": self.start,
            "rate": self.rate,
            "learned": self.learned[: self.due],
            "loss": self.loss[: self.due],
            "given_up": self.given_up,
            "lost": int(np.isnan(self.learned[: self.due]).sum()),
            "twice": self.twice,
        }


class Driver:
    """Emits over its sockets; made in a process of its own by `serve`."""

    def __init__(self, pool: Path, connections: int, shards: int, text: bool) -> None:
        with np.load(pool) as arrays:
            self._x = arrays["x"]
            pairs = zip(arrays["x"], arrays["y"], strict=True)
            self._bodies = [wire.payload(x, y) for x, y in pairs]
        self._text = text
        if text:
            self._bodies = [wire.line_of(body) + b"\n" for body in self._bodies]
        self._connections, self._shards = connections, shards
        self._data, self._ack = _listening(), _listening()
        self.ports = tuple(each.getsockname()[1] for each in (self._data, self._ack))
        self._outlets: list[Outlet] = []
        self._inlets: dict[socket.socket, bytes] = {}
        self._next = 0
        self._trial = Trial(0, 1.0, 0, None)

    def accept(self, timeout: float) -> None:
        """Wait until the contender has opened its connections."""
        deadline = time.monotonic() + timeout
        while len(self._outlets) < self._connections:
            self._data.settimeout(max(0.01, deadline - time.monotonic()))
            self._outlets.append(Outlet(self._data.accept()[0]))

    def _frame(self, index: int) -> bytes:
        at = index % len(self._bodies)
        head = wire.head(index, self._trial.scheduled(index), self._x[at])
        return (wire.line_of(head) if self._text else head) + self._bodies[at]

    def _level(self, count: int) -> int:
        """Round up, so that each shard gets the same number."""
        return -(-count // self._shards) * self._shards

    def run(
        self, rate: float, seconds: float, drain: float, outstanding: int | None
    ) -> Trial:
        """Emit for so long, then wait until all is learned."""
        # In a closed loop the rate is only a bound on what fits.
        size = self._level(round(rate * seconds))
        self._trial = trial = Trial(self._next, rate, size, outstanding)
        deadline = trial.start + seconds + drain
        hopeless = max(HOPELESS_SECONDS * rate, HOPELESS_COUNT * self._connections)
        while (now := time.monotonic()) < deadline:
            self._emit(trial, min(size, trial.due_at(now)))
            if outstanding is None and trial.due - trial.settled > hopeless:
                trial.given_up = True
            if trial.given_up or now > trial.start + seconds:
                size = self._level(trial.due)
            if trial.settled >= trial.due == size:
                break
            self._wait(trial, size)
        self._next += trial.due
        return trial

    def _emit(self, trial: Trial, due: int) -> None:
        for at in range(trial.due, due):
            outlet = self._outlets[at % self._connections]
            outlet.waiting.append(trial.base + at)
            outlet.send(self._frame)
        trial.due = max(trial.due, due)

    def _wait(self, trial: Trial, size: int) -> None:
        """Wait for acknowledgements and room, until the next mini-batch is due."""
        timeout = 0.05
        if trial.due < size and trial.outstanding is None:
            until = trial.scheduled(trial.base + trial.due) - time.monotonic()
            timeout = min(timeout, max(0.0, until))
        readers = [self._ack, *self._inlets]
        full = {each.socket: each for each in self._outlets if not each.idle}
        readable, writable, _ = select.select(readers, list(full), [], timeout)
        for each in writable:
            full[each].send(self._frame)
        for each in readable:
            if each is self._ack:
                self._inlets[self._ack.accept()[0]] = b""
            else:
                self._note(each, trial)

    def _note(self, inlet: socket.socket, trial: Trial) -> None:
        received = inlet.recv(1 << 16)
        if not received:
            del self._inlets[inlet]
            return
        data = self._inlets[inlet] + received
        whole = len(data) - len(data) % wire.ACK.size
        for ack in wire.ACK.iter_unpack(data[:whole]):
            trial.settle(*ack)
        self._inlets[inlet] = data[whole:]


def serve(
    pipe: Connection, pool: Path, connections: int, shards: int, text: bool
) -> None:
    """Do what the pipe says, until it is closed."""
    os.setsid()
    driver = Driver(pool, connections, shards, text)
    pipe.send(driver.ports)
    try:
        driver.accept(pipe.recv())
        pipe.send("connected")
        while True:
            trial = driver.run(*pipe.recv())
            pipe.send(trial.result())
    except (EOFError, TimeoutError, ConnectionError):
        pass
