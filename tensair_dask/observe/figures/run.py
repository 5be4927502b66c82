"""The curves and the events of a training, one panel below the other."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tensair_dask._common.files import write_atomically
from tensair_dask.errors import ConfigurationError
from tensair_dask.observe import templates
from tensair_dask.observe.figures.chart import (
    DASHED,
    Axis,
    Band,
    Chart,
    Line,
    Mark,
    Panel,
    Readout,
)
from tensair_dask.observe.figures.event_marks import MARKS
from tensair_dask.observe.figures.matplotlib_renderer import png
from tensair_dask.observe.figures.page import page
from tensair_dask.observe.palette import GREEN, ORANGE
from tensair_dask.observe.wording import duration

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Plot", "chart"]

# Drawn at most: the newest events, and the first metrics.
MARKED = 200
METRICS = 6

TALL, MIDDLE, LOW = 170, 150, 120  # pixels
HEADING = 34

AXIS = Axis(
    "time",
    "time (UTC)",
    kind="utc",
    place=("UTC", "%F %T"),
    readouts=[Readout("after", "elapsed"), Readout("UTC", "time", "%F %T")],
)


def chart(
    curves: pd.DataFrame,
    events: pd.DataFrame,
    metrics: Sequence[str] = (),
    title: str = "",
) -> Chart:
    """Describe curves and events, with one time axis for all.

    Parameters
    ----------
    curves
        As `Trainer.curves` gives them.
    events
        As `Trainer.events` gives them; the newest 200 are drawn.
    metrics
        Which columns are metrics; of more than six, the first six are drawn.
    title
        Above the panels.

    Notes
    -----
    Rows are means over a stretch and are drawn as such: a horizontal line from its
    beginning to its end, and none where nothing was learned.
    """
    metrics = list(metrics)[:METRICS]
    events = events.tail(MARKED)
    return Chart(
        AXIS,
        _panels(curves, metrics),
        _data(curves, metrics),
        [
            Mark(place, MARKS[kind], text)
            for place, kind, text in zip(
                _milliseconds(events["time"]),
                events["kind"],
                events["text"],
                strict=True,
            )
        ],
        title=title,
    )


def _panels(curves: pd.DataFrame, metrics: Sequence[str]) -> list[Panel]:
    rate, score = "0,0.[0]", "0.0000"
    return [
        Panel(
            [Line("samples_per_second")],
            title="Samples learned per second",
            readouts=[
                Readout("samples/s", "samples_per_second", rate),
                Readout("mini-batches/s", "steps_per_second", rate),
            ],
            height=TALL,
        ),
        Panel(
            [Line("loss")],
            [Band("loss_from", "loss_to")],
            title="Loss before learning: mean, and band from the smallest to the "
            "largest mini-batch",
            readouts=[
                Readout("mean", "loss", score),
                Readout("smallest", "loss_min", score),
                Readout("largest", "loss_max", score),
            ],
            height=TALL,
            log=_spans_decades(curves),
        ),
        *(
            Panel(
                [Line(name, colour=GREEN)],
                title=f"{name} before learning: mean",
                readouts=[Readout(name, name, score)],
                height=MIDDLE,
            )
            for name in metrics
        ),
        Panel(
            [Line("staleness"), Line("staleness_max", colour=ORANGE, dash=DASHED)],
            title="Staleness in gradients: mean, and the largest (dashed)",
            readouts=[
                Readout("mean", "staleness", "0.00"),
                Readout("largest", "staleness_max", "0"),
            ],
            height=LOW,
        ),
        Panel(
            [Line("backlog")],
            title="Backlog in mini-batches",
            readouts=[Readout("backlog", "backlog", "0,0")],
            height=LOW,
        ),
        Panel(
            [Line("lag")],
            title="Lag in seconds: how long the oldest of these has waited",
            readouts=[Readout("lag", "lag", "0.000")],
            height=LOW,
        ),
    ]


def _data(curves: pd.DataFrame, metrics: Sequence[str]) -> dict[str, object]:
    """Each row twice: where it begins and where it ends.

    Between rows that touch, a line goes up or down; beside a row that has no value
    there is none.
    """
    ends = _milliseconds(curves["time"])
    starts = ends - 1000 * curves["seconds"].to_numpy(dtype=float)
    elapsed = (ends - starts[0]) / 1000 if len(ends) else ends
    columns = (
        *("samples_per_second", "steps_per_second", "loss", "loss_min", "loss_max"),
        *("staleness", "staleness_max", "backlog", "lag", *metrics),
    )
    data: dict[str, object] = {
        "time": np.stack([starts, ends], axis=1).ravel(),
        "elapsed": [duration(seconds) for seconds in np.repeat(elapsed, 2)],
    }
    for name in columns:
        data[name] = np.repeat(curves[name].to_numpy(dtype=float), 2)
    # A band has no gaps: where nothing is known it has no height.
    low = curves["loss_min"].ffill()
    high = curves["loss_max"].where(curves["loss_min"].notna(), low)
    data["loss_from"] = np.repeat(low.to_numpy(dtype=float), 2)
    data["loss_to"] = np.repeat(high.to_numpy(dtype=float), 2)
    return data


def _spans_decades(curves: pd.DataFrame) -> bool:
    """Whether a loss falls so far that only a logarithm shows how it ends."""
    loss, lows = (
        curves[name].to_numpy(dtype=float)[np.isfinite(curves[name])]
        for name in ("loss", "loss_min")
    )
    if not len(loss):
        return False
    return bool(lows.min() > 0 and np.max(loss) > 50 * np.median(loss))


def _milliseconds(times: pd.Series) -> np.ndarray:
    moments = times.dt.tz_convert(None).to_numpy(dtype="datetime64[ns]")
    return moments.astype("int64") / 1e6


class Plot:
    """The curves of a training: shows itself in a notebook, or goes into a file.

    It shows the moment at which it was made. Everything that it needs is inside, so
    that it opens without a network; a notebook grows by a megabyte for each.

    Parameters
    ----------
    curves, events, metrics
        As `chart` takes them.
    title
        Of the page.
    """

    def __init__(
        self,
        curves: pd.DataFrame,
        events: pd.DataFrame,
        metrics: Sequence[str] = (),
        title: str = "Training",
    ) -> None:
        self.title = title
        self._curves = curves
        self._events = events
        self._metrics = list(metrics)
        self._page: str | None = None

    @property
    def _chart(self) -> Chart:
        return chart(self._curves, self._events, self._metrics, self.title)

    def html(self) -> str:
        """The whole page."""
        if self._page is None:
            self._page = page(self._chart)
        return self._page

    @property
    def height(self) -> int:
        """Of the page in pixels, about; the page corrects it where it may."""
        panels = self._chart.panels
        return sum(panel.height + HEADING for panel in panels) + 130

    def save(self, path: str | Path) -> Path:
        """Write the page, or a picture of the same, to a file.

        Parameters
        ----------
        path
            Ending in ``.html`` or ``.png``; a file that is there is replaced.

        Raises
        ------
        ConfigurationError
            If it ends in something else.
        TensairError
            If it is a picture, and matplotlib is not installed.
        OSError
            If it cannot be written.
        """
        path = Path(path)
        suffix = path.suffix.lower()
        if suffix == ".png":
            png(self._chart, path)
        elif suffix in (".html", ".htm"):
            write_atomically(path, self.html())
        else:
            raise ConfigurationError(
                f"path={str(path)!r} was given; a plot is a page or a picture: give a "
                "name that ends in .html or .png."
            )
        return path

    def _repr_html_(self) -> str:
        return templates.render(
            "tensair_frame.html.j2",
            page=self.html(),
            title=self.title,
            height=self.height,
        )

    def __repr__(self) -> str:
        return f"<Plot: {self.title}, {len(self._curves)} rows; .save('plot.html')>"
