from __future__ import annotations

import html
import re

import numpy as np
import pytest
from run_curves import START, curves, events, loaded_from_elsewhere

from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures import run as run_figures
from tensair_dask.observe.figures.run import MARKS, Plot, panels
from tensair_dask.observe.telemetry.events import KINDS, Event, Events


def lines(panel: run_figures.Panel) -> dict[str, dict]:
    """Data of each line of a panel, by column."""
    return {
        each.glyph.y: each.data_source.data
        for each in panel.figure.renderers
        if type(each.glyph).__name__ == "Line"
    }


def test_a_panel_for_each_thing_that_is_asked():
    frame = curves(accuracy=0.5, recall=0.25)
    drawn = panels(frame, events(), ["accuracy", "recall"])
    shown = [set(lines(panel)) for panel in drawn]
    assert shown == [
        {"samples_per_second"},
        {"loss"},
        {"accuracy"},
        {"recall"},
        {"staleness", "staleness_max"},
        {"backlog"},
        {"lag"},
    ]
    for panel in drawn:
        assert "second" in panel.title or "mean" in panel.title or "in " in panel.title


def test_all_panels_have_one_time_axis_and_a_pointer():
    drawn = panels(curves(), events("note"))
    assert len({id(panel.figure.x_range) for panel in drawn}) == 1
    assert [panel.figure.xaxis[0].visible for panel in drawn] == [False] * 4 + [True]
    for panel in drawn:
        hovers = [
            tool for tool in panel.figure.tools if type(tool).__name__ == "HoverTool"
        ]
        assert len(hovers) == 2, "one for the curve, one for the events"


def test_each_row_is_drawn_from_its_beginning_to_its_end():
    (speed, *_) = panels(curves(2, samples_per_second=[10.0, 30.0]), events())
    data = lines(speed)["samples_per_second"]
    seconds = (data["time"] - 1000 * START) / 1000
    assert seconds.tolist() == pytest.approx([0, 0.25, 0.25, 0.5], abs=1e-5)
    assert data["samples_per_second"].tolist() == [10, 10, 30, 30]
    assert data["elapsed"] == ["0.2 s", "0.2 s", "0.5 s", "0.5 s"]


def test_where_nothing_was_learned_there_is_no_loss_and_speed_is_zero():
    idle = np.arange(40) // 10 == 2
    frame = curves()
    frame.loc[idle, "samples_per_second"] = 0.0
    frame.loc[idle, ["loss", "loss_min", "loss_max"]] = np.nan
    speed, loss, *_ = panels(frame, events())
    twice = np.repeat(idle, 2)
    assert (lines(speed)["samples_per_second"]["samples_per_second"][twice] == 0).all()
    drawn = lines(loss)["loss"]["loss"]
    assert np.isnan(drawn[twice]).all()
    assert np.isfinite(drawn[~twice]).all()


def test_the_band_of_the_loss_reaches_from_its_least_to_its_most():
    _, loss, *_ = panels(curves(3, loss_min=0.5, loss_max=[1, 2, 3]), events())
    (band,) = [
        each for each in loss.figure.renderers if type(each.glyph).__name__ == "Quad"
    ]
    data = band.data_source.data
    assert data["loss_min"].tolist() == [0.5] * 3
    assert data["loss_max"].tolist() == [1, 2, 3]
    assert (data["end"] - data["start"]).tolist() == pytest.approx([250] * 3)


def test_a_loss_that_falls_by_decades_is_drawn_on_a_logarithmic_scale():
    def scale(loss) -> str:
        frame = curves(loss=loss, loss_min=loss, loss_max=loss)
        return type(panels(frame, events())[1].figure.y_scale).__name__

    assert scale(np.geomspace(1000, 0.1, 40)) == "LogScale"
    assert scale(np.linspace(2, 1, 40)) == "LinearScale"
    assert scale(np.linspace(1000, -1, 40)) == "LinearScale"
    assert scale(np.full(40, np.nan)) == "LinearScale"


