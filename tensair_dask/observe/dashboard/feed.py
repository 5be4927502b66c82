"""What one open page shows: which trainer, how far back, and the newest rows of it."""

from __future__ import annotations

from typing import Any

from bokeh.models import ColumnDataSource, RadioButtonGroup, Select

from tensair_dask.observe.figures.bokeh_renderer import mark_columns
from tensair_dask.observe.figures.chart import Mark
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.telemetry.scheduler import Telemetry
from tensair_dask.observe.telemetry.trainers import COLUMNS, TrainerRecord

__all__ = ["Feed"]

NONE = "(no trainer yet)"


class Feed:
    """Feeds one document with the series of the trainer that is chosen in it.

    All charts of a document draw from one wide source, so that an update is one
    message of one row. The number of models never changes once a page is open: adding
    a renderer to a live document makes bokeh go through all of its models again.

    Parameters
    ----------
    telemetry
        Of the scheduler.

    Attributes
    ----------
    series
        Source of the columns of `COLUMNS`; ``time`` in milliseconds.
    events
        Source of the marks, as `mark_columns` gives it.
    chooser, span
        Widgets: the trainer, and how far back.
    """

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry
        self._shown: tuple[str, int] | None = None
        self._next_row = self._next_event = 0
        self._follow = True
        self._choosing = False
        self.series = ColumnDataSource({name: [] for name in COLUMNS})
        self.events = ColumnDataSource(mark_columns([]))
        self.chooser = Select(
            value=NONE,
            options=[NONE],
            width=260,
            name="chooser",
            title="Trainer",
        )
        self.span = RadioButtonGroup(
            labels=["5 min", "1 hour", "2 days"], active=0, name="span", align="end"
        )
        self.chooser.on_change("value", self._chosen)
        self.span.on_change("active", self._spanned)

    @property
    def record(self) -> TrainerRecord | None:
        """The trainer that is shown; None if there is none."""
        return self._telemetry.trainers.get(self._run_of(self.chooser.value))

    @property
    def workers(self) -> int:
        """Workers of the cluster."""
        return len(self._telemetry.scheduler.workers)

    def _run_of(self, name: str) -> str:
        for run_id, record in self._telemetry.trainers.items():
            if record.name == name:
                return run_id
        return ""

    def _spanned(self, attr: str, old: int, new: int) -> None:
        self.update()

    def _chosen(self, attr: str, old: str, new: str) -> None:
        if not self._choosing:
            # Chosen by hand: stay there, unless that is the newest anyway.
            self._follow = new == self._newest()
            self.update()

    def _newest(self) -> str:
        """Name of the trainer that began last, of those that are open if any is."""
        records = list(self._telemetry.trainers.values())
        running = [record for record in records if not record.is_over] or records
        return running[-1].name if running else NONE

    def _list_trainers(self) -> None:
        names = [record.name for record in self._telemetry.trainers.values()]
        names = names[::-1] or [NONE]
        self._choosing = True
        if self.chooser.options != names:
            self.chooser.options = names
            self.chooser.visible = len(names) > 1
        if self._follow or self.chooser.value not in names:
            newest = self._newest()
            if self.chooser.value != newest:
                self.chooser.value = newest
        self._choosing = False

    def update(self) -> None:
        """Bring the sources up to date; called twice a second."""
        self._list_trainers()
        record = self.record
        if record is None:
            return
        tier = self.span.active
        if self._shown != (record.run_id, tier):
            self._shown = (record.run_id, tier)
            self._next_row = 0
            self._update_series(record, tier, replace=True)
            self._update_events(record)
            return
        self._update_series(record, tier, replace=False)
        if record.events.added != self._next_event:
            self._update_events(record)

    def _update_series(self, record: TrainerRecord, tier: int, replace: bool) -> None:
        kept = record.archive.tiers[tier]
        columns: dict[str, Any] = record.archive.since(self._next_row, tier)
        self._next_row = kept.added
        if not replace and not len(columns["time"]):
            return
        columns["time"] = columns["time"] * 1000
        if replace:
            self.series.data = columns
        else:
            self.series.stream(columns, rollover=kept.length)

    def _update_events(self, record: TrainerRecord) -> None:
        self._next_event = record.events.added
        times = self.series.data["time"]
        first = times[0] / 1000 if len(times) else 0.0
        self.events.data = mark_columns(
            Mark(1000 * event.time, MARKS[event.kind], event.text)
            for event in record.events
            if event.time >= first
        )
