"""What a person sees in the terminal: the live line and the final tables."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from rich import box
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tensair_dask.observe.wording import number
from tensair_dask.prequential import MODEL, BinaryPrequential
from tensair_dask.runner.summary import Tally

if TYPE_CHECKING:
    from tensair_dask.runner.run import Run

__all__ = [
    "RunView",
    "ScoresView",
    "View",
    "live_line",
    "results_table",
    "run_table",
    "score",
]

# Seconds between two drawings, and between two plain lines.
REFRESH = 0.25
PLAIN_REFRESH = 10.0


class View(Protocol):
    """What a `live_line` shows."""

    def drawing(self) -> RenderableType:
        """Draw for a terminal that can be redrawn."""

    def plain(self) -> str:
        """Draw the same as one line of text."""


@contextlib.contextmanager
def live_line(console: Console, view: View) -> Iterator[None]:
    """Redraw a line while reports come in.

    Where the output is no terminal, one plain line is printed every ten seconds.

    Parameters
    ----------
    console
        Where to draw.
    view
        What to draw.
    """
    draw = _redraw if console.is_terminal else _print_on
    drawing = asyncio.ensure_future(draw(console, view))
    try:
        yield
    finally:
        drawing.cancel()


async def _redraw(console: Console, view: View) -> None:
    # Drawn on the event loop: a thread of Live's own would read the tally while it
    # changes.
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            live.update(view.drawing(), refresh=True)
            await asyncio.sleep(REFRESH)


async def _print_on(console: Console, view: View) -> None:
    while True:
        await asyncio.sleep(PLAIN_REFRESH)
        console.print(view.plain(), soft_wrap=True)


class RunView:
    """A bar that tells how far a run has come, and numbers below it.

    Parameters
    ----------
    run
        Its sums are shown.
    trainer
        Asked for its backlog.
    total
        How many records come.
    """

    def __init__(self, run: Run, trainer: Any, total: int) -> None:
        self.run = run
        self.trainer = trainer
        self.total = total

    def state(self) -> Text:
        """What stands before the bar."""
        raise NotImplementedError

    def counted(self, between: str = " of ") -> str:
        """What stands behind the bar."""
        done = self.run.tally.reached
        return f"{done:,}{between}{self.total:,} {self.run.records}"

    def share(self) -> float:
        """How far it has come, from 0 to 1."""
        return self.run.tally.reached / max(self.total, 1)

    def measured(self) -> Iterable[str]:
        """Numbers beside those of every run."""
        return ()

    def numbers(self) -> str:
        """Speed, loss, what is measured, backlog, and what was refused."""
        tally = self.run.tally
        parts = [
            f"{tally.current_rate():,.0f}/s",
            f"loss {score(tally.loss())}",
            *self.measured(),
            f"backlog {self.trainer.backlog}",
        ]
        if tally.refused:
            parts.append(f"refused {tally.refused.total()}")
        return "  ".join(parts)

    def drawing(self) -> RenderableType:
        """Draw the bar, and the numbers below it."""
        bar = Table.grid(padding=(0, 1), expand=True)
        bar.add_column(no_wrap=True)
        bar.add_column(ratio=1)
        bar.add_column(no_wrap=True, justify="right")
        progress = ProgressBar(total=1, completed=self.share())
        bar.add_row(self.state(), progress, self.counted())
        return Group(bar, Text(self.numbers(), no_wrap=True, overflow="ellipsis"))

    def plain(self) -> str:
        """Draw the same as one line without a bar."""
        parts = (self.state().plain.strip(), self.counted("/"), self.numbers())
        return "  ".join(filter(None, parts))


class ScoresView(RunView):
    """A bar with the date of the stream, and the scores below it.

    Parameters
    ----------
    run, trainer
        As in `RunView`.
    scores
        Asked for the scores of the newest records.
    times
        When each record of the stream was made, in order; the length says how many
        records come.
    """

    def __init__(
        self, run: Run, trainer: Any, scores: BinaryPrequential, times: np.ndarray
    ) -> None:
        super().__init__(run, trainer, len(times))
        self._scores = scores
        self._times = times

    def state(self) -> Text:
        """Date of the newest record."""
        newest = min(self.run.tally.reached, self.total) - 1
        date = str(self._times[newest].astype("datetime64[D]")) if newest >= 0 else ""
        return Text(date or "waiting", style="bold")

    def measured(self) -> Iterable[str]:
        """Scores and staleness of the newest records."""
        recent = self._scores.recent()
        yield f"accuracy {score(recent.accuracy)}"
        yield f"AUC {score(recent.auc)}"
        yield f"staleness {self.run.tally.staleness():.1f}"


def results_table(results: Any) -> RenderableType:
    """Draw a table of results, as the page of the run has it."""
    table = Table(box=box.SIMPLE_HEAD)
    for name, numeric in results.headings:
        table.add_column(name, justify="right" if numeric else "left")
    for row in results.rows:
        is_model = str(row[0]).startswith(MODEL)
        table.add_row(*map(_cell, row), style="bold" if is_model else "")
    title = Text(f"  {results.title}", style="bold")
    note = [Text(f"  {results.note}\n", style="dim")] if results.note else []
    return Group(title, table, *note)


def _cell(value: Any) -> str:
    return value if isinstance(value, str) else number(value, 3)


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


def score(value: float) -> str:
    """Write a score; a dash where there is none."""
    return number(value, 3)
