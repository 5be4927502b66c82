from __future__ import annotations

import re

import numpy as np
import pandas as pd
import pytest

from tensair_dask.observe.figures import scores as score_figures
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
    files = score_figures.draw(
        scores.curves(),
        times,
        folder=tmp_path / "made" / "here",
        title="Arrives late",
        axis="scheduled departure",
    )
    assert set(files) == {"html", "png"}
    with open(files["png"], "rb") as picture:
        assert picture.read(8) == b"\x89PNG\r\n\x1a\n"
    with open(files["html"], encoding="utf-8") as page:
        text = page.read()
    # Opened without a network, it shows the same.
    assert not re.search(r"""<(script|link)[^>]+(src|href)=["']?http""", text)
    for word in ("accuracy", "AUC", "log loss", "scheduled departure", "Arrives late"):
        assert word in text
