"""Run a pipeline from the command line: options, pace, Ctrl-C, results, exit code."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import sys
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
)
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.core import ParameterSource
from rich.console import Console
from rich.text import Text

from tensair_dask._common.interrupts import Interrupts, kept_from_children
from tensair_dask._common.program import execute
from tensair_dask._common.rate_limiter import Pace
from tensair_dask.coordinator.refused import verdict
from tensair_dask.errors import RefusedError, SourceError
from tensair_dask.observe.figures.chart import Chart
from tensair_dask.observe.html_report import Table, written
from tensair_dask.runner import terminal
from tensair_dask.runner.cluster import joined, own_cluster
from tensair_dask.runner.options import (
    PATH,
    POSITIVE,
    Every,
    Rate,
    option,
    options_of,
)
from tensair_dask.runner.replica_log import ReplicaLog
from tensair_dask.runner.resume import Continuation
from tensair_dask.runner.summary import Tally

if TYPE_CHECKING:
    from distributed import Client

__all__ = ["Run", "command"]

AnyRun = TypeVar("AnyRun", bound="Run")


@dataclass
class Run:
    """One run of a pipeline: what the user asked for, and the steps that all share.

    What an `option` describes is what the user asked for.

    Attributes
    ----------
    records
        What the records are called, such as "flights".
    command
        How it was called.
    title
        What it does, if the pipeline says so.
    trainer
        The trainer that is watched, for the page.
    continuation
        Where it goes on.
    """

    records: str = "records"
    scheduler: str | None = option(
        None,
        "Join the cluster of this scheduler, for example tcp://127.0.0.1:8786, instead "
        "of starting one.",
        metavar="ADDRESS",
    )
    workers: int | None = option(
        None,
        "Workers to start, or to use of those of the scheduler.",
        type=POSITIVE,
        shown="2, or all of the scheduler's",
    )
    rate: float | None = option(
        None, "How many {records} a second, or max.", type=Rate(), shown="max"
    )
    limit: int | None = option(None, "Stop after so many {records}.", type=POSITIVE)
    as_json: bool = option(
        False,
        "Print the result as JSON on standard output, all else on standard error.",
        "--json",
    )
    checkpoint: str | None = option(
        None,
        "Save checkpoints there, on any file system that fsspec knows; if there are "
        "some, go on from the newest.",
        metavar="FOLDER",
    )
    checkpoint_every: int | str = option(
        "10s", "How often to save checkpoints: mini-batches, or a time.", type=Every()
    )
    report: Path | None = option(
        None,
        "Write a page that tells of the whole run, one HTML file that opens without a "
        "network.",
        type=PATH,
    )
    debug: bool = option(False, "Show tracebacks and logs.")

    command: str = field(default="", init=False, repr=False)
    title: str = field(default="", init=False, repr=False)
    trainer: Any = field(default=None, init=False, repr=False)
    console: Console = field(init=False, repr=False)
    interrupts: Interrupts = field(default_factory=Interrupts, init=False, repr=False)
    tally: Tally = field(default_factory=Tally, init=False, repr=False)
    continuation: Continuation = field(init=False, repr=False)
    files: dict[str, str] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.console = Console(stderr=self.as_json, highlight=False)
        self.continuation = Continuation(self.checkpoint, self.checkpoint_every)
        # Processes of the workers on this machine, by address.
        self._processes: dict[str, int] = {}

    def say(self, text: str) -> None:
        """Print something for the person at the terminal."""
        self.console.print(text, soft_wrap=True, markup=False)

    def say_file(self, name: str, path: object) -> None:
        """Print a file that was written, in one column with the others."""
        width = max(map(len, ["report", *self.files]))
        self.say(f"{name:>{width}}  {path}")

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        """Join the scheduler, or start a cluster of this run's own on this machine.

        Raises
        ------
        SchedulerLostError
            If no scheduler answers at the address.
        ConfigurationError
            If it wants TLS and no certificate is configured.
        """
        if self.scheduler is None:
            workers = self.workers or 2
            self.say(f"Starting {workers} worker{'s' if workers > 1 else ''}")
            opened = own_cluster(
                workers, logging.INFO if self.debug else logging.CRITICAL
            )
        else:
            opened = joined(self.scheduler)
        async with opened as client:
            if self.scheduler is None:
                await self._say_processes(client)
            else:
                self.say(f"Joined the scheduler at {self.scheduler}")
            self.say(f"Dashboard: {client.dashboard_link}")
            yield client

    async def _say_processes(self, client: Client) -> None:
        self._processes = await client.run(os.getpid)
        if self.console.is_terminal or self.debug:
            text = ", ".join(map(str, self._processes.values()))
            self.say(f"Workers: {text} (kill -9 one, and watch)")

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect, and why; empty if all have.

        Parameters
        ----------
        given
            Names of the fields that the user has given.
        """
        return ""

    async def go_on(self, name: str, **options: Any) -> None:
        """Look where the stream goes on, and say so; see `Continuation.open`."""
        await self.continuation.open(name, **options)
        going_on = self.continuation
        if going_on.path:
            text = (
                f"Going on from {going_on.path} after {going_on.begins:,} mini-batches"
            )
            if going_on.again:
                text += f"; up to {going_on.again:,} of the next are learned twice"
            self.say(text)

    @contextlib.asynccontextmanager
    async def training(self, trainer: Any) -> AsyncIterator[Any]:
        """Open a trainer; when it is closed, say where the last checkpoint lies."""
        try:
            async with trainer:
                yield trainer
        finally:
            if trainer.last_checkpoint:
                self.say(
                    f"Checkpoint: {trainer.last_checkpoint} (run the same again, and "
                    "it goes on from there)"
                )

    @contextlib.contextmanager
    def watch(self, trainer: Any, reports: Any, view: terminal.View) -> Iterator[None]:
        """Show a live line, and add up the reports, while the stream goes by.

        Parameters
        ----------
        trainer
            The trainer that learns the stream.
        reports
            The stream of its reports.
        view
            What the line shows.
        """
        self.trainer = trainer
        if trainer.dashboard_link is not None:
            self.say(f"Watch it learn: {trainer.dashboard_link}")
        sink = reports.sink(self.tally.add)
        unsubscribe = trainer.dead_letters.subscribe(self._count)
        self.tally.start()
        try:
            with (
                terminal.live_line(self.console, view),
                ReplicaLog(trainer, self.say, self.continuation, self._processes),
            ):
                yield
        finally:
            self.tally.stop()
            self.tally.lost = {one.address for one in trainer.replicas if not one.alive}
            sink.destroy()
            unsubscribe()
            if text := self.tally.describe_refusals():
                self.say(text)

    def _count(self, letter: Any) -> None:
        if letter.index < 0:  # of a record; mini-batches have reports
            self.tally.refuse(letter)

    async def feed(
        self,
        source: Any,
        items: Iterable[Any] | AsyncIterable[Any],
        count: Callable[[Any], int],
    ) -> None:
        """Emit items into a stream at the run's rate, to the end or to Ctrl-C.

        Parameters
        ----------
        source
            A streamz source on this event loop: ``Stream(asynchronous=True)``.
        items
            To emit.
        count
            How many records an item has.
        """
        feeding = asyncio.ensure_future(self._emit(source, items, count))
        with self.interrupts.stopping(feeding.cancel):
            await asyncio.wait({feeding})
        if feeding.cancelled():
            self.say("Stopping; press Ctrl-C again to leave at once")
        else:
            feeding.result()

    async def _emit(
        self,
        source: Any,
        items: Iterable[Any] | AsyncIterable[Any],
        count: Callable[[Any], int],
    ) -> None:
        pace = Pace(self.rate)
        if isinstance(items, AsyncIterable):
            async for item in items:
                await pace.wait(count(item))
                await source.emit(item)
            return
        for item in items:
            await pace.wait(count(item))
            await source.emit(item)

    def check_files(self) -> None:
        """See that what the run is to write can be written, before it begins.

        Raises
        ------
        ConfigurationError
            If it cannot.
        """

    def check(self) -> None:
        """See that the stream was learned, at the end of the run.

        Raises
        ------
        RefusedError
            If all of it was refused, or more than half.
        SourceError
            If there was none, and the run goes on from no other.
        """
        if self.trainer is None:
            return
        batches, records = self.trainer.session.intake.refused, self.tally
        text = verdict(
            batches.kept, batches.sound, records.refused_records, batches.samples
        )
        if text:
            raise RefusedError(f"{text} The first: {records.first_refusal}")
        if not (batches.sound or records.batches or self.continuation.begins):
            raise SourceError(
                f"There were no {self.records}: the stream has ended, and nothing came "
                "of it. See that what it is read from is not empty."
            )

    def went_on(self) -> dict[str, Any]:
        """What a script wants to know of checkpoints; nothing if there are none."""
        if self.checkpoint is None:
            return {}
        continuation = self.continuation
        return {
            "checkpoint": {
                "from": continuation.path or None,
                "mini_batches": continuation.begins,
                "again": continuation.again,
                "last": self.trainer.last_checkpoint or None,
            }
        }

    # ---- results: other kinds of runs have more ------------------------------------

    @property
    def has_results(self) -> bool:
        """Whether anything was learned, so that there is something to show."""
        return self.tally.batches > 0

    def show(self) -> None:
        """Print the results, draw them, tell of the files, print JSON if asked for."""
        if not self.has_results:
            self.say("Nothing was learned.")
            return
        if self.title:
            self.console.print(Text(f"\n  {self.title}", style="bold"), soft_wrap=True)
        for table in self.tables():
            self.console.print(terminal.results_table(table), soft_wrap=True)
        work = terminal.run_table(self.tally, self.records)
        self.console.print(work, soft_wrap=True)
        self.files |= self.draw()
        for name, path in self.files.items():
            self.say_file(name, path)
        if self.as_json:
            click.echo(json.dumps(self.result()))

    def tables(self) -> list[Table]:
        """Results for the terminal, and for the page of the run."""
        return []

    def figures(self) -> list[tuple[str, Chart]]:
        """Titles and charts for the page of the run."""
        return []

    def draw(self) -> dict[str, str]:
        """Draw into files; their paths, by what they are."""
        return {}

    def result(self) -> dict[str, Any]:
        """Everything that a script wants to know of the run, fit for JSON."""
        tally = self.tally
        return {
            "interrupted": self.interrupts.received is not None,
            **tally.refusals(),
            "seconds": tally.seconds,
            "rate": tally.rate,
            "staleness": {"mean": tally.staleness_mean, "most": tally.staleness_most},
            "replicas": tally.replicas(),
            "files": self.files,
            **self.went_on(),
        }


