"""Charts on a page of HTML that opens without a network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from tensair_dask._common.files import write_atomically
from tensair_dask.observe import templates
from tensair_dask.observe.figures.chart import Band, Chart, Line, MarkStyle, Panel
from tensair_dask.observe.figures.matplotlib_renderer import png

__all__ = ["Embedded", "Entry", "embed", "legend", "page", "save"]


class Entry(NamedTuple):
    """A line of the legend.

    Attributes
    ----------
    label
        What it is.
    look
        How that is drawn.
    switch
        Tag of what a click on it hides; empty for what cannot be hidden.
    """

    label: str
    look: Line | Band | MarkStyle
    switch: str = ""


class Embedded(NamedTuple):
    """A chart on a page.

    Attributes
    ----------
    chart
        What it shows.
    legend
        What its lines and signs mean.
    panels
        Each panel, the height of its figure in pixels, and where that goes, in HTML.
    """

    chart: Chart
    legend: list[Entry]
    panels: list[tuple[Panel, int, str]]


def legend(chart: Chart, name: str = "") -> list[Entry]:
    """Name everything that has a label, once.

    Parameters
    ----------
    chart
        What it shows.
    name
        Of the chart among others on a page.
    """
    found: dict[str, Entry] = {}
    for panel in chart.panels:
        looks: list[Line | Band] = [*panel.lines, *panel.bands]
        for each in looks:
            if each.label:
                entry = Entry(each.label, each, f"{name}/{each.label}")
                found.setdefault(each.label, entry)
    for mark in chart.marks:
        found.setdefault(mark.style.label, Entry(mark.style.label, mark.style))
    return list(found.values())


def embed(charts: Sequence[Chart]) -> tuple[str, list[Embedded], str]:
    """What a page needs to show charts.

    Returns
    -------
    library, embedded, script
        Bokeh itself, to stand in the head of the page; each chart, for the template of
        panels; and what fills these, to stand at the end.
    """
    from bokeh.embed import components
    from bokeh.resources import Resources

    from tensair_dask.observe.figures.bokeh_renderer import drawn

    if not charts:
        return "", [], ""
    names = [f"chart-{number}" for number in range(len(charts))]
    figures = [drawn(chart, name) for chart, name in zip(charts, names, strict=True)]
    script, divs = components(tuple(each for made in figures for each in made))
    left = iter(divs)
    embedded = [
        Embedded(
            chart,
            legend(chart, name),
            [
                (panel, each.height, next(left))
                for panel, each in zip(chart.panels, made, strict=True)
            ],
        )
        for chart, name, made in zip(charts, names, figures, strict=True)
    ]
    return Resources(mode="inline", components=["bokeh"]).render(), embedded, script


def page(chart: Chart) -> str:
    """Draw a chart as a page of its own."""
    library, (embedded,), script = embed([chart])
    return templates.render(
        "tensair_plot.html.j2", library=library, embedded=embedded, script=script
    )


def save(chart: Chart, folder: Path, name: str) -> dict[str, str]:
    """Write a chart as a page and as a picture.

    Parameters
    ----------
    chart
        What it shows.
    folder
        Made if it is not there.
    name
        File name without its ending.

    Returns
    -------
    files
        The paths, by kind: "html" and "png".

    Raises
    ------
    TensairError
        If matplotlib is not installed; the page is then written all the same.
    """
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: folder / f"{name}.{kind}" for kind in ("html", "png")}
    write_atomically(files["html"], page(chart))
    png(chart, files["png"])
    return {kind: str(path) for kind, path in files.items()}
