"""Checkpoint: what a trainer needs to go on where it was."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

__all__ = ["Checkpoint"]


def _versions() -> dict[str, str]:
    from tensair_dask import __version__

    return {
        "tensair_dask": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
    }


@dataclass(eq=False)  # tensors cannot be compared in one word
class Checkpoint:
    """All state of a training at one moment of its stream.

    It holds tensors, numpy arrays and plain values only (None, numbers, strings, bytes,
    and lists, tuples and dicts of these), so that a file of it cannot run code.

    Attributes
    ----------
    model
        The ``state_dict()`` of the model.
    made
        Names in ``model`` of the buffers that were made, grown or changed in type
        while it ran: a model that is built anew has others there, or none.
    structure
        How parameters and groups of the optimizers differ from what the model factory
        built: see `tensair_dask.replica.structure.reshape`. Empty if they do not.
    as_built
        What the model factory has set that is not saved: see
        `tensair_dask.replica.as_built`.
    optimizers
        The ``state_dict()`` of each optimizer.
    attributes
        What each optimizer keeps besides: see
        `tensair_dask.replica.optimizer_memory`.
    clock
        Gradients that this model holds, by the replica that computed them.
    counters
        Plain numbers: mini-batches emitted, dead letters, and ``again``: so many of
        those that are read again from ``positions`` this model may hold, at most. That
        takes records to be in one mini-batch each, and in order.
    adaptation
        Of mode, detector and policy.
    scores
        Of what scores the stream, by name.
    positions
        Where each source stands: by its name, then by partition, the next offset.
    columns
        Names of the columns of data frames, by the place where a frame is given; empty
        if there were none.
    functions
        What loss, metrics and schedule were: see `tensair_dask._common.functions`.
    name
        Of the trainer.
    index
        Mini-batches that had been submitted.
    time
        When it was taken, in seconds since the epoch.
    versions
        Of tensair_dask, torch and Python that wrote it.
    """

    model: Mapping[str, Any]
    optimizers: list[Any] = field(default_factory=list)
    clock: dict[str, int] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    adaptation: dict[str, Any] = field(default_factory=dict)
    scores: dict[str, Any] = field(default_factory=dict)
    positions: dict[str, dict[Any, Any]] = field(default_factory=dict)
    name: str = ""
    index: int = 0
    made: list[str] = field(default_factory=list)
    structure: dict[str, Any] = field(default_factory=dict)
    attributes: list[Any] = field(default_factory=list)
    as_built: dict[str, Any] = field(default_factory=dict)
    columns: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)
    versions: dict[str, str] = field(default_factory=_versions)

    def describe(self) -> str:
        """Say in one line what it is."""
        taken = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.time))
        text = f"{self.name or 'trainer'} after {self.index:,} mini-batches, {taken}"
        return f"{text}; up to {self.again:,} are learned twice" if self.again else text

    @property
    def again(self) -> int:
        """How many mini-batches are learned twice at most; 0 if that is not known."""
        return int(self.counters.get("again", 0))

    def __repr__(self) -> str:
        # Without this, every tensor of the model.
        return f"<Checkpoint of {self.describe()}>"
