"""Faults that tests inject at named points; nothing is ever injected otherwise."""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["Fault", "inject", "injected", "strike"]


class Fault(enum.Enum):
    """Where a fault strikes."""

    CONNECT_FAILS = "before a delivery: the connection breaks"
    SENT_ACK_LOST = "after a delivery: the connection breaks before the answer"
    DELAY = "before a delivery: so many seconds pass"


# While this is empty, a delivery pays for one look at it.
injected: dict[enum.Enum, Callable[[Any], Any]] = {}


async def strike(point: Fault, destination: Any) -> None:
    """Do what is injected here, if anything.

    Raises
    ------
    OSError
        As a broken connection would.
    """
    fault = injected.get(point)
    struck = fault(destination) if fault is not None else False
    if not struck:
        return
    if point is Fault.DELAY:
        await asyncio.sleep(struck)
    else:
        raise OSError(f"injected: {point.value}")


@contextmanager
def inject(point: enum.Enum, fault: Callable[[Any], Any]) -> Iterator[None]:
    """Let a fault strike while the context lasts.

    Parameters
    ----------
    point
        Where.
    fault
        ``fault(destination)`` tells whether it strikes; for `Fault.DELAY`, for how
        many seconds. What it is given at other points stands with these.
    """
    injected[point] = fault
    try:
        yield
    finally:
        del injected[point]
