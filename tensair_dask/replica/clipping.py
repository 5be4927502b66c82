"""Clipping of gradients, before a step is made of them or anything is shared."""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch

from tensair_dask.errors import ConfigurationError

__all__ = ["Clipping", "as_clipping"]


@dataclass(frozen=True)
class Clipping:
    """Clips the gradients of one mini-batch.

    Attributes
    ----------
    kind
        ``"norm"``: all gradients together are scaled down to this norm. ``"value"``:
        each element is cut off there.
    limit
        Above 0.
    """

    kind: str
    limit: float

    @torch.no_grad()
    def clip(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Clip the gradients that lie at the parameters, in place."""
        values = []
        for parameter in parameters:
            gradient = parameter.grad
            if gradient is None:
                continue
            if gradient.is_sparse:  # rows that came twice count as their sum
                gradient = parameter.grad = gradient.coalesce()
                gradient = gradient._values()
            values.append(gradient)
        if not values:
            return
        if self.kind == "value":
            for each in values:
                each.clamp_(-self.limit, self.limit)
            return
        norms = torch.stack([each.norm().float() for each in values])
        scale = (self.limit / (norms.norm() + 1e-6)).clamp(max=1.0)
        for each in values:
            each.mul_(scale.to(each.dtype))


def as_clipping(given: Any) -> Clipping | None:
    """Make one of what a user may give: None, a norm, or a pair of kind and limit.

    Raises
    ------
    ConfigurationError
        If it is none of them.
    """
    if given is None:
        return None
    pair = given if isinstance(given, (tuple, list)) else ("norm", given)
    if len(pair) == 2 and pair[0] in ("norm", "value") and _is_limit(pair[1]):
        return Clipping(pair[0], float(pair[1]))
    raise ConfigurationError(
        f"clip_gradients={given!r} was given; allowed are a number above 0, to which "
        "the norm of all gradients together is cut, or a pair such as ('value', 0.5), "
        "which cuts each element off, or ('norm', 1.0)."
    )


def _is_limit(value: Any) -> bool:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    return number and 0 < float(value) < math.inf
