"""Draw a chart with matplotlib, as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tensair_dask.errors import TensairError
from tensair_dask.observe.figures.chart import Axis, Chart, Dash, Line, Mark, Panel
from tensair_dask.observe.wording import number

__all__ = ["png"]

INCH = 110  # pixels of a panel; a picture is ten inches wide
SIGNS_AT = 0.96  # from 0 at the bottom of a panel to 1

# By bokeh's names of the same signs.
_SIGNS = {
    "inverted_triangle": "v",
    "hex": "h",
    "square": "s",
    "triangle": "^",
    "plus": "P",
    "diamond": "D",
    "circle": "o",
    "x": "X",
}


def png(chart: Chart, path: Path) -> None:
    """Write a chart as PNG.

    Parameters
    ----------
    chart
        What it shows.
    path
        Of the file.

    Raises
    ------
    TensairError
        If matplotlib is not installed.
    """
    try:
        # Without pyplot: no window, no global state.
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TensairError(
            "The PNG plot needs matplotlib, which is not installed. Install it: "
            "pip install 'tensair-dask[demo]'"
        ) from error
    heights = [panel.height for panel in chart.panels]
    picture = Figure(
        layout="constrained", figsize=(10, sum(heights) / INCH + 1.1), dpi=150
    )
    picture.suptitle(chart.title, fontsize=13, fontweight="bold")
    drawn = picture.subplots(
        len(heights), 1, sharex=True, squeeze=False, height_ratios=heights
    )[:, 0]
    for panel, axes in zip(chart.panels, drawn, strict=True):
        _draw(chart, panel, axes)
    worded = any(mark.worded and not mark.style.sign for mark in chart.marks)
    drawn[0].set_title(
        chart.subtitle, fontsize=10, color="#444444", pad=24 if worded else 6
    )
    _write_places(chart.axis, drawn[-1])
    labelled: dict[str, Any] = {}
    for axes in picture.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            labelled.setdefault(label, handle)
    if labelled:
        picture.legend(
            labelled.values(),
            labelled.keys(),
            loc="outside lower center",
            ncols=3,
            frameon=False,
        )
    picture.savefig(path)


def _draw(chart: Chart, panel: Panel, axes: Any) -> None:
    for shade in chart.shades:
        ends = _places(chart.axis, [shade.start, shade.end])
        axes.axvspan(*ends, color=shade.colour, alpha=0.09, linewidth=0)
    places = _places(chart.axis, chart.data[chart.axis.column])
    for band in panel.bands:
        low = chart.data[band.low] if isinstance(band.low, str) else band.low
        axes.fill_between(
            places,
            low,
            chart.data[band.high],
            color=band.colour,
            alpha=band.alpha,
            linewidth=0,
            label=band.label or None,
        )
    for line in panel.in_order:
        _draw_line(chart, line, axes)
    for mark in chart.marks:
        _draw_mark(mark, chart.axis, axes, panel.signs)
    axes.set_title(panel.title, loc="left", fontsize=10)
    axes.set_ylabel(panel.label)
    axes.set_yscale("log" if panel.log else "linear")
    if panel.from_zero:
        axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)


def _draw_line(chart: Chart, line: Line, axes: Any) -> None:
    data = chart.data if line.points is None else line.points
    if line.right:
        axes = axes.twinx()
        axes.set_ylabel(line.right, color=line.colour)
    axes.plot(
        _places(chart.axis, data[chart.axis.column]),
        data[line.column],
        color=line.colour,
        linestyle=_dashes(line.dash, line.width),
        linewidth=0.8 * line.width,
        label=line.label or None,
    )


def _draw_mark(mark: Mark, axis: Axis, axes: Any, signs: bool) -> None:
    """Draw a line across a panel, its sign at the top, and its words beside that."""
    style = mark.style
    (place,) = _places(axis, [mark.place])
    across = axes.get_xaxis_transform()  # the height of the panel is 1
    if style.line:
        axes.axvline(
            place,
            color=style.colour,
            linestyle=_dashes(style.dash, style.width),
            linewidth=0.8 * style.width,
            label=None if style.sign else style.label,
            zorder=1,
        )
    if signs and style.sign:
        axes.plot(
            [place],
            [SIGNS_AT],
            marker=_SIGNS[style.sign],
            markersize=9,
            markeredgecolor=style.colour,
            markerfacecolor=style.colour if style.filled else "white",
            linestyle="none",
            transform=across,
            label=style.label,
            clip_on=False,
            zorder=3,
        )
    if signs and mark.worded:
        above = not style.sign
        axes.annotate(
            mark.text,
            (place, 1.0 if above else SIGNS_AT),
            xycoords=("data", "axes fraction"),
            xytext=(0, 6) if above else (8, 0),
            textcoords="offset points",
            ha="center" if above else "left",
            va="bottom" if above else "center",
            fontsize=9,
            color=style.colour,
        )


def _dashes(dash: Dash, width: float) -> Any:
    """Matplotlib measures dashes in widths of the line."""
    return (0, tuple(length / width for length in dash)) if dash else "solid"


def _places(axis: Axis, places: Any) -> Any:
    if axis.kind == "number":
        return np.asarray(places)
    microseconds = 1000 * np.asarray(places, dtype=float)
    return microseconds.astype("int64").astype("datetime64[us]")


def _write_places(axis: Axis, axes: Any) -> None:
    """Write the labels of the horizontal axis."""
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    axes.set_xlabel(axis.label)
    if axis.kind == "number":
        axes.xaxis.set_major_formatter(lambda value, _: number(float(value), 0))
    else:
        locator = AutoDateLocator()
        axes.xaxis.set_major_locator(locator)
        axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
