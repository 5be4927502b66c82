"""The charts: one function each, drawing from the document's `Feed`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bokeh.models import (
    CDSView,
    DataRange1d,
    HoverTool,
    Legend,
    LegendItem,
    LinearAxis,
    VSpan,
)
from bokeh.plotting import figure

from tensair_dask.observe.dashboard.feed import Feed
from tensair_dask.observe.dashboard.style import BAND, DASHES, LINES, MAIN, Style
from tensair_dask.observe.telemetry.trainers import METRICS, SLOTS

__all__ = ["CHARTS", "Charts"]


_METRICS = "Metrics before learning"


class Charts:
    """Makes the charts of one document; they share sources, time range and style.

    Parameters
    ----------
    feed
        Where the rows come from.
    """

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.style = Style()
        self.times = DataRange1d(range_padding=0.02)
        # Of all renderers: each would get models of its own.
        self._series_view = CDSView()
        self._events_view = CDSView()
        # What follows the trainer that is shown: labels of metrics and replicas.
        self._relabel: list[Callable[[], None]] = []

    def update(self) -> None:
        """Bring the labels up to date."""
        for relabel in self._relabel:
            relabel()

    # ---- the charts -----------------------------------------------------------------

    def throughput(self) -> Any:
        """Draw records of the stream, and predicted on request, of all replicas."""
        chart = self._figure("Throughput of all replicas (samples/s)", counts=True)
        learned = self._line(chart, "samples")
        predicted = self._line(chart, "predictions", LINES[0], "dashed", 1.5)
        self._legend(chart, {"stream": learned, "on request": predicted})
        self._hover(
            chart,
            learned,
            ("of the stream", "samples", "0,0"),
            ("predicted on request", "predictions", "0,0"),
            ("mini-batches/s", "steps", "0,0"),
        )
        return chart

    def speed(self) -> Any:
        """Draw records of the stream by each replica."""
        chart = self._figure("Throughput of each replica (samples/s)", counts=True)
        band = self._band(chart, "speed_least", "speed_most")
        replicas = self._replicas(chart, "speed")
        median = self._line(chart, "speed")
        self._replica_legend(chart, {"median": median, "range": band}, replicas)
        self._hover(
            chart,
            median,
            ("median", "speed", "0,0"),
            ("least", "speed_least", "0,0"),
            ("most", "speed_most", "0,0"),
        )
        return chart

    def loss(self) -> Any:
        """Draw the loss before learning, of all replicas and of each."""
        chart = self._figure("Loss before learning")
        band = self._band(chart, "loss_least", "loss_most")
        replicas = self._replicas(chart, "loss")
        mean = self._line(chart, "loss")
        self._replica_legend(chart, {"mean": mean, "range": band}, replicas)
        self._hover(
            chart,
            mean,
            ("mean", "loss", "0.0000"),
            ("least", "loss_least", "0.0000"),
            ("most", "loss_most", "0.0000"),
        )
        return chart

    def metrics(self) -> Any:
        """Draw the trainer's first metrics, before learning."""
        chart = self._figure(_METRICS)
        lines = [
            self._line(chart, f"metric_{number}", colour, dash)
            for number, colour, dash in zip(
                range(METRICS), [MAIN, *LINES], DASHES, strict=False
            )
        ]
        items = [_item("", line, visible=False) for line in lines]
        self._place(chart, Legend(items=items, orientation="horizontal"), "above")
        self._relabel.append(lambda: self._name_metrics(chart.title, items))
        for number, line in enumerate(lines):
            self._hover(chart, line, ("$name", f"metric_{number}", "0.0000"))
        return chart

    def _name_metrics(self, title: Any, items: list[LegendItem]) -> None:
        record = self.feed.record
        names = record.metrics[:METRICS] if record is not None else []
        text = _METRICS if names or record is None else f"{_METRICS}: none were given"
        if title.text != text:
            title.text = text
        for number, item in enumerate(items):
            _show(item, names[number] if number < len(names) else "")

    def staleness(self) -> Any:
        """Draw how many gradients behind the messages were that replicas applied."""
        chart = self._figure("Staleness of what peers sent (gradients)", counts=True)
        band = self._band(chart, "zero", "staleness_most")
        replicas = self._replicas(chart, "staleness")
        p95 = self._line(chart, "staleness_p95", MAIN, "dashed", 1.5)
        mean = self._line(chart, "staleness")
        lines = {"mean": mean, "p95": p95, "to max": band}
        self._replica_legend(chart, lines, replicas)
        self._hover(
            chart,
            mean,
            ("mean", "staleness", "0.0"),
            ("p95", "staleness_p95", "0"),
            ("max", "staleness_most", "0"),
            ("p95 of the age (s)", "age", "0.000"),
        )
        return chart

    def traffic(self) -> Any:
        """Draw what the replicas send each other."""
        chart = self._figure("Exchange between replicas (bytes/s)", counts=True)
        sent = self._line(chart, "sent")
        received = self._line(chart, "received", LINES[0], "dashed")
        self._legend(chart, {"sent": sent, "received": received})
        self._hover(
            chart,
            sent,
            ("sent", "sent", "0.0 b"),
            ("received", "received", "0.0 b"),
        )
        return chart

    def backlog(self) -> Any:
        """Draw how much of the stream waits, and for how long."""
        chart = self._figure("Backlog and lag of the stream", counts=True)
        chart.yaxis.axis_label = "mini-batches"
        chart.extra_y_ranges = {"lag": DataRange1d(start=0)}
        axis = LinearAxis(
            y_range_name="lag",
            axis_label="seconds",
            axis_label_text_color=LINES[0],
            major_label_text_color=LINES[0],
        )
        chart.add_layout(axis, "right")
        self.style.apply_to_axes(chart)
        waiting = self._line(chart, "backlog")
        lag = self._line(chart, "lag", LINES[0], "dashed", y_range_name="lag")
        chart.y_range.renderers = [waiting]
        chart.extra_y_ranges["lag"].renderers = [lag]
        self._legend(chart, {"mini-batches": waiting, "lag (s)": lag})
        self._hover(
            chart,
            waiting,
            ("mini-batches", "backlog", "0,0"),
            ("lag (s)", "lag", "0.000"),
            ("dead letters", "dead_letters", "0,0"),
            ("dropped", "dropped", "0,0"),
        )
        return chart

    def replicas(self) -> Any:
        """Draw replicas alive, replicas wanted, and workers."""
        chart = self._figure("Replicas and workers", counts=True)
        workers = self._line(chart, "workers", LINES[4], "dotted", 4)
        wanted = self._line(chart, "target", LINES[0], "dashed")
        alive = self._line(chart, "replicas")
        lines = {"workers": workers, "replicas wanted": wanted, "replicas": alive}
        self._legend(chart, lines)
        self._hover(
            chart,
            alive,
            ("replicas", "replicas", "0"),
            ("wanted", "target", "0"),
            ("workers", "workers", "0"),
        )
        return chart

    # ---- what they are made of ------------------------------------------------------

    def _figure(self, title: str, counts: bool = False) -> Any:
        chart = figure(
            title=title,
            x_axis_type="datetime",
            x_range=self.times,
            y_range=DataRange1d(start=0) if counts else DataRange1d(),
            tools="xpan,xwheel_zoom,reset",
            active_drag=None,
            height=220,
            sizing_mode="stretch_width",
            min_border_right=10,
        )
        self.style.apply(chart, counts)
        marks = chart.add_glyph(
            self.feed.events,
            VSpan(x="time", line_color="colour", line_dash="dash", line_width=2),
            name="marks",
            view=self._events_view,
            level="underlay",
        )
        tip = HoverTool(renderers=[marks], tooltips=[("@kind", "@text")], visible=False)
        chart.add_tools(tip)
        return chart

    def _line(
        self,
        chart: Any,
        column: str,
        colour: str = MAIN,
        dash: str = "solid",
        width: float = 2.0,
        **options: Any,
    ) -> Any:
        line = chart.line(
            "time",
            column,
            source=self.feed.series,
            color=colour,
            line_dash=dash,
            line_width=width,
            name=column,
            view=self._series_view,
            **options,
        )
        # Not used, and each is a model: see `Style`.
        line.nonselection_glyph = line.muted_glyph = None
        if not isinstance(self.times.renderers, list):
            self.times.renderers = [line]
        return line

    def _band(self, chart: Any, low: str, high: str) -> Any:
        band = chart.varea(
            "time",
            0 if low == "zero" else low,
            high,
            source=self.feed.series,
            fill_color=BAND,
            fill_alpha=0.25,
            view=self._series_view,
            name=f"{high}_band",
        )
        band.nonselection_glyph = band.muted_glyph = None
        return band

    def _replicas(self, chart: Any, name: str) -> list[Any]:
        """Add the thin lines of the first replicas."""
        return [
            self._line(chart, f"{name}_{slot}", LINES[slot], DASHES[slot // 4], 1)
            for slot in range(SLOTS)
        ]

    def _replica_legend(
        self, chart: Any, lines: dict[str, Any], replicas: list[Any]
    ) -> None:
        items = [_item("", line, visible=False) for line in replicas]
        legend = Legend(items=[*(_item(*each) for each in lines.items()), *items])
        self._place(chart, legend, "right")
        self._relabel.append(lambda: self._name_replicas(items))

    def _name_replicas(self, items: list[LegendItem]) -> None:
        record = self.feed.record
        names = [""] * SLOTS
        for replica in record.replicas.values() if record is not None else ():
            if replica.slot is not None:
                names[replica.slot] = replica.name.replace("-", " ")
        for item, name in zip(items, names, strict=True):
            _show(item, name)

    def _legend(self, chart: Any, lines: dict[str, Any]) -> None:
        items = [_item(*each) for each in lines.items()]
        self._place(chart, Legend(items=items, orientation="horizontal"), "above")

    def _place(self, chart: Any, legend: Legend, where: str) -> None:
        legend.label_text_font_size = "10px"
        legend.border_line_color = None
        legend.background_fill_alpha = 0
        legend.padding = legend.margin = 0
        legend.spacing = 0 if where == "right" else 14
        legend.glyph_width = 16
        legend.glyph_height = legend.label_height = 13
        chart.add_layout(legend, where)

    def _hover(self, chart: Any, line: Any, *columns: tuple[str, str, str]) -> None:
        """Show columns at the moment that the pointer is at: label, column, format."""
        rows = [(label, f"@{column}{{{form}}}") for label, column, form in columns]
        tip = HoverTool(
            renderers=[line],
            mode="vline",
            tooltips=[("time", "@time{custom}"), *rows],
            formatters={"@time": self.style.time_hover},
            visible=False,
        )
        chart.add_tools(tip)


def _item(label: str, line: Any, visible: bool = True) -> LegendItem:
    return LegendItem(label={"value": label}, renderers=[line], visible=visible)


def _show(item: LegendItem, label: str) -> None:
    if item.label != {"value": label}:
        item.label = {"value": label}
        item.visible = bool(label)


# In the order of the page; each has a page of its own, too.
CHARTS = (
    "throughput",
    "loss",
    "metrics",
    "speed",
    "staleness",
    "traffic",
    "backlog",
    "replicas",
)
