from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from tensair_dask.observe.figures.page import save
from tensair_dask.observe.figures.scores import chart
from tensair_dask.prequential import BinaryPrequential


@pytest.fixture
def scores() -> BinaryPrequential:
    random = np.random.default_rng(0)
    target = random.random(3_000) < 0.3
    scores = BinaryPrequential(window=500)
    scores.expect(target)
    scores.add(0, random.random(3_000))
    return scores


def test_picture_and_page(fonts, scores, tmp_path):
    times = pd.date_range("2013-01-01", "2013-12-31", 3_000).to_numpy()
    curves = scores.curves()
    moments = times[curves.index.to_numpy() - 1]
    drawn = chart(curves, moments, "Arrives late", axis="scheduled departure")
    files = save(drawn, tmp_path / "made" / "here", "curves")
    assert set(files) == {"html", "png"}
    with open(files["png"], "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    with open(files["html"], encoding="utf-8") as page:
        text = page.read()
    # Opened without a network, it shows the same.
    assert not re.search(r"""<(script|link)[^>]+(src|href)=["']?http""", text)
    for word in ("accuracy", "AUC", "log loss", "scheduled departure", "Arrives late"):
        assert word in text


def test_a_panel_for_each_score_with_a_line_for_whoever_has_it(scores):
    curves = scores.curves()
    drawn = chart(curves, np.datetime64("2013-01-01") + np.arange(len(curves)))
    assert {
        panel.label: [line.label for line in panel.lines] for panel in drawn.panels
    } == {name: list(curves[name].columns) for name in ("accuracy", "AUC", "log loss")}
    day = 24 * 60 * 60 * 1000
    assert (drawn.data["time"][:2] - drawn.data["time"][0]).tolist() == [0, day]
