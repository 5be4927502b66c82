"""What a person sees in the terminal: the live line and the final tables."""

from __future__ import annotations

import asyncio
import math
from types import TracebackType
from typing import Any, Protocol

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tensair_dask.prequential import MODEL, BinaryPrequential, Scores
from tensair_dask.runner.summary import Tally

__all__ = ["LiveLine", "ScoresView", "View", "run_table", "scores_table"]


class View(Protocol):
    """What a `LiveLine` shows."""

    def drawing(self) -> RenderableType:
        """Draw for a terminal that can be redrawn."""

    def plain(self) -> str:
        """Draw the same as one line of text."""


class LiveLine:
    """A line that is redrawn while reports come in; a context manager.

    Where the output is no terminal, one plain line is printed every ten seconds.

    Parameters
    ----------
    console
        Where to draw.
    view
        What to draw.
    """

    refresh = 0.25  # seconds
    plain_refresh = 10.0

    def __init__(self, console: Console, view: View) -> None:
        self._console = console
        self._view = view
        self._drawing: asyncio.Task[None] | None = None

    def __enter__(self) -> LiveLine:
        draw = self._redraw if self._console.is_terminal else self._print_on
        self._drawing = asyncio.ensure_future(draw())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._drawing is not None:
            self._drawing.cancel()

    async def _redraw(self) -> None:
        # Drawn on the event loop: a thread of Live's own would read the tally while
        # it changes.
        with Live(console=self._console, auto_refresh=False, transient=True) as live:
            while True:
                live.update(self._view.drawing(), refresh=True)
                await asyncio.sleep(self.refresh)

    async def _print_on(self) -> None:
        while True:
            await asyncio.sleep(self.plain_refresh)
            self._console.print(self._view.plain(), soft_wrap=True)


class ScoresView:
    """A bar with the date of the stream, and the scores below it.

    Parameters
    ----------
    tally
        The sums of the reports.
    trainer
        Asked for its backlog.
    scores
        Asked for the scores of the newest records.
    times
        When each record of the stream was made, in order; the length says how many
        records come.
    records
        What the records are called.
    """

    def __init__(
        self,
        tally: Tally,
        trainer: Any,
        scores: BinaryPrequential,
        times: np.ndarray,
        records: str,
    ) -> None:
        self._tally = tally
        self._trainer = trainer
        self._scores = scores
        self._times = times
        self._records = records

    def drawing(self) -> RenderableType:
        """Draw a bar with the date of the stream, and the numbers below it."""
        total = len(self._times)
        done = self._tally.reached
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        bar.add_row(
            Text(self._date(), style="bold"),
            ProgressBar(total=max(total, 1), completed=done),
            f"{done:,} of {total:,} {self._records}",
        )
        return Group(bar, Text(self._numbers(), no_wrap=True, overflow="ellipsis"))

    def plain(self) -> str:
        """Draw the same as one line without a bar."""
        done, total = self._tally.reached, len(self._times)
        return f"{self._date()}  {done:,}/{total:,} {self._records}  {self._numbers()}"

    def _date(self) -> str:
        newest = min(self._tally.reached, len(self._times)) - 1
        if newest < 0:
            return "waiting"
        return str(self._times[newest].astype("datetime64[D]"))

    def _numbers(self) -> str:
        recent = self._scores.recent()
        parts = [
            f"{self._tally.current_rate():,.0f}/s",
            f"loss {_score(self._tally.loss())}",
            f"accuracy {_score(recent.accuracy)}",
            f"AUC {_score(recent.auc)}",
            f"staleness {self._tally.staleness():.1f}",
            f"backlog {self._trainer.backlog}",
        ]
        if self._tally.refused:
            parts.append(f"refused {self._tally.refused.total()}")
        return "  ".join(parts)


def scores_table(scores: BinaryPrequential, title: str, records: str) -> RenderableType:
    """Overall and recent scores, beside the baselines."""
    overall, recent = scores.overall(), scores.recent()
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column(f"{overall.records:,} {records}")
    for name in ("accuracy", "log loss", "AUC"):
        table.add_column(name, justify="right")
    table.add_row(MODEL, *_cells(overall), style="bold")
    if recent.records < overall.records:
        table.add_row(f"{MODEL}, last {recent.records:,}", *_cells(recent))
    for name, baseline in scores.baselines().items():
        table.add_row(name, *_cells(baseline), style="dim")
    return Group("", Text(f"  {title}", style="bold"), table)


def results_table(results: Any) -> RenderableType:
    """Draw a table of results, as the page of the run has it."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, numeric in results.headings:
        table.add_column(name, justify="right" if numeric else "left")
    for row in results.rows:
        table.add_row(*(_cell(value) for value in row))
    title = Text(f"  {results.title}", style="bold")
    note = [Text(f"  {results.note}\n", style="dim")] if results.note else []
    return Group(title, table, *note)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return _score(value) if isinstance(value, float) else str(value)


def run_table(tally: Tally, records: str) -> RenderableType:
    """How fast it went, and what each replica learned."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("replica")
    for name in ("mini-batches", records):
        table.add_column(name, justify="right")
    for row in tally.replicas():
        name = row["replica"] + (" (lost)" if row["lost"] else "")
        table.add_row(name, f"{row['batches']:,}", f"{row['records']:,}")
    return Group(
        table,
        Text(
            f"  {tally.records:,} {records} in {tally.seconds:.1f} s, "
            f"{tally.rate:,.0f} per second; staleness {tally.staleness_mean:.1f} "
            f"on average, {tally.staleness_most} at most\n"
        ),
    )


def _cells(scores: Scores) -> list[str]:
    return [_score(value) for value in (scores.accuracy, scores.log_loss, scores.auc)]


def _score(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"
