"""Detectors by their names."""

from __future__ import annotations

import inspect
from typing import Any

from tensair_dask.drift.adwin import ADWIN
from tensair_dask.drift.base import Detector
from tensair_dask.drift.ddm import DDM
from tensair_dask.drift.kswin import KSWIN
from tensair_dask.drift.optwin import OPTWIN
from tensair_dask.drift.page_hinkley import PageHinkley
from tensair_dask.errors import ConfigurationError

__all__ = ["make"]

_BY_NAME = {kind.name: kind for kind in (OPTWIN, ADWIN, PageHinkley, DDM, KSWIN)}


def make(name: str, **options: Any) -> Detector:
    """Build a detector by name.

    Parameters
    ----------
    name
        ``"optwin"``, ``"adwin"``, ``"pagehinkley"`` (or ``"page-hinkley"``), ``"ddm"``
        or ``"kswin"``, in small or capital letters.
    options
        What its class takes.

    Raises
    ------
    ConfigurationError
        If there is no such detector, or it takes no such option.
    """
    key = name.lower() if isinstance(name, str) else ""
    kind = _BY_NAME.get("".join(c for c in key if c not in "-_ "))
    if kind is None:
        raise ConfigurationError(
            f"There is no detector {name!r}; give one of "
            f"{', '.join(map(repr, _BY_NAME))}."
        )
    allowed = list(inspect.signature(kind).parameters)
    unknown = sorted(set(options) - set(allowed))
    if unknown:
        raise ConfigurationError(
            f"{kind.__name__} takes no option {', '.join(map(repr, unknown))}; it "
            f"takes {', '.join(allowed)}."
        )
    return kind(**options)
