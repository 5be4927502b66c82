"""What a chart shows, said once for all renderers: panels with lines, bands, marks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from tensair_dask.observe.palette import BLUE, ORANGE, SKY

__all__ = [
    "DASHED",
    "DOTDASH",
    "DOTTED",
    "SIGNS",
    "SOLID",
    "Axis",
    "Band",
    "Chart",
    "Line",
    "Mark",
    "MarkStyle",
    "Panel",
    "Readout",
    "Shade",
]

# Lengths of strokes and gaps in pixels.
Dash = tuple[int, ...]
SOLID: Dash = ()
DASHED: Dash = (6, 6)
DOTTED: Dash = (2, 4)
DOTDASH: Dash = (2, 4, 6, 4)

# Signs by bokeh's names, as SVG paths around the origin.
SIGNS = {
    "inverted_triangle": "M-5-4h10l-5 9z",
    "hex": "M-5 0l2.5-4.3h5l2.5 4.3-2.5 4.3h-5z",
    "square": "M-4-4h8v8h-8z",
    "triangle": "M-5 4h10l-5-9z",
    "plus": "M-1.5-5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5v-3h3.5z",
    "diamond": "M0-5l4 5-4 5-4-5z",
    "circle": "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "x": "M-5-3l2-2 3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3z",
}


class Readout(NamedTuple):
    """A value that the pointer shows.

    Attributes
    ----------
    label
        Before it.
    column
        Of the chart's data.
    form
        Bokeh's format of a number, or of a time (``%F``); ``"local"`` for the time of
        day where the browser is; empty for a text.
    """

    label: str
    column: str
    form: str = ""


class Shade(NamedTuple):
    """A ground behind all panels, from one place to another."""

    start: float
    end: float
    colour: str = ORANGE


@dataclass(frozen=True)
class Axis:
    """The horizontal axis that all panels share.

    Attributes
    ----------
    column
        Of the chart's data: places. Times are milliseconds since the epoch.
    label
        Below the last panel.
    kind
        ``"number"``, ``"utc"``, or ``"local"`` for times where the browser is.
    place
        How the pointer shows the place of a mark: label and form of a `Readout`.
    readouts
        What the pointer shows of a place, before the values.
    """

    column: str
    label: str = ""
    kind: str = "number"
    place: tuple[str, str] = ("place", "0,0")
    readouts: Sequence[Readout] = ()


@dataclass(frozen=True)
class Line:
    """A column as a line.

    Attributes
    ----------
    column
        Of the chart's data.
    label
        In the legend; a line without is not there.
    colour, dash, width
        How it looks; in pixels.
    right
        Label of an axis of its own at the right; empty for the panel's axis.
    points
        Data of its own in place of the chart's, with the same names of columns.
    """

    column: str
    label: str = ""
    colour: str = BLUE
    dash: Dash = SOLID
    width: float = 2.0
    right: str = ""
    points: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Band:
    """What lies between two columns.

    Attributes
    ----------
    low, high
        Columns of the chart's data; low may be a number.
    label
        In the legend; a band without is not there.
    colour, alpha
        How it looks.
    """

    low: str | float
    high: str
    label: str = ""
    colour: str = SKY
    alpha: float = 0.35


@dataclass(frozen=True)
class MarkStyle:
    """How marks of one kind look: each differs in more than the colour.

    Attributes
    ----------
    label
        In the legend, and at the pointer.
    colour, dash, width
        Of the line across the panels.
    sign
        Bokeh's name of the marker at the top of the line; empty for none.
    filled
        Whether the sign is.
    line
        Whether there is a line.
    """

    label: str
    colour: str
    dash: Dash = SOLID
    sign: str = ""
    width: float = 1.5
    filled: bool = True
    line: bool = True

    @property
    def outline(self) -> str:
        """The sign as an SVG path around the origin."""
        return SIGNS.get(self.sign, "")


class Mark(NamedTuple):
    """A place at which something happened.

    Attributes
    ----------
    place
        On the horizontal axis.
    style
        How it looks.
    text
        What happened.
    worded
        Whether the text stands beside it; it is at the pointer in any case.
    """

    place: float
    style: MarkStyle
    text: str
    worded: bool = False


@dataclass(frozen=True)
class Panel:
    """Lines and bands with one vertical axis.

    Attributes
    ----------
    lines
        Each above those before it, and all that have a label above those that have
        none. The pointer finds the first.
    bands
        Below the lines.
    title
        Above the panel, with the unit.
    label
        Beside the axis.
    readouts
        What the pointer shows.
    pointer
        Column that the pointer finds, where that is not the first line; it need not be
        drawn.
    height
        In pixels.
    from_zero, log
        Whether the axis begins at zero; whether it is logarithmic.
    ticks
        Bokeh's format of numbers at the axis; empty for bokeh's choice.
    signs
        Whether marks have their signs and words here, not only their lines.
    """

    lines: Sequence[Line]
    bands: Sequence[Band] = ()
    title: str = ""
    label: str = ""
    readouts: Sequence[Readout] = ()
    pointer: str = ""
    height: int = 220
    from_zero: bool = False
    log: bool = False
    ticks: str = "0,0.[0000]"
    signs: bool = True

    @property
    def in_order(self) -> list[Line]:
        """The lines, from the lowest to the topmost."""
        return sorted(self.lines, key=lambda line: line.label != "")


@dataclass(frozen=True)
class Chart:
    """Panels below each other, over one horizontal axis.

    Attributes
    ----------
    axis
        That axis.
    panels
        From top to bottom.
    data
        Columns of equal length, by name.
    marks, shades
        Across all panels.
    title, subtitle
        Above the panels, where the chart stands alone.
    """

    axis: Axis
    panels: Sequence[Panel]
    data: Mapping[str, Any]
    marks: Sequence[Mark] = ()
    shades: Sequence[Shade] = ()
    title: str = ""
    subtitle: str = ""
