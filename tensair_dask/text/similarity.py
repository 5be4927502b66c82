"""Sets of word pairs that people have judged, and how well vectors agree with them."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from tensair_dask.errors import ConfigurationError

__all__ = ["Judged", "bundled", "load_judged", "spearman"]

# What comes with gensim, by the name that it is known by.
KNOWN = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}


class Judged(NamedTuple):
    """Pairs of words and how similar people find them.

    Attributes
    ----------
    name
        Of the set.
    pairs
        Both words, in lower case.
    scores
        One a pair; any scale.
    """

    name: str
    pairs: list[tuple[str, str]]
    scores: list[float]


def load_judged(source: str) -> Judged:
    """Load a set by its name, if gensim is installed, or from a file.

    Parameters
    ----------
    source
        ``"wordsim353"``, ``"simlex999"``, or a file with two words and a number in
        each line, between tabs; other lines are skipped.

    Raises
    ------
    ConfigurationError
        If there is no such set, or no pair in it.
    """
    path = bundled(KNOWN[source]) if source in KNOWN else Path(source)
    pairs, scores = [], []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"The evaluation set {source!r} cannot be read: {error}. Give "
            f"{' or '.join(KNOWN)}, or a file with lines of two words and a number."
        ) from error
    for line in lines:
        fields = line.lower().split("\t")
        try:
            one, two, score = fields[0], fields[1], float(fields[2])
        except (IndexError, ValueError):  # a comment or a headline
            continue
        pairs.append((one, two))
        scores.append(score)
    if not pairs:
        raise ConfigurationError(
            f"The evaluation set {source!r} has no line of two words and a number with "
            "tabs between them."
        )
    return Judged(path.stem, pairs, scores)


def bundled(name: str) -> Path:
    """Find a file of gensim's test data.

    Raises
    ------
    ConfigurationError
        If gensim is not installed.
    """
    spec = importlib.util.find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigurationError(
            f"{name} comes with gensim, which is not installed. Install it: "
            "pip install 'tensair-dask[demo]'"
        )
    return Path(next(iter(spec.submodule_search_locations)), "test", "test_data", name)


def spearman(one: np.ndarray, two: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; NaN for fewer than two values."""
    if len(one) < 2:
        return float("nan")
    ranks = pd.DataFrame({"one": one, "two": two}).rank()
    return float(ranks["one"].corr(ranks["two"]))
