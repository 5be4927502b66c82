"""What a run is made from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tensair_dask import config
from tensair_dask._common.functions import described
from tensair_dask.checkpoints.checkpoint_config import CheckpointConfig
from tensair_dask.coordinator.lane import Limits
from tensair_dask.drift.drift_config import DriftConfig
from tensair_dask.exchange.settings import ExchangeConfig
from tensair_dask.replica.clipping import Clipping
from tensair_dask.replica.learner import Recipe
from tensair_dask.replica.replica_config import ReplicaConfig

__all__ = ["RunOptions"]


@dataclass(frozen=True)
class RunOptions:
    """What a run is made from.

    Attributes
    ----------
    name
        What people call it.
    recipe
        What replicas are built from.
    replicas, exchange, drift, checkpoints
        How it runs.
    doubts
        Warnings for the user at the start.
    """

    name: str
    recipe: Recipe
    replicas: ReplicaConfig
    exchange: ExchangeConfig
    drift: DriftConfig
    checkpoints: CheckpointConfig
    doubts: tuple[str, ...] = ()

    def limits(self) -> Limits:
        """Bounds on what lies at one replica."""
        return Limits(
            batches=int(
                config.get("dispatch.max-in-flight", self.replicas.max_in_flight)
            ),
            nbytes=config.get_bytes("dispatch.max-in-flight-bytes"),
            unconfirmed_nbytes=config.get_bytes("dispatch.max-unconfirmed-bytes"),
            unconfirmed=int(config.get("dispatch.max-unconfirmed-records")),
            seconds=config.get_seconds("dispatch.max-in-flight-time"),
            message_seconds=config.get_seconds("dispatch.message-time"),
            message_nbytes=config.get_bytes("dispatch.message-bytes"),
            messages=int(config.get("dispatch.messages-in-flight")),
            rate=float(config.get("dispatch.message-rate")),
            losses=int(config.get("dispatch.allowed-losses")),
            room=config.get_seconds("timeouts.room"),
        )

    def functions(self) -> dict[str, Any]:
        """Describe the functions of a run, to be compared when it goes on later."""
        recipe = self.recipe
        metrics = {f"metrics[{key!r}]": each for key, each in recipe.metrics.items()}
        given = {"loss": recipe.loss, **metrics, "schedule": recipe.schedule}
        # No function, and told in the same way.
        clipping = {"clip_gradients": _as_given(recipe.clipping)}
        about = {"name": "Trainer", "settings": clipping}
        return {**described(given), "the trainer": about}


def _as_given(clipping: Clipping | None) -> str:
    if clipping is None:
        return "None"
    limit = clipping.limit
    return repr(limit if clipping.kind == "norm" else (clipping.kind, limit))
