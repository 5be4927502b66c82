"""Checkpoints: all that a training has come to, in one file that is whole or not there.

A trainer hands over a `Checkpoint`; what is here writes it anywhere and reads it back.
"""

from __future__ import annotations

from tensair_dask.checkpoints.checkpoint import Checkpoint
from tensair_dask.checkpoints.schedule import Checkpointer
from tensair_dask.checkpoints.store import Store
from tensair_dask.checkpoints.timed_io import FileCall

__all__ = ["Checkpoint", "Checkpointer", "FileCall", "Store"]
