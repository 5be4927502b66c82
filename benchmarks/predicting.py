"""How long a prediction takes while the model trains at full speed, and what it costs.

One coroutine feeds mini-batches, held back by the stream alone; a second one asks for
one prediction after the other. Before and after that it asks for none: those windows
give the speed of training without predictions. At last it asks a model that has nothing
to learn. Each round is a fresh process with a fresh cluster.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path
from typing import Any

import click
import numpy as np
from measure import Spread, environment, run_contender
from replicas import (
    Tally,
    check_everything_learned,
    cpu_seconds,
    feed,
    training,
    worker_processes,
)
from report import QUIET_CORES, table
from streamz import Stream
from workloads import WORKLOADS, Pool, load_pool

import tensair_dask as ta
from tensair_dask._common.rate_limiter import Pace

# What is asked of one record on two cores, with the 85k-parameter model.
P50_MS_AT_MOST, P99_MS_AT_MOST = 5.0, 25.0
IDLE_PREDICTIONS = 500


def _inputs(pool: Pool, records: int) -> Iterator[np.ndarray]:
    """Cut the pool into inputs of so many records, over and over."""
    for x, _ in cycle(pool):
        for start in range(0, len(x) - records + 1, records):
            yield x[start : start + records]


class Asker:
    """Asks for predictions, one after the other, and keeps how long each took."""

    def __init__(
        self, trainer: ta.Trainer, pool: Pool, records: int, rate: float | None
    ) -> None:
        self.trainer = trainer
        self.inputs = _inputs(pool, records)
        self.pace = None if rate is None else Pace(rate)
        self.one = records == 1

    async def ask(self, count: int) -> dict[str, Any]:
        """Ask for so many, each after the answer to the one before."""
        seconds, ages = [], []
        begin = time.perf_counter()
        for _ in range(count):
            if self.pace is not None:
                await self.pace.wait(1)
            x = next(self.inputs)
            start = time.perf_counter()
            if self.one:
                answer = await self.trainer.predict_one(x[0], details=True)
            else:
                answer = await self.trainer.predict(x, details=True)
            seconds.append(time.perf_counter() - start)
            ages.append(answer.age)
        latencies = 1e3 * np.array(seconds)
        return {
            "predictions": count,
            "rate": count / (time.perf_counter() - begin),
            "p50_ms": float(np.percentile(latencies, 50)),
            "p99_ms": float(np.percentile(latencies, 99)),
            "max_ms": float(latencies.max()),
            "age_p50_ms": float(1e3 * np.percentile(ages, 50)),
            "age_p99_ms": float(1e3 * np.percentile(ages, 99)),
        }


class Meter:
    """Counts what is learned between two looks."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._time, self._count = time.perf_counter(), tally.minibatches

    def rate(self) -> float:
        """Tell the mini-batches a second since the last look."""
        then, before = self._time, self._count
        self._time, self._count = time.perf_counter(), self.tally.minibatches
        return (self._count - before) / (self._time - then)


async def _idle(asker: Asker, workers: list[Any]) -> dict[str, float]:
    """Ask while there is nothing to learn: what a prediction costs by itself."""
    await asker.ask(50)
    client, replicas = time.process_time(), cpu_seconds(workers)
    answered = await asker.ask(IDLE_PREDICTIONS)
    client = time.process_time() - client
    replicas = cpu_seconds(workers) - replicas
    return answered | {
        "client_cpu_us": 1e6 * client / IDLE_PREDICTIONS,
        "replica_cpu_us": 1e6 * replicas / IDLE_PREDICTIONS,
    }


