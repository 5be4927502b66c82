"""What is lost, or learned twice, when the client is killed again and again, measured.

A topic of Kafka (a broker of its own, see tests/broker.py) is read to its end by a
program that is killed with SIGKILL at random moments and started again; each time it
goes on from its newest checkpoint, on a Dask cluster that outlives it. The model
counts: it has one parameter for each record, which grows by 1 whenever the record is
learned. So the parameters of a checkpoint tell what was lost, and what came twice.

"Learned twice" by a kill is what the newest checkpoint holds beyond its positions: it
is read again. "Read again" is all that was reported beyond them: most of it went with
the killed program's replicas, and is learned once all the same.

"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from distributed import Client, LocalCluster
from faults import quantiles
from measure import Load, child_environment, environment
from report import table
from streamz import Stream
from torch import nn

import tensair_dask as ta
import tensair_dask.sources  # gives Stream its from_kafka_records method
import tensair_dask.streams  # and its train method
from tensair_dask._common.rate_limiter import Pace
from tensair_dask.checkpoints import Store
from tensair_dask.errors import CheckpointMissingError

GROUP = "counting"
CHUNK = 32
# Often, so that offsets are committed soon after a checkpoint lets go of them.
COMMIT = "100ms"
# Seconds from the first report of a program to its end.
SOONEST, LATEST = 0.3, 2.0
# Seconds that a program may take to its first report, and the last one to the end.
START, END = 60.0, 120.0


# ------------------------------------------------------------------ the killed program


@dataclass
class Task:
    """What the program is started with."""

    scheduler: str
    broker: str
    topic: str
    folder: str
    records: int
    replicas: int
    every: float
    rate: float | None


class Counter(nn.Module):
    """A parameter for each record."""

    def __init__(self, records: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(records))

    def forward(self, numbers: torch.Tensor) -> torch.Tensor:
        """Give the parameters of these records."""
        return self.weight[numbers]


def count_up(prediction: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Have the gradient -1 for each record, so that a step at rate 1 adds 1."""
    return -prediction.sum()


def numbers_of(chunk: list[ta.sources.Record]) -> tuple[np.ndarray, np.ndarray]:
    numbers = np.array([each.value["id"] for each in chunk])
    return numbers, np.zeros(len(chunk), dtype="float32")


def tell(kind: str, value: float = 0) -> None:
    """Write a line that is out when this returns, whatever comes next."""
    os.write(1, f"{kind} {value}\n".encode())


def report(report: ta.Report) -> None:
    if report.error is not None:
        raise report.error
    tell("report", report.samples)


async def learn(task: Task) -> None:
    """Read the topic from where the model stands, to its end."""
    pace = Pace(task.rate)
    async with Client(task.scheduler, asynchronous=True) as client:
        async with ta.Trainer.restore(
            task.folder,
            client,
            or_begin=True,
            model=functools.partial(Counter, task.records),
            loss=count_up,
            optimizer=functools.partial(torch.optim.SGD, lr=1.0),
            replicas=task.replicas,
            checkpoint_to=task.folder,
            checkpoint_every=task.every,
            name="counter",
        ) as trainer:
            source = Stream.from_kafka_records(
                task.topic,
                {"bootstrap.servers": task.broker, "group.id": GROUP},
                chunk=CHUNK,
                partitions="all",
                follow=False,
                positions=trainer.positions,
                commit_every=COMMIT,
                asynchronous=True,
            )
            batches = source.map(numbers_of)
            batches.train(trainer).sink(report)
            batches.sink(lambda batch: pace.wait(len(batch[0])))
            source.start()
            await source.ended()
        # The trainer's last checkpoint is written: all may be committed.
        await source.close()


# -------------------------------------------------------------------- who starts it


