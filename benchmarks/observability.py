"""What watching costs: throughput, CPU of the scheduler, opening a page, delays.

Scheduler and workers are processes of their own. Within a round everything is measured
on the same cluster in turn, with and without, so that the ratio of a round holds
whatever else the machine did in the hour before.
"""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import click
import dask
import numpy as np
import psutil
import torch
from distributed import Client
from measure import Spread, child_environment, environment
from report import table
from torch import nn
from viewers import FLAGS, viewing
from workloads import LEARNING_RATE, WORKLOADS

import tensair_dask as ta

WORKLOAD = WORKLOADS["85k"]
EMULATED = 64  # workers
SETTLE = 3.0  # seconds after a change before it is measured


# ------------------------------------------------------------------------- the cluster


@asynccontextmanager
async def cluster(*workers: list[str]) -> AsyncIterator[tuple[Client, psutil.Process]]:
    """Start processes of a scheduler and workers; client, and scheduler's process."""
    with tempfile.TemporaryDirectory() as folder:
        contact = str(Path(folder, "scheduler.json"))
        here = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0"]
        dask_command = [sys.executable, "-m", "dask"]
        commands = [
            [*dask_command, "scheduler", *here, "--port", "0"],
            *workers,
        ]
        processes = []
        try:
            for command in commands:
                processes.append(
                    subprocess.Popen(
                        [*command, "--scheduler-file", contact],
                        env=child_environment(),
                        cwd=folder,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.DEVNULL,
                    )
                )
                while not Path(contact).exists():
                    await asyncio.sleep(0.05)
            async with Client(scheduler_file=contact, asynchronous=True) as client:
                yield client, psutil.Process(processes[0].pid)
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                process.wait(30)


def worker_command() -> list[str]:
    """One worker with one thread."""
    return [
        *(sys.executable, "-m", "dask", "worker", "--host", "127.0.0.1"),
        *("--nthreads", "1", "--dashboard-address", "127.0.0.1:0"),
    ]


def emulated_command() -> list[str]:
    """Many workers in one process: what the scheduler sees of a larger cluster."""
    return [sys.executable, __file__, "emulate", str(EMULATED)]


def page_of(client: Client) -> str:
    """Address of the page."""
    return client.dashboard_link.replace("/status", "/training")


# ------------------------------------------------------------------------- the stream


class Stream:
    """Keeps a trainer of the 85k model busy, and counts what it has learned."""

    def __init__(self, trainer: ta.Trainer, pool: list[tuple[Any, Any]]) -> None:
        self._trainer = trainer
        self._pool = pool
        self.learned = 0
        self._feeding = asyncio.ensure_future(self._feed())

    async def _feed(self) -> None:
        def reported(report: Any) -> None:
            self.learned += 1

        while True:
            for pair in self._pool:
                rest = self._trainer.session.intake.feed(
                    pair, lambda item: item, reported
                )
                if rest is not None:
                    await rest

    async def rate(self, seconds: float) -> float:
        """Mini-batches per second over the seconds that come."""
        start, before = time.perf_counter(), self.learned
        await asyncio.sleep(seconds)
        return (self.learned - before) / (time.perf_counter() - start)

    async def stop(self) -> None:
        """Stop feeding."""
        self._feeding.cancel()
        await asyncio.wait([self._feeding])
        await self._trainer.drain()


def mini_batches() -> list[tuple[Any, Any]]:
    """The stream, to be cycled."""
    x, y = WORKLOAD.stream(WORKLOAD.pool, WORKLOAD.batch)
    return list(zip(x, y, strict=True))


def trainer_of(client: Client, enabled: bool = True) -> ta.Trainer:
    """A trainer of the 85k model."""
    with dask.config.set({"tensair.dashboard.enabled": enabled}):
        return ta.Trainer(
            client,
            model=WORKLOAD.model,
            loss=nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=LEARNING_RATE),
            metrics={"accuracy": ta.metrics.accuracy},
        )


