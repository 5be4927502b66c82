"""What happens when workers are killed, join, and are overloaded, measured.

``kills``: SIGKILL of random workers at random moments of a training run. The model is
linear in its parameters, so that its gradients do not depend on them: what is lost, or
learned twice, shows in the sum. ``joins``: workers that come while others learn.

"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import os
import random
import signal
import sys
import time
from collections import defaultdict
from typing import Any

import dask
import numpy as np
import torch
from distributed import Client, LocalCluster
from measure import Load, environment
from report import table
from torch import nn

import tensair_dask as ta

FEATURES, CLASSES, ROWS = 64, 32, 32
# A power of two, and data of whole numbers: what is learned is the same in any order,
# to the last bit. So any difference is a gradient that was lost, or applied twice.
RATE = 2.0**-13
POOL = 512


class Linear(nn.Module):
    """Scores that are linear in the parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(CLASSES, FEATURES))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Give ``x @ weight.T``."""
        return x @ self.weight.T


def linear_loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Linear in the prediction: the gradient is ``y.T @ x``, whatever the model."""
    return (prediction * y).sum()


class Pool:
    """Mini-batches, and the sum of the gradients of those that were given."""

    def __init__(self, seed: int) -> None:
        dice = np.random.default_rng(seed)
        # Whole numbers, small ones: float32 sums up millions of them without rounding.
        self.pairs = [
            (
                dice.integers(-2, 3, (ROWS, FEATURES)).astype("float32"),
                dice.integers(-2, 3, (ROWS, CLASSES)).astype("float32"),
            )
            for _ in range(POOL)
        ]
        self._gradients = [y.astype(float).T @ x.astype(float) for x, y in self.pairs]
        self.given = np.zeros(POOL, dtype=int)

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Give the next one."""
        number = int(self.given.sum()) % POOL
        self.given[number] += 1
        return self.pairs[number]

    def expected(self) -> np.ndarray:
        """Parameters that have learned each of these once."""
        total = sum(
            count * gradient
            for count, gradient in zip(self.given, self._gradients, strict=True)
        )
        return 1.0 - RATE * total

    def typical(self) -> float:
        """How much one mini-batch changes a parameter."""
        return RATE * float(np.mean([np.abs(each).mean() for each in self._gradients]))


class Gaps:
    """When the reports of each replica came."""

    def __init__(self) -> None:
        self.times: dict[str, list[float]] = defaultdict(list)
        self.errors: list[Any] = []
        self.count = 0

    def add(self, report: ta.Report) -> None:
        """Take note of a report."""
        self.count += 1
        if report.error is not None:
            self.errors.append(report.error)
        self.times[report.replica].append(time.monotonic())

    def longest(self, begin: float, end: float, but: str = "") -> float:
        """Give the longest pause between two reports of one replica in this time."""
        worst = 0.0
        for address, times in self.times.items():
            if address == but:
                continue
            array = np.array(times)
            within = array[(array >= begin - 0.5) & (array <= end)]
            if len(within) > 1:
                gaps = np.diff(within)
                ends = within[1:]
                after = gaps[ends >= begin]
                worst = max(worst, float(after.max(initial=0.0)))
        return worst


def trainer_of(client: Client, **options: Any) -> ta.Trainer:
    """Make a trainer of the linear model."""
    return ta.Trainer(
        client,
        model=Linear,
        loss=linear_loss,
        optimizer=functools.partial(torch.optim.SGD, lr=RATE),
        **options,
    )


def cluster_of(workers: int) -> Any:
    """Describe a cluster of so many worker processes."""
    return LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        host="127.0.0.1",
        dashboard_address=None,
        asynchronous=True,
        silence_logs=50,
    )


async def feed(trainer: ta.Trainer, pool: Pool, gaps: Gaps, pause: float) -> None:
    """Give mini-batches until it is cancelled."""
    while True:
        rest = trainer.session.intake.feed(pool.take(), lambda pair: pair, gaps.add)
        if rest is not None:
            await rest
        await asyncio.sleep(pause)


async def until(predicate: Any, seconds: float) -> bool:
    """Wait for it; whether it came."""
    deadline = time.monotonic() + seconds
    while not predicate():
        if time.monotonic() > deadline:
            return False
        await asyncio.sleep(0.01)
    return True


async def off_by(trainer: ta.Trainer, pool: Pool) -> tuple[float, float]:
    """How far the replicas are from what they should hold, and from each other.

    In mini-batches: 1 is about one that was lost, or learned twice.
    """
    states = [
        state["weight"].double().numpy()
        for state in (await trainer.state_dicts()).values()
    ]
    wrong = max(np.abs(state - pool.expected()).mean() for state in states)
    spread = max(np.abs(state - states[0]).max() for state in states)
    return float(wrong / pool.typical()), float(spread)


async def stop(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait for its end."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def kills(count: int, replicas: int, seed: int, pause: float) -> list[list[str]]:
    """Kill random workers at random moments; the nannies start others."""
    dice = random.Random(seed)
    pool, gaps = Pool(seed), Gaps()
    stalls: list[float] = []
    usual: list[float] = []
    back: list[float] = []
    async with (
        cluster_of(replicas) as cluster,
        Client(cluster, asynchronous=True) as client,
        trainer_of(client, replicas=replicas) as trainer,
    ):
        feeding = asyncio.create_task(feed(trainer, pool, gaps, pause))
        await until(lambda: gaps.count > 500, 60)
        for number in range(count):
            await asyncio.sleep(dice.uniform(0.5, 2.0))
            usual.append(gaps.longest(time.monotonic() - 0.5, time.monotonic()))
            pids = await client.run(os.getpid)
            alive = [info.address for info in trainer.replicas if info.alive]
            victim = dice.choice([each for each in alive if each in pids])
            begin = time.monotonic()
            os.kill(pids[victim], signal.SIGKILL)
            await until(
                lambda address=victim: (
                    not any(
                        info.alive and info.address == address
                        for info in trainer.replicas
                    )
                ),
                30,
            )
            full = await until(
                lambda: sum(info.alive for info in trainer.replicas) == replicas, 120
            )
            end = time.monotonic()
            back.append(end - begin if full else float("inf"))
            stalls.append(gaps.longest(begin, end, but=victim))
            print(
                f"kill {number + 1}: longest stall {stalls[-1]:.3f} s, "
                f"as many as before after {back[-1]:.1f} s",
                file=sys.stderr,
            )
        await stop(feeding)
        await trainer.drain()
        wrong, spread = await off_by(trainer, pool)
        dispatcher = trainer.session.dispatcher
        held = [
            float(text.rpartition("held for ")[2].split()[0])
            for text in trainer.events["text"]
            if "was held for" in text
        ]
        given = int(pool.given.sum())
        missing = given - gaps.count
    return [
        ["SIGKILLs, replicas", f"{count}, {replicas}"],
        ["mini-batches given", f"{given:,}"],
        ["without a report / with an error", f"{missing} / {len(gaps.errors)}"],
        ["sum of gradients off by (mini-batches)", f"{wrong:.4f}"],
        ["replicas differ after a drain by", f"{spread:.2g}"],
        ["learned again / only scored again", f"{dispatcher.relearned} / "
         f"{dispatcher.survived}"],
        ["survivors' longest stall, s (median, p95, max)", quantiles(stalls)],
        ["before each kill, s", quantiles(usual)],
        ["until as many as before, s", quantiles(back)],
        ["stream held for a join, s", quantiles(held)],
    ]  # fmt: skip


def quantiles(values: list[float]) -> str:
    """Median, 95th percentile and maximum."""
    if not values:
        return "none"
    middle, high = np.quantile(values, [0.5, 0.95])
    return f"{middle:.3f}, {high:.3f}, {max(values):.3f}"


async def joins(count: int, seed: int, pause: float) -> list[list[str]]:
    """Let workers join one by one, and leave again, while one learns."""
    pool, gaps = Pool(seed), Gaps()
    stalls: list[float] = []
    usual: list[float] = []
    async with (
        cluster_of(2) as cluster,
        Client(cluster, asynchronous=True) as client,
        trainer_of(client, replicas=1) as trainer,
    ):
        feeding = asyncio.create_task(feed(trainer, pool, gaps, pause))
        await until(lambda: gaps.count > 500, 60)
        for number in range(count):
            await asyncio.sleep(1)
            now = time.monotonic()
            usual.append(gaps.longest(now - 1, now))
            await trainer.scale(2)
            await asyncio.sleep(0.3)
            stalls.append(gaps.longest(now, time.monotonic()))
            print(f"join {number + 1}: {stalls[-1]:.3f} s", file=sys.stderr)
            await trainer.scale(1)
        await trainer.scale(2)
        await stop(feeding)
        await trainer.drain()
        wrong, spread = await off_by(trainer, pool)
        held = [
            float(text.rpartition("held for ")[2].split()[0])
            for text in trainer.events["text"]
            if "was held for" in text
        ]
    return [
        ["joins, each followed by a leave", str(count)],
        ["mini-batches given", f"{int(pool.given.sum()):,}"],
        ["sum of gradients off by (mini-batches)", f"{wrong:.4f}"],
        ["replicas differ after a drain by", f"{spread:.2g}"],
        ["longest stall of a replica, s (median, p95, max)", quantiles(stalls)],
        ["before each join, s", quantiles(usual)],
        ["stream held for a join, s", quantiles(held)],
    ]


def main() -> None:
    """Run what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="*", default=["kills", "joins"])
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--joins", type=int, default=20)
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--pause", type=float, default=0.002, help="between two, s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    print(environment())
    # Dask's clusters give up a worker that is not there so long after it was lost, also
    # if it has come back meanwhile and was killed again.
    dask.config.set({"distributed.deploy.lost-worker-timeout": "1h"})
    for what in chosen.what:
        load = Load()
        if what == "kills":
            work = kills(chosen.kills, chosen.replicas, chosen.seed, chosen.pause)
        else:
            work = joins(chosen.joins, chosen.seed, chosen.pause)
        rows = asyncio.run(work)
        rows.append(["other load (cores)", f"{load.stop()['other_cores']:.2f}"])
        print(table(what, ["figure", "measured"], rows, chosen.markdown))


if __name__ == "__main__":
    main()
