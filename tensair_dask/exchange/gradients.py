"""A sum of gradients (or of updates) over all trainable parameters of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from tensair_dask.exchange.finite import all_finite
from tensair_dask.exchange.rows import Rows, sum_rows

__all__ = ["Gradients"]


@dataclass(slots=True)
class Gradients:
    """What a message carries and a replica applies: sums commute, so order is free.

    Never changed once it exists, since it may be on its way to several peers.

    Attributes
    ----------
    buffers
        Of the dense parameters, one flat tensor a dtype, in the arena's layout.
    touched
        Positions of the dense parameters that got a gradient; None for all.
    rows
        By the number of a table, the sums of those of its rows that were touched.
    """

    buffers: list[torch.Tensor]
    touched: frozenset[int] | None = None
    rows: Mapping[int, Rows] = field(default_factory=dict)

    def __add__(self, other: Gradients) -> Gradients:
        return self.total([self, other])

    @classmethod
    def total(cls, parts: Sequence[Gradients]) -> Gradients:
        """Sum up one or more, in memory of its own, however many there are."""
        first, *others = parts
        if not others:
            return first
        buffers = [a + b for a, b in zip(first.buffers, others[0].buffers, strict=True)]
        for part in others[1:]:
            for buffer, more in zip(buffers, part.buffers, strict=True):
                buffer.add_(more)
        tables = sorted({table for part in parts for table in part.rows})
        rows = {
            table: sum_rows([part.rows[table] for part in parts if table in part.rows])
            for table in tables
        }
        return cls(buffers, _all_touched(parts), rows)

    def to(self, device: torch.device) -> Gradients:
        """Move to a device; the same object if it is there already."""
        if all(buffer.device == device for buffer in self.buffers) and all(
            part.ids.device == device for part in self.rows.values()
        ):
            return self
        return Gradients(
            [buffer.to(device) for buffer in self.buffers],
            self.touched,
            {
                table: Rows(part.ids.to(device), part.values.to(device))
                for table, part in self.rows.items()
            },
        )

    def is_finite(self) -> bool:
        """Whether nothing in it is NaN or infinite."""
        return all_finite(
            [*self.buffers, *(part.values for part in self.rows.values())]
        )

    @property
    def nbytes(self) -> int:
        """Bytes on the wire, where ids take 4."""
        return sum(buffer.nbytes for buffer in self.buffers) + sum(
            4 * len(part) + part.values.nbytes for part in self.rows.values()
        )


def _all_touched(parts: Sequence[Gradients]) -> frozenset[int] | None:
    found: set[int] = set()
    for part in parts:
        if part.touched is None:
            return None
        found |= part.touched
    return frozenset(found)
