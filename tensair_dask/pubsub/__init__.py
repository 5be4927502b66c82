"""Publish and subscribe on a Dask cluster, straight from worker to worker.

``from tensair_dask.pubsub import Pub, Sub`` takes the place of ``from distributed
import Pub, Sub``, which Dask removed in 2025.4.0.
"""

from __future__ import annotations

from tensair_dask.pubsub.api import Pub, Sub
from tensair_dask.pubsub.link import LinkStats
from tensair_dask.pubsub.policies import Block, Conflate, DropOldest, Policy
from tensair_dask.pubsub.view import Member, View

__all__ = [
    "Block",
    "Conflate",
    "DropOldest",
    "LinkStats",
    "Member",
    "Policy",
    "Pub",
    "Sub",
    "View",
]
