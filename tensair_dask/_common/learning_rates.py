"""Learning rates of optimizers, and the factor by which a policy has changed them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["FACTOR", "scale_rates"]

# In a parameter group: what the scheduled rate is multiplied by, since a policy or the
# user has changed the rate. There, it is copied and saved with the optimizer's state.
FACTOR = "schedule_factor"


def scale_rates(optimizers: Sequence[Any], factor: float) -> None:
    """Multiply the learning rates, and those of a schedule that are to come."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * factor
            if FACTOR in group:
                group[FACTOR] *= factor
