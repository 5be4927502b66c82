"""Calls that would wait for the event loop that they hold up."""

from __future__ import annotations

import asyncio
import inspect
from types import FrameType
from typing import Any

__all__ = ["is_awaited", "is_running_here"]

_AWAITS = (
    inspect.CO_COROUTINE
    | inspect.CO_ITERABLE_COROUTINE
    | inspect.CO_ASYNC_GENERATOR
    | inspect.CO_GENERATOR  # as tornado has coroutines
)

# Within a function, not one by themselves.
_PARTS = ("<genexpr>", "<listcomp>", "<setcomp>", "<dictcomp>")


def is_running_here(loop: Any) -> bool:
    """Whether this thread runs the event loop, an asyncio loop, at this moment."""
    try:
        return asyncio.get_running_loop() is loop
    except RuntimeError:
        return False


def is_awaited(frame: FrameType | None) -> bool:
    """Whether who calls can await what it is given: a coroutine, or the loop itself.

    Parameters
    ----------
    frame
        Of the caller. A plain function that an event loop has called, such as the sink
        of a stream, cannot.
    """
    while frame is not None and frame.f_code.co_name in _PARTS:
        frame = frame.f_back
    if frame is None:
        return True
    # What is given to `IOLoop.add_callback` is awaited there.
    of_tornado = frame.f_globals.get("__name__") == "tornado.ioloop"
    return of_tornado or bool(frame.f_code.co_flags & _AWAITS)
