"""Curves and events of a run, as charts get them."""

from __future__ import annotations

import re

import numpy as np
import pandas as pd

from tensair_dask.observe.telemetry.curves import COLUMNS
from tensair_dask.observe.telemetry.events import Event, Events

START = 1_700_000_000.0


def curves(count: int = 40, **columns) -> pd.DataFrame:
    """A run of so many quarters of a second."""
    ends = START + 0.25 * np.arange(1, count + 1)
    frame = pd.DataFrame(dict.fromkeys(COLUMNS, np.linspace(1, 2, count)))
    frame["time"] = pd.to_datetime(ends, unit="s", utc=True)
    frame["seconds"] = 0.25
    return frame.assign(**columns)


def events(*kinds: str) -> pd.DataFrame:
    found = Events()
    for number, kind in enumerate(kinds):
        found.append(Event(kind, f"text {number}", START + number))
    return found.frame()


def loaded_from_elsewhere(page: str) -> list[str]:
    """What a browser would fetch: all that stands in tags and style sheets."""
    tags = r"""<(?:script|link|img|iframe|source|object|embed)\b[^>]*"""
    found = re.findall(tags + r"""(?:src|href|data)\s*=\s*["']?(?!data:)\S+""", page)
    return found + re.findall(r"@import\b.*|url\(\s*[\"']?https?:[^)]*", page)