@dataclass
class Program:
    """A process that learns, and what it has told.

    Attributes
    ----------
    imported, first
        Seconds from its start until it had imported all, and to its first report.
    reported
        Records that it has reported.
    """

    process: subprocess.Popen[str]
    begin: float = field(default_factory=time.monotonic)
    imported: float = 0.0
    first: float = 0.0
    reported: int = 0
    learns: threading.Event = field(default_factory=threading.Event)

    def listen(self) -> None:
        """Take in its lines, up to its end."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            kind, _, value = line.partition(" ")
            if kind == "imported":
                self.imported = time.monotonic() - self.begin
            elif kind == "report":
                self.first = self.first or time.monotonic() - self.begin
                self.reported += int(value)
                self.learns.set()
        self.learns.set()


@contextlib.contextmanager
def started(task: Task, log: Path) -> Iterator[Program]:
    """Start the program; at the end it is killed, if it still runs."""
    with log.open("a") as errors:
        process = subprocess.Popen(
            [sys.executable, __file__, "--learn", json.dumps(asdict(task))],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=child_environment(),
            start_new_session=True,  # Ctrl-C is for who started it
        )
    program = Program(process)
    listener = threading.Thread(target=program.listen)
    listener.start()
    try:
        yield program
    finally:
        process.kill()
        process.wait()
        listener.join()
        assert process.stdout is not None
        process.stdout.close()


@dataclass
class State:
    """What the newest checkpoint says.

    Attributes
    ----------
    counts
        How often each record was learned; shape (records,).
    positions
        The next offset of each partition.
    beyond
        Which records are read again from there.
    """

    counts: np.ndarray
    positions: list[int]
    beyond: np.ndarray

    @property
    def lost(self) -> int:
        """Records that nobody will read again, and that were not learned."""
        return int(((self.counts == 0) & ~self.beyond).sum())

    @property
    def again(self) -> int:
        """Records that were learned and will be read again."""
        return int(((self.counts > 0) & self.beyond).sum())


def newest(task: Task, partitions: int) -> State:
    """Read the newest checkpoint."""
    counts, positions = np.zeros(task.records), [0] * partitions
    with contextlib.suppress(CheckpointMissingError):
        checkpoint, _ = Store(task.folder).load()
        counts = checkpoint.model["weight"].numpy()
        found = checkpoint.positions.get(task.topic, {})
        positions = [found.get(f"{task.topic}:{at}", 0) for at in range(partitions)]
    numbers = np.arange(task.records)
    offsets = numbers // partitions
    return State(
        counts, positions, offsets >= np.array(positions)[numbers % partitions]
    )


@dataclass
class Found:
    """What all kills have shown."""

    imported: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    lived: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)
    reread: list[float] = field(default_factory=list)
    lost: int = 0
    commits: int = 0
    too_far: int = 0
    behind: list[float] = field(default_factory=list)
    unsaved: int = 0
    reported: int = 0


def kill_often(
    task: Task, broker: Any, partitions: int, count: int, seed: int, log: Path
) -> Found:
    """Start the program and kill it, so often; then let it come to the end."""
    dice = random.Random(seed)
    found = Found()
    state = newest(task, partitions)
    for number in range(count):
        before = state
        with started(task, log) as program:
            wait_for_report(program, log)
            lives = dice.uniform(SOONEST, LATEST)
            with contextlib.suppress(subprocess.TimeoutExpired):
                program.process.wait(lives)
                print("the topic was read to its end too soon", file=sys.stderr)
                break
        # It is killed now, and all that it has told is known.
        state = newest(task, partitions)
        committed = broker.committed(GROUP, task.topic)
        found.imported.append(program.imported)
        found.first.append(program.first)
        found.lived.append(lives)
        found.reported += program.reported
        found.unsaved += state.positions == before.positions
        found.lost += state.lost
        found.again.append(state.again)
        reread = sum(before.positions) + program.reported - sum(state.positions)
        found.reread.append(reread)
        for offset, position in zip(committed, state.positions, strict=True):
            found.commits += offset is not None
            found.too_far += (offset or 0) > position
            found.behind.append(position - (offset or 0))
        print(
            f"kill {number + 1}: {lives:.2f} s after the first report, which came "
            f"after {program.first:.1f} s; checkpoint at {sum(state.positions):,}, "
            f"committed {sum(each or 0 for each in committed):,}, reported "
            f"{reread:,} beyond, of them in the checkpoint {state.again:,}",
            file=sys.stderr,
        )
    task.rate = None
    with started(task, log) as program:
        wait_for_report(program, log)
        if program.process.wait(END):
            raise failure(program, log)
    found.first.append(program.first)
    found.imported.append(program.imported)
    found.reported += program.reported
    return found


def wait_for_report(program: Program, log: Path) -> None:
    """Wait until the program learns.

    Raises
    ------
    RuntimeError
        If it has ended, or takes too long.
    """
    if not program.learns.wait(START) or not program.first:
        raise failure(program, log)


def failure(program: Program, log: Path) -> RuntimeError:
    with contextlib.suppress(subprocess.TimeoutExpired):
        program.process.wait(1)
    return RuntimeError(
        f"The program that learns has reported {program.reported} records and ended "
        f"with {program.process.poll()}:\n{log.read_text()[-4000:]}"
    )


def counted(values: list[float]) -> str:
    """Median, 95th percentile and maximum of whole numbers."""
    if not values:
        return "none"
    middle, high = np.quantile(values, [0.5, 0.95])
    return f"{middle:.0f}, {high:.0f}, {max(values):.0f}"


def left_over(client: Client) -> int:
    """Count the replicas on the workers, when there should be none any more."""
    deadline = time.monotonic() + 10
    while True:
        counts = client.run(lambda dask_worker: len(dask_worker.state.actors))
        if not any(counts.values()) or time.monotonic() > deadline:
            return sum(counts.values())
        time.sleep(0.1)


def rows_of(chosen: argparse.Namespace) -> list[list[str]]:
    """Start broker and cluster, kill, and tell what came of it."""
    broker_module = _broker_of_the_tests()
    with (
        tempfile.TemporaryDirectory() as name,
        broker_module.running(Path(name)) as broker,
        LocalCluster(
            n_workers=chosen.replicas,
            threads_per_worker=1,
            processes=True,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            silence_logs=50,
        ) as cluster,
    ):
        topic = broker.topic(chosen.partitions)
        for partition in range(chosen.partitions):
            numbers = range(partition, chosen.records, chosen.partitions)
            broker.write(topic, ({"id": each} for each in numbers), partition)
        rate = chosen.rate or chosen.records / max(1, chosen.kills) / 1.2
        task = Task(
            cluster.scheduler_address,
            broker.address,
            topic,
            f"{name}/checkpoints",
            chosen.records,
            chosen.replicas,
            chosen.every,
            rate,
        )
        found = kill_often(
            task,
            broker,
            chosen.partitions,
            chosen.kills,
            chosen.seed,
            Path(name) / "program.log",
        )
        state = newest(task, chosen.partitions)
        committed = broker.committed(GROUP, topic)
        with Client(cluster) as client:
            left = left_over(client)
    interval = rate * chosen.every
    most = max(found.again, default=0)
    return [
        ["SIGKILLs of the client, replicas", f"{len(found.lived)}, {chosen.replicas}"],
        ["records, partitions", f"{chosen.records:,}, {chosen.partitions}"],
        ["records per second; a checkpoint every", f"{rate:.0f}; {chosen.every:g} s"],
        ["killed before a checkpoint of its own", str(found.unsaved)],
        ["reported in all", f"{found.reported:,}"],
        ["records lost", str(int((state.counts == 0).sum()))],
        ["lost as the checkpoints after the kills say", str(found.lost)],
        ["learned twice or more / most often", f"{int((state.counts > 1).sum())} / "
         f"{int(state.counts.max())} times"],
        ["learned twice by one kill (median, p95, max)", counted(found.again)],
        ["of what a checkpoint interval holds, at most",
         f"{most:.0f} of {interval:.0f}: {most / interval:.1%}"],
        ["read again after a kill (median, p95, max)", counted(found.reread)],
        ["offsets committed beyond the checkpoint", f"{found.too_far} of "
         f"{found.commits}"],
        ["committed behind it by (median, p95, max)", counted(found.behind)],
        ["committed at the end", ", ".join(map(str, committed))],
        ["restart to first report, s (median, p95, max)", quantiles(found.first)],
        ["of them importing, s", quantiles(found.imported)],
        ["replicas left on the workers", str(left)],
    ]  # fmt: skip


def _broker_of_the_tests() -> Any:
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
    import broker

    return broker


def main() -> None:
    """Kill, or be the program that is killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--partitions", type=int, default=2)
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--every", type=float, default=1.0, help="checkpoints, s")
    parser.add_argument(
        "--rate",
        type=float,
        help="records per second; by default so many that all kills come in time",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--learn", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.learn is not None:
        tell("imported")
        asyncio.run(learn(Task(**json.loads(chosen.learn))))
        return
    # As Ctrl-C: what was started is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print(environment())
    load = Load()
    rows = rows_of(chosen)
    rows.append(["other load (cores)", f"{load.stop()['other_cores']:.2f}"])
    title = "the client is killed between checkpoints"
    print(table(title, ["figure", "measured"], rows, chosen.markdown))


if __name__ == "__main__":
    main()
