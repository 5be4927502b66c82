"""Ask workers what they have, and why they begin nothing."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from typing import Any

import dask
from distributed import Client

from tensair_dask import config
from tensair_dask.coordinator.code_transfer import UserModules, compare
from tensair_dask.errors import (
    ClusterError,
    NoWorkersError,
    PackageMissingError,
    SchedulerLostError,
)
from tensair_dask.observe.telemetry.counters import plain
from tensair_dask.replica.actor import Replica
from tensair_dask.replica.placement import WorkerFacts
from tensair_dask.replica.worker_departures import expect_replicas

__all__ = ["SHOWN", "address_of", "inspect", "look_around", "why_not_begun"]

logger = logging.getLogger(__name__)

# Workers, or tasks of one, that a message names.
SHOWN = 3

# Where batch systems tell a job its id.
JOB_IDS = ("SLURM_JOB_ID", "PBS_JOBID", "LSB_JOBID")


async def inspect(
    client: Client, modules: UserModules, addresses: Collection[str] | None
) -> list[WorkerFacts]:
    """Ask workers for their facts, and compare the user's modules with theirs."""
    if client.status != "running":
        raise SchedulerLostError(
            f"The client is {client.status}, not running: the scheduler at "
            f"{address_of(client)} cannot be reached. Connect a new client."
        )
    await _wait_for_a_worker(client)
    if addresses is None:
        addresses = list(await client.scheduler.ncores())
    answers = await _ask_around(client, modules, addresses)
    facts: list[WorkerFacts] = []
    for address, answer in answers.items():
        if isinstance(answer, ImportError):
            raise _package_missing(f"Worker {address}", answer)
        if isinstance(answer, OSError):
            logger.info("Worker %s is not there any more: %s", address, answer)
            continue
        if isinstance(answer, BaseException):
            raise ClusterError(
                f"Worker {address} cannot be used: {type(answer).__name__}: {answer}"
            ) from answer
        facts.append(answer[0])
        modules.take(answer[1])
    return facts


async def _ask_around(
    client: Client, modules: UserModules, addresses: Collection[str]
) -> dict[str, Any]:
    """Ask workers to look around; those that are silent for long are left out.

    Each apart, since one that is stopped would keep all others waiting.
    """
    begin = config.get_seconds("timeouts.begin")
    sent = modules.describe()
    asked = {
        address: asyncio.ensure_future(
            client.run(look_around, *sent, workers=[address], on_error="return")
        )
        for address in addresses
    }
    try:
        if asked:
            await asyncio.wait(asked.values(), return_when=asyncio.FIRST_COMPLETED)
            await asyncio.wait(asked.values(), timeout=begin)
        answers: dict[str, Any] = {}
        for address, work in asked.items():
            if not work.done():
                logger.warning(
                    "Worker %s does not answer: no replica is started there. Is its "
                    "process stopped, or its interpreter held by a long call?",
                    address,
                )
                continue
            try:
                answers.update(work.result())
            except ImportError as error:
                raise _package_missing("A worker", error) from error
        return answers
    finally:
        for work in asked.values():
            work.cancel()


async def why_not_begun(client: Client, address: str) -> str:
    """Say what keeps a worker from beginning a task."""
    scheduler = client.scheduler
    if address not in await scheduler.ncores_running():
        return (
            "is paused: it has too much in memory (Dask's "
            "distributed.worker.memory.pause), or was told to"
        )
    tasks = (await scheduler.processing(workers=[address]))[address]
    others = [str(each) for each in tasks if not str(each).startswith("tensair-")]
    if not others and (resources := dask.get_annotations().get("resources")):
        return (
            f"does not have the resources={plain(str(resources))} of dask.annotate, or "
            "has none of them left: make the trainer outside of that block, or start "
            "workers with them (dask worker --resources)"
        )
    if not others:
        return "has not begun, and nobody knows why: see its log"
    named = ", ".join(plain(each) for each in others[:SHOWN])
    more = f", and {len(others) - SHOWN} more" if len(others) > SHOWN else ""
    return f"is busy with {named}{more}"


async def _wait_for_a_worker(client: Client) -> None:
    seconds = config.get_seconds("timeouts.workers")
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        identity = await client.scheduler.identity()
        if identity["workers"]:
            return
        if asyncio.get_running_loop().time() >= deadline:
            raise NoWorkersError(
                f"The cluster at {address_of(client)} has no workers (waited "
                f"{seconds:g} s). Start some, for example: cluster.scale(2), or on the "
                f"command line: dask worker {address_of(client)}."
            )
        await asyncio.sleep(0.1)


def _package_missing(who: str, error: BaseException) -> PackageMissingError:
    return PackageMissingError(
        f"{who} cannot import what it needs: {error}. Install tensair_dask there, in "
        "the version that the client has: pip install tensair-dask."
    )


async def look_around(sources: Any, process: str, dask_worker: Any) -> Any:
    """Run on a worker: its facts, and how the client's modules compare with its own."""
    expect_replicas(dask_worker)
    # On the event loop, which changes them.
    state = dask_worker.state
    idle = len(state.executing) + len(state.ready) < state.nthreads
    actors = state.actors.values()
    devices = tuple(each.device for each in actors if isinstance(each, Replica))

    def look() -> tuple[WorkerFacts, Any]:
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
            idle,
            devices,
            dask_worker.status.name == "paused",
        )
        return facts, compare(sources, process)

    return await asyncio.get_running_loop().run_in_executor(None, look)


def address_of(client: Client) -> str:
    """Give the address of a client's scheduler, for people."""
    return client.scheduler.address if client.scheduler else "(no scheduler)"
