"""Run a pipeline from the command line: cluster, pace, Ctrl-C, results, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import math
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console

from tensair_dask import plots, terminal
from tensair_dask.errors import SchedulerLostError, TensairError
from tensair_dask.interrupts import Interrupts, kept_from_children
from tensair_dask.pace import Pace
from tensair_dask.prequential import Prequential, Scores
from tensair_dask.tally import Tally

if TYPE_CHECKING:
    import numpy as np
    from distributed import Client

__all__ = ["Run", "command"]

LOOPBACK = "127.0.0.1"
SCHEDULER_PORT = 8786
DASHBOARD_PORT = 8787
CONNECT_TIMEOUT = 5.0  # seconds

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
        How many workers to start, or how many of the cluster's to use; None for two,
        or all.
    batch_size
        Records in a mini-batch.
    rate
        Records per second; None for as fast as they are learned.
    limit
        How many records to stream; None for all.
    window
        Records in the sliding window of the scores.
    save_to
        Where to save the model and the scores; None for nowhere.
    output
        Folder for the plots.
    as_json
        Print the result as one JSON object on standard output, and all else on
        standard error.
    debug
        Show tracebacks and the logs of the cluster.
    """

    records: str = "records"
    scheduler: str | None = None
    workers: int | None = None
    batch_size: int = 64
    rate: float | None = None
    limit: int | None = None
    window: int = 10_000
    save_to: Path | None = None
    output: Path = Path("tensair-output")
    as_json: bool = False
    debug: bool = False

    console: Console = field(init=False, repr=False)
    interrupts: Interrupts = field(default_factory=Interrupts, init=False, repr=False)
    tally: Tally = field(default_factory=Tally, init=False, repr=False)
    files: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.console = Console(stderr=self.as_json, highlight=False)

    def say(self, text: str) -> None:
        """Tell the person at the terminal something."""
        self.console.print(text, soft_wrap=True, markup=False)

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Join the scheduler, or start a cluster of this run's own on this machine.

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
        self.say(f"Starting {workers} worker{'s' if workers > 1 else ''}")
        async with (
            LocalCluster(
                n_workers=workers,
                threads_per_worker=1,
                processes=True,
                host=LOOPBACK,
                dashboard_address=f"{LOOPBACK}:{_dashboard_port()}",
                worker_dashboard_address=f"{LOOPBACK}:0",
                # What goes wrong comes back as an error; logs would tear the line.
                silence_logs=logging.INFO if self.debug else logging.CRITICAL,
                asynchronous=True,
            ) as cluster,
            Client(cluster, asynchronous=True) as client,
        ):
            yield client

    @contextlib.asynccontextmanager
    async def _joined(self) -> AsyncIterator[Client]:
        from distributed import Client

        assert self.scheduler is not None
        client = None
        try:
            await _reach(self.scheduler)
            client = Client(self.scheduler, asynchronous=True, timeout=CONNECT_TIMEOUT)
            # Its own timeout is for connecting, not for the first answer.
            await asyncio.wait_for(_opened(client), 2 * CONNECT_TIMEOUT)
        except (OSError, ValueError, asyncio.TimeoutError) as error:
            if client is not None:
                with contextlib.suppress(OSError, ValueError, asyncio.TimeoutError):
                    await client.close(timeout=1)
            raise SchedulerLostError(
                f"No scheduler answers at {self.scheduler}. Start one with "
                "'dask scheduler' and give the address that it prints, for example "
                "--scheduler tcp://127.0.0.1:8786; or leave --scheduler out."
            ) from error
        async with client:
            self.say(f"Joined the scheduler at {self.scheduler}")
            yield client

    @contextlib.contextmanager
    def watch(
        self, trainer: Any, reports: Any, scores: Prequential, times: np.ndarray
    ) -> Iterator[None]:
        """Show a live line, and add up the reports, while the stream goes by.

        Parameters
        ----------
        trainer
            The trainer that learns the stream.
        reports
            The stream of its reports.
        scores
            Where its predictions are scored.
        times
            When each record of the stream was made; the length says how many come.
        """
        sink = reports.sink(self.tally.add)
        line = terminal.LiveLine(
            self.console, self.tally, trainer, scores, times, self.records
        )
        self.tally.start()
        try:
            with line:
                yield
        finally:
            self.tally.stop()
            self.tally.lost = {one.address for one in trainer.replicas if not one.alive}
            sink.destroy()

    async def feed(self, source: Any, batches: Iterable[tuple[Any, Any]]) -> None:
        """Emit mini-batches into a stream at the run's rate, to the end or to Ctrl-C.

        Parameters
        ----------
        source
            A streamz source on this event loop: ``Stream(asynchronous=True)``.
        batches
            Pairs ``(x, y)``; the length of ``y`` is the number of records.
        """
        feeding = asyncio.ensure_future(self._emit(source, batches))
        with self.interrupts.stopping(feeding.cancel):
            await asyncio.wait({feeding})
        if feeding.cancelled():
            self.say("Stopping; press Ctrl-C again to leave at once")
        else:
            feeding.result()

    async def _emit(self, source: Any, batches: Iterable[tuple[Any, Any]]) -> None:
        pace = Pace(self.rate)
        for batch in batches:
            await pace.wait(len(batch[1]))
            await source.emit(batch)

    async def save(self, trainer: Any, scores: Prequential) -> None:
        """Save the model's state and the scores, if the user has asked for it."""
        if self.save_to is None:
            return
        import torch

        model, told = self.save_to, self.save_to.with_suffix(".json")
        if model.suffix not in (".pt", ".pth"):
            model, told = self.save_to / "model.pt", self.save_to / "scores.json"
        model.parent.mkdir(parents=True, exist_ok=True)
        torch.save(await trainer.state_dict(), model)
        self.files |= {"model": str(model), "scores": str(told)}
        told.write_text(json.dumps(self.result(scores), indent=2) + "\n", "utf-8")

    def finish(
        self, scores: Prequential, times: np.ndarray, title: str, axis: str = "time"
    ) -> None:
        """Print the final tables, draw the curves, print the JSON if asked for.

        Parameters
        ----------
        scores
            Of all predictions of the run.
        times
            When each record of the stream was made: the time axis of the curves.
        title
            What is predicted.
        axis
            What ``times`` are.
        """
        if not scores.records:
            self.say("Nothing was learned.")
            return
        self.console.print(terminal.scores_table(scores, title, self.records))
        self.console.print(terminal.run_table(self.tally, self.records), soft_wrap=True)
        self.files |= plots.draw(
            scores.curves(),
            times,
            folder=self.output,
            title=title,
            subtitle=f"scores over the last {scores.window:,} {self.records}",
            axis=axis,
        )
        for name, path in self.files.items():
            self.say(f"{name:>6}  {path}")
        if self.as_json:
            click.echo(json.dumps(self.result(scores)))

    def result(self, scores: Prequential) -> dict[str, Any]:
        """Everything that a script wants to know of the run, fit for JSON."""
        return {
            "interrupted": self.interrupts.received is not None,
            "overall": _plain(scores.overall()),
            "recent": _plain(scores.recent()),
            "baselines": {
                name: _plain(each) for name, each in scores.baselines().items()
            },
            "batches": self.tally.batches,
            "refused": dict(self.tally.refused),
            "seconds": self.tally.seconds,
            "rate": self.tally.rate,
            "staleness": {
                "mean": self.tally.staleness_mean,
                "most": self.tally.staleness_most,
            },
            "replicas": self.tally.replicas(),
            "files": self.files,
        }


