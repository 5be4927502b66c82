"""Check the warning of stale gradients against what becomes of training.

Replicas share this process; the time that gradients gather makes them stale. Each row
is one run on scikit-learn's digits: the curvature that the replicas have measured, the
staleness, their product by its bound (the warning comes above 1), and the loss at the
end by that of a plain loop with as many mini-batches.
"""

from __future__ import annotations

import asyncio
import functools
import statistics
from typing import Any

import click
import dask
import numpy as np
import torch
from distributed import Client, LocalCluster
from report import table
from sklearn.datasets import load_digits
from streamz import Stream
from torch import nn
from torch.nn.functional import cross_entropy

import tensair_dask as ta
import tensair_dask.streams  # registers Stream.train
from tensair_dask.replica.stability import stable_product

BATCH = 32
LAST = 100  # mini-batches that the loss at the end is the mean of


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))


def batches(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Draw mini-batches of digits, of values from 0 to 1."""
    digits = load_digits()
    x = (digits.data / 16).astype("float32")
    y = digits.target.astype("int64")
    rng = np.random.default_rng(0)
    places = (rng.integers(0, len(x), BATCH) for _ in range(count))
    return [(x[each], y[each]) for each in places]


def plain(optimizer: Any, data: list[Any]) -> float:
    """Learn them one after the other; the loss at the end."""
    torch.manual_seed(0)
    net = model()
    stepper = optimizer(net.parameters())
    losses = []
    for x, y in data:
        loss = cross_entropy(net(torch.from_numpy(x)), torch.from_numpy(y))
        stepper.zero_grad()
        loss.backward()
        stepper.step()
        losses.append(loss.item())
    return statistics.mean(losses[-LAST:])


async def shared(
    client: Client, replicas: int, optimizer: Any, staleness: str, data: list[Any]
) -> dict[str, Any]:
    """Learn them with replicas that exchange as often as is given."""
    losses: list[float] = []
    trainer = ta.Trainer(
        client,
        model=model,
        loss=cross_entropy,
        optimizer=optimizer,
        replicas=replicas,
        exchange=ta.ExchangeConfig(staleness=staleness, share_of_time=1.0),
    )
    async with trainer:
        source = Stream(asynchronous=True)
        source.train(trainer).sink(lambda report: losses.append(report.loss))
        for pair in data:
            await source.emit(pair)
        await trainer.drain()
        stats = await trainer.exchange_stats()
        looks = await client.run(_curvatures)
        warned = any("too stale" in text for text in trainer.events.text)
    known = [each for found in looks.values() for each in found if each is not None]
    return {
        "curvature": statistics.median(known) if known else float("nan"),
        "staleness": statistics.mean(each["staleness_mean"] for each in stats.values()),
        "loss": statistics.mean(losses[-LAST:]),
        "warned": warned,
    }


def _curvatures(dask_worker: Any) -> list[float | None]:
    actors = dask_worker.state.actors.values()
    return [each.thread.stability.curvature for each in actors]


async def run(
    replicas: list[int], optimizers: dict[str, Any], staleness: list[str], count: int
) -> list[list[str]]:
    data = batches(count)
    rows = []
    for number in replicas:
        async with (
            LocalCluster(
                n_workers=number,
                threads_per_worker=1,
                processes=False,
                dashboard_address=None,
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            for name, optimizer in optimizers.items():
                base = plain(optimizer, data)
                for each in staleness:
                    found = await shared(client, number, optimizer, each, data)
                    product = found["curvature"] * found["staleness"]
                    rows.append(
                        [
                            str(number),
                            name,
                            each,
                            f"{found['curvature']:.2g}",
                            f"{found['staleness']:.0f}",
                            f"{product / stable_product(number):.2g}",
                            "yes" if found["warned"] else "",
                            f"{found['loss'] / base:.2f}",
                        ]
                    )
                    click.echo("  ".join(rows[-1]), err=True)
    return rows


@click.command(help=__doc__)
@click.option("--replicas", default="4,8", show_default=True)
@click.option("--rates", default="0.01,0.03,0.1,0.3", show_default=True)
@click.option("--staleness", default="5ms,20ms,100ms", show_default=True)
@click.option("--minibatches", default=3000, show_default=True)
@click.option("--markdown", is_flag=True, help="A table in Markdown.")
def main(
    replicas: str, rates: str, staleness: str, minibatches: int, markdown: bool
) -> None:
    torch.set_num_threads(1)
    optimizers = {
        f"SGD {rate}": functools.partial(torch.optim.SGD, lr=float(rate))
        for rate in rates.split(",")
    }
    optimizers["Adam 0.001"] = functools.partial(torch.optim.Adam, lr=0.001)
    with dask.config.set({"tensair.exchange.stability-check": 100}):
        rows = asyncio.run(
            run(
                [int(each) for each in replicas.split(",")],
                optimizers,
                staleness.split(","),
                minibatches,
            )
        )
    titles = [
        "replicas",
        "optimizer",
        "staleness=",
        "curvature",
        "staleness",
        "product / bound",
        "warned",
        "loss / plain loop",
    ]
    click.echo(table("Stale gradients and large steps", titles, rows, markdown))


if __name__ == "__main__":
    main()
