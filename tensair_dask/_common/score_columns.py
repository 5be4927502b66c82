"""Columns: what the scores of metrics are called."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["columns", "is_stateful"]


def is_stateful(metric: Any) -> bool:
    """Whether a metric keeps state as torchmetrics objects do."""
    return all(hasattr(metric, name) for name in ("update", "compute", "reset"))


def columns(metrics: Mapping[str, Any]) -> list[str]:
    """Name the scores that metrics give, as far as that is known before the first.

    Parameters
    ----------
    metrics
        By name.

    Returns
    -------
    names
        That of each metric; ``name.key`` for each metric of a collection of
        torchmetrics.
    """
    names = []
    for name, metric in metrics.items():
        keys = getattr(metric, "keys", None)
        if is_stateful(metric) and callable(keys):
            names += [f"{name}.{key}" for key in keys()]
        else:
            names.append(name)
    return names
