"""Arguments that are numbers or yes and no: what is taken for one, what is refused."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import numpy as np

from tensair_dask.errors import ConfigurationError

__all__ = ["allow", "flag", "is_whole", "number", "shown", "whole"]


def number(
    name: str, value: Any, holds: Callable[[float], bool], allowed: str
) -> float:
    """Take a number, of Python or of numpy, that is within bounds.

    Parameters
    ----------
    name, value
        Of the argument.
    holds
        Whether a number is within the bounds. Comparisons with NaN are false.
    allowed
        Tells the bounds and what to give.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    taken = math.nan
    if isinstance(value, numbers.Real) and not isinstance(value, bool):
        with suppress(OverflowError):
            taken = float(value)
    allow(holds(taken), f"{name}={shown(value)}", allowed)
    return taken


def whole(
    name: str,
    value: Any,
    least: int,
    example: int,
    most: int | None = None,
    otherwise: str = "",
) -> int:
    """Take a whole number, of Python or of numpy, that is within bounds.

    Parameters
    ----------
    name, value
        Of the argument.
    least, most
        The bounds; ``most`` is None where there is none.
    example
        One that is allowed.
    otherwise
        What else is allowed, such as "None for single records"; the caller takes it.

    Raises
    ------
    ConfigurationError
        If it is none.
    """
    allow(
        is_whole(value, least) and (most is None or int(value) <= most),
        f"{name}={shown(value)}",
        f"give a whole number from {least:,}{'' if most is None else f' to {most:,}'}, "
        f"for example {example}{otherwise and f', or {otherwise}'}",
    )
    return int(value)


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether it is a whole number, of Python or of numpy, from ``least`` on."""
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    return whole and int(value) >= least


def flag(name: str, value: Any) -> bool:
    """Take True or False, of Python or of numpy.

    Raises
    ------
    ConfigurationError
        If it is something else, whatever its truth value.
    """
    allow(
        isinstance(value, (bool, np.bool_)),
        f"{name}={shown(value)}",
        "give True or False",
    )
    return bool(value)


def allow(holds: bool, said: str, allowed: str) -> None:
    """Refuse an argument.

    Raises
    ------
    ConfigurationError
        Unless it ``holds``: what was ``said``, what is ``allowed``.
    """
    if not holds:
        raise ConfigurationError(f"{said} is not allowed; {allowed}.")


def shown(value: Any) -> str:
    """What was given, in a few words, for a message."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 60 else f"{text[:57]}..."
