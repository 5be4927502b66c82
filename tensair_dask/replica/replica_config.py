"""How many replicas there are, on which devices, and how much lies at each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from tensair_dask._common.checks import allow, shown, whole
from tensair_dask.replica.placement import ReplicaCount

__all__ = ["ReplicaConfig"]

# On these no replica can learn: "meta" has no numbers.
_NO_NUMBERS = ("meta", "fake", "lazy")


@dataclass(frozen=True)
class ReplicaConfig:
    """How many replicas there are, on which devices, and how much lies at each.

    Parameters
    ----------
    count
        ``"all"`` for one on each worker, also on those that come later; a number; or
        a pair ``(least, most)`` for one on each worker within these bounds. As many
        are kept as workers come, go, and are lost.
    device
        ``"auto"``: CUDA where a worker has it, spread over the GPUs of a host, else
        the CPU. Or the name of a torch device.
    max_in_flight
        Mini-batches that may lie unreported at one replica; None for
        ``tensair.dispatch.max-in-flight``. Fewer mean less delay and earlier
        back-pressure.

    Raises
    ------
    ConfigurationError
        If a value is not allowed.
    """

    count: int | tuple[int, int] | str | None = "all"
    device: Any = "auto"
    max_in_flight: int | None = None

    def __post_init__(self) -> None:
        ReplicaCount.of(self.count)
        allow(
            isinstance(self.device, (str, torch.device)),
            f"device={shown(self.device)}",
            "give 'auto', or the name of a torch device such as 'cpu' or 'cuda:1'",
        )
        name = str(self.device)
        allow(
            name.partition(":")[0] not in _NO_NUMBERS,
            f"device={name!r}",
            "tensors there have no values; give 'auto', 'cpu' or a CUDA device",
        )
        object.__setattr__(self, "device", name)
        if self.max_in_flight is not None:
            whole("max_in_flight", self.max_in_flight, 1, 256)

    @property
    def wanted(self) -> ReplicaCount:
        """How many there are to be, on so many workers as there are."""
        return ReplicaCount.of(self.count)