class _Rate(click.ParamType):
    """A number of records per second, or "max" for no limit (None)."""

    name = "RATE|max"

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> float | None:
        if value is None or value == "max":
            return None
        with contextlib.suppress(TypeError, ValueError):
            rate = float(value)
            if 0 < rate < math.inf:
                return rate
        self.fail(
            f"{value!r} is not allowed; give a number of records per second above 0, "
            "for example 5000, or max",
            param,
            context,
        )


def command(
    *, records: str = "records", rate: float | None = None, batch_size: int = 64
) -> Callable[[Callable[[Run], Awaitable[None]]], click.Command]:
    """Make a command of a pipeline's ``async def main(run)``.

    Parameters
    ----------
    records
        What the records are called, such as "flights".
    rate
        Default of ``--rate`` in records per second; None for no limit.
    batch_size
        Default of ``--batch-size``.

    Returns
    -------
    decorator
        Gives a click command with the options of a `Run`. It exits with 0; 1 if the
        run failed; 2 if the options are wrong; 130 after Ctrl-C.
    """
    positive = click.IntRange(min=1)
    options = [
        click.option(
            "--scheduler",
            metavar="ADDRESS",
            help="Join the cluster of this scheduler, for example "
            "tcp://127.0.0.1:8786, instead of starting one.",
        ),
        click.option(
            "--workers",
            type=positive,
            help="Workers to start, or to use of those of the scheduler.  "
            "[default: 2, or all of the scheduler's]",
        ),
        click.option(
            "--batch-size",
            type=positive,
            default=batch_size,
            show_default=True,
            help="Records in a mini-batch.",
        ),
        click.option(
            "--rate",
            type=_Rate(),
            default="max" if rate is None else f"{rate:g}",
            show_default=True,
            help=f"How many {records} a second, or max.",
        ),
        click.option("--limit", type=positive, help=f"Stop after so many {records}."),
        click.option(
            "--window",
            type=positive,
            default=10_000,
            show_default=True,
            help=f"How many {records} the sliding scores look back.",
        ),
        click.option(
            "--save",
            "save_to",
            type=click.Path(path_type=Path),
            help="Save the model and the scores: a folder, or a file ending in .pt.",
        ),
        click.option(
            "--output",
            type=click.Path(path_type=Path, file_okay=False),
            default=Path("tensair-output"),
            show_default=True,
            help="Folder for the plots.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print the result as JSON on standard output, all else on standard "
            "error.",
        ),
        click.option("--debug", is_flag=True, help="Show tracebacks and logs."),
    ]

    def decorate(main: Callable[[Run], Awaitable[None]]) -> click.Command:
        def callback(**chosen: Any) -> None:
            sys.exit(_execute(main, Run(records=records, **chosen)))

        callback.__doc__ = main.__doc__
        decorated: Callable[..., Any] = callback
        for option in reversed(options):
            decorated = option(decorated)
        return click.command(name=main.__name__)(decorated)

    return decorate


