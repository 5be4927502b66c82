"""Prequential scores: every prediction is scored before its record is learned.

`Prequential` takes any metric of river, `BinaryPrequential` is the fast way for binary
classifiers on mini-batches.
"""

from __future__ import annotations

from tensair_dask.prequential.baselines import LAST_LABEL, MAJORITY, MEAN, MODEL
from tensair_dask.prequential.binary import (
    BinaryPrequential,
    Scores,
    last_label,
    majority_so_far,
    share_so_far,
)
from tensair_dask.prequential.prequential import Prequential
from tensair_dask.prequential.questions import (
    Answer,
    Question,
    questions_and_answers,
)

__all__ = [
    "LAST_LABEL",
    "MAJORITY",
    "MEAN",
    "MODEL",
    "Answer",
    "BinaryPrequential",
    "Prequential",
    "Question",
    "Scores",
    "last_label",
    "majority_so_far",
    "questions_and_answers",
    "share_so_far",
]
