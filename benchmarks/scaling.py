"""What a gradient costs as replicas become more: CPU, messages, bytes, age, memory.

Workers are emulated: their steps sleep, so that few cores hold many of them; parameters
are real, and gradients travel. Figures are for each mini-batch, and of CPU time, since
rates of many replicas on few cores say nothing of a cluster. What the exchange takes is
what a mini-batch takes more than on the same cluster while replicas keep their
gradients to themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import time
from collections.abc import AsyncIterator, Awaitable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from measure import Load, child_environment, environment
from replicas import Tally, check_everything_learned, feed
from report import table
from scale_out.emulation import Cluster, Sleeping, emulated
from scale_out.figures import Figures, figures
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train

HIDDEN = {"85k": 256, "1.1m": 1024}
# Without one, replicas gather gradients and keep them until the end.
TRANSPORTS = {"none": "none", "shm": "shared memory", "tcp": "tcp"}
# Replicas that memory allows: each keeps messages to all others.
LARGEST = {"85k": 64, "1.1m": 16}
# After the first message, which shows what another would cost.
SILENT = ta.ExchangeConfig(share_of_time=1e-9, staleness="1h")
LEARNING_RATE = 1e-4  # low: sums of many stale gradients must not diverge
SETTLED_STEPS, WINDOW_STEPS = 3, 6  # at least, whatever the seconds
PATIENCE = 60.0  # seconds until all have heard of all

# Of what the replicas tell of the exchange: what is counted, and what is a mean.
COUNTS = ("sent", "received", "received_bytes", "conflated", "refused")
MEANS = (
    "staleness_mean",
    "staleness_p95",
    "age_mean",
    "age_p95",
    "interval",
    "cost",
    "shared_memory",
)

Stats = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Setting:
    """What is measured once.

    Attributes
    ----------
    model
        Name of the model.
    transport
        A key of ``TRANSPORTS``.
    replicas
        How many.
    step
        Seconds that a step sleeps.
    """

    model: str
    transport: str
    replicas: int
    step: float

    @property
    def gradient_bytes(self) -> int:
        """Bytes of a gradient."""
        parameters = Sleeping(HIDDEN[self.model], self.step).parameters()
        return sum(parameter.nbytes for parameter in parameters)

    def trainer(self, cluster: Cluster) -> ta.Trainer:
        """Make a trainer in the way a user would, with the defaults."""
        return ta.Trainer(
            cluster.client,
            model=functools.partial(Sleeping, HIDDEN[self.model], self.step),
            loss=torch.nn.functional.cross_entropy,
            optimizer=functools.partial(torch.optim.SGD, lr=LEARNING_RATE),
            replicas=self.replicas,
            seed=0,
            exchange=SILENT if self.transport == "none" else None,
        )


def records() -> list[tuple[np.ndarray, np.ndarray]]:
    """Make mini-batches of one record: what they teach is no matter."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((64, 1, 64), dtype=np.float32)
    return list(zip(x, rng.integers(0, 10, (64, 1)), strict=True))


