"""Train PyTorch models in real time from data streams on a Dask cluster."""

from __future__ import annotations

import importlib
from typing import Any

from tensair_dask import config, errors
from tensair_dask._common import stream_methods

__version__ = "0.1.0"

# Public names and where they live. Imported on first use: Dask's scheduler loads
# this package for its half of pubsub and must not pay for torch.
_PUBLIC = {
    "CheckpointConfig": "tensair_dask.options",
    "DriftConfig": "tensair_dask.options",
    "ExchangeConfig": "tensair_dask.options",
    "ReplicaConfig": "tensair_dask.options",
    "Prediction": "tensair_dask.batches.predictions",
    "Prequential": "tensair_dask.prequential",
    "Pub": "tensair_dask.pubsub",
    "Report": "tensair_dask.reports",
    "Sub": "tensair_dask.pubsub",
    "Trainer": "tensair_dask.trainer",
}
_ROOMS = (
    "adaptation",
    "drift",
    "metrics",
    "prequential",
    "pubsub",
    "sources",
    "streams",
)

__all__ = [
    "CheckpointConfig",
    "DriftConfig",
    "ExchangeConfig",
    "Prediction",
    "Prequential",
    "Pub",
    "ReplicaConfig",
    "Report",
    "Sub",
    "Trainer",
    "adaptation",
    "config",
    "drift",
    "errors",
    "metrics",
    "prequential",
    "pubsub",
]

config.load_defaults()
stream_methods.add()


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"tensair_dask.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
