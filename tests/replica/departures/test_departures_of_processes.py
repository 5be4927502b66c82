"""Real processes: scaling down, walltime and signals while replicas learn."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator

import psutil
import pytest
from departing import FleetOf, Steady, until
from distributed import Client, LocalCluster, Worker
from helpers import linear_data

from tensair_dask.coordinator.scheduler_plugin import install

pytestmark = pytest.mark.processes

DASK = [sys.executable, "-m", "dask"]
LOCAL = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
EACH = 300  # mini-batches for each replica: 1.5 s of work at least


def report(what: str, begin: float) -> None:
    print(f"{what}: {time.monotonic() - begin:.2f} s")


@contextlib.asynccontextmanager
async def learning(
    client: Client, addresses: list[str]
) -> AsyncIterator[tuple[FleetOf, Callable[[], asyncio.Future]]]:
    """Replicas that learn; the context begins when a good part is still to come."""
    fleet = await FleetOf(client, addresses, model=Steady).start()
    data = linear_data(EACH * len(addresses))
    feeding = asyncio.gather(
        *(
            fleet.feed(data[EACH * each : EACH * (each + 1)], each)
            for each in range(len(addresses))
        )
    )
    await until(lambda: len(fleet.learned) > 50)
    yield fleet, lambda: feeding
    await feeding
    assert len(fleet.learned) == len(data)
    fleet.release()


async def addresses(client: Client) -> dict[str, str]:
    """Addresses of the workers by name, and in the order of their names."""
    workers = (await client.scheduler.identity())["workers"]
    found = {str(info["name"]): address for address, info in workers.items()}
    return dict(sorted(found.items()))


async def gone(client: Client, address: str) -> None:
    end = time.monotonic() + 30
    while address in (await addresses(client)).values():
        assert time.monotonic() < end, "the worker stays"
        await asyncio.sleep(0.01)


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(
        n_workers=3, threads_per_worker=1, dashboard_address="127.0.0.1:0"
    ) as cluster:
        yield cluster


def connected(cluster: LocalCluster) -> Client:
    return Client(cluster.scheduler_address, asynchronous=True)


def test_scaling_down_loses_nothing(cluster):
    async def run() -> None:
        async with connected(cluster) as client:
            await install(client)
            workers = list((await addresses(client)).values())
            async with learning(client, workers) as (fleet, feeding):
                begin = time.monotonic()
                cluster.scale(2)
                await gone(client, workers[2])
                report("cluster.scale", begin)
                await feeding()
                await fleet.check([0, 1])

    asyncio.run(run())


def test_scaling_down_without_the_guard_loses_nothing_either(cluster):
    async def run() -> None:
        async with connected(cluster) as client:
            workers = list((await addresses(client)).values())
            async with learning(client, workers) as (fleet, feeding):
                begin = time.monotonic()
                cluster.scale(2)
                await gone(client, workers[2])
                report("cluster.scale, no guard", begin)
                await feeding()
                await fleet.check([0, 1])

    asyncio.run(run())


def test_adaptive_scaling_closes_only_the_worker_without_a_replica(cluster):
    async def run() -> None:
        async with connected(cluster) as client:
            await install(client)
            workers = list((await addresses(client)).values())
            async with learning(client, workers[:2]) as (fleet, feeding):
                begin = time.monotonic()
                adaptive = cluster.adapt(
                    minimum=0, maximum=3, interval="50ms", wait_count=2
                )
                await gone(client, workers[2])
                report("cluster.adapt", begin)
                await feeding()
                rounds = []
                target = adaptive.target

                async def counted() -> int:
                    rounds.append(await target())
                    return rounds[-1]

                adaptive.target = counted
                await until(lambda: len(rounds) > 10)
                adaptive.stop()
                await fleet.check([0, 1])
                assert list((await addresses(client)).values()) == workers[:2]

    asyncio.run(run())


def test_closing_the_cluster_with_replicas_in_it_is_quick(cluster):
    async def run() -> None:
        async with connected(cluster) as client:
            await install(client)
            fleet = FleetOf(client, list((await addresses(client)).values()))
            await fleet.start()
            await asyncio.gather(*(fleet.learn(linear_data(5), n) for n in range(3)))
            begin = time.monotonic()
            await asyncio.to_thread(cluster.close)
            report("cluster.close", begin)
            assert time.monotonic() - begin < 8

    asyncio.run(run())


@pytest.fixture
def scheduler() -> Iterator[str]:
    """A scheduler's address."""
    process = subprocess.Popen(
        [*DASK, "scheduler", "--port", "0", *LOCAL],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    address = ""
    while not address:
        line = process.stderr.readline()
        assert line, "the scheduler did not start"
        if "Scheduler at:" in line:
            address = line.rpartition(" ")[2].strip()
    try:
        yield address
    finally:
        process.terminate()
        process.wait(30)
        process.stderr.close()


@contextlib.contextmanager
def worker_of(scheduler: str, name: str, *options: str) -> Iterator[psutil.Popen]:
    process = psutil.Popen(
        [
            *DASK,
            "worker",
            scheduler,
            "--name",
            name,
            "--nthreads",
            "1",
            *LOCAL,
            *options,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
        process.wait(30)


async def serve(scheduler: str, name: str) -> None:
    async with Worker(scheduler, name=name, nthreads=1, host="127.0.0.1") as worker:
        await worker.finished()


def be_a_worker(scheduler: str, name: str) -> None:
    asyncio.run(serve(scheduler, name))


@contextlib.contextmanager
def forked_worker_of(scheduler: str, name: str) -> Iterator[None]:
    """Start a worker that only stays, in a process that has imported torch."""
    context = multiprocessing.get_context("forkserver")
    process = context.Process(target=be_a_worker, args=(scheduler, name))
    process.start()
    try:
        yield
    finally:
        process.terminate()
        process.join(30)
        process.close()


def to_itself(process: psutil.Popen) -> None:
    process.terminate()


def to_its_group(process: psutil.Popen) -> None:
    """As a batch system does."""
    os.killpg(process.pid, signal.SIGTERM)


def to_its_worker(process: psutil.Popen) -> None:
    for child in process.children(recursive=True):
        if "spawn_main" in " ".join(child.cmdline()):
            child.terminate()


@pytest.mark.parametrize(
    ("nanny", "send"),
    [
        ("--nanny", to_itself),
        ("--nanny", to_its_group),
        ("--nanny", to_its_worker),
        ("--no-nanny", to_itself),
    ],
)
def test_sigterm_loses_nothing(scheduler, nanny, send):
    async def run(process: psutil.Popen) -> None:
        async with Client(scheduler, asynchronous=True) as client:
            await client.wait_for_workers(3, timeout=30)
            workers = list((await addresses(client)).values())
            async with learning(client, workers) as (fleet, feeding):
                begin = time.monotonic()
                send(process)
                await gone(client, workers[2])
                report(f"SIGTERM {nanny} {send.__name__}", begin)
                if send is not to_its_worker:  # whose nanny starts another
                    await asyncio.to_thread(process.wait, 30)
                    report("... and its process", begin)
                await feeding()
                await fleet.check([0, 1])

    with (
        forked_worker_of(scheduler, "a"),
        forked_worker_of(scheduler, "b"),
        worker_of(scheduler, "c", nanny) as process,
    ):
        asyncio.run(run(process))


async def end_of_a_lifetime(client: Client, scheduler: str, lifetime: float) -> bool:
    """See a worker off that ends by itself; False if it did before it could learn."""
    begin = time.monotonic()
    with worker_of(scheduler, "c", "--lifetime", f"{lifetime:g}s") as process:
        await client.wait_for_workers(3, timeout=60)
        workers = list((await addresses(client)).values())
        fleet = FleetOf(client, workers, f"run-{lifetime:g}", model=Steady)
        try:
            await fleet.start()
        except OSError:
            fleet.release()
            if lifetime > 100:
                raise
            return False
        data = iter(linear_data(100_000))

        async def feed(number: int) -> None:
            while workers[2] in (await addresses(client)).values():
                await fleet.feed([next(data) for _ in range(40)], number)

        await asyncio.gather(*(feed(number) for number in range(3)))
        report(f"--lifetime {lifetime:g}s, from its start", begin)
        await asyncio.to_thread(process.wait, 30)
        report("... and its process", begin)
        await fleet.check([0, 1])
        fleet.release()
    return True


def test_the_end_of_a_lifetime_loses_nothing(scheduler):
    async def run() -> None:
        async with Client(scheduler, asynchronous=True) as client:
            begin = time.monotonic()
            await install(client)
            await client.wait_for_workers(2, timeout=60)
            await client.run(importlib.import_module, "tensair_dask.replica.actor")
            # It counts from the start of its process, which must come to learn first.
            lifetime = max(12.0, 3 * (time.monotonic() - begin))
            while not await end_of_a_lifetime(client, scheduler, lifetime):
                lifetime *= 2

    with worker_of(scheduler, "a"), worker_of(scheduler, "b"):
        asyncio.run(run())
