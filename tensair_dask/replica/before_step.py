"""What a step of the optimizers may write, as it was before: to undo half a step."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from tensair_dask.exchange.arena import Arena

__all__ = ["BeforeStep"]

# Larger tables are remembered by the rows that the step is about to move.
SMALL_TABLE = 1_000_000  # elements


class BeforeStep:
    """Remembers parameters and optimizer states, and puts them back.

    Only what is written *in a step*: structure and buffers are the matter of
    `Rollback`. Of large tables, and of the states that belong to their rows, the rows
    of the gradient are remembered: an optimizer that moves others then moves them.

    Parameters
    ----------
    optimizers
        Together they hold the parameters of the arena.
    arena
        Of the model.
    device
        Where to remember; None for where the parameters are.
    whole
        Whether large tables are remembered as a whole, too.
    """

    def __init__(
        self,
        optimizers: Sequence[torch.optim.Optimizer],
        arena: Arena,
        device: torch.device | None = None,
        whole: bool = False,
    ) -> None:
        self._optimizers = optimizers
        self._arena = arena
        self._device = device
        self._rows_allowed = not whole
        # What is copied as a whole, and the copies: allocated once, as long as these
        # are the same tensors.
        self._tensors: list[torch.Tensor] = []
        self._copies: list[torch.Tensor] = []

    @torch.no_grad()
    def take(self) -> None:
        """Remember what is there now; the gradients must lie at the parameters."""
        copied = self._copied
        self._groups = [
            [copied(group) for group in each.param_groups] for each in self._optimizers
        ]
        self._states = [
            {key: copied(value) for key, value in each.state.items()}
            for each in self._optimizers
        ]
        self._rows: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        tensors = [*self._arena.buffers]
        for group in (group for groups in self._groups for group in groups):
            tensors += [each for each in group.values() if _is_dense(each)]  # the rate
        ids = {id(table): self._touched(table) for table in self._arena.tables}
        for table in self._arena.tables:
            self._choose(table, ids[id(table)], tensors)
        for state in self._states:
            for key, values in state.items():
                rows = ids.get(id(key))
                for value in values.values() if isinstance(values, dict) else [values]:
                    if _is_dense(value):
                        same = value.shape[:1] == getattr(key, "shape", ())[:1]
                        self._choose(value, rows if same else None, tensors)
        self._copy(tensors)

    def _choose(
        self,
        tensor: torch.Tensor,
        rows: torch.Tensor | None,
        tensors: list[torch.Tensor],
    ) -> None:
        if rows is None or tensor.numel() <= SMALL_TABLE:
            tensors.append(tensor)
        else:
            self._rows.append((tensor, rows, tensor.index_select(0, rows)))

    def _touched(self, table: torch.Tensor) -> torch.Tensor | None:
        """Rows that the step will move; None for all of them."""
        gradient = table.grad
        if not self._rows_allowed or gradient is None or not gradient.is_sparse:
            return None
        ids = [gradient._indices()[0]]
        for each in self._optimizers:
            state = each.state.get(table, {})
            # A momentum of rows moves those of the gradients before as well.
            ids += [
                value._indices()[0]
                for value in state.values()
                if isinstance(value, torch.Tensor) and value.is_sparse
            ]
        return torch.unique(torch.cat(ids))

    def _copy(self, tensors: list[torch.Tensor]) -> None:
        same = len(tensors) == len(self._tensors) and all(
            now is before for now, before in zip(tensors, self._tensors, strict=True)
        )
        if same:
            if tensors:
                torch._foreach_copy_(self._copies, tensors)
            return
        device = self._device
        self._copies = [
            each.clone() if device in (None, each.device) else each.to(device)
            for each in tensors
        ]
        self._tensors = tensors

    def _copied(self, values: Any) -> Any:
        """Copy what a step may replace; tensors stay those that they are.

        But for sparse ones, whose structure changes in place.
        """
        if not isinstance(values, dict):
            return self._kept("", values)
        return {key: self._kept(key, value) for key, value in values.items()}

    def _kept(self, key: Any, value: Any) -> Any:
        simple = value is None or isinstance(value, (bool, int, float, str))
        if key == "params" or simple:
            return value
        if isinstance(value, torch.Tensor):
            return value.clone() if value.is_sparse else value
        # Parameters that it refers to are those of the model.
        own: dict[int, Any] = {id(each): each for each in self._arena.parameters}
        try:
            return copy.deepcopy(value, own)
        except Exception:  # a lock, say: it stays as the step leaves it
            return value

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back."""
        arena = self._arena
        views = arena.layout.views(arena.buffers)
        for parameter, view in zip(arena.dense, views, strict=True):
            if parameter.data_ptr() != view.data_ptr():
                parameter.data = view
        for tensor, was in zip(self._tensors, self._copies, strict=True):
            tensor.copy_(was)
        for tensor, ids, values in self._rows:
            tensor.index_copy_(0, ids, values)
        for optimizer, groups, state in zip(
            self._optimizers, self._groups, self._states, strict=True
        ):
            # In place: who sets the learning rate may hold them.
            for group, was in zip(optimizer.param_groups, groups, strict=False):
                group.clear()
                group.update(was)
            del optimizer.param_groups[len(groups) :]
            optimizer.state.clear()
            optimizer.state.update(state)


def _is_dense(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and not value.is_sparse