async def measure(
    workload: str,
    replicas: int,
    warmup: float,
    seconds: float,
    predictions: int,
    records: int,
    rate: float | None,
) -> dict[str, Any]:
    """Measure one round in this process."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pool.npz"
        WORKLOADS[workload].write_pool(path)
        pool = load_pool(path)
    tally = Tally()
    async with training(WORKLOADS[workload], replicas) as (client, trainer):
        source = Stream(asynchronous=True)
        source.train(trainer).sink(tally.add)
        asker = Asker(trainer, pool, records, rate)
        feeding = asyncio.create_task(feed(source, pool))
        await asyncio.wait([feeding], timeout=warmup)

        meter = Meter(tally)
        await asyncio.wait([feeding], timeout=seconds)
        before = meter.rate()
        asked = await asker.ask(predictions)
        while_asked = meter.rate()
        await asyncio.wait([feeding], timeout=seconds)
        after = meter.rate()

        if feeding.done():
            await feeding  # it never ends by itself: raise what it died of
        feeding.cancel()
        await asyncio.gather(feeding, return_exceptions=True)
        await trainer.drain()
        check_everything_learned(trainer, tally)
        asker.pace = None
        idle = await _idle(asker, await worker_processes(client))
    alone = (before + after) / 2
    return asked | {
        "without": alone,
        "with": while_asked,
        "kept": while_asked / alone,
        "idle": idle,
    }


def _row(says: str, values: list[float], digits: int, most: float | None) -> list[str]:
    spread = Spread.of(values)
    low, high = f"{spread.low:,.{digits}f}", f"{spread.high:,.{digits}f}"
    cells = [says, f"{spread.median:,.{digits}f}", f"{low} to {high}", "", ""]
    if most is not None:
        cells[3:] = [f"<= {most:g}", "yes" if spread.median <= most else "NO"]
    return cells


def render(data: dict[str, Any], markdown: bool) -> str:
    """Make a table of all rounds."""
    rounds = data["rounds"]

    def values(key: str, part: str | None = None) -> list[float]:
        return [(r if part is None else r[part])[key] for r in rounds]

    # The targets are those of one record and the smallest model.
    targets = data["workload"] == "85k" and data["records"] == 1
    p50, p99 = (P50_MS_AT_MOST, P99_MS_AT_MOST) if targets else (None, None)
    rows = [
        _row("prediction, ms, p50", values("p50_ms"), 2, p50),
        _row("prediction, ms, p99", values("p99_ms"), 2, p99),
        _row("prediction, ms, longest", values("max_ms"), 1, None),
        _row("predictions/s", values("rate"), 0, None),
        _row("age of the model, ms, p50", values("age_p50_ms"), 2, None),
        _row("age of the model, ms, p99", values("age_p99_ms"), 2, None),
        _row("mini-batches/s meanwhile", values("with"), 0, None),
        _row("mini-batches/s without predictions", values("without"), 0, None),
        _row("the one / the other", values("kept"), 3, None),
        _row("nothing to learn: ms, p50", values("p50_ms", "idle"), 2, None),
        _row("nothing to learn: ms, p99", values("p99_ms", "idle"), 2, None),
        _row("client + scheduler, CPU us", values("client_cpu_us", "idle"), 0, None),
        _row("replica, CPU us", values("replica_cpu_us", "idle"), 0, None),
        _row(
            "CPU of others, cores", [r["load"]["other_cores"] for r in rounds], 2, None
        ),
    ]
    disturbed = sum(r["load"]["other_cores"] > QUIET_CORES for r in rounds)
    pace = "" if data["rate"] is None else f", {data['rate']:g} a second asked for"
    title = (
        f"{data['workload']}, {data['replicas']} replicas, {data['predictions']}"
        f" predictions of {data['records']} record(s) a round{pace}"
    )
    header = ["", "median", "range", "at most", "met"]
    return (
        f"{json.dumps(data['environment'])}\n\n"
        + table(title, header, rows, markdown)
        + f"\nDisturbed rounds (others used more than {QUIET_CORES} cores): "
        f"{disturbed} of {len(rounds)}"
    )


@click.command(help=__doc__)
@click.option("--workload", type=click.Choice(list(WORKLOADS)), default="85k")
@click.option("--replicas", default=2, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--warmup", default=3.0, show_default=True, help="Seconds.")
@click.option("--seconds", default=5.0, show_default=True, help="Without predictions.")
@click.option("--predictions", default=2000, show_default=True, help="A round.")
@click.option("--records", default=1, show_default=True, help="In each prediction.")
@click.option("--rate", type=float, help="Predictions a second; none for all it can.")
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
@click.option("--here", is_flag=True, help="One round in this process, as JSON.")
def main(
    workload: str,
    replicas: int,
    rounds: int,
    warmup: float,
    seconds: float,
    predictions: int,
    records: int,
    rate: float | None,
    json_path: Path | None,
    markdown: bool,
    here: bool,
) -> None:
    settings: dict[str, Any] = {
        "workload": workload,
        "replicas": replicas,
        "warmup": warmup,
        "seconds": seconds,
        "predictions": predictions,
        "records": records,
        "rate": rate,
    }
    if here:
        click.echo(json.dumps(asyncio.run(measure(**settings))))
        return
    options = [f"--{key}={value}" for key, value in settings.items() if value]
    data = settings | {"environment": environment(), "rounds": []}
    for turn in range(rounds):
        answer = run_contender("--here", *options, timeout=600, script="predicting.py")
        data["rounds"].append(answer)
        click.echo(
            f"round {turn + 1} of {rounds}: p50 {answer['p50_ms']:.2f} ms,"
            f" p99 {answer['p99_ms']:.2f} ms, mini-batches/s {answer['with']:.0f}"
            f" (without predictions {answer['without']:.0f}),"
            f" other load {answer['load']['other_cores']:.2f}",
            err=True,
        )
        if json_path is not None:
            json_path.write_text(json.dumps(data), encoding="utf-8")
    click.echo(render(data, markdown))


if __name__ == "__main__":
    main()
