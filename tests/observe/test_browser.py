"""Pages in a real browser without a network, where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, FLAGS, needs_browser
from drifting_runs import CHANGES, rows
from run_curves import curves, events

from tensair_dask.observe.figures import drift as drift_figures
from tensair_dask.observe.figures.drift import Course
from tensair_dask.observe.figures.page import page as page_of
from tensair_dask.observe.figures.run import Plot
from tensair_dask.observe.html_report import Ending, Page
from tensair_dask.runner.run import Run

pytestmark = [needs_browser(), pytest.mark.processes]


@pytest.fixture
def browser() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def pages(tmp_path) -> dict[str, Path]:
    """A plot, the same in the frame of a notebook, and the page of a run."""
    plot = Plot(curves(accuracy=0.5), events("drift", "note"), ["accuracy"])
    frame = f"<!DOCTYPE html><meta charset=utf-8><p>Cell</p>{plot._repr_html_()}"
    run = Page(Run(), Ending("finished", "Finished."), 0.0, 1.0).html()
    texts = {"plot": plot.html(), "frame": frame, "run": run}
    for name, text in texts.items():
        (tmp_path / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: tmp_path / f"{name}.html" for name in texts}


@pytest.mark.parametrize("width", [1400, 900, 390])
@pytest.mark.parametrize("name", ["plot", "frame", "run"])
def test_a_page_is_whole_without_a_network(browser, pages, name, width):
    page = browser.new_page(viewport={"width": width, "height": 700}, offline=True)
    asked: list[str] = []
    failed: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(pages[name].as_uri())
    inside = page.frames[-1]
    if name != "run":
        inside.wait_for_function(
            "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
        )
        drawn = inside.evaluate("document.querySelectorAll('figure').length")
        assert drawn == 6
        heights = inside.evaluate(
            "[document.body.scrollHeight, document.documentElement.clientHeight]"
        )
        if name == "frame":
            assert heights[0] <= heights[1] <= heights[0] + 100, "it fits its frame"
    wide = inside.evaluate("document.documentElement.scrollWidth")
    assert wide <= width, "nothing stands out to the right"
    own = ("file://", "data:", "blob:", "about:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert failed == []
    page.close()


class Drifting(Run):
    """A run that shows a drift on its page."""

    def figures(self) -> list[tuple[str, Any]]:
        course = Course(rows(), changes=CHANGES, alarms=[600, 1_009])
        return [("Labels are swapped", drift_figures.chart(course))]


@pytest.mark.parametrize("width", [1400, 390])
@pytest.mark.parametrize("name", ["alone", "page of a run"])
def test_the_drawing_of_a_drift_fits_into_the_window(browser, tmp_path, width, name):
    path = tmp_path / "drift.html"
    if name == "alone":
        course = Course(rows(), changes=CHANGES, alarms=[600, 1_009])
        drawn = drift_figures.chart(course, "Labels are swapped", "1 of 2 detected")
        path.write_text(page_of(drawn), encoding="utf-8")
    else:
        text = Page(Drifting(), Ending("finished", "Finished."), 0.0, 1.0).html()
        path.write_text(text, encoding="utf-8")
    page = browser.new_page(viewport={"width": width, "height": 900}, offline=True)
    failed: list[str] = []
    page.on("pageerror", lambda error: failed.append(str(error)))
    page.goto(path.as_uri())
    page.wait_for_function(
        "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
    )
    for words in ("Labels are swapped", "false alarm", "predicting only"):
        assert page.get_by_text(words, exact=True).is_visible()
    drawn = page.locator("canvas").evaluate_all("all => all.map(one => one.width)")
    assert len([width for width in drawn if width > 200]) >= 2, "both panels are there"
    # Nothing stands beyond the right edge, the legend least of all.
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert failed == []


HIDDEN = """Bokeh.documents[0].roots().flatMap(figure => figure.renderers)
    .filter(drawn => !drawn.visible).map(drawn => drawn.tags[0])"""


def test_a_click_on_a_name_in_the_legend_hides_its_lines(browser, tmp_path):
    drawn = drift_figures.chart(Course(rows(), changes=CHANGES))
    path = tmp_path / "drift.html"
    path.write_text(page_of(drawn), encoding="utf-8")
    page = browser.new_page(offline=True)
    page.goto(path.as_uri())
    page.wait_for_function(
        "window.Bokeh && Bokeh.documents.length && Bokeh.documents[0].is_idle"
    )
    name = page.get_by_role("button", name="predicting only")
    name.click()
    assert page.evaluate(HIDDEN) == ["chart-0/predicting only"] * 2, "in both panels"
    assert name.get_attribute("aria-pressed") == "false"
    name.click()
    assert page.evaluate(HIDDEN) == []
    page.close()
