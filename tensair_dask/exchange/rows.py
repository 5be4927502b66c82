"""Rows of a table: a sparse gradient that stays sparse on the whole way."""

from __future__ import annotations

from dataclasses import dataclass

import torch

__all__ = ["Rows"]


@dataclass(slots=True)
class Rows:
    """Some rows of a table, each at most once.

    Attributes
    ----------
    ids
        Row numbers, int64, (rows,), ascending.
    values
        One vector a row, (rows, ...), in the dtype of the table.
    """

    ids: torch.Tensor
    values: torch.Tensor

    @classmethod
    def summed(cls, ids: torch.Tensor, values: torch.Tensor) -> Rows:
        """Sum the values of equal ids (coalesce); shapes as in the attributes."""
        unique, position = torch.unique(ids, return_inverse=True)
        if len(unique) == len(ids):
            order = torch.argsort(ids)
            return cls(unique, values[order])
        total = values.new_zeros((len(unique), *values.shape[1:]))
        return cls(unique, total.index_add_(0, position, values))

    def __len__(self) -> int:
        return len(self.ids)

    def gradient(self, table: torch.Tensor) -> torch.Tensor:
        """Give the rows as a sparse gradient for a table."""
        return torch.sparse_coo_tensor(
            self.ids[None],
            self.values,
            table.shape,
            is_coalesced=True,
            check_invariants=False,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of ids and values."""
        return self.ids.nbytes + self.values.nbytes


def sum_rows(parts: list[Rows]) -> Rows:
    """Sum several sets of rows into new ones."""
    if len(parts) == 1:
        return parts[0]
    return Rows.summed(
        torch.cat([part.ids for part in parts]),
        torch.cat([part.values for part in parts]),
    )