def _execute(main: Callable[[Run], Awaitable[None]], run: Run) -> int:
    """Run a pipeline; the exit code."""

    async def supervised() -> None:
        with run.interrupts.handled():
            await main(run)

    if not run.debug:
        # Dask and asyncio tell at length of what Ctrl-C has cut short.
        for name in ("asyncio", "distributed"):
            logging.getLogger(name).setLevel(logging.CRITICAL)

    try:
        with kept_from_children():
            asyncio.run(supervised())
    except (KeyboardInterrupt, asyncio.CancelledError):
        run.say("Interrupted.")
        return run.interrupts.exit_code
    except Exception as error:
        if run.debug:
            raise
        line = " ".join(str(error).split())
        if not isinstance(error, TensairError):
            line = f"{type(error).__name__}: {line} (--debug shows where)"
        click.echo(f"{click.style('Error:', fg='red', bold=True)} {line}", err=True)
        return FAILED
    return 0 if run.interrupts.received is None else run.interrupts.exit_code


async def _opened(client: Client) -> Client:
    return await client


async def _reach(address: str) -> None:
    """Raise OSError at once where nobody listens; Dask would go on asking there."""
    from distributed.comm.addressing import parse_address, parse_host_port

    scheme, location = parse_address(address)
    if scheme in ("tcp", "tls"):
        host, port = parse_host_port(location, SCHEDULER_PORT)
        connecting = asyncio.open_connection(host, port)
        _, writer = await asyncio.wait_for(connecting, CONNECT_TIMEOUT)
        writer.close()


def _dashboard_port() -> int:
    """Dask's usual port if it is free, else 0 for any: no warning then."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, DASHBOARD_PORT))
        except OSError:
            return 0
    return DASHBOARD_PORT


def _plain(scores: Scores) -> dict[str, float | None]:
    """Scores as JSON has them: no NaN."""
    fields = dataclasses.asdict(scores)
    return {name: None if math.isnan(v) else v for name, v in fields.items()}
