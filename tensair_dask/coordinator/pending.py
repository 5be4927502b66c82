"""One mini-batch on its way to being learned."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from tensair_dask.batches.batch import MiniBatch
from tensair_dask.errors import RaisedError
from tensair_dask.reports import Report

__all__ = ["Pending", "Receiver"]

logger = logging.getLogger(__name__)


class Receiver(Protocol):
    """Who has given a mini-batch, and is told what becomes of it.

    One for all mini-batches of a node: there may be thousands of these at a time, and
    the garbage collector of Python looks at each object of each.

    Attributes
    ----------
    is_stream
        Whether it is a node of a stream, which holds what a mini-batch was made of
        until `let_go`.
    """

    is_stream: bool

    def deliver(self, report: Report, metadata: Sequence[Any]) -> Any:
        """Take the report, once.

        Parameters
        ----------
        report
            Of one mini-batch.
        metadata
            That was given with it.

        Returns
        -------
        rest
            None, or an awaitable, which then holds the mini-batch's place until it is
            done (back-pressure from downstream).
        """

    def let_go(self, metadata: Sequence[Any]) -> None:
        """Forget what was given with a mini-batch: it is learned everywhere."""


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
    receiver
        Who has given it.
    metadata
        Of streamz; where it was in its sources, for the dead letters.
    settle
        Called once with this when all replicas have applied it, and the report has
        passed: what it was made of may be forgotten.
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
    receiver: Receiver
    metadata: Sequence[Any] = ()
    settle: Callable[[Pending], Any] | None = None
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
            rest = self.receiver.deliver(report, self.metadata)
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
            settle(self)
        except Exception as error:
            _log("What lets go of a mini-batch raised", error)

    def forget(self) -> None:
        """Keep only what settles it; once it is reported nothing else is needed."""
        nothing: Any = None
        self.batch = self.item = nothing


async def _passed(rest: Awaitable[Any]) -> None:
    try:
        await rest
    except Exception as error:
        _log("What receives the reports raised", error)


def _log(what: str, error: Exception) -> None:
    logger.error("%s; the stream goes on", what, exc_info=RaisedError.unless_fit(error))