async def cpu(process: psutil.Process, seconds: float) -> float:
    """CPU that a process takes over the seconds that come, in per cent of a core."""
    times = process.cpu_times()
    start = time.perf_counter()
    await asyncio.sleep(seconds)
    now = process.cpu_times()
    used = now.user + now.system - times.user - times.system
    return 100 * used / (time.perf_counter() - start)


# --------------------------------------------------------------------------- measured


async def throughput(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """Mini-batches/s without a page, with one in a browser, with one elsewhere."""
    results = []
    async with cluster(worker_command(), worker_command()) as (client, _):
        await client.wait_for_workers(2)
        pool = mini_batches()
        async with trainer_of(client) as trainer:
            stream = Stream(trainer, pool)
            await asyncio.sleep(SETTLE)
            for turn in range(rounds):
                result: dict[str, Any] = {}
                kinds = ["none", "browser", "websocket"]
                for kind in kinds[turn % 3 :] + kinds[: turn % 3]:
                    result[kind] = await _watched(
                        kind, client, lambda: stream.rate(seconds)
                    )
                results.append(result)
            await stream.stop()
    return results


async def _watched(kind: str, client: Client, measure: Callable[[], Any]) -> Any:
    if kind == "none":
        await asyncio.sleep(SETTLE)
        return await measure()
    watching = viewing(kind, page_of(client))
    await asyncio.to_thread(watching.__enter__)
    try:
        await asyncio.sleep(SETTLE)
        return await measure()
    finally:
        await asyncio.to_thread(watching.__exit__, None, None, None)


async def scheduler_cpu(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """CPU of the scheduler while two replicas train: unwatched, told, watched."""
    results = []
    async with cluster(worker_command(), worker_command()) as (client, scheduler):
        await client.wait_for_workers(2)
        pool = mini_batches()
        for _ in range(rounds):
            result = {}
            for name, enabled in (("off", False), ("on", True)):
                async with trainer_of(client, enabled) as trainer:
                    stream = Stream(trainer, pool)
                    await asyncio.sleep(SETTLE)
                    result[name] = await cpu(scheduler, seconds)
                    if enabled:
                        result["page"] = await _watched(
                            "websocket", client, lambda: cpu(scheduler, seconds)
                        )
                    await stream.stop()
                # Bokeh keeps a closed page alive for a while.
                await asyncio.sleep(20 if enabled else 1)
            results.append(result)
    return results


async def scheduler_cpu_emulated(seconds: float, rounds: int) -> list[dict[str, Any]]:
    """The same with many workers that only beat, and tell of one replica each."""
    results = []
    async with cluster(emulated_command()) as (client, scheduler):
        await client.wait_for_workers(EMULATED)
        from tensair_dask.observe.dashboard.plugin import TrainingDashboard

        for turn in range(rounds):
            result = {"off": await cpu(scheduler, seconds)}
            await client.register_plugin(TrainingDashboard())
            run = f"emulated-{turn}"
            await client.scheduler.tensair_telemetry_open(
                run_id=run, name=run, client="", metrics=["accuracy"], target=EMULATED
            )
            await client.run(tell_of_a_replica, run)
            await asyncio.sleep(SETTLE)
            result["on"] = await cpu(scheduler, seconds)
            result["page"] = await _watched(
                "websocket", client, lambda: cpu(scheduler, seconds)
            )
            await client.run(tell_nothing)
            await client.scheduler.tensair_telemetry_close(run_id=run, replicas={})
            await client.unregister_scheduler_plugin("tensair-dashboard")
            await asyncio.sleep(20)
            results.append(result)
    return results


def tell_of_a_replica(run: str, dask_worker: Any) -> None:
    """On a worker: tell counts as a replica does, growing with time."""
    name = f"replica-{dask_worker.name}"

    def told(worker: Any) -> dict[str, Any]:
        now = time.monotonic()
        grows = ("steps", "samples", "busy", "sent", "received", "loss")
        counts: dict[str, Any] = {"at": now, "began": 0.0, "loss_rest": 0.0}
        counts |= {"device": "cpu", "version": 0}
        counts |= {key: 1000 * now for key in (*grows, "sent_bytes", "received_bytes")}
        counts |= {
            "metrics": {"accuracy": [900 * now, 0.0, 1000 * now]},
            "trainer": run,
        }
        still = ("refused", "predictions", "staleness_mean", "staleness_p95")
        counts |= dict.fromkeys((*still, "staleness_max", "age_p95", "age_max"), 1)
        counts |= dict.fromkeys(("age_mean", "conflated", "resent", "interval"), 1)
        return {run: {name: counts}}

    dask_worker.metrics["tensair"] = told


def tell_nothing(dask_worker: Any) -> None:
    """On a worker: tell nothing any more."""
    dask_worker.metrics.pop("tensair", None)


async def opening(rounds: int) -> list[dict[str, Any]]:
    """Longest that the scheduler's event loop stands still while a page is opened."""
    results = []
    async with cluster(worker_command(), worker_command()) as (client, _):
        await client.wait_for_workers(2)
        async with trainer_of(client) as trainer:
            stream = Stream(trainer, mini_batches())
            await asyncio.sleep(2 * SETTLE)
            busy = [await _opened(client) for _ in range(rounds + 1)]
            await stream.stop()
            idle = [await _opened(client) for _ in range(rounds + 1)]
            for full, none in zip(busy[1:], idle[1:], strict=True):  # without the first
                results.append(none | {f"{page}_busy": full[page] for page in full})
    return results


async def _opened(client: Client) -> dict[str, float]:
    return {page: await _open_once(client, page) for page in ("training", "status")}


async def _open_once(client: Client, page: str) -> float:
    await client.run_on_scheduler(start_probe)
    url = client.dashboard_link.replace("/status", f"/{page}")
    watching = viewing("websocket", url)
    await asyncio.to_thread(watching.__enter__)
    await asyncio.sleep(0.5)
    gap = await client.run_on_scheduler(stop_probe)
    await asyncio.to_thread(watching.__exit__, None, None, None)
    return gap


def start_probe(dask_scheduler: Any) -> None:
    """On the scheduler: watch for how long its event loop stands still."""

    async def probe() -> None:
        dask_scheduler.longest_gap = 0.0
        while True:
            before = time.perf_counter()
            await asyncio.sleep(0.002)
            gap = time.perf_counter() - before - 0.002
            dask_scheduler.longest_gap = max(dask_scheduler.longest_gap, gap)

    dask_scheduler.gap_probe = asyncio.ensure_future(probe())


def stop_probe(dask_scheduler: Any) -> float:
    """On the scheduler: the longest gap, in seconds."""
    dask_scheduler.gap_probe.cancel()
    return dask_scheduler.longest_gap


async def delay(count: int) -> list[float]:
    """Seconds from the report of a mini-batch until a browser shows its count."""
    from playwright.async_api import async_playwright

    headline = "[...Bokeh.documents[0].all_models].find(m => m.name == 'headline').text"
    delays = []
    async with cluster(worker_command(), worker_command()) as (client, _):
        await client.wait_for_workers(2)
        x, y = mini_batches()[0]
        async with trainer_of(client) as trainer, async_playwright() as playwright:
            await trainer.train(x, y)
            browser = await playwright.chromium.launch(
                executable_path="/usr/bin/chromium", args=FLAGS
            )
            page = await browser.new_page()
            await page.goto(page_of(client))
            await page.wait_for_function(
                f"window.Bokeh && Bokeh.documents.length && {headline}.includes('>64<')"
            )
            generator = np.random.default_rng(0)
            for number in range(count):
                await asyncio.sleep(1 + generator.random())
                await trainer.train(x, y)
                start = time.perf_counter()
                samples = f"{64 * (number + 2):,}"
                await page.wait_for_function(f"{headline}.includes('>{samples}<')")
                delays.append(time.perf_counter() - start)
            await browser.close()
    return delays


# ----------------------------------------------------------------------------- the end


def render(data: dict[str, Any], markdown: bool) -> str:
    """Lay out what was measured."""
    rows = []
    if "throughput" in data:
        for kind, what in (
            ("browser", "a browser on the same two cores"),
            ("websocket", "a browser elsewhere"),
        ):
            ratios = [each[kind] / each["none"] for each in data["throughput"]]
            rows.append(
                _row(f"throughput, page open in {what} / not", ">= 0.98", ratios)
            )
    for key, what, allowed in (
        ("scheduler_cpu", "2 workers", 3),
        ("scheduler_cpu_emulated", f"{EMULATED} emulated workers", 10),
    ):
        for state in ("on", "page") if key in data else ():
            added = [each[state] - each["off"] for each in data[key]]
            name = "metrics" if state == "on" else "metrics and an open page"
            rows.append(
                _row(
                    f"scheduler CPU added by {name}, {what} (% of a core)",
                    f"<= {allowed}" if state == "page" else "",
                    added,
                )
            )
    opened = {
        "training": "the page",
        "status": "Dask's /status",
        "training_busy": "the page, all cores training",
        "status_busy": "Dask's /status, all cores training",
    }
    for key, name in opened.items() if "opening" in data else ():
        gaps = [each[key] for each in data["opening"]]
        wanted = "<= 0.4" if key == "training" else ""
        rows.append(_row(f"opening {name}: loop stands still (s)", wanted, gaps))
    if "delay" in data:
        rows.append(_row("step to browser (s)", "<= 2", data["delay"]))
    load = ", ".join(f"{each:.2f}" for each in data["environment"]["load_average"])
    note = f"Load average before: {load}"
    header = ["figure", "wanted", "median", "least", "most"]
    return table("What watching costs", header, rows, markdown) + f"\n{note}\n"


def _row(name: str, wanted: str, values: list[float]) -> list[str]:
    spread = Spread.of(values)
    numbers = [f"{each:.3f}" for each in (spread.median, spread.low, spread.high)]
    return [name, wanted, *numbers]


PARTS: dict[str, Callable[[float, int], Awaitable[Any]]] = {
    "throughput": throughput,
    "scheduler_cpu": scheduler_cpu,
    "scheduler_cpu_emulated": scheduler_cpu_emulated,
    "opening": lambda seconds, rounds: opening(2 * rounds),
    "delay": lambda seconds, rounds: delay(6 * rounds),
}


@click.group()
def main() -> None:
    """Measure what watching a training costs."""


@main.command()
@click.option("--seconds", default=10.0, show_default=True, help="Of each measurement.")
@click.option("--rounds", default=5, show_default=True)
@click.option("--only", multiple=True, type=click.Choice(list(PARTS)))
@click.option("--json", "json_path", type=click.Path(path_type=Path))
@click.option("--markdown", is_flag=True)
def run(
    seconds: float,
    rounds: int,
    only: tuple[str, ...],
    json_path: Path | None,
    markdown: bool,
) -> None:
    """Run all parts, or some."""
    data: dict[str, Any] = {"environment": environment()}
    for name in only or PARTS:
        data[name] = asyncio.run(PARTS[name](seconds, rounds))
        click.echo(f"{name}: {data[name]}", err=True)
        if json_path is not None:
            json_path.write_text(json.dumps(data, indent=1), encoding="utf-8")
    click.echo(render(data, markdown))


@main.command(hidden=True)
@click.argument("count", type=int)
@click.option("--scheduler-file", required=True)
def emulate(count: int, scheduler_file: str) -> None:
    """Run many workers in this process."""

    async def workers() -> None:
        from distributed import Worker

        dask.config.set({"distributed.worker.profile.enabled": False})
        started = [
            Worker(
                scheduler_file=scheduler_file,
                nthreads=1,
                name=number,
                host="127.0.0.1",
                dashboard=False,
                memory_limit=0,
            )
            for number in range(count)
        ]
        await asyncio.gather(*started)
        await asyncio.gather(*(worker.finished() for worker in started))

    asyncio.run(workers())


if __name__ == "__main__":
    main()
