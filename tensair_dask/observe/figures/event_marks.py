"""How events look wherever they are shown."""

from __future__ import annotations

from tensair_dask.observe.figures.chart import MarkStyle
from tensair_dask.observe.palette import (
    BLACK,
    GREEN,
    GREY,
    ORANGE,
    PURPLE,
    SKY,
    VERMILLION,
)
from tensair_dask.observe.telemetry.events import KINDS

__all__ = ["MARKS"]

# Of each kind: colour, dash and sign, since colour alone does not reach everyone.
_LOOKS: dict[str, tuple[str, tuple[int, ...], str]] = {
    "drift": (VERMILLION, (), "inverted_triangle"),
    "policy": (ORANGE, (2, 4), "hex"),
    "mode": (PURPLE, (8, 4), "square"),
    "joined": (GREEN, (2, 3), "triangle"),
    "left": (SKY, (6, 2), "plus"),
    "lost": (BLACK, (8, 3, 2, 3), "diamond"),
    "note": (GREY, (4, 4), "circle"),
}
MARKS = {kind: MarkStyle(name, *_LOOKS[kind]) for kind, name in KINDS.items()}
