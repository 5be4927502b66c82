from __future__ import annotations

import html
import re

import numpy as np
import pytest
from run_curves import START, curves, events, loaded_from_elsewhere

from tensair_dask.errors import ConfigurationError
from tensair_dask.observe.figures import run as run_figures
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.figures.page import legend
from tensair_dask.observe.figures.run import Plot, chart
from tensair_dask.observe.telemetry.events import KINDS, Event, Events


def test_a_panel_for_each_thing_that_is_asked():
    frame = curves(accuracy=0.5, recall=0.25)
    drawn = chart(frame, events(), ["accuracy", "recall"]).panels
    assert [{line.column for line in panel.lines} for panel in drawn] == [
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
        assert panel.readouts


def test_each_row_is_drawn_from_its_beginning_to_its_end():
    data = chart(curves(2, samples_per_second=[10.0, 30.0]), events()).data
    seconds = (data["time"] - 1000 * START) / 1000
    assert seconds.tolist() == pytest.approx([0, 0.25, 0.25, 0.5], abs=1e-5)
    assert data["samples_per_second"].tolist() == [10, 10, 30, 30]
    assert data["elapsed"] == ["250 ms", "250 ms", "500 ms", "500 ms"]


def test_where_nothing_was_learned_there_is_no_loss_and_speed_is_zero():
    idle = np.arange(40) // 10 == 2
    frame = curves()
    frame.loc[idle, "samples_per_second"] = 0.0
    frame.loc[idle, ["loss", "loss_min", "loss_max"]] = np.nan
    data = chart(frame, events()).data
    twice = np.repeat(idle, 2)
    assert (data["samples_per_second"][twice] == 0).all()
    assert np.isnan(data["loss"][twice]).all()
    assert np.isfinite(data["loss"][~twice]).all()
    assert (data["loss_from"][twice] == data["loss_to"][twice]).all(), "no height"


def test_the_band_of_the_loss_reaches_from_its_least_to_its_most():
    drawn = chart(curves(3, loss_min=0.5, loss_max=[1, 2, 3]), events())
    (band,) = drawn.panels[1].bands
    assert drawn.data[band.low].tolist() == [0.5] * 6
    assert drawn.data[band.high].tolist() == [1, 1, 2, 2, 3, 3]


def test_a_loss_that_falls_by_decades_is_drawn_on_a_logarithmic_scale():
    def is_logarithmic(loss) -> bool:
        frame = curves(loss=loss, loss_min=loss, loss_max=loss)
        return chart(frame, events()).panels[1].log

    assert is_logarithmic(np.geomspace(1000, 0.1, 40))
    assert not is_logarithmic(np.linspace(2, 1, 40))
    assert not is_logarithmic(np.linspace(1000, -1, 40))
    assert not is_logarithmic(np.full(40, np.nan))


def test_kinds_of_events_differ_in_colour_dash_and_sign():
    assert MARKS.keys() == KINDS.keys()
    for name in ("colour", "dash", "sign", "outline"):
        assert len({getattr(mark, name) for mark in MARKS.values()}) == len(MARKS)


def test_events_are_marks_across_all_panels_and_the_legend_names_each_kind_once():
    drawn = chart(curves(), events("drift", "lost", "drift"))
    assert [(mark.style, mark.text) for mark in drawn.marks] == [
        (MARKS["drift"], "text 0"),
        (MARKS["lost"], "text 1"),
        (MARKS["drift"], "text 2"),
    ]
    assert [entry.label for entry in legend(drawn)] == ["drift", "replica lost"]


def test_the_newest_events_and_the_first_metrics_are_drawn():
    many = [f"metric {number}" for number in range(20)]
    frame = curves(**dict.fromkeys(many, 0.5))
    drawn = chart(frame, events(*["note"] * 500), many)
    assert len(drawn.panels) == 5 + run_figures.METRICS
    assert drawn.marks[-1].text == "text 499"
    assert len(drawn.marks) == run_figures.MARKED


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
    drawn = chart(curves(accuracy=0.5), events("note"), ["accuracy"]).panels
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


def test_a_plot_is_saved_as_a_page_or_as_a_picture(fonts, tmp_path):
    plot = Plot(curves(accuracy=0.5), events("drift"), ["accuracy"])
    picture = plot.save(tmp_path / "plot.png")
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ConfigurationError, match=r"ends in \.html or \.png"):
        plot.save(tmp_path / "plot.svg")
