"""How the pages look: colours, dashes, axes."""

from __future__ import annotations

from typing import Any

from bokeh.models import (
    CustomJSHover,
    CustomJSTickFormatter,
    DatetimeTicker,
    NumeralTickFormatter,
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

__all__ = ["BAND", "DASHES", "LINES", "MAIN", "Style"]

MAIN, BAND = BLUE, SKY
LINES = [VERMILLION, GREEN, PURPLE, SKY, ORANGE, BLACK, BLUE, OLIVE]
# Not by colour alone.
DASHES = ["solid", "dashed", "dotted", "dotdash"]


class Style:
    """Axes, tickers and formatters of one document, shared by all its figures.

    Shared, because what a page costs the scheduler when it is opened grows with the
    number of its models, and a time axis of its own has 15.
    """

    def __init__(self) -> None:
        # The browser's time zone; bokeh's own axes show UTC.
        self.time_ticks = CustomJSTickFormatter(
            code="""
            const span = ticks[ticks.length - 1] - ticks[0]
            const shown = {hour: "2-digit", minute: "2-digit", hour12: false}
            if (span > 43.2e6) shown.weekday = "short"
            else if (span < 1.8e6) shown.second = "2-digit"
            return new Date(tick).toLocaleString([], shown)
            """
        )
        self.time_hover = CustomJSHover(
            code="return new Date(value).toLocaleTimeString([], {hour12: false})"
        )
        self.ticker = DatetimeTicker(desired_num_ticks=5)
        self.counts = NumeralTickFormatter(format="0.[0]a")

    def apply(self, figure: Any, counts: bool) -> None:
        """Give a figure the shared time axis and the look of all.

        Parameters
        ----------
        figure
            The figure.
        counts
            Whether its numbers are to be written as 12k, 3.4m.
        """
        figure.xaxis.ticker = self.ticker
        figure.xaxis.formatter = self.time_ticks
        if counts:
            figure.yaxis.formatter = self.counts
        figure.xgrid.grid_line_color = None
        figure.ygrid.grid_line_alpha = 0.5
        figure.outline_line_color = None
        figure.title.text_font_size = "12px"
        figure.toolbar.logo = None
        figure.toolbar.autohide = True
        self.apply_to_axes(figure)

    def apply_to_axes(self, figure: Any) -> None:
        """Give the axes of a figure the look of all."""
        figure.axis.axis_label_text_font_size = "11px"
        figure.axis.axis_label_text_font_style = "normal"
        figure.axis.major_label_text_font_size = "10px"
        figure.axis.minor_tick_line_color = None
