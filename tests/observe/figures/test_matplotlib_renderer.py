from __future__ import annotations

import sys

import numpy as np
import pytest

from tensair_dask.errors import TensairError
from tensair_dask.observe.figures.chart import (
    DASHED,
    Axis,
    Band,
    Chart,
    Line,
    Mark,
    MarkStyle,
    Panel,
    Shade,
)
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.figures.matplotlib_renderer import png

DAY = 24 * 60 * 60 * 1000.0
EVERYTHING = [
    Panel(
        [
            Line("value", "mean", dash=DASHED),
            Line("least"),
            Line("step", points={"place": [0, DAY], "step": [1, 1]}),
        ],
        [Band("least", "value", "range"), Band(0, "value")],
        title="All at once",
        label="values",
        from_zero=True,
    ),
    Panel([Line("value"), Line("least", right="seconds")], log=True, signs=False),
]


@pytest.mark.parametrize("kind", ["number", "utc"])
def test_everything_that_can_be_described_is_drawn(fonts, tmp_path, kind):
    data = {
        "place": DAY * np.arange(3.0),
        "value": np.array([1.0, np.nan, 2.0]),
        "least": np.ones(3),
    }
    marks = [Mark(DAY, style, "words", worded=True) for style in MARKS.values()]
    marks.append(Mark(2 * DAY, MarkStyle("a change", "#000000"), "words", worded=True))
    png(
        Chart(
            Axis("place", "places", kind),
            EVERYTHING,
            data,
            marks,
            [Shade(0, DAY)],
            "A title",
            "and a subtitle",
        ),
        tmp_path / "chart.png",
    )
    assert (tmp_path / "chart.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_without_matplotlib_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(TensairError, match=r"pip install 'tensair-dask\[demo\]'"):
        png(Chart(Axis("place"), [], {}), tmp_path / "chart.png")
    assert not list(tmp_path.iterdir())