def command(
    kind: type[AnyRun],
) -> Callable[[Callable[[AnyRun], Awaitable[None]]], click.Command]:
    """Make a command of a pipeline's ``async def main(run)``.

    Parameters
    ----------
    kind
        Of the run; the fields that it describes are the command's options.

    Returns
    -------
    decorator
        Gives a click command. It exits with 0; 1 if the run failed, or
        more than half of its stream was refused; 2 if the options
        are wrong; 130 after Ctrl-C.
    """

    def decorate(main: Callable[[AnyRun], Awaitable[None]]) -> click.Command:
        def callback(**chosen: Any) -> None:
            context = click.get_current_context()
            _check_checkpoint(context, chosen)
            run = kind(**chosen)
            if text := run.without_effect(_given(context)):
                raise click.UsageError(text)
            run.command = context.command_path
            sys.exit(_execute(main, run))

        callback.__doc__ = main.__doc__
        return click.command(name=main.__name__, params=[*options_of(kind)])(callback)

    return decorate


def _execute(main: Callable[[AnyRun], Awaitable[None]], run: AnyRun) -> int:
    """Run a pipeline; the exit code."""

    async def reported() -> None:
        with written(run):
            run.check_files()
            await main(run)
        if run.interrupts.received is None:
            run.check()

    with kept_from_children():
        return execute(
            reported,
            run.interrupts,
            debug=run.debug,
            interrupted=lambda: run.say("Interrupted."),
        )


def _given(context: click.Context) -> set[str]:
    """Names of the options that the user has given, whatever their values."""
    source = context.get_parameter_source
    return {
        name for name in context.params if source(name) is ParameterSource.COMMANDLINE
    }


def _check_checkpoint(context: click.Context, chosen: dict[str, Any]) -> None:
    """Raise UsageError if it is said how often to save, and not where."""
    source = context.get_parameter_source("checkpoint_every")
    if source is ParameterSource.COMMANDLINE and chosen.get("checkpoint") is None:
        raise click.UsageError(
            f"--checkpoint-every {chosen['checkpoint_every']} was given without a "
            "folder, so that nothing would be saved; add --checkpoint FOLDER, or leave "
            "it out."
        )
