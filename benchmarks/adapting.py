"""What scoring and drift detection cost per mini-batch, while training at full speed.

Three trainers of the same model live on the same workers: bare; with a detector; with
a detector and a metric. They take turns in short windows, in the one order and then in
the other, so that what disturbs the machine for longer than a window disturbs all. CPU
is that of client, scheduler and workers together; both cores are taken, so throughput
is what CPU a mini-batch leaves, with less noise.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import torch
from measure import Load, Spread, environment
from replicas import (
    Tally,
    check_everything_learned,
    cluster_of,
    cpu_seconds,
    trainer_of,
    worker_processes,
)
from report import QUIET_CORES, table
from streamz import Stream
from workloads import WORKLOADS, Pool, load_pool

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train
from tensair_dask.adaptation import Convergence, Modes, as_policy
from tensair_dask.drift import OPTWIN
from tensair_dask.drift.watch import as_watch

KEPT_AT_LEAST = 0.97

VARIANTS: dict[str, dict[str, Any]] = {
    "bare": {},
    "detector": {"detector": "optwin"},
    "detector and metric": {
        "detector": "optwin",
        "metrics": {"accuracy": ta.metrics.accuracy},
    },
}


class Contender:
    """One trainer, and what it has learned."""

    def __init__(
        self, trainer: ta.Trainer, pool: Pool, processes: list[psutil.Process]
    ) -> None:
        self.trainer = trainer
        self.processes = [psutil.Process(), *processes]
        self.tally = Tally()
        self.source = Stream(asynchronous=True)
        self.source.train(trainer).sink(self.tally.add)
        self.batches = cycle(pool)

    async def learn(self, seconds: float) -> tuple[float, float]:
        """Learn for so long, to the last report.

        Returns
        -------
        speed, cpu
            Mini-batches a second, and microseconds of CPU for each.
        """
        before, start = self.tally.minibatches, time.perf_counter()
        cpu = cpu_seconds(self.processes)
        while time.perf_counter() < start + seconds:
            for _ in range(50):
                await self.source.emit(next(self.batches))
        await self.trainer.drain()
        learned = self.tally.minibatches - before
        cpu = cpu_seconds(self.processes) - cpu
        return learned / (time.perf_counter() - start), 1e6 * cpu / learned


async def measure(
    workload: str, replicas: int, rounds: int, warmup: float, seconds: float
) -> list[dict[str, tuple[float, float]]]:
    """Give speed and CPU of each variant in each round."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.npz"
        WORKLOADS[workload].write_pool(path)
        pool = load_pool(path)
    async with contextlib.AsyncExitStack() as opened:
        client = await opened.enter_async_context(cluster_of(replicas))
        processes = await worker_processes(client)
        contenders = {}
        for name, options in VARIANTS.items():
            trainer = trainer_of(client, WORKLOADS[workload], replicas, **options)
            await opened.enter_async_context(trainer)
            contenders[name] = Contender(trainer, pool, processes)
        for contender in contenders.values():
            await contender.learn(warmup)
        found = []
        for number in range(rounds):
            order = list(contenders)
            if number % 2:
                order.reverse()
            found.append(
                {name: await contenders[name].learn(seconds) for name in order}
            )
        for contender in contenders.values():
            check_everything_learned(contender.trainer, contender.tally)
    return found


def alone(repeats: int = 7) -> list[list[str]]:
    """Time what is added, by itself: the quickest of some repeats, in microseconds."""
    modes = Modes(
        "always",
        OPTWIN(),
        Convergence(),
        as_policy("train"),
        as_watch("loss", {}),
        reorder=10_000,
    )
    losses = np.random.default_rng(0).gamma(4, 0.25, 20_000 * repeats).tolist()
    reports = [ta.Report(at, loss, {}, 64) for at, loss in enumerate(losses)]
    scores, classes = torch.randn(64, 10), torch.randint(0, 10, (64,))

    def watch(number: int) -> int:
        part = reports[20_000 * number : 20_000 * (number + 1)]
        for report in part:
            for _ in modes.observe(report.index, report, report.index + 1):
                pass
        return len(part)

    def measure_accuracy(number: int) -> int:
        for _ in range(3000):
            ta.metrics.accuracy(scores, classes)
        return 3000

    def quickest(function: Callable[[int], int]) -> str:
        found = []
        for number in range(repeats):
            start = time.perf_counter()
            count = function(number)
            found.append(1e6 * (time.perf_counter() - start) / count)
        return f"{min(found):.1f}"

    torch.set_num_threads(1)
    return [
        ["reordering, detector, mode (client)", quickest(watch)],
        ["accuracy of 64 samples (replica)", quickest(measure_accuracy)],
    ]


def _ratio(pair: Sequence[dict[str, tuple[float, float]]], name: str, of: int) -> float:
    return statistics.fmean(each[name][of] / each["bare"][of] for each in pair)


@click.command(help=__doc__)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="85k")
@click.option("--replicas", default=2, show_default=True)
@click.option("--rounds", default=16, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=3.0, show_default=True, help="Of a window.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(
    workload: str,
    replicas: int,
    rounds: int,
    warmup: float,
    seconds: float,
    markdown: bool,
) -> None:
    load = Load()
    found = asyncio.run(measure(workload, replicas, rounds, warmup, seconds))
    others = load.stop()["other_cores"]
    rows = []
    for name in VARIANTS:
        speed = Spread.of([each[name][0] for each in found])
        cpu = Spread.of([each[name][1] for each in found])
        # Two rounds of opposite order make one ratio: what drifts in between cancels.
        pairs = list(zip(found[::2], found[1::2], strict=False))
        kept = Spread.of([_ratio(pair, name, 0) for pair in pairs])
        more = Spread.of([_ratio(pair, name, 1) for pair in pairs])
        met = ""
        if name == "detector and metric":
            met = "yes" if 1 / more.median >= KEPT_AT_LEAST else "NO"
        rows.append(
            [
                name,
                f"{speed.median:,.0f} ({speed.low:,.0f} to {speed.high:,.0f})",
                f"{kept.median:.3f} ({kept.low:.3f} to {kept.high:.3f})",
                f"{cpu.median:,.0f} ({cpu.low:,.0f} to {cpu.high:,.0f})",
                f"{more.median:.3f} ({more.low:.3f} to {more.high:.3f})",
                met,
            ]
        )
    print(json.dumps(environment()))
    title = f"{workload}, {replicas} replicas, {rounds} windows of {seconds:g} s each"
    wanted = f"throughput that CPU leaves >= {KEPT_AT_LEAST:g}"
    header = ["", "mini-batches/s", "of bare", "CPU, us", "of bare", wanted]
    print(table(title, header, rows, markdown))
    print(table("Taken alone", ["", "us"], alone(), markdown))
    print(f"CPU of others: {others:.2f} cores (disturbed above {QUIET_CORES}).")


if __name__ == "__main__":
    main()
