"""What one replica counts while it trains."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

__all__ = ["Counters", "Total", "plain"]


def plain(text: object, characters: int = 200) -> str:
    """Return a text that msgpack takes, in bounded length."""
    return str(text)[:characters].encode("utf-8", "replace").decode()


class Total:
    """A sum of which differences stay exact, however large one summand was.

    One outlier may have a loss of 1e20; in a plain sum all later ones would be lost
    in its rounding, for ever. What is rounded off is summed apart (Neumaier, ZAMM 54,
    1974).

    Attributes
    ----------
    value, rest
        They are to be added, after a difference of each has been taken.
    """

    __slots__ = ("rest", "value")

    def __init__(self) -> None:
        self.value = self.rest = 0.0

    def add(self, summand: float) -> bool:
        """Add a number; False if the sum would not be finite, which would stay."""
        value = self.value
        total = value + summand
        if total - total != 0.0:  # NaN or infinite
            return False
        without = total - summand
        self.rest += (value - without) + (summand - (total - without))
        self.value = total
        return True


class Counters:
    """Cumulative counts of one replica, so that a heartbeat that is lost loses nothing.

    Written by the replica's thread, read by the worker's event loop: plain numbers,
    each of which is right by itself at any time.

    Parameters
    ----------
    metrics
        Names of the scores; a list that grows is looked at again when a score comes
        that had no name.

    Attributes
    ----------
    began
        When counting began, in seconds since the epoch: two snapshots that differ in
        it have nothing to do with each other.
    steps, samples
        Mini-batches learned or only scored, and rows in them.
    predicted
        How many of the steps only predicted and scored, as the mode wanted it.
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
        a mini-batch does not count, and neither does one that has no value (None).
    """

    __slots__ = (
        "_names",
        "began",
        "busy",
        "loss",
        "metrics",
        "predicted",
        "predictions",
        "refused",
        "samples",
        "steps",
        "sums",
        "weights",
    )

    def __init__(self, metrics: Sequence[object] = ()) -> None:
        self.began = time.time()
        self._names = metrics
        self.metrics: list[str] = []
        self.steps = self.samples = self.predicted = 0
        self.refused = self.predictions = 0
        self.busy = 0.0
        self.loss = Total()
        self.sums: list[Total] = []
        self.weights: list[int] = []
        self._grow()

    def _grow(self) -> None:
        """Make room for the scores that have got a name; the names come last."""
        for name in self._names[len(self.sums) :]:
            self.weights.append(0)
            self.sums.append(Total())
            self.metrics.append(plain(name))

    def scored(
        self,
        samples: int,
        loss: float,
        metrics: Sequence[float | None],
        seconds: float,
        learned: bool = True,
    ) -> None:
        """Count one mini-batch."""
        self.busy += seconds
        self.loss.add(loss * samples)
        if len(metrics) > len(self.sums):
            self._grow()
        for place, value in enumerate(metrics):
            if value is not None and self.sums[place].add(value * samples):
                self.weights[place] += samples
        self.steps += 1
        self.samples += samples
        if not learned:
            self.predicted += 1

    def snapshot(self) -> dict[str, Any]:
        """Give the counts, with the worker's clock, as a heartbeat can carry them."""
        return {
            "at": time.monotonic(),
            "began": self.began,
            "steps": self.steps,
            "samples": self.samples,
            "predicted": self.predicted,
            "refused": self.refused,
            "predictions": self.predictions,
            "busy": self.busy,
            "loss": self.loss.value,
            "loss_rest": self.loss.rest,
            "metrics": {
                name: [total.value, total.rest, weight]
                # They may grow just now.
                for name, total, weight in zip(
                    list(self.metrics), self.sums, self.weights, strict=False
                )
            },
        }
