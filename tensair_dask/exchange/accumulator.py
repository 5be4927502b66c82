"""What a replica has learned and not yet published: one running sum."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from tensair_dask.exchange.arena import Layout
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.message import GradientMessage

__all__ = ["Accumulator"]


class Accumulator:
    """Sums the gradients (or updates) of consecutive steps until they are taken.

    A step costs one pass over the parameters. Not thread-safe: it belongs to the
    thread that trains.

    Parameters
    ----------
    run_id, origin
        Written into the messages.
    layout
        Of the model's arena.
    device
        Of the model.
    """

    def __init__(
        self, run_id: str, origin: str, layout: Layout, device: torch.device
    ) -> None:
        self._run_id = run_id
        self._origin = origin
        self._layout = layout
        self._device = device
        self._buffers: list[torch.Tensor] | None = None
        self._views: list[torch.Tensor] = []
        self._touched: set[int] = set()
        self._first = 0
        self._samples = 0
        self._clock: dict[str, int] = {}
        self.oldest: float | None = None

    def add(
        self,
        step: int,
        samples: int,
        changes: Sequence[torch.Tensor | None],
        clock: VectorClock,
    ) -> None:
        """Add the gradients of one step.

        Parameters
        ----------
        step
            Number of the step at this origin; must follow the last one added.
        samples
            Rows of its mini-batch.
        changes
            For each parameter of the layout its gradient or update, or None.
        clock
            The replica's clock before the step.
        """
        if self._buffers is None:
            self._open(step, clock)
        views = self._views
        if all(change is not None for change in changes):
            torch._foreach_add_(views, list(changes))  # type: ignore[arg-type]
            if len(self._touched) < len(views):
                self._touched.update(range(len(views)))
        else:
            for position, change in enumerate(changes):
                if change is not None:
                    views[position].add_(change)
                    self._touched.add(position)
        self._samples += samples
        self._last = step

    def _open(self, step: int, clock: VectorClock) -> None:
        self._buffers = self._layout.zeros(self._device)
        self._views = self._layout.views(self._buffers)
        self._touched = set()
        self._first = step
        self._samples = 0
        self._clock = clock.snapshot()
        self.oldest = time.monotonic()

    def take(self) -> GradientMessage | None:
        """Close the sum and return it as a message; None if there is nothing."""
        if self._buffers is None:
            return None
        assert self.oldest is not None
        everything = len(self._touched) == len(self._layout)
        message = GradientMessage(
            run_id=self._run_id,
            origin=self._origin,
            first=self._first,
            last=self._last,
            samples=self._samples,
            clock=self._clock,
            oldest=self.oldest,
            buffers=self._buffers,
            touched=None if everything else frozenset(self._touched),
        )
        self._buffers = None
        self.oldest = None
        return message
