"""``dask scheduler --preload tensair_dask.preload``: what runs on the scheduler.

Needed only where clients must not register plugins; else the first trainer does it.
"""

from __future__ import annotations

from typing import Any

from tensair_dask.observe.dashboard.plugin import TrainingDashboard
from tensair_dask.pubsub.scheduler import dask_setup as set_up_pubsub

__all__ = ["dask_setup"]


async def dask_setup(scheduler: Any) -> None:
    """Install the half of pubsub that runs there, and the dashboard of trainings."""
    await set_up_pubsub(scheduler)
    await scheduler.register_scheduler_plugin(TrainingDashboard(), idempotent=True)
