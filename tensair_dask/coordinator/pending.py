"""One mini-batch on its way to being learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from tensair_dask.batches.batch import MiniBatch
from tensair_dask.errors import RaisedError
from tensair_dask.reports import Report

__all__ = ["Pending"]

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Pending:
    """One mini-batch on its way to being learned.

    Attributes
    ----------
    index
        Number in order of submission.
    batch
        What is to be learned; None only for what was refused before, and for what is
        reported and can no longer be learned again; see `forget`.
    item
        The same as it was given, for the dead letters.
    deliver
        Called once with the report; may return an awaitable, which then holds the
        mini-batch's place until it is done (back-pressure from downstream).
    settle
        Called once when all replicas have applied it, and the report has passed: what
        it was made of may be forgotten.
    metadata
        Of streamz; where it was in its sources, for the dead letters.
    on_error
        What is done if it is refused; see `tensair_dask.coordinator.on_error`.
    taken
        When it was given, on the monotonic clock.
    position
        Place among all that was sent to its replica, from 0.
    losses
        Replicas that were lost while it was there, and that had not learned it as far
        as is known. If there are any, it is at a replica alone.
    survived
        Whether its own replica was lost, and its gradient was not: it is only scored,
        for a report.
    reported, passed, confirmed
        Whether the report has come; whether it has been received by who wants it; and
        whether all replicas have applied the gradient.
    """

    index: int
    batch: MiniBatch
    item: Any
    deliver: Callable[[Report], Awaitable[Any] | None]
    settle: Callable[[], Any] | None = None
    metadata: Sequence[Any] = ()
    on_error: str = "dead-letter"
    taken: float = field(default_factory=time.monotonic)
    position: int = -1
    losses: int = 0
    survived: bool = False
    reported: bool = False
    passed: bool = False
    confirmed: bool = False

    def hand_over(self, report: Report) -> Awaitable[None] | None:
        """Deliver the report; whatever its receiver raises, the stream goes on.

        Returns
        -------
        rest
            None if the report has passed, else an awaitable that ends when it has.
        """
        try:
            rest = self.deliver(report)
        except BaseException as error:
            _log("What receives the reports raised", RaisedError.caught(error))
            return None
        return None if rest is None else _passed(rest)

    def let_go(self) -> None:
        """Forget what it was made of, if nobody has; what that raises is logged."""
        settle, self.settle = self.settle, None
        if settle is None:
            return
        try:
            settle()
        except Exception as error:
            _log("What lets go of a mini-batch raised", error)

    def forget(self) -> None:
        """Keep only what settles it; once it is reported nothing else is needed."""
        nothing: Any = None
        self.batch = self.item = self.deliver = nothing


async def _passed(rest: Awaitable[Any]) -> None:
    try:
        await rest
    except Exception as error:
        _log("What receives the reports raised", error)


def _log(what: str, error: Exception) -> None:
    logger.error("%s; the stream goes on", what, exc_info=RaisedError.unless_fit(error))
