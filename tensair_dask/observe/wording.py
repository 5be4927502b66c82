"""Numbers and texts for people, in few characters; a dash for what is unknown."""

from __future__ import annotations

import math
from numbers import Integral

__all__ = [
    "amount",
    "clipped",
    "duration",
    "number",
    "plain",
    "rate_of_bytes",
    "share",
    "short",
    "value",
]

UNKNOWN = "-"


def _known(number: float | None) -> bool:
    return number is not None and math.isfinite(number)


def number(value: float | None, digits: int = 1) -> str:
    """All digits before the point, so many after it: ``1,580,800``, ``31.2``."""
    if value is None or not _known(value):
        return UNKNOWN
    return f"{value:,}" if isinstance(value, Integral) else f"{value:,.{digits}f}"


def amount(number: float | None) -> str:
    """Counts and rates: ``1,994``, ``31.2``, ``12.3 M``."""
    if number is None or not _known(number):
        return UNKNOWN
    for unit, factor in (("T", 1e12), ("G", 1e9), ("M", 1e6)):
        if abs(number) >= 10 * factor or (factor > 1e6 and abs(number) >= factor):
            return f"{number / factor:.1f} {unit}"
    if number == int(number) or abs(number) >= 100:
        return f"{number:,.0f}"
    return f"{number:.1f}" if abs(number) >= 0.05 else f"{number:.1g}"


def value(number: float | None) -> str:
    """A loss or a metric: ``0.5123``."""
    if number is None or not _known(number):
        return UNKNOWN
    return f"{number:.4g}"


def short(number: float | None) -> str:
    """A mean that is of use with one decimal: ``1.2``, ``147``."""
    if number is None or not _known(number):
        return UNKNOWN
    return f"{number:.1f}" if abs(number) < 99.95 else f"{number:,.0f}"


def share(number: float | None) -> str:
    """A part of one: ``43 %``."""
    if number is None or not _known(number):
        return UNKNOWN
    return f"{100 * number:.0f} %"


def rate_of_bytes(number: float | None) -> str:
    """Bytes a second: ``1.2 MB/s``."""
    if number is None or not _known(number):
        return UNKNOWN
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if number >= factor:
            return f"{number / factor:.1f} {unit}/s"
    return f"{number:.0f} B/s"


def duration(seconds: float | None) -> str:
    """Seconds: ``101 ms``, ``2.3 s``, ``1 min 12 s``, ``2 h 5 min``, ``3 d 4 h``."""
    if seconds is None or not _known(seconds):
        return UNKNOWN
    if seconds < 0.9995:
        return f"{1000 * seconds:.0f} ms" if seconds > 0 else "0 s"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for unit, finer, length, part in (
        ("d", "h", 86_400, 3_600),
        ("h", "min", 3_600, 60),
        ("min", "s", 60, 1),
    ):
        if whole >= length:
            rest = whole % length // part
            return f"{whole // length} {unit}" + (f" {rest} {finer}" if rest else "")
    return f"{whole} s"


def plain(text: str) -> str:
    """One line without control characters: a name must not steer the terminal."""
    shown = "".join(each if each.isprintable() else " " for each in str(text))
    return " ".join(shown.split())


def clipped(text: str, width: int) -> str:
    """Cut the middle out of a text that is too long: its ends tell most."""
    if len(text) <= width:
        return text
    if width < 3:
        return text[:width]
    tail = (width - 1) * 2 // 3
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"
