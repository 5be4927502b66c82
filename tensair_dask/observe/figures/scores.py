"""Draw the curves of prequential scores, as a picture and as a page to look into."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from tensair_dask.errors import TensairError
from tensair_dask.observe.palette import BLACK, BLUE, GREEN, ORANGE, VERMILLION
from tensair_dask.prequential import LAST_LABEL, MAJORITY, MODEL

__all__ = ["draw", "html", "panels", "picture", "png"]

COLOURS = {MODEL: BLUE, MAJORITY: ORANGE, LAST_LABEL: GREEN}
COLOURS |= {"always": BLUE, "auto": VERMILLION, "never": BLACK}  # modes
DASHES = {MODEL: "solid", MAJORITY: "dashed", LAST_LABEL: "dotted"}


def draw(
    curves: pd.DataFrame,
    times: np.ndarray,
    *,
    folder: Path,
    title: str,
    subtitle: str = "",
    axis: str = "time",
    name: str = "curves",
) -> dict[str, str]:
    """Write the curves as PNG and as HTML.

    Parameters
    ----------
    curves
        As `BinaryPrequential.curves` gives them: columns are pairs (score, whose).
    times
        When each record of the stream was made, datetime64.
    folder
        Made if it is not there.
    title, subtitle
        What is predicted, and over which window it is scored.
    axis
        Title of the time axis.
    name
        File name without its ending.

    Returns
    -------
    files
        The paths, by kind: "png" and "html".
    """
    folder.mkdir(parents=True, exist_ok=True)
    moments = times[curves.index.to_numpy() - 1]
    files = {}
    path = folder / f"{name}.html"
    html(curves, moments, path, title, subtitle, axis)
    files["html"] = str(path)
    path = folder / f"{name}.png"
    png(curves, moments, path, title, subtitle, axis)
    files["png"] = str(path)
    return files


def picture(**options: Any) -> Any:
    """Begin a figure of matplotlib, without pyplot: no window, no global state.

    Raises
    ------
    TensairError
        If matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise TensairError(
            "The PNG plot needs matplotlib, which is not installed. Install it: "
            "pip install 'tensair-dask[demo]'"
        ) from error
    return Figure(layout="constrained", **options)


def png(
    curves: pd.DataFrame,
    moments: np.ndarray,
    path: Path,
    title: str,
    subtitle: str = "",
    axis: str = "time",
) -> None:
    """Draw one panel for each score with matplotlib.

    Raises
    ------
    TensairError
        If matplotlib is not installed.
    """
    names = list(dict.fromkeys(curves.columns.get_level_values(0)))
    figure = picture(figsize=(9, 2.4 * len(names) + 1.2))
    from matplotlib.dates import AutoDateLocator, ConciseDateFormatter

    figure.suptitle(f"{title}\n{subtitle}", fontsize=12)
    panels = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    lines = {}
    for panel, name in zip(panels, names, strict=True):
        for whose in curves[name].columns:
            (lines[whose],) = panel.plot(
                moments,
                curves[name][whose],
                color=COLOURS.get(whose),
                linestyle=DASHES.get(whose, "solid"),
                linewidth=1.3 if whose in DASHES and whose != MODEL else 1.8,
            )
        panel.set_ylabel(name)
        panel.grid(alpha=0.3)
        panel.spines[["top", "right"]].set_visible(False)
    locator = AutoDateLocator()
    panels[-1].xaxis.set_major_locator(locator)
    panels[-1].xaxis.set_major_formatter(ConciseDateFormatter(locator))
    panels[-1].set_xlabel(axis)
    figure.legend(
        lines.values(), lines.keys(), loc="outside lower center", ncols=len(lines)
    )
    figure.savefig(path, dpi=150)


def html(
    curves: pd.DataFrame,
    moments: np.ndarray,
    path: Path,
    title: str,
    subtitle: str = "",
    axis: str = "time",
) -> None:
    """Draw the same with bokeh, with everything the page needs inside the file."""
    from bokeh.embed import file_html
    from bokeh.resources import INLINE

    heading = f"{title}, {subtitle}" if subtitle else title
    page = panels(curves, moments, heading, axis)
    path.write_text(file_html(page, INLINE, title), encoding="utf-8")


def panels(
    curves: pd.DataFrame, moments: np.ndarray, title: str = "", axis: str = "time"
) -> Any:
    """Draw one panel for each score with bokeh, below each other.

    Parameters
    ----------
    curves
        As `BinaryPrequential.curves` gives them.
    moments
        When the newest record of each row was made, datetime64.
    title
        Above the first panel.
    axis
        Title of the time axis.

    Returns
    -------
    layout
        Of bokeh.
    """
    from bokeh.layouts import gridplot
    from bokeh.models import ColumnDataSource, HoverTool, Legend, LegendItem
    from bokeh.plotting import figure

    names = list(dict.fromkeys(curves.columns.get_level_values(0)))
    data = {"time": moments, "records": curves.index.to_numpy()}
    data |= {f"{name}, {whose}": curves[name, whose] for name, whose in curves.columns}
    source = ColumnDataSource(data)
    drawn: list[Any] = []
    lines: dict[str, list[Any]] = {}
    for name in names:
        panel = figure(
            height=260 + (50 if name == names[0] else 20 if name == names[-1] else 0),
            x_axis_type="datetime",
            y_axis_label=name,
            tools="pan,xwheel_zoom,box_zoom,reset,save",
            **({"x_range": drawn[0].x_range} if drawn else {}),
        )
        for whose in curves[name].columns:
            line = panel.line(
                "time",
                f"{name}, {whose}",
                source=source,
                color=COLOURS.get(whose, "grey"),
                line_dash=DASHES.get(whose, "solid"),
                line_width=1.5 if whose in DASHES and whose != MODEL else 2.5,
            )
            lines.setdefault(whose, []).append(line)
        panel.add_tools(
            HoverTool(
                renderers=[lines[curves[name].columns[0]][-1]],
                mode="vline",
                tooltips=[
                    ("time", "@time{%F}"),
                    ("records", "@records{0,0}"),
                    *(
                        (whose, f"@{{{name}, {whose}}}{{0.000}}")
                        for whose in curves[name].columns
                    ),
                ],
                formatters={"@time": "datetime"},
            )
        )
        drawn.append(panel)
    # One legend above all panels, so that it covers no data; a click on a name hides
    # the line in the first panel, and the links hide it in the others.
    items = [LegendItem(label=whose, renderers=[ls[0]]) for whose, ls in lines.items()]
    legend = Legend(
        items=items, orientation="horizontal", spacing=16, click_policy="hide"
    )
    drawn[0].add_layout(legend, "above")
    for first, *others in lines.values():
        for other in others:
            first.js_link("visible", other, "visible")
    drawn[0].title.text = title
    drawn[-1].xaxis.axis_label = axis
    return gridplot(
        [[panel] for panel in drawn],
        sizing_mode="stretch_width",
        merge_tools=True,
        toolbar_options={"logo": None},
    )
