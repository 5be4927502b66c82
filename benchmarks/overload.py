"""Minutes of a stream that is twice as fast as it can be learned: memory, and counts.

A source offers mini-batches at twice the rate that two replicas sustain, which is
measured first. With the policy "block" the awaited ``emit`` holds the source back; with
"drop-oldest" and "sample" the stream drops what is too much. Client, scheduler and both
workers are processes of their own, and their memory (RSS) is looked at once a second.
So are the counts: what was emitted must be learned, refused, dropped or waiting.

Every policy runs in a fresh client process with a fresh cluster. Nothing is asserted.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from concurrent.futures import ProcessPoolExecutor
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from distributed import Client
from distributed.deploy.subprocess import SubprocessCluster
from measure import Load, environment
from replicas import cpu_seconds, trainer_of
from report import QUIET_CORES, table
from streamz import Stream
from streamz.core import RefCounter
from workloads import WORKLOADS, Pool, load_pool

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train

POLICIES = ("block", "drop-oldest", "sample")
GROWTH_AT_MOST = 1.05

# One of so many mini-batches is broken, so that some are refused. Those that are kept
# (dead-letters) reach their bound soon, and do not look like a leak later.
BROKEN_EVERY = 100

# The source looks so often, in seconds, how much is due.
TICK = 0.005


def supported() -> list[str]:
    """Which policies this version of the package has."""
    options = inspect.signature(tensair_dask.streams.train).parameters
    return [each for each in POLICIES if each == "block" or "overload" in options]


def window_of(minutes: float) -> float:
    """Seconds whose mean is compared: a minute, or a quarter of a short run."""
    return min(60.0, minutes * 60 / 4)


class Source:
    """Gives fresh mini-batches, as a source that reads them would, and counts them.

    Attributes
    ----------
    emitted
        How many were given, also one whose ``emit`` has not returned.
    held
        How many of these the stream has not let go of.
    """

    def __init__(self, pool: Pool) -> None:
        self._pool = cycle(pool)
        self.emitted = 0
        self.held = 0

    def _released(self) -> None:
        self.held -= 1

    async def emit(self, stream: Stream) -> None:
        """Emit one."""
        x, y = next(self._pool)
        # Copies, for what is kept by mistake must show in the memory.
        x, y = x.copy(), y.copy()
        self.emitted += 1
        self.held += 1
        if self.emitted % BROKEN_EVERY == 0:
            x[0, 0] = np.nan
        counter = RefCounter(initial=1, cb=self._released, loop=stream.loop)
        try:
            await stream.emit((x, y), metadata=[{"ref": counter}])
        finally:
            counter.release()

    async def offer(self, stream: Stream, rate: float, seconds: float) -> None:
        """Emit as many a second as ``rate`` says, as far as the stream allows it."""
        begin, first = time.monotonic(), self.emitted
        while (passed := time.monotonic() - begin) < seconds:
            while self.emitted - first < rate * passed:
                await self.emit(stream)
                if time.monotonic() - begin >= seconds:
                    return
            await asyncio.sleep(TICK)


class Reports:
    """Counts what was learned, and what was refused."""

    def __init__(self) -> None:
        self.learned = self.refused = 0

    def add(self, report: ta.Report) -> None:
        """Count one."""
        if report.error is None:
            self.learned += 1
        else:
            self.refused += 1


class Watch:
    """Looks once a second at the memory of processes, and at the counts."""

    def __init__(
        self,
        processes: dict[str, psutil.Process],
        trainer: ta.Trainer,
        source: Source,
        reports: Reports,
    ) -> None:
        self._processes = processes
        self._trainer = trainer
        self._source = source
        self._reports = reports
        self.rows: list[dict[str, float]] = []

    def counts(self) -> dict[str, int]:
        """Tell where all that was emitted is, at this moment."""
        return {
            "emitted": self._source.emitted,
            "learned": self._reports.learned,
            "refused": self._reports.refused,
            "dropped": getattr(self._trainer, "dropped", 0),
            "waiting": self._trainer.backlog,
        }

    def look(self, moment: float) -> None:
        """Add a row."""
        memory = {name: one.memory_info().rss for name, one in self._processes.items()}
        lag = self._trainer.lag
        self.rows.append({"time": moment, "lag": lag, **memory, **self.counts()})

    async def run(self) -> None:
        """Look until it is cancelled."""
        begin = time.monotonic()
        while True:
            self.look(time.monotonic() - begin)
            await asyncio.sleep(max(0.0, begin + len(self.rows) - time.monotonic()))


def missing(counts: dict[str, Any]) -> int:
    """How many mini-batches are nowhere; negative if some are counted twice."""
    known = ("learned", "refused", "dropped", "waiting")
    return int(counts["emitted"] - sum(counts[one] for one in known))


@contextlib.asynccontextmanager
async def cluster() -> AsyncIterator[tuple[Client, dict[str, psutil.Process]]]:
    """Start a scheduler and two workers, each a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        starting = SubprocessCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address="127.0.0.1:0",
            scheduler_kwargs={"scheduler_file": f"{folder}/scheduler.json"},
            worker_kwargs={"dashboard_address": "127.0.0.1:0"},
            asynchronous=True,
        )
        async with starting as dask, Client(dask, asynchronous=True) as client:
            await client.wait_for_workers(2)
            pids = {
                "client": os.getpid(),
                "scheduler": await client.run_on_scheduler(os.getpid),
            }
            workers = sorted((await client.run(os.getpid)).values())
            pids |= {f"worker {n}": pid for n, pid in enumerate(workers, 1)}
            yield client, {name: psutil.Process(pid) for name, pid in pids.items()}


