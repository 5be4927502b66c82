"""What a person sees in the terminal: the live line and the final tables."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter, deque
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tensair_dask.prequential import MODEL, Prequential, Scores

if TYPE_CHECKING:
    from tensair_dask.reports import Report

__all__ = ["Watch", "scores_table"]

REFRESH = 0.25  # seconds between two drawings of the live line
PLAIN_REFRESH = 10.0  # the same where the output is not a terminal: one line each
RATE_SPAN = 3.0  # seconds over which the rate is taken
NEWEST = 200  # reports over which loss and staleness are taken


class Watch:
    """A live line over a stream of reports, and their sums at the end.

    Parameters
    ----------
    console
        Where to draw.
    trainer
        Asked for its backlog and its replicas.
    scores
        Asked for the scores of the newest records.
    times
        When each record of the stream was made; the length says how many come.
    records
        What the records are called.
    """

    def __init__(
        self,
        console: Console,
        trainer: Any,
        scores: Prequential,
        times: np.ndarray,
        records: str,
    ) -> None:
        self.console = console
        self.trainer = trainer
        self.scores = scores
        self.times = times
        self.records = records
        self.done = 0
        self.refused: Counter[str] = Counter()
        self.seconds = 0.0
        self.replicas: list[Any] = []
        self._samples: Counter[str] = Counter()
        self._newest: deque[tuple[float, int, int]] = deque(maxlen=NEWEST)
        self._marks: deque[tuple[float, int]] = deque()
        self._staleness_sum = 0
        self._staleness_most = 0
        self._learned = 0
        self._start = 0.0

    # ------------------------------------------------------------------ the reports

    def add(self, report: Report) -> None:
        """Count one report."""
        self.done += report.samples
        if report.error is not None:
            self.refused[type(report.error).__name__] += 1
            return
        self._learned += 1
        self._staleness_sum += report.staleness
        self._staleness_most = max(self._staleness_most, report.staleness)
        self._newest.append((report.loss, report.samples, report.staleness))

    def __enter__(self) -> Watch:
        self._start = time.monotonic()
        self._marks.append((self._start, 0))
        self._drawing = asyncio.ensure_future(self._draw())
        return self

    def __exit__(self, *_: object) -> None:
        self._drawing.cancel()
        self.seconds = time.monotonic() - self._start
        self.replicas = list(self.trainer.replicas)
        if self._live is not None:
            self._live.update(self.line(), refresh=True)
            self._live.stop()

    _drawing: asyncio.Future[None]
    _live: Live | None = None

    async def _draw(self) -> None:
        if not self.console.is_terminal:
            while True:
                await asyncio.sleep(PLAIN_REFRESH)
                self.console.print(self.line(), soft_wrap=True)
        self._live = Live(
            self.line(), console=self.console, auto_refresh=False, transient=False
        )
        self._live.start()
        while True:
            await asyncio.sleep(REFRESH)
            self._live.update(self.line(), refresh=True)
