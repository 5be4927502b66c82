"""The charts: a description of each, and what follows the trainer that is shown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bokeh.models import HoverTool, Legend, LegendItem

from tensair_dask.observe.dashboard.feed import Feed
from tensair_dask.observe.figures.bokeh_renderer import Drawing
from tensair_dask.observe.figures.chart import (
    DASHED,
    DOTDASH,
    DOTTED,
    SOLID,
    Axis,
    Band,
    Line,
    Panel,
    Readout,
)
from tensair_dask.observe.palette import (
    BLACK,
    BLUE,
    GREEN,
    OLIVE,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
)
from tensair_dask.observe.telemetry.trainers import METRICS, SLOTS

__all__ = ["CHARTS", "Charts"]

_COLOURS = [VERMILLION, GREEN, PURPLE, SKY, ORANGE, BLACK, BLUE, OLIVE]
# Not by colour alone.
_DASHES = [SOLID, DASHED, DOTTED, DOTDASH]
_COUNTS = "0.[0]a"  # 12k, 3.4m

AXIS = Axis(
    "time",
    kind="local",
    place=("time", "local"),
    readouts=[Readout("time", "time", "local")],
)

_METRICS = "Metrics before learning"


def _replicas(column: str) -> list[Line]:
    """Thin lines of the first replicas; the legend names them while they are there."""
    return [
        Line(f"{column}_{slot}", "", _COLOURS[slot], _DASHES[slot // 4], 1)
        for slot in range(SLOTS)
    ]


# In the order of the page; each has a page of its own, too.
PANELS = {
    "throughput": Panel(
        [
            Line("samples", "stream"),
            Line("predictions", "on request", VERMILLION, DASHED, 1.5),
        ],
        title="Throughput of all replicas (samples/s)",
        readouts=[
            Readout("of the stream", "samples", "0,0"),
            Readout("predicted on request", "predictions", "0,0"),
            Readout("mini-batches/s", "steps", "0,0"),
        ],
        from_zero=True,
        ticks=_COUNTS,
    ),
    "loss": Panel(
        [Line("loss", "mean"), *_replicas("loss")],
        [Band("loss_least", "loss_most", "range", SKY, 0.25)],
        title="Loss before learning",
        readouts=[
            Readout("mean", "loss", "0.0000"),
            Readout("least", "loss_least", "0.0000"),
            Readout("most", "loss_most", "0.0000"),
        ],
        ticks="",
    ),
    "metrics": Panel(
        [
            Line(f"metric_{place}", "", colour, dash)
            for place, colour, dash in zip(
                range(METRICS), [BLUE, *_COLOURS], _DASHES, strict=False
            )
        ],
        title=_METRICS,
        ticks="",
    ),
    "speed": Panel(
        [Line("speed", "median"), *_replicas("speed")],
        [Band("speed_least", "speed_most", "range", SKY, 0.25)],
        title="Throughput of each replica (samples/s)",
        readouts=[
            Readout("median", "speed", "0,0"),
            Readout("least", "speed_least", "0,0"),
            Readout("most", "speed_most", "0,0"),
        ],
        from_zero=True,
        ticks=_COUNTS,
    ),
    "staleness": Panel(
        [
            Line("staleness", "mean"),
            Line("staleness_p95", "p95", dash=DASHED, width=1.5),
            *_replicas("staleness"),
        ],
        [Band(0, "staleness_most", "to max", SKY, 0.25)],
        title="Staleness of what peers sent (gradients)",
        readouts=[
            Readout("mean", "staleness", "0.0"),
            Readout("p95", "staleness_p95", "0"),
            Readout("max", "staleness_most", "0"),
            Readout("p95 of the age (s)", "age", "0.000"),
        ],
        from_zero=True,
        ticks=_COUNTS,
    ),
    "traffic": Panel(
        [Line("sent", "sent"), Line("received", "received", VERMILLION, DASHED)],
        title="Exchange between replicas (bytes/s)",
        readouts=[
            Readout("sent", "sent", "0.0 b"),
            Readout("received", "received", "0.0 b"),
        ],
        from_zero=True,
        ticks=_COUNTS,
    ),
    "backlog": Panel(
        [
            Line("backlog", "mini-batches"),
            Line("lag", "lag (s)", VERMILLION, DASHED, right="seconds"),
        ],
        title="Backlog and lag of the stream",
        label="mini-batches",
        readouts=[
            Readout("mini-batches", "backlog", "0,0"),
            Readout("lag (s)", "lag", "0.000"),
            Readout("dead letters", "dead_letters", "0,0"),
            Readout("dropped", "dropped", "0,0"),
        ],
        from_zero=True,
        ticks=_COUNTS,
    ),
    "replicas": Panel(
        [
            Line("workers", "workers", ORANGE, DOTTED, 4),
            Line("target", "replicas wanted", VERMILLION, DASHED),
            Line("replicas", "replicas"),
        ],
        title="Replicas and workers",
        readouts=[
            Readout("replicas", "replicas", "0"),
            Readout("wanted", "target", "0"),
            Readout("workers", "workers", "0"),
        ],
        pointer="replicas",
        from_zero=True,
        ticks=_COUNTS,
    ),
}
CHARTS = tuple(PANELS)


class Charts:
    """Draws the charts of one document, and names in them what the trainer has.

    Parameters
    ----------
    feed
        Where the rows come from.
    """

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._drawing = Drawing(AXIS, feed.series, feed.events, live=True)
        # What follows the trainer that is shown: labels of metrics and replicas.
        self._relabel: list[Callable[[], None]] = []

    def update(self) -> None:
        """Bring the labels up to date."""
        for relabel in self._relabel:
            relabel()

    def draw(self, name: str) -> Any:
        """Draw the chart of that name."""
        panel = PANELS[name]
        made = self._drawing.panel(panel)
        made.name = f"{name}_chart"
        drawn = {each.name: each for each in made.renderers}
        items = [
            *(_item(each.label, drawn[each.column]) for each in panel.lines),
            *(_item(each.label, drawn[f"{each.high}_band"]) for each in panel.bands),
        ]
        # Those without a name get it from the trainer.
        items.sort(key=lambda each: each.label["value"] == "")
        unnamed = [each for each in items if not each.label["value"]]
        _add_legend(made, items, "right" if panel.bands else "above")
        if name == "metrics":
            self._relabel.append(lambda: self._name_metrics(made, unnamed))
        elif unnamed:
            self._relabel.append(lambda: self._name_replicas(unnamed))
        return made

    def _name_metrics(self, chart: Any, items: list[LegendItem]) -> None:
        record = self._feed.record
        names = record.metrics[:METRICS] if record is not None else []
        text = _METRICS if names or record is None else f"{_METRICS}: none were given"
        if chart.title.text != text:
            chart.title.text = text
        if _name(items, names):
            columns = [
                Readout(name, f"metric_{place}", "0.0000")
                for place, name in enumerate(names)
            ]
            tip = chart.select_one({"type": HoverTool, "mode": "vline"})
            self._drawing.read(tip, [*AXIS.readouts, *columns])

    def _name_replicas(self, items: list[LegendItem]) -> None:
        record = self._feed.record
        names = [""] * SLOTS
        for replica in record.replicas.values() if record is not None else ():
            if replica.slot is not None:
                names[replica.slot] = replica.name.replace("-", " ")
        _name(items, names)


def _item(label: str, line: Any) -> LegendItem:
    return LegendItem(label={"value": label}, renderers=[line], visible=bool(label))


def _name(items: list[LegendItem], names: list[str]) -> bool:
    """Name items in order, and hide the others; whether that changed anything."""
    names = [*names, *[""] * (len(items) - len(names))]
    changed = [
        (item, name)
        for item, name in zip(items, names, strict=True)
        if item.label["value"] != name
    ]
    for item, name in changed:
        item.label, item.visible = {"value": name}, bool(name)
    return bool(changed)


def _add_legend(chart: Any, items: list[LegendItem], where: str) -> None:
    legend = Legend(
        items=items, orientation="horizontal" if where == "above" else "vertical"
    )
    legend.label_text_font_size = "10px"
    legend.border_line_color = None
    legend.background_fill_alpha = 0
    legend.padding = legend.margin = 0
    legend.spacing = 0 if where == "right" else 14
    legend.glyph_width = 16
    legend.glyph_height = legend.label_height = 13
    chart.add_layout(legend, where)
