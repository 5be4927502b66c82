"""Make a replica on its worker, from a plan that the scheduler cannot look into."""

from __future__ import annotations

from typing import Any

__all__ = ["start_replica"]


def start_replica(plan: bytes) -> Any:
    """Make the replica of a pickled `ReplicaPlan`; runs on the worker.

    Dask's scheduler unpickles what is submitted, and imports what that refers to. Were
    it the class `Replica`, the scheduler would pay for torch. So this module imports
    nothing that does, and is all that the scheduler gets to see.
    """
    import pickle

    from tensair_dask.replica.actor import Replica

    return Replica(pickle.loads(plan))