async def overload(
    policy: str, workload: str, path: Path, minutes: float, factor: float, warmup: float
) -> dict[str, Any]:
    """Learn under overload; tell what was seen."""
    source, reports = Source(load_pool(path)), Reports()
    async with (
        cluster() as (client, processes),
        trainer_of(client, WORKLOADS[workload], 2) as trainer,
    ):
        watch = Watch(processes, trainer, source, reports)

        # What is sustained: as much as is learned while more is always there.
        stream = Stream(asynchronous=True)
        node = stream.train(trainer)
        node.sink(reports.add)
        await source.offer(stream, float("inf"), warmup / 2)
        before, start = reports.learned, time.monotonic()
        await source.offer(stream, float("inf"), warmup)
        sustained = (reports.learned - before) / (time.monotonic() - start)
        await trainer.drain()
        stream.disconnect(node)

        options = {} if policy == "block" else {"overload": policy}
        stream = Stream(asynchronous=True)
        stream.train(trainer, **options).sink(reports.add)
        first, load = watch.counts(), Load()
        own = [one for name, one in processes.items() if name != "client"]
        cpu, start = cpu_seconds(own), time.monotonic()
        watching = asyncio.create_task(watch.run())
        await source.offer(stream, factor * sustained, 60 * minutes)
        elapsed = time.monotonic() - start
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
        if not watching.cancelled():
            watching.result()  # what it died of
        last = watch.counts()
        busy = load.stop()["other_cores"] - (cpu_seconds(own) - cpu) / elapsed
        await trainer.drain()
        drained = watch.counts()
    return {
        "policy": policy,
        "minutes": minutes,
        "sustained": sustained,
        "seconds": elapsed,
        "rows": watch.rows,
        "first": first,
        "last": last,
        "drained": drained,
        "held": source.held,
        "other_cores": max(0.0, busy),
    }


def _run(*args: Any) -> dict[str, Any]:
    return asyncio.run(overload(*args))


def growth(result: dict[str, Any], name: str) -> tuple[float, float, float]:
    """Mean memory of a process early and late, in MB, and the ratio."""
    width, end = window_of(result["minutes"]), result["rows"][-1]["time"]
    rows = result["rows"]
    early = [row[name] for row in rows if width <= row["time"] < 2 * width]
    late = [row[name] for row in rows if row["time"] > end - width]
    one, other = statistics.mean(early), statistics.mean(late)
    return one / 1e6, other / 1e6, other / one


