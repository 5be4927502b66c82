"""Measure one contender of ``heterogeneous.py``; prints what it found as JSON."""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

__all__ = ["CONTENDERS"]

# Name -> what it is.
CONTENDERS = {
    "plain-fast": "plain PyTorch loop",
    "plain-slow": "plain PyTorch loop, slowed",
    "ddp-even": "DDP over gloo, 2 processes",
    "ddp-uneven": "DDP over gloo, one of 2 slowed",
    "replicas-fast": "tensair_dask, 1 replica",
    "replicas-slow": "tensair_dask, 1 replica, slowed",
    "replicas-even": "tensair_dask, 2 replicas",
    "replicas-uneven": "tensair_dask, one of 2 replicas slowed",
}

# In the environment of a worker that is to be slow: by how much.
SLOWDOWN = "TENSAIR_BENCHMARK_SLOWDOWN"


def _built(model: Callable[[], Any]) -> Any:
    """Build the model on a worker, as slow as that is to be."""
    from slowed import slow_down

    return slow_down(model(), float(os.environ.get(SLOWDOWN, "1")))


def _be_slow(slowdown: str) -> None:
    """Let the models that are built on this worker be slow."""
    # `os` of the worker: a method of `os.environ` would travel with a copy of it.
    import os

    os.environ[SLOWDOWN] = slowdown


class _Learned:
    """Counts the reports of each replica, and sums up their staleness."""

    def __init__(self) -> None:
        self.minibatches = 0
        self.error: Any = None
        self.count: dict[str, int] = defaultdict(int)
        self.staleness: dict[str, int] = defaultdict(int)
        self.stalest: dict[str, int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    def add(self, report: Any) -> None:
        """Count one."""
        self.error = self.error or report.error
        self.minibatches += 1
        self.count[report.replica] += 1
        self.seconds[report.replica] += report.seconds
        self.staleness[report.replica] += report.staleness
        if report.staleness > self.stalest[report.replica]:
            self.stalest[report.replica] = report.staleness


def _plain(slowdown: float, *args: Any) -> dict[str, float]:
    return importlib.import_module("baselines").plain(*args, slowdown)


def _ddp(slowdown: float, *args: Any) -> dict[str, float]:
    return importlib.import_module("baselines").ddp(*args, slowdown)


def _replicas(fast: int, slowdown: float, *args: Any) -> dict[str, Any]:
    return asyncio.run(_throughput(fast, slowdown, *args))


async def _throughput(
    fast: int, slowdown: float, name: str, path: Path, warmup: float, seconds: float
) -> dict[str, Any]:
    """Train on so many fast workers, and one that is slow if ``slowdown`` is not 1."""
    from dataclasses import replace

    from replicas import check_everything_learned, cluster_of, feed, trainer_of
    from streamz import Stream
    from workloads import WORKLOADS, load_pool

    pool, workload = load_pool(path), WORKLOADS[name]
    workload = replace(workload, model=functools.partial(_built, workload.model))
    replicas = fast + (slowdown > 1)
    learned = _Learned()
    async with cluster_of(replicas) as client:
        slow = ""
        if slowdown > 1:
            slow = max(await client.run(os.getpid))
            await client.run(_be_slow, str(slowdown), workers=[slow])
        async with trainer_of(client, workload, replicas) as trainer:
            source = Stream(asynchronous=True)
            source.train(trainer).sink(learned.add)
            feeding = asyncio.create_task(feed(source, pool))
            await asyncio.wait([feeding], timeout=warmup)

            # Whoever holds the sink changes nothing but where it counts.
            warm, start = dict(learned.count), time.perf_counter()
            stale, took = dict(learned.staleness), dict(learned.seconds)
            learned.stalest.clear()
            driver = time.process_time()
            await asyncio.wait([feeding], timeout=seconds)
            elapsed = time.perf_counter() - start
            driver = time.process_time() - driver
            count = {a: n - warm.get(a, 0) for a, n in learned.count.items()}
            each = {
                "slow" if address == slow else f"fast {number}": {
                    "learned": counted,
                    "rate": counted / elapsed,
                    "step_ms": 1e3
                    * (learned.seconds[address] - took.get(address, 0.0))
                    / max(1, counted),
                    "busy": (learned.seconds[address] - took.get(address, 0.0))
                    / elapsed,
                    "staleness": (learned.staleness[address] - stale.get(address, 0))
                    / max(1, counted),
                    "stalest": learned.stalest[address],
                }
                for number, (address, counted) in enumerate(sorted(count.items()))
            }
            if feeding.done():
                await feeding  # it never ends by itself: raise what it died of
            feeding.cancel()
            await asyncio.gather(feeding, return_exceptions=True)
            await trainer.drain()
            check_everything_learned(trainer, learned)
    total = sum(count.values())
    return {
        "minibatches": total,
        "seconds": elapsed,
        "rate": total / elapsed,
        "client_scheduler_cpu": driver / elapsed,
        "replicas": each,
    }


def _of(name: str, slowdown: float) -> Callable[..., dict[str, Any]]:
    return {
        "plain-fast": functools.partial(_plain, 1.0),
        "plain-slow": functools.partial(_plain, slowdown),
        "ddp-even": functools.partial(_ddp, 1.0),
        "ddp-uneven": functools.partial(_ddp, slowdown),
        "replicas-fast": functools.partial(_replicas, 1, 1.0),
        "replicas-slow": functools.partial(_replicas, 0, slowdown),
        "replicas-even": functools.partial(_replicas, 2, 1.0),
        "replicas-uneven": functools.partial(_replicas, 1, slowdown),
    }[name]


@click.command(help=__doc__)
@click.argument("contender", type=click.Choice(list(CONTENDERS)))
@click.option("--workload", default="cnn", show_default=True)
@click.option("--pool", required=True, type=Path, help="Mini-batches.")
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=6.0, show_default=True, help="Measured window.")
@click.option("--slowdown", default=3.0, show_default=True)
def main(
    contender: str,
    workload: str,
    pool: Path,
    warmup: float,
    seconds: float,
    slowdown: float,
) -> None:
    measure = _of(contender, slowdown)
    click.echo(json.dumps(measure(workload, pool, warmup, seconds)))


if __name__ == "__main__":
    main()
