from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tensair_dask.observe.figures.bokeh_renderer import drawn
from tensair_dask.observe.figures.chart import (
    Axis,
    Band,
    Chart,
    Line,
    Mark,
    MarkStyle,
    Panel,
    Readout,
    Shade,
)

HERE = MarkStyle("here", "#000000", (4, 4), "triangle")
THERE = MarkStyle("there", "#ff0000", (), "x", line=False)


def chart(*panels: Panel, **changed: Any) -> Chart:
    data = {"place": np.arange(3), "value": np.ones(3), "least": np.zeros(3)}
    panels = panels or (Panel([Line("value")]),)
    return Chart(Axis("place", "places"), panels, data, **changed)


def glyphs(figure: Any) -> list[str]:
    return [type(each.glyph).__name__ for each in figure.renderers]


def hovers(figure: Any) -> list[Any]:
    return [tool for tool in figure.tools if type(tool).__name__ == "HoverTool"]


def test_all_panels_share_one_axis_and_only_the_last_has_its_labels():
    figures = drawn(chart(*[Panel([Line("value")])] * 2, Panel([Line("least")])))
    assert len({id(each.x_range) for each in figures}) == 1
    assert [each.xaxis[0].visible for each in figures] == [False, False, True]
    assert figures[-1].xaxis[0].axis_label == "places"


def test_all_lines_draw_from_one_source_but_those_with_points_of_their_own():
    own = Line("step", points={"place": [0, 2], "step": [1, 1]})
    (figure,) = drawn(chart(Panel([Line("value"), Line("least"), own])))
    sources = [each.data_source for each in figure.renderers]
    assert sources[0] is sources[1]
    assert set(sources[2].data) == {"place", "step"}


def test_lines_without_a_label_lie_below_those_with_and_bands_below_all():
    lines = [Line("value", "mean"), Line("least")]
    (figure,) = drawn(chart(Panel(lines, [Band("least", "value")])))
    assert [each.name for each in figure.renderers] == ["value_band", "least", "value"]


def test_the_pointer_finds_a_column_that_is_not_drawn():
    panel = Panel([Line("value")], readouts=[Readout("v", "value", "0.0")])
    (figure,) = drawn(chart(panel))
    (tip,) = hovers(figure)
    assert tip.renderers == figure.renderers
    assert tip.tooltips == [("v", "@{value}{0.0}")]
    (figure,) = drawn(chart(Panel([Line("value")], pointer="least")))
    (tip,) = hovers(figure)
    assert tip.renderers[0].glyph.line_alpha == 0


def test_marks_cross_every_panel_and_leave_its_scale_alone():
    marks = [Mark(1, HERE, "one", worded=True), Mark(2, THERE, "two")]
    panels = [Panel([Line("value")]), Panel([Line("value")], signs=False)]
    first, second = drawn(chart(*panels, marks=marks))
    assert glyphs(first) == ["Line", "VSpan", "Scatter", "Text"]
    assert glyphs(second) == ["Line", "VSpan"]
    for figure in (first, second):
        assert [type(each.glyph).__name__ for each in figure.y_range.renderers] == [
            "Line"
        ]
        assert len(hovers(figure)) == 2, "one for the lines, one for the marks"
    data = first.renderers[1].data_source.data
    assert data["across"] == pytest.approx([1, np.nan], nan_ok=True)
    assert data["signed"] == [1, 2]
    assert data["word"] == ["one", ""]


def test_without_marks_there_is_nothing_to_find_of_them():
    (figure,) = drawn(chart())
    assert glyphs(figure) == ["Line"]
    assert len(hovers(figure)) == 1


def test_shades_lie_behind_every_panel():
    panel = Panel([Line("value")])
    for figure in drawn(chart(panel, panel, shades=[Shade(0, 1), Shade(1.5, 2)])):
        boxes = [each for each in figure.center if "Box" in type(each).__name__]
        assert [(box.left, box.right) for box in boxes] == [(0, 1), (1.5, 2)]


def test_a_line_may_have_an_axis_of_its_own():
    lines = [Line("value"), Line("least", right="seconds")]
    (figure,) = drawn(chart(Panel(lines)))
    assert [axis.axis_label for axis in figure.yaxis] == [None, "seconds"]
    _, line = figure.renderers
    assert figure.extra_y_ranges["right"].renderers == [line]
    assert line not in figure.y_range.renderers


def test_the_legend_finds_lines_and_bands_of_its_chart():
    panel = Panel([Line("value", "mean")], [Band("least", "value", "range")])
    (figure,) = drawn(chart(panel), "chart-1")
    assert [each.tags for each in figure.renderers] == [
        ["chart-1/range"],
        ["chart-1/mean"],
    ]
