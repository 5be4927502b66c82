"""Measure what a checkpoint costs: encoding, writing, reading, and the event loop.

    python benchmarks/checkpoints.py --megabytes 100 --folder /tmp

Run it on a quiet machine. "loop" is how much later than asked for an event loop wakes
while a `Checkpointer` encodes and writes on its thread, beside the same with nothing to
write.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import click
import torch

from tensair_dask.checkpoints import Checkpoint, Checkpointer, Store
from tensair_dask.checkpoints.format import decode, encode

RUNS = 9
MODELS = {"1 tensor": 1, "40 tensors": 40, "1000 tensors": 1000}


def model(megabytes: float, tensors: int) -> Checkpoint:
    size = int(megabytes * 1e6 / 4 / tensors)
    return Checkpoint({f"weight {at}": torch.randn(size) for at in range(tensors)})


def measured(function: Callable[[], Any]) -> str:
    """The first run pays for fresh memory; the others are what goes on."""
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        function()
        times.append(1e3 * (time.perf_counter() - start))
    first, *others = times
    median, least = statistics.median(others), min(others)
    return f"first {first:5.0f} ms, median {median:5.0f}, least {least:5.0f}"


async def late(until: Callable[[], bool]) -> list[float]:
    """How much later than asked for the event loop wakes, in milliseconds."""
    lags = []
    while not until():
        start = time.perf_counter()
        await asyncio.sleep(0.001)
        lags.append(1e3 * (time.perf_counter() - start) - 1)
    return sorted(lags)


def told(lags: list[float]) -> str:
    places = {"median": 0.5, "99 %": 0.99, "most": 1.0}
    return ", ".join(
        f"{name} {lags[min(len(lags) - 1, int(share * len(lags)))]:.2f} ms"
        for name, share in places.items()
    )


async def on_a_loop(checkpoint: Checkpoint, folder: str) -> None:
    done: list[Any] = []

    async def take() -> Checkpoint:
        return checkpoint

    writer = Checkpointer(
        Store(folder, keep=1), 1, take, lambda *each: done.append(each)
    )
    idle_until = time.perf_counter() + 1
    idle = await late(lambda: time.perf_counter() > idle_until)
    lags: list[float] = []
    for index in range(RUNS):
        writer.noticed(index)
        lags += await late(lambda wanted=index: len(done) > wanted)
    await writer.close()
    click.echo(f"loop, idle         {told(idle)}")
    click.echo(f"loop, writing      {told(sorted(lags))}")


@click.command(help=__doc__)
@click.option("--megabytes", default=100.0, show_default=True)
@click.option("--folder", default=tempfile.gettempdir(), show_default=True)
def main(megabytes: float, folder: str) -> None:
    torch.set_num_threads(1)
    for name, tensors in MODELS.items():
        checkpoint = model(megabytes, tensors)
        data = b"".join(encode(checkpoint))
        click.echo(f"{name:12} encode {measured(lambda c=checkpoint: encode(c))}")
        click.echo(f"{name:12} decode {measured(lambda d=data: decode(d))}")
    checkpoint = model(megabytes, 40)
    with tempfile.TemporaryDirectory(dir=folder) as path:
        store = Store(path, keep=2)
        click.echo(f"encode, write, flush {measured(lambda: store.add(checkpoint))}")
        click.echo(f"read, decode         {measured(store.load)}")
        asyncio.run(on_a_loop(checkpoint, f"{path}/loop"))


if __name__ == "__main__":
    main()
