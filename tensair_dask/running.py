"""Run a pipeline from the command line: cluster, pace, Ctrl-C, results, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import math
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from tensair_dask import plots, terminal
from tensair_dask.errors import SchedulerLostError, TensairError
from tensair_dask.prequential import Prequential, Scores

if TYPE_CHECKING:
    import numpy as np
    from distributed import Client

__all__ = ["Pace", "Run", "command"]

LOOPBACK = "127.0.0.1"
DASHBOARD_PORT = 8787
CONNECT_TIMEOUT = 5.0

FAILED = 1


@dataclass
class Run:
    """One run of a pipeline: what the user asked for, and the steps that all share.

    Attributes
    ----------
    records
        What the records are called, such as "flights".
    scheduler
        Address of the scheduler to join; None starts a cluster on this machine.
    workers
        How many workers to start, or how many of the cluster's to use (None: all).
    batch_size
        Records in a mini-batch.
    rate
        Records per second; None for as fast as they are learned.
    limit
        How many records to stream; None for all.
    window
        Records in the sliding window of the scores.
    save_path
        Where to save the model and the scores; None for nowhere.
    output
        Folder for the plots.
    as_json
        Print the result as one JSON object on standard output, all else on standard
        error.
    debug
        Show tracebacks and the logs of the cluster.
    interrupted
        The signal that ended the run early; None if none did.
    """

    records: str = "records"
    scheduler: str | None = None
    workers: int | None = None
    batch_size: int = 64
    rate: float | None = None
    limit: int | None = None
    window: int = 10_000
    save_path: Path | None = None
    output: Path = Path("tensair-output")
    as_json: bool = False
    debug: bool = False
    interrupted: signal.Signals | None = None

    console: Console = field(init=False, repr=False)
    _task: asyncio.Task[Any] | None = field(default=None, init=False, repr=False)
    _feeding: asyncio.Future[None] | None = field(default=None, init=False, repr=False)
    _watch: terminal.Watch | None = field(default=None, init=False, repr=False)
    _files: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.console = Console(stderr=self.as_json, highlight=False)

    def say(self, text: str) -> None:
        """Tell the person in front of the terminal something."""
        self.console.print(text)

    # ------------------------------------------------------------------ the cluster

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Join the scheduler, or start a cluster of this machine's own for the run.

        Raises
        ------
        SchedulerLostError
            If no scheduler answers at the address.
        """
        opened = self._own_cluster() if self.scheduler is None else self._joined()
        async with opened as client:
            self.say(f"Dashboard: {client.dashboard_link}")
            yield client

    @contextlib.asynccontextmanager
    async def _own_cluster(self) -> AsyncIterator[Client]:
        from distributed import Client, LocalCluster

        workers = self.workers or 2
        self.say(f"Starting {workers} worker{'s'[: workers > 1]} on this machine")
        async with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host=LOOPBACK,
                dashboard_address=f"{LOOPBACK}:{_free_dashboard_port()}",
                worker_dashboard_address=f"{LOOPBACK}:0",
                silence_logs=logging.INFO if self.debug else logging.ERROR,
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            yield client

    @contextlib.asynccontextmanager
    async def _joined(self) -> AsyncIterator[Client]:
        from distributed import Client

        try:
            client = await Client(
                self.scheduler, asynchronous=True, timeout=CONNECT_TIMEOUT
            )
        except (OSError, ValueError) as error:
            raise SchedulerLostError(
                f"No scheduler answers at {self.scheduler}. Start one with "
                "'dask scheduler' and give the address that it prints, for example "
                "--scheduler tcp://127.0.0.1:8786; or leave --scheduler out."
            ) from error
        async with client:
            self.say(f"Joined the scheduler at {self.scheduler}")
            yield client

    # ------------------------------------------------------------------- the stream

    @contextlib.contextmanager
    def watch(
        self, trainer: Any, reports: Any, scores: Prequential, times: np.ndarray
    ) -> Iterator[None]:
        """Show a live line while the stream goes by.

        Parameters
        ----------
        trainer
            The trainer that learns the stream.
        reports
            The stream of its reports.
        scores
            Where the predictions are scored.
        times
            When each record of the stream was made; the length says how many come.
        """
        self._watch = terminal.Watch(self.console, trainer, scores, times, self.records)
        sink = reports.sink(self._watch.add)
        try:
            with self._watch:
                yield
        finally:
            sink.destroy()

    async def feed(self, source: Any, batches: Iterable[tuple[Any, Any]]) -> None:
        """Emit mini-batches into a stream at the run's rate, until Ctrl-C or the end.

        Parameters
        ----------
        source
            A streamz source on this event loop: ``Stream(asynchronous=True)``.
        batches
            Pairs ``(x, y)``; the length of ``y`` is the number of records.
        """
        self._feeding = asyncio.ensure_future(self._emit(source, batches))
        try:
            await self._feeding
        except asyncio.CancelledError:
            # Ctrl-C ends the stream, not the run; anything else is not for us.
            if self.interrupted is None or not self._feeding.cancelled():
                raise
        finally:
            self._feeding.cancel()
            self._feeding = None

    async def _emit(self, source: Any, batches: Iterable[tuple[Any, Any]]) -> None:
        pace = Pace(self.rate)
        for batch in batches:
            await pace.wait(len(batch[1]))
            await source.emit(batch)

    # ------------------------------------------------------------------- the result

    async def save(self, trainer: Any, scores: Prequential) -> None:
        """Save the model's state and the scores, if the user asked for it."""
        if self.save_path is None:
            return
        import torch

        path = self.save_path
        if path.suffix not in (".pt", ".pth"):
            path = path / "model.pt"
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(await trainer.state_dict(), path)
        self._files["model"] = str(path)
        self._files["scores"] = str(path.with_name("scores.json"))
        result = json.dumps(self.result(scores), indent=2)
        Path(self._files["scores"]).write_text(result + "\n", encoding="utf-8")

    def finish(self, scores: Prequential, times: np.ndarray, title: str) -> None:
        """Print the final table, draw the curves, and print the JSON if asked for.

        Parameters
        ----------
        scores
            Of all predictions of the run.
        times
            When each record of the stream was made: the time axis of the curves.
        title
            What is predicted.
        """
        if not scores.records:
            self.say("Nothing was learned.")
            return
        self.console.print(terminal.scores_table(scores, title, self.records))
        if self._watch is not None:
            self.console.print(self._watch.summary())
        self._files |= plots.draw(
            scores.curves(),
            times,
            folder=self.output,
            title=title,
            subtitle=f"over the last {scores.window:,} {self.records}",
        )
        for name, path in self._files.items():
            self.say(f"{name.capitalize():>9}  {path}")
        if self.as_json:
            click.echo(json.dumps(self.result(scores)))

    def result(self, scores: Prequential) -> dict[str, Any]:
        """Everything that a script wants to know of a run, fit for JSON."""
        return {
            "records": scores.records,
            "interrupted": self.interrupted is not None,
            "overall": _plain(scores.overall()),
            "recent": _plain(scores.recent()),
            "baselines": {
                name: _plain(baseline) for name, baseline in scores.baselines().items()
            },
            **({} if self._watch is None else self._watch.result()),
            "files": dict(self._files),
        }

    # ----------------------------------------------------------------------- Ctrl-C

    def interrupt(self, number: signal.Signals) -> None:
        """End early: the stream at the first signal, the run at the second."""
        first = self.interrupted is None
        self.interrupted = number
        if first and self._feeding is not None:
            self._feeding.cancel()
            self.say("Stopping. Press Ctrl-C again to leave at once.")
        elif self._task is not None and not self._task.cancelling():
            self._task.cancel()
        else:
            # Workers leave when the process that started them is gone.
            os._exit(128 + number)


class Pace:
    """Open-loop clock: says when the next records are due, at a steady rate.

    Time that was lost to back-pressure is not made up for in a burst, except for a
    small slack that hides the coarseness of timers.

    Parameters
    ----------
    rate
        Records per second; None for no limit.
    slack
        Seconds by which the records may be late and still keep to their times.
    """

    def __init__(self, rate: float | None, slack: float = 0.05) -> None:
        self.rate = rate
        self.slack = slack
        self._due = -math.inf

    async def wait(self, records: int) -> None:
        """Return when the next ``records`` are due."""
        now = time.monotonic()
        self._due = max(self._due, now - (self.slack if self._due > 0 else 0))
        # Sleep in any case, if for no time: others need the event loop.
        await asyncio.sleep(max(0.0, self._due - now) if self.rate else 0.0)
        if self.rate:
            self._due += records / self.rate
