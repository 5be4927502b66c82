"""A curve in one line of text."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

__all__ = ["BLOCKS", "PLAIN", "sparkline"]

BLOCKS = "▁▂▃▄▅▆▇█"
# For terminals that have ASCII only.
PLAIN = "_.-=+*%#"


def sparkline(
    values: Sequence[float | None],
    width: int,
    *,
    lowest: float | None = None,
    blocks: str = BLOCKS,
) -> str:
    """Draw values in equal steps, the newest at the right.

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
    means = [_mean(part) for part in _parts(values, width)]
    known = [mean for mean in means if mean is not None]
    if not known:
        return ""
    low = min(known) if lowest is None else min(lowest, *known)
    height = max(known) - low
    return "".join(
        " " if mean is None else _block(mean - low, height, blocks) for mean in means
    )


def _block(above: float, height: float, blocks: str) -> str:
    if height <= 0:  # all the same
        return blocks[0]
    return blocks[min(len(blocks) - 1, int(above / height * len(blocks)))]


def _parts(values: Sequence[float | None], width: int) -> list[Sequence[float | None]]:
    """Values in so many groups of equal size; one value each where that is enough."""
    count = len(values)
    groups = min(count, max(width, 0))
    if groups == 0:
        return []
    ends = [count * number // groups for number in range(groups + 1)]
    return [values[start:end] for start, end in itertools.pairwise(ends)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
