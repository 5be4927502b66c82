"""The sum of the gradients of consecutive steps: what ``share="gradient"`` sends."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tensair_dask.exchange.accumulator import Accumulator, Changes
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows

__all__ = ["GradientSum"]


class GradientSum(Accumulator):
    """Sums gradients.

    A step costs one pass over the dense parameters. Rows are only set aside, and
    summed when they are taken, or when there are more of them than the table has.
    """

    def _begin(self) -> None:
        arena = self._arena
        self._buffers = arena.layout.zeros(arena.device)
        self._views = arena.layout.views(self._buffers)
        self._tables = [_TableSum(len(table)) for table in arena.tables]

    def _gather(self, changes: Changes) -> None:
        self._add_dense(changes.dense)
        self._touch(changes.dense)
        for table, rows in zip(self._tables, changes.rows, strict=False):
            if rows is not None:
                table.add(rows)

    def _add_dense(self, changes: Sequence[torch.Tensor | None]) -> None:
        views = self._views
        present = [change for change in changes if change is not None]
        if len(present) == len(views):
            if views:
                torch._foreach_add_(views, present)
            return
        for view, change in zip(views, changes, strict=True):
            if change is not None:
                view.add_(change)

    def _take(self, everything: bool) -> Gradients:
        rows = {
            number: table.rows()
            for number, table in enumerate(self._tables)
            if table.parts
        }
        taken = Gradients(self._buffers, self._touched_or_all, rows)
        del self._buffers, self._views, self._tables  # they are the message's now
        return taken


class _TableSum:
    """Rows of one table, set aside until they are summed."""

    def __init__(self, size: int) -> None:
        self.parts: list[tuple[torch.Tensor, torch.Tensor]] = []
        self._size = size
        self._count = 0

    def add(self, rows: torch.Tensor) -> None:
        if rows.layout == torch.strided:
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