def _memory(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for result in results:
        for name in ("client", "scheduler", "worker 1", "worker 2"):
            early, late, ratio = growth(result, name)
            highest = max(row[name] for row in result["rows"]) / 1e6
            rows.append(
                [
                    result["policy"],
                    name,
                    f"{early:.1f}",
                    f"{late:.1f}",
                    f"{highest:.1f}",
                    f"{ratio:.3f}",
                    f"<= {GROWTH_AT_MOST}",
                    "yes" if ratio <= GROWTH_AT_MOST else "NO",
                ]
            )
    return rows


def _counts(results: list[dict[str, Any]]) -> list[list[str]]:
    rows = []
    for result in results:
        first, last, drained = (result[one] for one in ("first", "last", "drained"))
        passed = {key: last[key] - first[key] for key in last}
        seconds, sustained = result["seconds"], result["sustained"]
        each_second = max(abs(missing(row)) for row in result["rows"])
        rows.append(
            [
                result["policy"],
                f"{sustained:,.0f}",
                f"{passed['emitted'] / seconds:,.0f}",
                f"{passed['learned'] / seconds:,.0f}",
                *(f"{last[key]:,}" for key in last),
                f"{missing(last)}",
                f"{each_second}",
                f"{missing(drained)}, {drained['waiting']}, {result['held']}",
                f"{max(row['waiting'] for row in result['rows']):,}",
                f"{max(row['lag'] for row in result['rows']):.2f}",
                f"{result['other_cores']:.2f}"
                + (" (disturbed)" if result["other_cores"] > QUIET_CORES else ""),
            ]
        )
    return rows


def render(results: list[dict[str, Any]], markdown: bool) -> str:
    """Lay out both tables."""
    width = window_of(results[0]["minutes"])
    memory = [
        "policy",
        "process",
        f"second {width:.0f} s, MB",
        f"last {width:.0f} s, MB",
        "highest",
        "ratio",
        "target",
        "met",
    ]
    counts = [
        "policy",
        "sustained/s",
        "emitted/s",
        "learned/s",
        "emitted",
        "learned",
        "refused",
        "dropped",
        "waiting",
        "missing",
        "in any second",
        "after a drain: missing, waiting, references held",
        "most waiting",
        "longest lag, s",
        "other load",
    ]
    return "\n".join(
        (
            table("Memory (RSS)", memory, _memory(results), markdown),
            table("Mini-batches", counts, _counts(results), markdown),
        )
    )


@click.command(help=__doc__)
@click.option("--minutes", default=10.0, show_default=True, help="Of each policy.")
@click.option("--factor", default=2.0, show_default=True, help="Of what is sustained.")
@click.option("--warmup", default=20.0, show_default=True, help="Seconds.")
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="85k")
@click.option(
    "--policy",
    "policies",
    multiple=True,
    type=click.Choice(POLICIES),
    help="Several may be given; by default all that the package has.",
)
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
@click.option("--output", type=Path, help="Every second of it, as JSON.")
def main(
    minutes: float,
    factor: float,
    warmup: float,
    workload: str,
    policies: tuple[str, ...],
    markdown: bool,
    output: Path | None,
) -> None:
    unknown = set(policies) - set(supported())
    if unknown:
        raise click.UsageError(
            f"Stream.train of this version has no policy {', '.join(sorted(unknown))};"
            f" it has {', '.join(supported())}."
        )
    machine = environment()
    click.echo(
        f"{machine}\n{WORKLOADS[workload].says}; {factor:g} times what is sustained,"
        f" for {minutes:g} minutes; 1 of {BROKEN_EVERY} mini-batches is broken\n"
    )
    results = []
    with tempfile.TemporaryDirectory() as folder:
        pool = Path(folder) / "pool.npz"
        WORKLOADS[workload].write_pool(pool)
        for policy in policies or supported():
            click.echo(f"{policy}: {warmup * 1.5 + 60 * minutes:.0f} s", err=True)
            spawn = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(1, mp_context=spawn) as fresh:
                options = (policy, workload, pool, minutes, factor, warmup)
                results.append(fresh.submit(_run, *options).result())
    click.echo(render(results, markdown))
    if output is not None:
        output.write_text(json.dumps({"environment": machine, "results": results}))


if __name__ == "__main__":
    sys.exit(main())
