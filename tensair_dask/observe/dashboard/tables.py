"""The numbers at the top of the page, and the tables at its end."""

from __future__ import annotations

from typing import Any

from bokeh.models import (
    ColumnDataSource,
    DataTable,
    Div,
    HTMLTemplateFormatter,
    NumberFormatter,
    TableColumn,
)

from tensair_dask.observe import templates
from tensair_dask.observe.dashboard.feed import Feed
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.telemetry.trainers import TrainerRecord
from tensair_dask.observe.wording import number

__all__ = ["Events", "Headline", "Replicas"]

_TEMPLATE = "tensair_headline.html.j2"

# More rows than a person looks at.
ROWS = 200
NEWEST = 50


class Headline:
    """State and rates of the trainer, as a line of numbers."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._shown: list[tuple[str, str]] = []
        self.root = Div(
            text=templates.render(_TEMPLATE, numbers=[]),
            name="headline",
            sizing_mode="stretch_width",
        )

    def update(self) -> None:
        """Bring the numbers up to date."""
        record = self._feed.record
        numbers = [] if record is None else _numbers(record, self._feed.workers)
        if numbers != self._shown:
            self._shown = numbers
            self.root.text = templates.render(_TEMPLATE, numbers=numbers)


def _numbers(record: TrainerRecord, workers: int) -> list[tuple[str, str]]:
    row = record.row(workers)
    alive = len(record.alive)
    return [
        (f"trainer, {record.state}", record.name),
        *_phase(record),
        ("replicas", f"{alive} of {record.reported.get('target', alive)}"),
        *_share(record),
        ("samples/s", number(row["samples"], 0)),
        ("mini-batches/s", number(row["steps"], 0)),
        ("samples", number(record.totals["samples"], 0)),
        ("loss", number(row["loss"], 3)),
        *(
            (name, number(row[f"metric_{place}"], 3))
            for place, name in enumerate(record.metrics[:2])
        ),
        ("staleness", number(row.get("staleness"))),
        ("lag", f"{number(row['lag'], 2)} s"),
        ("dead letters", number(row["dead_letters"])),
        *([("dropped", number(row["dropped"]))] if row["dropped"] else []),
    ]


def _phase(record: TrainerRecord) -> list[tuple[str, str]]:
    """What it does, where that may change."""
    mode = record.reported.get("mode", "always")
    if mode == "always" or record.is_over:
        return []
    return [(f"mode {mode}", str(record.reported["phase"]))]


def _share(record: TrainerRecord) -> list[tuple[str, str]]:
    """What the replicas send each other, once that is known."""
    share = record.reported.get("share")
    return [("they share", f"{share}s")] if share else []


# Of the table of replicas: title, format of a number, width in pixels.
COLUMNS = {
    "replica": ("replica", None, 90),
    "address": ("worker", None, 170),
    "device": ("device", None, 60),
    "state": ("state", None, 70),
    "steps": ("steps", "0,0", 80),
    "samples_per_second": ("samples/s", "0,0", 80),
    "busy": ("busy", "0 %", 60),
    "loss": ("loss", "0.0000", 80),
    "staleness": ("staleness", "0.0", 80),
    "age": ("age p95 (ms)", "0", 90),
    "refused": ("refused", "0,0", 70),
}


class Replicas:
    """Every replica: where it runs, and how it does."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._source = ColumnDataSource({name: [] for name in COLUMNS})
        columns = [
            _column(name, title, form, width)
            for name, (title, form, width) in COLUMNS.items()
        ]
        self.root = _table(self._source, columns, "replica_table")

    def update(self) -> None:
        """Bring the rows up to date."""
        record = self._feed.record
        replicas = list(record.replicas.values()) if record is not None else []
        # The living first.
        replicas.sort(key=lambda each: (each.lost, len(each.name), each.name))
        rows = [each.row() for each in replicas[:ROWS]]
        for row in rows:
            row["age"] *= 1000
        data = {name: [row[name] for row in rows] for name in COLUMNS}
        if data != self._source.data:
            self._source.data = data


class Events:
    """The newest events, newest first."""

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._shown: Any = None
        self._source = ColumnDataSource(
            {"time": [], "kind": [], "text": [], "colour": []}
        )
        local = HTMLTemplateFormatter(
            template="<%= new Date(value).toLocaleTimeString([], {hour12: false}) %>"
        )
        coloured = HTMLTemplateFormatter(
            template='<b style="color:<%= colour %>">&#9612;</b><%- value %>'
        )
        columns = [
            TableColumn(field="time", title="time", width=60, formatter=local),
            TableColumn(field="kind", title="event", width=110, formatter=coloured),
            TableColumn(field="text", title="", width=200),
        ]
        self.root = _table(self._source, columns, "event_table")

    def update(self) -> None:
        """Bring the rows up to date."""
        record = self._feed.record
        if record is None or self._shown == (record.run_id, record.events.added):
            return
        self._shown = (record.run_id, record.events.added)
        newest = list(record.events)[: -NEWEST - 1 : -1]
        self._source.data = {
            "time": [1000 * event.time for event in newest],
            "kind": [MARKS[event.kind].label for event in newest],
            "text": [event.text for event in newest],
            "colour": [MARKS[event.kind].colour for event in newest],
        }


def _column(name: str, title: str, form: str | None, width: int) -> TableColumn:
    column = TableColumn(field=name, title=title, width=width)
    if form is not None:
        column.formatter = NumberFormatter(format=form, text_align="right")
    return column


def _table(
    source: ColumnDataSource, columns: list[TableColumn], name: str
) -> DataTable:
    return DataTable(
        source=source,
        columns=columns,
        name=name,
        index_position=None,
        sizing_mode="stretch_both",
        autosize_mode="force_fit",
        reorderable=False,
        selectable=False,
    )
