"""``dask scheduler --preload tensair_dask.dashboard.preload``.

Needed only where clients must not register plugins; else the first trainer does it.
"""

from __future__ import annotations

from typing import Any

from tensair_dask.dashboard.plugin import TrainingDashboard

__all__ = ["dask_setup"]


async def dask_setup(scheduler: Any) -> None:
    """Install the plugin."""
    await scheduler.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
