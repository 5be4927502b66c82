"""How far the parameters have moved: what ``share="update"`` sends."""

from __future__ import annotations

import torch

from tensair_dask.exchange.accumulator import Accumulator, Changes
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows

__all__ = ["Movement"]


class Movement(Accumulator):
    """Subtracts the parameters as all peers know them from the parameters as they are.

    A step costs a mark at the rows it touched, and nothing for dense parameters: the
    work is done once a message, however many steps are in it. The price is one more
    copy of the parameters, the *base*: what was there at the beginning, and all that
    was sent or has arrived since. What rounding leaves out of a message is still
    between base and parameters, and goes with a later one.
    """

    leaves_out = True  # rounding; and rows that moved without a gradient
    _following = False

    def prepare(self) -> None:
        """See that the base is what the parameters are before the step."""
        if self._following:
            return
        arena = self._arena
        with torch.no_grad():
            self._base = [buffer.clone() for buffer in arena.buffers]
            self._table_bases = [table.detach().clone() for table in arena.tables]
            self._moved = [
                torch.zeros(len(table), dtype=torch.bool, device=arena.device)
                for table in arena.tables
            ]
        self._following = True

    def drop(self) -> None:
        """Forget what was gathered, and let the parameters move alone."""
        super().drop()
        if self._following:
            self._following = False
            del self._base, self._table_bases, self._moved

    def applied(self, gradients: Gradients) -> None:
        """Move the base by what has arrived, as the parameters were moved."""
        if not self._following:
            return
        for base, theirs in zip(self._base, gradients.buffers, strict=True):
            base.add_(theirs)
        for number, part in gradients.rows.items():
            self._table_bases[number].index_add_(0, part.ids, part.values)

    def _begin(self) -> None:
        self.prepare()

    def _gather(self, changes: Changes) -> None:
        self._touch(changes.dense)
        for moved, rows in zip(self._moved, changes.rows, strict=True):
            if rows is None:
                continue
            if rows.layout == torch.strided:  # a table that is tied to a dense layer
                moved.fill_(True)
            else:
                moved.index_fill_(0, rows._indices()[0], True)

    def _take(self, everything: bool) -> Gradients:
        arena = self._arena
        buffers = []
        rows = {}
        with torch.no_grad():
            for base, now in zip(self._base, arena.buffers, strict=True):
                moved_by = now - base
                base.add_(moved_by)
                buffers.append(moved_by)
            for number, table in enumerate(arena.tables):
                base = self._table_bases[number]
                if everything:  # some optimizers also move rows without a gradient
                    self._moved[number] = (table != base).flatten(1).any(1)
                ids = self._moved[number].nonzero().view(-1)
                if len(ids):
                    rows[number] = _move(base, table, ids)
                    self._moved[number].index_fill_(0, ids, False)
        touched = None if everything else self._touched_or_all
        return Gradients(buffers, touched, rows)


def _move(base: torch.Tensor, table: torch.Tensor, ids: torch.Tensor) -> Rows:
    """Move rows of the base to where they are in the table; by how much."""
    moved_by = table.index_select(0, ids)
    were = base.index_select(0, ids)
    moved_by.sub_(were)
    base.index_copy_(0, ids, were.add_(moved_by))
    return Rows(ids, moved_by)
