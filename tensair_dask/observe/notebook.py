"""What a trainer shows of itself in a notebook."""

from __future__ import annotations

import datetime
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from tensair_dask.observe import templates
from tensair_dask.observe.figures.run import MARKS
from tensair_dask.observe.snapshot import Overview
from tensair_dask.observe.telemetry.events import KINDS

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["draw", "number", "sparkline"]

# Replicas that are listed; of all others, how many there are.
LISTED = 50

WIDTH, HEIGHT = 240, 36  # pixels


def draw(overview: Overview, live: bool = False) -> str:
    """Draw an overview as a piece of HTML, in the manner of Dask's own objects.

    Parameters
    ----------
    overview
        Of the trainer.
    live
        For a view that is drawn again and again: what can be folded otherwise is
        open.
    """
    curves = overview.curves
    return templates.render(
        "tensair_trainer.html.j2",
        live=live,
        trainer=overview,
        listed=overview.replicas[:LISTED],
        more=len(overview.replicas) - LISTED,
        number=number,
        moment=_clock(overview.time),
        speed=sparkline(curves, "samples_per_second", floor=0.0),
        loss=sparkline(curves, "loss"),
        events=[
            (_clock(each.time), KINDS[each.kind], MARKS[each.kind], each.text)
            for each in reversed(overview.events)
        ],
    )


def number(value: float | None, digits: int = 1) -> str:
    """A number for people, or a dash where there is none."""
    if value is None or not math.isfinite(value):
        return "–"  # noqa: RUF001
    return f"{value:,.{digits}f}" if isinstance(value, float) else f"{value:,}"


def _clock(moment: float) -> str:
    """Time of day where the notebook's kernel runs."""
    return datetime.datetime.fromtimestamp(moment).strftime("%H:%M:%S")


def sparkline(
    curves: pd.DataFrame, column: str, floor: float | None = None
) -> dict[str, Any]:
    """Outline of a column over the whole run, as an SVG path.

    Parameters
    ----------
    curves
        As `Trainer.curves` gives them.
    column
        To draw.
    floor
        Value at the bottom; None for the smallest.

    Returns
    -------
    drawing
        ``path``, ``width`` and ``height`` in pixels, and the ``low`` and ``high``
        value of the drawing.
    """
    heights = _resampled(curves, column, WIDTH // 2)
    known = heights[np.isfinite(heights)]
    low = floor if floor is not None else (known.min() if len(known) else math.nan)
    high = max(known.max(), low) if len(known) else math.nan
    drawing = {"path": "", "width": WIDTH, "height": HEIGHT, "low": low, "high": high}
    if not len(known):
        return drawing
    # A pixel off the edges, where half of the stroke would be cut off.
    scale = (HEIGHT - 2) / (high - low) if high > low else 0.0
    parts = []
    drawn = False
    for place, value in enumerate(heights):
        if math.isfinite(value):
            y = HEIGHT - 1 - (value - low) * scale
            parts.append(f"{'V' if drawn else f'M{2 * place} '}{y:.1f}h2")
        drawn = math.isfinite(value)
    return drawing | {"path": "".join(parts)}


def _resampled(curves: pd.DataFrame, column: str, count: int) -> np.ndarray:
    """Means of a column over stretches of equal length; NaN where nothing is known."""
    seconds = curves["seconds"].to_numpy(dtype=float)
    values = curves[column].to_numpy(dtype=float)
    known = np.isfinite(values)
    ends = np.concatenate([[0.0], np.cumsum(seconds)])
    edges = np.linspace(0.0, ends[-1], count + 1)

    def integral(heights: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(heights * seconds)])
        return np.diff(np.interp(edges, ends, total))

    weight = integral(known.astype(float))
    total = integral(np.where(known, values, 0.0))
    # Less than a thousandth of a stretch is what rounding leaves.
    enough = weight > 1e-3 * ends[-1] / count
    return np.divide(total, weight, out=np.full(count, np.nan), where=enough)
