"""Copying: what one replica holds comes to others along a binomial tree."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

__all__ = ["spread"]

T = TypeVar("T")


async def spread(
    source: T,
    others: Sequence[T],
    give: Callable[[T, T, bool], Awaitable[bool]],
) -> None:
    """Bring to others what the source has: who has got it gives it on.

    Each gives it to one other at a time. So N replicas have it after about log2 N times
    that one copy takes, where the source alone would give N copies. Where one that is
    to give it on fails, the source gives it in its place.

    Parameters
    ----------
    source
        Has it.
    others
        Are to have it.
    give
        ``give(giver, taker, gives_on)`` copies it, and returns whether the taker has it
        now; ``gives_on`` says whether the taker is to be a giver. If it raises, no
        further copies are begun, and the error is raised.
    """

    async def serve(giver: T, takers: Sequence[T]) -> None:
        while takers:
            taker, *rest = takers
            half = len(rest) // 2
            if await give(giver, taker, half > 0):
                await asyncio.gather(
                    serve(taker, rest[:half]), serve(giver, rest[half:])
                )
                return
            if giver is source:
                takers = rest
            else:
                giver = source  # which is asked for the same again

    await serve(source, others)
