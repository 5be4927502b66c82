"""What one replica counts while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

__all__ = ["Counters"]


class Counters:
    """Cumulative counts of one replica, so that a heartbeat that is lost loses nothing.

    Written by the replica's thread, read by the worker's event loop: plain numbers,
    each of which is right by itself at any time.

    Parameters
    ----------
    metrics
        Names of the trainer's metrics.

    Attributes
    ----------
    steps, samples
        Mini-batches learned, and rows in them.
    refused
        Mini-batches that were refused here (dead letters).
    predictions
        Records predicted by `Trainer.predict`, not those that were scored.
    busy
        Seconds spent in steps.
    loss
        Sum of loss times samples.
    sums, weights
        Of each metric times samples, and of these samples: a metric that was NaN for
        a mini-batch does not count.
    """

    __slots__ = (
        "busy",
        "loss",
        "metrics",
        "predictions",
        "refused",
        "samples",
        "steps",
        "sums",
        "weights",
    )

    def __init__(self, metrics: Sequence[str] = ()) -> None:
        self.metrics = list(metrics)
        self.steps = self.samples = self.refused = self.predictions = 0
        self.busy = self.loss = 0.0
        self.sums = [0.0] * len(self.metrics)
        self.weights = [0] * len(self.metrics)

    def learned(
        self, samples: int, loss: float, metrics: Sequence[float], seconds: float
    ) -> None:
        """Count one mini-batch."""
        self.steps += 1
        self.samples += samples
        self.busy += seconds
        self.loss += loss * samples
        for place, value in enumerate(metrics):
            if value - value == 0.0:  # neither NaN nor infinite: these would stay
                self.sums[place] += value * samples
                self.weights[place] += samples

    def snapshot(self) -> dict[str, Any]:
        """Give the counts, with the worker's clock, as a heartbeat can carry them."""
        return {
            "at": time.monotonic(),
            "steps": self.steps,
            "samples": self.samples,
            "refused": self.refused,
            "predictions": self.predictions,
            "busy": self.busy,
            "loss": self.loss,
            "metrics": {
                name: [total, weight]
                for name, total, weight in zip(
                    self.metrics, self.sums, self.weights, strict=True
                )
            },
        }
