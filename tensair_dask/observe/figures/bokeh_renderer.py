"""Draw panels with bokeh, for pages that are finished and for pages that stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from bokeh.models import (
    BoxAnnotation,
    CDSView,
    ColumnDataSource,
    CustomJSHover,
    CustomJSTickFormatter,
    DataRange1d,
    DatetimeTicker,
    HoverTool,
    LinearAxis,
    NumeralTickFormatter,
    Range1d,
    VSpan,
)
from bokeh.plotting import figure

from tensair_dask.observe.figures.chart import (
    Axis,
    Band,
    Chart,
    Line,
    Mark,
    Panel,
    Readout,
    Shade,
)

__all__ = ["Drawing", "drawn", "mark_columns"]

# Of signs and words, from 0 at the bottom of a panel to 1; the labels of the axis.
SIGNS_AT, WORDS_AT = 0.89, 0.97
AXIS = 44  # pixels

_EVENT = [Readout("event", "kind"), Readout("what", "text")]


def drawn(chart: Chart, name: str = "") -> list[Any]:
    """Draw a chart that is finished.

    Parameters
    ----------
    chart
        What it shows.
    name
        Of the chart among others on a page: a line has it in its tag, before its label.

    Returns
    -------
    figures
        Of bokeh, one for each panel.
    """
    marks = ColumnDataSource(mark_columns(chart.marks)) if chart.marks else None
    drawing = Drawing(
        chart.axis, ColumnDataSource(dict(chart.data)), marks, chart.shades, name
    )
    last = chart.panels[-1]
    return [drawing.panel(panel, is_last=panel is last) for panel in chart.panels]


def mark_columns(marks: Iterable[Mark]) -> dict[str, list[Any]]:
    """Marks as the columns of a source that a `Drawing` draws."""
    marks = list(marks)
    nan = float("nan")
    styles = [mark.style for mark in marks]
    return {
        "place": [mark.place for mark in marks],
        "text": [mark.text for mark in marks],
        "kind": [style.label for style in styles],
        "colour": [style.colour for style in styles],
        "dash": [list(style.dash) for style in styles],
        "width": [style.width for style in styles],
        "across": [mark.place if mark.style.line else nan for mark in marks],
        "signed": [mark.place if mark.style.sign else nan for mark in marks],
        "sign": [style.sign or "circle" for style in styles],
        # A cross has nothing to fill.
        "edge": [3 if style.sign == "x" else 1 for style in styles],
        "fill": [style.colour if style.filled else "white" for style in styles],
        "word": [mark.text if mark.worded else "" for mark in marks],
        "word_at": [SIGNS_AT if style.sign else WORDS_AT for style in styles],
        "word_by": [10 if style.sign else 5 for style in styles],
    }


class Drawing:
    """Draws panels of one document: they share data, horizontal axis and marks.

    What a page costs grows with the number of its models, so all that can be shared
    is: a time axis of its own has 15.

    Parameters
    ----------
    axis
        The horizontal axis.
    source
        Columns that the panels name.
    marks
        Columns that `mark_columns` names; None where there are no marks.
    shades
        Behind all panels.
    name
        See `drawn`.
    live
        For a page that streams: small figures with their titles inside.
    """

    def __init__(
        self,
        axis: Axis,
        source: ColumnDataSource,
        marks: ColumnDataSource | None = None,
        shades: Sequence[Shade] = (),
        name: str = "",
        live: bool = False,
    ) -> None:
        self._axis = axis
        self._source = source
        self._marks = marks
        self._shades = shades
        self._name = name
        self._live = live
        self._places = DataRange1d(range_padding=0.02 if live else 0.01)
        # Of all renderers: each would get models of its own.
        self._view, self._marks_view = CDSView(), CDSView()
        self._formatters: dict[str, Any] = {}
        # Of a finished page there is room for so few on a phone.
        self._ticker = DatetimeTicker(desired_num_ticks=5 if live else 4)
        # The browser's time zone; bokeh's own axes show UTC.
        self._local_ticks = CustomJSTickFormatter(
            code="""
            const span = ticks[ticks.length - 1] - ticks[0]
            const shown = {hour: "2-digit", minute: "2-digit", hour12: false}
            if (span > 43.2e6) shown.weekday = "short"
            else if (span < 1.8e6) shown.second = "2-digit"
            return new Date(tick).toLocaleString([], shown)
            """
        )
        self._local_time = CustomJSHover(
            code="return new Date(value).toLocaleTimeString([], {hour12: false})"
        )

    def panel(self, panel: Panel, is_last: bool = True) -> Any:
        """Draw a panel.

        Parameters
        ----------
        panel
            What it shows.
        is_last
            Whether the labels of the horizontal axis are below it.
        """
        made = self._figure(panel, is_last)
        for shade in self._shades:
            ground = BoxAnnotation(left=shade.start, right=shade.end)
            ground.fill_color, ground.fill_alpha = shade.colour, 0.09
            ground.level = "underlay"
            made.add_layout(ground)
        bands = [self._band(made, band) for band in panel.bands]
        lines = {line.column: self._line(made, line) for line in panel.in_order}
        # The marks have a scale of their own.
        made.y_range.renderers = bands + [
            line for line in lines.values() if line.y_range_name == "default"
        ]
        if not isinstance(self._places.renderers, list) and self._live:
            self._places.renderers = [next(iter(lines.values()))]
        pointer = panel.pointer or panel.lines[0].column
        found = lines.get(pointer) or self._line(made, Line(pointer), line_alpha=0)
        self._hover(made, [found], [*self._axis.readouts, *panel.readouts], "vline")
        if self._marks is not None:
            self._mark(made, self._marks, panel.signs and not self._live)
        return made

    def _figure(self, panel: Panel, is_last: bool) -> Any:
        live = self._live
        made = figure(
            title=panel.title if live else None,
            height=panel.height + (0 if live or not is_last else AXIS),
            sizing_mode="stretch_width",
            x_axis_type="linear" if self._axis.kind == "number" else "datetime",
            x_range=self._places,
            y_axis_type="log" if panel.log else "linear",
            y_range=DataRange1d(start=0) if panel.from_zero else DataRange1d(),
            tools="xpan,xwheel_zoom,reset"
            if live
            else "pan,xwheel_zoom,box_zoom,reset,save",
            active_drag=None if live else "auto",
            active_scroll=None,
            toolbar_location="right",
            min_border_right=10 if live else 24,
            **({} if live else {"min_border_left": 64}),
        )
        if live:
            made.title.text_font_size = "12px"
        made.toolbar.logo = None
        made.toolbar.autohide = True
        made.xaxis.visible = is_last
        made.xaxis.axis_label = self._axis.label if is_last else None
        if self._axis.kind == "number":
            made.xaxis.formatter = NumeralTickFormatter(format="0,0")
        else:
            made.xaxis.ticker = self._ticker
        if self._axis.kind == "local":
            made.xaxis.formatter = self._local_ticks
        made.yaxis.axis_label = panel.label or None
        made.yaxis.ticker.desired_num_ticks = 4 if panel.height < 200 else 5
        if panel.ticks:
            made.yaxis.formatter = self._ticks(panel.ticks)
        made.xgrid.grid_line_color = None
        made.ygrid.grid_line_alpha = 0.5
        made.outline_line_color = None
        _dress(made)
        return made

    def _ticks(self, form: str) -> Any:
        if form not in self._formatters:
            self._formatters[form] = NumeralTickFormatter(format=form)
        return self._formatters[form]

    def _line(self, made: Any, line: Line, **options: Any) -> Any:
        if line.right:
            _add_axis(made, line)
            options["y_range_name"] = "right"
        shared = {"source": self._source, "view": self._view}
        drawn = made.line(
            self._axis.column,
            line.column,
            color=line.colour,
            line_dash=list(line.dash),
            line_width=line.width,
            name=line.column,
            **(
                shared
                if line.points is None
                else {"source": ColumnDataSource(dict(line.points))}
            ),
            **options,
        )
        if line.right:
            made.extra_y_ranges["right"].renderers = [drawn]
        return self._tagged(drawn, line.label)

    def _band(self, made: Any, band: Band) -> Any:
        drawn = made.varea(
            self._axis.column,
            band.low,
            band.high,
            source=self._source,
            view=self._view,
            fill_color=band.colour,
            fill_alpha=band.alpha,
            name=f"{band.high}_band",
        )
        return self._tagged(drawn, band.label)

    def _tagged(self, drawn: Any, label: str) -> Any:
        """Let the legend find it."""
        if label:
            drawn.tags = [f"{self._name}/{label}"]
        return _slim(drawn)

    def _mark(self, made: Any, source: ColumnDataSource, signs: bool) -> None:
        """Draw lines across the panel, and signs with words at their tops."""
        look = VSpan(
            x="across", line_color="colour", line_dash="dash", line_width="width"
        )
        options = {"view": self._marks_view}
        spans = made.add_glyph(source, look, name="marks", level="underlay", **options)
        found = [_slim(spans)]
        if signs:
            made.extra_y_ranges["marks"] = Range1d(0, 1)
            options |= {"source": source, "y_range_name": "marks"}
            sign = made.scatter(
                "signed",
                SIGNS_AT,
                marker="sign",
                size=11,
                line_color="colour",
                line_width="edge",
                fill_color="fill",
                **options,
            )
            found.append(_slim(sign))
            if any(source.data["word"]):
                made.text(
                    "place",
                    "word_at",
                    text="word",
                    x_offset="word_by",
                    text_baseline="middle",
                    text_font_size="12px",
                    text_color="colour",
                    **options,
                )
        label, form = self._axis.place
        readouts = [*_EVENT, Readout(label, "place", form)]
        # That of the lines stands beside it.
        self._hover(made, found, readouts, "mouse", attachment="vertical")

    def _hover(
        self,
        made: Any,
        found: list[Any],
        readouts: Iterable[Readout],
        mode: str,
        **options: Any,
    ) -> None:
        tip = HoverTool(
            renderers=found, mode=mode, visible=not self._live and mode == "vline"
        )
        tip.update(**options)
        made.add_tools(tip)
        self.read(tip, readouts)

    def read(self, tip: HoverTool, readouts: Iterable[Readout]) -> None:
        """Let the pointer show these values."""
        rows, formatters = [], {}
        for label, column, form in readouts:
            name = f"@{{{column}}}"
            if form == "local":
                form, formatters[name] = "custom", self._local_time
            elif form.startswith("%"):
                formatters[name] = "datetime"
            rows.append((label, f"{name}{{{form}}}" if form else name))
        tip.update(tooltips=rows, formatters=formatters)


def _slim(renderer: Any) -> Any:
    """Take the looks away that are not used: each is a model."""
    renderer.nonselection_glyph = renderer.muted_glyph = None
    return renderer


def _dress(made: Any) -> None:
    made.axis.axis_label_text_font_size = "11px"
    made.axis.axis_label_text_font_style = "normal"
    made.axis.major_label_text_font_size = "10px"
    made.axis.minor_tick_line_color = None


def _add_axis(made: Any, line: Line) -> None:
    """Give a line an axis of its own at the right."""
    made.extra_y_ranges["right"] = DataRange1d(start=0)
    axis = LinearAxis(
        y_range_name="right",
        axis_label=line.right,
        axis_label_text_color=line.colour,
        major_label_text_color=line.colour,
    )
    made.add_layout(axis, "right")
    _dress(made)
