"""Curves of prequential scores, a panel for each score."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tensair_dask.observe.figures.chart import (
    DASHED,
    DOTTED,
    SOLID,
    Axis,
    Chart,
    Line,
    Panel,
    Readout,
)
from tensair_dask.observe.palette import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILLION,
)
from tensair_dask.prequential import LAST_LABEL, MAJORITY, MODEL

__all__ = ["chart"]

# Colour, dash and width: of the model and the baselines, and of modes.
LOOKS = {
    MODEL: (BLUE, SOLID, 2.5),
    MAJORITY: (ORANGE, DASHED, 1.5),
    LAST_LABEL: (GREEN, DOTTED, 1.5),
    "always": (BLUE, SOLID, 2.5),
    "auto": (VERMILLION, SOLID, 2.5),
    "never": (BLACK, SOLID, 2.5),
}
OTHER = (GREY, SOLID, 2.5)


def chart(
    curves: pd.DataFrame,
    moments: np.ndarray,
    title: str = "",
    subtitle: str = "",
    axis: str = "time",
) -> Chart:
    """Describe one panel for each score.

    Parameters
    ----------
    curves
        As `BinaryPrequential.curves` gives them: columns are pairs (score, whose).
    moments
        When the newest record of each row was made, datetime64.
    title, subtitle
        What is predicted, and over which window it is scored.
    axis
        Title of the time axis.
    """
    times = np.asarray(moments, dtype="datetime64[us]").astype("int64") / 1000
    data = {"time": times, "records": curves.index.to_numpy()}
    data |= {
        f"{name}, {whose}": curves[name, whose].to_numpy()
        for name, whose in curves.columns
    }
    names = dict.fromkeys(curves.columns.get_level_values(0))
    readouts = [Readout("time", "time", "%F"), Readout("records", "records", "0,0")]
    return Chart(
        Axis("time", axis, kind="utc", readouts=readouts),
        [_panel(name, list(curves[name].columns)) for name in names],
        data,
        title=title,
        subtitle=subtitle,
    )


def _panel(name: str, owners: list[str]) -> Panel:
    return Panel(
        [Line(f"{name}, {whose}", whose, *LOOKS.get(whose, OTHER)) for whose in owners],
        label=name,
        readouts=[Readout(whose, f"{name}, {whose}", "0.000") for whose in owners],
        height=240,
    )
