"""Draw the curves and the events of a training, one panel below the other."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tensair_dask._common.files import write_atomically
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe import templates
from tensair_dask.observe.palette import BLUE, EVENTS, GREEN, ORANGE, SKY
from tensair_dask.observe.telemetry.events import KINDS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["MARKS", "Mark", "Panel", "Plot", "embed", "legend", "panels"]


@dataclass(frozen=True)
class Mark:
    """How events of one kind are drawn: each differs in colour, dash and sign.

    Attributes
    ----------
    colour
        Of the line and the sign.
    dash
        Lengths of strokes and gaps in pixels; empty for a solid line.
    sign
        Bokeh's name of the marker at the top of the line.
    outline
        The same as an SVG path around the origin.
    """

    colour: str
    dash: tuple[int, ...]
    sign: str
    outline: str


# Bokeh's markers, and the same as SVG paths.
_SIGNS = {
    "drift": ("inverted_triangle", "M-5-4h10l-5 9z"),
    "policy": ("hex", "M-5 0l2.5-4.3h5l2.5 4.3-2.5 4.3h-5z"),
    "mode": ("square", "M-4-4h8v8h-8z"),
    "joined": ("triangle", "M-5 4h10l-5-9z"),
    "left": ("plus", "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z"),
    "lost": ("diamond", "M0-5l4 5-4 5-4-5z"),
    "note": ("circle", "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z"),
}
MARKS = {kind: Mark(*look, *_SIGNS[kind]) for kind, look in EVENTS.items()}
assert MARKS.keys() == KINDS.keys()

# Drawn at most: the newest events, and the first metrics.
MARKED = 200
METRICS = 6

TALL, LOW = 170, 120  # pixels
AXIS, HEADING = 44, 34


@dataclass(frozen=True)
class Panel:
    """One figure and what it shows.

    Attributes
    ----------
    title
        With the unit.
    figure
        Of bokeh.
    height
        In pixels.
    """

    title: str
    figure: Any
    height: int


@dataclass(frozen=True)
class _Line:
    """A column of the curves, and how its line looks."""

    column: str
    label: str
    colour: str = BLUE
    dash: str = "solid"
    number: str = "0,0.0"


def panels(
    curves: pd.DataFrame, events: pd.DataFrame, metrics: Sequence[str] = ()
) -> list[Panel]:
    """Draw curves and events, with one time axis for all.

    Parameters
    ----------
    curves
        As `Trainer.curves` gives them.
    events
        As `Trainer.events` gives them; the newest 200 are drawn.
    metrics
        Which columns are metrics; of more than six, the first six are drawn.

    Notes
    -----
    Rows are means over a stretch and are drawn as such: a horizontal line from its
    beginning to its end, and none where nothing was learned.
    """
    drawing = _Drawing(curves, events)
    rate = "0,0.[0]"
    drawing.add(
        "Samples learned per second",
        TALL,
        _Line("samples_per_second", "samples/s", number=rate),
        also=[_Line("steps_per_second", "mini-batches/s", number=rate)],
    )
    drawing.add(
        "Loss before learning: mean, and band from the smallest to the largest "
        "mini-batch",
        TALL,
        _Line("loss", "mean", number="0.0000"),
        band=("loss_min", "loss_max"),
    )
    for name in metrics[:METRICS]:
        line = _Line(name, name, GREEN, number="0.0000")
        drawing.add(f"{name} before learning: mean", TALL - 20, line)
    drawing.add(
        "Staleness in gradients: mean, and the largest (dashed)",
        LOW,
        _Line("staleness", "mean", number="0.00"),
        _Line("staleness_max", "largest", ORANGE, "dashed", "0"),
    )
    drawing.add(
        "Backlog in mini-batches", LOW, _Line("backlog", "backlog", number="0,0")
    )
    drawing.add(
        "Lag in seconds: how long the oldest of these has waited",
        LOW,
        _Line("lag", "lag", number="0.000"),
        last=True,
    )
    return drawing.panels


class _Drawing:
    """The panels of one run, as they are added."""

    def __init__(self, curves: pd.DataFrame, events: pd.DataFrame) -> None:
        from bokeh.models import ColumnDataSource

        self.panels: list[Panel] = []
        self._curves = curves
        ends = _milliseconds(curves["time"])
        starts = ends - 1000 * curves["seconds"].to_numpy(dtype=float)
        self._stretches = {"start": starts, "end": ends}
        elapsed = (ends - starts[0]) / 1000 if len(ends) else ends
        # Each row twice: where it begins and where it ends. Between rows that touch,
        # a line goes up or down; beside a row that has no value there is none.
        self._times = np.stack([starts, ends], axis=1).ravel()
        self._elapsed = [_duration(seconds) for seconds in np.repeat(elapsed, 2)]
        self._events = ColumnDataSource(_marks(events.tail(MARKED)))

    def add(
        self,
        title: str,
        height: int,
        *lines: _Line,
        band: tuple[str, str] | None = None,
        also: Iterable[_Line] = (),
        last: bool = False,
    ) -> None:
        """Add a panel below the others.

        Parameters
        ----------
        title
            With the unit.
        height
            In pixels, without the title.
        lines
            To draw; the last one is what the pointer finds.
        band
            Columns that bound a band behind them.
        also
            Lines that are not drawn, and whose values are shown at the pointer.
        last
            With the labels of the time axis.
        """
        from bokeh.models import ColumnDataSource, HoverTool

        figure = self._figure(height + (AXIS if last else 0), last, lines[0])
        drawn = [] if band is None else [self._band(figure, *band)]
        shown = [*lines, *also]
        data = {"time": self._times, "elapsed": self._elapsed}
        for column in {*(line.column for line in shown), *(band or ())}:
            data[column] = np.repeat(self._curves[column].to_numpy(dtype=float), 2)
        source = ColumnDataSource(data)
        drawn += [
            figure.line(
                "time",
                line.column,
                source=source,
                color=line.colour,
                line_dash=line.dash,
                line_width=1.8,
            )
            for line in lines
        ]
        texts = [(each.label, f"@{{{each.column}}}{{{each.number}}}") for each in shown]
        if band is not None:
            low, high = (f"@{{{column}}}{{0.0000}}" for column in band)
            texts.append(("smallest, largest", f"{low}, {high}"))
        figure.y_range.renderers = drawn  # the events have a scale of their own
        figure.add_tools(
            HoverTool(
                renderers=drawn[-1:],
                mode="vline",
                tooltips=[("after", "@elapsed"), ("UTC", "@time{%F %T}"), *texts],
                formatters={"@time": "datetime"},
            )
        )
        self._mark(figure)
        self.panels.append(Panel(title, figure, figure.height))

    def _figure(self, height: int, last: bool, line: _Line) -> Any:
        from bokeh.models import DataRange1d, NumeralTickFormatter
        from bokeh.plotting import figure

        linked = {"x_range": self.panels[0].figure.x_range} if self.panels else {}
        made = figure(
            height=height,
            sizing_mode="stretch_width",
            x_axis_type="datetime",
            y_axis_type="log" if self._spans_decades(line.column) else "linear",
            tools="pan,xwheel_zoom,box_zoom,reset,save",
            active_scroll=None,
            toolbar_location="right",
            min_border_left=64,
            min_border_right=16,
            **({"x_range": DataRange1d(range_padding=0.01)} | linked),
        )
        made.toolbar.logo = None
        made.toolbar.autohide = True
        made.xaxis.visible = last
        made.xaxis.axis_label = "time (UTC)" if last else None
        made.xaxis.ticker.desired_num_ticks = 4  # on a phone, too
        made.yaxis.ticker.desired_num_ticks = 4
        made.yaxis.formatter = NumeralTickFormatter(format="0,0.[0000]")
        made.yaxis.minor_tick_line_color = None
        made.outline_line_color = None
        made.xgrid.grid_line_alpha = made.ygrid.grid_line_alpha = 0.5
        return made

    def _values(self, column: str) -> np.ndarray:
        values = self._curves[column].to_numpy(dtype=float)
        return values[np.isfinite(values)]

    def _spans_decades(self, column: str) -> bool:
        """Whether a loss falls so far that only a logarithm shows how it ends."""
        values = self._values(column)
        if column != "loss" or not len(values):
            return False
        lows = self._values("loss_min")
        return lows.min() > 0 and np.max(values) > 50 * np.median(values)

    def _band(self, figure: Any, low: str, high: str) -> Any:
        from bokeh.models import ColumnDataSource

        bounds = {
            name: self._curves[name].to_numpy(dtype=float) for name in (low, high)
        }
        return figure.quad(
            left="start",
            right="end",
            bottom=low,
            top=high,
            source=ColumnDataSource(self._stretches | bounds),
            color=SKY,
            alpha=0.35,
            line_width=0,
        )

    def _mark(self, figure: Any) -> None:
        """Draw the events: a line across the panel with a sign at its top."""
        from bokeh.models import HoverTool, Range1d

        if not len(self._events.data["time"]):
            return
        # A scale of their own, so that they leave that of the curves alone.
        figure.extra_y_ranges = {"events": Range1d(0, 1)}
        lines = figure.segment(
            x0="time",
            x1="time",
            y0=0,
            y1=1,
            color="colour",
            line_dash="dash",
            line_width=1.5,
            source=self._events,
            y_range_name="events",
        )
        signs = figure.scatter(
            "time",
            0.95,
            marker="sign",
            size=9,
            color="colour",
            source=self._events,
            y_range_name="events",
        )
        figure.add_tools(
            HoverTool(
                renderers=[lines, signs],
                tooltips=[
                    ("event", "@kind"),
                    ("what", "@text"),
                    ("UTC", "@time{%F %T}"),
                ],
                formatters={"@time": "datetime"},
                attachment="vertical",  # that of the curve stands beside it
            )
        )


def _milliseconds(times: pd.Series) -> np.ndarray:
    """As bokeh's axes have them."""
    moments = times.dt.tz_convert(None).to_numpy(dtype="datetime64[ns]")
    return moments.astype("int64") / 1e6