def test_kinds_of_events_differ_in_colour_dash_and_sign():
    assert MARKS.keys() == KINDS.keys()
    for name in ("colour", "dash", "sign", "outline"):
        assert len({getattr(mark, name) for mark in MARKS.values()}) == len(MARKS)


def test_events_are_drawn_across_every_panel_and_leave_the_scale_alone():
    frame = curves(lag=0.001)
    drawn = panels(frame, events("drift", "lost"))
    for panel in drawn:
        kinds = [type(each.glyph).__name__ for each in panel.figure.renderers]
        assert "Segment" in kinds
        assert "Scatter" in kinds
        scaled = panel.figure.y_range.renderers
        assert all(type(each.glyph).__name__ in ("Line", "Quad") for each in scaled)
    (marks,) = {
        id(each.data_source): each.data_source.data
        for each in drawn[0].figure.renderers
        if type(each.glyph).__name__ == "Segment"
    }.values()
    assert marks["kind"] == ["drift", "replica lost"]
    assert marks["text"] == ["text 0", "text 1"]
    assert marks["colour"] == [MARKS["drift"].colour, MARKS["lost"].colour]
    assert [name for name, _ in run_figures.legend(events("note", "lost"))] == [
        "replica lost",
        "note",
    ]


def test_the_newest_events_and_the_first_metrics_are_drawn():
    many = [f"metric {number}" for number in range(20)]
    frame = curves(**dict.fromkeys(many, 0.5))
    drawn = panels(frame, events(*["note"] * 500), many)
    assert len(drawn) == 5 + run_figures.METRICS
    segment = next(
        each
        for each in drawn[0].figure.renderers
        if type(each.glyph).__name__ == "Segment"
    )
    assert segment.data_source.data["text"][-1] == "text 499"
    assert len(segment.data_source.data["text"]) == run_figures.MARKED


def test_a_run_in_which_nothing_happened_can_be_drawn():
    empty = curves(1).assign(loss=np.nan, loss_min=np.nan, loss_max=np.nan)
    assert "Samples learned per second" in Plot(empty, events()).html()


def test_a_page_opens_without_a_network(tmp_path):
    plot = Plot(curves(accuracy=0.5), events("drift"), ["accuracy"], title="Flights")
    path = plot.save(tmp_path / "plot.html")
    text = path.read_text(encoding="utf-8")
    assert text == plot.html()
    assert not loaded_from_elsewhere(text)
    for word in ("Flights", "Loss before learning", "accuracy", "drift", "Bokeh"):
        assert word in text
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_loaded_from_elsewhere_would_be_found():
    assert loaded_from_elsewhere('<script src="https://cdn.example/a.js"></script>')
    assert loaded_from_elsewhere("<link rel=stylesheet href=a.css>")
    assert loaded_from_elsewhere("<style>@import 'a.css';</style>")
    assert not loaded_from_elsewhere('<script>var src = "https://a"</script>')


def test_in_a_notebook_it_shows_itself_in_a_frame_of_the_right_height():
    plot = Plot(curves(accuracy=0.5), events("note"), ["accuracy"])
    frame = plot._repr_html_()
    (page,) = re.findall(r'srcdoc="([^"]*)"', frame)
    assert html.unescape(page) == plot.html()
    (height,) = re.findall(r'height="(\d+)"', frame)
    drawn = panels(curves(accuracy=0.5), events("note"), ["accuracy"])
    content = sum(panel.height for panel in drawn)
    assert content + 20 * len(drawn) < int(height) < content + 60 * len(drawn)


def test_texts_of_users_are_escaped():
    found = Events()
    found.append(Event("note", "</script><b>bold</b>", START))
    metric = "<i>share</i>"
    frame = curves(**{metric: 0.5})
    page = Plot(frame, found.frame(), [metric], title="<u>run</u>").html()
    assert "<u>run" not in page
    assert "<i>share" not in page.replace("\\u003c", "<").partition("<script")[0]
    assert "</script><b>" not in page
    assert page.count("<script") == page.count("</script>")


def test_a_plot_is_saved_as_a_page_only(tmp_path):
    with pytest.raises(ConfigurationError, match=r"ends in \.html"):
        Plot(curves(), events()).save(tmp_path / "plot.png")
