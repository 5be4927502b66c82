"""Colours of everything that is drawn, and how events look wherever they are shown."""

from __future__ import annotations

__all__ = [
    "BLACK",
    "BLUE",
    "EVENTS",
    "GREEN",
    "GREY",
    "OLIVE",
    "ORANGE",
    "PURPLE",
    "SKY",
    "VERMILLION",
]

# Colours that colour-blind people can tell apart (Okabe and Ito, 2008), the yellow
# darkened for a white ground.
BLUE, SKY, GREEN, OLIVE = "#0072B2", "#56B4E9", "#009E73", "#9C8A00"
ORANGE, VERMILLION, PURPLE, BLACK = "#E69F00", "#D55E00", "#CC79A7", "#000000"
GREY = "#666666"

# Of each kind of event: the colour, and lengths of strokes and gaps in pixels (none is
# a solid line), since colour alone does not reach everyone.
EVENTS: dict[str, tuple[str, tuple[int, ...]]] = {
    "drift": (VERMILLION, ()),
    "policy": (ORANGE, (2, 4)),
    "mode": (PURPLE, (8, 4)),
    "joined": (GREEN, (2, 3)),
    "left": (SKY, (6, 2)),
    "lost": (BLACK, (8, 3, 2, 3)),
    "note": (GREY, (4, 4)),
}
