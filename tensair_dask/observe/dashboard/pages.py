"""The pages: the whole picture, and one page for each chart."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bokeh.layouts import column
from distributed.dashboard.components import add_periodic_callback
from distributed.dashboard.components.scheduler import BOKEH_THEME, env
from jinja2 import ChoiceLoader, FileSystemLoader

from tensair_dask.observe.dashboard.charts import CHARTS, Charts
from tensair_dask.observe.dashboard.feed import Feed
from tensair_dask.observe.dashboard.tables import Events, Headline, Replicas
from tensair_dask.observe.telemetry.scheduler import Telemetry

__all__ = ["MAIN", "pages"]

# Dask writes it into its navigation bar as "Training".
MAIN = "training"

_ENV = env.overlay(
    loader=ChoiceLoader(
        [FileSystemLoader(Path(__file__).parent / "templates"), env.loader]
    )
)


class Page:
    """The parts of one open document, brought up to date together.

    Parameters
    ----------
    feed
        Of the document.
    parts
        To be updated after the feed.
    """

    def __init__(self, feed: Feed, parts: list[Any]) -> None:
        self._feed = feed
        self._parts = parts

    def update(self) -> None:
        """Bring all up to date."""
        self._feed.update()
        for part in self._parts:
            part.update()


def pages(telemetry: Telemetry, milliseconds: int) -> dict[str, Callable[..., None]]:
    """Make the functions that fill documents, by path.

    Parameters
    ----------
    telemetry
        What is shown.
    milliseconds
        Between two updates.
    """
    made: dict[str, Callable[..., None]] = {
        f"/{MAIN}": functools.partial(_whole, telemetry, milliseconds)
    }
    for chart in CHARTS:
        made[f"/individual-{MAIN}-{chart}"] = functools.partial(
            _single, telemetry, milliseconds, chart
        )
    return made


def _whole(
    telemetry: Telemetry, milliseconds: int, scheduler: Any, extra: Any, doc: Any
) -> None:
    """Fill a document with all charts and tables."""
    feed = Feed(telemetry)
    charts = Charts(feed)
    tables: list[Any] = [Headline(feed), Replicas(feed), Events(feed)]
    page = Page(feed, [charts, *tables])
    # Once for all roots: bokeh goes through all models for each of them otherwise,
    # which is half of what opening the page costs.
    with doc.models.freeze():
        for name in CHARTS:
            doc.add_root(charts.draw(name))
        for root in (feed.chooser, feed.span, *(table.root for table in tables)):
            doc.add_root(root)
    page.update()
    add_periodic_callback(doc, page, milliseconds)
    doc.title = "Dask: Training"
    doc.theme = BOKEH_THEME
    doc.template = _ENV.get_template("tensair_training.html")
    doc.template_variables.update(extra)
    doc.template_variables["charts"] = [f"{name}_chart" for name in CHARTS]


def _single(
    telemetry: Telemetry,
    milliseconds: int,
    name: str,
    scheduler: Any,
    extra: Any,
    doc: Any,
) -> None:
    """Fill a document with one chart."""
    feed = Feed(telemetry)
    charts = Charts(feed)
    chart = charts.draw(name)
    chart.sizing_mode = "stretch_both"
    page = Page(feed, [charts])
    page.update()
    add_periodic_callback(doc, page, milliseconds)
    doc.add_root(column(feed.chooser, chart, sizing_mode="stretch_both"))
    doc.title = f"Dask: Training {name}"
    doc.theme = BOKEH_THEME