class Stopwatch:
    """What the cluster takes from a moment on."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def start(self) -> Stopwatch:
        """Begin here."""
        self._bytes = await self._cluster.written()
        self._begun = self._now()
        return self

    def _now(self) -> tuple[Any, ...]:
        return (
            time.perf_counter(),
            self._cluster.used_by_workers(),
            self._cluster.used_by_scheduler(),
            time.process_time(),
        )

    async def stop(self) -> dict[str, float]:
        """Return seconds, CPU seconds and bytes since the start."""
        seconds, workers, scheduler, client = (
            now - then for now, then in zip(self._now(), self._begun, strict=True)
        )
        written = await self._cluster.written()
        by_scheduler, by_workers = (
            now - then for now, then in zip(written, self._bytes, strict=True)
        )
        return {
            "seconds": seconds,
            "loop_cpu": workers.loop,
            "threads_cpu": workers.threads,
            "scheduler_cpu": scheduler,
            "client_cpu": client,
            "scheduler_bytes": by_scheduler,
            "worker_bytes": by_workers,
        }


@contextlib.asynccontextmanager
async def feeding(trainer: ta.Trainer, tally: Tally) -> AsyncIterator[None]:
    """Emit mini-batches as fast as they are taken, and then stop."""
    source = Stream(asynchronous=True)
    source.train(trainer).sink(tally.add)
    task = asyncio.create_task(feed(source, records()))
    try:
        yield
        if task.done():
            await task  # it never ends by itself: raise what it died of
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def summed(before: Stats, after: Stats, key: str) -> float:
    """Sum up over all replicas what was counted meanwhile."""
    return sum(each[key] - before[name][key] for name, each in after.items())


async def window(
    watch: Stopwatch, trainer: ta.Trainer, tally: Tally, seconds: float
) -> dict[str, float]:
    """Measure while replicas learn."""
    before, learned, load = await trainer.exchange_stats(), tally.minibatches, Load()
    await watch.start()
    await asyncio.sleep(seconds)
    used, learned = await watch.stop(), tally.minibatches - learned
    others = load.stop()["other_cores"]
    after = await trainer.exchange_stats()
    counts = {key: summed(before, after, key) for key in COUNTS}
    means = {key: sum(s[key] for s in after.values()) / len(after) for key in MEANS}
    # The processes of the cluster are no children of this one.
    ours = sum(used[key] for key in ("loop_cpu", "threads_cpu", "scheduler_cpu"))
    other_cores = max(0.0, others - ours / used["seconds"])
    cores = (ours + used["client_cpu"]) / used["seconds"]
    return {
        **used,
        **counts,
        **means,
        "minibatches": learned,
        "cores": cores,
        "other_cores": other_cores,
    }


async def first_messages(trainer: ta.Trainer, replicas: int, step: float) -> None:
    """Wait until each replica has applied the only message of each other."""
    async with asyncio.timeout(PATIENCE):
        while True:
            stats = (await trainer.exchange_stats()).values()
            if sum(each["received"] for each in stats) >= replicas * (replicas - 1):
                return
            await asyncio.sleep(step)


async def timed(watch: Stopwatch, what: Awaitable[Any]) -> dict[str, float]:
    """Measure how long something takes, and what."""
    await watch.start()
    await what
    return await watch.stop()


async def measured(
    setting: Setting, processes: int, warmup: float, seconds: float
) -> dict[str, Any]:
    """Start replicas, let them learn, let one join, and drain."""
    n, step, tally = setting.replicas, setting.step, Tally()
    async with emulated(n + 1, processes, setting.transport == "shm") as cluster:
        watch = Stopwatch(cluster)
        memory = [cluster.memory()]
        trainer = setting.trainer(cluster)
        start = await timed(watch, trainer)
        async with trainer:
            memory.append(cluster.memory())
            async with feeding(trainer, tally):
                await asyncio.sleep(max(warmup, SETTLED_STEPS * step))
                if setting.transport == "none":
                    await first_messages(trainer, n, step)
                learning = await window(
                    watch, trainer, tally, max(seconds, WINDOW_STEPS * step)
                )
                memory.append(cluster.memory())
                join = await timed(watch, trainer.scale(n + 1))
            drain = await timed(watch, trainer.drain())
            check_everything_learned(trainer, tally)
    return {
        **vars(setting),
        "gradient_bytes": setting.gradient_bytes,
        "start": start,
        "learning": learning,
        "join": join,
        "drain": drain,
        "model_memory": (memory[1] - memory[0]) / n,
        "exchange_memory": (memory[2] - memory[1]) / n,
    }


# ------------------------------------------------------------------------- the tables


def _pair(low: float, high: float, form: str = ".0f") -> str:
    return f"{low:{form}} / {high:{form}}"


def learning_row(row: dict[str, Any], figure: Figures) -> list[str]:
    """Say what a mini-batch costs."""
    learning, n = row["learning"], row["replicas"]
    is_exchanged = row["transport"] != "none"
    links = f"{learning['shared_memory']:.0f} of {n - 1}" if is_exchanged else ""
    return [
        row["model"],
        TRANSPORTS[row["transport"]],
        str(n),
        f"{1e3 * row['step']:.0f}",
        links,
        f"{figure.rate:.2f}",
        f"{1e3 * figure.replica_cpu:.1f}",
        f"{1e3 * figure.exchange_cpu:.1f}" if is_exchanged else "",
        f"{1e3 * figure.delivery_cpu:.2f}" if is_exchanged else "",
        _pair(figure.delivered, figure.merged, ".1f"),
        f"{figure.received_bytes / 1e6:.1f}",
        f"{figure.share:.1%}" if is_exchanged else "",
        _pair(learning["staleness_mean"], learning["staleness_p95"]),
        _pair(1e3 * learning["age_mean"], 1e3 * learning["age_p95"]),
        f"{1e6 * figure.client_cpu:.0f}",
        f"{1e6 * figure.scheduler_cpu:.0f}",
        f"{figure.exchange_memory / figure.gradient_bytes:.1f}" if is_exchanged else "",
        f"{figure.cores:.2f}{' (full)' if figure.full else ''}",
    ]


LEARNING_HEADER = [
    "model",
    "transport",
    "replicas",
    "step, ms",
    "links by shared memory",
    "steps made of those possible",
    "replica, CPU ms a mini-batch",
    "of it the exchange",
    "CPU ms a delivered gradient",
    "delivered / merged a mini-batch",
    "MB a mini-batch",
    "share of a replica's time",
    "staleness mean / p95",
    "age mean / p95, ms",
    "client, CPU us",
    "scheduler, CPU us",
    "memory, gradients a replica",
    "cores in use",
]


def change_row(row: dict[str, Any]) -> list[str]:
    """Say what a start, a join and a drain take."""
    cells = [row["model"], TRANSPORTS[row["transport"]], str(row["replicas"])]
    for name in ("start", "join", "drain"):
        used = row[name]
        cells += [
            f"{used['seconds']:.2f}",
            f"{1e3 * used['scheduler_cpu']:.0f}",
            f"{used['scheduler_bytes'] / 1e3:.0f}",
            f"{used['worker_bytes'] / 1e6:.1f}",
        ]
    return cells


CHANGE_HEADER = ["model", "transport", "replicas"] + [
    f"{name}: {what}"
    for name in ("start", "join", "drain")
    for what in ("s", "scheduler CPU ms", "scheduler kB", "workers MB")
]


def render(data: dict[str, Any], markdown: bool) -> str:
    """Make both tables."""
    rows = data["measured"]
    computed = figures(rows, data["environment"]["cores"])
    learning = [learning_row(*both) for both in zip(rows, computed, strict=True)]
    changes = [change_row(row) for row in rows]
    return "\n".join(
        [
            table("While replicas learn", LEARNING_HEADER, learning, markdown),
            table("A start, a join, a drain", CHANGE_HEADER, changes, markdown),
        ]
    )


def settings(
    models: list[str],
    transports: list[str],
    replicas: list[int],
    step: float,
    most: int,
) -> list[Setting]:
    """List what is to be measured: each number of replicas without an exchange, too.

    Parameters
    ----------
    most
        Steps a second of all replicas together: those of many take longer.
    """
    return [
        Setting(model, transport, n, max(step, n / most))
        for model in models
        for n in replicas
        for transport in ("none", *transports)
        if n <= LARGEST[model] and (n > 1 or transport == "none")
    ]


def _list(ctx: Any, param: Any, value: str) -> list[str]:
    return value.split(",")


@click.command(help=__doc__)
@click.option("--models", default=",".join(HIDDEN), callback=_list, show_default=True)
@click.option("--transports", default="shm,tcp", callback=_list, show_default=True)
@click.option("--replicas", default="2,4,8,16,32", show_default=True)
@click.option("--step", default=100.0, show_default=True, help="Milliseconds.")
@click.option("--most", default=80, show_default=True, help="Steps a second, of all.")
@click.option("--processes", default=16, show_default=True, help="Of all workers.")
@click.option("--warmup", default=0.6, show_default=True, help="Seconds, at least.")
@click.option("--seconds", default=2.0, show_default=True, help="Window, at least.")
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--add", is_flag=True, help="Keep what lies in that file.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(
    models: list[str],
    transports: list[str],
    replicas: str,
    step: float,
    most: int,
    processes: int,
    warmup: float,
    seconds: float,
    json_path: Path | None,
    add: bool,
    markdown: bool,
) -> None:
    os.environ.update(child_environment())
    torch.set_num_threads(1)
    data: dict[str, Any] = {"environment": environment(), "measured": []}
    if add and json_path is not None and json_path.exists():
        data = json.loads(json_path.read_text(encoding="utf-8"))
    counts = [int(count) for count in replicas.split(",")]
    begun = time.monotonic()
    for setting in settings(models, transports, counts, 1e-3 * step, most):
        row = asyncio.run(measured(setting, processes, warmup, seconds))
        data["measured"].append(row)
        click.echo(f"{time.monotonic() - begun:4.0f} s: {setting}", err=True)
        if json_path is not None:
            json_path.write_text(json.dumps(data), encoding="utf-8")
    click.echo(render(data, markdown))


if __name__ == "__main__":
    main()
