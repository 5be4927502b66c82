"""Streams of errors with a known change, from seeds: what detectors are tried on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from tensair_dask.errors import ConfigurationError

__all__ = ["KINDS", "STATIONARY", "LabelledStream", "generate", "stationary"]

CHANGE = 1000  # the first value of the new concept
LOW, HIGH = 0.2, 0.8


@dataclass(frozen=True)
class LabelledStream:
    """Values, and where they change.

    Attributes
    ----------
    name
        Of its kind.
    values
        Shape (values,), float64.
    change_points
        Index of the first value after each change, ascending.
    """

    name: str
    values: np.ndarray
    change_points: tuple[int, ...]

    def __iter__(self) -> Iterator[Any]:
        """Unpack as ``values, change_points``."""
        return iter((self.values, self.change_points))


def _sudden() -> np.ndarray:
    return np.where(np.arange(1999) < CHANGE, LOW, HIGH)


def _gradual() -> np.ndarray:
    """Rise evenly over 1,000 values."""
    return LOW + (HIGH - LOW) * np.clip((np.arange(2999) - CHANGE) / 1000, 0, 1)


def _binary(level: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return (random.random(len(level)) < level).astype(np.float64)


def _real(level: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return np.clip(random.normal(level, 0.1), 0.0, 1.0)


# Names as in the tables that OPTWIN was published with.
KINDS: dict[str, Callable[[np.random.Generator], np.ndarray]] = {
    "sudden, binary": lambda random: _binary(_sudden(), random),
    "sudden, non-binary": lambda random: _real(_sudden(), random),
    "gradual, binary": lambda random: _binary(_gradual(), random),
    "gradual, non-binary": lambda random: _real(_gradual(), random),
}

# Losses and errors of a model that neither learns nor drifts: mean and deviation told.
STATIONARY: dict[str, Callable[[np.random.Generator, int], np.ndarray]] = {
    "loss 1, sd 0.5": lambda random, n: random.gamma(4, 0.25, n),
    "loss 58, sd 29": lambda random, n: random.gamma(4, 14.5, n),
    "loss 58, sd 29, normal": lambda random, n: random.normal(58, 29, n),
    "loss 58, sd 29, lognormal": lambda random, n: random.lognormal(
        np.log(58 / np.sqrt(1.25)), np.sqrt(np.log(1.25)), n
    ),
    "errors 0.2": lambda random, n: _binary(np.full(n, 0.2), random),
}


def generate(kind: str, runs: int = 30, seed: int = 0) -> list[LabelledStream]:
    """Generate streams of errors in [0, 1] that rise from 0.2 to 0.8.

    Parameters
    ----------
    kind
        ``"sudden, binary"``, ``"sudden, non-binary"`` (1,999 values, a change at 1000),
        ``"gradual, binary"`` or ``"gradual, non-binary"`` (2,999 values; the level
        rises evenly from 1000 to 2000, the change is where it begins). Binary: errors 0
        or 1 at that rate. Non-binary: normal about that level with deviation 0.1,
        clipped to [0, 1].
    runs
        How many, each from a seed of its own: ``seed``, ``seed + 1``, ...
    seed
        Of the first.

    Notes
    -----
    Kinds, lengths and places of the change are those of OPTWIN's published experiments;
    its generators are MOA's, these are like them, not the same.
    """
    draw = _chosen(KINDS, kind)
    return [
        LabelledStream(kind, draw(np.random.default_rng(seed + run)), (CHANGE,))
        for run in range(runs)
    ]


def stationary(
    kind: str, runs: int = 30, seed: int = 0, length: int = 2000
) -> list[LabelledStream]:
    """Generate streams without any change: each alarm on them is a false one.

    Parameters
    ----------
    kind
        A key of `STATIONARY`; gamma-distributed where no distribution is named.
    runs, seed
        As in `generate`.
    length
        Values in each.
    """
    draw = _chosen(STATIONARY, kind)
    return [
        LabelledStream(kind, draw(np.random.default_rng(seed + run), length), ())
        for run in range(runs)
    ]


def _chosen(kinds: dict[str, Any], kind: str) -> Any:
    if kind not in kinds:
        raise ConfigurationError(
            f"kind={kind!r} is not allowed; give one of {', '.join(map(repr, kinds))}."
        )
    return kinds[kind]
