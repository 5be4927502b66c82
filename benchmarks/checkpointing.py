"""What it costs training to take a checkpoint of 100 MB every 10 s, measured.

Windows with a checkpoint and without take turns within one run, in pairs whose order
alternates, and a ratio is taken within its pair. A checkpoint is asked for at the
beginning of its window, and goes the way of those that come by themselves. What it
costs lies within a second or two: so windows are short, and there are many of them, and
the time that a checkpoint has cost is divided by the time from one to the next. When a
replica makes its steps is told by a metric, which runs on the replica, so that what
holds up the client does not count as a pause of a replica.

"Pause" is the longest time between two steps of a replica from when a checkpoint is
asked for until it is written, less the median of such times. Windows without one are
looked at for as long as the checkpoint of their pair has taken.

Where others use the machine, the CPU that a checkpoint needs says more than the
throughput: what this process, its cluster's scheduler included, and the workers have
used in a window, less what as many steps need without one.
"""

from __future__ import annotations

import argparse
import asyncio
import functools
import itertools
import signal
import sys
import tempfile
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import torch
from distributed import Client
from faults import cluster_of, quantiles, stop, until
from measure import Load, Spread, environment
from report import table
from torch import nn

import tensair_dask as ta

WIDTH = 2048
COST_AT_MOST = 0.03
PAUSE_AT_MOST = 1.0  # steps


def model(layers: int) -> nn.Module:
    """Make square layers of 4.2 million parameters each, and one to a number."""
    square = [(nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU()) for _ in range(layers)]
    return nn.Sequential(*itertools.chain(*square), nn.Linear(WIDTH, 1, bias=False))