def _duration(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    if not minutes:
        return f"{rest:.1f} s"
    hours, minutes = divmod(int(minutes), 60)
    return (
        f"{hours}:{minutes:02}:{int(rest):02}"
        if hours
        else f"{minutes} min {rest:.0f} s"
    )


def _marks(events: pd.DataFrame) -> dict[str, Any]:
    marks = [MARKS[kind] for kind in events["kind"]]
    return {
        "time": _milliseconds(events["time"]),
        "kind": [KINDS[kind] for kind in events["kind"]],
        "text": list(events["text"]),
        "colour": [mark.colour for mark in marks],
        "dash": [list(mark.dash) for mark in marks],
        "sign": [mark.sign for mark in marks],
    }


def legend(events: pd.DataFrame) -> list[tuple[str, Mark]]:
    """Name and mark of each kind of event that is there."""
    kinds = set(events["kind"])
    return [(KINDS[kind], mark) for kind, mark in MARKS.items() if kind in kinds]


def embed(figures: Sequence[Any]) -> tuple[str, list[str], str]:
    """What a page needs to show figures without a network.

    Returns
    -------
    library, divs, script
        Bokeh itself, to stand in the head of the page; where each figure goes; and
        what fills these, to stand at the end.
    """
    from bokeh.embed import components
    from bokeh.models import Widget
    from bokeh.resources import Resources

    if not figures:
        return "", [], ""
    models = {model for figure in figures for model in figure.references()}
    parts = ["bokeh"]
    if any(isinstance(model, Widget) for model in models):
        parts.append("bokeh-widgets")
    library = Resources(mode="inline", components=parts)
    script, divs = components(tuple(figures))
    return library.render(), list(divs), script


class Plot:
    """The curves of a training: shows itself in a notebook, or goes into a file.

    It shows the moment at which it was made. Everything that it needs is inside, so
    that it opens without a network; a notebook grows by a megabyte for each.

    Parameters
    ----------
    curves, events, metrics
        As `panels` takes them.
    title
        Of the page.
    """

    def __init__(
        self,
        curves: pd.DataFrame,
        events: pd.DataFrame,
        metrics: Sequence[str] = (),
        title: str = "Training",
    ) -> None:
        self.title = title
        self._curves = curves
        self._events = events
        self._metrics = list(metrics)
        self._page: str | None = None

    def html(self) -> str:
        """The whole page."""
        if self._page is None:
            drawn = panels(self._curves, self._events, self._metrics)
            library, divs, script = embed([panel.figure for panel in drawn])
            self._page = templates.render(
                "tensair_plot.html.j2",
                title=self.title,
                library=library,
                script=script,
                panels=list(zip(drawn, divs, strict=True)),
                legend=legend(self._events),
            )
        return self._page

    @property
    def height(self) -> int:
        """Of the page in pixels, about; the page corrects it where it may."""
        count = min(len(self._metrics), METRICS)
        return 2 * TALL + count * (TALL - 20) + 3 * LOW + (5 + count) * HEADING + 130

    def save(self, path: str | Path) -> Path:
        """Write the page to a file.

        Parameters
        ----------
        path
            Ending in ``.html``; a file that is there is replaced.

        Raises
        ------
        ConfigurationError
            If it ends in something else.
        OSError
            If it cannot be written.
        """
        path = Path(path)
        if path.suffix.lower() not in (".html", ".htm"):
            raise ConfigurationError(
                f"path={str(path)!r} was given; a plot is a page: give a name that "
                "ends in .html."
            )
        write_atomically(path, self.html())
        return path

    def _repr_html_(self) -> str:
        page = html.escape(self.html(), quote=True)
        title = html.escape(self.title, quote=True)
        return (
            f'<iframe srcdoc="{page}" title="{title}" width="100%" '
            f'height="{self.height}" style="border: 0; background: white;"></iframe>'
        )

    def __repr__(self) -> str:
        return f"<Plot: {self.title}, {len(self._curves)} rows; .save('plot.html')>"
