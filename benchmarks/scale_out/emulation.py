"""A Dask cluster of emulated workers: several in a process, each with its own address.

Their steps sleep, so that few cores hold many of them; their parameters are real, and
their gradients travel as those of any replicas do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import multiprocessing
import os
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import dask
import psutil
import torch
from distributed import Client, Scheduler, Worker
from distributed.comm.tcp import TCP
from torch import nn

import tensair_dask  # noqa: F401  its defaults become known to dask.config

__all__ = ["Cluster", "Sleeping", "Usage", "emulated"]

LOCALHOST = "127.0.0.1"
PATIENCE = 60.0  # seconds for a process to start

# New processes are forked from one that has imported all of this: it takes seconds.
PRELOADED = [
    "distributed",
    "tensair_dask.replica.actor",
    "tensair_dask.streams",
    "torch._dynamo",
]


class Sleeping(nn.Module):
    """The 64-hidden-hidden-10 perceptron, whose forward pass sleeps first."""

    def __init__(self, hidden: int, seconds: float) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(64, hidden),
            nn.ReLU(),
            nn.Linear(hidden, hidden),
            nn.ReLU(),
            nn.Linear(hidden, 10),
        )
        self.seconds = seconds

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Sleep as long as a step of a larger model takes, and give scores."""
        time.sleep(self.seconds)
        return self.layers(x)


@dataclass(frozen=True)
class Usage:
    """What processes have used since they began: CPU seconds.

    Attributes
    ----------
    loop
        Of their event loops: each process has one, in its main thread.
    threads
        Of all other threads: those that train, and Dask's.
    """

    loop: float = 0.0
    threads: float = 0.0

    @classmethod
    def of(cls, process: psutil.Process) -> Usage:
        """Read what a process has used, to the microsecond, where it runs on Linux."""
        used = {}
        for task in Path(f"/proc/{process.pid}/task").iterdir():
            with contextlib.suppress(
                FileNotFoundError, ProcessLookupError
            ):  # has ended
                schedstat = (task / "schedstat").read_text(encoding="ascii")
                used[int(task.name)] = 1e-9 * int(schedstat.split()[0])
        loop = used[process.pid]
        return cls(loop, sum(used.values()) - loop)

    @property
    def total(self) -> float:
        """CPU seconds of all threads."""
        return self.loop + self.threads

    def __add__(self, other: Usage) -> Usage:
        return Usage(self.loop + other.loop, self.threads + other.threads)

    def __sub__(self, other: Usage) -> Usage:
        return Usage(self.loop - other.loop, self.threads - other.threads)


@dataclass(frozen=True)
class Cluster:
    """A running cluster, and what its processes take."""

    client: Client
    scheduler: psutil.Process
    workers: list[psutil.Process]

    def used_by_workers(self) -> Usage:
        """CPU of all worker processes since they began."""
        return sum(map(Usage.of, self.workers), Usage())

    def used_by_scheduler(self) -> float:
        """CPU seconds of the scheduler since it began."""
        return Usage.of(self.scheduler).total

    def memory(self) -> int:
        """Bytes of the worker processes; what they share is counted once."""
        return sum(process.memory_full_info().pss for process in self.workers)

    async def written(self) -> tuple[int, int]:
        """Bytes that the scheduler, and all workers, have written to Dask's comms."""
        scheduler = await self.client.run_on_scheduler(_bytes_written)
        # Workers of a process have one count.
        workers = await self.client.run(_bytes_written)
        return scheduler[1], sum(dict(workers.values()).values())


@contextlib.asynccontextmanager
async def emulated(
    workers: int, processes: int, shared_memory: bool
) -> AsyncIterator[Cluster]:
    """Start a scheduler, and so many workers in at most so many processes."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    settings = {"tensair.pubsub.shared-memory": shared_memory}
    names = [f"w{number}" for number in range(workers)]
    with contextlib.ExitStack() as stack, dask.config.set(settings):
        scheduler, address = _started(context, stack, _run_scheduler, settings)
        begun = [
            _begun(context, stack, _run_workers, settings, address, share)
            for share in (names[i::processes] for i in range(min(processes, workers)))
        ]
        for _, connection in begun:
            _answer(connection)
        async with Client(address, asynchronous=True) as client:
            yield Cluster(client, scheduler, [process for process, _ in begun])


def _begun(
    context: Any, stack: contextlib.ExitStack, target: Any, *arguments: Any
) -> tuple[psutil.Process, Connection]:
    """Begin a process that is killed when the stack unwinds."""
    here, there = context.Pipe()
    process = context.Process(target=target, args=(there, *arguments), daemon=True)
    process.start()
    there.close()
    stack.callback(process.join, PATIENCE)
    stack.callback(process.kill)
    return psutil.Process(process.pid), here


def _started(
    context: Any, stack: contextlib.ExitStack, target: Any, *arguments: Any
) -> tuple[psutil.Process, Any]:
    process, connection = _begun(context, stack, target, *arguments)
    return process, _answer(connection)


def _answer(connection: Connection) -> Any:
    if not connection.poll(PATIENCE):
        raise TimeoutError(f"A process did not start within {PATIENCE:.0f} s.")
    return connection.recv()


# ------------------------------------------------------------------- in the processes


def _run_scheduler(connection: Connection, settings: dict[str, Any]) -> None:
    async def run() -> None:
        async with Scheduler(
            host=LOCALHOST, port=0, dashboard=False, dashboard_address=None
        ) as scheduler:
            connection.send(scheduler.address)
            await scheduler.finished()

    _prepare(settings)
    asyncio.run(run())


def _run_workers(
    connection: Connection, settings: dict[str, Any], address: str, names: list[str]
) -> None:
    async def run() -> None:
        workers = [
            Worker(
                address,
                nthreads=1,
                name=name,
                host=LOCALHOST,
                dashboard_address=None,
                dashboard=False,
                memory_limit=0,
            )
            for name in names
        ]
        await asyncio.gather(*workers)
        connection.send(len(workers))
        await asyncio.gather(*(worker.finished() for worker in workers))

    _prepare(settings)
    asyncio.run(run())


_written = 0


def _prepare(settings: dict[str, Any]) -> None:
    """Configure this process, and count what it writes to Dask's comms."""
    dask.config.set(settings)
    logging.getLogger("distributed").setLevel(logging.WARNING)
    torch.set_num_threads(1)
    write = TCP.write

    async def counted(self: TCP, *args: Any, **kwargs: Any) -> int:
        global _written
        nbytes = await write(self, *args, **kwargs)
        _written += nbytes
        return nbytes

    TCP.write = counted


def _bytes_written() -> tuple[int, int]:
    return os.getpid(), _written