def loss(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return nn.functional.mse_loss(prediction[:, 0], y)


def now(prediction: torch.Tensor, y: torch.Tensor) -> float:
    """Tell when a step is made; all processes of a machine have this clock."""
    return time.monotonic()


class Steps:
    """When each replica has made its steps."""

    def __init__(self) -> None:
        self._times: dict[str, list[float]] = defaultdict(list)
        self.count = 0

    def add(self, report: ta.Report) -> None:
        """Take note of a report."""
        if report.error is not None:
            raise report.error
        self.count += 1
        self._times[report.replica].append(report.metrics["now"])

    def made(self, begin: float, end: float) -> float:
        """Count the steps of all replicas; of those at the edges, their share."""
        made = 0.0
        for times in self._times.values():
            reached = np.interp([begin, end], np.sort(times), np.arange(len(times)))
            made += reached[1] - reached[0]
        return float(made)

    def gaps(self, begin: float, end: float) -> np.ndarray:
        """Seconds between steps of the same replica, where they overlap this time."""
        found = []
        for times in self._times.values():
            array = np.sort(times)
            touched = (array[1:] >= begin) & (array[:-1] <= end)
            found.append(np.diff(array)[touched])
        return np.concatenate(found)


@dataclass
class Window:
    """A part of the run.

    Attributes
    ----------
    begin, end
        Of it.
    took
        Seconds until the checkpoint was written; 0 without one.
    cpu
        Seconds of all cores that client, scheduler and workers have used.
    client
        Those of client and scheduler.
    """

    begin: float
    end: float
    took: float
    cpu: float
    client: float


@dataclass
class Measured:
    """What a run has shown."""

    pairs: list[tuple[Window, Window]] = field(default_factory=list)
    steps: Steps = field(default_factory=Steps)
    size: int = 0


async def feed(trainer: ta.Trainer, rows: int, steps: Steps) -> None:
    """Keep all replicas busy until it is cancelled."""
    dice = np.random.default_rng(0)
    pool = [
        (
            dice.standard_normal((rows, WIDTH), dtype="float32"),
            dice.standard_normal(rows, dtype="float32"),
        )
        for _ in range(16)
    ]
    for pair in itertools.cycle(pool):
        rest = trainer.session.intake.feed(pair, lambda pair: pair, steps.add)
        if rest is not None:
            await rest


def cpu_of_ours() -> float:
    """CPU of this process and its children so far, in seconds."""
    this = psutil.Process()
    times = [each.cpu_times() for each in (this, *this.children(recursive=True))]
    return sum(each.user + each.system for each in times)


async def window(trainer: ta.Trainer, seconds: float, with_one: bool) -> Window:
    """Let training go on for so long, and longer if the checkpoint takes longer."""
    begin, took = time.monotonic(), 0.0
    cpu, client = cpu_of_ours(), time.process_time()
    if with_one:
        await trainer.save()
        took = time.monotonic() - begin
    await asyncio.sleep(max(0.0, begin + seconds - time.monotonic()))
    end = time.monotonic()
    return Window(begin, end, took, cpu_of_ours() - cpu, time.process_time() - client)


async def run(chosen: argparse.Namespace, folder: str) -> Measured:
    """Train, with a checkpoint in every other window."""
    measured = Measured()
    steps = measured.steps
    async with (
        cluster_of(chosen.replicas) as cluster,
        Client(cluster, asynchronous=True) as client,
        ta.Trainer(
            client,
            model=functools.partial(model, chosen.layers),
            loss=loss,
            optimizer=functools.partial(torch.optim.SGD, lr=1e-3),
            metrics={"now": now},
            replicas=chosen.replicas,
            staleness=chosen.staleness,
            checkpoint_to=folder,
        ) as trainer,
    ):
        feeding = asyncio.create_task(feed(trainer, chosen.rows, steps))
        try:
            # The first steps pay for fresh memory, and the first checkpoint does.
            if not await until(lambda: steps.count > 50 or feeding.done(), 60):
                raise RuntimeError(f"Only {steps.count} steps were made in 60 s.")
            measured.size = Path(await trainer.save()).stat().st_size
            await asyncio.sleep(2)
            for number in range(chosen.pairs):
                first = bool(number % 2)
                windows = {
                    kind: await window(trainer, chosen.seconds, kind)
                    for kind in (first, not first)
                }
                measured.pairs.append((windows[True], windows[False]))
                tell(number, measured)
                if feeding.done():
                    break
            # A report may come a little after its step.
            count = steps.count
            await until(lambda: steps.count > count + 10 or feeding.done(), 10)
        finally:
            await stop(feeding)  # raises what it has ended with
    return measured


def tell(number: int, measured: Measured) -> None:
    taken, without = measured.pairs[-1]
    made = [measured.steps.made(each.begin, each.end) for each in (taken, without)]
    print(
        f"pair {number + 1}: about {made[0]:.0f} mini-batches with, {made[1]:.0f} "
        f"without; the checkpoint took {taken.took:.2f} s",
        file=sys.stderr,
    )


def spread(values: list[float], form: str) -> str:
    """Median, smallest and largest."""
    found = Spread.of(values)
    return f"{found.median:{form}} ({found.low:{form}} to {found.high:{form}})"


def mean(values: list[float], form: str) -> str:
    """Mean, and its standard error."""
    error = np.std(values, ddof=1) / np.sqrt(len(values))
    return f"{np.mean(values):{form}} (standard error {error:{form}})"


def rows_of(measured: Measured, chosen: argparse.Namespace) -> list[list[str]]:
    """Turn it into rows of a table."""
    steps = measured.steps
    size = sum(each.numel() for each in model(chosen.layers).parameters())
    rates, costs, needs, clients = [], [], [], []
    usual, pauses, others = [], [], []
    for taken, without in measured.pairs:
        made, made_without = (
            steps.made(each.begin, each.end) for each in (taken, without)
        )
        rates.append(made_without / (without.end - without.begin))
        costs.append(taken.end - taken.begin - made / rates[-1])
        as_many = made / made_without
        needs.append(taken.cpu - as_many * without.cpu)
        clients.append(taken.client - as_many * without.client)
        typical = float(np.median(steps.gaps(without.begin, without.end)))
        usual.append(1e3 * typical)
        for found, each in ((pauses, taken), (others, without)):
            longest = steps.gaps(each.begin, each.begin + taken.took).max()
            found.append((longest - typical) / typical)
    shares = [cost / chosen.every for cost in costs]
    met = np.mean(shares) <= COST_AT_MOST
    added = [one - other for one, other in zip(pauses, others, strict=True)]
    short = Spread.of(added).median <= PAUSE_AT_MOST
    return [
        ["replicas, parameters", f"{chosen.replicas}, {size / 1e6:.1f} million"],
        ["a checkpoint, MB", f"{measured.size / 1e6:.1f}"],
        ["pairs of windows, s each", f"{len(measured.pairs)}, {chosen.seconds:g}"],
        ["mini-batches per second without", spread(rates, ".1f")],
        ["from step to step without, ms", spread(usual, ".0f")],
        ["a checkpoint costs, s of training (mean)", mean(costs, ".3f")],
        [f"one every {chosen.every:g} s, of the throughput", mean(shares, ".1%")],
        [f"at most {COST_AT_MOST:.0%} (mean)", "yes" if met else "NO"],
        ["CPU that a checkpoint needs, s (mean)", mean(needs, ".2f")],
        ["of it by client and scheduler, s (mean)", mean(clients, ".2f")],
        ["a checkpoint takes, s (median, p95, max)",
         quantiles([taken.took for taken, _ in measured.pairs])],
        ["longest pause meanwhile, steps (median, p95, max)", quantiles(pauses)],
        ["longest pause without, steps (median, p95, max)", quantiles(others)],
        ["the former less the latter (median, p95, max)", quantiles(added)],
        [f"at most {PAUSE_AT_MOST:g} (median)", "yes" if short else "NO"],
    ]  # fmt: skip


def main() -> None:
    """Run it, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=40)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a window")
    parser.add_argument("--every", type=float, default=10.0, help="s to the next one")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--layers", type=int, default=6, help="of 16.8 MB each")
    parser.add_argument("--rows", type=int, default=16, help="of a mini-batch")
    # The default of trainers, 100 ms, is meant for smaller models: a message of 100 MB
    # would leave ten times a second.
    parser.add_argument("--staleness", default="1s", help="of gradients")
    parser.add_argument("--folder", default=tempfile.gettempdir())
    parser.add_argument("--markdown", action="store_true")
    chosen = parser.parse_args()
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    print(environment())
    load = Load()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        rows = rows_of(asyncio.run(run(chosen, folder)), chosen)
    rows.append(["other load (cores)", f"{load.stop()['other_cores']:.2f}"])
    title = "training goes on while checkpoints are taken"
    print(table(title, ["figure", "measured"], rows, chosen.markdown))


if __name__ == "__main__":
    main()
