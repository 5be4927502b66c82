"""Prequential scores: every prediction is scored before its record is learned."""

from tensair_dask.prequential.binary import (
    MAJORITY,
    MODEL,
    PREVIOUS,
    BinaryPrequential,
    Scores,
    majority_so_far,
    previous_label,
    share_so_far,
)

__all__ = [
    "MAJORITY",
    "MODEL",
    "PREVIOUS",
    "BinaryPrequential",
    "Scores",
    "majority_so_far",
    "previous_label",
    "share_so_far",
]
