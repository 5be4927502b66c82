"""Colours of everything that is drawn."""

from __future__ import annotations

__all__ = [
    "BLACK",
    "BLUE",
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
