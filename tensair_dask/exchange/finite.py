"""Whether numbers are finite, at the price of a sum."""

from __future__ import annotations

from collections.abc import Iterable

import torch

__all__ = ["all_finite"]


def all_finite(tensors: Iterable[torch.Tensor]) -> bool:
    """Whether no element of any tensor, dense or sparse, is NaN or infinite."""
    values = [each._values() if each.is_sparse else each for each in tensors]
    # A sum is finite unless an element is not, or it overflows: one pass, and a close
    # look only where that raises suspicion. Within a step of the 85k MLP that takes
    # 25 µs of 640, with 1.1M parameters 120 µs of 5,000 (all tensors cached: 16 and
    # 65); isfinite on each, all cached, takes 190 and 2,100.
    sums = [each.sum() for each in values]
    if values and values[0].device.type != "cpu":
        sums = [torch.stack(sums).sum()]  # one answer of the device, not one a tensor
    total = sum(each.item() for each in sums)
    return total - total == 0.0 or all(
        bool(torch.isfinite(each).all()) for each in values
    )
