"""What a replica has learned and not yet published: one running sum."""

from __future__ import annotations

import time
from collections.abc import Sequence

import torch

from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.message import GradientMessage
from tensair_dask.exchange.rows import Rows

__all__ = ["Accumulator", "Changes"]


class Changes:
    """What one step did, to be shared: gradients, or updates.

    Attributes
    ----------
    dense
        For each dense parameter of the arena its gradient or update; None where the
        step gave it none.
    rows
        For each table its gradient as a sparse tensor that need not be coalesced, or
        its update as `Rows`; or the gradient as an ordinary tensor, where the table
        is tied to a dense layer; None where the step touched no row.
    """

    __slots__ = ("dense", "rows")

    def __init__(
        self,
        dense: Sequence[torch.Tensor | None],
        rows: Sequence[torch.Tensor | Rows | None] = (),
    ) -> None:
        self.dense = dense
        self.rows = rows


class Accumulator:
    """Sums the gradients (or updates) of consecutive steps until they are taken.

    A step costs one pass over the dense parameters. Rows are only set aside, and
    summed when they are taken, or when there are more of them than the table has. Not
    thread-safe: it belongs to the thread that trains.

    Parameters
    ----------
    run_id, origin
        Written into the messages.
    arena
        Of the model.
    """

    def __init__(self, run_id: str, origin: str, arena: Arena) -> None:
        self._run_id = run_id
        self._origin = origin
        self._arena = arena
        self._buffers: list[torch.Tensor] | None = None
        self._views: list[torch.Tensor] = []
        self._tables: list[_TableSum] = []
        self._touched: set[int] = set()
        self._first = 0
        self._last = 0
        self._samples = 0
        self._clock: dict[str, int] = {}
        self.oldest: float | None = None

    def add(
        self, step: int, samples: int, changes: Changes, clock: VectorClock
    ) -> None:
        """Add the changes of one step.

        Parameters
        ----------
        step
            Number of the step at this origin; must follow the last one added.
        samples
            Rows of its mini-batch.
        changes
            To be shared.
        clock
            The replica's clock before the step.
        """
        if self._buffers is None:
            self._open(step, clock)
        self._add_dense(changes.dense)
        for table, rows in zip(self._tables, changes.rows, strict=False):
            if rows is not None:
                table.add(rows)
        self._samples += samples
        self._last = step

    def _add_dense(self, changes: Sequence[torch.Tensor | None]) -> None:
        views = self._views
        present = [change for change in changes if change is not None]
        if len(present) == len(views):
            if views:
                torch._foreach_add_(views, present)
            if len(self._touched) < len(views):
                self._touched.update(range(len(views)))
            return
        for position, change in enumerate(changes):
            if change is not None:
                views[position].add_(change)
                self._touched.add(position)

    def _open(self, step: int, clock: VectorClock) -> None:
        arena = self._arena
        self._buffers = arena.layout.zeros(arena.device)
        self._views = arena.layout.views(self._buffers)
        self._tables = [_TableSum(len(table)) for table in arena.tables]
        self._touched = set()
        self._first = step
        self._samples = 0
        self._clock = clock.snapshot()
        self.oldest = time.monotonic()

    def take(self) -> GradientMessage | None:
        """Close the sum and return it as a message; None if there is nothing."""
        if self._buffers is None:
            return None
        return self._close()

    def take_even_nothing(self, steps: int, clock: VectorClock) -> GradientMessage:
        """Like `take`; without a step since the last one, a message of no steps.

        Parameters
        ----------
        steps, clock
            How many steps the replica has made, and its clock.
        """
        if self._buffers is None:
            self._open(steps + 1, clock)
            self._last = steps
        return self._close()

    def _close(self) -> GradientMessage:
        assert self._buffers is not None
        assert self.oldest is not None
        everything = len(self._touched) == len(self._views)
        rows = {
            number: table.rows()
            for number, table in enumerate(self._tables)
            if table.parts
        }
        message = GradientMessage(
            run_id=self._run_id,
            origin=self._origin,
            first=self._first,
            last=self._last,
            samples=self._samples,
            clock=self._clock,
            oldest=self.oldest,
            content=Gradients(
                self._buffers,
                None if everything else frozenset(self._touched),
                rows,
            ),
        )
        self._buffers = None
        self.oldest = None
        return message


class _TableSum:
    """Rows of one table, set aside until they are summed."""

    def __init__(self, size: int) -> None:
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._size = size
        self._count = 0

    def add(self, rows: torch.Tensor | Rows) -> None:
        if isinstance(rows, Rows):
            self._set_aside(rows.ids, rows.values)
        elif rows.layout == torch.strided:
            self._set_aside(torch.arange(len(rows), device=rows.device), rows)
        else:
            self._set_aside(rows._indices()[0], rows._values())

    def _set_aside(self, ids: torch.Tensor, values: torch.Tensor) -> None:
        self.parts.append((ids, values))
        self._count += len(ids)
        if self._count > self._size and len(self.parts) > 1:
            rows = self.rows()  # memory stays bounded by the table's own size
            self.parts = [(rows.ids, rows.values)]
            self._count = len(rows)

    def rows(self) -> Rows:
        ids, values = zip(*self.parts, strict=True)
        return Rows.summed(torch.cat(ids), torch.cat(values))
