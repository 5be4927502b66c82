"""Frozen: whether a model writes into parameters that nobody trains.

A target network, a momentum encoder, a moving average are frozen copies that `forward`
or a hook updates. Nobody exchanges them: like buffers, each replica has its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeAlias

import torch

__all__ = ["Frozen"]

# Values of each parameter that are compared: who averages changes all of them.
SAMPLE = 64
# Looks in a row, one after each step; after these, one at each close look.
FIRST = 8

# Count of writes, place, values.
_Seen: TypeAlias = tuple[int, int, bytes]


class Frozen:
    """Sees that frozen parameters stay as they are.

    By a few values of each, and by torch's count of what is written in place, which
    also finds what changes one row of many.

    Parameters
    ----------
    model
        Those that ask for no gradient now are frozen.
    tied
        Ids of those that share memory with trained ones, and so are trained.

    Attributes
    ----------
    eager
        Whether to look after each step still.
    """

    def __init__(self, model: torch.nn.Module, tied: Collection[int] = ()) -> None:
        self._model = model
        self._looks = 0
        parameters = model.named_parameters()
        self._names = {
            name
            for name, each in parameters
            if not each.requires_grad and id(each) not in tied
        }
        self.eager = bool(self._names)
        self.begin()

    def begin(self) -> None:
        """Take what is there now for what was given."""
        self._seen: dict[str, _Seen] = {}
        if self._names:
            # By name: a whole module may have come in the place of another.
            for name, each in self._model.named_parameters():
                if name in self._names:
                    self._seen[name] = _seen(each)

    def written(self) -> list[str]:
        """Names of those that were written into since `begin`, or the last call."""
        self._looks += 1
        self.eager = self.eager and self._looks < FIRST
        before = self._seen
        self.begin()
        return [
            name
            for name, now in self._seen.items()
            if name in before and _differs(before[name], now)
        ]


def _seen(parameter: torch.nn.Parameter) -> _Seen:
    values = parameter.detach().reshape(-1)
    some = values[:: max(1, len(values) // SAMPLE)].contiguous().cpu()
    # As bytes: a NaN is equal to itself there.
    return (
        parameter._version,
        parameter.data_ptr(),
        some.view(torch.uint8).numpy().tobytes(),
    )


def _differs(was: _Seen, now: _Seen) -> bool:
    # Where the same values lie elsewhere nothing was learned, as for `module.to`.
    return was[2] != now[2] or (was[0] != now[0] and was[1] == now[1])
