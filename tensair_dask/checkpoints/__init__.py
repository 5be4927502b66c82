"""Checkpoints: all that a training has come to, in one file that is whole or not there.

A trainer hands over a `Checkpoint`; what is here writes it anywhere and reads it back.
"""

from __future__ import annotations

from tensair_dask.checkpoints.checkpoint import Checkpoint
from tensair_dask.checkpoints.checkpointer import Checkpointer
from tensair_dask.checkpoints.file_call import FileCall
from tensair_dask.checkpoints.store import Store

__all__ = ["Checkpoint", "Checkpointer", "FileCall", "Store"]
