"""Train with this project; client, scheduler and workers are all counted.

The driver process holds the client, the scheduler and the source, all on one event
loop; each replica has a worker process of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psutil
import torch
from distributed import Client, LocalCluster
from streamz import Stream
from workloads import LEARNING_RATE, SEED, WORKLOADS, Pool, Workload, load_pool

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train

__all__ = [
    "Tally",
    "check_everything_learned",
    "cluster_of",
    "cpu_seconds",
    "feed",
    "one",
    "one_accuracy",
    "trainer_of",
    "training",
    "two",
    "two_accuracy",
    "worker_processes",
]


class Tally:
    """Sums up the reports as they come; cheap, because it runs for each of them."""

    def __init__(self) -> None:
        self.minibatches = 0
        self.loss = 0.0
        self.staleness = 0
        self.error: ta.errors.TensairError | None = None

    def add(self, report: ta.Report) -> None:
        """Count one report; an error is kept, because a sink must not raise."""
        if report.error is not None:
            self.error = report.error
        self.minibatches += 1
        self.loss += report.loss
        self.staleness += report.staleness

    def values(self) -> tuple[int, float, int]:
        """Return what was counted so far."""
        return self.minibatches, self.loss, self.staleness


@contextlib.asynccontextmanager
async def cluster_of(workers: int) -> AsyncIterator[Client]:
    """Start a cluster of so many worker processes on this machine."""
    async with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address=None,
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        yield client


def trainer_of(
    client: Client, workload: Workload, replicas: int, **options: Any
) -> ta.Trainer:
    """Make a trainer in the way a user would, with the defaults."""
    return ta.Trainer(
        client,
        model=workload.model,
        loss=torch.nn.functional.cross_entropy,
        optimizer=functools.partial(torch.optim.SGD, lr=LEARNING_RATE),
        replicas=replicas,
        seed=SEED,
        **options,
    )


@contextlib.asynccontextmanager
async def training(
    workload: Workload, replicas: int, **options: Any
) -> AsyncIterator[tuple[Client, ta.Trainer]]:
    """Start a cluster and a trainer."""
    async with (
        cluster_of(replicas) as client,
        trainer_of(client, workload, replicas, **options) as trainer,
    ):
        yield client, trainer


async def feed(source: Stream, pool: Pool, minibatches: int | None = None) -> None:
    """Emit the pool's mini-batches, cycled; an awaited `emit` is the back-pressure."""
    emitted = 0
    while True:
        for minibatch in pool:
            if emitted == minibatches:
                return
            await source.emit(minibatch)
            emitted += 1


def cpu_seconds(processes: list[psutil.Process]) -> float:
    """Sum up what processes have used of the CPU, in seconds."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system for t in times)


def _exchanged(
    before: dict[str, dict[str, float]],
    after: dict[str, dict[str, float]],
    seconds: float,
) -> list[dict[str, float]]:
    """What each replica sent in the window, and how old what it applied was."""
    answer = []
    for address, now in after.items():
        then = before[address]
        answer.append(
            {
                # Of the oldest gradient in each message: none was applied later.
                "age_mean_ms": 1e3 * now["age_mean"],
                "age_p95_ms": 1e3 * now["age_p95"],
                "age_max_ms": 1e3 * now["age_max"],
                "staleness_mean": now["staleness_mean"],
                "interval_ms": 1e3 * now["interval"],
                "cost_ms": 1e3 * now["cost"],
                "messages_per_second": (now["sent"] - then["sent"]) / seconds,
                "mb_per_second": (now["sent_bytes"] - then["sent_bytes"])
                / seconds
                / 1e6,
            }
        )
    return answer


def check_everything_learned(trainer: ta.Trainer, tally: Tally) -> None:
    """Refuse figures of a run that lost a mini-batch or a gradient."""
    if tally.error is not None:
        raise RuntimeError("A mini-batch was refused.") from tally.error
    versions = [replica.version for replica in trainer.replicas]
    if versions != [tally.minibatches] * len(versions):
        raise RuntimeError(
            f"{tally.minibatches} mini-batches were reported, but the replicas hold"
            f" {versions} gradients after the drain."
        )


async def worker_processes(client: Client) -> list[psutil.Process]:
    """Return the worker processes (without their nannies, which live in the driver)."""

    def pid() -> int:
        import os

        return os.getpid()

    return [psutil.Process(p) for p in (await client.run(pid)).values()]


async def _throughput(
    replicas: int, workload: str, path: Path, warmup: float, seconds: float
) -> dict[str, Any]:
    pool = load_pool(path)
    tally = Tally()
    async with training(WORKLOADS[workload], replicas) as (client, trainer):
        workers = await worker_processes(client)
        source = Stream(asynchronous=True)
        source.train(trainer).sink(tally.add)
        feeding = asyncio.create_task(feed(source, pool))
        await asyncio.wait([feeding], timeout=warmup)

        messages = await trainer.exchange_stats()
        before = tally.values()
        cpu, driver, start = (
            cpu_seconds(workers),
            time.process_time(),
            time.perf_counter(),
        )
        await asyncio.wait([feeding], timeout=seconds)
        elapsed = time.perf_counter() - start
        driver = time.process_time() - driver
        cpu = cpu_seconds(workers) - cpu
        after = tally.values()
        exchange = _exchanged(messages, await trainer.exchange_stats(), elapsed)

        if feeding.done():
            await feeding  # it never ends by itself: raise what it died of
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await trainer.drain()
        check_everything_learned(trainer, tally)

    count, loss, staleness = (b - a for a, b in zip(before, after, strict=True))
    return {
        "minibatches": count,
        "seconds": elapsed,
        "rate": count / elapsed,
        "loss": loss / count,
        "staleness": staleness / count,
        "cpu_us": 1e6 * (driver + cpu) / count,
        "client_scheduler_cpu_us": 1e6 * driver / count,
        "worker_cpu_us": 1e6 * cpu / count,
        "exchange": exchange,
    }


def _correct(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return (output.argmax(1) == target).float().mean()


async def _prequential(
    replicas: int, workload: str, path: Path, minibatches: int
) -> dict[str, Any]:
    reports: list[ta.Report] = []
    async with training(
        WORKLOADS[workload], replicas, metrics={"accuracy": _correct}
    ) as (_, trainer):
        source = Stream(asynchronous=True)
        source.train(trainer).sink(reports.append)
        await feed(source, load_pool(path), minibatches)
        await trainer.drain()
    failed = [report for report in reports if report.error is not None]
    if failed or len(reports) != minibatches:
        raise RuntimeError(
            f"{len(reports)} reports for {minibatches} mini-batches, of which"
            f" {len(failed)} with an error, the first: {failed[:1]}"
        )
    reports.sort(key=lambda report: report.index)
    scores = [float(report.metrics["accuracy"]) for report in reports]
    return {
        "accuracy": sum(scores) / len(scores),
        "scores": scores,
        "staleness": sum(report.staleness for report in reports) / minibatches,
    }


def _run(replicas: int, *args: Any) -> dict[str, Any]:
    return asyncio.run(_throughput(replicas, *args))


def _run_prequential(replicas: int, *args: Any) -> dict[str, Any]:
    return asyncio.run(_prequential(replicas, *args))


one = functools.partial(_run, 1)
two = functools.partial(_run, 2)
one_accuracy = functools.partial(_run_prequential, 1)
two_accuracy = functools.partial(_run_prequential, 2)
