"""What a replica has learned and not yet published: one running range of steps."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.message import GradientMessage

__all__ = ["Accumulator", "Changes"]


class Changes:
    """The gradients that one step was made with.

    Attributes
    ----------
    dense
        For each dense parameter of the arena its gradient; None where the step gave
        it none.
    rows
        For each table its gradient as a sparse tensor that need not be coalesced; or
        as an ordinary tensor, where the table is tied to a dense layer; None where
        the step touched no row.
    """

    __slots__ = ("dense", "rows")

    def __init__(
        self,
        dense: Sequence[torch.Tensor | None],
        rows: Sequence[torch.Tensor | None] = (),
    ) -> None:
        self.dense = dense
        self.rows = rows


class Accumulator:
    """Gathers what consecutive steps are to share until it is taken as one message.

    Knows the range of steps; what is gathered of them is the matter of a subclass:
    `GradientSum` or `Movement`. Not thread-safe: it belongs to the thread that trains.

    Parameters
    ----------
    run_id, origin, token
        Written into the messages.
    arena
        Of the model.

    Attributes
    ----------
    oldest
        When the first step was added, on the monotonic clock; None if there is none.
    leaves_out
        Whether there can be more to send than what the steps since the last message
        have added, so that a drain must ask for everything.
    """

    leaves_out = False

    def __init__(self, run_id: str, origin: str, arena: Arena, token: str = "") -> None:
        self._run_id = run_id
        self._token = token
        self._origin = origin
        self._arena = arena
        self._touched: set[int] = set()
        self._first = 0
        self._last = 0
        self._samples = 0
        self._taken = 0
        self._clock: dict[str, int] = {}
        self.oldest: float | None = None

    # ---- for subclasses ---------------------------------------------------------

    def prepare(self) -> None:
        """Make ready for a step whose changes will be added."""

    def applied(self, gradients: Gradients) -> None:
        """Take note of what peers sent and this replica has applied."""

    def _begin(self) -> None:
        """Begin a new range with nothing in it."""
        raise NotImplementedError

    def _gather(self, changes: Changes) -> None:
        """Gather the changes of one step."""
        raise NotImplementedError

    def _take(self, everything: bool) -> Gradients:
        """Give what was gathered, and gather nothing more into it."""
        raise NotImplementedError

    # ---- the range --------------------------------------------------------------

    def add(
        self,
        step: int,
        samples: int,
        changes: Changes,
        clock: VectorClock,
        taken: int = 0,
    ) -> None:
        """Add the changes of one step.

        Parameters
        ----------
        step
            Number of the step at this origin; must follow the last one added.
        samples
            Rows of its mini-batch.
        changes
            Its gradients.
        clock
            The replica's clock before the step.
        taken
            Mini-batches that the replica has dealt with, this one included.
        """
        if self.oldest is None:
            self._open(step, clock)
        self._gather(changes)
        self._samples += samples
        self._taken = taken
        self._last = step

    def _open(self, step: int, clock: VectorClock) -> None:
        self._touched = set()
        self._first = step
        self._last = step - 1
        self._samples = 0
        self._clock = clock.snapshot()
        self.oldest = time.monotonic()
        self._begin()

    def drop(self) -> None:
        """Forget what was gathered: there is nobody to send it to."""
        self.oldest = None

    def take(self) -> GradientMessage | None:
        """Close the range and return it as a message; None if there is nothing."""
        if self.oldest is None:
            return None
        return self._close(everything=False)

    def take_everything(self, steps: int, clock: VectorClock) -> GradientMessage:
        """Like `take`, with what earlier messages left out, and even without a step.

        Parameters
        ----------
        steps, clock
            How many steps the replica has made, and its clock.
        """
        if self.oldest is None:
            self._open(steps + 1, clock)
        return self._close(everything=True)

    def _close(self, everything: bool) -> GradientMessage:
        assert self.oldest is not None
        message = GradientMessage(
            run_id=self._run_id,
            origin=self._origin,
            first=self._first,
            last=self._last,
            samples=self._samples,
            taken=self._taken,
            clock=self._clock,
            oldest=self.oldest,
            content=self._take(everything),
            token=self._token,
        )
        self.oldest = None
        return message

    def _touch(self, changes: Sequence[torch.Tensor | None]) -> None:
        """Remember which dense parameters got a gradient."""
        if len(self._touched) < len(changes):
            self._touched.update(
                position
                for position, change in enumerate(changes)
                if change is not None
            )

    @property
    def _touched_or_all(self) -> frozenset[int] | None:
        if len(self._touched) == len(self._arena.dense):
            return None
        return frozenset(self._touched)
