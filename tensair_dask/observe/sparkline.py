"""A curve as small as a word: blocks in a line of text, or an outline for a page."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

__all__ = ["BLOCKS", "PLAIN", "outline", "sparkline"]

BLOCKS = "▁▂▃▄▅▆▇█"
# For terminals that have ASCII only.
PLAIN = "_.-=+*%#"

WIDTH, HEIGHT = 240, 36  # of an outline, in pixels


def sparkline(
    values: ArrayLike,
    width: int,
    *,
    lowest: float | None = None,
    blocks: str = BLOCKS,
) -> str:
    """Draw values in equal steps as text, the newest at the right.

    Parameters
    ----------
    values
        What is drawn; a blank for what is not known (None, NaN).
    width
        Characters at most; where there are more values, a character is their mean.
    lowest
        What the lowest block stands for; None for the least value.
    blocks
        From low to high.
    """
    values = np.asarray(values, dtype=float)
    means = _means(values, np.ones(len(values)), min(len(values), max(width, 0)))
    low, high = _range(means, lowest)
    if math.isnan(high):
        return ""
    parts = _parts(means, low, high) * len(blocks)
    return "".join(
        " " if math.isnan(part) else blocks[min(int(part), len(blocks) - 1)]
        for part in parts
    )


def outline(
    values: ArrayLike, lengths: ArrayLike, *, lowest: float | None = None
) -> dict[str, Any]:
    """Draw values as an SVG path that is as long for a long run as for a short one.

    Parameters
    ----------
    values
        What is drawn; a gap for what is not known (NaN).
    lengths
        For how long each of them held.
    lowest
        What the bottom stands for; None for the least value.

    Returns
    -------
    drawing
        ``path``, ``width`` and ``height`` in pixels, and the ``low`` and ``high``
        value of the drawing.
    """
    values = np.asarray(values, dtype=float)
    means = _means(values, np.asarray(lengths, dtype=float), WIDTH // 2)
    low, high = _range(means, lowest)
    # A pixel off the edges, where half of the stroke would be cut off.
    heights = HEIGHT - 1 - _parts(means, low, high) * (HEIGHT - 2)
    path = ""
    drawn = False
    for place, height in enumerate(heights):
        known = math.isfinite(height)
        if known:
            path += f"{'V' if drawn else f'M{2 * place} '}{height:.1f}h2"
        drawn = known
    return {"path": path, "width": WIDTH, "height": HEIGHT, "low": low, "high": high}


def _means(values: np.ndarray, lengths: np.ndarray, count: int) -> np.ndarray:
    """Means over so many stretches of equal length; NaN where nothing is known."""
    if not count:
        return np.empty(0)
    known = np.isfinite(values)
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    edges = np.linspace(0.0, ends[-1], count + 1)

    def integral(heights: np.ndarray) -> np.ndarray:
        total = np.concatenate([[0.0], np.cumsum(heights * lengths)])
        return np.diff(np.interp(edges, ends, total))

    weight = integral(known.astype(float))
    total = integral(np.where(known, values, 0.0))
    # Less than a thousandth of a stretch is what rounding leaves.
    enough = weight > 1e-3 * ends[-1] / count
    return np.divide(total, weight, out=np.full(count, np.nan), where=enough)


def _range(means: np.ndarray, lowest: float | None) -> tuple[float, float]:
    """Least and largest value of a drawing; NaN where nothing is known."""
    known = means[np.isfinite(means)]
    if not len(known):
        return (math.nan if lowest is None else lowest), math.nan
    low = float(known.min())
    if lowest is not None:
        low = min(low, lowest)
    return low, float(max(known.max(), low))


def _parts(means: np.ndarray, low: float, high: float) -> np.ndarray:
    """How far up from low to high, from 0 to 1; at the bottom where all is the same."""
    # A difference that rounding of sums may leave is none.
    same = high - low <= 1e-9 * max(abs(low), abs(high))
    return means * 0.0 if same else (means - low) / (high - low)
